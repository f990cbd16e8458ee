"""A request is accepted exactly if training keeps the row: the endpoint and training agree on every rule."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from tests.data_contracts.requests.json_requests import PAIR, expression, is_accepted
from tests.examples import examples

SMALL = st.integers(-4, 4)

WIDTHS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")

# Around every limit: those of the options, and those of the types.
WHOLE = SMALL | st.sampled_from([edge + step for edge in (0, -(2**7), 2**7, 2**8, 2**15, 2**32) for step in (-1, 0, 1)])

REAL = st.sampled_from([-4.0, -1.0, -0.5, -0.0, 0.0, 1e-300, 0.5, 1.0, math.nextafter(1, 2), 2.5, 4.0]) | st.floats(
    -5, 5
)

TEXT = st.text(alphabet="abé😀 1", max_size=4)


@st.composite
def limits(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Any of the four limits, with room between the lower and the upper ones."""
    low, high = sorted(draw(st.lists(values, min_size=2, max_size=2, unique=True)))
    lower, upper = st.sampled_from([low, low - 1]), st.sampled_from([high, high + 1])
    optional = {"minimum": lower, "exclusiveMinimum": lower, "maximum": upper, "exclusiveMaximum": upper}
    return draw(st.fixed_dictionaries({}, optional=optional))


