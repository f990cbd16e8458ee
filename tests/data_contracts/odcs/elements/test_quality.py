"""The quality checks of a contract: their rules, and the checks that are refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule
from tests.data_contracts.odcs.quality_checks import NONE, library, own, sql

COLUMNS: dict[str, dict[str, Any]] = {
    "i": {"logicalType": "integer"},
    "f": {"logicalType": "number"},
    "s": {"logicalType": "string"},
    "b": {"logicalType": "boolean"},
    "d": {"logicalType": "date"},
    "m": {"logicalType": "timestamp"},
    "a": {"logicalType": "array", "items": {"logicalType": "integer"}},
}


@pytest.fixture
def contract_with(contract_of) -> Callable[..., Contract]:
    """Creates a contract with a column of each kind, and a check of one of them, or of the table without `column`."""

    def make(check: dict[str, Any], column: str | None = None) -> Contract:
        properties = [
            {"name": name, **keys, **({"quality": [check]} if name == column else {})} for name, keys in COLUMNS.items()
        ]
        return contract_of(*properties, **({} if column else {"quality": [check]}))

    return make


@pytest.mark.parametrize(
    ("column", "check", "rule"),
    [
        ("s", library("nullValues", **NONE), Rule(target="s", kind="required")),
        ("a", library("nullValues", **NONE), Rule(target="a", kind="required")),
        ("s", library("duplicateValues", **NONE), Rule(target="s", kind="unique")),
        ("s", library("invalidValues", {"pattern": "^a"}, **NONE), Rule(target="s", kind="pattern", pattern="^a")),
        (
            "b",
            library("invalidValues", {"validValues": [True]}, **NONE),
            Rule(target="b", kind="in_set", values=(True,)),
        ),
        (
            "s",
            library("missingValues", {"missingValues": [None, "", "it's"]}, **NONE),
            Rule(
                target="s",
                kind="expression",
                expression="\"s\" IS NOT NULL AND \"s\" NOT IN ('', 'it''s')",
                columns=("s",),
            ),
        ),
        (
            "i",
            library("missingValues", {"missingValues": [-1]}, **NONE),
            Rule(target="i", kind="expression", expression='"i" NOT IN (-1)', columns=("i",)),
        ),
        (
            "d",
            library("missingValues", {"missingValues": ["1900-01-01"]}, **NONE),
            Rule(target="d", kind="expression", expression="\"d\" NOT IN (DATE '1900-01-01')", columns=("d",)),
        ),
        ("s", library("missingValues", {"missingValues": [None]}, **NONE), Rule(target="s", kind="required")),
        (
            "f",
            own("between", minimum=0, exclusiveMaximum=1),
            Rule(target="f", kind="between", low=0, high=1, strict_high=True),
        ),
        (
            "s",
            own("length", minLength=2, severity="warning"),
            Rule(target="s", kind="length", low=2, severity="warning"),
        ),
        (
            "i",
            own("expression", expression="f > i"),
            Rule(target="i", kind="expression", expression="f > i", columns=("f", "i")),
        ),
        (
            "i",
            own("distribution", divergence="psi", reference="train", mustBeLessThan=0.2),
            Rule(target="i", kind="distribution", divergence="psi", reference="train", high=0.2, strict_high=True),
        ),
        (
            "i",
            sql("SELECT avg({property}) FROM ${object}", mustBeBetween=[1, 2]),
            Rule(target="i", kind="query", expression='SELECT avg("i") FROM {object}', low=1, high=2),
        ),
        (
            None,
            sql("SELECT count(*) FROM {object}", mustBe=3),
            Rule(target="", kind="query", expression="SELECT count(*) FROM {object}", low=3, high=3),
        ),
        (None, library("rowCount", mustBeGreaterThan=2), Rule(target="", kind="num_rows", low=3)),
        (
            None,
            library("duplicateValues", {"properties": ["i", "s"]}, **NONE),
            Rule(target="", kind="unique", columns=("i", "s")),
        ),
        (None, library("duplicateValues", {"properties": ["i"]}, **NONE), Rule(target="i", kind="unique")),
        (
            None,
            own("determines", columns=["i", "f"], target="s"),
            Rule(target="s", kind="determined", columns=("i", "f")),
        ),
        (
            None,
            own("expression", expression="i < f OR s = 'x'"),
            Rule(target="", kind="expression", expression="i < f OR s = 'x'", columns=("i", "f", "s")),
        ),
    ],
)
def test_a_check_becomes_a_rule(contract_with, column, check, rule):
    rules = [candidate for candidate in contract_with(check, column).rules() if candidate.target != "a[]"]
    assert rules == [rule]
    assert rules[0].sentence


def test_a_check_of_type_text_is_not_a_rule(contract_with):
    check = {"type": "text", "description": "Fares are as they were paid."}
    contract = contract_with(check)
    assert [rule.target for rule in contract.rules()] == ["a[]"]
    assert [str(item) for item in contract.unchecked] == [
        "text check 'Fares are as they were paid.': a text is for people"
    ]


@pytest.mark.parametrize(
    ("keys", "tolerance"),
    [
        ({"mustBe": 0}, None),
        ({"mustBeLessOrEqualTo": 0}, None),
        ({"mustBeLessThan": 1}, None),
        ({"mustBeBetween": [0, 0]}, None),
        ({"mustBe": 0, "unit": "percent"}, 0.0),
        ({"mustBeLessOrEqualTo": 1, "unit": "percent"}, 0.01),
        ({"mustBeLessThan": 1, "unit": "percent"}, math.nextafter(0.01, 0)),
        ({"mustBeLessThan": 100, "unit": "percent"}, math.nextafter(1, 0)),
        ({"mustBeBetween": [0, 2.5], "unit": "percent"}, 0.025),
    ],
)
def test_a_tolerance_is_a_share_of_the_rows(contract_with, keys, tolerance):
    assert contract_with(library("nullValues", **keys), "s").rules()[0].tolerance == tolerance


def test_the_tolerance_of_an_exclusive_limit_is_just_below_it(contract_with):
    tolerance = contract_with(library("nullValues", mustBeLessThan=1, unit="percent"), "s").rules()[0].tolerance
    assert tolerance is not None
    assert 99 / 10_000 <= tolerance < 100 / 10_000


@pytest.mark.parametrize(
    ("column", "check", "reason"),
    [
        ("s", library("nullValues"), "needs mustBe: 0, or mustBeLessOrEqualTo"),
        ("s", library("nullValues", mustBe=0, mustBeLessThan=5), "and no more"),
        ("s", {"mustBe": 0}, "a library metric needs the key metric"),
        ("s", {"type": "text", "description": "a", "mustBe": 0}, "remove its mustBe… keys"),
        ("s", {"type": "sql", "mustBe": 0}, "needs the key query"),
        ("s", {"type": "custom", "engine": "bloomery"}, "needs the key implementation"),
        ("s", {"metric": "nullValues", "query": "SELECT 1", "mustBe": 0}, "query has no meaning for a library metric"),
        ("s", own("determines", columns=["i"], target="s"), "belongs to the schema object"),
        ("s", own("between", minimum=1), "between is for integer, number, not for string"),
        ("i", own("between"), "between needs minimum"),
        ("i", own("between", minimum=2, maximum=1), "no value can be at least 2 and at most 1"),
        ("i", own("between", minimum=2**53), "2\\*\\*53"),
        ("i", own("length", minLength=1), "length is for string"),
        ("s", own("length"), "length needs"),
        ("s", own("length", minLength=2, maxLength=1), "no value can be"),
        ("i", own("betwen", minimum=1), "betwen"),
        ("i", own("expression", expression="f > 1"), "does not read the column"),
        ("i", own("expression", expression="i > s"), "compares i, a whole number, with s, text"),
        ("m", own("distribution", divergence="psi", reference="r", mustBeLessThan=1), "not for timestamp"),
        ("i", own("distribution", divergence="js", reference="r", mustBeLessThan=1), "'psi' or 'kl'"),
        ("i", own("distribution", divergence="kl", reference="../r", mustBeLessThan=1), "pattern"),
        ("i", own("distribution", divergence="kl", reference="r"), "needs one of the mustBe"),
        ("i", own("distribution", divergence="kl", reference="r", mustBeGreaterThan=1), "limit it by mustBeLessThan"),
        ("i", own("distribution", divergence="kl", reference="r", mustBeLessThan=0), "above 0"),
        (None, own("between", minimum=1), "between belongs to a column"),
        (None, own("determines", columns=["i"], target="i"), "cannot be determined by itself"),
        (None, own("determines", columns=["x"], target="i"), "there is no column x"),
        (None, own("expression", expression="x > 1"), "there is no column x"),
        (None, own("expression", expression="i > 'a'"), "compares i, a whole number, with 'a', text"),
        (None, own("expression", expression="i >"), "is not valid SQL"),
        (None, sql("SELECT count(*) FROM {object}"), "to compare with"),
        (None, sql("SELECT count(*) FROM {object}", mustBeGreaterThan=3, mustBeLessThan=3), "no number can be"),
    ],
)
def test_an_invalid_check_is_refused(contract_with, column, check, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_with(check, column)


@pytest.mark.parametrize(
    ("column", "check", "reason"),
    [
        ("s", library("nullValues", mustBe=5), "use mustBe: 0 or unit: percent"),
        ("s", library("nullValues", mustBeLessThan=5), "few in a large one"),
        ("s", library("nullValues", mustBe=5, unit="percent"), "use mustBe: 0 or unit: percent"),
        ("s", library("nullValues", mustBeGreaterThan=5), "needs mustBe: 0"),
        ("s", library("nullValues", mustBeLessThan=0), "use mustBe: 0"),
        ("s", library("nullValues", mustBeLessOrEqualTo=100, unit="percent"), "lets every row break"),
        ("s", library("nullValues", mustNotBe=0), "mustNotBe and mustNotBeBetween are not supported"),
        ("s", library("nullValues", {"validValues": ["a"]}, **NONE), "validValues has no meaning for nullValues"),
        ("s", {"type": "text"}, "a text is for people"),
        (
            "s",
            {"type": "custom", "engine": "soda", "implementation": {"rule": "length", "maxLength": 1}},
            "is not supported; use engine: bloomery",
        ),
        ("s", library("invalidValues", {"validValues": ["a"], "pattern": "a"}, **NONE), "and only one"),
        ("s", library("invalidValues", {"pattern": "("}, **NONE), "is not a regular expression"),
        ("i", library("invalidValues", {"pattern": "a"}, **NONE), "pattern has no meaning for integer"),
        ("i", library("invalidValues", {"validValues": [1, "2"]}, **NONE), "'2' is not a value of type integer"),
        ("i", library("invalidValues", {"validValues": [1.5]}, **NONE), "1.5 is not a value of type integer"),
        ("i", library("invalidValues", {"validValues": [True]}, **NONE), "True is not a value of type integer"),
        (
            "s",
            library("invalidValues", {"validValues": [False, "yes"]}, **NONE),
            "False is not a value of type string",
        ),
        ("d", library("invalidValues", {"validValues": ["2024-02-30"]}, **NONE), "is not a value of type date"),
        ("m", library("invalidValues", {"validValues": ["2024-02-20"]}, **NONE), "not for timestamp"),
        ("a", library("duplicateValues", **NONE), "not for array"),
        ("i", library("missingValues", {"missingValues": ["N/A"]}, **NONE), "remove it from missingValues"),
        ("s", library("duplicateValues", {"properties": ["s"]}, **NONE), "belongs to the schema object"),
        (None, library("nullValues", **NONE), "nullValues belongs to a column"),
        (None, library("duplicateValues", **NONE), "needs arguments.properties"),
        (None, library("duplicateValues", {"properties": ["x", "i"]}, **NONE), "there is no column x"),
        (None, library("duplicateValues", {"properties": ["i", "i"]}, **NONE), "column i is named twice"),
        (None, sql("SELECT count(*) FROM {object}", mustBe=1, unit="percent"), "not percent"),
        (None, sql("SELECT 1", mustBe=1), "does not read the table {object}"),
        (None, sql("SELECT i, f FROM {object}", mustBe=1), "one SELECT of one number"),
        (None, sql("DROP TABLE {object}", mustBe=1), "one SELECT of one number"),
        (None, sql("SELECT max(x) FROM {object}", mustBe=1), "reads x, which is not a column"),
        (None, sql("SELECT max(i) FROM {object}, users", mustBe=1), "reads users"),
        (None, sql("SELECT max(i) FROM {object}, read_csv('a.csv')", mustBe=1), "it can only read {object}"),
        (None, sql("SELECT max({property}) FROM {object}", mustBe=1), "this check belongs to the table"),
        (None, sql("SELECT max(i) FROM {object} WHERE s = '{table}'", mustBe=1), "is not a known placeholder"),
    ],
)
def test_a_check_that_cannot_be_carried_out_is_listed(contract_with, column, check, reason):
    contract = contract_with(check, column)
    (item,) = contract.unchecked
    assert item.where == (column or "")
    assert re.search(reason, item.sentence)
    assert [rule.target for rule in contract.rules()] == ["a[]"]


@pytest.mark.parametrize(
    ("severity", "expected"),
    [("error", "error"), ("critical", "error"), ("high", "error"), ("Warning", "warning"), ("info", "warning")],
)
def test_the_severity_of_a_rule_is_error_or_warning(contract_with, severity, expected):
    assert contract_with(library("nullValues", **NONE, severity=severity), "s").rules()[0].severity == expected


def test_a_query_can_use_subqueries_of_the_table(contract_with):
    query = (
        "WITH c AS (SELECT s, count(*) AS n FROM {object} GROUP BY s) SELECT max(n) FROM c JOIN {object} AS o USING (s)"
    )
    assert contract_with(sql(query, mustBeLessThan=5)).rules()[0].expression == query
