"""Drafts of any data are a valid contract and recipe, and the data passes the contract."""

import csv
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import BloomeryError, DataMissing, DataUnfit, RecipeInvalid, StateUnwritable
from bloomery.data_contracts.records.records import ValidRows
from bloomery.flows.cli.commands.init import write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.scaffolding.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.reader_options import UserOptions
from bloomery.tasks.validate.stage import validate
from tests.examples import examples

ADULT = (
    "age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,capital-gain,"
    "capital-loss,hours-per-week,native-country,income"
)


def drafted(
    folder: Path, source: Path | str, label: str, options: UserOptions | None = None, key: str | None = None
) -> Recipe:
    """Drafts a recipe for `source` and reads it."""
    roles = ColumnRoles(label, key)
    draft = write_drafts("mine", [str(source)], roles, options or UserOptions(), output=folder, force=True)
    return read_recipe(str(draft.recipe))


def checked(recipe: Recipe) -> ValidRows:
    return validate(ingest(locate_source(recipe.data)), recipe.contract)


def options_of(recipe: Recipe) -> dict[str, str]:
    """The kind of input that each column is read by, with its encoding."""
    return {
        column: getattr(source, "encoding", source.kind)
        for source in recipe.features.inputs
        for column in source.columns
    }


def write_shop(path: Path) -> None:
    """A CSV with every type, nulls, accents, quoted newlines, awkward names and a malformed line."""
    chance = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=";")
        names = ("hours per week", "a.b", "1st", "класс", "when", "day", "ok", "note", "email", "zip", "same", "empty")
        rows.writerow([*names, "bought"])
        for number in range(900):
            is_bought = chance.random() < 0.4
            cells = [
                "?" if number % 7 == 0 else chance.randint(1, 80),
                f"{chance.gauss(3 if is_bought else 0, 1):.3f}",
                chance.choice(["red", "green", 'bl"ue', "two\nlines", ""]),
                chance.choice(["né", "été", "да"]),
                f"2024-0{chance.randint(1, 9)}-1{chance.randint(0, 9)} 0{chance.randint(0, 9)}:15:00",
                f"2023-1{chance.randint(0, 2)}-2{chance.randint(0, 8)}" if number % 9 else "",
                chance.choice(["true", "false"]),
                f"free text {number} ü {chance.random()}",
                f"user{number}@example.org",
                f"0{chance.randint(1000, 1080)}",
                "x",
                "",
            ]
            rows.writerow([*cells, "ja" if is_bought else "nein"])
            if number == 500:
                file.write("a;broken;line\r\n")


def test_every_type_becomes_an_input_that_fits_it(home: Path, tmp_path: Path) -> None:
    write_shop(tmp_path / "shop.csv")
    recipe = drafted(tmp_path, tmp_path / "shop.csv", "bought")
    assert options_of(recipe) == {
        "hours_per_week": "number",
        "a_b": "number",
        "column_1st": "one_hot",
        "column_4": "one_hot",
        "when": "date",
        "day": "date",
        "ok": "boolean",
        "zip": "target",
    }
    assert recipe.data.missing == ("", "?")
    assert recipe.data.rename == {
        "hours per week": "hours_per_week",
        "a.b": "a_b",
        "1st": "column_1st",
        "класс": "column_4",
    }
    assert recipe.contract.status == "draft"
    rows = checked(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (900, 1)
    text = (tmp_path / "mine.yaml").read_text()
    assert "source: shop.csv" in text  # relative, so that both files can be moved
    assert "email: its name suggests personal data" in text
    assert "personal, value: drop" in (tmp_path / "mine.odcs.yaml").read_text()


CELLS = {
    "integers": st.integers(-(10**20), 10**20).map(str),
    "numbers": st.floats(allow_nan=False).map(repr),
    "dates": st.dates().map(str),
    "times": st.datetimes().map(str),
    "truths": st.sampled_from(["true", "false", "True"]),
    "few": st.sampled_from(["", "?", "NA", "red", "-", "null", "no", "1"]),
    "texts": st.text(max_size=8),
}


@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), names=st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=2, max_size=4))
def test_any_csv_file_passes_the_contract_drafted_from_it(home: Path, data: st.DataObject, names: list[str]) -> None:
    kinds = data.draw(st.lists(st.sampled_from([*CELLS]), min_size=len(names), max_size=len(names)))
    pools = [data.draw(st.lists(CELLS[kind], min_size=1, max_size=30)) for kind in kinds]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.writer(file)
            rows.writerow([*names, "the label"])
            for number in range(60):
                rows.writerow([*(pool[number % len(pool)] for pool in pools), f"class {number % 2}"])
        try:
            recipe = drafted(Path(folder), path, "the label")
        except (DataUnfit, DataMissing):  # nothing to learn from, or no CSV after all: said, and nothing written
            assert [file.name for file in Path(folder).iterdir()] == ["rows.csv"]
            return
        valid_rows = checked(recipe)
        assert valid_rows.num_rows + valid_rows.num_quarantined >= 1


