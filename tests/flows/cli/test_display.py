"""The table of candidates in a terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from bloomery.data_contracts.records.records import Interval, Release
from bloomery.flows.cli.display import _candidates


def candidate(name: str) -> Any:
    latency = SimpleNamespace(p50_ms=0.051, ratio=Interval(value=3.16, low=3.16, high=3.17))
    score = Interval(value=0.82, low=0.786, high=0.85)
    degradation = Interval(value=0.168, low=0.13, high=0.201)
    return SimpleNamespace(name=name, size_bytes=213_700, score=score, degradation=degradation, latency=latency)


def test_a_long_name_wraps_and_no_number_is_cut_off():
    items = [candidate("fp32"), candidate("a-candidate-with-a-very-long-na")]
    candidates = SimpleNamespace(
        candidates=items, trained=SimpleNamespace(dataset=SimpleNamespace(task="classification"))
    )
    verdicts = [SimpleNamespace(name=item.name, passed=False) for item in items]
    choice = SimpleNamespace(candidates=candidates, verdicts=verdicts, candidate=items[0])
    release = SimpleNamespace(name="digits", bento=SimpleNamespace(choice=choice))
    console = Console(width=80, record=True)
    console.print(_candidates(cast(Release, release)))
    text = console.export_text()
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    for figure in ("82.0% (78.6–85.0)", "≤20.1pp", "213.7 kB", "51 µs", "3.16x", "over budget"):
        assert text.count(figure) == (1 if figure == "over budget" else 2)
