"""What the registry says of a name and of one version."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.tree import Tree

from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.records.score_format import score_in_words

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from bloomery.data_contracts.records.provenance import Origin

_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def versions(name: str) -> dict[str, Any]:
    """All versions of `name`, newest first.

    Raises:
        DataMissing: the registry has no such name.
    """
    from bloomery.tasks.registry import approvals
    from bloomery.tasks.registry import model_registry as registry

    approvals.settle_lapsed(name)
    found = registry.require_versions(name)
    champion = registry.champion(name)
    serving = None if champion is None else champion.version
    return {"name": name, "versions": [_facts(one, str(one.version) == str(serving)) for one in found]}


def version(reference: str) -> dict[str, Any]:
    """One version with its lineage and figures.

    Raises:
        DataMissing: there is no such version.
    """
    from bloomery.tasks.registry import approvals
    from bloomery.tasks.registry import champion as promotions
    from bloomery.tasks.registry import model_registry as registry
    from bloomery.tasks.registry.bento_provenance import origin_in
    from bloomery.tasks.tracking import mlflow_runs

    found = approvals.settled(reference)
    champion = registry.champion(found.name)
    facts = _facts(found, champion is not None and champion.version == found.version)
    facts["lineage"] = [
        {"stage": stage, "digest": digest, "what": what} for stage, digest, what in json.loads(found.tags["lineage"])
    ]
    run = mlflow_runs.client().get_run(found.tags["candidate.run"])
    facts["figures"] = dict(sorted(run.data.metrics.items()))
    with contextlib.suppress(BloomeryError):  # an old bento, or one that is on another machine
        facts["origin"] = origin_of(origin_in(facts["bento"]))
    facts["promotions"] = [
        f"{one.at:%Y-%m-%d %H:%M:%S}Z {one.action} by {one.by}: {one.why}"
        for one in promotions.history(found.name)
        if one.version == int(found.version)
    ]
    facts["tags"] = {key: value for key, value in sorted(found.tags.items()) if key != "lineage"}
    return facts


def carried(reference: str) -> dict[str, Any]:
    """What a bento's folder or exported file says of itself, without any registry.

    Raises:
        OutputCorrupt: it says nothing that could be read.
    """
    from bloomery.tasks.registry.bento_provenance import read_origin

    found = read_origin(reference)
    return {"bento": found.tag, "origin": origin_of(found)}


def origin_of(origin: Origin) -> list[dict[str, Any]]:
    """From the source to the bento: each stage with its digests, and what it depends on."""
    from bloomery.data_contracts.records.provenance import steps
    from bloomery.data_contracts.records.records import describe

    words = {stage: what for stage, _, what in describe(origin.chosen)}
    found: dict[str, dict[str, Any]] = {}
    for step in steps(origin.chosen):
        stage = found.setdefault(step.stage, {"stage": step.stage, "what": words[step.stage], "digests": {}})
        stage["digests"][step.what] = step.digest
        stage["code"] = origin.code[step.stage]
    trained, verdicts = origin.chosen.options.trained, {one.name: one for one in origin.chosen.verdicts}
    found["validate"]["report"] = trained.dataset.checked.report_uri
    around = origin.surroundings
    found["train"] |= {
        "seed": origin.recipe["training"]["seed"],
        "processor": around.processor,
        "machine": f"{around.machine}, Python {around.python}",
        "lock": around.lock_sha256,
    }
    found["compress"]["candidates"] = [
        {
            "name": one.name,
            "figures": f"{one.size_bytes / 1000:.1f} kB, p50 {one.latency.p50_ms * 1000:.0f} µs, "
            f"{score_in_words(trained.dataset.task, one.score)}",
            "verdict": "; ".join(verdicts[one.name].reasons) or "chosen",
        }
        for one in origin.chosen.options.candidates
    ]
    return [*found.values(), {"stage": "package", "what": f"bento {origin.tag}", "digests": {"content": origin.digest}}]


def _facts(found: ModelVersion, is_champion: bool) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": int(found.version),
        "aliases": ["champion"] if is_champion else [],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.creation_timestamp / 1000)),
        "release": found.tags.get("release", "not promoted"),
        "freed": found.tags.get("freed"),  # the day on which `bloomery gc` removed its bento
        "bento": found.tags.get("bento"),
        "description": found.description,
    }


def as_list(document: dict[str, Any]) -> Tree:
    root = Tree(f"[bold]{document['name']}[/], newest first")
    for one in document["versions"]:
        alias = f" [green]({', '.join(one['aliases'])})[/]" if one["aliases"] else ""
        kept = f"bento {one['bento']}" if one["freed"] is None else f"freed on {one['freed']}"
        branch = root.add(f"[bold]version {one['version']}[/]{alias}, made {one['created']}, {kept}")
        branch.add(escape(one["release"].split("\n")[0]))
        branch.add(_described(one).split("\n")[0])
    return root


def _described(document: dict[str, Any]) -> str:
    """What MLflow's page says of the version, without the addresses of links in it, which are of that page."""
    return escape(_LINK.sub(r"\1", document["description"]))


def as_carried(document: dict[str, Any]) -> Tree:
    root = Tree(f"[bold]bento {document['bento']}[/], by what it carries itself")
    _grow(root, document["origin"])
    return root


def _grow(root: Tree, origin: list[dict[str, Any]]) -> None:
    """A branch for each stage, one inside the other, as the rows went."""
    branch = root
    for stage in origin:
        branch = branch.add(f"[bold]{stage['stage']}[/] {stage['what']}")
        for what, digest in stage["digests"].items():
            branch.add(f"{what} [dim]{digest[:16]}[/]")
        for name in ("report", "code", "seed", "processor", "machine", "lock"):
            if stage.get(name) is not None:
                told = str(stage[name])
                branch.add(f"{name} [dim]{told[:16] if name in ('code', 'lock') else told}[/]")
        for one in stage.get("candidates", ()):
            colour = "green" if one["verdict"] == "chosen" else "dim"
            branch.add(f"{one['name']}: {one['figures']} [{colour}]{one['verdict']}[/]")


def as_tree(document: dict[str, Any]) -> Tree:
    alias = f" [green]({', '.join(document['aliases'])})[/]" if document["aliases"] else ""
    root = Tree(f"[bold]{document['name']} version {document['version']}[/]{alias}, made {document['created']}")
    root.add(_described(document))
    if document["freed"] is not None:
        root.add(
            f"[yellow]freed by `bloomery gc` on {document['freed']}[/]: run its recipe again to have its bento back"
        )
    figures = root.add("figures")
    for name, value in document["figures"].items():
        figures.add(f"{name} {value:g}")
    if "origin" in document:
        _grow(root.add("lineage, from the source"), document["origin"])
    else:  # a version that was packaged before its bento carried more
        branch = root.add("lineage, newest first")
        for line in document["lineage"]:
            branch = branch.add(f"[bold]{line['stage']}[/] {line['what']} [dim]{line['digest'][:16]}[/]")
    promoted = root.add("promotions")
    for line in document["promotions"]:
        promoted.add(line)
    tags = root.add("tags")
    for name, value in document["tags"].items():
        tags.add(f"{name} = {value}")
    return root
