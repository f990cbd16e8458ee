"""Explains the predictions of a network: plots of single rows, and the importance of features over many rows.

Shapes: B rows, K outputs, T tokens or steps, F columns; a row has the shape of its layout.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.labels import name_labels
from bloomery.models.training.config import Explain
from bloomery.tasks.evaluation.slices import read_slice_values
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.explainability.attribution import Explanation, OutputFunction
    from bloomery.models.explainability.feature_groups import FeatureGroups
    from bloomery.models.training.data.batches import Examples
    from bloomery.tasks.train.training_run import TrainingRun

FOLDER = "explanations"  # among the run's artifacts
_MAX_WORDS = 40
_NUM_PASSES = 32  # forward and backward passes for one row
_MAX_FLOPS = 1e12  # of all rows, about 20 s on one core
_CALLS_PER_GROUP = 16  # of a function without gradients, for one row
_MAX_SECONDS = 10.0  # of a function, whose FLOPs are unknown


@dataclass(frozen=True)
class ExplanationJob:
    """A network, the rows to explain, and how.

    Attributes:
        network: a module, or a function that returns outputs and has no gradients.
        examples: the encoded rows to draw from, evenly; fewer are explained where the network is large.
        options: the recipe's `training.explain`.
        read_raw_rows: returns the raw rows with the given keys, whose values then label the plots of tables.
    """

    network: nn.Module | OutputFunction
    layout: Layout
    encoder: Encoder
    examples: Examples
    options: Explain
    read_raw_rows: Callable[[np.ndarray], pa.Table] | None = None
    seed: int = 0


class _ExplainedRows(NamedTuple):
    """Encoded rows and their explanation; those at `positions` are plotted, under `titles`."""

    x: np.ndarray
    explanation: Explanation
    positions: np.ndarray
    titles: Sequence[str]
    raw_rows: pa.Table | None  # of the plotted rows


def log_run_explanations(run: TrainingRun, folder: Path, network: nn.Module | OutputFunction, sample: Examples) -> None:
    """Explains predictions for rows of `sample`, and logs the result to the run, if the recipe requests it.

    The values of a vector have no meaning of their own, so that those of an embedding are not explained. Those of
    several outputs are explained by the endpoint alone. Tags are many outputs of a row, and not explained.
    """
    dataset, encoder, options = run.dataset, run.encoder, run.training.explain
    if options is None or dataset.task in ("embedding", "multioutput", "multitask", "tagging"):
        return
    job = ExplanationJob(
        network=network,
        layout=dataset.layout,
        encoder=encoder,
        examples=sample,
        options=options,
        read_raw_rows=lambda keys: read_slice_values(dataset, keys, encoder.columns),
        seed=run.training.seed,
    )
    log_explanations(run.run_id, folder, job)


def log_explanations(run_id: str, folder: Path, job: ExplanationJob) -> None:
    """Writes explanations into `folder`, logs them to the MLflow run, and logs the metric `explanation_gap`."""
    if not len(job.examples.y):
        return
    gap = write_explanations(folder, job)
    mlflow_runs.client().log_artifacts(run_id, str(folder), FOLDER)
    mlflow_runs.log_metrics(run_id, {"explanation_gap": gap})


def write_explanations(folder: Path, job: ExplanationJob) -> float:
    """Writes plots, or an HTML page for text, and `weights.json` into `folder`.

    The network and the state of random generators stay unchanged.

    Returns:
        The completeness gap, see `completeness_gap`. It need not be small for occlusion and LIME.
    """
    from torch import nn

    from bloomery.models.explainability.attribution import AttributionOptions, default_method, explain
    from bloomery.models.explainability.baselines import make_baseline
    from bloomery.models.explainability.feature_groups import group_encoded_row
    from bloomery.models.training.loop import predict

    network, layout, examples, options = job.network, job.layout, job.examples, job.options
    groups = group_encoded_row(job.encoder)
    rows = np.linspace(0, len(examples.y) - 1, _choose_num_rows(job, groups)).astype(np.int64)
    x, y = examples.x[rows], examples.y[rows].numpy()
    method = options.method or default_method(network, layout)
    baseline = make_baseline(x, layout, x, options.baseline)
    is_multilabel = job.encoder.features.task == "multilabel"
    attribution = AttributionOptions(method, groups=groups, seed=job.seed, is_multilabel=is_multilabel)
    explanation = explain(network, x, layout, baseline, attribution)
    positions = select_varied_rows(y, options.rows)
    keys = examples.key[rows[positions]]
    outputs = predict(network, x[positions]) if isinstance(network, nn.Module) else network(x[positions])
    titles = format_titles(job.encoder, outputs.numpy(), y[positions])
    folder.mkdir(parents=True, exist_ok=True)
    raw_rows = None if job.read_raw_rows is None or layout.kind != "flat" else job.read_raw_rows(keys)
    explained = _ExplainedRows(x.numpy(), explanation, positions, titles, raw_rows)
    document = {
        "method": method,
        "rows": len(rows),
        "mean_weights": _draw(folder, explained, job, groups),
        "shown": [{"key": str(key), "row": title} for key, title in zip(keys, titles, strict=True)],
    }
    (folder / "weights.json").write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
    return completeness_gap(explanation)


def _choose_num_rows(job: ExplanationJob, groups: FeatureGroups) -> int:
    """The requested number of rows, or fewer where more would take too long."""
    import torch

    from bloomery.models.profiling.flops import count_flops_per_row

    network, examples, options = job.network, job.examples, job.options
    if isinstance(network, torch.nn.Module):
        with torch.random.fork_rng(devices=[]):  # counting FLOPs runs the network, whose dropout draws numbers
            flops = max(count_flops_per_row(network, examples.example_batch()), 1)
        affordable = _MAX_FLOPS / (_NUM_PASSES * flops)
    else:
        seconds = _measure_seconds_per_row(network, examples) * _CALLS_PER_GROUP * math.prod(groups.grid)
        affordable = _MAX_SECONDS / seconds
    return min(max(options.rows, int(affordable)), options.sample, len(examples.y))


def _measure_seconds_per_row(network: OutputFunction, examples: Examples) -> float:
    rows = examples.x[:32]
    start = time.perf_counter()
    network(rows)
    return max(time.perf_counter() - start, 1e-9) / len(rows)


def completeness_gap(explanation: Explanation) -> float:
    """How far weights are from adding up to the output's change: the median of |sum - change| / |change| over rows."""
    sums_B = explanation.weights.reshape(len(explanation.weights), -1).sum(axis=1)
    changes_B = explanation.output_change
    return float(np.median(np.abs(sums_B - changes_B) / np.maximum(np.abs(changes_B), 1e-9)))


