"""Contracts that were not written for Bloomery: types of databases, several tables, and what cannot be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.odcs.elements.physical_types import logical_type_of
from bloomery.data_contracts.odcs.html_page import render_contract_page
from tests.records import contract_document

BAKERY = Path(__file__).parent / "bakery.odcs.yaml"


@pytest.fixture(scope="module")
def orders() -> Contract:
    return read_contract(BAKERY).select_table("orders")


def test_columns_have_the_types_of_the_standard_not_of_the_database(orders):
    assert {column.name: column.arrow_type for column in orders.columns} == {
        "order_id": "int64",
        "shop_id": "int64",
        "size": "string",
        "price": "float64",
        "weight": "float32",
        "boxes": "int64",
        "ordered_at": "timestamp[us, UTC]",
        "baked_on": "date32",
        "sent_at": "timestamp[us, UTC]",
        "paid": "bool",
        "email": "string",
        "toppings": "list",
        "free text": "string",
    }


def test_every_requirement_is_a_rule_or_listed_as_not_checked(orders):
    assert [f"{rule.target}: {rule.sentence}" for rule in orders.rules()] == [
        ": must have at least 11 rows",
        ": result of SELECT COUNT(*) FROM {object} WHERE {object}.price < 0 must be exactly 0",
        "order_id: must not be null",
        "order_id: must be unique",
        "order_id: must be at least 1",
        "shop_id: must not be null",
        "size: must be one of S, M, L",
        'boxes: must satisfy "boxes" % 6 = 0',
        "ordered_at: must satisfy \"ordered_at\" >= TIMESTAMP '2020-01-01 00:00:00'",
        "baked_on: must satisfy \"baked_on\" > DATE '2020-01-01'",
        "baked_on: must satisfy \"baked_on\" <= DATE '2030-02-01'",
        "sent_at: must satisfy \"sent_at\" < TIMESTAMP '2030-01-01 00:00:00+02:00'",
        "email: must have at least 3 and at most 80 characters",
        "toppings: must have at least 0 and at most 4 items",
        "toppings[]: must have at most 9 characters",
        "ordered_at: newest value must be at most 2 days old",
    ]
    size = next(rule for rule in orders.rules() if rule.target == "size")
    assert (size.severity, orders.quarantine_limit) == ("warning", 0.05)
    listed = [str(item) for item in orders.unchecked]
    for start in (
        "physicalType of the source: int8, int, varchar(2), numeric(8,2), float4, INT, timestamp, date, bit",
        "duplicateValues check: 10 rows are many in a small data set",
        "sql check 'SELECT COUNT(*) FROM orders o JOIN shops s ON o.shop_id = s.id': mustNotBe",
        "text check 'Prices include tax.'",
        "foreign key to shops.id: other tables are not read",
        "opens: not read: values of type time are not supported",
        "address: not read: values of type object are not supported",
        "notes: not read: items is missing",
        "layers: not read: an array of arrays",
        "boxes_of: not read: values of type object",
        "geo: not read: it has no logicalType, and physicalType 'geography' does not tell its type",
        "order_id: unknown custom property 'units' has no effect; did you mean 'unit'?",
        "order_id: a limit of 2**53 or more cannot be compared exactly",
        "shop_id: foreign key to shops.id",
        "size: soda check: engine 'soda' is not supported",
        "size: dbt check: engine 'dbt' is not supported",
        "weight: multipleOf: 0.5 is checked only for columns of whole numbers",
        "sent_at: format: nnnn dd.MM.yyyy: the format 'nnnn dd.MM.yyyy' has nnnn, which",
        "sent_at: defaultTimezone: Europe/Berlin; times without an offset are read as UTC",
        "paid: anything has no meaning for boolean",
        "email: format: email: it is not checked",
        "email: pattern '\\\\p{L}+@' is not a regular expression",
        "toppings: uniqueItems is not checked",
        "service level retention 3 y: only freshness is checked",
    ):
        assert sum(sentence.startswith(start) for sentence in listed) == 1, (start, listed)
    assert len(listed) == 24


def test_a_contract_without_a_name_is_called_by_its_id(orders):
    assert orders.name == "bakery-contract"
    assert "name" not in orders.document()


def test_the_page_shows_all_tables_and_what_is_not_checked():
    page = render_contract_page(read_contract(BAKERY))
    for text in ("Table orders", "Table shops", "Not checked", "uniqueItems is not checked", "postgres"):
        assert text in page


@pytest.mark.parametrize(
    ("physical_type", "logical_type"),
    [
        ("INT", "integer"),
        ("bigint unsigned", "integer"),
        ("varchar(2)", "string"),
        ("varchar[15]", "string"),
        ("CHARACTER VARYING(3)", "string"),
        ("double precision", "number"),
        ("decimal(10, 2)", "number"),
        ("timestamp with time zone", "timestamp"),
        ("DATE", "date"),
        ("jsonb", "object"),
        ("geography", None),
        ("", None),
        (None, None),
    ],
)
def test_a_databases_type_has_a_logical_type(physical_type, logical_type):
    assert logical_type_of(physical_type) == logical_type


@pytest.mark.parametrize(("other", "expected"), [("int64", "int8"), ("text", "int64")])
def test_int8_has_eight_bits_only_among_arrow_types(contract_of, other, expected):
    other_type = "integer" if other == "int64" else "string"
    contract = contract_of(
        {"name": "a", "logicalType": "integer", "physicalType": "int8"},
        {"name": "b", "logicalType": other_type, "physicalType": other},
    )
    assert contract.columns[0].arrow_type == expected


@pytest.mark.parametrize(
    ("format_", "arrow_type"),
    [("i8", "int8"), ("u16", "uint16"), ("i64", "int64"), ("u64", "int64"), ("i128", "int64")],
)
def test_the_format_of_an_integer_determines_its_width(contract_of, format_, arrow_type):
    contract = contract_of({"name": "a", "logicalType": "integer", "logicalTypeOptions": {"format": format_}})
    assert contract.columns[0].arrow_type == arrow_type
    is_listed = any("is not supported; values are stored as int64" in str(item) for item in contract.unchecked)
    assert is_listed == (format_ in ("u64", "i128"))


def old_contract(version: str, **keys: Any) -> dict[str, Any]:
    column = {
        "name": "v",
        "logicalType": "number",
        "logicalTypeOptions": {"minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
    }
    return {**contract_document(column), "apiVersion": version, **keys}


@pytest.mark.parametrize("version", ["v3.0.0", "v3.0.1", "v3.0.2"])
def test_keys_of_earlier_versions_are_read(version):
    levels = [{"property": "frequency", "value": 1, "unit": "d", "column": "rows.v"}]
    team = [{"username": "ada", "comment": "Owner."}]
    document = old_contract(version, slaProperties=levels, team=team)
    document["schema"][0]["properties"][0]["quality"] = [{"rule": "nullCheck", "description": "Never null."}]
    contract = Contract.model_validate(document)
    assert contract.document() == document
    (rule,) = contract.rules()
    assert (rule.low, rule.strict_low, rule.high, rule.strict_high) == (0, True, 9, False)
    assert "v: library check 'Never null.': there is no metric" in map(str, contract.unchecked)


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"slaProperties": [{"property": "frequency", "value": 1, "column": "v"}]}, ("slaProperties", 0, "column")),
        ({"team": [{"username": "ada", "comment": "Owner."}]}, ("team", 0, "comment")),
        ({"team": {"members": [{"username": "ada", "comment": "Owner."}]}}, ("team", "members", 0, "comment")),
    ],
)
def test_keys_of_earlier_versions_are_refused_in_later_ones(keys, place):
    with pytest.raises(ValidationError) as caught:
        Contract.model_validate(old_contract("v3.1.0", **keys))
    assert caught.value.errors()[0]["loc"] == place


@pytest.mark.parametrize(
    ("query", "expression"),
    [
        ("select count(*) from rows where v is null", "SELECT COUNT(*) FROM {object} WHERE v IS NULL"),
        ("SELECT count(*) FROM {table} WHERE {column} < 0", 'SELECT count(*) FROM {object} WHERE "v" < 0'),
        ("SELECT count(*) FROM ${object} WHERE v < 0", "SELECT count(*) FROM {object} WHERE v < 0"),
        ("SELECT count(*) FROM Rows r WHERE r.v < 0", "SELECT COUNT(*) FROM {object} AS r WHERE r.v < 0"),
    ],
)
def test_a_query_may_name_the_table(contract_of, query, expression):
    check = {"type": "sql", "query": query, "mustBe": 0}
    contract = contract_of({"name": "v", "logicalType": "number", "quality": [check]})
    assert [rule.expression for rule in contract.rules()] == [expression]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT nvl3(max(v)) FROM rows", "calls NVL3, which DuckDB may not know"),
        ("SELECT count(*) FROM sales.rows", "does not read the table {object}"),
        ("SELECT count(*) FROM {object} WHERE", "is not valid SQL"),
        ("SELECT TOP 1 v FROM rows WHERE [v] > 0", "does not read the table {object}"),
    ],
)
def test_a_query_for_another_database_is_listed(contract_of, query, reason):
    check = {"type": "sql", "query": query, "mustBe": 0}
    contract = contract_of({"name": "v", "logicalType": "number", "required": True, "quality": [check]})
    assert {rule.kind for rule in contract.rules()} == {"required"}
    assert reason in str(contract.unchecked[0])


def test_the_limits_of_a_date_that_no_value_satisfies_are_refused(contract_of):
    options = {"minimum": "2024-02-01", "maximum": "2024-01-01"}
    with pytest.raises(ValidationError, match="no value can be at least 2024-02-01 and at most 2024-01-01"):
        contract_of({"name": "d", "logicalType": "date", "logicalTypeOptions": options})
