"""Drafts from files of particular applications: workbooks, databases, arrays, zips and sequences."""

from __future__ import annotations

import datetime as dt
import io
import json
import random
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bloomery.data_contracts.errors import DataMissing, DataUnfit
from bloomery.flows.recipe.recipe import Recipe
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import draft_recipe, input_kinds, validate_rows

NUM_ROWS = 200


def read_options(recipe: Recipe) -> dict[str, object]:
    """Returns the options of a recipe that read the source, without the source itself."""
    return recipe.data.model_dump(exclude_none=True, exclude={"source", "row_id"})


def write_workbook(path: Path, *, num_sheets: int = 2) -> None:
    chance = random.Random(0)
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "Sales"
    sheet["B2"] = "Sales of 2024"
    sheet.append([])
    sheet.append([None, "id", "price", "day", "share", "region", None, "bought"])
    for number in range(NUM_ROWS):
        price = "on request" if number == 7 else number / 4
        share = "#N/A" if number % 9 == 0 else number / 7
        day = dt.date(2024, 1, 1) + dt.timedelta(number)
        region = chance.choice(["NA", "EU "])
        sheet.append([None, number + 1_000, price, day, share, region, None, chance.choice(["yes", "no"])])
    for index in range(1, num_sheets):
        workbook.create_sheet(f"Notes {index}")["A1"] = "as of today"
    workbook.save(path)


def test_the_table_of_a_workbook_is_found(home: Path, tmp_path: Path) -> None:
    write_workbook(tmp_path / "rows.xlsx")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.xlsx", "bought")
    assert recipe.data.sheet == "Sales"
    assert input_kinds(recipe) == {"price": "number", "day": "date", "share": "number", "region": "one_hot"}
    assert recipe.features.key == "id"
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (NUM_ROWS - 1, 1)
    with pytest.raises(DataMissing, match=r"it has the sheets 'Sales', 'Notes 1'(.|\n)*name one by --sheet"):
        draft_recipe(tmp_path, tmp_path / "rows.xlsx", "sold")


