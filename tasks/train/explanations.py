"""Why a network answers as it does: pictures of single rows, and what matters over many.

Shapes: B rows, K outputs, T tokens or steps, F columns; a row has the shape of its layout.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import Encoder
from bloomery.models.training.config import Explain
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.explainability.attribution import Explanation, OutputFunction
    from bloomery.models.explainability.feature_groups import FeatureGroups
    from bloomery.models.training.data.batches import Examples

FOLDER = "explanations"  # among the run's artifacts
_MOST_WORDS = 40
_PASSES = 32  # of a row, forward and back
_MOST_WORK = 1e12  # floating-point operations, about: some 20 s on one core
_ANSWERS_OF_UNIT = 16  # to a row, where there are no gradients
_MOST_SECONDS = 10.0  # of a function, whose arithmetic is not known


def log_explanations(
    run_id: str,
    folder: Path,
    network: nn.Module | OutputFunction,
    layout: Layout,
    encoder: Encoder,
    examples: Examples,
    wanted: Explain,
    *,
    raw: Callable[[np.ndarray], pa.Table] | None = None,
    seed: int = 0,
) -> None:
    """Writes explanations into `folder`, logs them to the MLflow run, and logs the metric `explanation_gap`."""
    if not len(examples.y):
        return
    gap = write_explanations(folder, network, layout, encoder, examples, wanted, raw=raw, seed=seed)
    mlflow_runs.client().log_artifacts(run_id, str(folder), FOLDER)
    mlflow_runs.log_metrics(run_id, {"explanation_gap": gap})


def write_explanations(
    folder: Path,
    network: nn.Module | OutputFunction,
    layout: Layout,
    encoder: Encoder,
    examples: Examples,
    wanted: Explain,
    *,
    raw: Callable[[np.ndarray], pa.Table] | None = None,
    seed: int = 0,
) -> float:
    """Afterwards `folder` has pictures, or a page for text, and `weights.json`.

    `network` is a module, or a function that answers, which has no gradients. The rows are taken evenly from
    `examples`, fewer where the network is large. `raw` gives the raw rows of keys, whose
    values then stand in pictures of tables. The network and the state of random numbers stay as they are.

    Returns:
        How far the weights are from adding up to the rise of the answer over its baseline: the median over rows of the
        difference, as a share of the rise. Occlusion and LIME need not add up.
    """
    from torch import nn

    from bloomery.models.explainability.attribution import AttributionOptions, default_method, explain
    from bloomery.models.explainability.baselines import make_baseline
    from bloomery.models.explainability.feature_groups import column_names, group_features
    from bloomery.models.training.loop import predict

    units = group_features(layout, column_names(encoder))
    rows = np.linspace(0, len(examples.y) - 1, _num_rows(network, examples, wanted, units)).astype(np.int64)
    x, y = examples.x[rows], examples.y[rows].numpy()
    method = wanted.method or default_method(network, layout)
    baseline = make_baseline(x, layout, x, wanted.baseline)
    found = explain(network, x, layout, baseline, AttributionOptions(method, groups=units, seed=seed))
    shown = select_varied_rows(y, wanted.rows)
    keys = examples.key[rows[shown]]
    answers = predict(network, x[shown]) if isinstance(network, nn.Module) else network(x[shown])
    titles = format_titles(encoder, answers.numpy(), y[shown])
    folder.mkdir(parents=True, exist_ok=True)
    rows_shown = None if raw is None or layout.kind != "flat" else raw(keys)
    document = {
        "method": method,
        "rows": len(rows),
        "mean_weights": draw_explanations(folder, x.numpy(), found, shown, titles, encoder, layout, units, rows_shown),
        "shown": [{"key": str(key), "row": title} for key, title in zip(keys, titles, strict=True)],
    }
    (folder / "weights.json").write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
    return completeness_gap(found)


def _num_rows(network: nn.Module | OutputFunction, examples: Examples, wanted: Explain, units: FeatureGroups) -> int:
    """Rows of the sample: those that are asked for, or fewer where they would take too long."""
    import torch

    from bloomery.models.profiling.flops import count_flops_per_row

    if isinstance(network, torch.nn.Module):
        with torch.random.fork_rng(devices=[]):  # dropout draws when the arithmetic is counted
            possible = _MOST_WORK / (_PASSES * max(count_flops_per_row(network, examples.example_batch()), 1))
    else:
        seconds = _seconds_of_row(network, examples) * _ANSWERS_OF_UNIT * math.prod(units.grid)
        possible = _MOST_SECONDS / seconds
    return min(max(wanted.rows, int(possible)), wanted.sample, len(examples.y))


def _seconds_of_row(network: OutputFunction, examples: Examples) -> float:
    rows = examples.x[:32]
    start = time.perf_counter()
    network(rows)
    return max(time.perf_counter() - start, 1e-9) / len(rows)


def completeness_gap(found: Explanation) -> float:
    """The median over rows of |sum of weights - rise| / |rise|."""
    sums_B = found.weights.reshape(len(found.weights), -1).sum(axis=1)
    return float(np.median(np.abs(sums_B - found.output_change) / np.maximum(np.abs(found.output_change), 1e-9)))


def select_varied_rows(y: np.ndarray, num_rows: int) -> np.ndarray:
    """Positions of at most `num_rows` rows: each class in turn, or figures from the least to the largest."""
    if np.issubdtype(y.dtype, np.floating):
        order = np.argsort(y, kind="stable")
        return order[np.linspace(0, len(y) - 1, min(num_rows, len(y))).astype(np.int64)]
    turn = np.zeros(len(y), np.int64)
    for label in np.unique(y):
        turn[y == label] = np.arange(np.count_nonzero(y == label))
    return np.lexsort((y, turn))[:num_rows]


def format_titles(encoder: Encoder, outputs_BK: np.ndarray, y: np.ndarray | None = None) -> list[str]:
    """What each row is answered, and the truth where it is known."""
    from bloomery.models.inference.outputs import predictions_from

    answers = predictions_from(encoder, outputs_BK)
    if encoder.classes:
        said = [f"{encoder.classes[int(one.argmax())]} ({one.max():.0%})" for one in answers]
        truths = None if y is None else [str(encoder.classes[int(place)]) for place in y]
    else:
        said = [f"{one:.4g}" for one in answers]
        truths = None if y is None else [f"{one:.4g}" for one in predictions_from(encoder, y.reshape(-1, 1))]
    if truths is None:
        return [f"answer {answer}" for answer in said]
    return [f"truth {truth}, answer {answer}" for truth, answer in zip(truths, said, strict=True)]


def draw_explanations(
    folder: Path,
    x: np.ndarray,
    found: Explanation,
    shown: np.ndarray,
    titles: Sequence[str],
    encoder: Encoder,
    layout: Layout,
    units: FeatureGroups,
    raw: pa.Table | None = None,
) -> dict[str, float]:
    """Draw the rows `shown` and what matters over all rows; the latter is returned too, as far as it has names.

    `raw` has the raw rows that are shown, in their order.
    """
    from bloomery.models.explainability.feature_groups import sum_by_group
    from bloomery.models.explainability.feature_importance import group_importance
    from bloomery.tasks.train import explanation_plots as pictures

    rows, over_all = folder / "rows.png", folder / "importance.png"
    if layout.kind == "tokens":
        return _write_page(folder / "rows.html", x, found, shown, titles, encoder)
    if layout.kind == "image":
        pictures.plot_image_rows(x[shown], found.weights[shown], titles, rows)
        pictures.plot_importance(np.abs(found.weights.sum(axis=1)).mean(axis=0), (), 1, over_all)
        return {}
    weights, mean = sum_by_group(found.weights, units), group_importance(found.weights, units)
    steps_each = -(-layout.shape[0] // units.grid[0])
    if layout.kind == "sequence":
        pictures.plot_sequence_rows(weights[shown], units.columns, titles, steps_each, rows)
        of_columns = np.abs(weights).sum(axis=1).mean(axis=0)
    else:
        pictures.plot_column_rows(weights[shown], _labels(units.columns, len(shown), raw), titles, rows)
        of_columns = mean
    pictures.plot_importance(mean, units.columns, steps_each, over_all)
    return dict(zip(units.columns, of_columns.tolist(), strict=True))


def _labels(columns: Sequence[str], num_rows: int, raw: pa.Table | None) -> list[list[str]]:
    """The columns' names for each row, with their values where they are known."""
    if raw is None:
        return [list(columns)] * num_rows
    return [[f"{name} = {row[name]}" if name in row else name for name in columns] for row in raw.to_pylist()]


def _write_page(
    path: Path, x_BT: np.ndarray, found: Explanation, shown: np.ndarray, titles: Sequence[str], encoder: Encoder
) -> dict[str, float]:
    from bloomery.models.explainability.feature_importance import token_importance
    from bloomery.models.explainability.token_text import token_texts
    from bloomery.tasks.train.explanation_plots import write_text_page

    texts = []
    for row, title in zip(shown, titles, strict=True):
        there_T = x_BT[row] != 0
        texts.append((title, token_texts(encoder, x_BT[row][there_T].astype(int)), found.weights[row][there_T]))
    weighed = token_importance(x_BT, found.weights, min_count=2 if len(x_BT) > 1 else 1)[:_MOST_WORDS]
    words = token_texts(encoder, [one.token for one in weighed])
    known = [(word, one.num_occurrences, one.importance) for word, one in zip(words, weighed, strict=True)]
    write_text_page(texts, known, path)
    return {word: weight for word, _, weight in known}
