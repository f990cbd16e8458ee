"""promote: a registered version becomes champion once its bento has answered held-out rows as measured."""

from __future__ import annotations

import json
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from data_contracts.digests import digest_of_document
from data_contracts.errors import ReleaseRefused
from data_contracts.records import Bento, Release, describe
from data_contracts.scores import SCORES, score_in_words
from models.compression.decoding import opened
from models.config import Gates
from models.encoder import read_encoder
from tasks import artifacts, registry, tracking
from tasks.gates import require_not_worse, require_score
from tasks.held_out import measured_answers, rows_as_sent
from tasks.serving import ask, served_bento
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    import onnx
    from mlflow.entities.model_registry import ModelVersion


def _is_champion(record: Release) -> bool:
    current = registry.champion(record.name)
    return (
        current is not None
        and int(current.version) == record.version
        and current.tags.get(registry.BENTO) == record.bento.tag
    )


@stage(is_whole=_is_champion, present=artifacts.release_card)
def promote(out: Output, bento: Bento, gates: Gates) -> Release:
    """Afterwards the alias `champion` names the version of this bento.

    Raises:
        ReleaseRefused: a gate is missed, or the served bento answers otherwise than was measured. The version is
            registered and tagged as refused, and the former champion stands.
    """
    name = bento.tag.split(":")[0]
    with FileLock(settings().home / f"promote-{name}.lock"):
        former = registry.champion(name)
        version = _register(bento, name)
        try:
            require_score(bento, gates)
            require_not_worse(bento, gates, former)
            num_asked, example = _ask_held_out_rows(bento, gates.num_rows)
        except Exception as refusal:
            tracking.client().set_model_version_tag(name, version.version, "release", f"refused: {refusal}"[:4000])
            raise
        tracking.client().set_registered_model_alias(name, registry.CHAMPION, version.version)
        tracking.client().set_model_version_tag(name, version.version, "release", "promoted")
    return Release(
        name=name,
        version=int(version.version),
        alias=registry.CHAMPION,
        num_asked=num_asked,
        example=json.dumps(example),
        replaced_version=int(former.version) if former and former.version != version.version else None,
        bento=bento,
        digest=digest_of_document([name, bento.digest]),
    )


def _register(bento: Bento, name: str) -> ModelVersion:
    candidate = bento.chosen.candidate
    trained = bento.chosen.options.trained
    task = trained.dataset.task
    contract = trained.dataset.checked.contract
    tags = {
        registry.BENTO: bento.tag,
        "bento.digest": bento.digest,
        "candidate": candidate.name,
        "candidate.run": candidate.run_id,
        "onnx.sha256": candidate.sha256,
        "training.run": trained.run_id,
        "weights.sha256": trained.digest,
        "weights.uri": trained.uri,
        "data.digest": trained.dataset.digest,
        "data.source": trained.dataset.checked.rows.source,
        "contract": f"{contract.name} {contract.version}",
        "lineage": json.dumps([list(line) for line in describe(bento)]),
    }
    description = (
        f"{candidate.name}: {SCORES[task]} {score_in_words(task, candidate.score)} on {trained.dataset.test.num_rows} "
        f"held-out rows, {candidate.size_bytes:,} bytes, p50 {candidate.latency.p50_ms * 1000:.0f} µs, "
        f"{candidate.latency.ratio.value:.2f} x the time of fp32. Bento `{bento.tag}`."
    )
    if trained.start is not None:
        tags |= {"start": trained.start.name, "start.sha256": trained.start.digest}
    if trained.privacy is not None:
        tags |= {"privacy.epsilon": f"{trained.privacy.epsilon:.6g}", "privacy.delta": f"{trained.privacy.delta:g}"}
        description += f" Each training row is {trained.privacy}."
    version = registry.register(name, _log_model(bento), candidate.run_id, tags, description)
    purpose = contract.description.get("purpose", "")
    tracking.client().update_registered_model(name, f"{purpose}\n\nServed by `bloomery serve {name}`.".strip())
    return version


def _log_model(bento: Bento) -> str:
    """The chosen ONNX file as an MLflow model of its candidate's run; returns its address."""
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    candidate = bento.chosen.candidate
    kept = tracking.client().get_run(candidate.run_id).data.tags.get("model")
    if kept is not None:
        return kept
    model = onnx.load_from_string(opened(settings().path(candidate.uri).read_bytes()))
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
    tracking.client().set_tag(candidate.run_id, "model", logged.model_uri)
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
    from models.answers import unit_of

    dataset = bento.chosen.options.trained.dataset
    expected = measured_answers(bento.chosen).slice(0, num_rows)
    rows = rows_as_sent(bento.chosen, num_rows)
    with served_bento(bento.tag) as client:
        answers = [_predictions(ask(client, [row]), bento)[0] for row in rows[:10]]
        together = _predictions(ask(client, rows), bento)
    unit = unit_of(read_encoder(settings().path(dataset.encoder_uri)))
    for position, answered in [*enumerate(answers), *enumerate(together)]:
        _require_same(answered, expected.slice(position, 1).to_pylist()[0], dataset.key, unit, bento)
    first = expected.slice(0, 1).to_pylist()[0]
    return len(rows), {"key": first[dataset.key], "truth": first["truth"], **_in_short(answers[0])}


def _in_short(answered: dict[str, Any]) -> dict[str, Any]:
    if "value" in answered:
        return {"value": answered["value"]}
    return {"label": answered["label"], "probability": max(answered["probabilities"].values())}


def _predictions(response: Any, bento: Bento) -> list[dict[str, Any]]:
    if not response.is_success:
        raise ReleaseRefused(
            f"the bento answered {response.status_code}: {response.text[:500]}",
            required="200 for rows that keep the contract",
            where=f"bento {bento.tag}",
            remedy="the packaged service is at fault: look into its log in the state folder",
        )
    return list(response.json()["predictions"])


def _require_same(answered: dict[str, Any], measured: dict[str, Any], key: str, unit: float, bento: Bento) -> None:
    from models.answers import TOLERANCE

    if "value" in answered:
        furthest = abs(answered["value"] - measured["answer"])
        is_same, told = furthest <= TOLERANCE * unit, f"{answered['value']:g}, which is {furthest:.2g} off"
    else:
        shares = np.array(list(answered["probabilities"].values()))
        furthest = float(np.abs(shares - np.array(measured["probabilities"])).max())
        is_same = answered["label"] == measured["answer"] and furthest <= TOLERANCE * unit
        told = f"{answered['label']}, with probabilities that differ by up to {furthest:.2g}"
    if not is_same:
        raise ReleaseRefused(
            f"for the row with {key} {measured[key]} the bento answers {told}",
            required=f"{measured['answer']}, as was measured, within {TOLERANCE * unit:g}",
            where=f"bento {bento.tag}",
            remedy="serving and training disagree: report it; the champion stands",
        )
