"""Which layers 8 bits harm, found by measurement, and how few must stay in float.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bloomery.models.compression.config import CalibrationMethod, QuantizationMode
from bloomery.models.compression.quantization.post_training import (
    calibrate_ranges,
    preprocess,
    quantizable_layers,
    quantize_preprocessed,
)
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session, softmax


def measure_sensitivities(
    source: Path,
    calibration: np.ndarray,
    *,
    how: QuantizationMode = "static",
    calibrate: CalibrationMethod = "minmax",
    reduce_range: bool = False,
) -> dict[str, float]:
    """How far the outputs of the ONNX file at `source` move if one layer alone has 8 bits, the worst layer first.

    Both are compared on the rows `calibration` float32 (B, ...), by `output_divergence`. Names are of operators that
    `quantize` takes as `keep_float`; layers that are alike stay in the order of the network.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 6.1 (partial quantization).
    """
    with tempfile.TemporaryDirectory() as folder:
        attempt = _Attempt(source, Path(folder), calibration, how, calibrate, reduce_range)
        return attempt.divergences()


def find_float_layers(
    source: Path,
    calibration: np.ndarray,
    x: np.ndarray,
    loss: Callable[[np.ndarray], float],
    limit: float,
    *,
    how: QuantizationMode = "static",
    calibrate: CalibrationMethod = "minmax",
    reduce_range: bool = False,
) -> tuple[str, ...]:
    """The fewest layers, for `keep_float`, with which the loss on the rows `x` rises by at most `limit`.

    The worst join first, by `measure_sensitivities`, until that is reached; then each that turns out not to be needed
    leaves again. So none of them can leave alone; a smaller set of others might exist.

    Args:
        x: validation rows float32 (B, ...).
        loss: of outputs_BK for all of `x`, such as the share of wrong answers; less is better.
    """
    with tempfile.TemporaryDirectory() as folder:
        attempt = _Attempt(source, Path(folder), calibration, how, calibrate, reduce_range)
        most = loss(compute_outputs(create_session(source), x, is_row_by_row=False)) + limit

        def is_enough(kept: list[str]) -> bool:
            return loss(attempt.outputs(kept, x)) <= most

        if is_enough([]):
            return ()
        ranked = list(attempt.divergences())
        num = next((num for num in range(1, len(ranked)) if is_enough(ranked[:num])), len(ranked))
        kept = ranked[:num]
        for name in ranked[: num - 1]:  # without the last one it was not enough
            fewer = [one for one in kept if one != name]
            if is_enough(fewer):
                kept = fewer
        return tuple(kept)


def output_divergence(exact_BK: np.ndarray, given_BK: np.ndarray) -> float:
    """How far outputs are from exact ones, 0 if not at all.

    Of several outputs, which are logits: the mean Kullback-Leibler divergence of the probabilities, in nats. Of a
    single one: the mean squared difference as a share of the variance.
    """
    if exact_BK.shape[1] == 1:
        return float(np.square(exact_BK - given_BK).mean() / max(float(exact_BK.var()), 1e-12))
    p_BK, q_BK = (np.maximum(softmax(logits_BK), 1e-12) for logits_BK in (exact_BK, given_BK))
    return float((p_BK * np.log(p_BK / q_BK)).sum(axis=1).mean())


class _Attempt:
    """Quantizes one network in many ways. It is prepared and its activations are looked at once."""

    def __init__(
        self,
        source: Path,
        folder: Path,
        calibration: np.ndarray,
        how: QuantizationMode,
        calibrate: CalibrationMethod,
        reduce_range: bool,
    ) -> None:
        self._folder, self._calibration, self._source = folder, calibration, source
        self._ready = preprocess(source, folder)
        self._is_row_by_row = how == "dynamic"
        self._settings: dict[str, Any] = {
            "how": how,
            "calibrate": calibrate,
            "reduce_range": reduce_range,
            "seen": calibrate_ranges(self._ready, calibration, calibrate) if how == "static" else None,
        }
        self._layers = quantizable_layers(onnx.load(self._ready), how)

    def outputs(self, kept: list[str], x: np.ndarray) -> np.ndarray:
        target = self._folder / "attempt.onnx"
        quantize_preprocessed(self._ready, target, self._calibration, keep_float=kept, **self._settings)
        return compute_outputs(create_session(target), x, is_row_by_row=self._is_row_by_row)

    def divergences(self) -> dict[str, float]:
        exact_BK = compute_outputs(create_session(self._source), self._calibration, is_row_by_row=False)
        moved = {
            name: output_divergence(
                exact_BK, self.outputs([one for one in self._layers if one != name], self._calibration)
            )
            for name in self._layers
        }
        return dict(sorted(moved.items(), key=lambda item: -item[1]))