def test_the_content_of_a_workbook_decides_not_its_suffix(home: Path, tmp_path: Path) -> None:
    write_workbook(tmp_path / "rows.download", num_sheets=1)
    recipe = draft_recipe(tmp_path, tmp_path / "rows.download", "bought")
    assert (recipe.data.kind, recipe.data.sheet) == ("xlsx", None)
    lines = "".join(f"{n / 3},{'yn'[n % 2]}\n" for n in range(NUM_ROWS))
    (tmp_path / "text.xlsx").write_text(f"price,bought\n{lines}")
    assert draft_recipe(tmp_path, tmp_path / "text.xlsx", "bought").data.kind == "csv"
    (tmp_path / "page.xlsx").write_text("<html><table><tr><td>1</td></tr></table></html>")
    with pytest.raises(DataMissing, match="it is HTML or XML"):
        draft_recipe(tmp_path, tmp_path / "page.xlsx", "bought")
    (tmp_path / "rows.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    with pytest.raises(DataMissing, match=r"save it as \.xlsx without a password"):
        draft_recipe(tmp_path, tmp_path / "rows.xls", "bought")


def test_the_table_of_a_database_with_the_label_is_found(home: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "rows.db")
    connection.execute("create table people (id integer primary key, age text, flag boolean, photo blob, bought text)")
    rows = [(n, "abc" if n == 5 else str(n % 80), n % 2, b"x", "yn"[n % 3 == 0]) for n in range(NUM_ROWS)]
    connection.executemany("insert into people values (?, ?, ?, ?, ?)", rows)
    connection.execute("create table places (name)")
    connection.execute("create view broken as select fee from people")
    connection.commit()
    connection.close()
    recipe = draft_recipe(tmp_path, tmp_path / "rows.db", "bought")
    assert "not read: view broken (no such column: fee)" in (tmp_path / "mine.yaml").read_text()
    assert read_options(recipe) == {"format": "sqlite", "strip": True, "table": "people", "drop": ("photo",)}
    assert input_kinds(recipe) == {"age": "number", "flag": "boolean"}
    assert validate_rows(recipe).num_quarantined == 1


def test_declared_values_of_an_arff_file_become_those_of_the_contract(home: Path, tmp_path: Path) -> None:
    header = "@relation r\n@attribute size real\n@attribute shape {round,square,'very long'}\n@attribute class {a,b}\n"
    lines = [f"{n / 3},{'?' if n % 9 == 0 else 'round'},{'ab'[n % 2]}\n" for n in range(NUM_ROWS)]
    (tmp_path / "rows.arff.txt").write_text("% about the rows\n" + header + "@data\n" + "".join(lines))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.arff.txt", "class")
    assert recipe.data.kind == "arff"
    assert 'validValues: [round, square, "very long"]' in (tmp_path / "mine.odcs.yaml").read_text()
    assert validate_rows(recipe).num_rows == NUM_ROWS


def test_arrays_of_two_splits_become_two_sources(home: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    arrays = {
        f"{kind}_{split}": chance.integers(0, 255, (60, 8, 8), np.uint8) for kind in "x" for split in ("train", "test")
    }
    np.savez(tmp_path / "mnist.npz", **arrays, y_train=np.arange(60) % 3, y_test=np.arange(60) % 3)
    recipe = draft_recipe(tmp_path, tmp_path / "mnist.npz", "label")
    assert [(origin.arrays, origin.part) for origin in recipe.data.source_files] == [
        ({"x": "x_train", "label": "y_train"}, "train"),
        ({"x": "x_test", "label": "y_test"}, "test"),
    ]
    assert recipe.features.inputs[0].model_dump()["shape"] == (1, 8, 8)
    assert validate_rows(recipe).num_rows == 120


def test_names_of_columns_may_be_an_array(home: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(90, 3))
    np.savez(tmp_path / "rows.npz", data=rows, target=np.arange(90) % 2, feature_names=np.array(["a", "b", "c"]))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.npz", "target")
    assert input_kinds(recipe) == {"a": "number", "b": "number", "c": "number"}
    np.save(tmp_path / "x_all.npy", rows)
    np.save(tmp_path / "y_all.npy", np.arange(90) % 2)
    recipe = draft_recipe(tmp_path, tmp_path / "x_all.npy", "label")
    assert Path(recipe.data.labels or "").name == "y_all.npy"
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataMissing, match="pickled Python objects, which may run code"):
        draft_recipe(tmp_path, tmp_path / "objects.npy", "label")


def write_zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_the_file_of_a_zip_with_the_label_is_found(home: Path, tmp_path: Path) -> None:
    rows = "a;b;label\n" + "".join(f"{n / 4};{n % 5};{n % 2}\n" for n in range(NUM_ROWS))
    source = write_zip(tmp_path / "rows.zip", {"train.csv": rows, "test.csv": "a;b\n1;2\n", "readme.txt": "rows"})
    recipe = draft_recipe(tmp_path, source, "label")
    assert (recipe.data.format, recipe.data.files, recipe.data.delimiter) == ("csv", r"^train\.csv$", ";")
    assert validate_rows(recipe).num_rows == NUM_ROWS
    source = write_zip(tmp_path / "two.zip", {"a.csv": "a;b\n1;2\n", "b.parquet": "x"})
    with pytest.raises(DataMissing, match=r"files of csv, parquet: a\.csv, b\.parquet(.|\n)*--format(.|\n)*--files"):
        draft_recipe(tmp_path, source, "label")
    assert draft_recipe(tmp_path, tmp_path / "rows.zip", "label", UserOptions(files="train")).data.files == "train"


def test_files_of_a_zip_that_are_named_by_splits_become_sources(home: Path, tmp_path: Path) -> None:
    rows = "a,label\n" + "".join(f"{n / 4},{n % 2}\n" for n in range(NUM_ROWS))
    source = write_zip(tmp_path / "rows.zip", {"my_test.csv": rows, "in/my-train.csv": rows, "notes.txt": "a"})
    recipe = draft_recipe(tmp_path, source, "label")
    assert [(origin.files, origin.part) for origin in recipe.data.source_files] == [
        (r"^in/my\-train\.csv$", "train"),
        (r"^my_test\.csv$", "test"),
    ]
    assert validate_rows(recipe).num_rows == 2 * NUM_ROWS


def test_arrays_of_several_lengths_become_sequences(home: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    lengths = [chance.randint(3, 30) for _ in range(NUM_ROWS)]
    lengths[5] = 0
    values = [[chance.random() for _ in range(length)] for length in lengths]
    label, device = ["a", "b"] * (NUM_ROWS // 2), ["x", "x", "y", "z"] * (NUM_ROWS // 4)
    pq.write_table(pa.table({"values": values, "label": label, "device": device}), tmp_path / "rows.parquet")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.parquet", "label")
    (features,) = recipe.features.inputs  # without the device, since a sequence tells more than one category
    sequence = features.model_dump()
    assert (sequence["kind"], sequence["column"], sequence["length"]) == ("sequence", "values", max(lengths))
    assert recipe.model.kind == "rnn"
    assert validate_rows(recipe).num_quarantined == 1  # that without a step


def test_arrays_of_arrays_become_sequences_or_images(home: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"points": [[n, -n]] * (n % 7 + 1), "label": n % 2}) for n in range(NUM_ROWS)]
    lines[3] = json.dumps({"points": [[1, 2], [3]], "label": 1})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.jsonl", "label")
    assert recipe.data.flatten == {"points": (2,)}
    sequence = recipe.features.inputs[0].model_dump()
    assert (sequence["length"], sequence["width"]) == (7, 2)
    assert validate_rows(recipe).num_quarantined == 1
    images = pa.table({"pixels": [[[n] * 8] * 8 for n in range(60)], "label": [0, 1] * 30})
    pq.write_table(images, tmp_path / "rows.parquet")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.parquet", "label")
    assert recipe.features.inputs[0].model_dump()["shape"] == (1, 8, 8)
    uneven = pa.table(
        {"steps": [[[1.0] * (n % 3 + 1)] for n in range(60)], "a": [n % 7 / 3 for n in range(60)], "label": [0, 1] * 30}
    )
    pq.write_table(uneven, tmp_path / "rows.parquet")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.parquet", "label")
    assert recipe.data.drop == ("steps",)
    assert "inner arrays of 1 to 3 values, where one length is required" in (tmp_path / "mine.yaml").read_text()


@pytest.mark.parametrize("is_zip", [False, True])
def test_a_folder_of_files_is_a_row_for_each_file(home: Path, tmp_path: Path, is_zip: bool) -> None:
    files = {
        f"{gesture}/{number}.csv": "time;x;y\n" + "".join(f"12:{n:02};{n},5;{number}\n" for n in range(number + 4))
        for gesture in ("left", "right")
        for number in range(25)
    }
    for name, text in files.items():
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / name).write_text(text)
    source = write_zip(tmp_path / "rows.zip", files) if is_zip else tmp_path / "rows"
    recipe = draft_recipe(tmp_path, source, "label")
    options = read_options(recipe)
    expected = {"format": "csv", "unit": "file", "drop": ("time",), "decimal": ",", "flatten": {"values": (2,)}}
    assert {name: options[name] for name in expected} == expected
    sequence = recipe.features.inputs[0].model_dump()
    assert (recipe.features.key, sequence["length"], sequence["width"]) == ("path", 28, 2)
    assert validate_rows(recipe).num_rows == 50


