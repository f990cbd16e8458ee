"""compress: every candidate, exported and measured in the form in which it ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.digests import digest_of_document, digest_of_file
from data_contracts.records import Candidate, Dataset, Interval, Latency, Options, Trained
from models.config import CandidateSpec, Compression
from tasks import tracking
from tasks.events import Progress, emit
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    from torch import nn

    from models.batches import Examples
    from models.networks import Blueprint


_UNCHANGED = Interval(value=0.0, low=0.0, high=0.0)  # the baseline against itself: nothing is sampled


class _Parts(NamedTuple):
    train: Examples
    val: Examples
    test: Examples


class _Made(NamedTuple):
    """A candidate's ONNX file, before it is measured."""

    spec: CandidateSpec
    path: Path
    num_parameters: int
    parity_error: float


def _runs_are_kept(record: Options) -> bool:
    return all(tracking.run_exists(candidate.run_id) for candidate in record.candidates)


@stage(is_whole=_runs_are_kept)
def compress(out: Output, trained: Trained, compression: Compression) -> Options:
    """Afterwards there is an ONNX file and a table of answers on the test part for each candidate.

    Candidates that are pruned alike share one pruned network, fine-tuned once.
    """
    from models import latency
    from models.batches import read_examples
    from models.networks import fix_randomness, read_network

    dataset = trained.dataset
    fix_randomness(seed=0, num_threads=1)
    parts = _Parts(
        *(
            read_examples(settings().path(part.uri), dataset.key, dataset.input_shape)
            for part in (dataset.train, dataset.val, dataset.test)
        )
    )
    source, blueprint = read_network(settings().path(trained.uri), settings().path(trained.network_uri))
    made = _make_all(out, source, blueprint, parts, compression)
    baseline = next(spec.name for spec in compression.candidates if spec.prune is None and spec.quantize is None)
    timed = latency.compare(
        {one.spec.name: one.path for one in made},
        parts.test.x[:1].numpy(),
        baseline=baseline,
        rounds=compression.latency_rounds,
    )
    candidates = _measure_all(out, made, parts.test, dataset, timed, trained, baseline)
    return Options(
        candidates=candidates,
        trained=trained,
        # Times differ from run to run; what the candidates are and answer does not.
        digest=digest_of_document([[one.name, one.sha256, one.accuracy.value] for one in candidates]),
    )


def _make_all(
    out: Output, source: nn.Module, blueprint: Blueprint, parts: _Parts, compression: Compression
) -> list[_Made]:
    """An ONNX file for each candidate: pruned and fine-tuned first, then exported, then quantized."""
    from models.export import export
    from models.networks import num_parameters
    from models.quantization import quantize

    floats: dict[float | None, _Made] = {}
    made = []
    for position, spec in enumerate(compression.candidates):
        emit(Progress("compress", position, len(compression.candidates), spec.name))
        if spec.prune not in floats:
            network = source if spec.prune is None else _pruned(source, blueprint, spec.prune, parts, compression)
            path = out.path(f"float-{spec.prune or 0:g}.onnx")
            error = export(network, parts.test.x, path)
            floats[spec.prune] = _Made(spec, path, num_parameters(network), error)
        parent = floats[spec.prune]
        path = out.path(f"{spec.name}.onnx")
        if spec.quantize is None:
            path.write_bytes(parent.path.read_bytes())
        else:
            # Rows are sorted by key, so a step through them is an even sample.
            step = max(len(parts.train.x) // compression.calibration_rows, 1)
            calibration = parts.train.x[::step][: compression.calibration_rows]
            quantize(parent.path, path, calibration.numpy())
        made.append(parent._replace(spec=spec, path=path))
    for parent in floats.values():
        parent.path.unlink()
    return made


def _pruned(
    source: nn.Module, blueprint: Blueprint, share: float, parts: _Parts, compression: Compression
) -> nn.Module:
    from models.pruning import prune
    from models.training import train

    network, _ = prune(source, blueprint, share)
    train(network, parts.train, parts.val, compression.fine_tune, seed=0)
    return network


def _measure_all(
    out: Output,
    made: list[_Made],
    test: Examples,
    dataset: Dataset,
    timed: dict[str, Latency],
    trained: Trained,
    baseline: str,
) -> tuple[Candidate, ...]:
    from models.metrics import accuracy, accuracy_drop
    from models.runtime import answer, session, softmax

    truth = test.y.numpy()
    shares = {one.spec.name: softmax(answer(session(one.path), test.x.numpy())) for one in made}
    correct = {name: answers.argmax(1) == truth for name, answers in shares.items()}
    candidates = []
    for one in made:
        name = one.spec.name
        answers_path = out.path(f"{name}-answers.parquet")
        _write_answers(answers_path, dataset, test, shares[name])
        candidate = Candidate(
            name=name,
            uri=out.uri(one.path.name),
            sha256=digest_of_file(one.path),
            run_id="",
            size_bytes=one.path.stat().st_size,
            num_parameters=one.num_parameters,
            accuracy=accuracy(correct[name]),
            drop=_UNCHANGED if name == baseline else accuracy_drop(correct[baseline], correct[name]),
            latency=timed[name],
            parity_error=one.parity_error,
            answers_uri=out.uri(answers_path.name),
        )
        candidates.append(candidate.model_copy(update={"run_id": _log(candidate, one, out, trained)}))
    return tuple(candidates)


def _write_answers(path: Path, dataset: Dataset, test: Examples, shares_BK: np.ndarray) -> None:
    """What the candidate answered for each row of the test part: promote asks the bento the same."""
    classes = np.array(dataset.classes, dtype=object)
    table = pa.table(
        {
            dataset.key: pa.array(test.key),
            "truth": pa.array(classes[test.y.numpy()].tolist()),
            "answer": pa.array(classes[shares_BK.argmax(1)].tolist()),
            "probabilities": pa.array(list(shares_BK), pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, path)


def _log(candidate: Candidate, made: _Made, out: Output, trained: Trained) -> str:
    """A run for the candidate, below the training run, with the ONNX file as its artifact."""
    tags = {
        "mlflow.parentRunId": trained.run_id,
        "candidate": candidate.name,
        "onnx.sha256": candidate.sha256,
        "data.digest": trained.dataset.digest,
    }
    experiment_name = trained.dataset.checked.contract.name
    with tracking.logged_run(experiment_name, f"candidate-{candidate.name}", out.key, tags) as run_id:
        tracking.log_params(run_id, made.spec.model_dump())
        tracking.log_figures(
            run_id,
            {
                "test_accuracy": candidate.accuracy.value,
                "test_accuracy_low": candidate.accuracy.low,
                "test_accuracy_high": candidate.accuracy.high,
                "accuracy_drop_high": candidate.drop.high,
                "size_bytes": candidate.size_bytes,
                "num_parameters": candidate.num_parameters,
                "latency_p50_ms": candidate.latency.p50_ms,
                "latency_p99_ms": candidate.latency.p99_ms,
                "latency_ratio": candidate.latency.ratio,
                "parity_error": candidate.parity_error,
            },
        )
        tracking.client().log_artifact(run_id, str(made.path), "onnx")
    return run_id
