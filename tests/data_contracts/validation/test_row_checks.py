"""Rules about single rows: Arrow batches have the violations that requests with one row have."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from bloomery.data_contracts.validation.row_checks import (
    CastBatch,
    cast_batch,
    describe_values,
    find_violations,
    parse_conditions,
    require_valid_text,
    row_rules,
)
from tests.examples import examples

LIMITS = st.integers(-3, 3) | st.sampled_from([-0.5, 0.5, 2.5, -200, 300, 70_000, -1e9, 1e300])
WHOLE = st.integers(-4, 4) | st.sampled_from(
    [2**power + step for power in (7, 8, 15, 16, 24, 31, 32, 53, 62) for step in (-1, 0, 1)] + [-(2**63), -(2**31) - 1]
)
REAL = st.sampled_from([-0.0, 0.0, 0.1, 2.5, 1e39, 3.5e38, math.nan, math.inf, -math.inf]) | st.floats(-4, 4)
TEXT = st.text(alphabet="ab\n \u00e9\U0001f600", max_size=4)
DAYS = st.sampled_from([dt.date(2024, 2, day) for day in (1, 2, 29)] + [dt.date(1, 1, 1), dt.date(9999, 12, 31)])
ZONES = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30)), dt.timezone(dt.timedelta(hours=-8))])
TIMES = st.datetimes(dt.datetime(2023, 1, 1), dt.datetime(2025, 1, 1), timezones=ZONES)

Properties = dict[str, Any]


@st.composite
def limits(draw: st.DrawFn) -> Properties:
    low, high = sorted([draw(LIMITS), draw(LIMITS)])
    keys = {"minimum": low, "exclusiveMinimum": low, "maximum": high, "exclusiveMaximum": high}
    return {key: keys[key] for key in draw(st.sets(st.sampled_from(sorted(keys)), max_size=2))}


def valid(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Properties]]:
    """At most one check of valid values: an error, with or without a tolerance, or a warning."""
    degrees = st.sampled_from([{"mustBe": 0}, {"mustBeLessThan": 9, "unit": "percent"}])
    check = st.builds(
        lambda valid_values, degree, severity: {
            "metric": "invalidValues",
            "arguments": {"validValues": valid_values},
            "severity": severity,
            **degree,
        },
        st.lists(values, min_size=1, max_size=5, unique=True),
        degrees,
        st.sampled_from(["error", "warning"]),
    )
    return st.lists(check, max_size=1)


LENGTHS = st.fixed_dictionaries(
    {},
    optional={
        "minLength": st.integers(0, 1),
        "maxLength": st.integers(2, 4),
        "pattern": st.sampled_from(["a", "^b", "a$"]),
    },
)
ITEMS = st.fixed_dictionaries({}, optional={"minItems": st.integers(0, 1), "maxItems": st.integers(1, 3)})
WIDTHS = st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
FLOATS = st.sampled_from(["float32", "float64"])
FINITE = REAL.filter(math.isfinite)


def column(logical: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Properties]:
    return st.fixed_dictionaries({"logicalType": st.just(logical), **keys})


# For each kind: the column, the Arrow types of raw rows, and values.
KINDS: dict[str, tuple[st.SearchStrategy[Properties], list[pa.DataType], st.SearchStrategy[Any]]] = {
    "integer": (
        column("integer", physicalType=WIDTHS, logicalTypeOptions=limits(), quality=valid(st.integers(-3, 3))),
        [pa.int64()],
        WHOLE,
    ),
    "integer as float": (
        column("integer", physicalType=WIDTHS, logicalTypeOptions=limits(), quality=valid(st.integers(-3, 3))),
        [pa.float64()],
        REAL | WHOLE.map(float),
    ),
    "number": (
        column("number", physicalType=FLOATS, logicalTypeOptions=limits(), quality=valid(FINITE)),
        [pa.float64(), pa.float32()],
        REAL,
    ),
    "number as integer": (
        column("number", physicalType=FLOATS, logicalTypeOptions=limits()),
        [pa.int64()],
        WHOLE,
    ),
    "string": (
        column("string", logicalTypeOptions=LENGTHS, quality=valid(TEXT)),
        [pa.string(), pa.large_string()],
        TEXT,
    ),
    "boolean": (column("boolean", quality=valid(st.booleans())), [pa.bool_()], st.booleans()),
    "date": (column("date", quality=valid(DAYS.map(str))), [pa.date32(), pa.date64()], DAYS),
    "timestamp": (column("timestamp"), [pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Kolkata")], TIMES),
    "array of integers": (
        column(
            "array", logicalTypeOptions=ITEMS, items=column("integer", physicalType=WIDTHS, logicalTypeOptions=limits())
        ),
        [pa.list_(pa.int64()), pa.large_list(pa.int64())],
        st.lists(WHOLE | st.none(), max_size=3),
    ),
    "array of numbers": (
        column(
            "array", logicalTypeOptions=ITEMS, items=column("number", physicalType=FLOATS, logicalTypeOptions=limits())
        ),
        [pa.list_(pa.float64()), pa.list_(pa.float32()), pa.list_(pa.int64())],
        st.lists(st.integers(-4, 4).map(float) | st.sampled_from([0.0, -0.0, 2.0**24, 2.0**40]), max_size=3),
    ),
    "array of text": (
        column("array", items=column("string", logicalTypeOptions=LENGTHS)),
        [pa.list_(pa.string())],
        st.lists(TEXT | st.none(), max_size=3),
    ),
    "array of times": (column("array", items=column("date")), [pa.list_(pa.date32())], st.lists(DAYS, max_size=3)),
}


def as_json(value: Any, logical: str) -> Any:
    """A value of a column as a client would send it."""
    if isinstance(value, list):
        return [as_json(item, logical) for item in value]
    if isinstance(value, dt.date):
        return value.isoformat()
    if logical == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def is_accepted(parser: JsonRowParser, row: dict[str, Any]) -> bool:
    try:
        parser.parse_table([row])
    except RowsRefused:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@settings(
    deadline=None,
    max_examples=examples(40),
    phases=set(Phase) - {Phase.shrink},
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_row_is_valid_only_if_a_request_with_it_is_accepted(contract_of, quarantined_rows, kind, data):
    properties, types, values = KINDS[kind]
    properties_of_v = {"name": "v", "required": data.draw(st.booleans()), **data.draw(properties)}
    try:
        contract = contract_of(properties_of_v, {"name": "w", "logicalType": "integer", "required": True})
    except ValidationError:
        reject()  # no value satisfies the rules
    values_of_v = data.draw(st.lists(values | st.none(), min_size=4, max_size=14))
    raw_values = pa.array(values_of_v, data.draw(st.sampled_from(types)), from_pandas=False)
    table = pa.table({"v": raw_values, "w": pa.array(range(len(raw_values)))})
    logical = properties_of_v.get("items", properties_of_v)["logicalType"]
    parser = JsonRowParser(contract, ["v", "w"])
    rows = [{"v": as_json(value, logical), "w": row} for row, value in enumerate(raw_values.to_pylist())]
    accepted = [row for row, request_row in enumerate(rows) if is_accepted(parser, request_row)]
    quarantined = quarantined_rows(table, contract)
    assert accepted == [row for row in range(len(rows)) if row not in quarantined], (properties_of_v, raw_values)
    padded = pa.concat_tables([table.slice(0, 1), table, table.slice(0, 1)]).combine_chunks().slice(1, len(raw_values))
    assert quarantined_rows(padded, contract) == quarantined
    if accepted:
        (batch,) = table.take(pa.array(accepted)).combine_chunks().to_batches()
        assert (
            parser.parse_table([rows[row] for row in accepted]).to_batches()[0]
            == cast_batch(batch, arrow_schema(contract.columns)).rows
        )


def batch_of(table: pa.Table, contract: Contract) -> CastBatch:
    (rows,) = table.combine_chunks().to_batches()
    return cast_batch(rows, arrow_schema(contract.columns))


def shown_violations(table: pa.Table, contract: Contract) -> dict[str, list[str]]:
    """The values that break each rule, as reports show them."""
    batch, rules = batch_of(table, contract), row_rules(contract)
    conditions = parse_conditions(rules, arrow_schema(contract.columns))
    masks = {rule: find_violations(rule, batch, conditions).to_numpy(zero_copy_only=False) for rule in rules}
    return {
        f"{rule.target}: {rule.kind}": describe_values(rule, batch, np.flatnonzero(mask)).to_pylist()
        for rule, mask in masks.items()
        if mask.any()
    }


def test_the_raw_value_that_breaks_a_rule_is_shown(contract_of):
    contract = contract_of(
        {"name": "n", "logicalType": "integer", "physicalType": "uint8", "required": True},
        {"name": "t", "logicalType": "timestamp"},
        {"name": "s", "logicalType": "string", "logicalTypeOptions": {"maxLength": 1}},
        {
            "name": "l",
            "logicalType": "array",
            "logicalTypeOptions": {"maxItems": 2},
            "items": {"logicalType": "number", "physicalType": "float32", "logicalTypeOptions": {"maximum": 9}},
        },
        quality=[
            {
                "type": "custom",
                "engine": "bloomery",
                "implementation": {"rule": "expression", "expression": "n < 300 AND s <> 'x'"},
            }
        ],
    )
    table = pa.table(
        {
            "n": pa.array([1.5, None, 2.0, 3.0]),
            "t": pa.array([2**62, 0, 0, 0], pa.timestamp("us")),
            "s": ["\u00e9" * 100, "x", "", "ab"],
            "l": pa.array([[1.0, 99.5, 100.5], [None, 1.0], None, [float("nan")]]),
        }
    )
    assert shown_violations(table, contract) == {
        ": expression": ["n null, s x"],
        "n: required": ["null"],
        "n: fits": ["1.5"],
        "t: fits": [f"<value out of range: {2**62}>"],
        "s: length": ["\u00e9" * 77 + "...", "ab"],
        "l: num_items": ["3 items"],
        "l[]: between": ["99.5"],
        "l[]: required": ["null"],
        "l[]: fits": ["nan"],
    }


def test_a_value_that_does_not_fit_its_type_breaks_only_that_rule(contract_of):
    limits_of = {"logicalTypeOptions": {"minimum": 1, "maximum": 9}}
    contract = contract_of(
        {"name": "n", "logicalType": "integer", "physicalType": "uint8", **limits_of},
        {
            "name": "l",
            "logicalType": "array",
            "items": {"logicalType": "integer", "physicalType": "uint8", **limits_of},
        },
    )
    violations = shown_violations(pa.table({"n": [256.5, 300.0], "l": [[256.0], [1.5]]}), contract)
    assert violations == {"n: fits": ["256.5", "300"], "l[]: fits": ["256", "1.5"]}


def test_text_that_is_not_utf8_is_refused_with_its_column(contract_of):
    offsets = pa.py_buffer(np.array([0, 1, 3], np.int32))
    damaged = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff\xfe")])
    (batch,) = pa.table({"s": damaged}).to_batches()
    with pytest.raises(DataUnfit, match="column s is damaged") as caught:
        require_valid_text(batch, 100)
    assert "rows 100 to 101" in caught.value.where


def test_an_array_that_breaks_an_expression_is_shown_completely(contract_of):
    own = {"rule": "expression", "expression": "l IS NULL OR n > 1"}
    contract = contract_of(
        {"name": "l", "logicalType": "array", "items": {"logicalType": "date"}},
        {"name": "n", "logicalType": "integer"},
        quality=[{"type": "custom", "engine": "bloomery", "implementation": own}],
    )
    days = pa.array([[0, None], [2**31 - 1], [], None], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    violations = shown_violations(pa.table({"l": days, "n": [1, 1, 1, 1]}), contract)[": expression"]
    assert violations == ["l [1970-01-01, null], n 1", f"l [<value out of range: {2**31 - 1}>], n 1", "l [], n 1"]


def test_arrays_of_fixed_length_are_checked_like_others(contract_of, quarantined_rows):
    items = {"logicalType": "integer", "physicalType": "uint8", "logicalTypeOptions": {"minimum": 1, "maximum": 9}}
    contract = contract_of({"name": "v", "logicalType": "array", "required": True, "items": items})
    rows = [[1, 9], [0, 1], [9, 10], [None, 1], None, [2, 2]]
    padded = pa.array([[5, 5], *rows], pa.list_(pa.int64(), 2)).slice(1)
    assert quarantined_rows(pa.table({"v": padded}), contract) == {1, 2, 3, 4}