def test_texts_of_numbers_and_arrays_are_sequences_too(home: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for name in ("run", "walk"):
        for number in range(20):
            steps = chance.normal(size=(number + 5, 3))
            (tmp_path / "texts" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "arrays" / name).mkdir(parents=True, exist_ok=True)
            np.savetxt(tmp_path / "texts" / name / f"{number}.txt", steps)
            np.save(tmp_path / "arrays" / name / f"{number}.npy", steps)
    for folder in ("texts", "arrays"):
        recipe = draft_recipe(tmp_path, tmp_path / folder, "label")
        sequence = recipe.features.inputs[0].model_dump()
        assert (recipe.data.unit, sequence["length"], sequence["width"]) == ("file", 24, 3)
        assert validate_rows(recipe).num_rows == 40


def test_files_named_by_their_label_need_a_pattern(home: Path, tmp_path: Path) -> None:
    for number in range(40):
        lines = "".join(f"{n},{number % 5},1,2\n" for n in range(4))
        path = tmp_path / "rows" / f"{('run', 'walk')[number % 2]}_{number}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"t,x,y,z\n{lines}")
    with pytest.raises(DataMissing, match="--path-pattern; with --unit file where each file is one sequence"):
        draft_recipe(tmp_path, tmp_path / "rows", "label")
    options = UserOptions(path_pattern="(?P<label>[a-z]+)_", unit="file")
    recipe = draft_recipe(tmp_path, tmp_path / "rows", "label", options)
    sequence = recipe.features.inputs[0].model_dump()  # not an image of 4 x 4
    assert (sequence["kind"], sequence["length"], sequence["width"]) == ("sequence", 4, 4)
    assert validate_rows(recipe).num_rows == 40


def test_lists_of_arrays_in_a_json_document_are_named(home: Path, tmp_path: Path) -> None:
    rows = [[f"text {number} of {number % 7}", "yes" if number % 2 else "no"] for number in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps({"data": {"train": rows, "test": rows[:9]}}, indent=1))
    message = r"data\.train \(60 rows of 2 values\), data\.test \(9 rows of 2 values\); choose one by --records"
    with pytest.raises(DataMissing, match=message):
        draft_recipe(tmp_path, tmp_path / "rows.json", "kind")
    options = UserOptions(records="data.train", columns=("text", "kind"))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.json", "kind", options)
    assert (recipe.data.records, validate_rows(recipe).num_rows) == ("data.train", 60)


def test_columns_in_a_json_document_are_found(home: Path, tmp_path: Path) -> None:
    columns = {"a": [n / 3 for n in range(90)], "label": [n % 2 for n in range(90)]}
    by_key = {name: {str(n): value for n, value in enumerate(values)} for name, values in columns.items()}
    for document, records in ((columns, None), (by_key, None), ({"ok": True, "data": columns}, "data")):
        (tmp_path / "rows.json").write_text(json.dumps(document))
        recipe = draft_recipe(tmp_path, tmp_path / "rows.json", "label")
        assert (recipe.data.kind, recipe.data.records) == ("json", records)
        assert input_kinds(recipe) == {"a": "number"}


@pytest.mark.parametrize(
    ("name", "kind"), [("adult.data", "csv"), ("table.txt", "csv"), ("rows.json", "json"), ("rows.arff", "arff")]
)
def test_the_content_of_a_single_file_in_a_zip_decides(name: str, kind: str, home: Path, tmp_path: Path) -> None:
    rows = [(n / 3, n % 2) for n in range(90)]
    text = "a,label\n" + "".join(f"{a},{label}\n" for a, label in rows)
    if kind == "json":
        text = json.dumps({"data": [{"a": a, "label": label} for a, label in rows]})
    if kind == "arff":
        text = f"@relation r\n@attribute a real\n@attribute label {{0,1}}\n@data\n{text.split(maxsplit=1)[1]}"
    recipe = draft_recipe(tmp_path, write_zip(tmp_path / "rows.zip", {name: text}), "label")
    assert (recipe.data.kind, input_kinds(recipe)) == (kind, {"a": "number"})


def write_dataset(folder: Path, name: str, columns: dict[str, pa.Array], features: dict[str, object]) -> None:
    """Writes a split as `datasets` does: an Arrow stream with the features in its schema."""
    (folder / name).mkdir(parents=True)
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = folder / name / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / name / "state.json").write_text("{}")