def checks(values: st.SearchStrategy[Any], *more: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """Some quality checks of a column with such values: errors and warnings, with and without a tolerance."""
    sets = st.lists(values, min_size=1, max_size=6, unique=True)
    kinds = (
        sets.map(lambda valid: {"metric": "invalidValues", "arguments": {"validValues": valid}}),
        sets.map(lambda missing: {"metric": "missingValues", "arguments": {"missingValues": missing}}),
        sets.map(lambda missing: {"metric": "missingValues", "arguments": {"missingValues": [None, *missing]}}),
        st.just({"metric": "nullValues"}),
        *more,
    )
    degrees = st.sampled_from([{"mustBe": 0}, {"mustBe": 0, "severity": "warning"}]) | st.just(
        {"mustBeLessOrEqualTo": 5, "unit": "percent"}
    )
    check = st.tuples(st.one_of(kinds), degrees).map(lambda parts: {**parts[0], **parts[1]})
    return st.lists(check, max_size=2)


def own(rule: str, keys: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A check that the standard does not have."""
    return keys.filter(bool).map(
        lambda options: {"type": "custom", "engine": "bloomery", "implementation": {"rule": rule, **options}}
    )


LENGTHS = st.fixed_dictionaries({}, optional={"minLength": st.integers(0, 2), "maxLength": st.integers(2, 4)})

PATTERNS = st.sampled_from(["a", "^a", "b$", "^[ab]*$", r"\d", "é|1", r"\s"])


def column(logical: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"name": st.just("v"), "logicalType": st.just(logical), "required": st.booleans(), **keys}
    )


def array(logical: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return column(
        "array",
        logicalTypeOptions=st.fixed_dictionaries(
            {}, optional={"minItems": st.integers(0, 2), "maxItems": st.integers(2, 3)}
        ),
        items=st.fixed_dictionaries({"logicalType": st.just(logical), **keys}),
    )


# For each kind of column: its contract, the Arrow type of raw rows, and values around the limits.
COLUMNS: dict[str, tuple[st.SearchStrategy[dict[str, Any]], pa.DataType, st.SearchStrategy[Any]]] = {
    "integer": (
        column(
            "integer",
            physicalType=st.sampled_from(WIDTHS),
            logicalTypeOptions=limits(SMALL),
            quality=checks(
                SMALL, own("between", limits(SMALL)), own("expression", st.just({"expression": "v % 2 = 0"}))
            ),
        ),
        pa.int64(),
        WHOLE,
    ),
    "number": (
        column(
            "number",
            physicalType=st.sampled_from(["float64", "float32"]),
            logicalTypeOptions=limits(SMALL | st.sampled_from([-0.5, 0.5, 2.5])),
            quality=checks(SMALL, own("between", limits(SMALL | st.sampled_from([-0.5, 2.5])))),
        ),
        pa.float64(),
        REAL,
    ),
    "string": (
        column(
            "string",
            logicalTypeOptions=st.fixed_dictionaries(
                {},
                optional={
                    "minLength": st.integers(0, 2),
                    "maxLength": st.integers(2, 4),
                    "pattern": PATTERNS,
                },
            ),
            quality=checks(
                TEXT,
                own("length", LENGTHS),
                PATTERNS.map(lambda pattern: {"metric": "invalidValues", "arguments": {"pattern": pattern}}),
            ),
        ),
        pa.string(),
        TEXT,
    ),
    "boolean": (column("boolean", quality=checks(st.booleans())), pa.bool_(), st.booleans()),
    "array of integers": (
        array("integer", physicalType=st.sampled_from(WIDTHS), logicalTypeOptions=limits(SMALL)),
        pa.list_(pa.int64()),
        st.lists(SMALL | WHOLE | st.none(), max_size=4),
    ),
    "array of numbers": (
        array("number", logicalTypeOptions=limits(SMALL)),
        pa.list_(pa.float64()),
        st.lists(REAL | st.none(), max_size=4),
    ),
    "array of booleans": (array("boolean"), pa.list_(pa.bool_()), st.lists(st.booleans() | st.none(), max_size=4)),
}


@pytest.mark.parametrize("kind", COLUMNS)
@settings(
    deadline=None,
    max_examples=examples(60),
    phases=set(Phase) - {Phase.shrink},  # the cells of a failure are readable without shrinking, which takes long
    suppress_health_check=[HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_a_request_is_refused_only_if_training_quarantines_the_row(contract_of, quarantined_rows, kind, data):
    columns, raw, values = COLUMNS[kind]
    try:
        contract = contract_of(data.draw(columns))
    except ValidationError:
        reject()  # no rule, or rules that no value satisfies
    cells = data.draw(st.lists(values | st.none(), min_size=15, max_size=25))
    parser = JsonRowParser(contract, ["v"])
    accepted = {row for row, cell in enumerate(cells) if is_accepted(parser, {"v": cell})}
    table = pa.table({"v": pa.array(cells, raw)})
    quarantined = quarantined_rows(table, contract)
    assert [cells[row] for row in accepted & quarantined] == []
    assert [cell for row, cell in enumerate(cells) if row not in accepted | quarantined] == []
    if accepted:
        # An accepted row is the row that training reads.
        rows = sorted(accepted)
        assert parser.parse_table([{"v": cells[row]} for row in rows]) == table.take(rows).cast(parser.schema)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_range_of_an_integer_type_agrees_in_training_and_requests(contract_of, quarantined_rows, width):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": width, "required": True})
    bits, is_signed = int(width.lstrip("uint")), width[0] == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    parser = JsonRowParser(contract, ["v"])
    around = [low - 1, low, high, high + 1]
    assert [is_accepted(parser, {"v": value}) for value in around] == [False, True, True, False]
    in_int64 = [value for value in around if -(2**63) <= value < 2**63]
    table = pa.table({"v": pa.array(in_int64, pa.int64())})
    assert {in_int64[row] for row in quarantined_rows(table, contract)} == set(in_int64) - {low, high}


@pytest.mark.parametrize(
    ("keys", "raw", "cells"),
    [
        ({"logicalType": "number", "logicalTypeOptions": {"minimum": 0}}, pa.float64(), [1.0, math.nan, None]),
        ({"logicalType": "number", "required": True}, pa.float64(), [1.0, math.inf, -math.inf]),
        (
            {
                "logicalType": "integer",
                "quality": [
                    {"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [1, 2]}},
                    {"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [2, 3]}},
                ],
            },
            pa.int64(),
            [1, 2, 3],
        ),
        ({"logicalType": "string", "logicalTypeOptions": {"pattern": "^a$"}}, pa.string(), ["a", "a\n", "b"]),
        ({"logicalType": "string", "logicalTypeOptions": {"pattern": "^(?!x)."}}, pa.string(), ["a", "x"]),
        ({"logicalType": "integer", "logicalTypeOptions": {"minimum": 0.5}}, pa.int64(), [0, 1]),
        (
            {"logicalType": "array", "items": {"logicalType": "number"}},
            pa.list_(pa.float64()),
            [[1.0], [math.nan], [1.0, math.inf]],
        ),
        (
            {"logicalType": "array", "items": {"logicalType": "string", "logicalTypeOptions": {"pattern": "^a"}}},
            pa.list_(pa.string()),
            [["a"], ["b"]],
        ),
    ],
    ids=[
        "nan",
        "infinity",
        "two sets of valid values",
        "a pattern and a line's end",
        "a pattern that looks ahead",
        "a limit with a fraction",
        "an array that is not finite",
        "an array of text",
    ],
)
def test_training_and_endpoint_agree_on_rare_cases(contract_of, quarantined_rows, keys, raw, cells):
    contract = contract_of({"name": "v", **keys})
    parser = JsonRowParser(contract, ["v"])
    quarantined = quarantined_rows(pa.table({"v": pa.array(cells, raw)}), contract)
    assert {row for row, cell in enumerate(cells) if not is_accepted(parser, {"v": cell})} == quarantined


@pytest.mark.parametrize("value", [5.0, -0.0, 255.0])
def test_a_float_without_a_fraction_is_an_integer_as_in_training(contract_of, quarantined_rows, value):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": "uint8", "required": True})
    (result,) = JsonRowParser(contract, ["v"]).parse_table([{"v": value}])["v"].to_pylist()
    assert (result, type(result)) == (int(value), int)
    assert not quarantined_rows(pa.table({"v": [value]}), contract)


@settings(deadline=None, max_examples=examples(60))
@given(
    text=st.sampled_from(["a <= b", "a < b OR c = 'x'", "c IS NOT NULL AND a + 1 > b", "length(c) = a", "a / b > 1"]),
    rows=st.lists(
        st.fixed_dictionaries({"a": st.none() | SMALL, "b": st.none() | REAL, "c": st.none() | TEXT}), min_size=1
    ),
)
def test_a_condition_on_several_columns_agrees_in_training_and_requests(contract_of, quarantined_rows, text, rows):
    contract = contract_of(*PAIR, quality=[expression(text)])
    schema = pa.schema([("a", pa.int64()), ("b", pa.float64()), ("c", pa.string())])
    quarantined = quarantined_rows(pa.Table.from_pylist(rows, schema=schema), contract)
    try:
        JsonRowParser(contract, ["a", "b", "c"]).parse_table(rows)
        refused = set()
    except RowsRefused as refusal:
        refused = {problem["row"] for problem in refusal.problems}
    assert refused == quarantined
