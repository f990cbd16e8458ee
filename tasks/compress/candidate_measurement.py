"""What candidates answer on the test part: figures, a table of answers and an MLflow run for each.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.records.records import Candidate, Dataset, Flips, Interval, Latency, TrainedNetwork
from bloomery.data_contracts.records.score_format import DEGRADATION_NAMES
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.compression.config import CandidateSpec, ExtraFormat
from bloomery.models.evaluation import metrics
from bloomery.models.features.encoder import read_encoder
from bloomery.models.profiling.cpu_features import cpu_flags, needs_reduced_range
from bloomery.tasks.evaluation.candidate_table import latency_columns
from bloomery.tasks.evaluation.scoring import (
    GroundTruth,
    build_ground_truth,
    class_table,
    degradation_by_class,
    degradation_by_slice,
    measure_degradation,
    point_predictions,
    score_rows,
    slice_table,
)
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.training.data.batches import Examples

SEED = 0  # of all that is drawn for candidates: what they see as they learn, and in which order they are timed
_PACKAGES = ("onnx", "onnxruntime", "torch")  # on which bits and times depend
_UNCHANGED = Interval(value=0.0, low=0.0, high=0.0)  # the baseline against itself: nothing is sampled


class ExtraFile(NamedTuple):
    """A candidate in another form than ONNX."""

    form: ExtraFormat
    path: Path
    parity_error: float  # of an output from PyTorch's, at most


class BuiltCandidate(NamedTuple):
    """A candidate's ONNX file, before it is measured."""

    spec: CandidateSpec
    path: Path
    num_parameters: int
    parity_error: float
    ranges: Mapping[str, tuple[float, float]] | None = None  # of what goes into layers, if they were learnt
    num_macs: int = 0  # for one row; 0 of a network that came trained
    calibration: str | None = None  # sha256 of the rows that gave ranges to its activations, where they are fixed
    coded_bytes: int | None = None  # of what ships as zstd, for which it has to be known before
    network: nn.Module | None = None  # before it is quantized, if other forms are wanted
    others: tuple[ExtraFile, ...] = ()
    fused: Path | None = None  # the same with attention as one operator, if it has any

    @property
    def is_row_by_row(self) -> bool:
        return self.spec.quantize == "dynamic"


def measure_candidates(
    out: Output,
    made: list[BuiltCandidate],
    test: Examples,
    trained: TrainedNetwork,
    timed: Mapping[str, tuple[Latency, ...]],
    baseline: str,
) -> tuple[Candidate, ...]:
    """Afterwards there is a table of answers and a run for each candidate that was made.

    `timed` has each one's latencies by batch size, that of one row first.
    """
    from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
    from bloomery.models.inference.outputs import compute_outputs, predictions_from
    from bloomery.models.inference.runtime import create_session
    from bloomery.models.onnx_storage.sizes import count_nonzero, measure_zstd_bytes

    dataset = trained.dataset
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    rows = build_ground_truth(encoder, dataset, test)
    x = test.x.numpy()
    given = {
        one.spec.name: predictions_from(
            encoder, compute_outputs(create_session(one.path), x, is_row_by_row=one.is_row_by_row)
        )
        for one in made
    }
    before = point_predictions(dataset.task, given[baseline])
    candidates = []
    for one in made:
        name, share = one.spec.name, measure_integer_coverage(one.path).share
        answers_path = out.path(f"{name}-answers.parquet")
        _write_answers(answers_path, dataset, rows, given[name])
        after = point_predictions(dataset.task, given[name])
        candidate = Candidate(
            name=name,
            uri=out.uri(one.path.name),
            sha256=digest_of_file(one.path),
            run_id="",
            size_bytes=one.path.stat().st_size,
            zstd_bytes=measure_zstd_bytes(one.path),
            coded_bytes=_coded_bytes(one),
            num_parameters=one.num_parameters,
            num_nonzero=count_nonzero(one.path),
            num_macs=one.num_macs or None,
            integer_share=share,
            needs_vnni=share > 0 and not one.spec.reduce_range and not needs_reduced_range(cpu_flags()),
            score=score_rows(dataset.task, rows, given[name]),
            degradation=_UNCHANGED if name == baseline else measure_degradation(dataset.task, rows, before, after),
            flips=_flips(rows, before, after) if dataset.task == "classification" else None,
            latencies=timed[name],
            parity_error=one.parity_error,
            predictions_uri=out.uri(answers_path.name),
            is_row_by_row=one.is_row_by_row,
        )
        run_id = _log(candidate, one, out, trained, rows, given[name], before)
        candidates.append(candidate.model_copy(update={"run_id": run_id}))
    return tuple(candidates)


def _coded_bytes(made: BuiltCandidate) -> int | None:
    """The size in the fewest bytes, whatever form it ships in."""
    from bloomery.models.onnx_storage.sizes import measure_coded_bytes

    if made.spec.storage == "entropy_coded":
        return made.path.stat().st_size
    return measure_coded_bytes(made.path) if made.spec.storage is None else made.coded_bytes


def _flips(rows: GroundTruth, before: np.ndarray, after: np.ndarray) -> Flips:
    right_before, right_after = before == rows.truth, after == rows.truth
    return Flips(num_lost=int((right_before & ~right_after).sum()), num_gained=int((~right_before & right_after).sum()))


