"""The verdict of Great Expectations: which rows break which rule."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from data_contracts.contract import Contract
from data_contracts.expectations import _require_checked, judge
from data_contracts.rules import Rule
from data_contracts.schemas import arrow_schema, require_columns

UINT8_ARRAY = {
    "name": "v",
    "logicalType": "array",
    "required": True,
    "logicalTypeOptions": {"minItems": 1, "maxItems": 2},
    "items": {"logicalType": "integer", "physicalType": "uint8", "logicalTypeOptions": {"minimum": 1, "maximum": 9}},
}


def broken_rows(values: pa.Array | pa.ChunkedArray, contract: Contract) -> set[int]:
    return {breach.row for breach in judge(pa.table({"v": values}), contract).breaches}


def test_the_digits_keep_their_contract(digits_contract):
    digits = load_digits()
    table = pa.table(
        {
            "id": pa.array(range(len(digits.target))),
            "image": pa.array(list(digits.data.astype("uint8")), pa.list_(pa.uint8())),
            "label": pa.array(digits.target, pa.int64()),
        }
    )
    verdict = judge(table, digits_contract)
    assert (verdict.breaches, verdict.broken) == ((), ())
    assert [rule for rule, _ in verdict.checked][: len(digits_contract.rules())] == [
        f"{rule.target or 'table'}: {rule.sentence}" for rule in digits_contract.rules()
    ]
    assert {count for _, count in verdict.checked} == {0}


def test_every_kind_of_rule_finds_the_rows_that_break_it(contract_of):
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "primaryKey": True},
        {"name": "size", "logicalType": "integer", "physicalType": "int8", "logicalTypeOptions": {"minimum": 0}},
        {
            "name": "share",
            "logicalType": "number",
            "logicalTypeOptions": {"exclusiveMinimum": 0, "exclusiveMaximum": 2},
        },
        {"name": "word", "logicalType": "string", "logicalTypeOptions": {"maxLength": 3, "pattern": "^[a-z]*$"}},
        {
            "name": "kind",
            "logicalType": "string",
            "quality": [{"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": ["x", "y"]}}],
        },
    )
    table = pa.table(
        {
            "id": pa.array([7, 7, None, 1, 2]),
            "size": pa.array([0, -1, 127, 128, None]),
            "share": pa.array([0.0, 1.0, 2.0, None, 1e-9]),
            "word": pa.array(["abc", "abcd", "A", None, ""]),
            "kind": pa.array(["x", "y", "z", None, "x"]),
        }
    )
    breaches = [(breach.row, breach.column, breach.rule, breach.value) for breach in judge(table, contract).breaches]
    assert breaches == [
        (0, "id", "must be unique", "7"),
        (0, "share", "must be greater than 0 and less than 2", "0.0"),
        (1, "id", "must be unique", "7"),
        (1, "size", "must be at least 0", "-1"),
        (1, "word", "length must be at most 3", "4"),
        (2, "id", "must not be null", "null"),
        (2, "kind", "must be one of x, y", "z"),
        (2, "share", "must be greater than 0 and less than 2", "2.0"),
        (2, "word", "must match ^[a-z]*$", "A"),
        (3, "size", "must be a whole number from -128 to 127", "128"),
    ]


def test_every_rule_of_the_digits_is_asked_of_its_own_column(digits_contract):
    image = [0] * 64
    table = pa.table(
        {
            "id": pa.array([-1, 1, 1, None, 4, 5, 6, 7], pa.int64()),
            "image": pa.array([image, image, image, image, None, [17, *image[1:]], image[1:], [None, *image[1:]]]),
            "label": pa.array([0, 1, 10, 3, 4, 5, 6, None], pa.int64()),
        }
    )
    verdict = judge(table, digits_contract)
    assert verdict.broken == ("number of rows is 8, number of rows must be at least 100",)
    assert [(breach.row, breach.column, breach.rule) for breach in verdict.breaches] == [
        (0, "id", "must be at least 0"),
        (1, "id", "must be unique"),
        (2, "id", "must be unique"),
        (2, "label", "must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (3, "id", "must not be null"),
        (4, "image", "must not be null"),
        (5, "image[]", "must be at least 0 and at most 16"),
        (6, "image", "number of items must be at least 64 and at most 64"),
        (7, "image[]", "must not be null"),
        (7, "label", "must not be null"),
    ]


def test_each_rule_is_counted(contract_of):
    contract = contract_of({"name": "v", "logicalType": "integer", "required": True, "unique": True})
    verdict = judge(pa.table({"v": pa.array([1, 1, None, 2], pa.int64())}), contract)
    assert verdict.checked[:2] == (("v: must not be null", 1), ("v: must be unique", 2))


def test_a_wrong_number_of_rows_breaks_the_table_and_no_row(contract_of):
    contract = contract_of(
        {"name": "v", "logicalType": "integer"}, quality=[{"metric": "rowCount", "mustBeGreaterThan": 2}]
    )
    verdict = judge(pa.table({"v": [1, 2]}), contract)
    assert verdict.broken == ("number of rows is 2, number of rows must be at least 3",)
    assert verdict.breaches == ()
    assert judge(pa.table({"v": [1, 2, 3]}), contract).broken == ()


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.int64()), pa.large_list(pa.int16()), pa.list_(pa.uint8()), pa.list_(pa.float64())],
    ids=str,
)
def test_arrays_are_judged_alike_in_every_arrow_type(contract_of, kind):
    rows = [[1], [1, 9], [0], [10, 1], [None, 1], None, [], [1, 1, 1], [9]]
    padded = pa.array([[5], *rows, [5]], kind).slice(1, len(rows))
    assert broken_rows(padded, contract_of(UINT8_ARRAY)) == {2, 3, 4, 5, 6, 7}


def test_arrays_of_fixed_length_are_judged_alike(contract_of):
    rows = [[1, 9], [0, 1], [9, 10], [None, 1], None, [2, 2]]
    padded = pa.array([[5, 5], *rows], pa.list_(pa.int64(), 2)).slice(1)
    assert broken_rows(padded, contract_of(UINT8_ARRAY)) == {1, 2, 3, 4}


def test_the_number_of_a_row_counts_over_all_chunks(contract_of):
    chunks = pa.chunked_array([pa.array([[1]]), pa.array([[1], [0]]), pa.array([[0]])])
    assert broken_rows(chunks, contract_of(UINT8_ARRAY)) == {2, 3}


def test_an_element_is_shown_with_the_value_that_breaks_the_rule(contract_of):
    (breach,) = judge(pa.table({"v": pa.array([[3, 12], [3]])}), contract_of(UINT8_ARRAY)).breaches
    assert (breach.row, breach.column, breach.value) == (0, "v[]", "12")


@pytest.mark.parametrize("physical", ["uint8", "int64"])
def test_a_column_of_floats_breaks_where_a_whole_number_is_asked_for(contract_of, physical):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": physical, "required": True})
    assert broken_rows(pa.array([0.0, 1.0, 1.5, 2.0, None]), contract) == {2, 4}


@pytest.mark.parametrize("physical", ["uint8", "int64"])
def test_an_array_of_floats_breaks_where_whole_numbers_are_asked_for(contract_of, physical):
    items = {"logicalType": "integer", "physicalType": physical}
    contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert broken_rows(pa.array([[0.0, 1.0], [0.0, 1.5], [2.0]]), contract) == {1}


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ({"logicalType": "number"}, [0.5, float("nan")]),
        ({"logicalType": "number"}, [0.5, float("inf")]),
        ({"logicalType": "integer", "physicalType": "uint8"}, [1.0, float("nan")]),
    ],
    ids=["nan", "inf", "nan for a whole number"],
)
def test_what_is_not_a_finite_number_breaks_its_row(contract_of, item, values):
    alone = contract_of({"name": "v", "logicalTypeOptions": {"minimum": 0}, **item})
    assert broken_rows(pa.array(values), alone) == {1}


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ({"logicalType": "number"}, [0.5, float("nan")]),
        ({"logicalType": "number"}, [0.5, float("inf")]),
        ({"logicalType": "integer", "physicalType": "uint8"}, [1.0, float("nan")]),
    ],
    ids=["nan", "inf", "nan for a whole number"],
)
def test_what_is_not_a_finite_number_breaks_the_row_of_its_array(contract_of, item, values):
    inside = contract_of({"name": "v", "logicalType": "array", "items": item})
    assert broken_rows(pa.array([[values[0]], values]), inside) == {1}


def test_the_elements_of_arrays_of_text_are_asked_for_their_pattern(contract_of):
    items = {"logicalType": "string", "logicalTypeOptions": {"pattern": "^a"}}
    contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert broken_rows(pa.array([["a"], ["a", "b"], []]), contract) == {1}


def test_the_elements_of_arrays_of_text_are_asked_for_their_length(contract_of):
    items = {"logicalType": "string", "logicalTypeOptions": {"maxLength": 1}}
    contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert broken_rows(pa.array([["a"], ["a", "bb"], []], pa.list_(pa.string())), contract) == {1}


def test_dates_can_be_among_the_valid_values(contract_of):
    day, another = dt.date(2024, 2, 1), dt.date(2024, 2, 2)
    check = {"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [day]}}
    contract = contract_of({"name": "v", "logicalType": "date", "quality": [check]})
    assert broken_rows(pa.array([day, another, None]), contract) == {1}


@pytest.mark.parametrize("options", [{"minLength": 1}, {"pattern": "a"}], ids=str)
def test_a_column_without_any_value_keeps_the_limits_of_text(contract_of, options):
    contract = contract_of({"name": "v", "logicalType": "string", "logicalTypeOptions": options})
    require_columns(pa.schema([("v", pa.null())]), contract, where="a test")
    assert broken_rows(pa.nulls(2), contract) == set()


def test_a_column_without_any_value_keeps_the_limits_of_numbers(contract_of):
    optional = {"name": "v", "logicalType": "integer", "logicalTypeOptions": {"minimum": 1}}
    assert broken_rows(pa.nulls(2), contract_of(optional)) == set()
    assert broken_rows(pa.nulls(2), contract_of({**optional, "required": True})) == {0, 1}


def test_a_column_without_any_array_keeps_the_limits_of_arrays(contract_of):
    optional = {**UINT8_ARRAY, "required": False}
    require_columns(pa.schema([("v", pa.null())]), contract_of(optional), where="a test")
    assert broken_rows(pa.nulls(2), contract_of(optional)) == set()
    assert broken_rows(pa.nulls(2), contract_of(UINT8_ARRAY)) == {0, 1}


def test_arrays_without_any_element_keep_the_limits_of_elements(contract_of):
    items = {"logicalType": "integer", "logicalTypeOptions": {"minimum": 1}}
    contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert broken_rows(pa.array([[], None], pa.list_(pa.null())), contract) == set()


def test_a_rule_that_great_expectations_cannot_check_does_not_pass(contract_of):
    contract = contract_of({"name": "v", "logicalType": "number", "logicalTypeOptions": {"minimum": 0}})
    with pytest.raises(RuntimeError, match="could not check"):
        judge(pa.table({"v": ["a", "b"]}), contract)


def test_large_whole_numbers_are_compared_to_the_last_digit_or_refused_as_limits(contract_of):
    limit = 2**53 - 1
    contract = contract_of({"name": "v", "logicalType": "integer", "logicalTypeOptions": {"maximum": limit}})
    assert broken_rows(pa.array([limit - 1, limit, limit + 1]), contract) == {2}
    with pytest.raises(ValidationError, match="last digit"):
        contract_of({"name": "v", "logicalType": "integer", "logicalTypeOptions": {"maximum": limit + 1}})


def test_large_keys_that_differ_in_the_last_digit_are_unique(contract_of):
    contract = contract_of({"name": "v", "logicalType": "integer", "unique": True})
    assert broken_rows(pa.array([2**62, 2**62 + 1, None]), contract) == set()


def test_a_column_may_have_the_name_of_the_row_counter(contract_of):
    contract = contract_of({"name": "_row", "logicalType": "integer", "logicalTypeOptions": {"minimum": 0}})
    assert [breach.row for breach in judge(pa.table({"_row": [5, -1]}), contract).breaches] == [1]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ({"logicalType": "integer"}, pa.array([2.0**63])),
        ({"logicalType": "integer"}, pa.array([2**63], pa.uint64())),
        ({"logicalType": "number"}, pa.array([2**53 + 1])),
        ({"logicalType": "timestamp"}, pa.array([1], pa.timestamp("ns"))),
        ({"logicalType": "date"}, pa.array([1], pa.date64())),
        ({"logicalType": "integer", "physicalType": "int16"}, pa.array([3.0])),
        ({"logicalType": "string"}, pa.array(["a"], pa.large_string())),
        ({"logicalType": "timestamp"}, pa.array([0], pa.timestamp("s"))),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else value["logicalType"],
)
def test_a_row_that_passes_can_be_converted_to_the_types_of_the_contract(contract_of, column, values):
    contract = contract_of({"name": "v", "required": True, **column})
    require_columns(pa.schema([("v", values.type)]), contract, where="a test")
    passes = not broken_rows(values, contract)
    assert not passes or pa.table({"v": values}).cast(arrow_schema(contract)).num_rows == 1


def test_a_large_number_does_not_become_infinite_on_its_way_to_float32(contract_of):
    contract = contract_of({"name": "v", "logicalType": "number", "physicalType": "float32", "required": True})
    assert broken_rows(pa.array([1.0, 1e300]), contract) == {1}


def test_a_failure_below_the_name_of_a_metric_is_seen():
    rule = Rule(target="v", kind="unique")
    told = {"('column_values.unique', 'abc', ())": {"raised_exception": True, "exception_message": "no such column"}}
    with pytest.raises(RuntimeError, match=r"could not check .* no such column"):
        _require_checked(told, rule)
    _require_checked({"raised_exception": False, "exception_message": None}, rule)
