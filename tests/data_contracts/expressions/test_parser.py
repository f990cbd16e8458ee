"""Conditions in SQL: supported and unsupported syntax, and results equal to those of DuckDB and exact arithmetic."""

from __future__ import annotations

import contextlib
import datetime as dt
import operator
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st

from bloomery.data_contracts.expressions.parser import find_violations, parse_condition, referenced_columns
from bloomery.data_contracts.expressions.row_evaluator import FallBackToArrow, compile_for_row
from tests.examples import examples

SCHEMA = pa.schema(
    [
        ("i", pa.int8()),
        ("j", pa.int64()),
        ("u", pa.uint32()),
        ("f", pa.float64()),
        ("g", pa.float32()),
        ("s", pa.string()),
        ("t", pa.string()),
        ("b", pa.bool_()),
        ("d", pa.date32()),
        ("m", pa.timestamp("us", "UTC")),
        ("a", pa.list_(pa.int64())),
    ]
)
UTC = dt.UTC
DAYS = st.dates(dt.date(2019, 12, 30), dt.date(2020, 1, 3))
MOMENTS = st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 0, 0, 3), timezones=st.just(UTC))
TEXT = st.text(alphabet="aAbé %_'\\", max_size=4)
HALVES = st.integers(-20, 20).map(lambda count: count / 4)
ROW = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-5, 5),
        "j": st.none() | st.integers(-1000, 1000),
        "u": st.none() | st.integers(0, 1000),
        "f": st.none() | HALVES,
        "g": st.none() | HALVES,
        "s": st.none() | TEXT,
        "t": st.none() | TEXT,
        "b": st.none() | st.booleans(),
        "d": st.none() | DAYS,
        "m": st.none() | MOMENTS,
    }
)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def call(template: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda texts: template.format(*texts))


def numbers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        call("({} {} {})", inner, st.sampled_from(["+", "-", "*"]), inner)
        | call("({} {} ⟨{}⟩)", inner, st.sampled_from(["/", "%"]), inner)  # ⟨divisor⟩
        | call("(- {})", inner)
        | call("abs({})", inner)
        | call("coalesce({}, {})", inner, inner)
        | call("CASE WHEN b THEN {} ELSE {} END", inner, inner)
        | call("CASE s WHEN 'a' THEN {} WHEN t THEN {} END", inner, inner)
    )


