"""SHAP values of the feature groups of one row, by the package shap. Part of the bento, so it needs no torch.

An unknown group takes its values from the rows of a background, and the output is the mean over these rows. A group's
SHAP value is its mean effect over all orders in which groups become known.

Shapes: N rows of background, G feature groups of a row, S coalitions; a row has the shape of its layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bloomery.data_contracts.records.tensor_layout import Layout

_MAX_BATCH_SIZE = 256  # between two batches a caller can check its deadline
_MAX_BATCH_VALUES = 1_000_000
_MAX_EXACT_GROUPS = 12  # that differ from the background; all their coalitions are held in memory


class ShapValues(NamedTuple):
    """The SHAP values of one row.

    Attributes:
        values: float64 (G,); with `base` they sum up to `output`.
        base: the output with no group known: the mean over the background.
        output: the output for the row.
        is_exact: all coalitions were evaluated; otherwise orders were sampled.
    """

    values: np.ndarray
    base: float
    output: float
    is_exact: bool


def load_shap() -> Any:
    """The package shap, without its JIT compilation, which takes 5 s of a core and 120 MB to save 2 ms per row."""
    import numba

    config: Any = numba.config
    was_disabled, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        import shap
    finally:
        config.DISABLE_JIT = was_disabled
    return shap


def compute_shap_values(
    predict: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    background: np.ndarray,
    group_index: np.ndarray,
    *,
    max_evaluations: int,
    seed: int = 0,
) -> ShapValues:
    """The SHAP value of each group of `x`. Deterministic; numpy's random state does not change.

    Exact if all coalitions fit into `max_evaluations`; otherwise sampled orders, at least one, each also in reverse.

    Args:
        predict: x float32 (B, ...) -> float64 (B,).
        x: float32 of the layout's shape.
        background: float32 (N, ...).
        group_index: the group of each position, int64 of the layout's shape, from 0.
        max_evaluations: rows that may pass through the network.

    Source: Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions"; Mitchell, Cooper, Frank &
    Holmes 2022, "Sampling Permutations for Shapley Value Estimation", section 3.
    """
    num_groups, num_background = int(group_index.max()) + 1, len(background)
    differs = (x != background).any(axis=0)
    varies_G = np.bincount(group_index[differs], minlength=num_groups) > 0
    mean_output = _coalition_function(predict, x, background, group_index)
    if not varies_G.any():
        base = float(mean_output(np.zeros((1, num_groups)))[0])
        return ShapValues(np.zeros(num_groups), base, base, True)
    shap, num_varied = load_shap(), int(varies_G.sum())
    # For shap a row is 1 where a group is known, and the background is 0: it skips groups that never differ.
    known_1G, unknown = varies_G[None].astype(np.float64), shap.maskers.Independent(np.zeros((1, num_groups)))
    is_exact = num_varied <= _MAX_EXACT_GROUPS and 2**num_varied * num_background <= max_evaluations
    state = np.random.get_state()
    try:
        if is_exact:
            explanation = shap.explainers.ExactExplainer(mean_output, unknown)(known_1G, silent=True)
        else:
            num_coalitions = max(max_evaluations // num_background, 2 * num_varied + 1)
            explainer = shap.explainers.PermutationExplainer(mean_output, unknown, seed=seed)
            explanation = explainer(known_1G, max_evals=num_coalitions, silent=True)
    finally:
        np.random.set_state(state)
    values_G = np.asarray(explanation.values[0], np.float64)
    base = float(np.ravel(explanation.base_values)[0])
    return ShapValues(values_G, base, base + float(values_G.sum()), is_exact)


def _coalition_function(
    predict: Callable[[np.ndarray], np.ndarray], x: np.ndarray, background: np.ndarray, group_index: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The mean output with only some groups of x known, float64 (S,) for coalitions (S, G) of 1 and 0."""
    num_background = len(background)
    num_at_once = max(min(_MAX_BATCH_SIZE, _MAX_BATCH_VALUES // x.size) // num_background, 1)

    def mean_output(known_SG: np.ndarray) -> np.ndarray:
        means = []
        for start in range(0, len(known_SG), num_at_once):
            is_known = known_SG[start : start + num_at_once].astype(bool)[:, group_index]
            rows = np.where(is_known[:, None], x, background)
            means.append(predict(rows.reshape(-1, *x.shape)).reshape(-1, num_background).mean(axis=1))
        return np.concatenate(means)

    return mean_output


def select_background(
    layout: Layout, x: np.ndarray, sample: np.ndarray, *, num_groups: int, max_evaluations: int
) -> np.ndarray:
    """The background for the row `x`: float32 (N, ...).

    Rows of `sample`, evenly spaced, as many as `max_evaluations` allows for one order of the groups and its reverse.
    For text padding, which keeps its position; for a padded sequence the mean step at each valid step. Mixed rows have
    the background of each part, and texts and padded sequences are as absent in it as in `x`.
    """
    if layout.kind == "tokens":
        return np.zeros((1, *x.shape), np.float32)
    if layout.is_padded:
        valid_BT1, valid_T1 = sample[..., -1:], x[..., -1:]
        step_F = (sample * valid_BT1).sum(axis=(0, 1)) / max(float(valid_BT1.sum()), 1.0)
        return np.concatenate([step_F[:-1] * valid_T1, valid_T1], axis=-1, dtype=np.float32)[None]
    if layout.parts:
        return _select_parts(layout, x, sample, num_groups=num_groups, max_evaluations=max_evaluations)
    num_rows = min(max(max_evaluations // (2 * num_groups + 1), 1), len(sample))
    return sample[np.linspace(0, len(sample) - 1, num_rows).astype(np.int64)]


def _select_parts(
    layout: Layout, x_F: np.ndarray, sample_NF: np.ndarray, *, num_groups: int, max_evaluations: int
) -> np.ndarray:
    rows_NF = select_background(
        Layout(kind="flat", shape=layout.shape), x_F, sample_NF, num_groups=num_groups, max_evaluations=max_evaluations
    ).copy()
    for part, start, stop in layout.part_slices:
        if part.layout.kind != "tokens" and not part.layout.is_padded:
            continue
        present_NF = sample_NF[sample_NF[:, stop] > 0.5] if part.is_optional else sample_NF
        background = select_background(
            part.layout,
            x_F[start:stop].reshape(part.layout.shape),
            present_NF[:, start:stop].reshape(-1, *part.layout.shape),
            num_groups=num_groups,
            max_evaluations=max_evaluations,
        )
        rows_NF[:, start:stop] = background.reshape(1, -1)
        if part.is_optional:
            rows_NF[:, stop] = x_F[stop]
    return rows_NF
