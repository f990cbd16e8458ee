"""What the registry says of a name and of one version."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.tree import Tree

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def versions(name: str) -> dict[str, Any]:
    """All versions of `name`, newest first.

    Raises:
        DataMissing: the registry has no such name.
    """
    from tasks import registry

    found = registry.require_versions(name)
    champion = registry.champion(name)
    serving = None if champion is None else champion.version
    return {"name": name, "versions": [_facts(one, str(one.version) == str(serving)) for one in found]}


def version(reference: str) -> dict[str, Any]:
    """One version with its lineage and figures.

    Raises:
        DataMissing: there is no such version.
    """
    from tasks import registry, tracking

    found = registry.version_of(reference)
    champion = registry.champion(found.name)
    facts = _facts(found, champion is not None and champion.version == found.version)
    facts["lineage"] = [
        {"stage": stage, "digest": digest, "what": what} for stage, digest, what in json.loads(found.tags["lineage"])
    ]
    run = tracking.client().get_run(found.tags["candidate.run"])
    facts["figures"] = dict(sorted(run.data.metrics.items()))
    facts["tags"] = {key: value for key, value in sorted(found.tags.items()) if key != "lineage"}
    return facts


def _facts(found: ModelVersion, is_champion: bool) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": int(found.version),
        "aliases": ["champion"] if is_champion else [],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.creation_timestamp / 1000)),
        "release": found.tags.get("release", "not promoted"),
        "bento": found.tags.get("bento"),
        "description": found.description,
    }


def as_table(document: dict[str, Any]) -> Table:
    table = Table(title=document["name"], title_justify="left")
    for heading in ("version", "alias", "release", "bento", "made", "what"):
        table.add_column(heading)
    for one in document["versions"]:
        table.add_row(
            str(one["version"]),
            ", ".join(one["aliases"]),
            one["release"].split("\n")[0],
            one["bento"],
            one["created"],
            one["description"],
            style="bold green" if one["aliases"] else "",
        )
    return table


def as_tree(document: dict[str, Any]) -> Tree:
    alias = f" [green]({', '.join(document['aliases'])})[/]" if document["aliases"] else ""
    root = Tree(f"[bold]{document['name']} version {document['version']}[/]{alias}, made {document['created']}")
    root.add(document["description"])
    figures = root.add("figures")
    for name, value in document["figures"].items():
        figures.add(f"{name} {value:g}")
    branch = root.add("lineage, newest first")
    for line in document["lineage"]:
        branch = branch.add(f"[bold]{line['stage']}[/] {line['what']} [dim]{line['digest'][:16]}[/]")
    tags = root.add("tags")
    for name, value in document["tags"].items():
        tags.add(f"{name} = {value}")
    return root