NUMBER = st.recursive(
    st.sampled_from(["i", "j", "u", "f", "g"])
    | st.integers(0, 9).map(str)
    | HALVES.map(lambda value: f"({value:e})")
    | st.sampled_from(["length(s)", "length(trim(t))"]),
    numbers,
    max_leaves=4,
)
STRING = st.recursive(
    st.sampled_from(["s", "t"]) | TEXT.map(quoted),
    lambda inner: (
        call("{}({})", st.sampled_from(["lower", "upper", "trim"]), inner) | call("coalesce({}, {})", inner, inner)
    ),
    max_leaves=3,
)
DAY = st.just("d") | DAYS.map(lambda day: f"DATE '{day}'")
MOMENT = st.just("m") | MOMENTS.map(lambda moment: f"TIMESTAMPTZ '{moment.isoformat()}'")
COMPARE = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
LEAF = (
    call("{} {} {}", NUMBER, COMPARE, NUMBER)
    | call("{} {} {}", STRING, COMPARE, STRING)
    | call("{} {} {}", DAY, COMPARE, DAY)
    | call("{} {} {}", MOMENT, COMPARE, MOMENT)
    | call("{} {}BETWEEN {} AND {}", NUMBER, st.sampled_from(["", "NOT "]), NUMBER, NUMBER)
    | call("{} {}IN ({}, {})", NUMBER, st.sampled_from(["", "NOT "]), NUMBER, NUMBER)
    | call("{} {}IN ({})", STRING, st.sampled_from(["", "NOT "]), STRING)
    | call("{} {}LIKE {}", STRING, st.sampled_from(["", "NOT "]), TEXT.map(quoted))
    | call("{} IS {}NULL", NUMBER | STRING | DAY, st.sampled_from(["", "NOT "]))
    | st.sampled_from(["b", "b = TRUE", "b <> (i > 0)"])
)
CONDITION = st.recursive(
    LEAF,
    lambda inner: (
        call("({} AND {})", inner, inner)
        | call("({} OR {})", inner, inner)
        | call("(NOT {})", inner)
        | call("CASE WHEN {} THEN {} END", inner, inner)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def engine():
    with duckdb.connect() as connection:
        yield connection


def in_parentheses(text: str) -> str:
    return text.replace("⟨", "(").replace("⟩", ")")


def violations(text: str, table: pa.Table) -> list[bool]:
    """The violations in a batch, which must be those of each row alone."""
    condition = parse_condition(text, table.schema)
    masks: list[bool] = find_violations(condition, table).to_pylist()
    value = compile_for_row(condition.root, table.schema)
    for row, is_broken in zip(table.to_pylist(), masks, strict=True):
        with contextlib.suppress(FallBackToArrow):
            assert (value(row) is False) == is_broken, (text, row)
    return masks


@settings(deadline=None, max_examples=examples(250), phases=set(Phase) - {Phase.shrink})
@given(text=CONDITION.map(lambda text: f"({text}) OR (b AND d IS NULL)"), rows=st.lists(ROW, min_size=1, max_size=12))
def test_a_condition_has_the_result_of_duckdb(engine, text, rows):
    schema = SCHEMA.remove(SCHEMA.get_field_index("a"))
    table = pa.Table.from_pylist(rows, schema=schema)
    engine.register("rows", table)
    wide = "i::bigint as i, j, u::bigint as u, f, g::double as g, s, t, b, d, m"
    duckdb_text = text.replace("⟨", "nullif(").replace("⟩", ", 0)")  # where DuckDB raises, or gives infinity
    answers = engine.sql(f"select coalesce(not ({duckdb_text}), false) from (select {wide} from rows)").fetchall()
    assert violations(in_parentheses(text), table) == [answer for (answer,) in answers]


EDGES = st.sampled_from([0, 1, -1, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63)])
WHOLE = st.integers(-3, 3) | EDGES
REAL = st.sampled_from([0.5, -0.5, 2.0**53, 2.0**53 + 2, 2.0**63, -(2.0**63), 1e300, -1e300, 0.0, 1.0])
COMPARISONS = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def remainder(a: int, b: int) -> int:
    return abs(a) % b if a >= 0 else -(abs(a) % b)


@st.composite
def integer_expression(draw: st.DrawFn, depth: int = 2) -> tuple[str, Any]:
    """An expression of integers as text, and as an exact function of x and y."""
    if depth == 0 or draw(st.booleans()):
        name = draw(st.sampled_from(["x", "y", "literal"]))
        if name == "literal":
            value = draw(st.integers(0, 10**19))
            return str(value), lambda x, y: value
        return name, (lambda x, y: x) if name == "x" else (lambda x, y: y)
    left, left_of = draw(integer_expression(depth - 1))
    right, right_of = draw(integer_expression(depth - 1))
    kind = draw(st.sampled_from(["+", "-", "*", "abs", "negate", "%"]))
    if kind == "%":
        divisor = draw(st.integers(1, 10**19))
        return f"({left} % {divisor})", lambda x, y: remainder(left_of(x, y), divisor)
    if kind == "abs":
        return f"abs({left})", lambda x, y: abs(left_of(x, y))
    if kind == "negate":
        return f"(- {left})", lambda x, y: -left_of(x, y)
    combine = {"+": operator.add, "-": operator.sub, "*": operator.mul}[kind]
    return f"({left} {kind} {right})", lambda x, y: combine(left_of(x, y), right_of(x, y))


@settings(deadline=None, max_examples=examples(250), phases=set(Phase) - {Phase.shrink})
@given(
    left=integer_expression(),
    right=integer_expression(),
    comparison=st.sampled_from(list(COMPARISONS)),
    rows=st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=8),
)
def test_integers_are_exact_whatever_their_size(left, right, comparison, rows):
    table = pa.table({"x": [x for x, _ in rows], "y": [y for _, y in rows]})
    text = f"{left[0]} {comparison} {right[0]} AND x IS NOT NULL"
    try:
        masks = violations(text, table)
    except ValueError as failure:
        if "may have more than 75 digits" not in str(failure):
            raise
        reject()
    assert masks == [not COMPARISONS[comparison](left[1](x, y), right[1](x, y)) for x, y in rows]


