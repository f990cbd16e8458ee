"""`bloomery show`: the versions of a model, and one version with its lineage, metrics and tags."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.records.score_format import class_noun, format_score

if TYPE_CHECKING:
    from bloomery.data_contracts.records.provenance import Provenance
    from bloomery.data_contracts.records.records import Choice
    from bloomery.tasks.tracking.model_versions import ModelVersion

_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def remove_link_targets(markdown: str) -> str:
    """Returns the Markdown with the text of each link in its place, escaped for a terminal."""
    return escape(_LINK.sub(r"\1", markdown))


def versions_document(name: str) -> dict[str, Any]:
    """Returns all versions of a model, newest first.

    Raises:
        DataMissing: the registry has no such model.
    """
    from bloomery.tasks.registry import approvals
    from bloomery.tasks.registry import model_registry as registry

    approvals.refuse_expired(name)
    versions = registry.require_versions(name)
    champion = registry.find_champion(name)
    serving = None if champion is None else str(champion.version)
    return {"name": name, "versions": [_facts(version, str(version.version) == serving) for version in versions]}


def version_document(reference: str) -> dict[str, Any]:
    """Returns one version with its lineage and metrics.

    Raises:
        DataMissing: there is no such version.
    """
    from bloomery.tasks.registry import approvals
    from bloomery.tasks.registry import champion as promotions
    from bloomery.tasks.registry import model_registry as registry
    from bloomery.tasks.registry.bento_provenance import read_bento_provenance
    from bloomery.tasks.tracking import mlflow_runs

    version = approvals.find_version_after_expiry(reference)
    champion = registry.find_champion(version.name)
    facts = _facts(version, champion is not None and champion.version == version.version)
    is_own = facts["bento"] is not None and {"lineage", "candidate.run"} <= version.tags.keys()
    facts["lineage"] = [
        {"stage": stage, "digest": digest, "description": what}
        for stage, digest, what in json.loads(version.tags["lineage"] if is_own else "[]")
    ]
    facts["metrics"] = mlflow_runs.read_metrics(version.tags["candidate.run"]) if is_own else {}
    choice = None
    if is_own:
        with contextlib.suppress(BloomeryError):  # an old bento, or one on another machine
            provenance = read_bento_provenance(facts["bento"])
            facts["provenance"], choice = provenance_document(provenance), provenance.choice
    facts["promotions"] = [
        f"{promotion.at:%Y-%m-%d %H:%M:%S}Z {promotion.action} by {promotion.by}: {promotion.reason}"
        for promotion in promotions.promotion_history(version.name)
        if promotion.version == int(version.version)
    ]
    facts["tags"] = {key: value for key, value in sorted(version.tags.items()) if key != "lineage"}
    facts["summary"] = summarize_version(facts, choice)
    return facts


def summarize_version(facts: Mapping[str, Any], choice: Choice | None) -> dict[str, str]:
    """Returns what a person asks for first, as text: how good, how large and how fast; which data, when, and by whom.

    Without the choice, which the version's bento has, the tags of the version have less.
    """
    if facts["bento"] is None:  # another tool may use tags of these names
        return _describe_origin(facts, choice)
    return {**_describe_measurements(facts["tags"], choice), **_describe_origin(facts, choice)}


def _describe_measurements(tags: Mapping[str, str], choice: Choice | None) -> dict[str, str]:
    if choice is None:
        values = {"score": tags.get("score"), "size": tags.get("size_bytes"), "latency": tags.get("p50_ms")}
        units = {"score": "", "size": " bytes", "latency": " ms for one row (p50)"}
        return {name: f"{value}{units[name]}" for name, value in values.items() if value is not None}
    candidate, trained = choice.candidate, choice.candidates.trained
    dataset = trained.dataset
    score = f"{trained.score.title} {format_score(trained.score, candidate.score)}"
    measurements = {"score": f"{score} on {dataset.test.num_rows:,} held-out rows"}
    weakest, noun = candidate.weakest_class, class_noun(dataset.task)
    if weakest is not None:
        recall = f"{weakest.num_right:,} of {weakest.num_rows:,} held-out rows of the {noun} {weakest.name}"
        measurements[f"weakest {noun}"] = f"{weakest.recall:.1%}: {recall}"
    latency = candidate.latency
    time_relative = "" if candidate.name == choice.candidates.baseline else f", {latency.ratio.value:.2f}x that of fp32"
    return {
        **measurements,
        "size": f"{candidate.size_bytes / 1000:,.1f} kB ({candidate.name})",
        "latency": f"{latency.p50_ms * 1000:,.0f} µs for one row (p50){latency.where}{time_relative}",
    }


def _describe_origin(facts: Mapping[str, Any], choice: Choice | None) -> dict[str, str]:
    from bloomery.tasks.registry.champion import ROLLED_BACK

    tags = facts["tags"]
    origin = {"data": tags.get("data.source", "unknown")}
    if choice is not None:
        dataset = choice.candidates.trained.dataset
        origin["rows"] = (
            f"{dataset.train.num_rows:,} for training, {dataset.val.num_rows:,} for validation, "
            f"{dataset.test.num_rows:,} held out, {dataset.valid_rows.num_quarantined:,} quarantined"
        )
    promotions: list[str] = facts["promotions"]
    release = str(facts["release"]).split("\n")[0]
    is_in_effect = bool(promotions) and not release.startswith(ROLLED_BACK)
    return {
        **origin,
        "contract": tags.get("contract", "unknown"),
        "registered": facts["created"],
        "promoted": promotions[-1] if is_in_effect else "; ".join([*promotions[-1:], release]),
        "bento": str(facts["bento"] or "none: another tool has registered this version"),
    }


def bento_document(reference: str) -> dict[str, Any]:
    """Returns the provenance in a bento's folder or exported file, without a registry.

    Raises:
        OutputCorrupt: the bento has no readable provenance.
    """
    from bloomery.tasks.registry.bento_provenance import read_provenance

    provenance = read_provenance(reference)
    return {"bento": provenance.tag, "provenance": provenance_document(provenance)}


def provenance_document(provenance: Provenance) -> list[dict[str, Any]]:
    """Returns each stage from the source to the bento, with its digests and what it depends on."""
    from bloomery.data_contracts.records.lineage import describe_lineage
    from bloomery.data_contracts.records.provenance import digest_chain

    descriptions = {stage: what for stage, _, what in describe_lineage(provenance.choice)}
    stages: dict[str, dict[str, Any]] = {}
    for step in digest_chain(provenance.choice):
        entry = {"stage": step.stage, "description": descriptions[step.stage], "digests": {}}
        stage = stages.setdefault(step.stage, entry)
        stage["digests"][step.content] = step.digest
        stage["code"] = provenance.code[step.stage]
    trained, verdicts = (
        provenance.choice.candidates.trained,
        {verdict.name: verdict for verdict in provenance.choice.verdicts},
    )
    stages["validate"]["report"] = trained.dataset.valid_rows.report_uri
    environment = provenance.environment
    stages["train"] |= {
        "seed": provenance.recipe["training"]["seed"],
        "processor": environment.processor,
        "machine": f"{environment.machine}, Python {environment.python}",
        "lock": environment.lock_sha256,
    }
    stages["compress"]["candidates"] = [
        {
            "name": candidate.name,
            "metrics": f"{candidate.size_bytes / 1000:.1f} kB, p50 {candidate.latency.p50_ms * 1000:.0f} µs"
            f"{candidate.latency.where}, {format_score(trained.score, candidate.score)}",
            "verdict": "; ".join(verdicts[candidate.name].reasons) or "chosen",
        }
        for candidate in provenance.choice.candidates.candidates
    ]
    bento = {"stage": "package", "description": f"bento {provenance.tag}", "digests": {"content": provenance.digest}}
    return [*stages.values(), bento]


def _facts(version: ModelVersion, is_champion: bool) -> dict[str, Any]:
    from bloomery.tasks.registry.model_registry import bento_of

    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": ["champion"] if is_champion else [],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(version.creation_timestamp / 1000)),
        "release": version.tags.get("release", "not promoted"),
        "freed": version.tags.get("freed"),  # the day on which `bloomery gc` removed its bento
        "bento": bento_of(version),  # none if another tool has registered the version
        "description": version.description,
    }


def versions_tree(document: dict[str, Any]) -> Tree:
    root = Tree(f"[bold]{escape(document['name'])}[/], newest first")
    for version in document["versions"]:
        alias = f" [green]({', '.join(version['aliases'])})[/]" if version["aliases"] else ""
        bento = "registered by another tool" if version["bento"] is None else f"bento {version['bento']}"
        bento = escape(bento if version["freed"] is None else f"freed on {version['freed']}")
        branch = root.add(f"[bold]version {version['version']}[/]{alias}, created {version['created']}, {bento}")
        branch.add(escape(version["release"].split("\n")[0]))
        branch.add(_description(version).split("\n")[0])
    return root


def _description(document: dict[str, Any]) -> str:
    """Returns MLflow's description of the version without link targets, which are relative to MLflow's page."""
    return remove_link_targets(document["description"] or "no description")


def bento_tree(document: dict[str, Any]) -> Tree:
    root = Tree(f"[bold]bento {escape(document['bento'])}[/], by its own provenance")
    _add_stages(root, document["provenance"])
    return root


def _add_stages(root: Tree, stages: list[dict[str, Any]]) -> None:
    """Adds a branch for each stage, each inside the previous one."""
    branch = root
    for stage in stages:
        branch = branch.add(f"[bold]{stage['stage']}[/] {escape(stage['description'])}")
        for what, digest in stage["digests"].items():
            branch.add(f"{escape(what)} [dim]{escape(digest[:16])}[/]")
        for name in ("report", "code", "seed", "processor", "machine", "lock"):
            if stage.get(name) is not None:
                value = str(stage[name])
                branch.add(f"{name} [dim]{escape(value[:16] if name in ('code', 'lock') else value)}[/]")
        for candidate in stage.get("candidates", ()):
            colour = "green" if candidate["verdict"] == "chosen" else "dim"
            text = escape(f"{candidate['name']}: {candidate['metrics']}")
            branch.add(f"{text} [{colour}]{escape(candidate['verdict'])}[/]")


def version_summary(document: dict[str, Any]) -> Table:
    """Returns what a person asks for first: one row for each entry of the summary."""
    alias = f" ({', '.join(document['aliases'])})" if document["aliases"] else ""
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify = f"{escape(document['name'])} version {document['version']}{alias}", "left"
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if document["freed"] is not None:
        table.add_row("freed", f"by `bloomery gc` on {document['freed']}: run its recipe again to rebuild its bento")
    for name, value in document["summary"].items():
        table.add_row(name, escape(value))
    return table


def version_tree(document: dict[str, Any]) -> Tree:
    alias = f" [green]({', '.join(document['aliases'])})[/]" if document["aliases"] else ""
    root = Tree(
        f"[bold]{escape(document['name'])} version {document['version']}[/]{alias}, created {document['created']}"
    )
    root.add(_description(document))
    if document["freed"] is not None:
        root.add(f"[yellow]freed by `bloomery gc` on {document['freed']}[/]: run its recipe again to rebuild its bento")
    metrics = root.add("metrics")
    for name, value in document["metrics"].items():
        metrics.add(escape(f"{name} {value:g}"))
    if "provenance" in document:
        _add_stages(root.add("lineage, from the source"), document["provenance"])
    else:  # packaged before bentos contained their provenance
        branch = root.add("lineage, newest first")
        for line in document["lineage"]:
            what = escape(line["description"])
            branch = branch.add(f"[bold]{escape(line['stage'])}[/] {what} [dim]{escape(line['digest'][:16])}[/]")
    promotions = root.add("promotions")
    for line in document["promotions"]:
        promotions.add(escape(line))
    tags = root.add("tags")
    for name, value in document["tags"].items():
        tags.add(escape(f"{name} = {value}"))
    return root