def select_varied_rows(y: np.ndarray, num_rows: int) -> np.ndarray:
    """Positions of at most `num_rows` rows: the classes in turn, or numbers from the smallest to the largest."""
    if y.ndim == 2:  # sets of labels: as many labels as possible in the first rows
        return np.argsort(-y.sum(axis=1), kind="stable")[np.linspace(0, len(y) - 1, min(num_rows, len(y))).astype(int)]
    if np.issubdtype(y.dtype, np.floating):
        order = np.argsort(y, kind="stable")
        return order[np.linspace(0, len(y) - 1, min(num_rows, len(y))).astype(np.int64)]
    rank_in_class = np.zeros(len(y), np.int64)
    for label in np.unique(y):
        rank_in_class[y == label] = np.arange(np.count_nonzero(y == label))
    return np.lexsort((y, rank_in_class))[:num_rows]


def format_titles(encoder: Encoder, outputs_BK: np.ndarray, y: np.ndarray | None = None) -> list[str]:
    """A title for each row: its prediction, and the true label where it is known."""
    from bloomery.models.inference.outputs import predictions_from

    predictions = predictions_from(encoder, outputs_BK)
    if encoder.features.task == "multilabel":
        texts = _join_labels(encoder, decide_labels(predictions))
        truths = None if y is None else _join_labels(encoder, y)
    elif encoder.classes:
        texts = [f"{encoder.classes[int(row.argmax())]} ({row.max():.0%})" for row in predictions]
        truths = None if y is None else [str(encoder.classes[int(position)]) for position in y]
    else:
        texts = [f"{number:.4g}" for number in predictions]
        truths = None if y is None else [f"{number:.4g}" for number in predictions_from(encoder, y.reshape(-1, 1))]
    if truths is None:
        return [f"prediction {text}" for text in texts]
    return [f"truth {truth}, prediction {text}" for truth, text in zip(truths, texts, strict=True)]


def _join_labels(encoder: Encoder, labels_BK: np.ndarray) -> list[str]:
    return [", ".join(map(str, labels)) or "no label" for labels in name_labels(encoder.classes, labels_BK).to_pylist()]


