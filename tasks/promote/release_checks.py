"""The checks of a release: registers the version, applies the gates, and runs a smoke test of the served bento."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.recipe_sections.approval import PromotionTerms
from bloomery.data_contracts.records.checkpoint import checkpoint_tags
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Bento, Interval
from bloomery.data_contracts.records.score_format import format_score_value
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.encoder import read_encoder
from bloomery.tasks.bentos.bento_server import post_rows, serve_bento
from bloomery.tasks.bentos.smoke_test import parse_predictions, require_same_prediction
from bloomery.tasks.evaluation.held_out import example_predictions, read_measured_predictions
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.promote.gates import (
    compare_with_champion,
    require_better_than_baselines,
    require_not_worse,
    require_score,
)
from bloomery.tasks.promote.recent_data_gate import require_not_worse_on_recent_data
from bloomery.tasks.registry import champion, model_registry, period_aliases, version_description
from bloomery.tasks.registry.logged_model import log_model
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion


class CheckedRelease(NamedTuple):
    """A registered version that has passed its checks."""

    version: ModelVersion
    champion: ModelVersion | None  # before this release
    newer_period: str | None  # of the champion, if it was trained on newer data and stays
    recent_data_result: str  # of the gate on recent data, as text
    num_smoke_test_rows: int
    example: dict[str, Any]  # the first row of the smoke test

    @property
    def is_champion(self) -> bool:
        return self.champion is not None and self.champion.version == self.version.version


def check_release(bento: Bento, gates: Gates, terms: PromotionTerms) -> CheckedRelease:
    """Registers the version of the bento and checks it. The caller holds `champion_lock`.

    A version of an older period than the champion's is not compared with it, since it will not replace it.

    Raises:
        ReleaseRefused: a gate is missed on the test split or on recent data, or a served prediction differs from the
            measured one. The version is tagged as refused.
    """
    name = bento.tag.split(":")[0]
    current = model_registry.find_champion(name)
    former = None if current is None or model_registry.bento_of(current) == bento.tag else current
    degradation = compare_with_champion(bento, former)
    version = _register(bento, name, terms.period, former, degradation)
    _require_not_rolled_back(version)
    newer_period = period_aliases.newer_period(current, terms.period)
    try:
        require_score(bento, gates)
        require_better_than_baselines(bento, gates)
        result = "not compared with the champion, which was trained on newer data"
        if newer_period is None:
            require_not_worse(bento, gates, current, degradation)
            result = require_not_worse_on_recent_data(
                name, bento.tag, model_registry.bento_of(current), gates, bento.choice.candidates.trained.score
            )
        num_rows, example = _run_smoke_test(bento, gates.num_rows)
    except Exception as refusal:
        mlflow_runs.client().set_model_version_tag(name, version.version, "release", f"refused: {refusal}"[:4000])
        raise
    return CheckedRelease(version, current, newer_period, result, num_rows, example)


def _require_not_rolled_back(version: ModelVersion) -> None:
    status = version.tags.get("release", "")
    if status.startswith(champion.ROLLED_BACK):
        raise ReleaseRefused(
            f"{version.name} version {version.version} was {status}",
            required="a version that was not rolled back",
            where="the version's tag `release` in the registry",
            remedy=f"train another version; or promote this one: bloomery promote {version.name}:{version.version}",
        )


def _register(
    bento: Bento, name: str, period: str | None, former: ModelVersion | None, degradation: Interval | None
) -> ModelVersion:
    candidate = bento.choice.candidate
    trained = bento.choice.candidates.trained
    contract = trained.dataset.valid_rows.contract
    tags = {
        model_registry.BENTO: bento.tag,
        "bento.digest": bento.digest,
        "candidate": candidate.name,
        model_registry.CANDIDATE_RUN: candidate.run_id,
        "score.name": trained.score.title,
        "score": format_score_value(trained.score, candidate.score.value),
        **version_description.cost_tags(bento),
        "onnx.sha256": candidate.sha256,
        "training.run": trained.run_id,
        "weights.sha256": trained.digest,
        "weights.uri": trained.uri,
        "encoder.uri": trained.dataset.encoder_uri,
        "data.digest": trained.dataset.digest,
        "data.source": trained.dataset.valid_rows.raw_rows.source,
        "contract": f"{contract.name} {contract.version}",
        "lineage": json.dumps([list(line) for line in describe_lineage(bento)]),
    }
    if period is not None:
        tags[period_aliases.TAG] = period
    if trained.initial_weights is not None:
        tags |= {"start": trained.initial_weights.name, "start.sha256": trained.initial_weights.digest}
    tags |= checkpoint_tags(trained.checkpoints)
    if trained.privacy is not None:
        tags |= {"privacy.epsilon": f"{trained.privacy.epsilon:.6g}", "privacy.delta": f"{trained.privacy.delta:g}"}
    version_description.log_card(bento)
    description = version_description.describe_version(bento, former, degradation)
    version = model_registry.register_version(name, log_model(bento), candidate.run_id, tags, description)
    version_description.describe_model(name, bento)
    return version


def _run_smoke_test(bento: Bento, num_rows: int) -> tuple[int, dict[str, Any]]:
    """Serves the bento and sends it raw test rows, one by one and in one request.

    Returns:
        The number of rows, and the first one with its prediction.

    Raises:
        ReleaseRefused: a prediction differs from the measured one.
    """
    dataset = bento.choice.candidates.trained.dataset
    examples = example_predictions(bento.choice, num_rows)
    rows = [example["row"] for example in examples]
    with serve_bento(bento.tag) as client:
        single = [parse_predictions(post_rows(client, [row]), bento.tag)[0] for row in rows[:10]]
        batched = parse_predictions(post_rows(client, rows), bento.tag)
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    key = key_column(dataset.key)
    truths = read_measured_predictions(bento.choice).select([key, "truth"]).slice(0, num_rows).to_pylist()
    for position, prediction in [*enumerate(single), *enumerate(batched)]:
        description = f"the row with {dataset.key} {truths[position][key]}"
        require_same_prediction(prediction, examples[position]["prediction"], encoder, description, bento.tag)
    first = single[0]
    if "embedding" in first:
        return len(rows), {"key": truths[0][key], "dimensions": len(first["embedding"])}
    if "classes" in first:
        first = {"classes": first["classes"]}
    if "tags" in first:
        return len(rows), {"key": truths[0][key], "tags": first["tags"], "truth": truths[0]["truth"]}
    if "labels" in first:
        first = {"labels": first["labels"]}
    if "label" in first:
        first = {"label": first["label"], "probability": max(first["probabilities"].values())}
    return len(rows), {"key": truths[0][key], "truth": truths[0]["truth"], **first}