@settings(deadline=None, max_examples=examples(200))
@given(
    integer=integer_expression(1),
    comparison=st.sampled_from(list(COMPARISONS)),
    rows=st.lists(st.tuples(WHOLE, WHOLE, REAL), min_size=1, max_size=8),
)
def test_an_integer_is_not_rounded_when_compared_with_a_float(integer, comparison, rows):
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate("xyf")})
    exact = COMPARISONS[comparison]
    expected = [not exact(integer[1](x, y), f) for x, y, f in rows]
    assert violations(f"{integer[0]} {comparison} f", table) == expected
    mirrored = [not exact(f, integer[1](x, y)) for x, y, f in rows]
    assert violations(f"f {comparison} {integer[0]}", table) == mirrored


@settings(deadline=None, max_examples=examples(50))
@given(text=CONDITION, rows=st.lists(ROW, min_size=2, max_size=12), position=st.integers(0, 12))
def test_batches_have_the_violations_of_the_table(text, rows, position):
    schema = SCHEMA.remove(SCHEMA.get_field_index("a"))
    try:
        condition = parse_condition(in_parentheses(text), schema)
    except ValueError as failure:
        if "names no column" not in str(failure):
            raise
        reject()
    table = pa.Table.from_pylist(rows, schema=schema)
    expected = find_violations(condition, table).to_pylist()
    parts = [table.slice(0, position), table.slice(position)]
    assert [mask for part in parts for mask in find_violations(condition, part).to_pylist()] == expected
    (batch,) = table.combine_chunks().to_batches()
    assert find_violations(condition, batch).to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("j / 0 > 1", [1, None], [False, False]),
        ("j % 0 = 0", [1, 0], [False, False]),
        ("7 % j = -1", [-4, 4, -2], [True, True, True]),
        ("j % 3 = -1", [-7, 7], [False, True]),
        ("j * j * j > 0", [2**62, -(2**62)], [False, True]),
        ("j < 9223372036854775808", [2**63 - 1], [False]),
        ("j <> -9223372036854775808", [-(2**63)], [True]),
        ("j = 9007199254740993.0", [9007199254740993], [True]),
        ("j IS NOT NULL", [None, 1], [True, False]),
        ("j > 0", [None], [False]),
        ("NOT j > 0", [None, 1], [False, True]),
        ("j > 0 OR j IS NULL", [None, 1, -1], [False, False, True]),
        ("CASE WHEN j > 0 THEN j END > 5", [3, -3, 7], [True, False, False]),
    ],
)
def test_a_row_breaks_a_condition_that_is_false_but_not_one_that_is_null(text, values, expected):
    assert violations(text, pa.table({"j": pa.array(values, pa.int64())})) == expected


def test_an_empty_table_has_no_violations():
    assert violations("i > 0", SCHEMA.empty_table()) == []


def test_an_array_can_only_be_compared_with_null():
    table = pa.table({"a": pa.array([None, [], [1]], pa.list_(pa.int64()))})
    assert violations("a IS NOT NULL", table) == [True, False, False]
    with pytest.raises(ValueError, match="an array, which cannot be compared"):
        parse_condition("a = 1", table.schema)


