"""What stands before a release: the version is registered, reaches its gates, and its bento answers as measured."""

from __future__ import annotations

import json
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.recipe_sections.approval import PromotionTerms
from bloomery.data_contracts.records.records import Bento, Interval, describe_lineage
from bloomery.data_contracts.records.score_format import format_score_value
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.encoder import read_encoder
from bloomery.models.onnx_storage.decoder import decompress
from bloomery.tasks.bentos.bento_server import post_rows, serve_bento
from bloomery.tasks.bentos.smoke_test import parse_predictions, require_same_prediction
from bloomery.tasks.evaluation.held_out import example_predictions, read_measured_predictions
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.promote.gates import compare_with_champion, require_not_worse, require_score
from bloomery.tasks.promote.recent_data_gate import require_not_worse_on_recent_data
from bloomery.tasks.registry import champion as promotions
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.registry import period_aliases, version_description
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    import onnx
    from mlflow.entities.model_registry import ModelVersion


class CheckedRelease(NamedTuple):
    """A registered version that may serve, as far as figures and answers say."""

    version: ModelVersion
    former: ModelVersion | None  # the champion that it was compared with
    newer: str | None  # the period of that champion, if it is of newer data, so that it stays
    of_late: str  # how it fares on rows of late whose labels have come, in words
    num_asked: int
    example: dict[str, Any]

    @property
    def is_champion(self) -> bool:
        return self.former is not None and self.former.version == self.version.version


def check_release(bento: Bento, gates: Gates, terms: PromotionTerms) -> CheckedRelease:
    """Afterwards the bento is a registered version that has reached its gates. Call it inside `promotions.changing`.

    A version of older data than the champion's is not compared with it, for it will not replace it.

    Raises:
        ReleaseRefused: a gate is missed, also on labelled rows of late, or the served bento answers otherwise than was
            measured. The version is registered and tagged as refused.
    """
    name = bento.tag.split(":")[0]
    former = registry.find_champion(name)
    compared = None if former is None or registry.bento_of(former) == bento.tag else former
    worse = compare_with_champion(bento, compared)
    version = _register(bento, name, terms.period, compared, worse)
    _require_not_rolled_back(version)
    newer = period_aliases.newer_period(former, terms.period)
    try:
        require_score(bento, gates)
        of_late = "not compared with the champion, which is of newer data"
        if newer is None:
            require_not_worse(bento, gates, former, worse)
            of_late = require_not_worse_on_recent_data(name, bento.tag, registry.bento_of(former), gates)
        num_asked, example = _ask_held_out_rows(bento, gates.num_rows)
    except Exception as refusal:
        mlflow_runs.client().set_model_version_tag(name, version.version, "release", f"refused: {refusal}"[:4000])
        raise
    return CheckedRelease(version, former, newer, of_late, num_asked, example)


def _require_not_rolled_back(version: ModelVersion) -> None:
    verdict = version.tags.get("release", "")
    if verdict.startswith(promotions.ROLLED_BACK):
        raise ReleaseRefused(
            f"{version.name} version {version.version} was {verdict}",
            required="a version that nobody has taken back",
            where="the version's tag `release` in the registry",
            remedy=f"make another one; or, if it is good after all, bloomery promote {version.name}:{version.version}",
        )


def _register(
    bento: Bento, name: str, period: str | None, former: ModelVersion | None, worse: Interval | None
) -> ModelVersion:
    candidate = bento.choice.candidate
    trained = bento.choice.candidates.trained
    task = trained.dataset.task
    contract = trained.dataset.valid_rows.contract
    tags = {
        registry.BENTO: bento.tag,
        "bento.digest": bento.digest,
        "candidate": candidate.name,
        "candidate.run": candidate.run_id,
        "score": format_score_value(task, candidate.score.value),
        **version_description.cost_tags(bento),
        "onnx.sha256": candidate.sha256,
        "training.run": trained.run_id,
        "weights.sha256": trained.digest,
        "weights.uri": trained.uri,
        "data.digest": trained.dataset.digest,
        "data.source": trained.dataset.valid_rows.raw_rows.source,
        "contract": f"{contract.name} {contract.version}",
        "lineage": json.dumps([list(line) for line in describe_lineage(bento)]),
    }
    if period is not None:
        tags[period_aliases.TAG] = period
    if trained.initial_weights is not None:
        tags |= {"start": trained.initial_weights.name, "start.sha256": trained.initial_weights.digest}
    if trained.privacy is not None:
        tags |= {"privacy.epsilon": f"{trained.privacy.epsilon:.6g}", "privacy.delta": f"{trained.privacy.delta:g}"}
    version_description.log_card(bento)
    description = version_description.describe_version(bento, former, worse)
    version = registry.register_version(name, _log_model(bento), candidate.run_id, tags, description)
    version_description.describe_model(name, bento)
    return version


def _log_model(bento: Bento) -> str:
    """The chosen ONNX file as an MLflow model of its candidate's run; returns its address."""
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    candidate = bento.choice.candidate
    kept = mlflow_runs.client().get_run(candidate.run_id).data.tags.get("model")
    if kept is not None:
        return kept
    model = onnx.load_from_string(decompress(settings().path(candidate.uri).read_bytes()))
    inputs, outputs = (
        Schema([TensorSpec(np.dtype("float32"), _shape(value), value.name) for value in values])
        for values in (model.graph.input, model.graph.output)
    )
    with mlflow.start_run(run_id=candidate.run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logged = mlflow.onnx.log_model(
            model,
            name="model",
            signature=ModelSignature(inputs, outputs),
            save_as_external_data=False,
            pip_requirements=[f"onnxruntime=={metadata.version('onnxruntime')}", f"onnx=={metadata.version('onnx')}"],
        )
    mlflow_runs.client().set_tag(candidate.run_id, "model", logged.model_uri)
    return str(logged.model_uri)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The shape that the file states, -1 where it leaves a size free."""
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in value.type.tensor_type.shape.dim)


def _ask_held_out_rows(bento: Bento, num_rows: int) -> tuple[int, dict[str, Any]]:
    """Start the bento and ask it raw rows, one by one and all at once.

    Returns:
        How many rows it was asked, and the first with its answer.

    Raises:
        ReleaseRefused: an answer is not the one that was measured for this row.
    """
    from bloomery.models.inference.outputs import TOLERANCE, score_unit

    dataset = bento.choice.candidates.trained.dataset
    shown = example_predictions(bento.choice, num_rows)
    rows = [one["row"] for one in shown]
    with serve_bento(bento.tag) as client:
        alone = [parse_predictions(post_rows(client, [row]), bento.tag)[0] for row in rows[:10]]
        together = parse_predictions(post_rows(client, rows), bento.tag)
    limit = TOLERANCE * score_unit(read_encoder(settings().path(dataset.encoder_uri)))
    known = read_measured_predictions(bento.choice).select([dataset.key, "truth"]).slice(0, num_rows).to_pylist()
    for position, answered in [*enumerate(alone), *enumerate(together)]:
        what = f"the row with {dataset.key} {known[position][dataset.key]}"
        require_same_prediction(answered, shown[position]["prediction"], limit, what, bento.tag)
    first = alone[0]
    if "label" in first:
        first = {"label": first["label"], "probability": max(first["probabilities"].values())}
    return len(rows), {"key": known[0][dataset.key], "truth": known[0]["truth"], **first}
