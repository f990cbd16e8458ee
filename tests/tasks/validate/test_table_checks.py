"""Rules about the table give the same results as plain Python, for any type, name and size."""

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
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.distributions import Reference
from bloomery.data_contracts.validation.expectation_suite import RuleCount
from bloomery.tasks.infrastructure.parquet import write_rows
from bloomery.tasks.validate.table_checks import TableCheck, check_table_rules, latest_moment
from tests.examples import examples

CheckTable = Callable[..., list[TableCheck]]


@pytest.fixture
def check_table(home: Path) -> CheckTable:
    """Writes rows, given as columns, and checks the rules about the table."""

    def write_and_check(contract: Contract, **columns: Any) -> list[TableCheck]:
        path = home / "rows.parquet"
        home.mkdir(exist_ok=True)
        schema = arrow_schema(contract.columns)
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        write_rows(path, schema, [pa.RecordBatch.from_arrays(arrays, schema=schema)])
        return list(check_table_rules(path, contract, "a test"))

    return write_and_check


def broken_rows(check: TableCheck, num_rows: int) -> list[int]:
    assert check.rows is not None
    assert check.result.num_violations == check.rows.num_set
    rows: list[int] = check.rows.between(0, num_rows).nonzero()[0].tolist()
    return rows


def determines(target: str, *columns: str, **keys: Any) -> dict[str, Any]:
    rule = {"rule": "determines", "columns": list(columns), "target": target}
    return {"type": "custom", "engine": "bloomery", "implementation": rule, **keys}


def unique_together(*columns: str) -> dict[str, Any]:
    return {"metric": "duplicateValues", "mustBe": 0, "arguments": {"properties": list(columns)}}


def query(text: str, **limits: Any) -> dict[str, Any]:
    return {"type": "sql", "query": text, **limits}


def duplicates(*columns: Sequence[Any]) -> list[int]:
    """The rows that share their values with another row; a row with a null does not count."""
    keys = list(zip(*columns, strict=True))
    counts = Counter(key for key in keys if None not in key)
    return [row for row, key in enumerate(keys) if counts[key] > 1]


def undetermined(target: Sequence[Any], *columns: Sequence[Any]) -> list[int]:
    """The rows without the most frequent target for their key; on a tie, all rows of the key."""
    groups: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for row, (value, *key) in enumerate(zip(target, *columns, strict=True)):
        if value is not None and None not in key:
            groups[tuple(key)].append((row, value))
    undetermined_rows = []
    for members in groups.values():
        counts = Counter(value for _, value in members)
        highest_count = max(counts.values())
        winners = [value for value, count in counts.items() if count == highest_count]
        undetermined_rows += [row for row, value in members if len(winners) > 1 or value != winners[0]]
    return sorted(undetermined_rows)


def column(name: str, logical: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "logicalType": logical, **keys}


# Columns of each type with few values, so that rows share them. Texts include what SQL quotes.
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
def test_uniqueness_and_dependencies_agree_with_plain_python(contract_of, check_table, kind, data):
    other_kind = data.draw(st.sampled_from(sorted(VALUES)))
    num = data.draw(st.integers(1, 14))
    v, w = data.draw(cells(kind, num)), data.draw(cells(other_kind, num))
    contract = contract_of(
        {"name": "v", **VALUES[kind][0], "unique": True},
        {"name": "w", **VALUES[other_kind][0]},
        quality=[unique_together("v", "w"), determines("w", "v"), determines("v", "w")],
    )
    pair_check, w_by_v, v_by_w, single_check = check_table(contract, v=v, w=w)
    assert broken_rows(single_check, num) == duplicates(v)
    assert broken_rows(pair_check, num) == duplicates(v, w)
    assert broken_rows(w_by_v, num) == undetermined(w, v)
    assert broken_rows(v_by_w, num) == undetermined(v, w)
    assert single_check.result.num_checked == sum(cell is not None for cell in v)


def test_several_columns_can_determine_a_column(contract_of, check_table):
    contract = contract_of(
        *(column(name, "integer") for name in "abc"), quality=[determines("c", "a", "b"), determines("c", "a")]
    )
    a, b, c = [1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 1, 1], [7, 7, 8, 9, 1, 2]
    first, second = check_table(contract, a=a, b=b, c=c)
    assert broken_rows(first, 6) == undetermined(c, a, b) == [2, 4, 5]
    assert broken_rows(second, 6) == undetermined(c, a) == [2, 3, 4, 5]