def test_a_data_set_of_hugging_face_becomes_its_splits(home: Path, tmp_path: Path) -> None:
    classes = {"_type": "ClassLabel", "names": ["cat", "dog", "unseen"]}
    for name in ("train", "test", "unsupervised"):
        columns = {"a": pa.array([n % 17 / 4 for n in range(120)]), "label": pa.array([n % 2 for n in range(120)])}
        write_dataset(tmp_path / "set", name, columns, {"label": classes})
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "unsupervised"]}))
    recipe = draft_recipe(tmp_path, tmp_path / "set", "label")
    assert [(Path(origin.source).name, origin.part) for origin in recipe.data.source_files] == [
        ("train", "train"),
        ("test", "test"),
    ]
    assert "not read: unsupervised" in " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "validValues: [cat, dog]" in (tmp_path / "mine.odcs.yaml").read_text()
    assert validate_rows(recipe).num_rows == 240


def test_images_of_a_parquet_file_are_learnt_from(home: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    files = []
    for _ in range(60):
        stream = io.BytesIO()
        Image.fromarray(chance.integers(0, 255, (9, 8), np.uint8)).save(stream, "PNG")
        files.append({"bytes": stream.getvalue(), "path": None})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    columns = {"image": files, "label": [0, 1] * 30, "note": chance.normal(size=60)}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "rows.parquet")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.parquet", "label")
    assert (recipe.data.kind, recipe.data.mode) == ("huggingface", "L")
    shapes = {source.kind: source.model_dump().get("shape") for source in recipe.features.inputs}
    assert shapes == {"number": None, "image": (1, 9, 8)}
    assert recipe.model.kind == "fused"
    assert validate_rows(recipe).num_rows == 60


