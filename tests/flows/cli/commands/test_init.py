"""`bloomery init`: a draft of any data is valid, the data passes it, and unusable data is refused."""

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import BloomeryError, DataMissing, DataUnfit, RecipeInvalid, StateUnwritable
from bloomery.flows.cli.commands.init import write_drafts
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.examples import examples
from tests.flows.cli.commands.drafts import HALVES, draft_recipe, rename_columns, validate_rows, write_shop

ADULT = (
    "age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,capital-gain,"
    "capital-loss,hours-per-week,native-country,income"
)


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
            recipe = draft_recipe(Path(folder), path, "the label")
        except (DataUnfit, DataMissing):  # nothing to learn from, or no CSV after all: said, and nothing written
            assert [file.name for file in Path(folder).iterdir()] == ["rows.csv"]
            return
        valid_rows = validate_rows(recipe)
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
            recipe = draft_recipe(Path(folder), path, "label")
        except DataUnfit:
            return
        assert validate_rows(recipe).num_rows == 60


BROKEN = {
    "empty": ("", "label", DataMissing, "it is empty"),
    "header only": ("a,b,label\n", "label", DataUnfit, "there are no rows"),
    "no such label": (f"a,b,label\n{HALVES}", "lable", DataMissing, "did you mean 'label'"),
    "one column": ("label\n" + "x\ny\n" * 50, "label", DataUnfit, "no column is left to learn from"),
    "few rows": ("a,label\n" + "1,0\n2,1\n" * 5, "label", DataUnfit, "10 of 10 rows can be learned from"),
    "no value of the label": (
        "a,label\n" + "".join(f"{n % 7},\n" for n in range(99)),
        "label",
        DataUnfit,
        "it has no val",
    ),
    "one figure": (
        "a,label\n" + "".join(f"{n % 7},1.5\n" for n in range(99)),
        "label",
        DataUnfit,
        "all its numbers are equal",
    ),
    "one class": (
        "a,label\n" + "".join(f"{n % 7},x\n" for n in range(99)),
        "label",
        DataUnfit,
        "all its values are 'x'",
    ),
    "mostly no label": ("a,label\n" + "1,x\n2,y\n3,\n4,\n5,\n6,\n" * 30, "label", DataUnfit, "60 of 180 rows"),
    "codes alone": ("t,label\n" + "".join(f"x{n},{n % 2}\n" for n in range(99)), "label", DataUnfit, "has few words"),
    "no text": ("a,\0\n", "label", DataMissing, "it is no text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_data_is_refused_and_nothing_is_written(case: str, home: Path, tmp_path: Path) -> None:
    content, label, error, message = BROKEN[case]
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        draft_recipe(tmp_path / "out", tmp_path / "rows.csv", label)
    assert not (tmp_path / "out").exists()
    assert [*home.glob("tmp*")] == []


def test_existing_files_are_not_replaced_without_force(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("edited")
    with pytest.raises(StateUnwritable, match=r"mine\.yaml exists already"):
        write_drafts("mine", ["sklearn:iris"], ColumnRoles("label"), UserOptions(), output=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["mine.yaml"]
    write_drafts("mine", ["sklearn:iris"], ColumnRoles("label"), UserOptions(), output=tmp_path, force=True)
    assert read_recipe(str(tmp_path / "mine.yaml")).name == "mine"
    for name, remedy in (("../mine", "such as mine"), ("My_first model 2", "such as my-first-model-2"), ("42", "name")):
        with pytest.raises(RecipeInvalid, match="not a valid model name") as refusal:
            write_drafts(name, ["sklearn:iris"], ColumnRoles("label"), UserOptions(), output=tmp_path)
        assert refusal.value.remedy.endswith(remedy)


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
    rows = validate_rows(draft_recipe(tmp_path, datasets / source, label))
    assert (rows.num_rows, rows.num_quarantined) == (num_rows, num_quarantined)


Bloomery = Callable[..., Any]


@pytest.mark.slow
def test_a_csv_file_becomes_a_released_model_without_edits(tmp_path: Path, forked_bloomery: Bloomery) -> None:
    """Names are those of stages' own columns, differ in case alone, and have points, spaces and Cyrillic letters."""
    write_shop(tmp_path / "shop.csv")
    rename_columns(tmp_path / "shop.csv", {"ok": "Day", "zip": "_part", "bought": "y"}, key="x")
    draft = forked_bloomery(
        *(tmp_path / "home", "init", "shop", "--data", str(tmp_path / "shop.csv"), "--label", "y"),
        *("--output", str(tmp_path), "--json"),
    )
    assert draft.returncode == 0, draft.stdout + draft.stderr
    assert json.loads(draft.stdout)["num_malformed"] == 1
    assert {"name": "key", "value": "x: it numbers the rows"} in json.loads(draft.stdout)["inferred"]
    completed = forked_bloomery(tmp_path / "home", "run", str(tmp_path / "shop.yaml"), "--json")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    release = json.loads(completed.stdout)
    assert release["bento"]["choice"]["candidate"]["score"]["value"] > 0.85
    dataset = release["bento"]["choice"]["candidates"]["trained"]["dataset"]
    assert dataset["valid_rows"]["num_quarantined"] == 1
    names = {"hours per week", "a.b", "1st", "класс", "when", "day", "Day", "_part"}
    assert ({*dataset["inputs"]}, dataset["key"], dataset["label"]) == (names, "x", "y")
    (request,) = tmp_path.glob("home/bentoml/bentos/shop/*/src/artifacts/examples.json")
    assert json.loads(request.read_text())[0]["row"].keys() == names  # `promote` has served these rows


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