def test_names_that_sql_reserves_or_confuses_are_ordinary_columns(contract_of, check_table):
    names = ["select", "a", "A", "position", "rows", "cells", "c0", "c1", "Order"]
    contract = contract_of(
        *(column(name, "integer") for name in names),
        quality=[
            determines("A", "select"),
            determines("a", "select"),
            unique_together("rows", "cells"),
            unique_together("c0", "c1"),
        ],
    )
    columns = {"select": [1, 1], "position": [1, 2], "rows": [5, 5], "cells": [1, 1], "Order": [1, 2]}
    capital, small, pair, last = check_table(contract, **columns, a=[1, 2], A=[1, 1], c0=[1, 1], c1=[1, 2])
    assert [broken_rows(check, 2) for check in (capital, small, pair, last)] == [[], [0, 1], [0, 1], []]


def test_the_column_name_that_duckdb_reserves_is_an_ordinary_column(contract_of, check_table):
    names = ["File_Row_Number", "file_row_number"]
    contract = contract_of(*(column(name, "integer", unique=True) for name in names))
    first, second = check_table(contract, File_Row_Number=[1, 1, 2], file_row_number=[3, 4, 4])
    assert (broken_rows(first, 3), broken_rows(second, 3)) == ([0, 1], [1, 2])
    assert check_table(contract_of(column("file_row_number", "integer", required=True)), file_row_number=[1]) == []


@pytest.mark.parametrize(
    ("text", "observed"),
    [
        ("SELECT max(a) FROM {object}", "2"),
        ('SELECT max("A") - max(a) FROM {object}', "6"),
        ("SELECT max(B) + max(A) FROM {object}", "13"),  # B is the only column of this name, in whatever case
        ('SELECT max("sepal.length") FROM {object}', "7"),
        ("SELECT max(x) FROM (SELECT A AS x FROM {object} WHERE a > 1)", "3"),
        ("SELECT max(A) FROM (SELECT * FROM {object})", "8"),
    ],
)
def test_a_query_tells_apart_columns_that_differ_in_case(contract_of, check_table, text, observed):
    names = ("a", "A", "b", "sepal.length", "A (1)")
    contract = contract_of(*(column(name, "integer") for name in names), quality=[query(text, mustBeGreaterThan=0)])
    columns = {"a": [1, 2], "A": [8, 3], "b": [5, 5], "sepal.length": [7, 0], "A (1)": [0, 0]}
    assert single_count(check_table(contract, **columns)).observed == observed


def test_a_query_whose_column_may_be_one_of_two_is_listed(contract_of):
    for text in ('SELECT max("AB") FROM {object}', "SELECT max(ab) FROM (SELECT v AS ab FROM {object})"):
        names = ("v", "ab", "Ab")
        contract = contract_of(*(column(name, "integer") for name in names), quality=[query(text, mustBe=1)])
        (item,) = [item for item in contract.unchecked if item.sentence.startswith("sql")]
        assert "may be ab or Ab" in item.sentence


def test_arrays_can_be_part_of_a_key(contract_of, check_table):
    contract = contract_of(
        column("l", "array", items={"logicalType": "number"}),
        column("n", "integer"),
        quality=[unique_together("l", "n")],
    )
    lists = [[1.0], [1.0], [1.0, 2.0], [], [], None, None]
    (check,) = check_table(contract, l=lists, n=[1, 1, 1, 2, 2, 3, 3])
    assert broken_rows(check, 7) == [0, 1, 3, 4]


def test_a_table_of_at_most_one_row_keeps_all_rules(contract_of, check_table):
    contract = contract_of(
        column("v", "integer", unique=True),
        column("w", "integer"),
        quality=[determines("w", "v"), query("SELECT count(*) FROM {object}", mustBeLessThan=2)],
    )
    for num in (0, 1):
        assert [check.result.num_violations for check in check_table(contract, v=[1] * num, w=[1] * num)] == [0, 0, 0]


def single_count(checks: list[TableCheck]) -> RuleCount:
    (check,) = checks
    assert check.rows is None
    return check.result


