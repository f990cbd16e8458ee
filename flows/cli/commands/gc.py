"""`bloomery gc`: what no kept version needs is freed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.flows.cli.exit_codes import at_work, told

if TYPE_CHECKING:
    from bloomery.tasks.registry.garbage_collection import Piece, Plan


def gc(
    keep: Annotated[int, typer.Option(min=1, help="The last versions of each name that stay, beside champions.")] = 3,
    spare: Annotated[list[str] | None, typer.Option(metavar="NAME:VERSION", help="A version that stays.")] = None,
    days: Annotated[
        float, typer.Option(min=0, help="The age from which logs, quarantines and outputs of no version go.")
    ] = 14,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this it only says what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Free stage outputs, bentos and candidates that no kept version needs; only says so without --yes."""
    with told(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder

        home = require_state_folder(with_room=False).home  # the room is what it is to make
    with at_work(as_json, "gc", with_room=False) as out:
        from bloomery.tasks.registry import garbage_collection

        # What needs no registry goes first, for on a full disk its database may not open.
        aged = garbage_collection.aged(days)
        went = garbage_collection.free(aged) if yes else []
        working = _at_work(home)
        with garbage_collection.nobody_promotes() if yes else contextlib.nullcontext():
            plan = None if working else garbage_collection.unneeded(keep, spare or [], days)
            if plan is not None and yes:
                went += garbage_collection.free(plan)
        pieces = went if yes else [*aged.pieces, *(plan.pieces if plan else ())]
        if as_json:
            out.file.write(json.dumps(_document(pieces, plan, yes, working)) + "\n")
        else:
            _print(out, pieces, plan, yes, working, home)


def _at_work(home: Path) -> list[int]:
    """The processes that work on a run here: what it found, it may need."""
    from bloomery.flows.run_control.run_liveness import living

    return living(home)


def _document(pieces: list[Piece], plan: Plan | None, is_done: bool, working: list[int]) -> dict[str, Any]:
    return {
        "done": is_done,
        "freed_bytes" if is_done else "would_free_bytes": sum(piece.size_bytes for piece in pieces),
        "pieces": [piece.model_dump() for piece in pieces],
        "versions_freed": [one.model_dump() for one in plan.freed] if plan else [],
        "versions_kept": [one.model_dump() for one in plan.kept] if plan else [],
        "at_work": working,
    }


def _print(out: Any, pieces: list[Piece], plan: Plan | None, is_done: bool, working: list[int], home: Path) -> None:
    from bloomery.tasks.registry.garbage_collection import size_of

    for piece in pieces:
        out.print(f"{piece.size_bytes / 1e6:10.2f} MB  {piece.kind:<10} {piece.place}  [dim]{piece.why}[/]")
    if plan is not None:
        for one in plan.kept:
            out.print(f"kept   {one.name}:{one.version}  {one.why}")
        for one in plan.freed:
            out.print(f"{'freed' if is_done else 'to free'}  {one.name}:{one.version}  {one.why}")
    if working:
        named = ", ".join(str(pid) for pid in working)
        out.print(f"a run is at work (process {named}): outputs, bentos and model files are left alone until it ends")
    for part in ("prefect", "mlflow", "predictions"):
        out.print(f"left alone: {part}/ {size_of(home / part) / 1e6:.2f} MB", style="dim")
    total = sum(piece.size_bytes for piece in pieces) / 1e6
    if is_done:
        out.print(f"freed {total:.2f} MB in {len(pieces)} pieces")
    else:
        out.print(f"would free {total:.2f} MB in {len(pieces)} pieces; nothing was removed: say --yes to do it")
