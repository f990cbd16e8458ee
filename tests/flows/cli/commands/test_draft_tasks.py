"""The tasks and splits that `bloomery init` drafts: each draft is read, and its rows are split as a run splits them."""

from __future__ import annotations

import csv
import datetime as dt
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloomery.data_contracts.errors import DataMissing, DataUnfit, RecipeInvalid
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.prepare.duckdb_engine import DUCKDB_FUNCTIONS
from bloomery.tasks.prepare.split_sql import names_by_alias, require_no_leakage, split_query
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.task_inference import TaskRequest, parse_request
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import input_kinds, validate_rows

FIRST_DAY = dt.date(2022, 1, 3)
CHANCE = random.Random(0)
Row = dict[str, Any]


def draft(folder: Path, rows: list[Row], label: str, **roles: Any) -> tuple[Recipe, dict[str, str]]:
    """Drafts a recipe for the rows. Returns it, and what `init` prints, the lines of one name together."""
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = write_drafts("mine", [str(path)], ColumnRoles(label, **roles), UserOptions(), output=folder, force=True)
    lines: defaultdict[str, str] = defaultdict(str)
    for name, value in list_inferences(result):
        lines[name] += f"{value}\n"
    return read_recipe(str(result.recipe)), dict(lines)


def split_rows(recipe: Recipe) -> list[Row]:
    """Returns the rows in their splits, as the stage `prepare` splits them."""
    valid_rows = validate_rows(recipe)
    with duckdb_session.open_session() as engine:
        duckdb_session.create_row_view(engine, "checked", settings().path(valid_rows.uri))

        def run_query(query: str) -> list[tuple[Any, ...]]:
            return engine.sql(query).fetchall()

        query = split_query(recipe.features, valid_rows.contract, "checked", run_query, DUCKDB_FUNCTIONS)
        engine.execute(f"create table split_rows as {query}")
        require_no_leakage(recipe.features, "split_rows", run_query)
        rows = engine.sql("select * from split_rows").to_arrow_table()
    names = names_by_alias(recipe.features)
    return rows.rename_columns([names.get(alias, alias) for alias in rows.column_names]).to_pylist()


def write_sales(num_days: int = 90, **columns: Callable[[int, int, int], Any]) -> list[Row]:
    """Rows of 3 stores with 2 items each; the sales say store, item and day."""
    return [
        {
            "date": (FIRST_DAY + dt.timedelta(days=day)).strftime("%d/%m/%Y"),
            "store": store,
            "item": item,
            "sales": 100_000 * store + 1_000 * item + day,
            **{name: value(store, item, day) for name, value in columns.items()},
        }
        for store in (1, 2, 3)
        for item in (7, 8)
        for day in range(num_days)
    ]


def test_sales_by_store_and_item_become_a_forecast(home: Path, tmp_path: Path) -> None:
    recipe, lines = draft(tmp_path, write_sales(), "sales")
    (series,) = recipe.features.inputs
    assert recipe.features.task == "regression"
    assert recipe.features.split.model_dump(include={"by", "column"}) == {"by": "time", "column": "date"}
    assert (series.kind, series.time, set(series.groups)) == ("series", "date", {"store", "item"})
    assert (series.columns, series.length, series.spacing, series.horizon) == (("sales",), 9, 1, 1)
    assert recipe.model.relative
    assert lines["task"].startswith("forecasting: beside sales are only its time and names of series")
    assert "6 series by item and store in order of date; the last 9 rows predict sales 1 row later" in lines["series"]
    last = defaultdict(int)
    windows = split_rows(recipe)
    for row in windows:
        *window, label = *row["sales"], row["_label"]
        assert [value - window[0] for value in window] == list(range(9))  # of one store and item, day by day
        assert label == window[-1] + 1
        last[row["_part"]] = max(last[row["_part"]], label % 1_000)
    for earlier, later in (("train", "val"), ("val", "test")):
        assert min(row["sales"][0] % 1_000 for row in windows if row["_part"] == later) > last[earlier]


def test_a_forecast_takes_columns_horizon_and_lags(home: Path, tmp_path: Path) -> None:
    rows = [row for row in write_sales(120, promo=lambda store, item, day: day % 3 % 2) if row["item"] == 7]
    request = TaskRequest("forecasting", horizon=7, lags=5)
    recipe, lines = draft(tmp_path, rows, "sales", time="date", groups=("store",), task=request)
    (series,) = recipe.features.inputs
    assert (series.columns, series.groups) == (("sales", "promo"), ("store",))
    assert (series.length, series.horizon) == (5, 7)
    assert lines["task"] == "forecasting: as requested\n"
    assert all(row["_label"] == row["sales"][-1] + 7 for row in split_rows(recipe))
    assert "Forecasts `sales` 7 rows ahead." in (tmp_path / "mine.yaml").read_text()
    regression, lines = draft(tmp_path, rows, "sales")
    assert (regression.features.series, regression.features.split.by) == (None, "time")
    assert lines["task"].startswith("regression: sales is an integer with 360 distinct values")