@pytest.mark.parametrize(
    ("text", "limits", "observed", "is_broken"),
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
def test_the_number_of_a_query_is_compared_with_its_limit(contract_of, check_table, text, limits, observed, is_broken):
    count = single_count(check_table(contract_of(column("v", "integer"), quality=[query(text, **limits)]), v=[1, 2, 3]))
    assert (count.observed, bool(count.num_violations)) == (observed, is_broken)


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
def test_a_failing_query_breaks_the_contract(contract_of, check_table, text):
    contract = contract_of(column("v", "integer"), column("s", "string"), quality=[query(text, mustBe=1)])
    with pytest.raises(ContractBroken, match="the query fails") as caught:
        check_table(contract, v=[1, 2, 3], s=["a", "secret", "c"])
    assert text.replace("{object}", "").split("FROM")[0].strip() in caught.value.found
    assert caught.value.where == "a test"


def test_numbers_about_personal_columns_are_concealed(contract_of, check_table):
    personal = {"customProperties": [{"property": "personal", "value": "hash"}]}
    for text in ("SELECT max(pay) FROM {object}", "SELECT max(x) FROM (SELECT PAY AS x FROM {object})"):
        contract = contract_of(column("pay", "integer", **personal), quality=[query(text, mustBeLessThan=5)])
        count = single_count(check_table(contract, pay=[987654]))
        assert count.num_violations == 1
        assert "987654" not in str(count)
    harmless = query("SELECT count(*) FROM {object}", mustBe=1)
    contract = contract_of(column("pay", "integer", **personal), quality=[harmless])
    assert single_count(check_table(contract, pay=[5])).observed == "1"
    failing = query("SELECT max(name)::int FROM {object}", mustBe=1)
    contract = contract_of(column("name", "string", **personal), quality=[failing])
    with pytest.raises(ContractBroken) as caught:
        check_table(contract, name=["secret"])
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_sum_of_floats_is_reproducible(contract_of, check_table):
    text = "SELECT sum(v) - 1e16 FROM {object}"
    contract = contract_of(column("v", "number"), quality=[query(text, mustBeGreaterThan=0)])
    values = [1e16, *[0.1 * number for number in range(200_000)]]
    assert len({single_count(check_table(contract, v=values)).observed for _ in range(3)}) == 1


def fresh(value: float, unit: str = "d", element: str = "t") -> dict[str, Any]:
    return {"property": "freshness", "value": value, "unit": unit, "element": element}


@pytest.mark.parametrize(
    ("ages_h", "is_broken", "observed"),
    [
        ([1, 500], False, ""),
        ([49, 500], True, ""),
        ([-23, 500], False, ""),  # clocks differ, and a day begins earlier in the east
        ([-25, 1], True, "in the future"),
        ([None], True, "no value"),
        ([], True, "no value"),
    ],
)
def test_the_latest_moment_must_be_recent_and_not_in_the_future(contract_of, check_table, ages_h, is_broken, observed):
    now = dt.datetime.now(dt.UTC)
    moments = [None if age is None else now - dt.timedelta(hours=age) for age in ages_h]
    contract = contract_of(column("t", "timestamp"), slaProperties=[fresh(2)])
    count = single_count(check_table(contract, t=moments))
    assert bool(count.num_violations) == is_broken
    assert observed in (count.observed or "")


def test_the_age_of_a_date_counts_from_its_start(contract_of, check_table, home):
    contract = contract_of(column("t", "date"), slaProperties=[fresh(3)])
    today = dt.datetime.now(dt.UTC).date()
    for days, is_broken in ((0, False), (1, False), (-2, False), (-4, True), (3, True)):
        count = single_count(check_table(contract, t=[today + dt.timedelta(days=days), dt.date(1999, 1, 1)]))
        assert bool(count.num_violations) == is_broken, days
    moment = latest_moment(home / "rows.parquet", "t")
    assert moment == dt.datetime.combine(today + dt.timedelta(days=3), dt.time(), dt.UTC)


def test_a_distribution_is_compared_with_its_reference(contract_of, check_table):
    rule = {"rule": "distribution", "divergence": "psi", "reference": "before"}
    check = {"type": "custom", "engine": "bloomery", "implementation": rule, "mustBeLessThan": 0.1}
    shares = {"values": ["a", "b"], "shares": [0.5, 0.5]}
    reference = Reference.model_validate({"columns": {"v": shares}})
    contract = contract_of(column("v", "string", quality=[check]), references={"before": reference})
    equal, different, empty = (
        single_count(check_table(contract, v=values)) for values in (["a", "b"], ["a", "c", None], [])
    )
    assert [bool(count.num_violations) for count in (equal, different, empty)] == [False, True, True]
    assert (equal.observed, empty.observed) == ("0", "no value")


def test_a_path_may_contain_wildcards(contract_of, tmp_path, home):
    contract = contract_of(column("v", "integer", unique=True))
    schema = arrow_schema(contract.columns)
    path = tmp_path / "a[1]*?'x" / "rows.parquet"
    path.parent.mkdir()
    write_rows(path, schema, [pa.RecordBatch.from_arrays([pa.array([1, 1])], schema=schema)])
    (check,) = check_table_rules(path, contract, "a test")
    assert check.result.num_violations == 2
