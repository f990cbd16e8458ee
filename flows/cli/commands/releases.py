"""`bloomery promote`, `rollback`, `history` and `compare`: which version serves, and what speaks for another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.serving.champion_pointer import Following
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from bloomery.tasks.registry.champion import Promotion

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Why = Annotated[str, typer.Option(help="The reason, which the history keeps.")]
Name = Annotated[str, typer.Argument(help="The name of a model in the registry.")]


def promote(
    version: Annotated[str, typer.Argument(help="NAME:VERSION, such as digits:3.")],
    why: Why = "",
    despite_refusal: Annotated[bool, typer.Option(help="Though a gate refused it when it was made.")] = False,
    shadow_rows: Annotated[int, typer.Option(min=0, help="Only after it answered so many rows as shadow.")] = 0,
    min_agreement: Annotated[float, typer.Option(min=0, max=1, help="The share of them answered alike.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion. Endpoints that serve the name switch to it, without losing a request."""
    with at_work(as_json, "promote") as out:
        from bloomery.tasks.bentos.bento_server import require_bento
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.bentos.rehearsal import rehearse
        from bloomery.tasks.monitoring import shadow_comparison
        from bloomery.tasks.registry import approvals
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        found = approvals.settled(version)
        _require_not_refused(found, despite_refusal)
        tag = found.tags[registry.BENTO]
        registry.require_not_freed(found, bento_folder(tag).is_dir())
        require_bento(tag)
        if shadow_rows:
            champion = registry.version_of(f"{found.name}@{registry.CHAMPION}").tags[registry.BENTO]
            shadow_comparison.require(found.name, champion, tag, shadow_rows, min_agreement)
        with promotions.changing(found.name):
            rehearse(tag)
            promotion = promotions.make_champion(found, "promote", why or "promoted by hand")
            approvals.close(found)
        _tell(out, as_json, found, promotion, promotions.wait_for_followers(found.name, tag))


def rollback(name: Name, why: Why = "", as_json: AsJson = False) -> None:
    """Let the version serve that served before the champion. Nothing is deleted, and it can be rolled back further."""
    with at_work(as_json, "rollback") as out:
        from bloomery.tasks.bentos.bento_server import require_bento
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.bentos.rehearsal import rehearse
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        with promotions.changing(name):
            champion, former = promotions.before_the_champion(name)
            tag = former.tags[registry.BENTO]
            registry.require_not_freed(former, bento_folder(tag).is_dir())
            require_bento(tag)
            rehearse(tag)
            promotion = promotions.roll_back(champion, former, why or "rolled back by hand")
        _tell(out, as_json, former, promotion, promotions.wait_for_followers(name, tag))


def history(name: Name, as_json: AsJson = False) -> None:
    """Show who promoted what when, and why."""
    with at_work(as_json, "history") as out:
        from rich.table import Table

        from bloomery.tasks.registry import approvals
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        registry.require_versions(name)
        approvals.settle_lapsed(name)
        changes = promotions.history(name)
        if as_json:
            out.file.write(json.dumps([change.model_dump(mode="json") for change in changes]) + "\n")
            return
        table = Table(title=name, title_justify="left")
        for heading in ("when", "what", "from", "to", "who", "why", "figures"):
            table.add_column(heading)
        for change in reversed(changes):
            replaced = "" if change.replaced is None else str(change.replaced)
            row = (f"{change.at:%Y-%m-%d %H:%M:%S}Z", change.action, replaced, str(change.version))
            table.add_row(*row, change.by, change.why, change.what)
        out.print(table)


def compare(
    name: Name,
    challenger: Annotated[str, typer.Option(help="NAME:VERSION; else the one that was shadow last.")] = "",
    labels: Annotated[
        Path | None, typer.Option(help="Parquet with `request`, `label`, and `row` where requests have several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a shadow or a canary with the champion, by the log of predictions and by labels that came later."""
    with at_work(as_json, "compare") as out:
        from bloomery.tasks.monitoring import shadow_comparison
        from bloomery.tasks.registry import model_registry as registry

        champion = registry.version_of(f"{name}@{registry.CHAMPION}").tags[registry.BENTO]
        other = registry.version_of(challenger).tags[registry.BENTO] if challenger else None
        compared = shadow_comparison.compare(name, champion, other, labels)
        if as_json:
            out.file.write(compared.model_dump_json() + "\n")
        else:
            for line in shadow_comparison.in_words(compared):
                out.print(line)


def _require_not_refused(version: ModelVersion, despite_refusal: bool) -> None:
    from bloomery.tasks.registry import approvals

    verdict = version.tags.get("release", "")
    if verdict.startswith(approvals.WAITS):
        raise ReleaseRefused(
            f"{version.name} version {version.version} {verdict}",
            required="a person's decision on that request",
            where="the version's tag `approval` in the registry",
            remedy=f"bloomery approve {version.name}:{version.version} --why …",
        )
    if verdict.startswith("refused") and not despite_refusal:
        raise ReleaseRefused(
            f"{version.name} version {version.version} was {verdict.splitlines()[0]}",
            required="a version that passed its gates, or a person who takes that upon them",
            where="the version's tag `release` in the registry",
            remedy="say --despite-refusal, and --why",
        )


def _tell(
    out: Any, as_json: bool, version: ModelVersion, promotion: Promotion | None, following: list[Following]
) -> None:
    tag = version.tags["bento"]
    refusing = [one for one in following if one.bento != tag]
    if not as_json:
        for line in _in_words(version, promotion, following):
            out.print(line)
    elif not refusing:
        document = {
            "name": version.name,
            "version": int(version.version),
            "bento": tag,
            "replaced": None if promotion is None else promotion.replaced,
            "endpoints": [one.model_dump() for one in following],
        }
        out.file.write(json.dumps(document) + "\n")
    if refusing:
        told_why = "; ".join(
            f"process {one.pid} goes on with {one.bento}: {one.why or 'no word yet'}" for one in refusing
        )
        raise ReleaseRefused(
            f"{version.name} version {version.version} is the champion, but {told_why}",
            required="endpoints that take the champion",
            where=f"the processes that serve {version.name}",
            remedy=f"start them again if the version needs newer code; or bloomery rollback {version.name}",
        )


def _in_words(version: ModelVersion, promotion: Promotion | None, following: list[Following]) -> Iterator[str]:
    name, tag = f"{version.name} version {version.version}", version.tags["bento"]
    if promotion is None:
        yield f"{name} is the champion already"
    else:
        instead = "" if promotion.replaced is None else f", instead of version {promotion.replaced}"
        yield f"{name} (bento {tag}) is the champion{instead}"
    for one in following:
        if one.bento == tag:
            yield f"  the endpoint of process {one.pid} answers with it"
