"""Measures candidates on the test split: metrics, a table of predictions and an MLflow run for each.

Shapes: N rows, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.output_units import restore_units
from bloomery.data_contracts.records.records import Candidate, Dataset, Flips, Interval, Latency, TrainedNetwork
from bloomery.data_contracts.records.score_format import DEGRADATION_NAMES, degradation_name
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task, predicts_numbers, predicts_one_class
from bloomery.data_contracts.serving.entities import NO_TAG
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.compression.config import CandidateSpec
from bloomery.models.features.encoder import read_encoder
from bloomery.models.features.labels import list_values, name_labels, name_tags
from bloomery.models.profiling.cpu_features import cpu_flags, needs_reduced_range
from bloomery.tasks.compress.baseline_comparison import (
    SplitPredictions,
    bound_degradation,
    held_out_truths,
    measure_disagreements,
    measure_intervals,
    measure_output_changes,
    measure_recalls,
    predict_splits,
    prediction_changes,
    sample_splits,
)
from bloomery.tasks.compress.built_candidate import SEED, BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateSplits
from bloomery.tasks.evaluation.candidate_table import latency_columns
from bloomery.tasks.evaluation.output_scores import (
    class_output_columns,
    name_class_rows,
    output_columns,
    score_each_class_output,
    score_each_output,
)
from bloomery.tasks.evaluation.row_predictions import RowPredictions, predict_rows
from bloomery.tasks.evaluation.scoring import (
    GroundTruth,
    build_ground_truth,
    class_table,
    compare_predictions,
    compute_all_scores,
    degradation_by_class,
    degradation_by_slice,
    entity_table,
    point_predictions,
    score_predictions,
    slice_table,
)
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs

_PACKAGES = ("onnx", "onnxruntime", "torch")  # that bits and latencies depend on
_NO_DEGRADATION = Interval(value=0.0, low=0.0, high=0.0)  # of the baseline, compared with itself
_COST_FIELDS = frozenset(
    {
        "size_bytes",
        "vector_bytes",
        "zstd_bytes",
        "coded_bytes",
        "num_parameters",
        "num_nonzero",
        "num_macs",
        "integer_share",
    }
)


class _Predictions(NamedTuple):
    """Predictions of one candidate and of the baseline for the test rows, and the score that compares them."""

    truth: GroundTruth
    values: np.ndarray  # probabilities (N, K), numbers (N,), ranks (N,), or codes of tags (N, T)
    baseline: np.ndarray  # the same of the baseline
    score: Score
    vectors: np.ndarray | None = None  # of an embedding (N, W), whose predictions are ranks
    shares: np.ndarray | None = None  # of a tagging task, the probabilities (N, T) of the tags


def measure_candidates(
    out: Output,
    built: list[BuiltCandidate],
    splits: CandidateSplits,
    trained: TrainedNetwork,
    latencies: Mapping[str, tuple[Latency, ...]],
    baseline: str,
) -> tuple[Candidate, ...]:
    """Measures each candidate, writes its table of predictions and logs it as an MLflow run.

    `latencies` holds the latencies of each candidate by batch size, those of one row first.
    """
    from bloomery.models.inference.outputs import compute_outputs

    dataset = trained.dataset
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    truth = build_ground_truth(encoder, dataset, splits.test)
    x, y = splits.test.x.numpy(), splits.test.y.numpy()

    def predict(candidate: BuiltCandidate) -> RowPredictions:
        session = candidate.open_session()
        compute = partial(compute_outputs, session, is_row_by_row=candidate.is_row_by_row)
        return predict_rows(encoder, x, y, compute)

    results = {candidate.spec.name: predict(candidate) for candidate in built}
    predictions = {name: result.values for name, result in results.items()}
    score = trained.score
    samples = sample_splits(splits, is_private=trained.privacy is not None)

    def compare(candidate: BuiltCandidate) -> SplitPredictions:
        return predict_splits(candidate, encoder, samples, predictions[candidate.spec.name])

    before = compare(next(candidate for candidate in built if candidate.spec.name == baseline))
    candidates = []
    for candidate in built:
        name = candidate.spec.name
        _, vectors, shares = results[name]
        candidate_predictions = _Predictions(truth, predictions[name], predictions[baseline], score, vectors, shares)
        record = _measure(out, candidate, dataset, candidate_predictions, latencies[name], is_baseline=name == baseline)
        after = before if name == baseline else compare(candidate)
        comparison: dict[str, Any] = {"recalls": measure_recalls(dataset, samples, before, after)}
        if dataset.class_outputs:
            changed_outputs = measure_output_changes(record.class_outputs, dataset, samples, before, after)
            comparison["class_outputs"] = changed_outputs
        if name != baseline:
            changes = prediction_changes(dataset.task, before, after)
            comparison["disagreements"] = measure_disagreements(dataset.task, changes)
            truths = held_out_truths(encoder, dataset, samples)
            comparison["bound_by_disagreement"] = bound_degradation(score, truths, before, after)
        if dataset.task == "regression":
            comparison["interval"] = measure_intervals(encoder, samples, after)
        record = record.model_copy(update=comparison)
        run_id = _log_candidate(record, candidate, out, trained, candidate_predictions)
        candidates.append(record.model_copy(update={"run_id": run_id}))
    return tuple(candidates)


def _measure(
    out: Output,
    candidate: BuiltCandidate,
    dataset: Dataset,
    predictions: _Predictions,
    latencies: tuple[Latency, ...],
    *,
    is_baseline: bool,
) -> Candidate:
    """The record of a candidate, without its run, and its table of predictions."""
    from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
    from bloomery.models.onnx_storage.sizes import count_nonzero, measure_zstd_bytes

    task, truth, spec, path = dataset.task, predictions.truth, candidate.spec, candidate.path
    score, before, after = predictions.score, predictions.baseline, predictions.values
    table_path = out.path(f"{spec.name}-predictions.parquet")
    _write_predictions(table_path, dataset, predictions)
    integer_share = measure_integer_coverage(path).share
    return Candidate(
        name=spec.name,
        uri=out.uri(path.name),
        sha256=digest_of_file(path),
        run_id="",
        size_bytes=path.stat().st_size,
        vector_bytes=None if predictions.vectors is None else _vector_bytes(spec, predictions.vectors),
        zstd_bytes=measure_zstd_bytes(path),
        coded_bytes=_find_coded_bytes(candidate),
        num_parameters=candidate.num_parameters,
        num_nonzero=count_nonzero(path),
        num_macs=candidate.num_macs or None,
        integer_share=integer_share,
        needs_vnni=integer_share > 0 and not spec.reduce_range and not needs_reduced_range(cpu_flags()),
        score=score_predictions(score, truth, after),
        metrics=compute_all_scores(dataset.task, score, truth, after),
        degradation=_NO_DEGRADATION if is_baseline else compare_predictions(score, truth, before, after),
        flips=None if predicts_numbers(task) or task == "embedding" else _count_flips(task, truth, before, after),
        outputs=score_each_output(dataset.outputs, truth, after),
        class_outputs=score_each_class_output(dataset.class_outputs, truth, after),
        latencies=latencies,
        parity_error=candidate.parity_error,
        predictions_uri=out.uri(table_path.name),
        is_row_by_row=candidate.is_row_by_row,
    )


def _vector_bytes(spec: CandidateSpec, vectors_NW: np.ndarray) -> int:
    """The size of one vector as a client may store it."""
    return int(vectors_NW.shape[1]) * (1 if spec.vectors == "int8" else 4)


def _find_coded_bytes(candidate: BuiltCandidate) -> int | None:
    """The size after entropy coding, in whatever form the candidate ships."""
    from bloomery.models.onnx_storage.sizes import measure_coded_bytes

    if candidate.spec.storage == "entropy_coded":
        return candidate.path.stat().st_size
    return measure_coded_bytes(candidate.path) if candidate.spec.storage is None else candidate.coded_bytes


def _count_flips(task: Task, truth: GroundTruth, before: np.ndarray, after: np.ndarray) -> Flips:
    correct_before, correct_after = (point_predictions(task, values) == truth.truth for values in (before, after))
    if task == "multitask":
        correct_before, correct_after = (correct | (truth.truth < 0) for correct in (correct_before, correct_after))
    if correct_before.ndim == 2:  # whole sets, rows of several labels, and sentences
        correct_before, correct_after = correct_before.all(axis=1), correct_after.all(axis=1)
    return Flips(
        num_lost=int((correct_before & ~correct_after).sum()), num_gained=int((~correct_before & correct_after).sum())
    )


def _write_predictions(path: Path, dataset: Dataset, measured: _Predictions) -> None:
    """Writes key, truth and prediction of each test row; `promote` compares the bento's predictions with these."""
    truth, predictions = measured.truth, measured.values
    columns: dict[str, Any] = {key_column(dataset.key): pa.array(truth.key)}
    if predicts_one_class(dataset.task):
        classes = np.array(dataset.classes, dtype=object)
        columns["truth"] = pa.array(classes[truth.truth].tolist())
        columns["prediction"] = pa.array(classes[predictions.argmax(axis=1)].tolist())
        columns["probabilities"] = pa.array(list(predictions), pa.list_(pa.float64()))
    elif dataset.task == "multilabel":
        columns["truth"] = name_labels(dataset.classes, truth.truth)
        columns["prediction"] = name_labels(dataset.classes, decide_labels(predictions))
        columns["probabilities"] = pa.array(list(predictions), pa.list_(pa.float64()))
    elif measured.shares is not None:
        is_word_NT = truth.truth != NO_TAG
        columns["truth"], columns["prediction"] = (
            name_tags(dataset.classes, codes, is_word_NT) for codes in (truth.truth, predictions)
        )
        columns["probabilities"] = list_values(pa.array(measured.shares[is_word_NT], pa.float64()), is_word_NT)
    elif measured.vectors is not None:
        columns["truth"] = pa.array(truth.truth)
        columns["prediction"] = pa.array(list(measured.vectors), pa.list_(pa.float32()))
        columns["rank"] = pa.array(predictions)
    elif dataset.class_outputs:
        classes_NM = point_predictions(dataset.task, predictions)
        for name, positions_NM in (("truth", truth.truth), ("prediction", classes_NM)):
            columns[name] = pa.array(name_class_rows(dataset.class_outputs, positions_NM))
        columns["probabilities"] = pa.array(list(predictions.reshape(len(predictions), -1)), pa.list_(pa.float64()))
    elif dataset.outputs:
        for name, values_NK in (("truth", truth.truth), ("prediction", predictions)):
            labels = restore_units(dataset.outputs, values_NK).tolist()
            columns[name] = pa.array([[None if math.isnan(label) else label for label in row] for row in labels])
    else:
        columns["truth"] = pa.array(truth.truth)
        columns["prediction"] = pa.array(predictions)
    pq.write_table(pa.table(columns), path)