def _draw(folder: Path, rows: _ExplainedRows, job: ExplanationJob, groups: FeatureGroups) -> dict[str, float]:
    """Plots single rows and the importance over all rows; returns the importance by name, empty for images."""
    from bloomery.models.explainability.feature_groups import sum_by_group
    from bloomery.models.explainability.feature_importance import group_importance
    from bloomery.tasks.train import explanation_plots as plots

    if groups.parts:
        return _draw_parts(folder, rows, job, groups)
    layout, weights, positions = job.layout, rows.explanation.weights, rows.positions
    rows_path, importance_path = folder / "rows.png", folder / "importance.png"
    if layout.kind == "tokens":
        return _write_text_page(folder / "rows.html", rows, job.encoder)
    if layout.kind == "image":
        plots.plot_image_rows(rows.x[positions], weights[positions], rows.titles, rows_path)
        plots.plot_importance(np.abs(weights.sum(axis=1)).mean(axis=0), (), 1, importance_path)
        return {}
    group_weights, importance = sum_by_group(weights, groups), group_importance(weights, groups)
    steps_per_group = -(-layout.shape[0] // groups.grid[0])
    if layout.kind == "sequence":
        plots.plot_sequence_rows(group_weights[positions], groups.columns, rows.titles, steps_per_group, rows_path)
        by_column = np.abs(group_weights).sum(axis=1).mean(axis=0)
    else:
        labels = _label_columns(groups.columns, len(positions), rows.raw_rows)
        plots.plot_column_rows(group_weights[positions], labels, rows.titles, rows_path)
        by_column = importance
    plots.plot_importance(importance, groups.columns, steps_per_group, importance_path)
    return dict(zip(groups.columns, by_column.tolist(), strict=True))


def _draw_parts(folder: Path, rows: _ExplainedRows, job: ExplanationJob, groups: FeatureGroups) -> dict[str, float]:
    """Plots each part of mixed rows in a folder of its own, and returns the importance of the raw columns."""
    from bloomery.models.explainability.feature_groups import sum_by_group
    from bloomery.models.explainability.raw_columns import sum_by_column
    from bloomery.models.features.part_encoders import part_encoders
    from bloomery.tasks.train import explanation_plots as plots

    for number, (encoder, (part, start, stop)) in enumerate(
        zip(part_encoders(job.encoder), job.layout.part_slices, strict=True)
    ):
        shape = (len(rows.x), *part.layout.shape)
        weights = rows.explanation.weights[:, start:stop].reshape(shape)
        part_rows = rows._replace(
            x=rows.x[:, start:stop].reshape(shape), explanation=rows.explanation._replace(weights=weights)
        )
        part_folder = folder / f"{number}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', part.name)}"
        part_folder.mkdir()
        part_job = dataclasses.replace(job, layout=part.layout, encoder=encoder)
        _draw(part_folder, part_rows, part_job, groups.parts[number])
    sums_BG = sum_by_group(rows.explanation.weights, groups)
    by_row = [sum_by_column(job.encoder, groups, sums_G, x_F) for sums_G, x_F in zip(sums_BG, rows.x, strict=True)]
    columns = job.encoder.columns
    importance_N = np.abs([[values[name] for name in columns] for values in by_row]).mean(axis=0)
    plots.plot_importance(importance_N, columns, 1, folder / "importance.png")
    return dict(zip(columns, importance_N.tolist(), strict=True))


def _label_columns(columns: Sequence[str], num_rows: int, raw_rows: pa.Table | None) -> list[list[str]]:
    """The names of the columns for each row, with their raw values where they are known."""
    if raw_rows is None:
        return [list(columns)] * num_rows
    return [[f"{name} = {row[name]}" if name in row else name for name in columns] for row in raw_rows.to_pylist()]


def _write_text_page(path: Path, rows: _ExplainedRows, encoder: Encoder) -> dict[str, float]:
    from bloomery.models.explainability.feature_importance import token_importance
    from bloomery.models.explainability.token_text import token_texts
    from bloomery.tasks.train.explanation_plots import write_text_page

    x_BT, weights_BT = rows.x, rows.explanation.weights
    texts = []
    for row, title in zip(rows.positions, rows.titles, strict=True):
        is_token_T = x_BT[row] != 0
        texts.append((title, token_texts(encoder, x_BT[row][is_token_T].astype(int)), weights_BT[row][is_token_T]))
    min_count = 2 if len(x_BT) > 1 else 1
    tokens = token_importance(x_BT, weights_BT, min_count=min_count)[:_MAX_WORDS]
    words = token_texts(encoder, [token.token for token in tokens])
    vocabulary = [(word, token.num_occurrences, token.importance) for word, token in zip(words, tokens, strict=True)]
    write_text_page(texts, vocabulary, path)
    return {word: weight for word, _, weight in vocabulary}
