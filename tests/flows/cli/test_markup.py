"""Names, paths and reasons of users are printed as they are: brackets are no markup, and `:bug:` is no emoji."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bloomery.flows.cli.commands import backfill, gc, releases, up
from bloomery.flows.cli.display import LineConsole, ProgressDisplay, print_release
from bloomery.tasks.orchestration import events
from bloomery.tasks.registry.garbage_collection import CollectionPlan, Removal, VersionDecision

TEXT = r"a[red]b[/x] :bug: C:\ "  # a style, an end of none, an emoji, and a backslash before what may follow


class Output(LineConsole):
    """A console of 300 columns that keeps its output."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=300)

    @property
    def text(self) -> str:
        return self.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_last_lines_of_a_run(release: Any) -> None:
    output = Output()
    choice = release.bento.choice
    candidate = choice.candidate.model_copy(update={"name": TEXT})
    verdicts = tuple(verdict.model_copy(update={"name": TEXT, "reasons": (TEXT,)}) for verdict in choice.verdicts)
    candidates = choice.candidates.model_copy(update={"candidates": (candidate,), "baseline": TEXT})
    choice = choice.model_copy(update={"candidate": candidate, "candidates": candidates, "verdicts": verdicts})
    example = '{"key": "KEY", "label": "KEY", "truth": "KEY", "probability": 0.5}'.replace(
        "KEY", TEXT.replace("\\", "\\\\")
    )
    bento = release.bento.model_copy(update={"choice": choice})
    document = release.model_copy(update={"bento": bento, "example": example, "alias": TEXT})
    print_release(output, document, 1.0, TEXT, None)
    assert output.text.count(TEXT.strip()) >= 7


def test_notes_of_stages() -> None:
    output = Output()
    with ProgressDisplay(output):
        events.emit(events.StageEnded("approval", "decided", 1.0, TEXT))
    assert TEXT.strip() in output.text


def test_removals_and_versions_of_garbage_collection(tmp_path: Path) -> None:
    output = Output()
    removal = Removal(kind="log", path=TEXT, size_bytes=1, reason=TEXT)
    version = VersionDecision(name=TEXT, version=1, bento="b", reason=TEXT)
    gc._print(output, [removal], CollectionPlan(removals=(), freed=(version,), kept=(version,)), True, [], tmp_path)
    assert output.text.count(TEXT.strip()) == 6


def test_services_and_periods() -> None:
    output = Output()
    service = SimpleNamespace(
        **dict.fromkeys(("name", "reason", "log", "url"), TEXT), kind="endpoint", state="failed", pid=1, restarts=2
    )
    with pytest.raises(SystemExit):
        up._report(output, False, SimpleNamespace(services=[service]))  # type: ignore[arg-type]
    assert output.text.count(TEXT.strip()) == 5
    result: Any = SimpleNamespace(period=TEXT, outcome="failed", error={"error": TEXT}, seconds=1, version=1)
    result.alias = result.score = TEXT
    output.print(backfill._table(TEXT, [result]))
    assert output.text.count(TEXT.strip()) == 10


def test_promotions() -> None:
    output = Output()
    version: Any = SimpleNamespace(name=TEXT, version="2", tags={"bento": TEXT})
    releases._report(output, False, version, None, [])
    assert TEXT.strip() in output.text
