"""Windows and forecasts of time series agree with a plain Python loop, for any gaps, groups and ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.tasks.infrastructure.sql_text import column_alias
from bloomery.tasks.prepare.duckdb_engine import DUCKDB_FUNCTIONS
from bloomery.tasks.prepare.split_sql import split_query
from tests.examples import examples
from tests.tasks.prepare.features import SPLIT_NAMES, make_series_features

START = datetime(2024, 1, 1, tzinfo=UTC)
# For each type of time: a function that turns a whole number into a time, and the `spacing` of a step of one.
TIMES: dict[str, tuple[Callable[[int], Any], float]] = {
    "integer": (lambda number: number, 1),
    "timestamp": (lambda number: START + timedelta(seconds=number / 2), 0.5),
    "date": (lambda number: START.date() + timedelta(days=number), 1),
}
ROWS = st.lists(
    st.tuples(
        st.integers(0, 14),
        st.sampled_from("ab"),
        st.sampled_from(SPLIT_NAMES),
        st.integers(-5, 5),
        st.sampled_from([-0.0, 1.5]),
    ),
    min_size=1,
    max_size=40,
)


def make_contract(time: str = "timestamp") -> Contract:
    kinds = {"key": "integer", "seen": time, "place": "string", "given": "string", "heat": "integer", "wind": "number"}
    properties = [{"name": name, "logicalType": kind, "required": True} for name, kind in kinds.items()]
    properties[0]["primaryKey"] = True
    label = {"name": "label", "logicalType": "string", "required": True}
    return Contract.model_validate(
        {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": "weather",
            "name": "weather",
            "version": "1.0.0",
            "status": "draft",
            "schema": [{"name": "weather", "properties": [*properties, label]}],
        }
    )


def expected_windows(
    rows: list[dict[str, Any]], length: int, step: int | None, *, in_groups: bool
) -> dict[int, list[Any]]:
    """Computes by a loop, for the key of each row with a complete window, the values of heat and wind in it."""
    windows = {}
    for row in rows:
        past = [
            other
            for other in rows
            if other["given"] == row["given"]
            and (not in_groups or other["place"] == row["place"])
            and (other["seen"], other["key"]) <= (row["seen"], row["key"])
        ]
        past = sorted(past, key=lambda other: (other["seen"], other["key"]))[-length:]
        gaps = [late["number"] - early["number"] for early, late in itertools.pairwise(past)]
        if len(past) == length and (step is None or set(gaps) == {step}):
            windows[row["key"]] = [[other[name] for other in past] for name in ("heat", "wind")]
    return windows


def query_function(engine: duckdb.DuckDBPyConnection) -> Callable[[str], Any]:
    return lambda query: engine.sql(query).fetchall()


@settings(deadline=None, max_examples=examples(60))
@given(
    cells=ROWS,
    kind=st.sampled_from(sorted(TIMES)),
    length=st.integers(2, 4),
    step=st.sampled_from([None, 1, 2]),
    in_groups=st.booleans(),
    order=st.randoms(),
)
def test_windows_agree_with_a_python_loop(cells, kind, length, step, in_groups, order):
    time_of, unit = TIMES[kind]
    names = ("number", "place", "given", "heat", "wind")
    rows = [
        {"key": key, **dict(zip(names, cell_row, strict=True))}
        for key, cell_row in enumerate([*cells, (0, "z", "val", 0, 0.0)])
    ]
    rows = [{**row, "seen": time_of(row["number"]), "label": "x"} for row in rows]
    spacing = None if step is None else step * unit
    features = make_series_features(
        {"by": "given", "column": "given"}, length=length, spacing=spacing, group="place" if in_groups else None
    )
    with duckdb.connect(config={"threads": 2}) as engine:
        table = pa.Table.from_pylist(order.sample(rows, len(rows)))
        engine.register("arrow", table.rename_columns(list(map(column_alias, table.column_names))))
        engine.execute("create table checked as select * from arrow")
        query = split_query(features, make_contract(kind), "checked", query_function(engine), DUCKDB_FUNCTIONS)
        result = engine.sql(f"select data_key, data_heat, data_wind, _part from ({query})").fetchall()
    expected = expected_windows(rows, length, step, in_groups=in_groups)
    assert {key: [heat, wind] for key, heat, wind, _ in result} == expected
    assert all(split_name == rows[key]["given"] for key, _, _, split_name in result)
    assert len(result) == len(expected)


def expected_labels(rows: list[dict[str, Any]], step: int | None, horizon: int, *, in_groups: bool) -> dict[int, Any]:
    """Computes by a loop, for the key of each row that has one, the value of dust `horizon` rows later."""
    labels = {}
    for row in rows:
        later = [
            other
            for other in rows
            if other["given"] == row["given"]
            and (not in_groups or other["place"] == row["place"])
            and (other["seen"], other["key"]) > (row["seen"], row["key"])
        ]
        later = sorted(later, key=lambda other: (other["seen"], other["key"]))[:horizon]
        if len(later) < horizon or later[-1]["dust"] is None:
            continue
        if step is None or later[-1]["number"] - row["number"] == horizon * step:
            labels[row["key"]] = later[-1]["dust"]
    return labels


@settings(deadline=None, max_examples=examples(60))
@given(
    cells=ROWS,
    dust=st.lists(st.none() | st.integers(-3, 3), min_size=41, max_size=41),
    kind=st.sampled_from(sorted(TIMES)),
    step=st.sampled_from([None, 1, 2]),
    horizon=st.integers(1, 3),
    in_groups=st.booleans(),
    order=st.randoms(),
)
def test_forecasts_agree_with_a_python_loop(cells, dust, kind, step, horizon, in_groups, order):
    time_of, unit = TIMES[kind]
    names = ("number", "place", "given", "heat", "wind")
    cells = [*cells, (0, "z", "val", 0, 0.0)]
    rows = [
        {"key": key, **dict(zip(names, cell_row, strict=True)), "dust": dust[key], "label": "x"}
        for key, cell_row in enumerate(cells)
    ]
    rows = [{**row, "seen": time_of(row["number"])} for row in rows]
    features = make_series_features(
        {"by": "given", "column": "given"},
        label="dust",
        task="regression",
        columns=["heat", "dust"],
        length=2,
        horizon=horizon,
        missing="previous",
        spacing=None if step is None else step * unit,
        group="place" if in_groups else None,
    )
    with duckdb.connect(config={"threads": 2}) as engine:
        table = pa.Table.from_pylist(order.sample(rows, len(rows)), schema=make_schema(rows, kind))
        engine.register("arrow", table.rename_columns(list(map(column_alias, table.column_names))))
        engine.execute("create table checked as select * from arrow")
        query = split_query(features, make_contract(kind), "checked", query_function(engine), DUCKDB_FUNCTIONS)
        columns = ", ".join(map(column_alias, ("key", "heat", "dust", features.label_column)))
        result = engine.sql(f"select {columns} from ({query})").fetchall()
    pasts = expected_windows([{**row, "wind": row["dust"]} for row in rows], 2, step, in_groups=in_groups)
    labels = expected_labels(rows, step, horizon, in_groups=in_groups)
    assert {key: ([heat, dust], label) for key, heat, dust, label in result} == {
        key: (pasts[key], labels[key]) for key in pasts.keys() & labels.keys()
    }


def make_schema(rows: list[dict[str, Any]], time: str) -> pa.Schema:
    """Returns the types of the columns, since Arrow cannot infer the type of a column of nulls."""
    times = {"integer": pa.int64(), "timestamp": pa.timestamp("us", "UTC"), "date": pa.date32()}
    kinds = {
        "place": pa.string(),
        "given": pa.string(),
        "label": pa.string(),
        "wind": pa.float64(),
        "seen": times[time],
    }
    return pa.schema([(name, kinds.get(name, pa.int64())) for name in rows[0]])
