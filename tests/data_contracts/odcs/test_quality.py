"""The quality checks of a contract: the rules that they come to, and what is refused with file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bloomery.data_contracts.errors import ContractInvalid, DataMissing
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.odcs.rules import Rule

COLUMNS: dict[str, dict[str, Any]] = {
    "i": {"logicalType": "integer"},
    "f": {"logicalType": "number"},
    "s": {"logicalType": "string"},
    "b": {"logicalType": "boolean"},
    "d": {"logicalType": "date"},
    "m": {"logicalType": "timestamp"},
    "a": {"logicalType": "array", "items": {"logicalType": "integer"}},
}
NONE = {"mustBe": 0}


def own(rule: str, **keys: Any) -> dict[str, Any]:
    more = {
        key: keys.pop(key)
        for key in ("severity", "unit", *(key for key in list(keys) if key.startswith("mustBe")))
        if key in keys
    }
    return {"type": "custom", "engine": "bloomery", "implementation": {"rule": rule, **keys}, **more}


def library(metric: str, arguments: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {"metric": metric, **({"arguments": arguments} if arguments else {}), **keys}


def sql(query: str, **keys: Any) -> dict[str, Any]:
    return {"type": "sql", "query": query, **keys}


@pytest.fixture
def contract_with(contract_of) -> Callable[..., Contract]:
    """A contract of one column of each kind; a check for a column of it, or for the table where no column is given."""

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
def test_a_check_comes_to_a_rule(contract_with, column, check, rule):
    found = [one for one in contract_with(check, column).rules() if one.target != "a[]"]
    assert found == [rule]
    assert found[0].sentence


def test_a_check_of_type_text_is_for_people(contract_with):
    check = {"type": "text", "description": "Fares are as they were paid."}
    assert [rule.target for rule in contract_with(check).rules()] == ["a[]"]


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


def test_a_share_just_below_a_limit_is_below_it(contract_with):
    tolerance = contract_with(library("nullValues", mustBeLessThan=1, unit="percent"), "s").rules()[0].tolerance
    assert tolerance is not None
    assert 99 / 10_000 <= tolerance < 100 / 10_000


@pytest.mark.parametrize(
    ("column", "check", "reason"),
    [
        ("s", library("nullValues"), "needs mustBe: 0, or mustBeLessOrEqualTo"),
        ("s", library("nullValues", mustBe=5), "use mustBe: 0 or unit: percent"),
        ("s", library("nullValues", mustBeLessThan=5), "few in a large one"),
        ("s", library("nullValues", mustBe=5, unit="percent"), "use mustBe: 0 or unit: percent"),
        ("s", library("nullValues", mustBeGreaterThan=5), "needs mustBe: 0"),
        ("s", library("nullValues", mustBe=0, mustBeLessThan=5), "and no more"),
        ("s", library("nullValues", mustBeLessThan=0), "use mustBe: 0"),
        ("s", library("nullValues", mustBeLessOrEqualTo=100, unit="percent"), "lets every row break"),
        ("s", library("nullValues", mustNotBe=0), "mustNotBe and mustNotBeBetween are not supported"),
        ("s", library("nullValues", **NONE, severity="high"), "'error' or 'warning'"),
        ("s", library("nullValues", {"validValues": ["a"]}, **NONE), "validValues has no meaning for nullValues"),
        ("s", {"mustBe": 0}, "a library metric needs the key metric"),
        ("s", {"type": "text"}, "needs the key description"),
        ("s", {"type": "text", "description": "a", "mustBe": 0}, "nothing to compare"),
        ("s", {"type": "sql", "mustBe": 0}, "needs the key query"),
        ("s", {"type": "custom", "engine": "bloomery"}, "needs the key implementation"),
        (
            "s",
            {"type": "custom", "engine": "soda", "implementation": {"rule": "length", "maxLength": 1}},
            "is not supported; use engine: bloomery",
        ),
        ("s", {"metric": "nullValues", "query": "SELECT 1", "mustBe": 0}, "query has no meaning for a library metric"),
        ("s", library("invalidValues", {"validValues": ["a"], "pattern": "a"}, **NONE), "and only one"),
        ("s", library("invalidValues", {"pattern": "("}, **NONE), "is not a regular expression"),
        ("i", library("invalidValues", {"pattern": "a"}, **NONE), "pattern has no meaning for integer"),
        ("i", library("invalidValues", {"validValues": [1, "2"]}, **NONE), "'2' is not a value of type integer"),
        ("i", library("invalidValues", {"validValues": [1.5]}, **NONE), "1.5 is no valid value"),
        ("i", library("invalidValues", {"validValues": [True]}, **NONE), "True is no valid value"),
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
        (None, library("nullValues", **NONE), "nullValues belongs to a column"),
        (None, own("between", minimum=1), "between belongs to a column"),
        (None, library("duplicateValues", **NONE), "needs arguments.properties"),
        (None, library("duplicateValues", {"properties": ["x", "i"]}, **NONE), "there is no column x"),
        (None, library("duplicateValues", {"properties": ["i", "i"]}, **NONE), "column i is named twice"),
        (None, own("determines", columns=["i"], target="i"), "cannot be determined by itself"),
        (None, own("determines", columns=["x"], target="i"), "there is no column x"),
        (None, own("expression", expression="x > 1"), "there is no column x"),
        (None, own("expression", expression="i > 'a'"), "compares i, a whole number, with 'a', text"),
        (None, own("expression", expression="i >"), "is not valid SQL"),
        (None, sql("SELECT count(*) FROM {object}"), "to compare with"),
        (None, sql("SELECT count(*) FROM {object}", mustBe=1, unit="percent"), "not percent"),
        (None, sql("SELECT count(*) FROM {object}", mustBeGreaterThan=3, mustBeLessThan=3), "no number can be"),
        (None, sql("SELECT 1", mustBe=1), "does not read the table {object}"),
        (None, sql("SELECT i, f FROM {object}", mustBe=1), "one SELECT of one number"),
        (None, sql("DROP TABLE {object}", mustBe=1), "one SELECT of one number"),
        (None, sql("SELECT max(x) FROM {object}", mustBe=1), "reads x, which is not a column"),
        (None, sql("SELECT max(i) FROM {object}, users", mustBe=1), "reads users"),
        (None, sql("SELECT max(i) FROM {object}, read_csv('a.csv')", mustBe=1), "it can only read {object}"),
        (None, sql("SELECT max({property}) FROM {object}", mustBe=1), "this check belongs to none"),
        (None, sql("SELECT max(i) FROM {object} WHERE s = '{table}'", mustBe=1), "is not a known placeholder"),
    ],
)
def test_a_check_that_cannot_be_asked_is_refused(contract_with, column, check, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_with(check, column)


def test_a_query_can_use_subqueries_of_the_table(contract_with):
    query = (
        "WITH c AS (SELECT s, count(*) AS n FROM {object} GROUP BY s) SELECT max(n) FROM c JOIN {object} AS o USING (s)"
    )
    assert contract_with(sql(query, mustBeLessThan=5)).rules()[0].expression == query


def stated(**keys: Any) -> dict[str, Any]:
    return {"name": "v", **keys}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (
            stated(
                logicalType="integer",
                logicalTypeOptions={"minimum": 5},
                quality=[library("invalidValues", {"validValues": [1, 2]}, **NONE)],
            ),
            "no valid value satisfies the other rules",
        ),
        (
            stated(
                logicalType="string",
                logicalTypeOptions={"maxLength": 2},
                quality=[library("invalidValues", {"validValues": ["abc"]}, **NONE)],
            ),
            "no valid value satisfies the other rules",
        ),
        (
            stated(
                logicalType="integer",
                physicalType="uint8",
                quality=[library("invalidValues", {"validValues": [300]}, **NONE)],
            ),
            "no valid value",
        ),
        (
            stated(
                logicalType="string",
                quality=[
                    library("invalidValues", {"validValues": ["a"]}, **NONE),
                    library("invalidValues", {"validValues": ["b"]}, **NONE),
                ],
            ),
            "no valid value",
        ),
        (
            stated(
                logicalType="integer",
                logicalTypeOptions={"minimum": 5},
                quality=[own("between", maximum=4)],
            ),
            "no value can satisfy all of",
        ),
        (
            stated(logicalType="number", quality=[own("between", minimum=5), own("between", exclusiveMaximum=5)]),
            "no value can satisfy all of",
        ),
        (
            stated(
                logicalType="string",
                logicalTypeOptions={"minLength": 5},
                quality=[own("length", maxLength=4)],
            ),
            "no value can satisfy all of",
        ),
        (
            stated(logicalType="string", required=True, quality=[library("nullValues", **NONE)]),
            "v must not be null is stated twice",
        ),
        (
            stated(logicalType="string", unique=True, quality=[library("duplicateValues", **NONE, severity="warning")]),
            "v must be unique is stated twice",
        ),
        (stated(logicalType="array", items={"logicalType": "integer"}, unique=True), "an array cannot be a key"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(contract_of, column, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_of(column)


def test_a_warning_may_be_tighter_than_the_error(contract_of):
    contract = contract_of(
        stated(
            logicalType="integer",
            logicalTypeOptions={"maximum": 100},
            quality=[own("between", maximum=10, severity="warning"), own("between", maximum=-5, severity="warning")],
        )
    )
    assert [(rule.high, rule.severity) for rule in contract.rules()] == [
        (100, "error"),
        (10, "warning"),
        (-5, "warning"),
    ]


def test_columns_that_are_the_key_together_are_unique_together(contract_of):
    contract = contract_of(
        {"name": "day", "logicalType": "date", "primaryKey": True, "primaryKeyPosition": 2},
        {"name": "shop", "logicalType": "string", "primaryKey": True, "primaryKeyPosition": 1},
    )
    assert [(rule.target, rule.kind, rule.columns) for rule in contract.rules()] == [
        ("", "unique", ("shop", "day")),
        ("day", "required", ()),
        ("shop", "required", ()),
    ]
    assert contract.rules()[0].sentence == "shop and day must be unique together"


@pytest.mark.parametrize(
    ("properties", "accessor", "value"),
    [
        ([{"property": "unit", "value": "km/h"}], "unit", "km/h"),
        ([], "unit", None),
        ([{"property": "personal", "value": True}], "personal", "drop"),
        ([{"property": "personal", "value": False}], "personal", None),
        ([{"property": "personal", "value": "hash"}], "personal", "hash"),
        ([], "personal", None),
        ([{"property": "unknownCategory", "value": "other"}], "unknown_category", "other"),
        ([{"property": "owner", "value": {"name": "Ada"}}], "unknown_category", "refuse"),
    ],
)
def test_what_a_column_says_of_itself(contract_of, properties, accessor, value):
    contract = contract_of({"name": "v", "logicalType": "string", "required": True, "customProperties": properties})
    assert getattr(contract.columns[0], accessor) == value
    assert contract.personal_columns == ({"v"} if contract.columns[0].personal else set())


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"property": "units", "value": "km"}, "unknown custom property 'units'; did you mean 'unit'"),
        ({"property": "unknowncategory", "value": "other"}, "did you mean 'unknownCategory'"),
        ({"property": "quarantineLimit", "value": 0.1}, "belongs to the schema object"),
        (
            {"property": "personal", "value": "yes"},
            "personal must be one of true, false, drop, hash, encrypt, not 'yes'",
        ),
        ({"property": "personal", "value": 1}, "personal must be one of"),
        ({"property": "unknownCategory", "value": "drop"}, "unknownCategory must be one of refuse, other"),
        ({"property": "unit", "value": 5}, "unit is a text"),
        ({"property": "owner", "valeu": 5}, "valeu"),
    ],
)
def test_our_custom_properties_are_read_strictly(contract_of, entry, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_of({"name": "v", "logicalType": "string", "required": True, "customProperties": [entry]})


DOCUMENT: dict[str, Any] = {
    "apiVersion": "v3.1.0",
    "kind": "DataContract",
    "id": "made-for-a-test",
    "name": "made",
    "version": "1.0.0",
    "status": "active",
    "schema": [
        {
            "name": "trips",
            "properties": [
                {"name": "pickup", "logicalType": "timestamp", "required": True},
                {"name": "fare", "logicalType": "number", "required": True},
            ],
        }
    ],
}


@pytest.mark.parametrize(
    ("entry", "seconds"),
    [
        ({"property": "freshness", "value": 4, "unit": "d", "element": "trips.pickup"}, 4 * 86400),
        ({"property": "latency", "value": 90, "unit": "m", "element": "pickup"}, 5400),
        ({"property": "LY", "value": 0.5, "unit": "Hours", "element": "trips.pickup"}, 1800),
        ({"property": "freshness", "value": 1, "unit": "y", "element": "pickup"}, 365 * 86400),
    ],
)
def test_how_fresh_the_data_is_is_a_rule(entry, seconds):
    rule = Contract.model_validate({**DOCUMENT, "slaProperties": [entry]}).rules()[-1]
    assert (rule.target, rule.kind, rule.high) == ("pickup", "fresh", seconds)


def test_other_service_levels_are_for_people():
    levels = [{"property": "retention", "value": 3, "unit": "y"}, {"property": "endOfLife", "value": "2042-05-12"}]
    contract = Contract.model_validate({**DOCUMENT, "slaProperties": levels})
    assert "fresh" not in {rule.kind for rule in contract.rules()}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"property": "freshnes", "value": 4, "unit": "d", "element": "pickup"}, "did you mean 'freshness'"),
        ({"property": "freshness", "value": 4, "element": "pickup"}, "needs a unit"),
        ({"property": "freshness", "value": 4, "unit": "fortnights", "element": "pickup"}, "needs a unit"),
        ({"property": "freshness", "value": 4, "unit": "d"}, "needs element"),
        ({"property": "freshness", "value": 4, "unit": "d", "element": "dropoff"}, "there is no column dropoff"),
        ({"property": "freshness", "value": 4, "unit": "d", "element": "fare"}, "but must be date or timestamp"),
        ({"property": "freshness", "value": -4, "unit": "d", "element": "pickup"}, "above 0"),
        ({"property": "freshness", "value": True, "unit": "d", "element": "pickup"}, "above 0"),
        ({"property": "freshness", "value": "4", "unit": "d", "element": "pickup"}, "above 0"),
        ({"property": "freshness", "value": 4, "unit": "d", "element": "pickup, pickup"}, "stated twice"),
        ({"property": "freshness", "value": 4, "unit": "d", "elment": "pickup"}, "elment"),
    ],
)
def test_a_freshness_that_cannot_be_asked_is_refused(entry, reason):
    with pytest.raises(ValidationError, match=reason):
        Contract.model_validate({**DOCUMENT, "slaProperties": [entry]})


def written(folder: Path, *checks: dict[str, Any], table: tuple[dict[str, Any], ...] = ()) -> Path:
    document = json.loads(json.dumps(DOCUMENT))
    document["schema"][0]["properties"][1]["quality"] = list(checks)
    document["schema"][0]["quality"] = list(table)
    path = folder / "made.odcs.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("checks", "table", "key"),
    [
        ((library("invalidValues", {"validValues": ["a"]}, **NONE),), (), "metric: invalidValues"),
        ((), (own("expression", expression="fare > pickup"),), "type: custom"),
        ((own("between", minimum=3, maximun=4),), (), "maximun: 4"),
        ((), (sql("SELECT max(fair) FROM {object}", mustBe=1),), "type: sql"),
    ],
)
def test_an_impossible_rule_is_named_with_file_and_line(tmp_path, checks, table, key):
    path = written(tmp_path, *checks, table=table)
    with pytest.raises(ContractInvalid) as caught:
        read_contract(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if key in text]
    assert caught.value.found.startswith(f"made.odcs.yaml:{line}: ")
    assert caught.value.where == f"{path}:{line}"


DRIFT = own("distribution", divergence="psi", reference="year-2018", mustBeLessThan=0.2)
REFERENCE = {"columns": {"fare": {"edges": [5.0, 10.0], "shares": [0.25, 0.5, 0.125], "nullShare": 0.125}}}


def test_a_reference_is_read_from_beside_the_contract_and_travels_in_it(tmp_path):
    (tmp_path / "year-2018.reference.json").write_text(json.dumps(REFERENCE))
    contract = read_contract(written(tmp_path, DRIFT))
    assert contract.references["year-2018"].columns["fare"].all_shares == (0.25, 0.5, 0.125, 0, 0.125)
    again = Contract.model_validate_json(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    assert again == contract


def test_a_reference_that_is_not_there_is_missing_data(tmp_path):
    with pytest.raises(DataMissing, match=r"year-2018\.reference\.json cannot be read"):
        read_contract(written(tmp_path, DRIFT))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"other": REFERENCE["columns"]["fare"]}, "has no column fare; it has other"),
        ({"fare": {"values": ["a"], "shares": [1.0]}}, "do not fit column fare"),
        ({"fare": {"edges": [5.0, 10.0], "shares": [0.5, 0.5]}}, "3 bins have 2 shares"),
        ({"fare": {"edges": [5.0], "shares": [0.5, 0.4]}}, "add up to 0.9"),
        ({"fare": {"edges": [5.0, 5.0], "shares": [0.5, 0.5, 0.0]}}, "edges must rise"),
        ({"fare": {"shares": [1.0]}}, "either edges or values"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(tmp_path, columns, reason):
    (tmp_path / "year-2018.reference.json").write_text(json.dumps({"columns": columns}))
    with pytest.raises(ContractInvalid, match=reason):
        read_contract(written(tmp_path, DRIFT))
