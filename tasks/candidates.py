"""What candidates answer on the test part: figures, a table of answers and an MLflow run for each.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.digests import digest_of_file
from data_contracts.layouts import Task
from data_contracts.records import Candidate, Dataset, Interval, Latency, Trained
from models import metrics
from models.compression.config import CandidateSpec
from models.encoder import read_encoder
from tasks import tracking
from tasks.judging import Truth, of_classes, of_slices, score, truth_of
from tasks.settings import settings
from tasks.store import Output

if TYPE_CHECKING:
    from models.training.batches import Examples

_UNCHANGED = Interval(value=0.0, low=0.0, high=0.0)  # the baseline against itself: nothing is sampled


class Made(NamedTuple):
    """A candidate's ONNX file, before it is measured."""

    spec: CandidateSpec
    path: Path
    num_parameters: int
    parity_error: float
    num_macs: int = 0  # for one row; 0 of a network that came trained

    @property
    def is_row_by_row(self) -> bool:
        return self.spec.quantize == "dynamic"


def measure_all(
    out: Output, made: list[Made], test: Examples, trained: Trained, timed: dict[str, Latency], baseline: str
) -> tuple[Candidate, ...]:
    """Afterwards there is a table of answers and a run for each candidate that was made."""
    from models.answers import meant, outputs_of
    from models.runtime import session

    dataset = trained.dataset
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    rows = truth_of(encoder, dataset, test)
    x = test.x.numpy()
    given = {
        one.spec.name: meant(encoder, outputs_of(session(one.path), x, is_row_by_row=one.is_row_by_row)) for one in made
    }
    candidates = []
    for one in made:
        name = one.spec.name
        answers_path = out.path(f"{name}-answers.parquet")
        _write_answers(answers_path, dataset, rows, given[name])
        candidate = Candidate(
            name=name,
            uri=out.uri(one.path.name),
            sha256=digest_of_file(one.path),
            run_id="",
            size_bytes=one.path.stat().st_size,
            num_parameters=one.num_parameters,
            score=score(dataset.task, rows, given[name]),
            worse=_UNCHANGED if name == baseline else _worse(dataset.task, rows, given[baseline], given[name]),
            latency=timed[name],
            parity_error=one.parity_error,
            answers_uri=out.uri(answers_path.name),
            is_row_by_row=one.is_row_by_row,
        )
        run_id = _log(candidate, one, out, trained, rows, given[name])
        candidates.append(candidate.model_copy(update={"run_id": run_id}))
    return tuple(candidates)


def _worse(task: Task, rows: Truth, before: np.ndarray, after: np.ndarray) -> Interval:
    if task == "classification":
        right_before, right_after = (given.argmax(axis=1) == rows.truth for given in (before, after))
        return metrics.accuracy_drop(right_before, right_after)
    return metrics.rmse_rise(rows.truth[rows.order], before[rows.order], after[rows.order])


def _write_answers(path: Path, dataset: Dataset, rows: Truth, given: np.ndarray) -> None:
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


def _log(candidate: Candidate, made: Made, out: Output, trained: Trained, rows: Truth, given: np.ndarray) -> str:
    """A run for the candidate, below the training run, with its ONNX file and tables as artifacts."""
    dataset = trained.dataset
    tags = {
        "mlflow.parentRunId": trained.run_id,
        "candidate": candidate.name,
        "onnx.sha256": candidate.sha256,
        "data.digest": dataset.digest,
    }
    experiment_name = dataset.checked.contract.name
    with tracking.logged_run(experiment_name, f"candidate-{candidate.name}", out.key, tags) as run_id:
        tracking.log_params(run_id, made.spec.model_dump())
        tracking.log_figures(
            run_id,
            {
                **_figures(dataset, candidate, rows, given),
                "size_bytes": candidate.size_bytes,
                "num_parameters": candidate.num_parameters,
                "latency_p50_ms": candidate.latency.p50_ms,
                "latency_p99_ms": candidate.latency.p99_ms,
                "latency_ratio": candidate.latency.ratio,
                "parity_error": candidate.parity_error,
            },
        )
        tracking.client().log_artifact(run_id, str(made.path), "onnx")
        if dataset.task == "classification":
            tracking.client().log_table(run_id, of_classes(dataset.classes, rows, given), "per_class.json")
        if trained.slices:
            tracking.client().log_table(run_id, of_slices(dataset, trained.slices, rows, given), "per_slice.json")
    return run_id


def _figures(dataset: Dataset, candidate: Candidate, rows: Truth, given: np.ndarray) -> dict[str, float]:
    """Every figure of the test part, by the name that it has in MLflow."""
    is_classes = dataset.task == "classification"
    name, loss = ("test_accuracy", "accuracy_drop") if is_classes else ("test_rmse", "rmse_rise")
    told, worse = candidate.score, candidate.worse
    figures = {name: told.value, f"{name}_low": told.low, f"{name}_high": told.high, f"{loss}_high": worse.high}
    if not is_classes:
        figures["test_mae"] = metrics.mean_absolute_error(rows.truth, given)
        figures["test_r2"] = metrics.explained(rows.truth, given)
        return figures
    figures["test_log_loss"] = metrics.log_loss(rows.truth, given)
    area = metrics.auc(rows.truth == 1, given[:, 1]) if len(dataset.classes) == 2 else None
    return figures if area is None else figures | {"test_auc": area}