def test_the_length_of_an_array_is_the_number_of_its_elements():
    words = pa.array([["x", None], [], None, ["xyz"], ["x"]], pa.list_(pa.string()))
    tags = pa.array([[1, 2], [1], [1], None, [1]], pa.list_(pa.int64()))
    table = pa.table({"words": words, "tags": tags})
    assert violations("LENGTH(words) = LENGTH(tags)", table) == [False, True, False, False, False]
    assert violations("LENGTH(words) = LENGTH(tags)", table.slice(1, 2)) == [True, False]
    root = parse_condition("length(words) = length(tags)", table.schema).root
    evaluate = compile_for_row(root, table.schema)
    assert [evaluate(row) for row in table.to_pylist()] == [True, False, None, None, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("i >", "is not valid SQL"),
        ("i > 1; j > 1", "not exactly one SQL expression"),
        ("", "not exactly one SQL expression"),
        ("1 = 1", "names no column"),
        ("x > 1", "there is no column x"),
        ("I > 1", "there is no column I; did you mean i"),
        ("rows.i > 1", "a column with points in its name is written as"),
        ("i > 'a'", "compares i, a whole number, with 'a', text"),
        ("s > 1", "compares s, text, with 1, a whole number"),
        ("d > '2020-01-01'", "write a date as DATE"),
        ("d > m", "a date, with m, a time"),
        ("b > TRUE", "can only be compared by = and <>"),
        ("i = NULL", "use IS NULL"),
        ("i IN (1, NULL)", "use IS NULL"),
        ("i", "is a whole number, but a condition must be true or false"),
        ("i + 1", "is a whole number, but a condition"),
        ("i AND b", "is a whole number, but must be true or false"),
        ("s + 1 > 2", "s is text, but must be a whole number or a real number"),
        ("length(i) > 2", "i is a whole number, but must be text"),
        ("sqrt(f) > 2", "uses SQRT, which is not supported"),
        ("my_function(f) > 2", "uses MY_FUNCTION, which is not supported"),
        ("s ILIKE 'a'", "uses ILIKE"),
        ("s || t = 'ab'", "uses DPIPE"),
        ("s LIKE t", "the pattern of LIKE must be a quoted text"),
        ("s LIKE 'a' ESCAPE '!'", "uses ESCAPE"),
        ("i IN (SELECT 1)", "uses query of IN"),
        ("b IS TRUE", "IS is supported only with NULL"),
        ("CAST(i AS DOUBLE) > 1", "only a quoted text can be cast"),
        ("d > DATE '2020-02-30'", "is not a valid date"),
        ("d > current_date", "uses CURRENT"),
        ("trim(leading 'a' from s) = ''", "of TRIM, which is not supported"),
        ("coalesce(i, s) = 1", "one type only"),
        ("j * j * j * j > 1", "more than 75 digits"),
        ("f > 1e999", "larger than any float64"),
        ("i > 1 AS x", "uses ALIAS"),
        ("SELECT i > 1", "uses SELECT"),
        ("(" * 400 + "b" + ")" * 400, "deep"),
        ("NOT " * 150 + "b", "deep"),
    ],
)
def test_an_invalid_condition_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_condition(text, SCHEMA)


def test_a_long_chain_of_conditions_is_supported():
    table = pa.table({"i": pa.array([1, 5, 999], pa.int64())})
    assert violations(" OR ".join(f"i = {value}" for value in range(900)), table) == [False, False, True]


def test_referenced_columns_are_unique_and_in_the_order_of_the_text():
    assert referenced_columns('t > s AND t <> "select" AND s < t') == ("t", "s", "select")


def test_times_without_an_offset_are_in_utc():
    table = pa.table({"m": pa.array([dt.datetime(2020, 1, 1, 12, tzinfo=UTC)], pa.timestamp("us", "UTC"))})
    assert violations("m = TIMESTAMP '2020-01-01 12:00:00'", table) == [False]
    assert violations("m = TIMESTAMPTZ '2020-01-01T14:00:00+02:00'", table) == [False]
    assert violations("m = CAST('2020-01-01T12:00:01Z' AS TIMESTAMP)", table) == [True]
