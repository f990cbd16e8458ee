"""What `bloomery init` infers about columns: each draft is read, and its rows are validated."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.requests.arrow_rows import ArrowRowParser
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import draft_recipe, input_kinds, validate_rows

NUM = 240
LABELS = [("yes", "no")[number % 7 % 2] for number in range(NUM)]
MEASURES = [round(random.Random(number).gauss(0, 1), 3) for number in range(NUM)]


def write_parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"a": MEASURES, **columns, "label": columns.get("label", LABELS)}), path)
    return path


def write_csv(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "rows.csv"
    table = {"a": MEASURES, **columns, "label": columns.get("label", LABELS)}
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in zip(*table.values(), strict=True)]
    path.write_text("\n".join([",".join(table), *lines]) + "\n", encoding="utf-8")
    return path


def describe_draft(folder: Path, path: Path, label: str = "label") -> dict[str, str]:
    """Returns what init prints, the lines of one name together."""
    draft = write_drafts("mine", [str(path)], ColumnRoles(label), UserOptions(), output=folder, force=True)
    lines: dict[str, str] = {}
    for name, value in list_inferences(draft):
        lines[name] = f"{lines[name]}\n{value}" if name in lines else value
    return lines


def test_texts_that_all_differ_are_drafted_without_a_list_of_values(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"review {number} of something {number * 7},{number % 2}\n" for number in range(2_500))
    (tmp_path / "rows.csv").write_text(f"review,label\n{lines}")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert input_kinds(recipe) == {"review": "text"}
    assert "validValues: []" not in (tmp_path / "mine.odcs.yaml").read_text()
    assert validate_rows(recipe).num_rows == 2_500


def test_a_text_that_a_mixed_table_leaves_out_is_named(home: Path, tmp_path: Path) -> None:
    notes = [f"lot-{number} {number % 13}" for number in range(NUM)]
    lines = describe_draft(tmp_path, write_csv(tmp_path, note=notes))
    assert lines["not used"].startswith("note: it is text that differs in most rows")


TYPES: dict[str, tuple[Any, str, int]] = {
    "decimal": ([Decimal(number) / 7 for number in range(NUM)], "number", NUM),
    "duration": ([dt.timedelta(seconds=number % 99) for number in range(NUM)], "number", NUM),
    "time of day": ([dt.time(number % 24) for number in range(NUM)], "number", NUM),
    "nanoseconds": (
        pa.array(
            [1_600_000_000_000_000_001 + number * 10**15 for number in range(NUM)], pa.timestamp("ns", "Europe/Berlin")
        ),
        "date",
        NUM,
    ),
    "midnights": ([dt.datetime(2021, 1, 1) + dt.timedelta(days=number) for number in range(NUM)], "date", NUM),
    "NaN": ([math.nan if number % 3 else number / 7 for number in range(NUM)], "number", NUM),
    "one infinity": ([math.inf, *MEASURES[1:]], "number", NUM - 1),
    "dates as text": ([f"2021-01-{1 + number % 28:02}" for number in range(NUM)], "date", NUM),
}


@pytest.mark.parametrize("case", TYPES)
def test_a_type_is_converted(case: str, home: Path, tmp_path: Path) -> None:
    values, kind, num_rows = TYPES[case]
    recipe = draft_recipe(tmp_path, write_parquet(tmp_path, b=values), "label")
    assert input_kinds(recipe) == {"a": "number", "b": kind}
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (num_rows, NUM - num_rows)


def test_a_value_that_goes_to_quarantine_is_named(home: Path, tmp_path: Path) -> None:
    lines = describe_draft(tmp_path, write_parquet(tmp_path, b=[math.inf, *MEASURES[1:]]))
    assert lines["quarantined"] == "b: 1 value is not of type number, such as 'inf'"


LEFT_OUT: dict[str, tuple[Any, str]] = {
    "nulls": (pa.nulls(NUM), "b: it has no values"),
    "NaN alone": ([math.nan] * NUM, "b: it has no values"),
    "objects": ([{"x": 1}] * NUM, "b: its values are objects with the fields x"),
    "bytes": ([b"x"] * NUM, "b: it is of type binary"),
    "large integers": (
        pa.array([2**63 + number for number in range(NUM)], pa.uint64()),
        "b: 240 of its 240 values are not whole numbers from -2^63",
    ),
    "infinities": ([math.inf, 1.0, 2.0] * (NUM // 3), "b: 80 of its 240 values are not finite numbers"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_column_that_cannot_be_read_is_left_out_and_named(case: str, home: Path, tmp_path: Path) -> None:
    values, reason = LEFT_OUT[case]
    path = write_parquet(tmp_path, b=values)
    assert describe_draft(tmp_path, path)["left out"].startswith(reason)
    recipe = draft_recipe(tmp_path, path, "label")
    assert (recipe.data.drop, recipe.contract.column("b")) == (("b",), None)
    assert validate_rows(recipe).num_rows == NUM


def test_missing_values_are_inferred_by_column(home: Path, tmp_path: Path) -> None:
    countries = [("NA", "DE", "US")[number % 3] for number in range(NUM)]
    ages = ["NA" if number % 9 == 0 else 20 + number % 50 for number in range(NUM)]
    pains = [("none", "mild", "NA")[number % 7 % 3] for number in range(NUM)]
    recipe = draft_recipe(tmp_path, write_csv(tmp_path, country=countries, age=ages, label=pains), "label")
    assert recipe.data.missing == {"age": ("NA",)}
    label = recipe.contract.column("label")
    assert label is not None
    assert label.quality[0].arguments is not None
    assert [*label.quality[0].arguments.valid_values] == ["NA", "mild", "none"]
    assert validate_rows(recipe).num_rows == NUM
    rows = JsonRowParser(recipe.contract, ["a", "country", "age"]).parse_table([{"a": 1, "country": "NA", "age": None}])
    assert rows["country"].to_pylist() == ["NA"]


def test_a_label_or_a_column_may_consist_of_such_texts_alone(home: Path, tmp_path: Path) -> None:
    allergies = [("none", "unknown")[number % 5 % 2] for number in range(NUM)]
    labels = [("NA", "none", "?")[number % 7 % 3] for number in range(NUM)]
    recipe = draft_recipe(
        tmp_path, write_csv(tmp_path, allergies=allergies, nothing=["NA"] * NUM, label=labels), "label"
    )
    assert (recipe.data.missing, recipe.data.drop) == (None, ("nothing",))
    assert input_kinds(recipe) == {"a": "number", "allergies": "one_hot"}
    assert validate_rows(recipe).num_rows == NUM


def test_whole_decimals_are_integers(home: Path, tmp_path: Path) -> None:
    numbers = pa.array([Decimal(number) for number in range(NUM)], pa.decimal128(38, 0))
    recipe = draft_recipe(tmp_path, write_parquet(tmp_path, number=numbers), "label")
    column = recipe.contract.column("number")
    assert column is not None
    assert (column.logical_type, recipe.features.key) == ("integer", "number")
    assert validate_rows(recipe).num_rows == NUM


DATES: dict[str, tuple[Callable[[dt.datetime], str], str, str]] = {
    "day first": (lambda day: day.strftime("%d/%m/%Y"), "date", "dd/MM/yyyy"),
    "month first": (lambda day: day.strftime("%m/%d/%y"), "date", "MM/dd/yy; years of two digits mean 1969 to 2068"),
    "UTC": (lambda day: day.strftime("%Y-%m-%d 10:00:00 UTC"), "timestamp", "yyyy-MM-dd HH:mm:ss VV"),
    "nine digits": (
        lambda day: day.strftime("%Y-%m-%dT10:00:00.123456789"),
        "timestamp",
        "yyyy-MM-dd'T'HH:mm:ss.SSSSSSSSS; digits beyond microseconds are cut",
    ),
    "midnight": (
        lambda day: day.strftime("%Y-%m-%d 00:00:00"),
        "date",
        "yyyy-MM-dd HH:mm:ss; all times are at midnight, so they are dates; set timestamp if later ones are not",
    ),
    "always the first": (
        lambda day: day.replace(day=1).strftime("%d/%m/%Y"),
        "date",
        "dd/MM/yyyy; no day is above 12, so day and month cannot be told apart: the day is assumed to come first",
    ),
}


@pytest.mark.parametrize("case", DATES)
def test_dates_are_read_as_they_are_written(case: str, home: Path, tmp_path: Path) -> None:
    write, logical_type, description = DATES[case]
    days = [dt.datetime(2021, 1, 1) + dt.timedelta(days=number % 300) for number in range(NUM)]
    path = write_csv(tmp_path, when=[write(day) for day in days])
    assert describe_draft(tmp_path, path)["format"] == f"when: {description}"
    recipe = draft_recipe(tmp_path, path, "label")
    column = recipe.contract.column("when")
    assert column is not None
    assert column.logical_type == logical_type
    assert validate_rows(recipe).num_rows == NUM
    rows = JsonRowParser(recipe.contract, ["when"]).parse_table([{"when": write(days[1])}])
    assert rows["when"].to_pylist()[0].isoformat()[:7] == "2021-01"
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, pa.schema([("when", pa.string())])) as writer:
        writer.write(pa.record_batch({"when": [write(days[1])]}))
    batch = ArrowRowParser(recipe.contract, ["when"]).parse_stream(stream.getvalue().to_pybytes(), 9)
    assert batch["when"].to_pylist() == rows["when"].to_pylist()


def test_parquet_and_csv_give_the_same_draft(home: Path, tmp_path: Path) -> None:
    days = [dt.datetime(2021, 1, 1) + dt.timedelta(days=number) for number in range(NUM)]
    columns: dict[str, list[Any]] = {
        "when": days,
        "at": [day + dt.timedelta(hours=day.day) for day in days],
        "price": [Decimal(number % 37) / 4 for number in range(NUM)],
        "ok": [number % 3 == 0 for number in range(NUM)],
        "size": [None if number % 5 == 0 else number % 30 for number in range(NUM)],
        "color": [None if number % 5 == 0 else ("red", "blue")[number % 2] for number in range(NUM)],
        "label": [number % 7 % 2 == 0 for number in range(NUM)],
    }
    csv_columns = {name: [*values] for name, values in columns.items()}
    csv_columns["when"] = [day.date() for day in days]
    parquet = draft_recipe(tmp_path, write_parquet(tmp_path, **columns), "label")
    csv = draft_recipe(tmp_path, write_csv(tmp_path, **csv_columns), "label")
    assert parquet.features == csv.features
    types = [[(column.name, column.logical_type) for column in recipe.contract.columns] for recipe in (parquet, csv)]
    assert types[0] == types[1]
    assert validate_rows(parquet).num_rows == validate_rows(csv).num_rows == NUM


def test_a_boolean_label_has_two_classes(home: Path, tmp_path: Path) -> None:
    path = write_parquet(tmp_path, label=[number % 7 % 2 == 0 for number in range(NUM)])
    assert describe_draft(tmp_path, path)["label"].startswith("label: 2 classes")
    assert validate_rows(draft_recipe(tmp_path, path, "label")).num_rows == NUM


def test_numbers_that_name_things_are_categories(home: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    columns: dict[str, list[Any]] = {
        "store": [1 + chance.randrange(45) for _ in range(NUM)],
        "shop_nr": [10 * (1 + chance.randrange(6)) for _ in range(NUM)],
        "panel": [number % 12 for number in range(NUM)],
        "movie_id": [10**6 + 7 * chance.randrange(90) for _ in range(NUM)],
        "visitor_id": [10**6 + 7 * chance.randrange(90) for _ in range(NUM)],
        "session_id": [10**6 + 7 * (number % 200) for number in range(NUM)],
        "num_stores": [1 + chance.randrange(9) for _ in range(NUM)],
        "age": [20 + chance.randrange(50) for _ in range(NUM)],
        "month": [1 + number % 12 for number in range(NUM)],
    }
    path = write_csv(tmp_path, **columns)
    recipe = draft_recipe(tmp_path, path, "label")
    kinds = input_kinds(recipe)
    numbers = dict.fromkeys(("a", "num_stores", "age", "month"), "number")
    assert kinds == numbers | dict.fromkeys(("store", "shop_nr", "panel"), "one_hot") | {"movie_id": "target"}
    assert (recipe.features.split.by, recipe.features.split.column) == ("group", "visitor_id")  # so it is no input
    assert "- session_id: it is a code that differs in most rows" in (tmp_path / "mine.yaml").read_text()
    contract = (tmp_path / "mine.odcs.yaml").read_text()
    assert (
        contract.count("logicalTypeOptions") == 5
    )  # of the numbers and the added key; the size of a code has no limits


def test_a_column_that_numbers_the_rows_is_the_key(home: Path, tmp_path: Path) -> None:
    path = write_csv(tmp_path, counter=list(range(1, NUM + 1)))
    lines = describe_draft(tmp_path, path)
    assert (lines["key"], "not used" in lines) == ("counter: it numbers the rows", False)
    recipe = draft_recipe(tmp_path, path, "label")
    assert (recipe.features.key, recipe.data.row_id) == ("counter", None)
    assert validate_rows(recipe).num_rows == NUM


def test_years_do_not_number_the_rows(home: Path, tmp_path: Path) -> None:
    recipe = draft_recipe(tmp_path, write_csv(tmp_path, year=list(range(1780, 1780 + NUM))), "label")
    assert (recipe.features.key, input_kinds(recipe)) == ("row_id", {"a": "number", "year": "number"})
    assert (recipe.features.split.by, recipe.features.split.column) == ("time", "year")


@pytest.mark.parametrize("odd", ["yes\u00a0", "\u200byes", "yes \ufeff", "\u2003yes"])
def test_labels_that_look_alike_are_one_class(odd: str, home: Path, tmp_path: Path) -> None:
    labels = [odd if label == "yes" and number % 3 == 0 else label for number, label in enumerate(LABELS)]
    path = write_parquet(tmp_path, label=labels)
    assert describe_draft(tmp_path, path)["normalized"].startswith("label:")
    recipe = draft_recipe(tmp_path, path, "label")
    assert recipe.data.normalize == ("label",)
    rows = validate_rows(recipe)
    assert rows.num_rows == NUM
    assert set(pq.read_table(home / rows.uri)["label"].to_pylist()) == {"yes", "no"}


def test_leakage_is_reported_and_noted_in_the_recipe(home: Path, tmp_path: Path) -> None:
    casual, registered = ([random.Random(number * 2 + part).randrange(300) for number in range(NUM)] for part in (0, 1))
    total = [first + second for first, second in zip(casual, registered, strict=True)]
    path = write_csv(tmp_path, casual=casual, registered=registered, label=total)
    sentence = "label is the sum of casual and registered"
    assert describe_draft(tmp_path, path)["leakage"].startswith(sentence)
    assert f"Leakage: {sentence}" in (tmp_path / "mine.yaml").read_text()
