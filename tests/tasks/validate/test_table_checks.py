"""Rules about the table: the same answer as plain Python, on any type, name and size."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import ContractBroken
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.distributions import Reference
from bloomery.data_contracts.validation.expectation_suite import RuleCount
from bloomery.tasks.infrastructure.parquet import write_rows
from bloomery.tasks.validate.table_checks import TableCheck, check_table_rules, latest_moment
from tests.examples import examples

Ask = Callable[..., list[TableCheck]]


@pytest.fixture
def asked(home: Path) -> Ask:
    """Asks the rules about the table of rows that are given as columns."""

    def ask(contract: Contract, **columns: Any) -> list[TableCheck]:
        path = home / "rows.parquet"
        home.mkdir(exist_ok=True)
        schema = arrow_schema(contract.columns)
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        write_rows(path, schema, [pa.RecordBatch.from_arrays(arrays, schema=schema)])
        return list(check_table_rules(path, contract, "a test"))

    return ask


def rows_of(found: TableCheck, num_rows: int) -> list[int]:
    assert found.rows is not None
    assert found.result.num_violations == found.rows.num_set
    rows: list[int] = found.rows.between(0, num_rows).nonzero()[0].tolist()
    return rows


def determines(target: str, *columns: str, **keys: Any) -> dict[str, Any]:
    own = {"rule": "determines", "columns": list(columns), "target": target}
    return {"type": "custom", "engine": "bloomery", "implementation": own, **keys}


def together(*columns: str) -> dict[str, Any]:
    return {"metric": "duplicateValues", "mustBe": 0, "arguments": {"properties": list(columns)}}


def query(text: str, **limits: Any) -> dict[str, Any]:
    return {"type": "sql", "query": text, **limits}


def duplicates(*columns: Sequence[Any]) -> list[int]:
    """The rows whose values another row has too; a row with a null is not asked."""
    keys = list(zip(*columns, strict=True))
    counts = Counter(key for key in keys if None not in key)
    return [row for row, key in enumerate(keys) if counts[key] > 1]


def undetermined(target: Sequence[Any], *columns: Sequence[Any]) -> list[int]:
    """The rows without the most frequent target for their key, and all where two are as frequent."""
    groups: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for row, (value, *key) in enumerate(zip(target, *columns, strict=True)):
        if value is not None and None not in key:
            groups[tuple(key)].append((row, value))
    wrong = []
    for members in groups.values():
        counts = Counter(value for _, value in members)
        most = max(counts.values())
        winners = [value for value, count in counts.items() if count == most]
        wrong += [row for row, value in members if len(winners) > 1 or value != winners[0]]
    return sorted(wrong)


def column(name: str, logical: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "logicalType": logical, **keys}


# Columns of each type with few values, so that rows meet. The first has what SQL would quote.
VALUES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "integer": ({"logicalType": "integer"}, [0, 1, 2**62, 2**62 + 1, -(2**63)]),
    "narrow": ({"logicalType": "integer", "physicalType": "uint8"}, [0, 1, 255]),
    "real": ({"logicalType": "number"}, [0.0, -0.0, 1.5, 1e300, 0.1]),
    "float32": ({"logicalType": "number", "physicalType": "float32"}, [0.0, -0.0, 1.5]),
    "text": (
        {"logicalType": "string"},
        ["", " ", "a", "A", "\u00e4", "a\u0308", "\U0001f600", "'", '"', "a\x00b", "a\x00"],
    ),
    "truth": ({"logicalType": "boolean"}, [True, False]),
    "day": ({"logicalType": "date"}, [dt.date(1, 1, 1), dt.date(2024, 2, 29)]),
    "time": (
        {"logicalType": "timestamp"},
        [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 1, 1, tzinfo=dt.UTC)],
    ),
}


def cells(kind: str, num: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | st.sampled_from(VALUES[kind][1]), min_size=num, max_size=num)


@pytest.mark.parametrize("kind", VALUES)
@settings(
    deadline=None,
    max_examples=examples(12),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_uniqueness_and_dependencies_are_those_of_plain_python(contract_of, asked, kind, data):
    other = data.draw(st.sampled_from(sorted(VALUES)))
    num = data.draw(st.integers(1, 14))
    v, w = data.draw(cells(kind, num)), data.draw(cells(other, num))
    contract = contract_of(
        {"name": "v", **VALUES[kind][0], "unique": True},
        {"name": "w", **VALUES[other][0]},
        quality=[together("v", "w"), determines("w", "v"), determines("v", "w")],
    )
    both, w_of_v, v_of_w, alone = asked(contract, v=v, w=w)
    assert rows_of(alone, num) == duplicates(v)
    assert rows_of(both, num) == duplicates(v, w)
    assert rows_of(w_of_v, num) == undetermined(w, v)
    assert rows_of(v_of_w, num) == undetermined(v, w)
    assert alone.result.num_checked == sum(cell is not None for cell in v)


def test_several_columns_determine_one(contract_of, asked):
    contract = contract_of(
        *(column(name, "integer") for name in "abc"), quality=[determines("c", "a", "b"), determines("c", "a")]
    )
    a, b, c = [1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 1, 1], [7, 7, 8, 9, 1, 2]
    first, second = asked(contract, a=a, b=b, c=c)
    assert rows_of(first, 6) == undetermined(c, a, b) == [2, 4, 5]
    assert rows_of(second, 6) == undetermined(c, a) == [2, 3, 4, 5]


def test_names_that_sql_reserves_or_takes_for_one_are_columns_like_others(contract_of, asked):
    names = ["select", "a", "A", "position", "rows", "cells", "c0", "c1", "Order"]
    contract = contract_of(
        *(column(name, "integer") for name in names),
        quality=[determines("A", "select"), determines("a", "select"), together("rows", "cells"), together("c0", "c1")],
    )
    same = {"select": [1, 1], "position": [1, 2], "rows": [5, 5], "cells": [1, 1], "Order": [1, 2]}
    capital, small, pair, last = asked(contract, **same, a=[1, 2], A=[1, 1], c0=[1, 1], c1=[1, 2])
    assert [rows_of(found, 2) for found in (capital, small, pair, last)] == [[], [0, 1], [0, 1], []]


def test_the_one_name_that_duckdb_needs_is_refused_in_words(contract_of, asked):
    contract = contract_of(column("File_Row_Number", "integer", unique=True))
    with pytest.raises(ContractBroken, match="File_Row_Number") as caught:
        asked(contract, File_Row_Number=[1])
    assert "rename" in caught.value.remedy
    assert asked(contract_of(column("file_row_number", "integer", required=True)), file_row_number=[1]) == []


def test_arrays_can_be_part_of_a_key(contract_of, asked):
    contract = contract_of(
        column("l", "array", items={"logicalType": "number"}), column("n", "integer"), quality=[together("l", "n")]
    )
    lists = [[1.0], [1.0], [1.0, 2.0], [], [], None, None]
    (found,) = asked(contract, l=lists, n=[1, 1, 1, 2, 2, 3, 3])
    assert rows_of(found, 7) == [0, 1, 3, 4]


def test_no_row_and_one_row_break_nothing(contract_of, asked):
    contract = contract_of(
        column("v", "integer", unique=True),
        column("w", "integer"),
        quality=[determines("w", "v"), query("SELECT count(*) FROM {object}", mustBeLessThan=2)],
    )
    for num in (0, 1):
        assert [found.result.num_violations for found in asked(contract, v=[1] * num, w=[1] * num)] == [0, 0, 0]


def one(found: list[TableCheck]) -> RuleCount:
    (only,) = found
    assert only.rows is None
    return only.result


@pytest.mark.parametrize(
    ("text", "limits", "told", "is_broken"),
    [
        ("SELECT sum(v) FROM {object}", {"mustBe": 6}, "6", False),
        ("SELECT avg(v) FROM {object}", {"mustBeLessThan": 2}, "2", True),
        ("SELECT max(v) > 2 FROM {object}", {"mustBe": 1}, "1", False),
        ("SELECT sum(v)::hugeint * 1000000000000000000000 FROM {object}", {"mustBeGreaterThan": 1}, "6e+21", False),
        ("SELECT v FROM {object} WHERE v > 5", {"mustBe": 1}, "no value", True),
        ("SELECT max(v) FROM {object} WHERE v > 5", {"mustBe": 1}, "no value", True),
        ("SELECT 'nan'::double + sum(v) FROM {object}", {"mustBeLessThan": 9}, "nan", True),
        ("SELECT 1 / (sum(v) - 6) FROM {object}", {"mustBeLessThan": 9}, "inf", True),
        ("WITH big AS (SELECT v FROM {object} WHERE v > 1) SELECT count(*) FROM big", {"mustBe": 2}, "2", False),
    ],
)
def test_a_query_gives_one_number_that_is_compared(contract_of, asked, text, limits, told, is_broken):
    found = one(asked(contract_of(column("v", "integer"), quality=[query(text, **limits)]), v=[1, 2, 3]))
    assert (found.observed, bool(found.num_violations)) == (told, is_broken)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 % (sum(v) - 6)::int FROM {object}",
        "SELECT sum(v)::tinyint * 1000::tinyint FROM {object}",
        "SELECT max(s)::int FROM {object}",
        "SELECT max(s) FROM {object}",
        "SELECT list(v) FROM {object}",
        "SELECT date '2024-01-01' FROM {object}",
        "SELECT sum(s) FROM {object}",
    ],
)
def test_a_query_without_an_answer_breaks_the_contract_by_name(contract_of, asked, text):
    contract = contract_of(column("v", "integer"), column("s", "string"), quality=[query(text, mustBe=1)])
    with pytest.raises(ContractBroken, match="the query fails") as caught:
        asked(contract, v=[1, 2, 3], s=["a", "secret", "c"])
    assert text.replace("{object}", "").split("FROM")[0].strip() in caught.value.found
    assert caught.value.where == "a test"


def test_a_number_about_a_person_is_told_to_no_one(contract_of, asked):
    hidden = {"customProperties": [{"property": "personal", "value": "hash"}]}
    for text in ("SELECT max(pay) FROM {object}", "SELECT max(x) FROM (SELECT PAY AS x FROM {object})"):
        contract = contract_of(column("pay", "integer", **hidden), quality=[query(text, mustBeLessThan=5)])
        found = one(asked(contract, pay=[987654]))
        assert found.num_violations == 1
        assert "987654" not in str(found)
    harmless = query("SELECT count(*) FROM {object}", mustBe=1)
    assert one(asked(contract_of(column("pay", "integer", **hidden), quality=[harmless]), pay=[5])).observed == "1"
    failing = query("SELECT max(name)::int FROM {object}", mustBe=1)
    contract = contract_of(column("name", "string", **hidden), quality=[failing])
    with pytest.raises(ContractBroken) as caught:
        asked(contract, name=["secret"])
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_sum_of_floats_is_the_same_each_time(contract_of, asked):
    text = "SELECT sum(v) - 1e16 FROM {object}"
    contract = contract_of(column("v", "number"), quality=[query(text, mustBeGreaterThan=0)])
    values = [1e16, *[0.1 * number for number in range(200_000)]]
    assert len({one(asked(contract, v=values)).observed for _ in range(3)}) == 1


def fresh(value: float, unit: str = "d", element: str = "t") -> dict[str, Any]:
    return {"property": "freshness", "value": value, "unit": unit, "element": element}


@pytest.mark.parametrize(
    ("ages_h", "is_broken", "told"),
    [
        ([1, 500], False, ""),
        ([49, 500], True, ""),
        ([-23, 500], False, ""),  # a clock that is ahead, or a day that began further east
        ([-25, 1], True, "in the future"),
        ([None], True, "no value"),
        ([], True, "no value"),
    ],
)
def test_the_newest_moment_must_be_young_and_must_have_come(contract_of, asked, ages_h, is_broken, told):
    now = dt.datetime.now(dt.UTC)
    moments = [None if age is None else now - dt.timedelta(hours=age) for age in ages_h]
    contract = contract_of(column("t", "timestamp"), slaProperties=[fresh(2)])
    found = one(asked(contract, t=moments))
    assert bool(found.num_violations) == is_broken
    assert told in (found.observed or "")


def test_a_date_is_as_old_as_its_beginning(contract_of, asked, home):
    contract = contract_of(column("t", "date"), slaProperties=[fresh(3)])
    today = dt.datetime.now(dt.UTC).date()
    for days, is_broken in ((0, False), (1, False), (-2, False), (-4, True), (3, True)):
        found = one(asked(contract, t=[today + dt.timedelta(days=days), dt.date(1999, 1, 1)]))
        assert bool(found.num_violations) == is_broken, days
    moment = latest_moment(home / "rows.parquet", "t")
    assert moment == dt.datetime.combine(today + dt.timedelta(days=3), dt.time(), dt.UTC)


def test_a_distribution_is_compared_with_its_reference(contract_of, asked):
    own = {"rule": "distribution", "divergence": "psi", "reference": "before"}
    check = {"type": "custom", "engine": "bloomery", "implementation": own, "mustBeLessThan": 0.1}
    shares = {"values": ["a", "b"], "shares": [0.5, 0.5]}
    reference = Reference.model_validate({"columns": {"v": shares}})
    contract = contract_of(column("v", "string", quality=[check]), references={"before": reference})
    same, other, none = (one(asked(contract, v=values)) for values in (["a", "b"], ["a", "c", None], []))
    assert [bool(found.num_violations) for found in (same, other, none)] == [False, True, True]
    assert (same.observed, none.observed) == ("0", "no value")


def test_a_path_may_hold_what_duckdb_takes_for_a_pattern(contract_of, tmp_path, home):
    contract = contract_of(column("v", "integer", unique=True))
    schema = arrow_schema(contract.columns)
    path = tmp_path / "a[1]*?'x" / "rows.parquet"
    path.parent.mkdir()
    write_rows(path, schema, [pa.RecordBatch.from_arrays([pa.array([1, 1])], schema=schema)])
    (found,) = check_table_rules(path, contract, "a test")
    assert found.result.num_violations == 2