def _log_candidate(
    record: Candidate, candidate: BuiltCandidate, out: Output, trained: TrainedNetwork, predictions: _Predictions
) -> str:
    """Logs a run below the training run, with the files and tables of the candidate; returns its id."""
    dataset = trained.dataset
    tags = {
        "mlflow.parentRunId": trained.run_id,
        "candidate": record.name,
        "onnx.sha256": record.sha256,
        "data.digest": dataset.digest,
        "processor.flags": " ".join(cpu_flags()),
        **{f"{package}.version": metadata.version(package) for package in _PACKAGES},
    }
    if candidate.calibration is not None:
        tags["calibration.sha256"] = candidate.calibration
    experiment_name, extra_files = dataset.valid_rows.contract.name, candidate.extra_files
    with mlflow_runs.logged_run(experiment_name, f"candidate-{record.name}", out.key, tags) as run_id:
        shift = {} if candidate.scope_shift is None else {"out_of_scope_shift": f"{candidate.scope_shift:.4f}"}
        mlflow_runs.log_params(run_id, {**candidate.spec.model_dump(), "seed": SEED, **shift})
        mlflow_runs.log_metrics(
            run_id,
            {
                **_score_metrics(predictions.score, record),
                **_cost_metrics(record),
                **{f"latency_{name}": value for name, value in latency_columns(record.latencies).items()},
                "parity_error": record.parity_error,
                **({} if candidate.removed_tokens is None else {"test_removed_tokens": candidate.removed_tokens}),
                **{f"{extra.format}_parity_error": extra.parity_error for extra in extra_files},
                **{f"{extra.format}_bytes": extra.path.stat().st_size for extra in extra_files},
            },
        )
        for folder, path in (("onnx", candidate.path), *((extra.format, extra.path) for extra in extra_files)):
            mlflow_runs.client().log_artifact(run_id, str(path), folder)
        _log_tables(run_id, trained, predictions)
    return run_id


