"""What each unit of a row adds to its answer, by the package shap. Travels into the bento: it needs no torch.

A unit that is not known takes its values from rows of a background, and the answer is the mean over these rows. What a
unit adds is its Shapley value: the mean over all orders in which units may become known.

Shapes: N rows of background, U units of a row, S sets of units; a row has the shape of its layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bloomery.data_contracts.records.tensor_layout import Layout

_ROWS_AT_ONCE = 256  # through the network, between which a deadline can be asked
_VALUES_AT_ONCE = 1_000_000
_MOST_EXACT = 12  # units that differ, whose sets all lie in memory


class ShapValues(NamedTuple):
    """What the units of one row add to its answer.

    Attributes:
        values: float64 (U,); with `base` they add up to `answer`.
        base: the answer where no unit is known: the mean over the background.
        answer: that to the whole row.
        is_exact: every set of units was asked; otherwise some orders were drawn.
    """

    values: np.ndarray
    base: float
    answer: float
    is_exact: bool


def load_shap() -> Any:
    """The package shap, without compiling anything: that takes 5 s of a core and 120 MB, to save 2 ms of a row."""
    import numba

    config: Any = numba.config
    compiles_not, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        import shap
    finally:
        config.DISABLE_JIT = compiles_not
    return shap


def compute_shap_values(
    answers: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    background: np.ndarray,
    of: np.ndarray,
    *,
    most_rows: int,
    seed: int = 0,
) -> ShapValues:
    """What each unit of `x` adds to its answer. The same arguments give the same values.

    Where all sets of a few units fit into `most_rows`, each is asked; otherwise orders of units are drawn and walked
    forwards and backwards, one order at least. The state of numpy's random numbers is afterwards what it was.

    Args:
        answers: x float32 (B, ...) -> float64 (B,).
        x: float32 of the layout's shape.
        background: float32 (N, ...).
        of: the unit of each position, int64 of the layout's shape, from 0.
        most_rows: of the network.

    Source: Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions"; Mitchell, Cooper, Frank &
    Holmes 2022, "Sampling Permutations for Shapley Value Estimation", section 3.
    """
    num_units, num_behind = int(of.max()) + 1, len(background)
    differs = (x != background).any(axis=0)
    varies_U = np.bincount(of[differs], minlength=num_units) > 0
    mean_answers = _game(answers, x, background, of)
    if not varies_U.any():
        base = float(mean_answers(np.zeros((1, num_units)))[0])
        return ShapValues(np.zeros(num_units), base, base, True)
    shap, num_varied = load_shap(), int(varies_U.sum())
    # To shap a row is 1 where a unit is known, and 0 in the background: units that never differ are left out by it.
    known_1U, unknown = varies_U[None].astype(np.float64), shap.maskers.Independent(np.zeros((1, num_units)))
    is_exact = num_varied <= _MOST_EXACT and 2**num_varied * num_behind <= most_rows
    state = np.random.get_state()
    try:
        if is_exact:
            found = shap.explainers.ExactExplainer(mean_answers, unknown)(known_1U, silent=True)
        else:
            num_sets = max(most_rows // num_behind, 2 * num_varied + 1)
            explainer = shap.explainers.PermutationExplainer(mean_answers, unknown, seed=seed)
            found = explainer(known_1U, max_evals=num_sets, silent=True)
    finally:
        np.random.set_state(state)
    values_U, base = np.asarray(found.values[0], np.float64), float(np.ravel(found.base_values)[0])
    return ShapValues(values_U, base, base + float(values_U.sum()), is_exact)


def _game(
    answers: Callable[[np.ndarray], np.ndarray], x: np.ndarray, background: np.ndarray, of: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The mean answer where only some units of x are known, float64 (S,) for sets (S, U) of 1 and 0."""
    num_behind = len(background)
    at_once = max(min(_ROWS_AT_ONCE, _VALUES_AT_ONCE // x.size) // num_behind, 1)

    def mean_answers(known_SU: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(known_SU), at_once):
            known = known_SU[start : start + at_once].astype(bool)[:, of]
            rows = np.where(known[:, None], x, background)
            found.append(answers(rows.reshape(-1, *x.shape)).reshape(-1, num_behind).mean(axis=1))
        return np.concatenate(found)

    return mean_answers


def select_background(
    layout: Layout, x: np.ndarray, sample: np.ndarray, *, num_units: int, most_rows: int
) -> np.ndarray:
    """What stands for the unknown units of the row `x`: float32 (N, ...).

    Rows of `sample`, spread evenly and as few as one order of units allows with `most_rows`. Text has none but padding,
    which keeps its place; a sequence of any length has the mean step, where the row has a step.
    """
    if layout.kind == "tokens":
        return np.zeros((1, *x.shape), np.float32)
    if layout.is_padded:
        there_BT1, there_T1 = sample[..., -1:], x[..., -1:]
        step_F = (sample * there_BT1).sum(axis=(0, 1)) / max(float(there_BT1.sum()), 1.0)
        return np.concatenate([step_F[:-1] * there_T1, there_T1], axis=-1, dtype=np.float32)[None]
    num_rows = min(max(most_rows // (2 * num_units + 1), 1), len(sample))
    return sample[np.linspace(0, len(sample) - 1, num_rows).astype(np.int64)]
