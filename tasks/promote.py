"""promote: a registered version becomes champion once its bento has answered held-out rows as measured."""

from __future__ import annotations

import json
import warnings
from datetime import date
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from data_contracts.digests import digest_of_document
from data_contracts.errors import ReleaseRefused
from data_contracts.records import Bento, Release, describe
from models.config import Gates
from tasks import artifacts, registry, tracking
from tasks.package import bento_folder
from tasks.parquet import read_batches
from tasks.serving import ask, served_bento
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_TOLERANCE = 1e-3  # of a probability: 8-bit arithmetic may round otherwise in a batch of another size


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
            _require_accuracy(bento, gates)
            _require_not_worse(bento, gates, former)
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
    contract = trained.dataset.checked.contract
    tags = {
        registry.BENTO: bento.tag,
        "bento.digest": bento.digest,
        "candidate": candidate.name,
        "candidate.run": candidate.run_id,
        "onnx.sha256": candidate.sha256,
        "training.run": trained.run_id,
        "weights.sha256": trained.digest,
        "data.digest": trained.dataset.digest,
        "data.source": trained.dataset.checked.rows.source,
        "contract": f"{contract.name} {contract.version}",
        "lineage": json.dumps([list(line) for line in describe(bento)]),
    }
    description = (
        f"{candidate.name}: accuracy {candidate.accuracy.value:.2%} "
        f"({candidate.accuracy.low:.2%} to {candidate.accuracy.high:.2%}) on {trained.dataset.test.num_rows} held-out "
        f"rows, {candidate.size_bytes:,} bytes, p50 {candidate.latency.p50_ms * 1000:.0f} µs, "
        f"{candidate.latency.ratio:.2f} x the time of fp32. Bento `{bento.tag}`."
    )
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
    dataset = bento.chosen.options.trained.dataset
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, *dataset.input_shape), "x")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, len(dataset.classes)), "logits")]),
    )
    with mlflow.start_run(run_id=candidate.run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logged = mlflow.onnx.log_model(
            onnx.load(settings().path(candidate.uri)),
            name="model",
            signature=signature,
            save_as_external_data=False,
            pip_requirements=[f"onnxruntime=={metadata.version('onnxruntime')}", f"onnx=={metadata.version('onnx')}"],
        )
    tracking.client().set_tag(candidate.run_id, "model", logged.model_uri)
    return str(logged.model_uri)


def _require_accuracy(bento: Bento, gates: Gates) -> None:
    measured = bento.chosen.candidate.accuracy.value
    if measured < gates.min_accuracy:
        raise ReleaseRefused(
            f"accuracy is {measured:.2%} on the held-out rows",
            required=f"at least {gates.min_accuracy:.2%}",
            where="the recipe's gates.min_accuracy",
            remedy="train longer or on more data; or lower the gate, if less will do",
        )


def _require_not_worse(bento: Bento, gates: Gates, former: ModelVersion | None) -> None:
    """Compare with the champion on the rows that are held out today, both as packaged."""
    from models.metrics import accuracy_drop

    tag = None if former is None else former.tags.get(registry.BENTO)
    if tag is None or tag == bento.tag:
        return
    rows = _held_out_rows(bento)
    theirs = _answers_of(tag, rows)
    if theirs is None:  # the champion reads other columns: there is nothing to compare
        return
    dataset = bento.chosen.options.trained.dataset
    truth = np.array(rows[dataset.label].to_pylist(), dtype=object)
    ours = np.array(_measured_answers(bento)["answer"].to_pylist(), dtype=object)
    drop = accuracy_drop(theirs == truth, ours == truth)
    if drop.high > gates.champion_drop:
        raise ReleaseRefused(
            f"against champion {tag} accuracy falls by {drop.value * 100:.2f} pp "
            f"(95% interval {drop.low * 100:.2f} to {drop.high * 100:.2f} pp)",
            required=f"an interval that ends below {gates.champion_drop * 100:.2f} pp",
            where=f"the {rows.num_rows} held-out rows; the recipe's gates.champion_drop",
            remedy="improve the model; or relax the gate, if the champion need not be matched",
        )


def _answers_of(tag: str, rows: pa.Table) -> np.ndarray | None:
    """The labels that another bento's own files give for raw rows; None if it cannot read them."""
    from models.encoder import encode, read_encoder
    from models.runtime import answer, session

    folder = bento_folder(tag) / "src" / "artifacts"
    try:
        encoder = read_encoder(folder / "encoder.json")
        x = encode(encoder, rows)
        logits_BK = answer(session(folder / "model.onnx"), x)
    except Exception:  # whatever a former version holds, it must not stop the next one
        return None
    return np.array(encoder.classes, dtype=object)[logits_BK.argmax(axis=1)]


def _measured_answers(bento: Bento) -> pa.Table:
    return pq.read_table(settings().path(bento.chosen.candidate.answers_uri))


def _held_out_rows(bento: Bento) -> pa.Table:
    """The raw rows of the test part, in the order of the measured answers."""
    dataset = bento.chosen.options.trained.dataset
    keys = _measured_answers(bento)[dataset.key]
    names = [dataset.key, dataset.label, *dataset.inputs]
    rows = pa.Table.from_batches(list(read_batches(settings().path(dataset.test_rows_uri), names)))
    return rows.take(pc.index_in(keys.cast(rows.schema.field(dataset.key).type), rows[dataset.key]))


def _ask_held_out_rows(bento: Bento, num_rows: int) -> tuple[int, dict[str, Any]]:
    """Start the bento and ask it raw rows, one by one and all at once.

    Returns:
        How many rows it was asked, and the first with its answer.

    Raises:
        ReleaseRefused: an answer is not the one that was measured for this row.
    """
    dataset = bento.chosen.options.trained.dataset
    expected = _measured_answers(bento).slice(0, num_rows)
    held_out = _held_out_rows(bento).slice(0, num_rows).select(list(dataset.inputs)).to_pylist()
    rows = [{name: _as_sent(value) for name, value in row.items()} for row in held_out]
    with served_bento(bento.tag) as client:
        answers = [_predictions(ask(client, [row]), bento)[0] for row in rows[:10]]
        together = _predictions(ask(client, rows), bento)
    for position, answered in [*enumerate(answers), *enumerate(together)]:
        _require_same(answered, expected.slice(position, 1).to_pylist()[0], dataset.key, bento)
    first = expected.slice(0, 1).to_pylist()[0]
    shares = answers[0]["probabilities"]
    example = {
        "key": first[dataset.key],
        "truth": first["truth"],
        "label": answers[0]["label"],
        "probability": max(shares.values()),
    }
    return len(rows), example


def _as_sent(value: Any) -> Any:
    """A value of the checked rows as a client would send it."""
    return value.isoformat() if isinstance(value, date) else value


def _predictions(response: Any, bento: Bento) -> list[dict[str, Any]]:
    if not response.is_success:
        raise ReleaseRefused(
            f"the bento answered {response.status_code}: {response.text[:500]}",
            required="200 for rows that keep the contract",
            where=f"bento {bento.tag}",
            remedy="the packaged service is at fault: look into its log in the state folder",
        )
    return list(response.json()["predictions"])


def _require_same(answered: dict[str, Any], measured: dict[str, Any], key: str, bento: Bento) -> None:
    shares = np.array(list(answered["probabilities"].values()))
    furthest = float(np.abs(shares - np.array(measured["probabilities"])).max())
    if answered["label"] != measured["answer"] or furthest > _TOLERANCE:
        raise ReleaseRefused(
            f"for the row with {key} {measured[key]} the bento answers {answered['label']}, "
            f"with probabilities that differ by up to {furthest:.2g}",
            required=f"{measured['answer']}, as was measured, within {_TOLERANCE:g}",
            where=f"bento {bento.tag}",
            remedy="serving and training disagree: report it; the champion stands",
        )
