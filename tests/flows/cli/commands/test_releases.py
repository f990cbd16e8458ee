"""The table of `bloomery history`."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from rich.console import Console

from bloomery.flows.cli.commands.releases import history_table
from bloomery.tasks.registry.champion import Promotion


def test_the_history_has_no_markdown_links_and_prints_brackets_as_they_are() -> None:
    promotion = Promotion(
        number=1,
        at=datetime(2026, 11, 28, 0, 36, 2, tzinfo=UTC),
        by="ann@laptop",
        action="promote",
        version=12,
        replaced=11,
        bento="digits:393d05862ebd2aab",
        description="int8: accuracy 98.8%\n\n[Model card](#/experiments/1/runs/2/card.html)",
        reason="fewer errors [see ticket 7]",
    )
    console = Console(file=io.StringIO(), width=160)
    console.print(history_table("digits", [promotion]))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2026-11-28 00:36:02Z" in output
    assert "int8: accuracy 98.8%" in output
    assert "fewer errors [see ticket 7]" in output
    assert "experiments" not in output
    assert "](" not in output