def test_a_split_without_labels_is_not_read(home: Path, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        labels = [-1 if name == "test" else n % 2 for n in range(120)]
        columns = {"a": pa.array([n % 17 / 4 for n in range(120)]), "label": pa.array(labels)}
        write_dataset(tmp_path / "set", name, columns, {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}})
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    recipe = draft_recipe(tmp_path, tmp_path / "set", "label")
    assert [(Path(origin.source).name, origin.part) for origin in recipe.data.source_files] == [
        ("train", "train"),
        ("validation", "test"),
    ]
    text = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "not read: test (no row has a label)" in text
    assert validate_rows(recipe).num_rows == 240


def test_a_requested_mode_and_size_decide_the_shape_of_images(home: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    files = []
    for number in range(60):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 255, (9, 8, 3), np.uint8)).save(path)
        files.append({"bytes": path.read_bytes(), "path": None})
    recipe = draft_recipe(tmp_path, tmp_path / "pictures", "label", UserOptions(mode="L"))
    assert recipe.features.inputs[0].model_dump()["shape"] == (1, 9, 8)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": files, "label": [0, 1] * 30}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.parquet", "label", UserOptions(mode="L", size=(6, 5)))
    assert recipe.features.inputs[0].model_dump()["shape"] == (1, 6, 5)


def test_notes_about_the_data_may_lie_beside_it_in_a_folder(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.csv").write_text("a,label\n" + "".join(f"{n / 3},{n % 2}\n" for n in range(90)))
    (folder / "README.txt").write_text("About the rows")
    (folder / "LICENSE.txt").write_text("Free to use")
    recipe = draft_recipe(tmp_path, folder, "label")
    assert (recipe.data.kind, validate_rows(recipe).num_rows) == ("csv", 90)


def test_an_error_about_malformed_rows_names_options_of_the_format(home: Path, tmp_path: Path) -> None:
    header = "@relation r\n@attribute a real\n@attribute label {0,1}\n@data\n"
    (tmp_path / "rows.arff").write_text(header + "1,0,2\n" * 90)
    with pytest.raises(DataUnfit, match=r"choose other data, or set --format$"):
        draft_recipe(tmp_path, tmp_path / "rows.arff", "label")
    write_dataset(
        tmp_path, "set", {"image": pa.array([{"bytes": b"x", "path": None}] * 40)}, {"image": {"_type": "Image"}}
    )
    with pytest.raises(DataMissing, match="there are no images in column image"):
        draft_recipe(tmp_path, tmp_path / "set", "label")
