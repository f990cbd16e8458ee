"""The results of Great Expectations for counted rules, and its page."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.odcs.rules import ROW_KINDS, Rule
from bloomery.data_contracts.validation.data_docs import render_data_docs
from bloomery.data_contracts.validation.expectation_suite import (
    RuleCount,
    ViolationExample,
    build_expectation,
    build_suite_result,
    describe_rule,
    rule_successes,
)
from tests.examples import examples

NASTY = "<script>alert(1)</script>"
ODD = "$column ${rule} $$x {{7*7}} {% raw %} %s \\1 & \"q\" 'p' &lt; \U0001f600"
RULES = (
    Rule(target="", kind="num_rows", low=1),
    Rule(target="v", kind="required"),
    Rule(target="v[]", kind="required"),
    Rule(target="v", kind="unique"),
    Rule(target="", kind="unique", columns=("v", "w")),
    Rule(target="v", kind="between", low=0, high=1, strict_low=True),
    Rule(target="v[]", kind="between", high=1),
    Rule(target="v", kind="in_set", values=("a", NASTY, ODD, 1, 2.5, True, "2024-01-01")),
    Rule(target="v", kind="pattern", pattern=r"^<b>$|\d{3}$$v"),
    Rule(target="v[]", kind="pattern", pattern="a"),
    Rule(target="v", kind="length", low=1, high=3),
    Rule(target="v[]", kind="length", high=3),
    Rule(target="v", kind="num_items", low=1),
    Rule(target="v", kind="fits", low=0, high=255),
    Rule(target="v", kind="fits"),
    Rule(target="", kind="expression", expression=f"v < w OR v = '{NASTY}'", columns=("v", "w")),
    Rule(target="v", kind="determined", columns=("w",)),
    Rule(target="", kind="query", expression="SELECT count(*) FROM {object} WHERE v <> '<b>'", high=3),
    Rule(target="v", kind="fresh", high=86400),
    Rule(target="v", kind="distribution", reference="r", divergence="psi", high=0.1),
)
TABLE_NUMBERS = ("num_rows", "query", "fresh", "distribution")
EXAMPLES = (
    ViolationExample(3, NASTY),
    ViolationExample(4, ODD),
    ViolationExample(7, ODD),
    ViolationExample(9, ""),
    ViolationExample(12, "null"),
)


def counted(rule: Rule, num_breaking: int, num_checked: int = 100) -> RuleCount:
    if rule.kind in TABLE_NUMBERS:
        return RuleCount(rule, min(num_breaking, 1), 1, (), f"7.25{NASTY}" if num_breaking else "0")
    return RuleCount(rule, num_breaking, num_checked, EXAMPLES[:num_breaking])


def counts(num_breaking: int) -> list[RuleCount]:
    """Every kind of rule, as an error, tolerated, and as a warning."""
    changes = ({}, {"tolerance": 0.5}, {"severity": "warning"})
    rules = [rule.model_copy(update=change) for change in changes for rule in RULES]
    return [
        counted(rule, num_breaking if rule.kind != "num_rows" else 0)
        for rule in rules
        if rule.tolerance is None or rule.kind not in TABLE_NUMBERS
    ]


class Reader(HTMLParser):
    """The text of a page, its tags, and the files that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [f"{tag} {value}" for name, value in attrs if name in ("src", "href", "onload", "onerror")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


@pytest.fixture(scope="module")
def broken_page() -> str:
    return render_data_docs(build_suite_result("made", "the source", 100, counts(5)))


def test_every_kind_of_rule_has_an_expectation():
    assert {rule.kind for rule in RULES} == {*ROW_KINDS, *TABLE_NUMBERS, "unique", "determined"}
    expectations = [build_expectation(rule) for rule in RULES]
    assert all(expectation.severity == "critical" for expectation in expectations)
    assert build_expectation(RULES[1].model_copy(update={"severity": "warning"})).severity == "warning"


@pytest.mark.parametrize("num_breaking", [0, 1, 5])
def test_the_page_has_every_rule_and_no_rendering_error(num_breaking, caplog):
    rule_counts = counts(num_breaking)
    with caplog.at_level(logging.WARNING):
        html = render_data_docs(build_suite_result("made", "the source", 100, rule_counts))
    assert "unexpected Exception" not in html
    assert [record.getMessage() for record in caplog.records] == []
    text = read(html).text
    for count in rule_counts:
        assert describe_rule(count.rule) in text


def test_great_expectations_agrees_with_the_counts():
    for num_breaking in (0, 1, 5):
        rule_counts = counts(num_breaking)
        assert rule_successes(build_suite_result("made", "s", 100, rule_counts)) == [
            count.is_satisfied for count in rule_counts
        ]


MAP_RULES = [rule for rule in RULES if rule.kind not in TABLE_NUMBERS]


@settings(deadline=None, max_examples=examples(100))
@given(rule=st.sampled_from(MAP_RULES), data=st.data())
def test_the_tolerance_is_exact_to_one_row(rule, data):
    percent = data.draw(st.integers(0, 99) | st.sampled_from([0.1, 0.3, 12.5, 33.3]))
    num_checked = data.draw(st.integers(0, 40) | st.sampled_from([100, 1000, 7777, 10_000_000]))
    edge = int(Fraction(str(percent)) / 100 * num_checked)
    num_breaking = min(max(edge + data.draw(st.integers(-1, 1)), 0), num_checked)
    tolerance = float(Fraction(str(percent)) / 100)
    count = RuleCount(rule.model_copy(update={"tolerance": tolerance}), num_breaking, num_checked)
    expected = num_breaking <= Fraction(str(percent)) / 100 * num_checked
    assert count.is_satisfied == expected
    num_rows = num_checked + (0 if rule.kind in ("required", "expression") else 3)
    assert rule_successes(build_suite_result("made", "s", num_rows, [count])) == [expected]


def test_a_failed_warning_is_marked_on_the_page(broken_page):
    assert "v: must not be null (warning)" in read(broken_page).text


def test_values_are_shown_unchanged_and_never_become_markup(broken_page):
    reader = read(broken_page)
    assert NASTY in reader.text
    assert ODD in reader.text
    assert "7.25<script>" in reader.text
    assert reader.tags.isdisjoint({"script", "img", "iframe", "link", "a", "b"})


def test_names_never_become_markup():
    reader = read(render_data_docs(build_suite_result('</title>"><script>x', "<img src=x>/rows.csv", 100, counts(1))))
    assert reader.tags.isdisjoint({"script", "img"})
    assert "<img src=x>/rows.csv" in reader.text


def test_the_page_loads_nothing_and_forbids_scripts(broken_page):
    reader = read(broken_page)
    assert reader.loads == []
    assert "default-src 'none'" in broken_page
    assert "url(" not in broken_page
    assert "@import" not in broken_page


def test_a_column_may_have_a_name_that_the_page_uses():
    for name in ("row", "Count", "index", "column"):
        rule = Rule(target=name, kind="between", low=0)
        html = render_data_docs(
            build_suite_result(
                "made", "s", 9, [RuleCount(rule, 2, 9, (ViolationExample(1, "-5"), ViolationExample(6, "-5")))]
            )
        )
        assert "-5" in read(html).text
        assert "1, 6" in read(html).text


def test_the_page_has_the_position_of_each_example(broken_page):
    assert "row in the source" in read(broken_page).text
    assert "4, 7" in read(broken_page).text


def test_numbers_of_the_table_are_shown_as_text():
    for observed in ("no value", "2024-01-01 00:00:00+00:00", "1e+300"):
        html = render_data_docs(build_suite_result("made", "s", 9, [RuleCount(RULES[-3], 1, 1, (), observed)]))
        assert observed in read(html).text
        assert "unexpected values found" not in read(html).text


def pages() -> Iterator[str]:
    for num_breaking in (0, 5):
        yield render_data_docs(build_suite_result("made", "the source", 100, counts(num_breaking)))


@pytest.mark.slow
def test_two_processes_render_the_same_page(tmp_path):
    path = Path(__file__)
    script = tmp_path / "draw.py"
    script.write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('drawn', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "sys.stdout.write(''.join(module.pages()))\n"
    )
    root = path.resolve().parents[3]
    process = subprocess.run(
        [sys.executable, str(script)],
        cwd=root,
        env={"PYTHONPATH": str(root), "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "".join(pages())
