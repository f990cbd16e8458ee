"""Descriptions and tags in the registry: of a registered model, and of each of its versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Bento, Interval
from bloomery.data_contracts.records.score_format import as_score, format_score
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.model_card.card import CARD_FOLDER, find_licence
from bloomery.tasks.model_card.rendering import HTML, escape_markdown
from bloomery.tasks.registry.model_registry import bento_of
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion

SIZE, P50 = "size_bytes", "p50_ms"  # tags of a version
_MAX_LETTERS = 4_000  # MLflow stores 5,000 of a description
_MAX_NAMES = 40


def cost_tags(bento: Bento) -> dict[str, str]:
    """Tags of a version that the next version is compared with."""
    candidate = bento.choice.candidate
    return {SIZE: str(candidate.size_bytes), P50: f"{candidate.latency.p50_ms:.6g}"}


def log_card(bento: Bento) -> None:
    """Copies the bento's model card to the candidate's MLflow run."""
    folder = artifacts_folder(bento.tag) / CARD_FOLDER
    if folder.is_dir():
        mlflow_runs.client().log_artifacts(bento.choice.candidate.run_id, str(folder), CARD_FOLDER)


def describe_version(bento: Bento, champion: ModelVersion | None, degradation: Interval | None) -> str:
    """Markdown description of a version: score, size and speed, compared with the champion, and a link to its card.

    `degradation` is that from the champion to this version on the same held-out rows, if both can read them.
    """
    candidate, trained = bento.choice.candidate, bento.choice.candidates.trained
    score = trained.score
    experiment = mlflow_runs.client().get_run(candidate.run_id).info.experiment_id
    address = f"#/experiments/{experiment}/runs/{candidate.run_id}/artifacts/{CARD_FOLDER}/{HTML}"
    lines = [
        f"{escape_markdown(candidate.name)}: {score.title} {format_score(score, candidate.score)} on "
        f"{trained.dataset.test.num_rows:,} held-out rows, {candidate.size_bytes:,} bytes, "
        f"p50 {candidate.latency.p50_ms * 1000:.0f} µs for one row{candidate.latency.where}, "
        f"{candidate.latency.ratio.value:.2f} x the time of fp32."
    ]
    if champion is not None:
        lines.append(_compare_with_champion(bento, champion, degradation))
    if trained.privacy is not None:
        lines.append(f"Each training row is {trained.privacy}.")
    lines.append(f"[Model card]({address}) · bento `{bento.tag}`")
    return "\n\n".join(lines)


def _compare_with_champion(bento: Bento, champion: ModelVersion, degradation: Interval | None) -> str:
    candidate, score = bento.choice.candidate, bento.choice.candidates.trained.score
    differences = []
    tags = {} if bento_of(champion) is None else champion.tags  # another tool may use tags of these names
    size, p50 = tags.get(SIZE), tags.get(P50)
    if size is not None:
        differences.append(f"{_format_signed(100 * (candidate.size_bytes / int(size) - 1), 0)}% size")
    if p50 is not None:
        differences.append(f"{float(p50) / candidate.latency.p50_ms:.2g}x as fast (each measured in its own run)")
    if degradation is not None:
        differences.append(_format_gain(score, degradation))
    comparison = ", ".join(differences) or "not comparable: it reads other columns, or its bento is gone"
    return f"Against version {champion.version}, the champion when this one was registered: {comparison}."


def _format_gain(score: Score | Task, degradation: Interval) -> str:
    """The improvement with its 95% interval: points of the score, or the change of an error, where less is better."""
    score = as_score(score)
    if score.is_error:
        bounds = (degradation.low, degradation.value, degradation.high)
        low, value, high = (_format_signed(100 * bound, 2) for bound in bounds)
        return f"{value}% {score.title} [{low}, {high}]"
    bounds = (degradation.high, degradation.value, degradation.low)
    low, value, high = (_format_signed(-100 * bound, 2) for bound in bounds)
    return f"{value} points of {score.title} [{low}, {high}]"


def _format_signed(number: float, decimals: int) -> str:
    """The number with its sign; a number that rounds to 0 has a plus."""
    return f"{round(number, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def describe_model(name: str, bento: Bento) -> None:
    """Sets the description of the registered model, and tags to search for."""
    from bloomery.models.networks.blueprint import read_blueprint

    trained = bento.choice.candidates.trained
    dataset = trained.dataset
    contract = dataset.valid_rows.contract
    tags = {
        "task": dataset.task,
        "network": read_blueprint(settings().path(trained.network_uri)).config.kind,
        "contract": contract.name,
        "target": dataset.label,
        "data.source": dataset.valid_rows.raw_rows.source,
        "licence": find_licence(contract),
        "owner": owner_of(contract),
        "domain": contract.domain,
    }
    client = mlflow_runs.client()
    model = client.get_registered_model(name)
    for key, value in tags.items():
        if value and model.tags.get(key) != value[:_MAX_LETTERS]:
            client.set_registered_model_tag(name, key, value[:_MAX_LETTERS])
    text = _model_description(name, bento, contract)
    if model.description != text:
        client.update_registered_model(name, text)


def _model_description(name: str, bento: Bento, contract: Contract) -> str:
    dataset = bento.choice.candidates.trained.dataset
    classes = [escape_markdown(str(label)) for label in dataset.classes]
    output = f"the number {escape_markdown(dataset.label)}"
    if classes:
        more = f" and {len(classes) - _MAX_NAMES:,} more" if len(classes) > _MAX_NAMES else ""
        choice = "any of" if dataset.task == "multilabel" else "one of"
        choice = "for each word one of" if dataset.task == "tagging" else choice
        output = f"{escape_markdown(dataset.label)}, {choice} {', '.join(classes[:_MAX_NAMES])}{more}"
    if dataset.class_outputs:
        output = f"a class of each of {escape_markdown(dataset.label)}"
    if dataset.outputs:
        output = f"the numbers {escape_markdown(dataset.label)}"
    if dataset.task == "embedding":
        output = "vectors, which are close for texts that belong together"
    verb = "Computes" if dataset.task == "embedding" else "Predicts"
    more = " and more" if len(dataset.inputs) > _MAX_NAMES else ""
    inputs = ", ".join(escape_markdown(column) for column in dataset.inputs[:_MAX_NAMES])
    limits = contract.description.get("limitations")
    lines = [
        escape_markdown(str(contract.description.get("purpose") or "")),
        f"{verb} {output}, from {inputs}{more}.",
        f"**Limits.** {escape_markdown(str(limits))}" if limits else "",
        f"Served by `bloomery serve {name}`. The page of each version links to its model card.",
    ]
    return "\n\n".join(line for line in lines if line)[:_MAX_LETTERS]


def owner_of(contract: Contract) -> str | None:
    """The owners in the contract's `team`, else the team's name, else all members."""
    team: Any = contract.team
    if isinstance(team, Mapping):
        members, name = team.get("members") or [], team.get("name")
    else:
        members, name = team if isinstance(team, list | tuple) else [], None
    people = [member for member in members if isinstance(member, Mapping)]
    owners = [member for member in people if "owner" in str(member.get("role", "")).lower()]
    listed = owners or ([] if name else people)
    names = [str(member.get("name") or member.get("username")) for member in listed]
    return ", ".join(names) or (str(name) if name else None)
