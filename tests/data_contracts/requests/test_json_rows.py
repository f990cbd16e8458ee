"""The parser of JSON rows: accepted values, and the problems of others."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from tests.data_contracts.requests.json_requests import PAIR, expression, is_accepted
from tests.examples import examples


def problems(parser: JsonRowParser, rows: Any) -> list[dict[str, Any]]:
    with pytest.raises(RowsRefused) as caught:
        parser.parse_table(rows)
    return caught.value.problems


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
def test_a_value_is_either_refused_or_unchanged(contract_of, keys, value):
    parser = JsonRowParser(contract_of({"name": "v", "required": True, **keys}), ["v"])
    try:
        (cell,) = parser.parse_table([{"v": value}])["v"].to_pylist()
    except RowsRefused:
        return
    expected = value[0] if isinstance(value, list) else value
    result = cell[0] if isinstance(cell, list) else cell
    if isinstance(expected, int | float):
        assert result == pytest.approx(expected)
    else:
        assert str(result).startswith(expected[:10])


def test_a_date_and_a_time_are_accepted(contract_of):
    contract = contract_of(
        {"name": "day", "logicalType": "date", "required": True},
        {"name": "time", "logicalType": "timestamp", "required": True},
    )
    table = JsonRowParser(contract, ["day", "time"]).parse_table(
        [{"day": "2024-02-29", "time": "2024-02-29T12:00:00Z"}]
    )
    assert table.num_rows == 1


@pytest.fixture(scope="module")
def image_parser(digits_contract: Contract) -> JsonRowParser:
    return JsonRowParser(digits_contract, ["image"])


def test_a_column_that_the_model_does_not_read_is_refused(image_parser):
    image = [0] * 64
    assert image_parser.parse_table([{"image": image}]).column_names == ["image"]
    (problem,) = problems(image_parser, [{"image": image, "label": 3}])
    assert problem == {"row": 0, "column": "label", "found": "3", "rule": "the contract has no such column"}


def test_the_order_of_rows_is_kept(image_parser):
    rows = [{"image": [shade] * 64} for shade in (3, 1, 2)]
    assert image_parser.parse_table(rows).to_pylist() == rows


def test_a_missing_column_is_named(image_parser):
    (problem,) = problems(image_parser, [{"image": [0] * 64}, {}])
    assert problem == {"row": 1, "column": "image", "found": "no value", "rule": "the column is required"}


def test_every_problem_has_its_row_and_element(image_parser):
    reported = problems(image_parser, [{"image": [0] * 64}, {"image": [0, -1, 17, *[0] * 61]}])
    assert [(problem["row"], problem["column"], problem["found"]) for problem in reported] == [
        (1, "image[1]", "-1"),
        (1, "image[2]", "17"),
    ]


def test_a_long_value_is_shortened_in_the_problem(image_parser):
    (problem,) = problems(image_parser, [{"image": [0] * 63}])
    assert problem["found"] == "an array of 63 values"
    (problem,) = problems(image_parser, [{"image": "0" * 1000}])
    assert len(problem["found"]) == 80


def test_the_message_names_the_first_problem_and_counts_the_others(image_parser):
    with pytest.raises(RowsRefused) as caught:
        image_parser.parse_table([{"image": [17, 17, 17, *[0] * 61]}])
    assert str(caught.value).startswith("row 0, column image[0]: found 17, but")
    assert str(caught.value).endswith("(and 2 more)")


@pytest.mark.parametrize("value", [True, "5", 5.5, None, [5], {"v": 5}])
def test_only_a_whole_number_is_accepted_as_an_integer(contract_of, value):
    parser = JsonRowParser(contract_of({"name": "v", "logicalType": "integer", "required": True}), ["v"])
    assert is_accepted(parser, {"v": 5})
    assert not is_accepted(parser, {"v": value})


@pytest.mark.parametrize("value", [5.5, 256.0, -1.0, 1e300, float("inf"), float("nan")])
def test_any_other_float_is_refused_with_one_problem(contract_of, quarantined_rows, value):
    contract = contract_of({"name": "v", "logicalType": "integer", "physicalType": "uint8", "required": True})
    (problem,) = problems(JsonRowParser(contract, ["v"]), [{"v": value}])
    assert "whole number" in problem["rule"]
    assert quarantined_rows(pa.table({"v": [value]}), contract)


@pytest.mark.parametrize("value", [True, "5", [5.0]])
def test_only_a_number_is_accepted_as_a_number(contract_of, value):
    parser = JsonRowParser(contract_of({"name": "v", "logicalType": "number", "required": True}), ["v"])
    assert is_accepted(parser, {"v": 5.0})
    assert not is_accepted(parser, {"v": value})


def test_an_optional_column_may_be_missing_or_null(contract_of):
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
    parser = JsonRowParser(contract, names)
    assert parser.parse_table([row]).to_pylist() == [row]
    assert not is_accepted(parser, {f"column_{position}": 0 for position in range(len(names))})


@pytest.mark.parametrize("rows", [[], {}, None, "rows", 5, {"v": 1}, [5], [None], [[1]], [{}], [{1: 2}]], ids=repr)
def test_a_body_that_is_not_a_list_of_rows_is_refused_with_problems(contract_of, rows):
    parser = JsonRowParser(contract_of({"name": "v", "logicalType": "integer", "required": True}), ["v"])
    assert all(set(problem) == {"row", "column", "found", "rule"} for problem in problems(parser, rows))


def test_the_endpoint_documents_the_limits(image_parser):
    image = image_parser.json_schema()["properties"]["image"]
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
def test_every_invalid_body_is_refused_with_problems(image_parser, rows):
    assert problems(image_parser, rows)


def test_a_broken_condition_names_its_columns_and_their_values(contract_of):
    contract = contract_of(*PAIR, quality=[expression("a <= b"), expression("a <> 5")])
    parser = JsonRowParser(contract, ["a", "b", "c"])
    assert problems(parser, [{"a": 1, "b": 2.0}, {"a": 5, "b": 2.0}]) == [
        {"row": 1, "column": "a, b", "found": "a = 5, b = 2.0", "rule": "must satisfy a <= b"},
        {"row": 1, "column": "a", "found": "a = 5", "rule": "must satisfy a <> 5"},
    ]


def test_a_condition_on_a_column_that_the_model_does_not_read_is_ignored(contract_of):
    contract = contract_of(*PAIR, quality=[expression("a <= b")])
    assert JsonRowParser(contract, ["a"]).parse_table([{"a": 7}]).num_rows == 1


def test_a_warning_refuses_no_request(contract_of):
    contract = contract_of(
        {**PAIR[0], "quality": [{"metric": "nullValues", "mustBe": 0, "severity": "warning"}]},
        *PAIR[1:],
        quality=[expression("a <= b", severity="warning")],
    )
    assert JsonRowParser(contract, ["a", "b"]).parse_table([{"a": 7, "b": 1.0}, {"b": 1.0}]).num_rows == 2
