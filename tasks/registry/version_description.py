"""What a person reads and searches for in the registry: a name's page, and that of each version of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Bento, Interval
from bloomery.data_contracts.records.score_format import SCORES, score_in_words
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.model_card.card import CARD_FOLDER, find_licence
from bloomery.tasks.model_card.rendering import HTML, escape_markdown
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SIZE, P50 = "size_bytes", "p50_ms"  # tags of a version
_MOST_LETTERS = 4_000  # MLflow keeps 5,000 of a description
_MOST_NAMES = 40


def costs_of(bento: Bento) -> dict[str, str]:
    """Tags of a version with what the next one is compared with."""
    candidate = bento.chosen.candidate
    return {SIZE: str(candidate.size_bytes), P50: f"{candidate.latency.p50_ms:.6g}"}


def log_card(bento: Bento) -> None:
    """Afterwards the candidate's run has the card that is in the bento."""
    folder = artifacts_folder(bento.tag) / CARD_FOLDER
    if folder.is_dir():
        mlflow_runs.client().log_artifacts(bento.chosen.candidate.run_id, str(folder), CARD_FOLDER)


def version_in_words(bento: Bento, former: ModelVersion | None, worse: Interval | None) -> str:
    """Markdown of a version: figure, size and speed, each against the champion `former` too, and where its card is.

    `worse` is how much worse the version is than that champion on the same held-out rows, if they could be compared.
    """
    candidate, trained = bento.chosen.candidate, bento.chosen.options.trained
    task = trained.dataset.task
    experiment = mlflow_runs.client().get_run(candidate.run_id).info.experiment_id
    address = f"#/experiments/{experiment}/runs/{candidate.run_id}/artifacts/{CARD_FOLDER}/{HTML}"
    lines = [
        f"{escape_markdown(candidate.name)}: {SCORES[task]} {score_in_words(task, candidate.score)} on "
        f"{trained.dataset.test.num_rows:,} held-out rows, {candidate.size_bytes:,} bytes, "
        f"p50 {candidate.latency.p50_ms * 1000:.0f} µs for one row, {candidate.latency.ratio.value:.2f} x the time of "
        "fp32."
    ]
    if former is not None:
        lines.append(_against(bento, former, worse))
    if trained.privacy is not None:
        lines.append(f"Each training row is {trained.privacy}.")
    lines.append(f"[Model card]({address}) · bento `{bento.tag}`")
    return "\n\n".join(lines)


def _against(bento: Bento, former: ModelVersion, worse: Interval | None) -> str:
    candidate, task = bento.chosen.candidate, bento.chosen.options.trained.dataset.task
    told = []
    size, p50 = former.tags.get(SIZE), former.tags.get(P50)
    if size is not None:
        told.append(f"{_signed(100 * (candidate.size_bytes / int(size) - 1), 0)}% size")
    if p50 is not None:
        told.append(f"{float(p50) / candidate.latency.p50_ms:.2g}x as fast (each measured in its own run)")
    if worse is not None:
        told.append(_gain(task, worse))
    compared = ", ".join(told) if told else "not to be compared: it reads other columns, or its bento is gone"
    return f"Against version {former.version}, the champion when this one was registered: {compared}."


def _gain(task: Any, worse: Interval) -> str:
    """How much better it is, with the limits of 95%; of a regression by the rise of RMSE, where less is better."""
    if task == "regression":
        low, value, high = (_signed(100 * one, 2) for one in (worse.low, worse.value, worse.high))
        return f"{value}% RMSE [{low}, {high}]"
    low, value, high = (_signed(-100 * one, 2) for one in (worse.high, worse.value, worse.low))
    return f"{value} points of accuracy [{low}, {high}]"


def _signed(figure: float, decimals: int) -> str:
    """With its sign; what rounds to nothing has a plus."""
    return f"{round(figure, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def describe_name(name: str, bento: Bento) -> None:
    """Afterwards the registered model says what it is for, and has tags that a person would search for."""
    from bloomery.models.networks.blueprint import read_blueprint

    trained = bento.chosen.options.trained
    dataset = trained.dataset
    contract = dataset.checked.contract
    tags = {
        "task": dataset.task,
        "network": read_blueprint(settings().path(trained.network_uri)).config.kind,
        "contract": contract.name,
        "target": dataset.label,
        "data.source": dataset.checked.rows.source,
        "licence": find_licence(contract),
        "owner": owner_of(contract),
        "domain": contract.domain,
    }
    client = mlflow_runs.client()
    known = client.get_registered_model(name)
    for key, value in tags.items():
        if value and known.tags.get(key) != value[:_MOST_LETTERS]:
            client.set_registered_model_tag(name, key, value[:_MOST_LETTERS])
    text = _name_in_words(name, bento, contract)
    if known.description != text:
        client.update_registered_model(name, text)


def _name_in_words(name: str, bento: Bento, contract: Contract) -> str:
    dataset = bento.chosen.options.trained.dataset
    classes = [escape_markdown(str(one)) for one in dataset.classes]
    answers = f"a figure, {escape_markdown(dataset.label)}"
    if classes:
        more = f" and {len(classes) - _MOST_NAMES:,} more" if len(classes) > _MOST_NAMES else ""
        answers = f"{escape_markdown(dataset.label)}, one of {', '.join(classes[:_MOST_NAMES])}{more}"
    inputs = ", ".join(escape_markdown(one) for one in dataset.inputs[:_MOST_NAMES])
    limits = contract.description.get("limitations")
    lines = [
        escape_markdown(str(contract.description.get("purpose") or "")),
        f"It is asked {inputs}{' and more' if len(dataset.inputs) > _MOST_NAMES else ''}, and answers {answers}.",
        f"**Limits.** {escape_markdown(str(limits))}" if limits else "",
        f"Served by `bloomery serve {name}`. Each version's page links its model card.",
    ]
    return "\n\n".join(line for line in lines if line)[:_MOST_LETTERS]


def owner_of(contract: Contract) -> str | None:
    """Whom the contract's `team` names: its owners, else its name, else all members."""
    team: Any = contract.team
    if isinstance(team, Mapping):
        members, name = team.get("members") or [], team.get("name")
    else:
        members, name = team if isinstance(team, list | tuple) else [], None
    people = [one for one in members if isinstance(one, Mapping)]
    owners = [one for one in people if "owner" in str(one.get("role", "")).lower()]
    named = [str(one.get("name") or one.get("username")) for one in owners or ([] if name else people)]
    return ", ".join(named) or (str(name) if name else None)