@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_parquet_file_passes_the_contract_drafted_from_it(home: Path, data: st.DataObject) -> None:
    kinds = {
        pa.int8(): st.integers(-128, 127),
        pa.uint32(): st.integers(0, 2**32 - 1),
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.float32(): st.floats(width=32, allow_nan=False, allow_infinity=False),
        pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
        pa.string(): st.text(max_size=6),
        pa.bool_(): st.booleans(),
        pa.timestamp("us", "UTC"): st.integers(0, 2**50),
        pa.date32(): st.integers(0, 40_000),
        pa.list_(pa.uint8()): st.lists(st.integers(0, 255), min_size=4, max_size=4),
    }
    types = data.draw(st.lists(st.sampled_from([*kinds]), min_size=1, max_size=4))
    columns = {"label": pa.array([number % 3 for number in range(60)])}
    for position, dtype in enumerate(types):
        pool = data.draw(st.lists(kinds[dtype] | st.none(), min_size=1, max_size=30))
        columns[f"c{position}"] = pa.array([pool[number % len(pool)] for number in range(60)], dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(pa.table(columns), path)
        try:
            recipe = drafted(Path(folder), path, "label")
        except DataUnfit:
            return
        assert checked(recipe).num_rows == 60


def test_rows_without_a_label_and_of_rare_classes_are_quarantined(home: Path, tmp_path: Path) -> None:
    labels = ["yes", "no", "yes", "no", ""] * 20 + ["odd"] * 3
    lines = "".join(f"{number % 7},{label}\n" for number, label in enumerate(labels))
    (tmp_path / "rows.csv").write_text(f"a,label\n{lines}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    rows = checked(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (80, 23)
    assert 23 / 103 < recipe.contract.quarantine_limit < 23 / 103 + 0.03
    text = " ".join((tmp_path / "mine.odcs.yaml").read_text().replace("#", "").split())
    assert "20 rows without a label, 3 rows of classes that are too rare" in text


def test_a_key_column_is_detected_or_else_rows_are_numbered(home: Path, tmp_path: Path) -> None:
    table = pa.table({"a": [number % 9 for number in range(60)], "label": [number % 2 for number in range(60)]})
    pq.write_table(table, tmp_path / "without.parquet")
    numbered = drafted(tmp_path, tmp_path / "without.parquet", "label")
    assert (numbered.data.row_id, numbered.features.key) == ("row_id", "row_id")
    with_key = table.append_column("Customer ID", pa.array([f"c{number}" for number in range(60)]))
    pq.write_table(with_key, tmp_path / "with.parquet")
    keyed = drafted(tmp_path, tmp_path / "with.parquet", "label")
    assert (keyed.data.row_id, keyed.features.key) == (None, "Customer_ID")
    with_reserved_key = table.append_column("y", pa.array([f"c{number}" for number in range(60)]))
    pq.write_table(with_reserved_key, tmp_path / "odd.parquet")
    assert drafted(tmp_path, tmp_path / "odd.parquet", "label", key="y").features.key == "key_y"
    with pytest.raises(DataUnfit, match="column a cannot be the key"):
        drafted(tmp_path, tmp_path / "with.parquet", "label", key="a")


def test_given_splits_are_kept(home: Path, tmp_path: Path) -> None:
    for part, num in (("train", 80), ("test", 40)):
        lines = "".join(f"{number % 9},{number % 2}\n" for number in range(num))
        (tmp_path / f"{part}.csv").write_text(f"a,label\n{lines}")
    sources = [f"{part}={tmp_path / part}.csv" for part in ("train", "test")]
    draft = write_drafts("mine", sources, ColumnRoles("label"), UserOptions(), output=tmp_path)
    recipe = read_recipe(str(draft.recipe))
    assert (recipe.features.split.by, recipe.features.split.column) == ("given", "part")
    assert "{source: train.csv, part: train}" in draft.recipe.read_text()
    assert checked(recipe).num_rows == 120
    with pytest.raises(RecipeInvalid, match="the sources are"):
        write_drafts("mine", [sources[0]], ColumnRoles("label"), UserOptions(), output=tmp_path, force=True)


def test_test_labels_missing_from_train_are_reported(home: Path, tmp_path: Path) -> None:
    for part, end in (("train", ""), ("test", ".")):
        lines = "".join(f"{number % 9},c{number % 2}{end}\n" for number in range(80))
        (tmp_path / f"{part}.csv").write_text(f"a,label\n{lines}")
    with pytest.raises(DataUnfit, match=r"test has none of the labels of train, but c0\., c1\."):
        write_drafts(
            "mine", [f"{part}={tmp_path / part}.csv" for part in ("train", "test")], ColumnRoles("label"), UserOptions()
        )


def test_idx_files_become_images_with_the_labels_beside_them(home: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 5, 7), np.uint8)
    images = struct.pack(">HBB3I", 0, 8, 3, *pixels.shape) + pixels.tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    labels = struct.pack(">HBBI", 0, 8, 1, 60) + bytes(number % 2 for number in range(60))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    recipe = drafted(tmp_path, tmp_path / "train-images-idx3-ubyte", "label")
    (image,) = recipe.features.inputs
    assert (image.kind, getattr(image, "shape", None), recipe.model.kind) == ("image", (1, 5, 7), "cnn")
    assert checked(recipe).num_rows == 60


def test_folders_of_pictures_and_recordings_become_a_cnn(home: Path, tmp_path: Path) -> None:
    from PIL import Image
    from scipy.io import wavfile

    random_bits = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w") as sounds:
        for number in range(40):
            folder = tmp_path / "pictures" / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            size = (90, 60) if number % 3 else (60, 90)
            Image.new("RGB", size, tuple(random_bits.integers(0, 256, 3).tolist())).save(folder / f"{number}.png")
            wavfile.write(tmp_path / "one.wav", 8000, random_bits.integers(-99, 99, 900 + number, np.int16))
            sounds.write(tmp_path / "one.wav", f"all/{number % 2}_{number}.wav")
    (tmp_path / "one.wav").unlink()
    pictures = drafted(tmp_path, tmp_path / "pictures", "label")
    assert (pictures.data.mode, pictures.data.size) == ("RGB", (43, 64))
    assert checked(pictures).num_rows == 40
    sounds_read = drafted(tmp_path, tmp_path / "sounds.zip", "digit", UserOptions(path_pattern=r"(?P<digit>\d)_"))
    assert (options_of(sounds_read), sounds_read.features.key) == ({"wave": "audio"}, "path")
    assert checked(sounds_read).num_rows == 40


@pytest.mark.parametrize(("name", "label"), [("iris", "label"), ("wine", "label"), ("digits", "label")])
def test_data_sets_of_scikit_learn_are_drafted(name: str, label: str, home: Path, tmp_path: Path) -> None:
    recipe = drafted(tmp_path, f"sklearn:{name}", label)
    assert recipe.features.key == "id"
    assert checked(recipe).num_quarantined == 0


FIGURES = {
    "fractions": [n / 7 for n in range(99)],
    "few fractions": [(n % 3) / 2 for n in range(99)],
    "whole numbers": [n // 2 for n in range(99)],
}


@pytest.mark.parametrize("case", FIGURES)
def test_a_numeric_label_becomes_a_regression(case: str, home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{n % 7},{n % 5},{figure}\n" for n, figure in enumerate(FIGURES[case]))
    (tmp_path / "rows.csv").write_text(f"a,b,label\n{lines}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.features.task, recipe.model.kind) == ("regression", "mlp")
    assert recipe.budget.model_fields_set == {"error_rise", "objective"}
    assert recipe.gates.model_fields_set == {"champion_rise"}
    assert f"RMSE of {np.std(FIGURES[case]):.3g}" in (tmp_path / "mine.yaml").read_text()
    assert checked(recipe).num_quarantined == 0


def test_many_whole_numbers_with_enough_rows_each_stay_classes(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,label\n" + "".join(f"{n % 7},{n % 40}\n" for n in range(800)))
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    assert recipe.features.task == "classification"


def test_text_alone_becomes_a_transformer_that_reads_the_longest(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"text number {n} says much more,short no {n},{n % 2}\n" for n in range(99))
    (tmp_path / "rows.csv").write_text(f"long,short,label\n{lines}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    (source,) = recipe.features.inputs
    assert (source.kind, source.columns, recipe.model.kind) == ("text", ("long",), "transformer")
    assert recipe.compression.candidates is not None
    assert [candidate.quantize for candidate in recipe.compression.candidates] == [None, "dynamic", None, "dynamic"]
    assert "- {name: pruned, prune: 0.5}" in (tmp_path / "mine.yaml").read_text()
    assert checked(recipe).num_rows == 99


def test_numbers_with_one_value_in_most_rows_are_read_twice(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{(n % 5) * 700 if n % 3 == 0 else 0},{n},{n % 2}\n" for n in range(1500))
    (tmp_path / "rows.csv").write_text(f"gain,size,label\n{lines}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    assert [source.kind for source in recipe.features.inputs if "gain" in source.columns] == ["number", "category"]
    assert checked(recipe).num_rows == 1500


def test_rows_that_are_mostly_copies_stay(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{number % 3},{number % 2}\n" for number in range(200))
    (tmp_path / "rows.csv").write_text(f"a,label\n{lines}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.features.deduplicate, recipe.features.split.duplicates) == (False, "allow")


HALVES = "".join(f"{number % 7},{number % 5},{number % 2}\n" for number in range(100))
BROKEN = {
    "empty": ("", "label", DataMissing, "it is empty"),
    "header only": ("a,b,label\n", "label", DataUnfit, "there are no rows"),
    "no such label": (f"a,b,label\n{HALVES}", "lable", DataMissing, "did you mean 'label'"),
    "one column": ("label\n" + "x\ny\n" * 50, "label", DataUnfit, "no column is left to learn from"),
    "few rows": ("a,label\n" + "1,0\n2,1\n" * 5, "label", DataUnfit, "10 of 10 rows can be learned from"),
    "one figure": (
        "a,label\n" + "".join(f"{n % 7},1.5\n" for n in range(99)),
        "label",
        DataUnfit,
        "all its numbers are equal",
    ),
    "one class": ("a,label\n" + "".join(f"{n % 7},x\n" for n in range(99)), "label", DataUnfit, "1 distinct values"),
    "mostly no label": ("a,label\n" + "1,x\n2,y\n3,\n4,\n5,\n6,\n" * 30, "label", DataUnfit, "60 of 180 rows"),
    "codes alone": ("t,label\n" + "".join(f"x{n},{n % 2}\n" for n in range(99)), "label", DataUnfit, "single input"),
    "no text": ("a,\0\n", "label", DataMissing, "it is no text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_data_is_refused_and_nothing_is_written(case: str, home: Path, tmp_path: Path) -> None:
    content, label, error, message = BROKEN[case]
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        drafted(tmp_path / "out", tmp_path / "rows.csv", label)
    assert not (tmp_path / "out").exists()
    assert [*home.glob("tmp*")] == []


@pytest.mark.parametrize(
    ("header", "columns"),
    [("a,a,label", ("a", "a_2", "label")), (",b,label", ("column_1", "b", "label"))],
)
def test_a_header_with_duplicate_or_missing_names_is_skipped(
    header: str, columns: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\n{HALVES}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.data.columns, recipe.data.skip_lines) == (columns, 1)
    assert checked(recipe).num_rows == 100


def test_rows_too_wide_to_be_compared_stay(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomery.tasks.scaffolding.draft_planning._MAX_COMPARED_COLUMNS", 50)
    names = ",".join(f"c{number}" for number in range(60))
    chance = random.Random(0)
    lines = "".join(",".join(str(chance.randint(0, 9)) for _ in range(60)) + f",{n % 2}\n" for n in range(60))
    (tmp_path / "rows.csv").write_text(f"{names},label\n{lines}")
    recipe = drafted(tmp_path, tmp_path / "rows.csv", "label")
    assert (len(options_of(recipe)), recipe.features.deduplicate) == (60, False)


def test_existing_files_are_not_replaced_without_force(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("edited")
    with pytest.raises(StateUnwritable, match=r"mine\.yaml exists already"):
        write_drafts("mine", ["sklearn:iris"], ColumnRoles("label"), UserOptions(), output=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["mine.yaml"]
    write_drafts("mine", ["sklearn:iris"], ColumnRoles("label"), UserOptions(), output=tmp_path, force=True)
    assert read_recipe(str(tmp_path / "mine.yaml")).name == "mine"
    with pytest.raises(RecipeInvalid, match="not a valid model name"):
        write_drafts("../mine", ["sklearn:iris"], ColumnRoles("label"), UserOptions(), output=tmp_path)


REAL = {
    "pendigits": ("pendigits/pendigits.tra", "column_17", 7494, 0),
    "taxi": ("nyc_taxi/yellow_tripdata_sample_2019-07.csv", "payment_type", 9941, 59),
    "hospital": ("hospital_dirty/hospital.csv", "Condition", 959, 41),
    "beijing": ("beijing_pm25/pollution.csv", "cbwd", 43824, 0),
    "mnist": ("mnist/t10k-images-idx3-ubyte.gz", "label", 10000, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_data_keeps_its_draft(name: str, datasets: Path, home: Path, tmp_path: Path) -> None:
    source, label, num_rows, num_quarantined = REAL[name]
    rows = checked(drafted(tmp_path, datasets / source, label))
    assert (rows.num_rows, rows.num_quarantined) == (num_rows, num_quarantined)


Bloomery = Callable[..., Any]


@pytest.mark.slow
def test_a_csv_file_becomes_a_released_model_without_edits(tmp_path: Path, forked_bloomery: Bloomery) -> None:
    write_shop(tmp_path / "shop.csv")
    draft = forked_bloomery(
        *(tmp_path / "home", "init", "shop", "--data", str(tmp_path / "shop.csv"), "--label", "bought"),
        *("--output", str(tmp_path), "--json"),
    )
    assert draft.returncode == 0, draft.stdout + draft.stderr
    assert json.loads(draft.stdout)["num_malformed"] == 1
    completed = forked_bloomery(tmp_path / "home", "run", str(tmp_path / "shop.yaml"), "--json")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    release = json.loads(completed.stdout)
    assert release["bento"]["choice"]["candidate"]["score"]["value"] > 0.85
    assert release["bento"]["choice"]["candidates"]["trained"]["dataset"]["valid_rows"]["num_quarantined"] == 1


@pytest.mark.slow
@pytest.mark.nightly  # as the file above
def test_adult_becomes_a_released_model_without_edits(
    tmp_path: Path, datasets: Path, forked_bloomery: Bloomery
) -> None:
    source = str(datasets / "adult" / "adult-train.csv")
    arguments = ("init", "adult", "--data", source, "--label", "income", "--columns", ADULT, "--output", str(tmp_path))
    draft = forked_bloomery(tmp_path / "home", *arguments, "--json")
    assert draft.returncode == 0, draft.stdout + draft.stderr
    completed = forked_bloomery(tmp_path / "home", "run", str(tmp_path / "adult.yaml"), "--json")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    release = json.loads(completed.stdout)
    assert release["bento"]["choice"]["candidate"]["score"]["low"] > 0.85  # the most frequent class has 0.759


def test_the_command_ends_with_the_exit_code_of_the_error(tmp_path: Path, forked_bloomery: Bloomery) -> None:
    completed = forked_bloomery(tmp_path / "home", "init", "mine", "--data", "nowhere.csv", "--label", "x", "--json")
    assert (completed.returncode, json.loads(completed.stdout)["error"]) == (2, "DataMissing")
    assert issubclass(DataMissing, BloomeryError)