def _log_tables(run_id: str, trained: TrainedNetwork, predictions: _Predictions) -> None:
    """Logs the metrics and the degradation of each class and of each slice."""
    dataset, truth, client = trained.dataset, predictions.truth, mlflow_runs.client()
    before, after = (point_predictions(dataset.task, values) for values in (predictions.baseline, predictions.values))
    if dataset.task == "tagging":
        client.log_table(run_id, entity_table(dataset.classes, truth, predictions.values), "per_class.json")
    elif dataset.classes:
        table = class_table(dataset.classes, truth, predictions.values)
        drops = {part.value: part.degradation for part in degradation_by_class(dataset, truth, before, after)}
        table |= _degradation_columns(dataset.task, [drops.get(name) for name in table["class"]])
        client.log_table(run_id, table, "per_class.json")
    if dataset.class_outputs:
        class_scores = score_each_class_output(dataset.class_outputs, truth, predictions.values)
        client.log_table(run_id, class_output_columns(class_scores), "per_output.json")
    if dataset.outputs:
        table = output_columns(score_each_output(dataset.outputs, truth, predictions.values))
        client.log_table(run_id, table, "per_output.json")
    if trained.slice_columns:
        table = slice_table(dataset, trained.slice_columns, truth, predictions.values)
        slices = degradation_by_slice(dataset, trained.slice_columns, truth, before, after)
        table |= _degradation_columns(dataset.task, [part.degradation for part in slices])
        client.log_table(run_id, table, "per_slice.json")


