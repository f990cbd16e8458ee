"""The output of a run: the table of candidates, the next commands, and progress."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from bloomery.data_contracts.records.records import Interval, Release
from bloomery.data_contracts.records.scores import ACCURACY
from bloomery.flows.cli.display import LineConsole, ProgressDisplay, _candidates, print_release
from bloomery.tasks.orchestration import events


def candidate(name: str) -> Any:
    latency = SimpleNamespace(p50_ms=0.051, where="", ratio=Interval(value=3.16, low=3.16, high=3.17))
    score = Interval(value=0.82, low=0.786, high=0.85)
    weakest = SimpleNamespace(name="undecided voters", recall=0.518)
    return SimpleNamespace(
        name=name, size_bytes=213_700, score=score, max_degradation=0.201, latency=latency, weakest_class=weakest
    )


def print_candidates(items: list[SimpleNamespace]) -> str:
    """Returns the table of candidates in a terminal of 80 columns."""
    candidates = SimpleNamespace(
        candidates=items, trained=SimpleNamespace(dataset=SimpleNamespace(task="classification"), score=ACCURACY)
    )
    verdicts = [SimpleNamespace(name=item.name, passed=False) for item in items]
    choice = SimpleNamespace(candidates=candidates, verdicts=verdicts, candidate=items[0])
    release = SimpleNamespace(name="digits", bento=SimpleNamespace(choice=choice))
    console = Console(width=80, record=True)
    console.print(_candidates(cast(Release, release)))
    return console.export_text()


def test_a_long_name_wraps_and_no_number_is_cut_off():
    text = print_candidates([candidate("fp32"), candidate("a-candidate-with-a-very-long-na")])
    assert text.count("51.8% undecided v…") == 2  # only the class is shortened
    assert text.count("…") == 2
    assert all(len(line) <= 80 for line in text.splitlines())
    for figure in ("82.00%", "≤20.1pp", "213.7 kB", "51 µs", "3.16x", "rejected"):
        assert text.count(figure) == (1 if figure == "rejected" else 2)


def test_the_name_of_a_class_wraps_before_short_names_of_candidates():
    wide = candidate("pruned-int8")
    wide.size_bytes, wide.latency.p50_ms = 2_120_213_700, 159.123
    text = print_candidates([candidate("fp32"), wide])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("pruned-int8") == text.count("2120213.7 kB") == 1


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "redirected"])
def test_commands_to_copy_are_on_one_line_in_a_narrow_terminal(release: Release, is_terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=is_terminal, color_system=None)
    changed = release.model_copy(
        update={"example": json.dumps({"key": 5, "label": "3", "probability": 0.9, "truth": "3"})}
    )
    recipe = "a folder/with a long name/that fills more than a line/mine.yaml"
    print_release(console, changed, 1.0, recipe, None)
    lines = out.getvalue().splitlines()
    for command in ("serve digits ", "show digits@champion ", f"check '{recipe}' "):
        assert sum(f"bloomery {command}" in line for line in lines) == 1, command


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "redirected"])
def test_lines_of_a_command_are_not_wrapped_and_tables_fit(is_terminal: bool) -> None:
    out = io.StringIO()
    console = LineConsole(file=out, width=40, force_terminal=is_terminal, color_system=None)
    line = "the run waits: bloomery approve digits:3 --reason 'a long reason that goes on' [and on]"
    console.print(line, markup=False)
    assert out.getvalue() == f"{line}\n"
    table = _table_of("a column with a long name", "another one with a long name")
    console.print(table)
    assert all(len(row) <= 40 for row in out.getvalue().splitlines()[1:])


def _table_of(*headings: str) -> Any:
    from rich.table import Table

    return Table(*headings)


def test_redirected_progress_is_plain_lines_at_a_bounded_rate() -> None:
    """A training of 10,000 steps in an hour, then three candidates."""
    out, now = io.StringIO(), 0.0
    with ProgressDisplay(Console(file=out, width=80), clock=lambda: now):
        events.emit(events.StageStarted("train"))
        for step in range(1, 10_001):
            now += 0.36
            events.emit(events.Progress("train", step, 10_000, f"epoch {step // 100}/100, {10_000 - step} s left"))
        events.emit(events.StageEnded("train", "computed", now))
        events.emit(events.StageStarted("compress"))
        for position in range(3):
            events.emit(events.Progress("compress", position, 3, f"candidate-{position}"))
            now += 60
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    training = [line for line in lines if line.startswith("  train ")]
    assert 100 < len(training) < 300
    assert training[0].startswith("  train     6/10000, epoch 0/100, ")
    assert training[0].count(" left") == 1
    assert any(line.startswith("✓ train     computed") for line in lines)
    assert lines[-1] == "  compress  2/3, candidate-2, about 1 min 0 s left"
