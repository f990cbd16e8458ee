"""What `bloomery init` infers from data: inputs, key, split, task, network and reader options."""

import csv
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataUnfit, RecipeInvalid
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import HALVES, draft_recipe, input_kinds, validate_rows, write_shop


def test_every_type_becomes_an_input_that_fits_it(home: Path, tmp_path: Path) -> None:
    write_shop(tmp_path / "shop.csv")
    recipe = draft_recipe(tmp_path, tmp_path / "shop.csv", "bought")
    assert input_kinds(recipe) == {
        "hours per week": "number",
        "a.b": "number",
        "1st": "one_hot",
        "класс": "one_hot",
        "when": "date",
        "day": "date",
        "ok": "boolean",
        "zip": "target",
    }
    assert recipe.data.missing == {"hours per week": ("?",)}
    assert recipe.data.drop == ("empty",)
    assert recipe.data.rename is None
    assert recipe.contract.status == "draft"
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (900, 1)
    text = (tmp_path / "mine.yaml").read_text()
    assert "source: shop.csv" in text  # relative, so that both files can be moved
    assert "email: its name suggests personal data" in text
    assert "personal, value: drop" in (tmp_path / "mine.odcs.yaml").read_text()


def test_rows_without_a_label_and_of_rare_classes_are_quarantined(home: Path, tmp_path: Path) -> None:
    labels = ["yes", "no", "yes", "no", ""] * 20 + ["odd"] * 3
    lines = "".join(f"{number % 7},{label}\n" for number, label in enumerate(labels))
    (tmp_path / "rows.csv").write_text(f"a,label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    draft = write_drafts("other", [str(tmp_path / "rows.csv")], ColumnRoles("label"), UserOptions(), output=tmp_path)
    label_line = dict(list_inferences(draft))["label"]
    assert "; quarantined: 3 rows of rare classes (odd) and 20 rows without a label" in label_line
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (80, 23)
    assert 23 / 103 < recipe.contract.quarantine_limit < 23 / 103 + 0.03
    text = " ".join((tmp_path / "mine.odcs.yaml").read_text().replace("#", "").split())
    assert "20 rows without a label, 3 rows of classes that are too rare" in text


def test_a_key_column_is_detected_or_else_rows_are_numbered(home: Path, tmp_path: Path) -> None:
    table = pa.table({"a": [number % 9 for number in range(60)], "label": [number % 2 for number in range(60)]})
    pq.write_table(table, tmp_path / "without.parquet")
    numbered = draft_recipe(tmp_path, tmp_path / "without.parquet", "label")
    assert (numbered.data.row_id, numbered.features.key) == ("row_id", "row_id")
    with_key = table.append_column("Customer ID", pa.array([f"c{number}" for number in range(60)]))
    pq.write_table(with_key, tmp_path / "with.parquet")
    keyed = draft_recipe(tmp_path, tmp_path / "with.parquet", "label")
    assert (keyed.data.row_id, keyed.features.key) == (None, "Customer ID")
    with_reserved_key = table.append_column("y", pa.array([f"c{number}" for number in range(60)]))
    pq.write_table(with_reserved_key, tmp_path / "odd.parquet")
    assert draft_recipe(tmp_path, tmp_path / "odd.parquet", "label", key="y").features.key == "y"
    with pytest.raises(DataUnfit, match="column a cannot be the key"):
        draft_recipe(tmp_path, tmp_path / "with.parquet", "label", key="a")


def write_given_splits(folder: Path, num_values: dict[str, int]) -> list[str]:
    """Writes 80 training and 40 test rows with columns of so many distinct values, and returns what `--data` takes."""
    for part, num in (("train", 80), ("test", 40)):
        lines = (",".join(str(number % distinct) for distinct in num_values.values()) for number in range(num))
        (folder / f"{part}.csv").write_text("\n".join([",".join(num_values), *lines, ""]))
    return [f"{part}={folder / part}.csv" for part in ("train", "test")]


def test_given_splits_are_kept(home: Path, tmp_path: Path) -> None:
    sources = write_given_splits(tmp_path, {"a": 9, "label": 2})
    draft = write_drafts("mine", sources, ColumnRoles("label"), UserOptions(), output=tmp_path)
    recipe = read_recipe(str(draft.recipe))
    assert (recipe.features.split.by, recipe.features.split.column) == ("given", "part")
    assert "{source: train.csv, part: train}" in draft.recipe.read_text()
    assert validate_rows(recipe).num_rows == 120
    with pytest.raises(RecipeInvalid, match="the sources are"):
        write_drafts("mine", [sources[0]], ColumnRoles("label"), UserOptions(), output=tmp_path, force=True)


def test_a_given_split_beside_a_column_of_its_name_is_kept(home: Path, tmp_path: Path) -> None:
    sources = write_given_splits(tmp_path, {"part": 9, "part_3": 4, "label": 2})
    draft = write_drafts("mine", sources, ColumnRoles("label"), UserOptions(), output=tmp_path)
    recipe = read_recipe(str(draft.recipe))
    assert recipe.features.split.column == "part_2"
    assert input_kinds(recipe).keys() == {"part", "part_3"}
    assert validate_rows(recipe).num_rows == 120


def test_only_an_empty_name_is_replaced(home: Path, tmp_path: Path) -> None:
    numbers = [number % 9 for number in range(60)]
    columns = {"": numbers, "a, b": numbers[::-1], " ": [2.5 * n for n in numbers], "label": [n % 2 for n in range(60)]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.parquet", "label")
    assert recipe.data.rename == {"": "column_1"}
    assert input_kinds(recipe).keys() == {"column_1", "a, b", " "}
    assert validate_rows(recipe).num_rows == 60


CASES = Path(__file__).parents[5] / "shared" / "cases"


def test_columns_that_differ_in_case_are_told_apart(home: Path, tmp_path: Path) -> None:
    """The label `A` varies more than the column `a`, and is not a sum of it."""
    chance = random.Random(0)
    rows = [(chance.gauss(0, 2), chance.gauss(0, 9), chance.gauss(0, 1)) for _ in range(400)]
    (tmp_path / "rows.csv").write_text("a,A,b\n" + "".join(f"{a:.4f},{b:.4f},{c:.4f}\n" for a, b, c in rows))
    for label, deviation in (("a", np.std([row[0] for row in rows])), ("A", np.std([row[1] for row in rows]))):
        draft = write_drafts(
            "mine", [str(tmp_path / "rows.csv")], ColumnRoles(label), UserOptions(), output=tmp_path, force=True
        )
        assert draft.plan.label.standard_deviation == pytest.approx(deviation, rel=0.001)
        recipe = read_recipe(str(draft.recipe))
        assert (recipe.data.rename, recipe.features.label) == (None, label)
        assert input_kinds(recipe).keys() == {"a", "A", "b"} - {label}
        limits = {column.name: column.logical_type_options.maximum or 0 for column in recipe.contract.columns}
        assert limits["A"] > 2 * limits["a"]
        assert validate_rows(recipe).num_rows == 400


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not in this checkout")
@pytest.mark.parametrize(
    ("files", "label", "inputs"),
    [
        (("cc_train", "cc_test"), "Class", None),
        (("casenames",), "A", {"a", "b"}),
        (("lab_y",), "y", None),
        (("dots",), "bought", None),
    ],
)
def test_cases_keep_the_names_of_their_columns(
    files: tuple[str, ...], label: str, inputs: set[str] | None, home: Path, tmp_path: Path
) -> None:
    parts = [""] if len(files) == 1 else ["train=", "test="]
    sources = [f"{part}{CASES / file}.csv" for part, file in zip(parts, files, strict=True)]
    draft = write_drafts("mine", sources, ColumnRoles(label), UserOptions(), output=tmp_path)
    recipe = read_recipe(str(draft.recipe))
    with (CASES / f"{files[0]}.csv").open(newline="", encoding="utf-8") as file:
        names = next(csv.reader(file))
    assert recipe.data.rename is None
    assert {*names} <= {column.name for column in recipe.contract.columns}
    assert recipe.features.label == label
    assert inputs is None or input_kinds(recipe).keys() == inputs
    assert validate_rows(recipe).num_rows > 0


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
    recipe = draft_recipe(tmp_path, tmp_path / "train-images-idx3-ubyte", "label")
    (image,) = recipe.features.inputs
    assert (image.kind, getattr(image, "shape", None), recipe.model.kind) == ("image", (1, 5, 7), "cnn")
    assert validate_rows(recipe).num_rows == 60


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
    pictures = draft_recipe(tmp_path, tmp_path / "pictures", "label")
    assert (pictures.data.mode, pictures.data.size) == ("RGB", (43, 64))
    assert validate_rows(pictures).num_rows == 40
    sounds_read = draft_recipe(tmp_path, tmp_path / "sounds.zip", "digit", UserOptions(path_pattern=r"(?P<digit>\d)_"))
    assert (input_kinds(sounds_read), sounds_read.features.key) == ({"wave": "audio"}, "path")
    assert validate_rows(sounds_read).num_rows == 40


@pytest.mark.parametrize(("name", "label"), [("iris", "label"), ("wine", "label"), ("digits", "label")])
def test_data_sets_of_scikit_learn_are_drafted(name: str, label: str, home: Path, tmp_path: Path) -> None:
    recipe = draft_recipe(tmp_path, f"sklearn:{name}", label)
    assert recipe.features.key == "id"
    assert validate_rows(recipe).num_quarantined == 0


FIGURES = {
    "fractions": [n / 7 for n in range(99)],
    "few fractions": [(n % 3) / 2 for n in range(99)],
    "whole numbers": [n // 2 for n in range(99)],
}


@pytest.mark.parametrize("case", FIGURES)
def test_a_numeric_label_becomes_a_regression(case: str, home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{n % 7},{n % 5},{figure}\n" for n, figure in enumerate(FIGURES[case]))
    (tmp_path / "rows.csv").write_text(f"a,b,label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.features.task, recipe.model.kind) == ("regression", "tabular_ensemble")
    assert recipe.budget.model_fields_set == {"error_rise", "objective"}
    assert recipe.gates.model_fields_set == {"beats", "champion_rise"}
    assert f"RMSE of {np.std(FIGURES[case]):.3g}" in (tmp_path / "mine.yaml").read_text()
    assert validate_rows(recipe).num_quarantined == 0


def test_many_whole_numbers_with_enough_rows_each_stay_classes(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,label\n" + "".join(f"{n % 7},{n % 40}\n" for n in range(800)))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert recipe.features.task == "classification"


def test_text_alone_becomes_a_transformer_that_reads_the_longest(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"text number {n} says much more,short no {n},{n % 2}\n" for n in range(99))
    (tmp_path / "rows.csv").write_text(f"long,short,label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    (source,) = recipe.features.inputs
    assert (source.kind, source.columns, recipe.model.kind) == ("text", ("long",), "transformer")
    assert recipe.compression.candidates is not None
    assert [candidate.quantize for candidate in recipe.compression.candidates] == [None, "dynamic", None, "dynamic"]
    assert "- {name: pruned, prune: 0.5}" in (tmp_path / "mine.yaml").read_text()
    assert validate_rows(recipe).num_rows == 99


def test_numbers_with_one_value_in_most_rows_are_read_twice(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{(n % 5) * 700 if n % 3 == 0 else 0},{n},{n % 2}\n" for n in range(1500))
    (tmp_path / "rows.csv").write_text(f"gain,size,label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert [source.kind for source in recipe.features.inputs if "gain" in source.columns] == ["number", "category"]
    assert validate_rows(recipe).num_rows == 1500


def test_rows_that_are_mostly_copies_stay(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{number % 3},{number % 2}\n" for number in range(200))
    (tmp_path / "rows.csv").write_text(f"a,label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.features.deduplicate, recipe.features.split.duplicates) == (False, "allow")


@pytest.mark.parametrize(
    ("header", "columns"),
    [("a,a,label", ("a", "a_2", "label")), (",b,label", ("column_1", "b", "label"))],
)
def test_a_header_with_duplicate_or_missing_names_is_skipped(
    header: str, columns: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\n{HALVES}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.data.columns, recipe.data.skip_lines) == (columns, 1)
    assert validate_rows(recipe).num_rows == 100


def test_rows_too_wide_to_be_compared_stay(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomery.tasks.scaffolding.planning.draft_planning._MAX_COMPARED_COLUMNS", 50)
    names = ",".join(f"c{number}" for number in range(60))
    chance = random.Random(0)
    lines = "".join(",".join(str(chance.randint(0, 9)) for _ in range(60)) + f",{n % 2}\n" for n in range(60))
    (tmp_path / "rows.csv").write_text(f"{names},label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert (len(input_kinds(recipe)), recipe.features.deduplicate) == (60, False)
