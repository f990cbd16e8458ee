"""Fits baselines to the training split and scores them on the test split, as the network's candidates are scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.records.records import Baseline
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.data_contracts.serving.entities import NO_TAG, code_tags
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.evaluation.baseline_text import metric_part
from bloomery.tasks.evaluation.scoring import build_ground_truth, compute_all_scores, score_predictions
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    from bloomery.models.evaluation.baselines import BaselineTask, LabelWindows
    from bloomery.models.training.data.batches import Examples

_MAX_ROWS = 50_000  # of the training split that are read
_MAX_BYTES = 1 << 30  # of these rows; wide rows are fewer
_PRIVATE = "training is private, and they would learn from the same rows without noise"


def fit_baselines(run: TrainingRun, out: Output) -> tuple[Baseline, ...]:
    """Writes the predictions of each baseline for the test split, and logs its scores.

    Empty if the recipe wants none. Those of an embedding predict ranks, and those of a tagging task codes of tags.

    A baseline that fails has a reason instead of a score. No baseline sees a test row before it is fitted, and the
    network does not depend on baselines.
    """
    from bloomery.models.evaluation.baselines import describe_failure

    if not run.training.baselines:
        return ()
    if run.training.privacy is not None:
        return (Baseline(name="all baselines", reason=_PRIVATE),)
    records: list[Baseline] = []
    try:
        for record in _fit_and_score(run, out):
            records.append(record)  # noqa: PERF402 - those before a failure are kept
    except Exception as failure:  # the training has finished, and must not be lost
        records.append(
            Baseline(name="other baselines" if records else "all baselines", reason=describe_failure(failure))
        )
    mlflow_runs.log_metrics(run.run_id, dict(_metrics(records)))
    return tuple(records)


def _fit_and_score(run: TrainingRun, out: Output) -> Iterator[Baseline]:
    """Yields the record of each baseline, and writes its predictions."""
    from bloomery.models.evaluation.baseline_fits import fit_baselines as fit_models
    from bloomery.models.training.data.batches import read_examples

    dataset = run.dataset
    test = read_examples(settings().path(dataset.test.uri), dataset.key, dataset.layout)
    truth = build_ground_truth(run.encoder, dataset, test)
    is_word_NT = truth.truth != NO_TAG  # of a tagging task
    if dataset.task == "tagging":
        truth = truth._replace(truth=_pack_words(truth.truth, is_word_NT))
    for number, fitted in enumerate(fit_models(_build_task(run, test))):
        predictions = fitted.predictions
        if predictions is None:
            yield Baseline(name=fitted.name, reason=fitted.reason)
            continue
        if dataset.task == "tagging":
            predictions = _pack_words(code_tags(dataset.classes, predictions), is_word_NT)
        path = out.path(f"baseline-{number}.npy")
        np.save(path, predictions, allow_pickle=False)
        yield Baseline(
            name=fitted.name,
            predictions_uri=out.uri(path.name),
            num_rows=fitted.num_rows,
            score=score_predictions(run.score, truth, predictions),
            metrics=compute_all_scores(run.dataset.task, run.score, truth, predictions),
        )


def _pack_words(codes_NT: np.ndarray, is_word_NT: np.ndarray) -> np.ndarray:
    """The codes of the words of each row, int64 (N, W), NO_TAG after the last one, as in measured predictions."""
    num_words_N = is_word_NT.sum(axis=1)
    codes_NW = np.full((len(codes_NT), int(num_words_N.max(initial=0))), NO_TAG, np.int64)
    codes_NW[np.arange(codes_NW.shape[1]) < num_words_N[:, None]] = codes_NT[is_word_NT]
    return codes_NW


def _build_task(run: TrainingRun, test: Examples) -> BaselineTask:
    """The rows that baselines are fitted to: at most about 50,000 and 1 GiB, evenly spaced."""
    from bloomery.models.evaluation.baselines import BaselineRows, BaselineTask
    from bloomery.models.training.data.batches import sample_examples

    dataset, units = run.dataset, run.encoder.units
    num_rows = _num_rows_read(dataset.layout)
    train = sample_examples(settings().path(dataset.train.uri), dataset.key, dataset.layout, num_rows)
    x, y = train.x.numpy(), train.y.numpy()
    if dataset.task == "multilabel":
        y = y.astype(np.int64)
    elif dataset.classes and dataset.task != "tagging":
        x, y = x[y >= 0], y[y >= 0]
    elif units is not None:  # several outputs are scored in standard units
        y = units.mean + units.deviation * y.astype(np.float64)
    sizes = tuple(len(output.classes) for output in dataset.class_outputs)
    return BaselineTask(
        class_counts=sizes,
        score=run.score,
        layout=dataset.layout,
        num_classes=len(dataset.classes),
        train=BaselineRows(x, y),
        test_x=test.x.numpy(),
        windows=_read_label_windows(run.encoder, x, test.x.numpy()),
        test_y=test.y.numpy() if dataset.task in ("embedding", "tagging") else None,
    )


def _num_rows_read(layout: Layout) -> int:
    return min(_MAX_ROWS, max(_MAX_BYTES // (4 * layout.num_values), 1))


def _read_label_windows(encoder: Encoder, train: np.ndarray, test: np.ndarray) -> LabelWindows | None:
    """The past values of the label, if it is a column of the series that a regression reads."""
    from bloomery.models.evaluation.baselines import LabelWindows

    features, fitted = encoder.features, encoder.fitted[0]
    series = features.series
    if series is None or encoder.units is None or fitted.kind != "series" or features.label not in series.columns:
        return None
    position = series.columns.index(features.label)
    mean, scale = fitted.mean[position], fitted.scale[position]
    past, past_of_test = (mean + scale * x[:, :, position].astype(np.float64) for x in (train, test))
    return LabelWindows(past, past_of_test, series.horizon)


def _metrics(records: list[Baseline]) -> Iterator[tuple[str, float]]:
    """Names in MLflow, such as `baseline_boosted_trees_accuracy`, and values."""
    for record in records:
        prefix = f"baseline_{metric_part(record.name)}"
        yield from ((f"{prefix}_{name}", value) for name, value in record.metrics.items())
