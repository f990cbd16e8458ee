"""The check of a request: the same contract as in training, row by row."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
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
    """A check that the standard has no words for."""
    return keys.filter(bool).map(
        lambda found: {"type": "custom", "engine": "bloomery", "implementation": {"rule": rule, **found}}
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


def is_accepted(check: JsonRowParser, row: dict[str, Any]) -> bool:
    try:
        check.parse_table([row])
    except RowsRefused:
        return False
    return True


def problems(check: JsonRowParser, rows: Any) -> list[dict[str, Any]]:
    with pytest.raises(RowsRefused) as caught:
        check.parse_table(rows)
    return caught.value.problems


@pytest.mark.parametrize("kind", COLUMNS)
@settings(
    deadline=None,
    max_examples=examples(60),
    phases=set(Phase) - {Phase.shrink},  # the cells say enough, and far sooner
    suppress_health_check=[HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_a_request_is_refused_exactly_where_training_sets_the_row_aside(contract_of, set_aside, kind, data):
    columns, raw, values = COLUMNS[kind]
    try:
        contract = contract_of(data.draw(columns))
    except ValidationError:
        reject()  # no rule at all, or one that no value can keep
    cells = data.draw(st.lists(values | st.none(), min_size=15, max_size=25))
    check = JsonRowParser(contract, ["v"])
    accepted = {row for row, cell in enumerate(cells) if is_accepted(check, {"v": cell})}
    table = pa.table({"v": pa.array(cells, raw)})
    gone = set_aside(table, contract)
    assert [cells[row] for row in accepted & gone] == []
    assert [cell for row, cell in enumerate(cells) if row not in accepted | gone] == []
    if accepted:
        # And an accepted row reaches the network as the row that training would have read.
        rows = sorted(accepted)
        assert check.parse_table([{"v": cells[row]} for row in rows]) == table.take(rows).cast(check.schema)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_range_of_an_integer_type_is_the_same_in_training_and_in_a_request(contract_of, set_aside, width):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": width, "required": True})
    bits, is_signed = int(width.lstrip("uint")), width[0] == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    check = JsonRowParser(contract, ["v"])
    around = [low - 1, low, high, high + 1]
    assert [is_accepted(check, {"v": value}) for value in around] == [False, True, True, False]
    in_int64 = [value for value in around if -(2**63) <= value < 2**63]
    table = pa.table({"v": pa.array(in_int64, pa.int64())})
    assert {in_int64[row] for row in set_aside(table, contract)} == set(in_int64) - {low, high}


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
def test_training_and_endpoint_agree_on_what_is_easily_forgotten(contract_of, set_aside, keys, raw, cells):
    contract = contract_of({"name": "v", **keys})
    check = JsonRowParser(contract, ["v"])
    gone = set_aside(pa.table({"v": pa.array(cells, raw)}), contract)
    assert {row for row, cell in enumerate(cells) if not is_accepted(check, {"v": cell})} == gone


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({"logicalType": "number"}, 3),
        ({"logicalType": "number"}, 2**53 + 1),
        ({"logicalType": "number"}, 10**400),
        ({"logicalType": "number", "physicalType": "float32"}, 2**24 + 1),
        ({"logicalType": "number", "physicalType": "float32"}, 1e300),
        ({"logicalType": "array", "items": {"logicalType": "number"}}, [2**53 + 1]),
        ({"logicalType": "string"}, "😀"),
        ({"logicalType": "string"}, "\ud800"),
        ({"logicalType": "date"}, "2024-02-29"),
        ({"logicalType": "date"}, "2023-02-29"),
        ({"logicalType": "timestamp"}, "2024-02-29T12:00:00Z"),
        ({"logicalType": "timestamp"}, "yesterday"),
    ],
    ids=[
        "whole for a real",
        "whole beyond 2**53",
        "whole beyond every float",
        "whole beyond 2**24 for float32",
        "real beyond float32",
        "whole beyond 2**53 in an array",
        "emoji",
        "half a surrogate pair",
        "date",
        "date that is not in the calendar",
        "timestamp",
        "no timestamp",
    ],
)
def test_any_value_is_either_refused_or_becomes_itself(contract_of, keys, value):
    check = JsonRowParser(contract_of({"name": "v", "required": True, **keys}), ["v"])
    try:
        (cell,) = check.parse_table([{"v": value}])["v"].to_pylist()
    except RowsRefused:
        return
    wanted = value[0] if isinstance(value, list) else value
    found = cell[0] if isinstance(cell, list) else cell
    if isinstance(wanted, int | float):
        assert found == pytest.approx(wanted)
    else:
        assert str(found).startswith(wanted[:10])


def test_a_date_and_a_time_can_be_asked(contract_of):
    contract = contract_of(
        {"name": "day", "logicalType": "date", "required": True},
        {"name": "time", "logicalType": "timestamp", "required": True},
    )
    table = JsonRowParser(contract, ["day", "time"]).parse_table(
        [{"day": "2024-02-29", "time": "2024-02-29T12:00:00Z"}]
    )
    assert table.num_rows == 1


@pytest.fixture(scope="module")
def image_check(digits_contract: Contract) -> JsonRowParser:
    return JsonRowParser(digits_contract, ["image"])


def test_only_the_columns_that_the_model_reads_are_asked_for(image_check):
    image = [0] * 64
    assert image_check.parse_table([{"image": image}]).column_names == ["image"]
    (problem,) = problems(image_check, [{"image": image, "label": 3}])
    assert problem == {"row": 0, "column": "label", "found": "3", "rule": "the contract has no such column"}


def test_rows_come_back_in_the_order_in_which_they_came(image_check):
    rows = [{"image": [shade] * 64} for shade in (3, 1, 2)]
    assert image_check.parse_table(rows).to_pylist() == rows


def test_a_missing_column_is_named(image_check):
    (problem,) = problems(image_check, [{"image": [0] * 64}, {}])
    assert problem == {"row": 1, "column": "image", "found": "no value", "rule": "the column is required"}


def test_every_problem_has_its_row_and_element(image_check):
    found = problems(image_check, [{"image": [0] * 64}, {"image": [0, -1, 17, *[0] * 61]}])
    assert [(problem["row"], problem["column"], problem["found"]) for problem in found] == [
        (1, "image[1]", "-1"),
        (1, "image[2]", "17"),
    ]


def test_a_long_array_is_not_repeated_in_the_answer(image_check):
    (problem,) = problems(image_check, [{"image": [0] * 63}])
    assert problem["found"] == "an array of 63 values"
    (problem,) = problems(image_check, [{"image": "0" * 1000}])
    assert len(problem["found"]) == 80


def test_the_message_names_the_first_problem_and_counts_the_others(image_check):
    with pytest.raises(RowsRefused) as caught:
        image_check.parse_table([{"image": [17, 17, 17, *[0] * 61]}])
    assert str(caught.value).startswith("row 0, column image[0]: found 17, but")
    assert str(caught.value).endswith("(and 2 more)")


@pytest.mark.parametrize("value", [True, "5", 5.5, None, [5], {"v": 5}])
def test_nothing_is_turned_into_a_whole_number(contract_of, value):
    check = JsonRowParser(contract_of({"name": "v", "logicalType": "integer", "required": True}), ["v"])
    assert is_accepted(check, {"v": 5})
    assert not is_accepted(check, {"v": value})


@pytest.mark.parametrize("value", [5.0, -0.0, 255.0])
def test_a_real_number_that_is_whole_is_a_whole_number_as_in_training(contract_of, set_aside, value):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": "uint8", "required": True})
    (found,) = JsonRowParser(contract, ["v"]).parse_table([{"v": value}])["v"].to_pylist()
    assert (found, type(found)) == (int(value), int)
    assert not set_aside(pa.table({"v": [value]}), contract)


@pytest.mark.parametrize("value", [5.5, 256.0, -1.0, 1e300, float("inf"), float("nan")])
def test_other_real_numbers_are_none_and_are_told_once(contract_of, set_aside, value):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": "uint8", "required": True})
    (problem,) = problems(JsonRowParser(contract, ["v"]), [{"v": value}])
    assert "whole number" in problem["rule"]
    assert set_aside(pa.table({"v": [value]}), contract)


@pytest.mark.parametrize("value", [True, "5", [5.0]])
def test_nothing_is_turned_into_a_number(contract_of, value):
    check = JsonRowParser(contract_of({"name": "v", "logicalType": "number", "required": True}), ["v"])
    assert is_accepted(check, {"v": 5.0})
    assert not is_accepted(check, {"v": value})


def test_a_column_that_is_not_required_may_be_left_out_or_null(contract_of):
    contract = contract_of(
        {"name": "v", "logicalType": "integer", "logicalTypeOptions": {"minimum": 0}},
        {"name": "w", "logicalType": "integer", "required": True},
    )
    rows = [{"w": 1}, {"w": 1, "v": None}, {"w": 1, "v": 2}]
    assert JsonRowParser(contract, ["v", "w"]).parse_table(rows)["v"].to_pylist() == [None, None, 2]


def test_a_column_may_have_any_name_that_the_contract_allows(contract_of):
    names = ["model_config", "schema", "column_1", "_private", "class", "json", "CamelCase"]
    contract = contract_of(*({"name": name, "logicalType": "integer", "required": True} for name in names))
    row = {name: position for position, name in enumerate(names)}
    check = JsonRowParser(contract, names)
    assert check.parse_table([row]).to_pylist() == [row]
    assert not is_accepted(check, {f"column_{position}": 0 for position in range(len(names))})


@pytest.mark.parametrize("rows", [[], {}, None, "rows", 5, {"v": 1}, [5], [None], [[1]], [{}], [{1: 2}]], ids=repr)
def test_what_is_no_list_of_rows_is_refused_in_words(contract_of, rows):
    check = JsonRowParser(contract_of({"name": "v", "logicalType": "integer", "required": True}), ["v"])
    assert all(set(problem) == {"row", "column", "found", "rule"} for problem in problems(check, rows))


def test_the_endpoint_documents_the_limits(image_check):
    image = image_check.json_schema()["properties"]["image"]
    assert (image["minItems"], image["maxItems"]) == (64, 64)
    assert image["items"] == {"type": "integer", "minimum": 0, "maximum": 16}


@settings(deadline=None, max_examples=examples(100))
@given(
    rows=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image", "x"]), inner, max_size=2),
        max_leaves=6,
    )
)
def test_whatever_a_client_sends_is_answered_with_problems(image_check, rows):
    assert problems(image_check, rows)


PAIR = [
    {"name": "a", "logicalType": "integer"},
    {"name": "b", "logicalType": "number"},
    {"name": "c", "logicalType": "string"},
]


def expression(text: str, **keys: Any) -> dict[str, Any]:
    return {
        "type": "custom",
        "engine": "bloomery",
        "implementation": {"rule": "expression", "expression": text},
        **keys,
    }


@settings(deadline=None, max_examples=examples(60))
@given(
    text=st.sampled_from(["a <= b", "a < b OR c = 'x'", "c IS NOT NULL AND a + 1 > b", "length(c) = a", "a / b > 1"]),
    rows=st.lists(
        st.fixed_dictionaries({"a": st.none() | SMALL, "b": st.none() | REAL, "c": st.none() | TEXT}), min_size=1
    ),
)
def test_a_condition_on_several_columns_is_the_same_in_training_and_in_a_request(contract_of, set_aside, text, rows):
    contract = contract_of(*PAIR, quality=[expression(text)])
    schema = pa.schema([("a", pa.int64()), ("b", pa.float64()), ("c", pa.string())])
    gone = set_aside(pa.Table.from_pylist(rows, schema=schema), contract)
    try:
        JsonRowParser(contract, ["a", "b", "c"]).parse_table(rows)
        refused = set()
    except RowsRefused as refusal:
        refused = {problem["row"] for problem in refusal.problems}
    assert refused == gone


def test_a_broken_condition_names_its_columns_and_their_values(contract_of):
    contract = contract_of(*PAIR, quality=[expression("a <= b"), expression("a <> 5")])
    check = JsonRowParser(contract, ["a", "b", "c"])
    assert problems(check, [{"a": 1, "b": 2.0}, {"a": 5, "b": 2.0}]) == [
        {"row": 1, "column": "a, b", "found": "a = 5, b = 2.0", "rule": "must satisfy a <= b"},
        {"row": 1, "column": "a", "found": "a = 5", "rule": "must satisfy a <> 5"},
    ]


def test_a_condition_is_not_asked_where_the_model_does_not_read_all_of_its_columns(contract_of):
    contract = contract_of(*PAIR, quality=[expression("a <= b")])
    assert JsonRowParser(contract, ["a"]).parse_table([{"a": 7}]).num_rows == 1


def test_a_warning_refuses_no_request(contract_of):
    contract = contract_of(
        {**PAIR[0], "quality": [{"metric": "nullValues", "mustBe": 0, "severity": "warning"}]},
        *PAIR[1:],
        quality=[expression("a <= b", severity="warning")],
    )
    assert JsonRowParser(contract, ["a", "b"]).parse_table([{"a": 7, "b": 1.0}, {"b": 1.0}]).num_rows == 2