def _write_answers(path: Path, dataset: Dataset, rows: GroundTruth, given: np.ndarray) -> None:
    """What the candidate answered for each row of the test part: promote asks the bento the same."""
    columns: dict[str, Any] = {dataset.key: pa.array(rows.key)}
    if dataset.task == "classification":
        classes = np.array(dataset.classes, dtype=object)
        columns["truth"] = pa.array(classes[rows.truth].tolist())
        columns["answer"] = pa.array(classes[given.argmax(axis=1)].tolist())
        columns["probabilities"] = pa.array(list(given), pa.list_(pa.float64()))
    else:
        columns["truth"] = pa.array(rows.truth)
        columns["answer"] = pa.array(given)
    pq.write_table(pa.table(columns), path)


def _log(
    candidate: Candidate,
    made: BuiltCandidate,
    out: Output,
    trained: TrainedNetwork,
    rows: GroundTruth,
    given: np.ndarray,
    before: np.ndarray,
) -> str:
    """A run for the candidate, below the training run, with its ONNX file and tables as artifacts."""
    dataset = trained.dataset
    tags = {
        "mlflow.parentRunId": trained.run_id,
        "candidate": candidate.name,
        "onnx.sha256": candidate.sha256,
        "data.digest": dataset.digest,
        "processor.flags": " ".join(cpu_flags()),
        **{f"{package}.version": metadata.version(package) for package in _PACKAGES},
    }
    if made.calibration is not None:
        tags["calibration.sha256"] = made.calibration
    experiment_name = dataset.valid_rows.contract.name
    with mlflow_runs.logged_run(experiment_name, f"candidate-{candidate.name}", out.key, tags) as run_id:
        mlflow_runs.log_params(run_id, {**made.spec.model_dump(), "seed": SEED})
        mlflow_runs.log_metrics(
            run_id,
            {
                **_figures(dataset, candidate, rows, given),
                **_costs(candidate),
                **{f"latency_{name}": value for name, value in latency_columns(candidate.latencies).items()},
                "parity_error": candidate.parity_error,
                **{f"{other.form}_parity_error": other.parity_error for other in made.others},
                **{f"{other.form}_bytes": other.path.stat().st_size for other in made.others},
            },
        )
        for form, path in (("onnx", made.path), *((other.form, other.path) for other in made.others)):
            mlflow_runs.client().log_artifact(run_id, str(path), form)
        after = point_predictions(dataset.task, given)
        if dataset.task == "classification":
            of_class = class_table(dataset.classes, rows, given)
            drops = {one.value: one.degradation for one in degradation_by_class(dataset, rows, before, after)}
            of_class |= _in_columns(dataset.task, [drops.get(name) for name in of_class["class"]])
            mlflow_runs.client().log_table(run_id, of_class, "per_class.json")
        if trained.slice_columns:
            of_slice = slice_table(dataset, trained.slice_columns, rows, given)
            found = degradation_by_slice(dataset, trained.slice_columns, rows, before, after)
            of_slice |= _in_columns(dataset.task, [one.degradation for one in found])
            mlflow_runs.client().log_table(run_id, of_slice, "per_slice.json")
    return run_id


def _in_columns(task: Task, found: Sequence[Interval | None]) -> dict[str, list[Any]]:
    """How much worse than fp32, as columns of a table."""
    loss = DEGRADATION_NAMES[task]
    return {
        loss: [None if one is None else one.value for one in found],
        f"{loss}_low": [None if one is None else one.low for one in found],
        f"{loss}_high": [None if one is None else one.high for one in found],
    }


def _costs(candidate: Candidate) -> dict[str, float]:
    """What it takes to keep and to ask it, as far as that is known, but for the time."""
    costs = candidate.model_dump(
        include={
            "size_bytes",
            "zstd_bytes",
            "coded_bytes",
            "num_parameters",
            "num_nonzero",
            "num_macs",
            "integer_share",
        }
    )
    return {name: cost for name, cost in costs.items() if cost is not None}


def _figures(dataset: Dataset, candidate: Candidate, rows: GroundTruth, given: np.ndarray) -> dict[str, float]:
    """Every figure of the test part, by the name that it has in MLflow."""
    is_classes = dataset.task == "classification"
    name, loss = ("test_accuracy", "accuracy_drop") if is_classes else ("test_rmse", "rmse_rise")
    told, lost = candidate.score, candidate.degradation
    figures = {
        name: told.value,
        f"{name}_low": told.low,
        f"{name}_high": told.high,
        loss: lost.value,
        f"{loss}_low": lost.low,
        f"{loss}_high": lost.high,
    }
    if candidate.flips is not None:
        figures |= {"flips_lost": candidate.flips.num_lost, "flips_gained": candidate.flips.num_gained}
    if not is_classes:
        figures["test_mae"] = metrics.mean_absolute_error(rows.truth, given)
        figures["test_r2"] = metrics.r_squared(rows.truth, given)
        return figures
    figures["test_log_loss"] = metrics.log_loss(rows.truth, given)
    area = metrics.roc_auc(rows.truth == 1, given[:, 1]) if len(dataset.classes) == 2 else None
    return figures if area is None else figures | {"test_auc": area}
