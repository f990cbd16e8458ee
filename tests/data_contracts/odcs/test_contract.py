"""Valid and invalid contracts, and the rules of a contract."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import ContractInvalid, DataMissing
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from tests.examples import examples

NUMBER = {"name": "v", "logicalType": "integer", "required": True}


def test_the_rules_are_in_the_order_of_the_file(digits_contract):
    assert [(rule.target, rule.kind) for rule in digits_contract.rules()] == [
        ("", "num_rows"),
        ("id", "required"),
        ("id", "unique"),
        ("id", "between"),
        ("image", "required"),
        ("image", "num_items"),
        ("image[]", "required"),
        ("image[]", "between"),
        ("label", "required"),
        ("label", "in_set"),
    ]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Rule(target="v", kind="required"), "must not be null"),
        (Rule(target="v", kind="unique"), "must be unique"),
        (Rule(target="v", kind="in_set", values=(1, "b")), "must be one of 1, b"),
        (Rule(target="v", kind="pattern", pattern="^a"), "must match ^a"),
        (Rule(target="v", kind="fits", low=0, high=255), "must be a whole number from 0 to 255"),
        (Rule(target="v", kind="between", low=0), "must be at least 0"),
        (Rule(target="v", kind="between", low=0, high=1, strict_low=True), "must be greater than 0 and at most 1"),
        (Rule(target="v", kind="between", high=1.5, strict_high=True), "must be less than 1.5"),
        (Rule(target="v", kind="length", high=3), "must have at most 3 characters"),
        (Rule(target="v", kind="num_items", low=2, high=2), "must have exactly 2 items"),
        (Rule(target="", kind="num_rows", low=100), "must have at least 100 rows"),
        (Rule(target="", kind="unique", columns=("a", "b")), "a and b must be unique together"),
        (Rule(target="", kind="expression", expression="a\n > b"), "must satisfy a > b"),
        (Rule(target="b", kind="determined", columns=("a",)), "must be determined by a"),
        (Rule(target="v", kind="fresh", high=5400), "newest value must be at most 90 minutes old"),
        (Rule(target="v", kind="fresh", high=86400), "newest value must be at most 1 day old"),
        (Rule(target="v", kind="fresh", high=0.5), "newest value must be at most 0.5 seconds old"),
        (
            Rule(target="", kind="query", expression="SELECT 1", low=1, high=1),
            "result of SELECT 1 must be exactly 1",
        ),
        (
            Rule(target="v", kind="distribution", divergence="psi", reference="may", high=0.2, strict_high=True),
            "psi against may must be less than 0.2",
        ),
    ],
)
def test_every_kind_of_rule_has_a_sentence(rule, sentence):
    assert rule.sentence == sentence


def test_a_rule_about_elements_belongs_to_their_column():
    assert Rule(target="image[]", kind="required", is_of_items=True).column == "image"
    assert Rule(target="image[]", kind="required").column == "image[]"
    assert Rule(target="image", kind="required").column == "image"


@settings(deadline=None, max_examples=examples(200))
@given(
    options=st.dictionaries(
        st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), st.integers(-3, 3), min_size=1
    ),
    value=st.integers(-4, 4),
)
def test_one_rule_combines_all_four_limits(contract_of, options, value):
    try:
        contract = contract_of({"name": "v", "logicalType": "number", "logicalTypeOptions": options})
    except ValidationError:
        reject()
    (rule,) = contract.rules()
    above = rule.low is None or value > rule.low or (value == rule.low and not rule.strict_low)
    below = rule.high is None or value < rule.high or (value == rule.high and not rule.strict_high)
    assert (above and below) == (
        value >= options.get("minimum", value)
        and value <= options.get("maximum", value)
        and value > options.get("exclusiveMinimum", value - 1)
        and value < options.get("exclusiveMaximum", value + 1)
    )


@pytest.mark.parametrize(
    ("check", "limits"),
    [
        ({"mustBe": 5}, (5, 5)),
        ({"mustBeGreaterThan": 5}, (6, None)),
        ({"mustBeGreaterOrEqualTo": 5}, (5, None)),
        ({"mustBeLessThan": 5}, (None, 4)),
        ({"mustBeLessOrEqualTo": 5}, (None, 5)),
        ({"mustBeBetween": [5, 9]}, (5, 9)),
        ({"mustBeGreaterThan": 5, "mustBeLessThan": 9}, (6, 8)),
    ],
)
def test_a_row_count_has_inclusive_limits(contract_of, check, limits):
    rule = contract_of(NUMBER, quality=[{"metric": "rowCount", **check}]).rules()[0]
    assert (rule.kind, (rule.low, rule.high)) == ("num_rows", limits)


def test_a_row_count_with_a_fraction_is_refused_or_rounded_to_the_tighter_limit(contract_of):
    try:
        contract = contract_of(NUMBER, quality=[{"metric": "rowCount", "mustBeGreaterOrEqualTo": 2.5}])
    except ValidationError:
        return
    assert contract.rules()[0].low == 3


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"logicalType": "integer", "logicalTypeOptions": {"minimum": 2, "maximum": 1}}, "no value can be"),
        ({"logicalType": "string", "logicalTypeOptions": {"minLength": 2, "maxLength": 1}}, "no value can be"),
        ({"logicalType": "string", "logicalTypeOptions": {"maxLength": -1}}, "greater than or equal to 0"),
        ({"logicalType": "integer", "logicalTypeOptions": {"pattern": "a"}}, "pattern has no meaning for integer"),
        ({"logicalType": "string", "logicalTypeOptions": {"minimum": 1}}, "minimum has no meaning for string"),
        ({"logicalType": "integer", "items": {"logicalType": "integer"}}, "items is required for arrays"),
    ],
)
def test_an_inconsistent_column_is_refused(contract_of, column, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_of({"name": "v", "required": True, **column})


def invalid_values(limit: int, *values: int) -> dict[str, Any]:
    return {"metric": "invalidValues", "mustBe": limit, "arguments": {"validValues": list(values)}}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"logicalType": "boolean", "logicalTypeOptions": {"maximum": 1}}, "v: maximum has no meaning for boolean"),
        ({"logicalType": "integer", "physicalType": "float64"}, "physicalType of the source: float64"),
        ({"logicalType": "array"}, "v: not read: items is missing"),
        ({"logicalType": "array", "items": {"logicalType": "array"}}, "v: not read: an array of arrays"),
        ({"logicalType": "integer", "quality": [{"metric": "rowCount", "mustBe": 1}]}, "belongs to the schema object"),
        ({"logicalType": "integer", "quality": [{"metric": "invalidValues", "mustBe": 0}]}, "needs arguments"),
        ({"logicalType": "integer", "quality": [invalid_values(1, 1)]}, "mustBe: 0"),
        ({"logicalType": "integer", "quality": [invalid_values(0)]}, "at least 1 item"),
        ({"logicalType": "string", "logicalTypeOptions": {"pattern": "("}}, "is not a regular expression"),
    ],
)
def test_what_cannot_be_checked_of_a_column_is_listed(contract_of, column, reason):
    contract = contract_of({"name": "v", "required": True, **column}, NUMBER | {"name": "w"})
    (sentence,) = map(str, contract.unchecked)
    assert reason in sentence
    assert {rule.kind for rule in contract.rules()} == {"required"}


@pytest.mark.parametrize(
    "column",
    [
        {"logicalType": "integer", "logicalTypeOptions": {"exclusiveMinimum": 5, "exclusiveMaximum": 5}},
        {"logicalType": "integer", "logicalTypeOptions": {"minimum": 5, "exclusiveMaximum": 5}},
        {"logicalType": "number", "logicalTypeOptions": {"exclusiveMinimum": 6, "maximum": 5}},
        {"logicalType": "integer", "physicalType": "uint8", "logicalTypeOptions": {"minimum": 300}},
    ],
    ids=["nothing between", "nothing at the limit", "limits crossed", "outside of the type"],
)
def test_limits_that_no_value_can_satisfy_are_refused(contract_of, column):
    with pytest.raises(ValidationError):
        contract_of({"name": "v", **column})


def test_a_row_count_that_no_table_can_have_is_refused(contract_of):
    with pytest.raises(ValidationError):
        contract_of(NUMBER, quality=[{"metric": "rowCount", "mustBeBetween": [10, 5]}])


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"metric": "rowCount"}, "needs one of the mustBe"),
    ],
)
def test_an_inconsistent_check_of_the_table_is_refused(contract_of, check, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_of(NUMBER, quality=[check])


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"metric": "rowCount", "mustBe": 5, "unit": "percent"}, "not percent"),
        (invalid_values(0, 1), "invalidValues belongs to a column"),
    ],
)
def test_a_check_of_the_table_that_cannot_be_carried_out_is_listed(contract_of, check, reason):
    (item,) = contract_of(NUMBER, quality=[check]).unchecked
    assert item.where == ""
    assert reason in item.sentence


def test_a_contract_without_a_rule_says_that_only_types_are_checked(contract_of):
    contract = contract_of({"name": "v", "logicalType": "integer"})
    assert [str(item) for item in contract.unchecked] == [
        "there is no rule, so all rows pass whose values fit the columns' types"
    ]


def test_a_repeated_column_is_refused(contract_of):
    with pytest.raises(ValidationError, match="column defined twice: v"):
        contract_of(NUMBER, NUMBER)


def test_a_column_with_an_empty_name_is_not_read(contract_of):
    contract = contract_of(NUMBER, {**NUMBER, "name": ""})
    assert [column.name for column in contract.columns] == ["v"]
    (item,) = contract.unchecked
    assert (item.where, "its name is empty" in item.sentence) == ("", True)


ODD_NAMES = [
    "two words",
    "dotted.name",
    "1st",
    "v[]",
    "naïve",
    "V",
    'a"b',
    "{property}",
    "\\1",
    " ",
    "😀",
    "a`b",
    "%",
    "$x$",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_column_may_have_any_name(contract_of, name):
    """The column of integers `v` and an array `v` beside it show that no rule is taken for that of another column."""
    odd = {
        "name": name,
        "logicalType": "integer",
        "required": True,
        "logicalTypeOptions": {"minimum": 1, "multipleOf": 2},
        "quality": [{"metric": "missingValues", "arguments": {"missingValues": [None, 4]}, "mustBe": 0}],
    }
    array = {"name": "v", "logicalType": "array", "items": {"logicalType": "integer", "required": False}}
    contract = contract_of(array, odd)
    parser = JsonRowParser(contract, ["v", name])
    assert parser.parse_table([{"v": [None, 0], name: 2}])[name].to_pylist() == [2]
    for value in (0, 3, 4, None):
        with pytest.raises(RowsRefused) as caught:
            parser.parse_table([{"v": [], name: value}])
        assert {problem["column"] for problem in caught.value.problems} == {name}


def test_the_tables_of_a_contract_have_different_names(digits_contract):
    document = digits_contract.document()
    with pytest.raises(ValidationError, match="table defined twice: digits"):
        Contract.model_validate({**document, "schema": document["schema"] * 2})


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_only_a_contract_of_one_table_has_columns(digits_contract, names):
    document = digits_contract.document()
    tables = [{**document["schema"][0], "name": name} for name in names]
    contract = Contract.model_validate({**document, "schema": tables})
    with pytest.raises(ContractInvalid) as caught:
        _ = contract.columns
    assert ("2 tables: a, b" if names else "no table") in caught.value.found
    with pytest.raises(ContractInvalid, match="no table 'c'"):
        contract.select_table("c")
    for name in names:
        assert contract.select_table(name).columns == digits_contract.columns


@pytest.mark.parametrize("limit", [0, 0.01, 1, 1.0])
def test_the_quarantine_limit_is_a_share(contract_of, limit):
    contract = contract_of(NUMBER, customProperties=[{"property": "quarantineLimit", "value": limit}])
    assert contract.quarantine_limit == limit


@pytest.mark.parametrize("limit", [-0.01, 1.01, True, "0.1", None, float("nan"), [0.1]])
def test_a_quarantine_limit_that_is_not_a_share_is_refused(contract_of, limit):
    with pytest.raises(ValidationError, match="quarantineLimit must be a share"):
        contract_of(NUMBER, customProperties=[{"property": "quarantineLimit", "value": limit}])


def test_the_default_quarantine_limit_is_zero(contract_of):
    assert contract_of(NUMBER, customProperties=[{"property": "owner", "value": 1}]).quarantine_limit == 0


def test_columns_are_found_by_name(digits_contract):
    assert [column.name for column in digits_contract.columns] == ["id", "image", "label"]
    assert digits_contract.column("label") == digits_contract.columns[2]
    assert digits_contract.column("Label") is None


def test_a_contract_survives_json(digits_contract):
    document = digits_contract.model_dump(mode="json", by_alias=True)
    assert Contract.model_validate(document) == digits_contract
    assert Contract.model_validate_json(digits_contract.model_dump_json(by_alias=True)) == digits_contract


def test_a_contract_with_dates_survives_json(contract_of):
    day = dt.date(2024, 2, 1)
    contract = contract_of(
        {
            "name": "v",
            "logicalType": "date",
            "examples": [day],
            "quality": [{"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [day]}}],
        }
    )
    assert Contract.model_validate(contract.model_dump(mode="json", by_alias=True)) == contract


def test_a_contract_cannot_be_changed(digits_contract):
    with pytest.raises(ValidationError):
        digits_contract.version = "2.0.0"


def test_a_missing_contract_file_is_missing_data(tmp_path: Path):
    with pytest.raises(DataMissing, match=r"none\.odcs\.yaml cannot be read"):
        read_contract(tmp_path / "none.odcs.yaml")


def test_an_invalid_contract_file_is_reported_with_its_line(changed_digits):
    path = changed_digits("logicalTypeOptions: {minItems: 64, maxItems: 64}", "logicalTypeOptions: {minItems: many}")
    with pytest.raises(ContractInvalid) as caught:
        read_contract(path)
    line = 1 + path.read_text(encoding="utf-8").splitlines().index("        logicalTypeOptions: {minItems: many}")
    assert f"changed.odcs.yaml:{line}: schema.0.properties.1.logicalTypeOptions.minItems: found 'many'" in str(
        caught.value
    )


def test_a_misspelt_key_is_the_only_problem_reported(changed_digits):
    path = changed_digits("mustBeGreaterOrEqualTo", "mustBeGreaterOrEqualsTo")
    with pytest.raises(ContractInvalid) as caught:
        read_contract(path)
    (problem,) = caught.value.found.splitlines()
    assert problem.endswith("mustBeGreaterOrEqualsTo: unknown key; did you mean 'mustBeGreaterOrEqualTo'?")


def test_a_message_does_not_repeat_the_whole_contract(changed_digits):
    path = changed_digits("value: 0.01", "value: 2")
    with pytest.raises(ContractInvalid, match="quarantineLimit must be a share of the rows") as caught:
        read_contract(path)
    assert "Optical Recognition of Handwritten Digits" not in str(caught.value)
