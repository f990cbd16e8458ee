"""`data.lists` makes lists of texts from texts, columns of 0 and 1, and arrays."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.list_column import ListColumn
from bloomery.tasks.infrastructure.list_texts import split_text
from bloomery.tasks.ingest.list_columns import make_lists
from bloomery.tasks.ingest.readers.base import RowStream


def convert(columns: dict[str, Any], lists: dict[str, Any]) -> pa.Table:
    table = pa.table(columns)
    data = DataSource.model_validate({"source": "rows.parquet", "lists": lists})
    rows = make_lists(RowStream(table.schema, iter(table.to_batches(max_chunksize=2))), data)
    return pa.Table.from_batches(list(rows.batches), rows.schema)


def test_a_text_is_split_at_its_separator_and_a_missing_one_is_an_empty_list():
    texts = ["a; b", "", None, "b;;b ; c"]
    table = convert({"id": range(4), "tags": texts}, {"tags": {"separator": ";"}})
    assert table["tags"].to_pylist() == [["a", "b"], [], [], ["b", "c"]]
    assert table.column_names == ["id", "tags"]


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ('["a, b", "c"]', ["a, b", "c"]),
        ("['a', 'b']", ["a", "b"]),
        ("[]", []),
        ("[1, 2]", ["1", "2"]),
        ("[a, b]", None),
        ("[[1], 2]", None),
        ("a", ["a"]),
        ("  ", []),
    ],
)
def test_a_text_in_brackets_is_json_or_a_list_of_python(text, elements):
    assert split_text(text, ",") == elements


@pytest.mark.parametrize(
    ("text", "separator", "elements"),
    [
        ("[OC];[News]", ";", ["[OC]", "[News]"]),
        ("[OC] , [News]", ",", ["[OC]", "[News]"]),
        ("[deleted]", ";", ["[deleted]"]),
        ("[deleted]", None, ["[deleted]"]),
        ('["a;b"]', ";", ["a;b"]),
        ("[a;b]", ";", None),
        ("[a, b]", ";", None),
        ("[1 2]", ";", None),
        ("['a', b]", ";", None),
        ("a;b", None, ["a;b"]),
    ],
)
def test_brackets_around_single_elements_belong_to_them(text, separator, elements):
    assert split_text(text, separator) == elements


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 3)],
    ids=["list", "large", "fixed"],
)
def test_arrays_have_each_element_once_and_without_white_space(kind):
    rows = [["b", " a", "b"], None, ["a ", None, ""], ["a", "b", "c"]]
    for values, expected in (
        (["a", "b", "c"], [["b", "a"], None, ["a"], ["a", "b", "c"]]),
        (["c"], [[], None, [], ["c"]]),
    ):
        table = convert({"tags": pa.array(rows, kind)}, {"tags": {"values": values}})
        assert table["tags"].to_pylist() == expected


def test_columns_of_0_and_1_become_the_list_of_their_names():
    columns = {
        "red": [1, 0, 1, 0, 2],
        "big": [True, False, None, False, True],
        "old": ["yes", "0", "1", "0.0", "no"],
        "x": [1, 2, 3, 4, 5],
    }
    table = convert(columns, {"tags": {"columns": ["red", "big", "old"]}})
    assert table.column_names == ["x", "tags"]
    # A value that is missing, or neither 0 nor 1, leaves the row without a list.
    assert table["tags"].to_pylist() == [["red", "big", "old"], [], None, [], None]


def test_only_the_named_values_are_kept():
    columns = {"tags": pa.array([["a", "b"], None, ["c", None], []], pa.large_list(pa.string()))}
    table = convert(columns, {"tags": {"values": ["b", "c"]}})
    assert table["tags"].to_pylist() == [["b"], None, ["c"], []]
    numbers = convert({"tags": [[1, 2], [2]]}, {"tags": {"values": ["2"]}})
    assert numbers["tags"].to_pylist() == [["2"], ["2"]]


def test_words_and_their_tags_may_repeat_and_keep_their_places():
    texts = ["the cat and  the dog", "[ laughs ] the", '["the", "the"]', " ", None, "[sic]"]
    options = {"separator": " ", "repeats": True}
    assert convert({"words": texts}, {"words": options})["words"].to_pylist() == [
        ["the", "cat", "and", "the", "dog"],
        ["[", "laughs", "]", "the"],
        ["the", "the"],
        [],
        [],
        ["[sic]"],
    ]
    assert convert({"tags": ["O|O|B-X|O"]}, {"tags": {"separator": "|", "repeats": True}})["tags"].to_pylist() == [
        ["O", "O", "B-X", "O"]
    ]
    tabs = {"separator": "\t", "repeats": True}
    assert convert({"words": ["New York\tis\tbig"]}, {"words": tabs})["words"].to_pylist() == [
        ["New York", "is", "big"]
    ]
    lists = {"tags": [["a", " b", "a", ""], None]}
    assert convert(lists, {"tags": options})["tags"].to_pylist() == lists["tags"]
    with pytest.raises(ValueError, match="`repeats` keeps all elements"):
        DataSource.model_validate({"source": "rows.csv", "lists": {"tags": {"values": ["a"], "repeats": True}}})
    assert "repeats" not in ListColumn(separator=" ").model_dump()  # so that existing recipes keep their keys


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"none": {"separator": ";"}}, "there is no column none"),
        ({"text": {"values": ["a"]}}, "column text has texts, and `lists` names no separator"),
        ({"number": {"separator": ";"}}, "column number has int64"),
        ({"text": {"columns": ["number", "none"]}}, "there is no column none to collect"),
        ({"text": {"columns": ["number", "other"]}}, "the source already has a column text"),
    ],
)
def test_columns_that_do_not_suit_are_errors(lists, message):
    with pytest.raises(RecipeInvalid, match=message):
        convert({"text": ["a"], "number": [1], "other": [0]}, lists)


@pytest.mark.parametrize("options", [{}, {"separator": ";", "columns": ["a", "b"]}])
def test_a_list_comes_from_one_place(options):
    with pytest.raises(ValueError, match="there must be"):
        DataSource.model_validate({"source": "rows.csv", "lists": {"tags": options}})
