"""One pass over the rows: valid rows, quarantined rows, their positions, and counts that add up."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.validation.row_checks import require_columns
from bloomery.flows.recipe.recipe import CONTRACTS
from bloomery.tasks.infrastructure.personal_data import decryption_properties
from bloomery.tasks.validate.quarantine import QuarantineWriter
from bloomery.tasks.validate.row_filter import FilterResult, filter_rows
from tests.examples import examples

UINT8_ARRAY = {
    "name": "v",
    "logicalType": "array",
    "required": True,
    "logicalTypeOptions": {"minItems": 1, "maxItems": 2},
    "items": {"logicalType": "integer", "physicalType": "uint8", "logicalTypeOptions": {"minimum": 1, "maximum": 9}},
}
FilteredRows = tuple[FilterResult, pa.Table, list[dict[str, Any]]]


@pytest.fixture
def filter_table(tmp_path: Path) -> Callable[..., FilteredRows]:
    """Filters a table: returns the counts, the valid rows and the quarantined rows."""

    def filter_to_files(table: pa.Table, contract: Contract, group_rows: int = 1000) -> FilteredRows:
        source, valid_path, quarantine_path = (
            tmp_path / f"{name}.parquet" for name in ("source", "valid", "quarantine")
        )
        pq.write_table(table, source, row_group_size=group_rows)
        schema = pq.read_schema(source)
        with QuarantineWriter(quarantine_path, schema, contract.personal_columns, group_rows) as quarantine:
            result = filter_rows(source, contract, valid_path, quarantine)
        return (
            result,
            pq.read_table(valid_path),
            pq.read_table(quarantine_path, decryption_properties=decryption_properties()).to_pylist(),
        )

    return filter_to_files


@pytest.fixture
def find_broken_rows(filter_table: Callable[..., FilteredRows]) -> Callable[..., set[int]]:
    """The positions of the values that break the contract of the one column `v`."""

    def find(values: pa.Array | pa.ChunkedArray, contract: Contract) -> set[int]:
        _, valid_rows, quarantined = filter_table(pa.table({"v": values}), contract)
        broken_positions = {row["_row"] for row in quarantined}
        assert valid_rows.num_rows == len(values) - len(broken_positions) == len(values) - len(quarantined)
        return broken_positions

    return find


def test_every_kind_of_row_rule_finds_the_rows_that_break_it(contract_of, filter_table):
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True},
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
    _, valid_rows, quarantined = filter_table(table, contract)
    assert [
        (row["_row"], reason["column"], reason["rule"], reason["value"])
        for row in quarantined
        for reason in row["_reasons"]
    ] == [
        (0, "share", "must be greater than 0 and less than 2", "0"),
        (1, "size", "must be at least 0", "-1"),
        (1, "word", "must have at most 3 characters", "abcd"),
        (2, "id", "must not be null", "null"),
        (2, "share", "must be greater than 0 and less than 2", "2"),
        (2, "word", "must match ^[a-z]*$", "A"),
        (2, "kind", "must be one of x, y", "z"),
        (3, "size", "must be a whole number from -128 to 127", "128"),
    ]
    assert valid_rows["id"].to_pylist() == [2]
    assert valid_rows.schema.field("size").type == pa.int8()


def test_the_digits_keep_their_contract_and_each_rule_checks_its_own_column(filter_table):
    from sklearn.datasets import load_digits

    contract = read_contract(CONTRACTS / "digits.odcs.yaml")
    digits = load_digits()
    image = pa.array(list(digits.data.astype("uint8")), pa.list_(pa.uint8()))
    table = pa.table({"id": range(len(image)), "image": image, "label": pa.array(digits.target, pa.int64())})
    result, valid_rows, quarantined = filter_table(table, contract)
    assert (valid_rows.num_rows, quarantined, {count.num_violations for count in result.counts}) == (1797, [], {0})
    blank = [0] * 64
    broken_table = pa.table(
        {
            "id": pa.array([-1, 2, None, 4, 5, 6, 7], pa.int64()),
            "image": pa.array([blank, blank, blank, None, [17, *blank[1:]], blank[1:], [None, *blank[1:]]]),
            "label": pa.array([0, 10, 3, 4, 5, 6, None], pa.int64()),
        }
    )
    _, _, quarantined = filter_table(broken_table, contract)
    assert [(row["_row"], reason["column"], reason["rule"]) for row in quarantined for reason in row["_reasons"]] == [
        (0, "id", "must be at least 0"),
        (1, "label", "must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (2, "id", "must not be null"),
        (3, "image", "must not be null"),
        (4, "image[]", "must be at least 0 and at most 16"),
        (5, "image", "must have exactly 64 items"),
        (6, "image[]", "must not be null"),
        (6, "label", "must not be null"),
    ]


def test_each_rule_counts_the_values_that_it_checks(contract_of, filter_table):
    contract = contract_of(
        {"name": "v", "logicalType": "integer", "required": True, "logicalTypeOptions": {"minimum": 2}}
    )
    result, _, _ = filter_table(pa.table({"v": pa.array([1, 1, None, 2], pa.int64())}), contract)
    assert [(count.rule.kind, count.num_violations, count.num_checked) for count in result.counts] == [
        ("required", 1, 4),
        ("between", 2, 3),
        ("fits", 0, 3),
    ]


def test_a_warning_is_counted_and_its_row_passes(contract_of, filter_table):
    check = {"metric": "nullValues", "mustBe": 0, "severity": "warning"}
    contract = contract_of({"name": "v", "logicalType": "integer", "quality": [check]})
    result, valid_rows, quarantined = filter_table(pa.table({"v": pa.array([None, 1])}), contract)
    assert (result.counts[0].num_violations, valid_rows.num_rows, quarantined) == (1, 2, [])
    assert result.counts[0].examples == ((0, "null"),)


def test_rows_quarantined_only_by_rules_with_a_tolerance_are_counted_separately(contract_of, filter_table):
    check = {"metric": "nullValues", "mustBeLessOrEqualTo": 50, "unit": "percent"}
    column = {"name": "v", "logicalType": "integer", "logicalTypeOptions": {"minimum": 0}, "quality": [check]}
    result, valid_rows, quarantined = filter_table(pa.table({"v": pa.array([None, 1, -1])}), contract_of(column))
    assert (valid_rows.num_rows, len(quarantined), result.num_untolerated, result.quarantined.num_set) == (1, 2, 1, 2)


@settings(
    deadline=None,
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    cells=st.lists(st.sampled_from([1, 2, 3, -1, None]), min_size=1, max_size=40),
    group_rows=st.integers(1, 50),
    batch_rows=st.integers(1, 50),
)
def test_counts_and_positions_do_not_depend_on_the_batches(
    contract_of, filter_table, monkeypatch, cells, group_rows, batch_rows
):
    contract = contract_of(
        {"name": "v", "logicalType": "integer", "required": True, "logicalTypeOptions": {"minimum": 0}},
        {"name": "place", "logicalType": "integer"},
    )
    table = pa.table({"v": pa.array(cells, pa.int64()), "place": list(range(len(cells)))})
    monkeypatch.setattr("bloomery.tasks.infrastructure.parquet.ROW_GROUP_SIZE", batch_rows)
    result, valid_rows, quarantined = filter_table(table, contract, group_rows)
    broken_positions = [place for place, cell in enumerate(cells) if cell is None or cell < 0]
    assert [row["_row"] for row in quarantined] == [row["place"] for row in quarantined] == broken_positions
    assert valid_rows["place"].to_pylist() == [place for place in range(len(cells)) if place not in broken_positions]
    assert result.quarantined.between(0, len(cells)).nonzero()[0].tolist() == broken_positions
    assert sum(count.num_violations for count in result.counts) == sum(len(row["_reasons"]) for row in quarantined)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.large_list(pa.int16()), pa.list_(pa.uint8()), pa.list_(pa.float64())], ids=str
)
def test_arrays_are_checked_alike_in_every_arrow_type(contract_of, find_broken_rows, kind):
    rows = [[1], [1, 9], [0], [10, 1], [None, 1], None, [], [1, 1, 1], [9]]
    padded = pa.array([[5], *rows, [5]], kind).slice(1, len(rows))
    assert find_broken_rows(padded, contract_of(UINT8_ARRAY)) == {2, 3, 4, 5, 6, 7}


def test_an_element_that_breaks_a_rule_is_reported_with_its_value(contract_of, filter_table):
    _, _, quarantined = filter_table(pa.table({"v": pa.array([[3], [3, 12], [0, 99]])}), contract_of(UINT8_ARRAY))
    assert [(row["_row"], reason["column"], reason["value"]) for row in quarantined for reason in row["_reasons"]] == [
        (1, "v[]", "12"),
        (2, "v[]", "0"),
    ]


@pytest.mark.parametrize("physical", ["uint8", "int64"])
def test_a_fraction_breaks_an_integer_column(contract_of, find_broken_rows, physical):
    scalar_contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": physical, "required": True})
    assert find_broken_rows(pa.array([0.0, 1.0, 1.5, 2.0, None]), scalar_contract) == {2, 4}
    items = {"logicalType": "integer", "physicalType": physical}
    array_contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert find_broken_rows(pa.array([[0.0, 1.0], [0.0, 1.5], [2.0]]), array_contract) == {1}


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ({"logicalType": "number"}, [0.5, float("nan")]),
        ({"logicalType": "number"}, [0.5, float("inf")]),
        ({"logicalType": "integer", "physicalType": "uint8"}, [1.0, float("nan")]),
    ],
    ids=["nan", "inf", "nan for a whole number"],
)
def test_a_number_that_is_not_finite_breaks_its_row(contract_of, find_broken_rows, item, values):
    scalar_contract = contract_of({"name": "v", "logicalTypeOptions": {"minimum": 0}, **item})
    assert find_broken_rows(pa.array(values), scalar_contract) == {1}
    array_contract = contract_of({"name": "v", "logicalType": "array", "items": item})
    assert find_broken_rows(pa.array([[values[0]], values]), array_contract) == {1}


@pytest.mark.parametrize("options", [{"pattern": "^a"}, {"maxLength": 1}], ids=str)
def test_limits_of_text_apply_to_the_elements_of_arrays(contract_of, find_broken_rows, options):
    items = {"logicalType": "string", "logicalTypeOptions": options}
    contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert find_broken_rows(pa.array([["a"], ["a", "bb"], []], pa.list_(pa.string())), contract) == {1}


def test_valid_values_can_be_dates(contract_of, find_broken_rows):
    day, other_day = dt.date(2024, 2, 1), dt.date(2024, 2, 2)
    check = {"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [day]}}
    contract = contract_of({"name": "v", "logicalType": "date", "quality": [check]})
    assert find_broken_rows(pa.array([day, other_day, None]), contract) == {1}


@pytest.mark.parametrize(
    "column",
    [
        {"logicalType": "string", "logicalTypeOptions": {"minLength": 1, "pattern": "a"}},
        {"logicalType": "integer", "logicalTypeOptions": {"minimum": 1}},
        {"logicalType": "number", "logicalTypeOptions": {"minimum": 1}},
        {"logicalType": "timestamp"},
        {key: value for key, value in UINT8_ARRAY.items() if key not in ("name", "required")},
    ],
    ids=lambda column: column["logicalType"],
)
def test_a_column_of_nulls_breaks_only_the_rule_that_forbids_nulls(contract_of, find_broken_rows, column):
    other_column = {"name": "w", "logicalType": "integer", "required": True}
    for is_required in (False, True):
        contract = contract_of({"name": "v", "required": is_required, **column}, other_column)
        require_columns(pa.schema([("v", pa.null()), ("w", pa.int64())]), contract, where="a test")
    required_contract = contract_of({"name": "v", "required": True, **column})
    assert find_broken_rows(pa.nulls(2), required_contract) == {0, 1}


def test_arrays_without_elements_keep_the_limits_of_elements(contract_of, find_broken_rows):
    items = {"logicalType": "integer", "logicalTypeOptions": {"minimum": 1}}
    contract = contract_of({"name": "v", "logicalType": "array", "items": items})
    assert find_broken_rows(pa.array([[], None], pa.list_(pa.null())), contract) == set()


def test_large_integers_are_compared_exactly_or_listed_as_unchecked_limits(contract_of, find_broken_rows):
    limit = 2**53 - 1
    contract = contract_of({"name": "v", "logicalType": "integer", "logicalTypeOptions": {"maximum": limit}})
    assert find_broken_rows(pa.array([limit - 1, limit, limit + 1]), contract) == {2}
    inexact = contract_of({"name": "v", "logicalType": "integer", "logicalTypeOptions": {"maximum": limit + 1}})
    assert "cannot be compared exactly" in str(inexact.unchecked)


def test_a_column_may_have_the_name_of_a_quarantine_column(contract_of, filter_table):
    columns = [
        {"name": name, "logicalType": "integer", "logicalTypeOptions": {"minimum": 0}} for name in ("_row", "__row")
    ]
    _, _, quarantined = filter_table(pa.table({"_row": [5, -1], "__row": [7, 8]}), contract_of(*columns))
    assert [(row["_row"], row["__row"], row["___row"]) for row in quarantined] == [(-1, 8, 1)]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ({"logicalType": "integer"}, pa.array([2.0**63])),
        ({"logicalType": "integer"}, pa.array([2**63], pa.uint64())),
        ({"logicalType": "number"}, pa.array([2**53 + 1])),
        ({"logicalType": "number", "physicalType": "float32"}, pa.array([1e300])),
        ({"logicalType": "timestamp"}, pa.array([1], pa.timestamp("ns"))),
        ({"logicalType": "integer", "physicalType": "int16"}, pa.array([3.0])),
        ({"logicalType": "string"}, pa.array(["a"], pa.large_string())),
        ({"logicalType": "timestamp"}, pa.array([0], pa.timestamp("s"))),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else value["logicalType"],
)
def test_a_valid_row_keeps_its_value_in_the_type_of_the_contract(contract_of, filter_table, column, values):
    contract = contract_of({"name": "v", "required": True, **column})
    _, valid_rows, quarantined = filter_table(pa.table({"v": values}), contract)
    assert valid_rows.schema.types == arrow_schema(contract.columns).types
    assert len(quarantined) + valid_rows.num_rows == 1
    if valid_rows.num_rows:
        assert valid_rows["v"][0].as_py() == pa.array(values).cast(valid_rows["v"].type)[0].as_py()


def test_no_reason_contains_a_personal_value(contract_of, filter_table, monkeypatch):
    monkeypatch.setenv("BLOOMERY_PERSONAL_KEY", "a secret of some length")
    personal = {"customProperties": [{"property": "personal", "value": True}]}
    rule = {
        "type": "custom",
        "engine": "bloomery",
        "implementation": {"rule": "expression", "expression": "mail <> town"},
    }
    contract = contract_of(
        {"name": "mail", "logicalType": "string", "logicalTypeOptions": {"pattern": "@"}, **personal},
        {"name": "town", "logicalType": "string"},
        quality=[rule],
    )
    result, _, quarantined = filter_table(pa.table({"mail": ["secret"], "town": ["secret"]}), contract)
    assert {reason["value"] for row in quarantined for reason in row["_reasons"]} == {"(personal)"}
    assert {example.value for count in result.counts for example in count.examples} == {"(personal)"}
