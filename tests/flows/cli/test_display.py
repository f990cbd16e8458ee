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
    weakest = SimpleNamespace(name="undecided voters", recall=0.518)
    return SimpleNamespace(
        name=name, size_bytes=213_700, score=score, max_degradation=0.201, latency=latency, weakest_class=weakest
    )


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
    assert text.count("51.8% undecided v…") == 2  # only the class is shortened
    assert text.count("…") == 2
    assert all(len(line) <= 80 for line in text.splitlines())
    for figure in ("82.00%", "≤20.1pp", "213.7 kB", "51 µs", "3.16x", "rejected"):
        assert text.count(figure) == (1 if figure == "rejected" else 2)