def test_gaps_and_missing_values_of_a_series_are_drafted(home: Path, tmp_path: Path) -> None:
    days = [FIRST_DAY + dt.timedelta(days=day) for day in range(200)]
    rows = [{"day": day, "price": day.toordinal() % 11 or None} for day in days if day.weekday() < 5]
    recipe, lines = draft(tmp_path, rows, "price")
    (series,) = recipe.features.inputs
    assert (series.spacing, series.missing, series.groups) == (None, "previous", ())
    assert "the rows are not equally far apart, so lags and horizon count rows" in lines["series"]
    assert validate_rows(recipe).num_quarantined == 0
    assert split_rows(recipe)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such time": ({"time": "dates"}, DataMissing, "did you mean 'date'"),
    "a time that is text": ({"time": "name"}, DataUnfit, "column name cannot order the rows"),
    "one group of two": ({"groups": ("store",)}, DataUnfit, "--group store,item"),
    "too far ahead": ({"task": TaskRequest("forecasting", horizon=40)}, DataUnfit, "a horizon of 40 needs more"),
    "too many lags": ({"task": TaskRequest("forecasting", lags=99)}, DataUnfit, "99 lags"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_forecast_that_is_not_possible_says_why(case: str, home: Path, tmp_path: Path) -> None:
    roles, error, message = WRONG[case]
    rows = write_sales(name=lambda store, item, day: f"{store}x{item}")
    with pytest.raises(error) as failure:
        draft(tmp_path, rows, "sales", **{"task": TaskRequest("forecasting"), **roles})
    assert message in str(failure.value)


def make_visits(num_patients: int, num_visits: int) -> list[Row]:
    return [
        {
            "patient_id": f"P{patient:03}",
            "visit_date": FIRST_DAY + dt.timedelta(days=30 * visit + patient % 30),
            "birth_date": dt.date(1950, 1, 1) + dt.timedelta(days=97 * patient),
            "dose": CHANCE.gauss(0, 1),
            "ill": ("yes", "no")[(patient + visit) % 2],
        }
        for patient in range(num_patients)
        for visit in range(num_visits)
    ]


def test_rows_of_one_patient_stay_in_one_split(home: Path, tmp_path: Path) -> None:
    recipe, lines = draft(tmp_path, make_visits(30, 5), "ill")
    assert recipe.features.split.model_dump(include={"by", "column"}) == {"by": "group", "column": "patient_id"}
    assert "patient_id" not in input_kinds(recipe)
    assert "30 values of patient_id are in 150 rows, and rows of one value stay in one split" in lines["split"]
    assert "--time visit_date splits by time instead" in lines["split"]
    assert "rows of one value stay in one split" in (tmp_path / "mine.yaml").read_text()
    splits = defaultdict(set)
    for row in split_rows(recipe):
        splits[row["patient_id"]].add(row["_part"])
    assert (len(splits), {len(parts) for parts in splits.values()}) == (30, {1})


def test_numbers_of_patients_with_gaps_keep_their_rows_together(home: Path, tmp_path: Path) -> None:
    rows = [{**row, "patient_id": f"{int(row['patient_id'][1:])}.0"} for row in make_visits(40, 10)]
    rows[7]["patient_id"] = ""
    recipe, _ = draft(tmp_path, rows, "ill")
    assert (recipe.features.split.by, recipe.features.split.column) == ("group", "patient_id")
    splits = defaultdict(set)
    for row in split_rows(recipe):
        splits[row["patient_id"]].add(row["_part"])
    assert (len(splits), {len(parts) for parts in splits.values()}) == (40, {1})
    for row in rows[:40]:
        row["patient_id"] = ""
    _, lines = draft(tmp_path, rows, "ill")
    assert "40 rows have none, which --group patient_id would quarantine" in lines["split"]


def test_many_patients_fill_every_split_or_do_not_split(home: Path, tmp_path: Path) -> None:
    rows = [{"patient_id": f"P{number}", "dose": number % 7, "ill": "yn"[number % 2]} for number in range(2_500)]
    rows += [{"patient_id": "P1", "dose": 1.5, "ill": "y"}] * 20
    recipe, _ = draft(tmp_path, rows, "ill")
    assert recipe.features.split.column == "patient_id"
    rows += [{"patient_id": "P1", "dose": number / 8, "ill": "yn"[number % 2]} for number in range(20_000)]
    recipe, lines = draft(tmp_path, rows, "ill")
    assert recipe.features.split.by == "key"
    assert "rows of one patient_id are in several splits: its 2,500 values are too few, or too unlike" in lines["split"]


GIVEN_SPLITS = {  # the names of train, val and test, and how many rows of 300 are tested
    "of its name": ("train", "val", "test", 60),
    "in other words": ("Training", "dev", "testing", 60),
    "without tests": ("train", "valid", "valid", 120),
}


@pytest.mark.parametrize("case", GIVEN_SPLITS)
@pytest.mark.parametrize("requested", [None, "given", "split"])
def test_a_column_that_names_splits_splits(case: str, requested: str | None, home: Path, tmp_path: Path) -> None:
    train, val, test, num_tested = GIVEN_SPLITS[case]
    rows = [
        {**row, "split": (train, train, train, val, test)[number % 5]}
        for number, row in enumerate(make_orders(ordered=True))
    ]
    request = parse_request(None, None, None, requested)
    recipe, lines = draft(tmp_path, rows, "kept", task=request)
    assert recipe.features.split.model_dump(include={"by", "column"}) == {"by": "given", "column": "split"}
    assert "column split names the split of each row" in lines["split"]
    assert "split" not in input_kinds(recipe)
    parts = [row["_part"] for row in split_rows(recipe)]
    assert parts.count("test") == num_tested
    assert parts.count("val") > 0


def test_another_split_than_that_of_the_column_may_be_requested(home: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": ("train", "test")[number % 2]} for number, row in enumerate(make_orders(ordered=True))]
    recipe, _ = draft(tmp_path, rows, "kept", task=TaskRequest(split="key"))
    assert recipe.features.split.by == "key"
    assert "split" not in input_kinds(recipe)
    with pytest.raises(DataUnfit, match="column order_date holds 2022-01-03"):
        draft(tmp_path, rows, "kept", task=parse_request(None, None, None, "order_date"))
    with pytest.raises(RecipeInvalid, match=r"there is no column 'random'(.|\n)*key, group, time, given or a column"):
        draft(tmp_path, rows, "kept", task=parse_request(None, None, None, "random"))


@pytest.mark.parametrize("num_patients", [5, 6, 9])
def test_few_patients_get_a_hash_that_fills_every_split(num_patients: int, home: Path, tmp_path: Path) -> None:
    recipe, _ = draft(tmp_path, make_visits(num_patients, 20), "ill")
    assert recipe.features.split.by == "group"
    assert {row["_part"] for row in split_rows(recipe)} == {"train", "val", "test"}


def test_too_few_patients_are_said(home: Path, tmp_path: Path) -> None:
    rows = [{**row, "visit_date": ""} for row in make_visits(3, 40)]
    recipe, lines = draft(tmp_path, rows, "ill")
    assert recipe.features.split.by == "key"
    assert "rows of one patient_id are in several splits: its 3 values are too few" in lines["split"]


def test_ratings_of_users_are_no_series(home: Path, tmp_path: Path) -> None:
    rows = [
        {"timestamp": 880_000_000 + CHANCE.randrange(10**7), "user": number % 90, "rating": CHANCE.randint(1, 5)}
        for number in range(900)
    ]
    assert draft(tmp_path, rows, "rating")[1]["task"].startswith("classification: rating is an integer with 5")
    plain = [{name: row[name] for name in ("timestamp", "rating")} for row in rows]
    assert draft(tmp_path, plain, "rating")[1]["task"].startswith("classification: rating is an integer with 5")


def make_years(name: str, first: int, *, by_country: bool) -> list[Row]:
    rows = [
        {name: first + year, "country": country, "wealth": round(year + CHANCE.gauss(0, 1), 3)}
        | {"rain": CHANCE.gauss(0, 1)}
        for country in ("AT", "BE", "CH", "DE")
        for year in range(50)
    ]
    return rows if by_country else random.Random(1).sample(rows, len(rows))


YEARS: dict[str, tuple[list[Row], str]] = {
    "years of countries": (make_years("year", 1970, by_country=True), "time"),
    "years of things": (make_years("year", 1970, by_country=False), "key"),
    "seconds since 1970": (make_years("timestamp", 1_600_000_000, by_country=False), "time"),
    "other numbers": (make_years("time", 1970, by_country=True), "key"),
}


@pytest.mark.parametrize("case", YEARS)
def test_whole_numbers_that_are_times_split_the_rows(case: str, home: Path, tmp_path: Path) -> None:
    rows, by = YEARS[case]
    recipe, _ = draft(tmp_path, rows, "wealth")
    assert (recipe.features.task, recipe.features.split.by) == ("regression", by)
    assert recipe.features.split.column == (next(iter(rows[0])) if by == "time" else None)


def make_orders(*, ordered: bool, name: str = "order_date") -> list[Row]:
    rows = [
        {name: FIRST_DAY + dt.timedelta(days=number // 2), "born": dt.date(1950 + number % 40, 1, 2)}
        | {"amount": CHANCE.gauss(0, 1), "kept": ("yes", "no")[number % 7 % 2]}
        for number in range(300)
    ]
    return rows if ordered else random.Random(1).sample(rows, len(rows))


SPLITS: dict[str, tuple[list[Row], dict[str, Any], tuple[str, str | None], str]] = {
    "in order": (make_orders(ordered=True), {}, ("time", "order_date"), "the rows are in order of order_date"),
    "newest first": (make_orders(ordered=True)[::-1], {}, ("time", "order_date"), "--split key mixes them"),
    "an attribute in order": (make_orders(ordered=True, name="hired"), {}, ("time", "hired"), "in order of hired"),
    "out of order": (make_orders(ordered=False), {}, ("time", "order_date"), "says when a row was recorded"),
    "an attribute out of order": (make_orders(ordered=False, name="hired"), {}, ("key", None), "--time hired"),
    "as requested": (make_orders(ordered=False, name="hired"), {"time": "hired"}, ("time", "hired"), "as requested"),
    "by key": (make_orders(ordered=True), {"task": TaskRequest(split="key")}, ("key", None), "as requested"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_rows_are_split_by_time_where_they_have_one(case: str, home: Path, tmp_path: Path) -> None:
    rows, roles, expected, reason = SPLITS[case]
    recipe, lines = draft(tmp_path, rows, "kept", **roles)
    assert (recipe.features.split.by, recipe.features.split.column) == expected
    assert reason in lines["split"]
    if expected[0] == "time":
        moments = defaultdict(list)
        for row in split_rows(recipe):
            moments[row["_part"]].append(row[expected[1]])
        assert max(moments["train"]) < min(moments["val"])
        assert max(moments["val"]) < min(moments["test"])


@pytest.mark.parametrize(("kind", "option"), [("key", "time"), ("group", "time"), ("time", "group"), ("key", "group")])
def test_options_of_two_splits_are_refused(kind: Any, option: str, home: Path, tmp_path: Path) -> None:
    column: dict[str, Any] = {"time": "order_date"} if option == "time" else {"groups": ("order_date",)}
    with pytest.raises(DataUnfit, match=rf"by {kind} and by order_date at once(.|\n)*omit --split or --{option}"):
        draft(tmp_path, make_orders(ordered=True), "kept", task=TaskRequest(split=kind), **column)


def test_a_time_that_separates_the_classes_does_not_split(home: Path, tmp_path: Path) -> None:
    rows = [{**row, "kept": "no" if number < 250 else "yes"} for number, row in enumerate(make_orders(ordered=True))]
    recipe, lines = draft(tmp_path, rows, "kept")
    assert recipe.features.split.by == "key"
    assert "not by order_date: train would have no row of the class yes" in lines["split"]


def test_rows_without_the_time_of_their_split_are_quarantined(home: Path, tmp_path: Path) -> None:
    rows = make_orders(ordered=True)
    rows[7]["order_date"] = ""
    recipe, _ = draft(tmp_path, rows, "kept")
    assert recipe.features.split.column == "order_date"
    assert validate_rows(recipe).num_quarantined == 1
    assert "1 rows without order_date" in " ".join((tmp_path / "mine.odcs.yaml").read_text().replace("#", "").split())


def test_lists_of_labels_are_no_classes(home: Path, tmp_path: Path) -> None:
    rows = [{"a": number % 7, "tags": ";".join(CHANCE.sample("abcdefghij", 1 + number % 5))} for number in range(200)]
    assert draft(tmp_path, rows, "tags")[0].features.task == "multilabel"
    with pytest.raises(DataUnfit, match="if ';' separates the labels of a row, --task multilabel"):
        draft(tmp_path, rows, "tags", task=TaskRequest("classification"))
