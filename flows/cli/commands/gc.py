"""`bloomery gc`: removes files that no kept version needs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.flows.cli.exit_codes import command_session, reporting_errors

if TYPE_CHECKING:
    from bloomery.tasks.registry.garbage_collection import CollectionPlan, Removal


def gc(
    keep: Annotated[int, typer.Option(min=1, help="Latest versions to keep per name, besides champions.")] = 3,
    keep_version: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VERSION", help="A version to keep; may be repeated.")
    ] = None,
    days: Annotated[float, typer.Option(min=0, help="Minimum age of logs, quarantines and unused outputs.")] = 14,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this, only list them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Remove stage outputs, bentos and candidates that no kept version needs."""
    with reporting_errors(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder

        home = require_state_folder(with_room=False).home  # must also work on a full disk
    with command_session(as_json, "gc", with_room=False) as out:
        from bloomery.tasks.registry import garbage_collection

        # Files that need no registry go first, since its database may not open on a full disk.
        aged = garbage_collection.plan_aged(days)
        removed = garbage_collection.collect_garbage(aged) if yes else []
        pids = _running_pids(home)
        with garbage_collection.lock_champions() if yes else contextlib.nullcontext():
            plan = None if pids else garbage_collection.plan_unreachable(keep, keep_version or [], days)
            if plan is not None and yes:
                removed += garbage_collection.collect_garbage(plan)
        removals = removed if yes else [*aged.removals, *(plan.removals if plan else ())]
        if as_json:
            out.file.write(json.dumps(_document(removals, plan, yes, pids)) + "\n")
        else:
            _print(out, removals, plan, yes, pids, home)


def _running_pids(home: Path) -> list[int]:
    """Returns the processes of flow runs, which may use stored outputs."""
    from bloomery.flows.run_control.run_liveness import live_run_pids

    return live_run_pids(home)


def _document(removals: list[Removal], plan: CollectionPlan | None, is_done: bool, pids: list[int]) -> dict[str, Any]:
    return {
        "done": is_done,
        "freed_bytes" if is_done else "would_free_bytes": sum(removal.size_bytes for removal in removals),
        "removals": [removal.model_dump() for removal in removals],
        "versions_freed": [version.model_dump() for version in plan.freed] if plan else [],
        "versions_kept": [version.model_dump() for version in plan.kept] if plan else [],
        "running_pids": pids,
    }


def _print(
    out: Any, removals: list[Removal], plan: CollectionPlan | None, is_done: bool, pids: list[int], home: Path
) -> None:
    from rich.markup import escape

    from bloomery.tasks.registry.garbage_collection import disk_usage

    for removal in removals:
        path, reason = escape(removal.path), escape(removal.reason)
        out.print(f"{removal.size_bytes / 1e6:10.2f} MB  {removal.kind:<13} {path}  [dim]{reason}[/]")
    if plan is not None:
        for version in plan.kept:
            out.print(f"kept   {version.name}:{version.version}  {version.reason}", markup=False)
        for version in plan.freed:
            out.print(
                f"{'freed' if is_done else 'to free'}  {version.name}:{version.version}  {version.reason}", markup=False
            )
    if pids:
        processes = ", ".join(str(pid) for pid in pids)
        out.print(f"a run is active (process {processes}): outputs, bentos and model files are kept until it ends")
    for folder in ("prefect", "mlflow", "predictions"):
        out.print(f"not touched: {folder}/ {disk_usage(home / folder) / 1e6:.2f} MB", style="dim")
    total = sum(removal.size_bytes for removal in removals) / 1e6
    if is_done:
        out.print(f"freed {total:.2f} MB in {len(removals)} files and folders")
    else:
        out.print(f"would free {total:.2f} MB in {len(removals)} files and folders; add --yes to remove them")