def _degradation_columns(task: Task, degradations: Sequence[Interval | None]) -> dict[str, list[Any]]:
    name = DEGRADATION_NAMES[task]
    return {
        name: [None if degradation is None else degradation.value for degradation in degradations],
        f"{name}_low": [None if degradation is None else degradation.low for degradation in degradations],
        f"{name}_high": [None if degradation is None else degradation.high for degradation in degradations],
    }


def _cost_metrics(record: Candidate) -> dict[str, float]:
    """The known costs of storing and running the candidate, except for latency."""
    costs = record.model_dump(include=set(_COST_FIELDS))
    return {name: cost for name, cost in costs.items() if cost is not None}


def _score_metrics(score: Score, record: Candidate) -> dict[str, float]:
    """All metrics of the test split, by their names in MLflow."""
    name = f"{score.name}_{degradation_name(score)}"
    values = {f"test_{metric}": value for metric, value in record.metrics.items()}
    for title, interval in ((f"test_{score.name}", record.score), (name, record.degradation)):
        values |= {title: interval.value, f"{title}_low": interval.low, f"{title}_high": interval.high}
    values |= {f"{compared.split}_disagreement": compared.change for compared in record.disagreements}
    if record.interval is not None:
        coverage = record.interval.coverage
        values |= {"interval_level": record.interval.level, "interval_half_width": record.interval.half_width}
        values |= {"interval_coverage": coverage.value, "interval_coverage_low": coverage.low}
        values |= {"interval_coverage_high": coverage.high}
    if record.flips is not None:
        values |= {"flips_lost": record.flips.num_lost, "flips_gained": record.flips.num_gained}
    return values
