"""Measures how much 8 bits harm each layer, and finds the few layers that must stay in float.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from bloomery.models.compression.quantization.post_training import (
    DEFAULT_OPTIONS,
    QuantizationOptions,
    calibrate_ranges,
    preprocess,
    quantizable_layers,
    quantize_preprocessed,
)
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session, sigmoid, softmax


class ValidationRows(NamedTuple):
    """Rows of which the loss may rise by little if layers have 8 bits.

    Attributes:
        x: float32 (B, ...).
        loss: of outputs_BK for all of `x`, such as the error rate; less is better.
        is_multilabel: whether outputs are logits of independent labels.
        are_numbers: whether outputs are compared as numbers: standardised values, or logits of several labels.
    """

    x: np.ndarray
    loss: Callable[[np.ndarray], float]
    is_multilabel: bool = False
    are_numbers: bool = False


def measure_sensitivities(
    source: Path, calibration: np.ndarray, options: QuantizationOptions = DEFAULT_OPTIONS
) -> dict[str, float]:
    """By layer of the ONNX file at `source`, the output divergence if it alone has 8 bits, largest first.

    Outputs are compared on the rows `calibration` float32 (B, ...). Names are those of operators, for `keep_float`;
    equal layers stay in graph order.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 6.1 (partial quantization).
    """
    with tempfile.TemporaryDirectory() as folder:
        return _Quantizer(source, Path(folder), calibration, options).measure_divergences()


def find_float_layers(
    source: Path,
    calibration: np.ndarray,
    validation: ValidationRows,
    limit: float,
    options: QuantizationOptions = DEFAULT_OPTIONS,
) -> tuple[str, ...]:
    """The fewest layers, for `keep_float`, with which the loss on the validation rows rises by at most `limit`.

    Greedy: the most sensitive layers are added until the limit holds, then each layer that is not needed is removed
    again. So no layer can be removed alone; a smaller set of other layers might exist.
    """
    x, loss, is_multilabel, are_numbers = validation
    with tempfile.TemporaryDirectory() as folder:
        quantizer = _Quantizer(source, Path(folder), calibration, options)
        max_loss = loss(compute_outputs(create_session(source), x, is_row_by_row=False)) + limit

        def is_enough(keep_float: list[str]) -> bool:
            return loss(quantizer.outputs(keep_float, x)) <= max_loss

        if is_enough([]):
            return ()
        ranked = list(quantizer.measure_divergences(is_multilabel=is_multilabel, are_numbers=are_numbers))
        num_layers = next((num for num in range(1, len(ranked)) if is_enough(ranked[:num])), len(ranked))
        float_layers = ranked[:num_layers]
        for name in ranked[: num_layers - 1]:  # the last one is needed
            fewer = [layer for layer in float_layers if layer != name]
            if is_enough(fewer):
                float_layers = fewer
        return tuple(float_layers)


def output_divergence(
    exact_BK: np.ndarray, quantized_BK: np.ndarray, *, is_multilabel: bool = False, are_numbers: bool = False
) -> float:
    """Distance of quantized outputs from exact ones, 0 if they are equal.

    Several outputs are logits: the mean Kullback-Leibler divergence of their probabilities, in nats; of independent
    labels, the mean of the binary divergences. A single output, or one that is a number: the mean squared difference as
    a share of the variance.
    """
    if is_multilabel:
        pairs = ((exact_BK, quantized_BK), (-exact_BK, -quantized_BK))  # a label is in the set, or not
        shares = ([np.maximum(sigmoid(logits_BK), 1e-12) for logits_BK in pair] for pair in pairs)
        return float(sum((p_BK * np.log(p_BK / q_BK)).mean() for p_BK, q_BK in shares))
    if exact_BK.shape[-1] == 1 or are_numbers:
        errors_K, variances_K = np.square(exact_BK - quantized_BK).mean(axis=0), exact_BK.var(axis=0)
        return float((errors_K / np.maximum(variances_K, 1e-12)).mean())
    p_BK, q_BK = (np.maximum(softmax(logits_BK), 1e-12) for logits_BK in (exact_BK, quantized_BK))
    return float((p_BK * np.log(p_BK / q_BK)).sum(axis=-1).mean())


class _Quantizer:
    """Quantizes one network with various layers in float. It is preprocessed and calibrated once."""

    def __init__(self, source: Path, folder: Path, calibration: np.ndarray, options: QuantizationOptions) -> None:
        self._folder, self._calibration, self._source, self._options = folder, calibration, source, options
        self._preprocessed = preprocess(source, folder)
        self._is_row_by_row = options.mode == "dynamic"
        self._range_cache = (
            calibrate_ranges(self._preprocessed, calibration, options.calibration_method)
            if options.mode == "static"
            else None
        )
        self._layers = quantizable_layers(onnx.load(self._preprocessed), options.mode)

    def outputs(self, keep_float: list[str], x: np.ndarray) -> np.ndarray:
        target = self._folder / "quantized.onnx"
        options = self._options._replace(keep_float=keep_float)
        quantize_preprocessed(self._preprocessed, target, self._calibration, options, self._range_cache)
        return compute_outputs(create_session(target), x, is_row_by_row=self._is_row_by_row)

    def measure_divergences(self, *, is_multilabel: bool = False, are_numbers: bool = False) -> dict[str, float]:
        exact_BK = compute_outputs(create_session(self._source), self._calibration, is_row_by_row=False)
        divergences = {}
        for name in self._layers:
            other_layers = [layer for layer in self._layers if layer != name]
            outputs_BK = self.outputs(other_layers, self._calibration)
            divergences[name] = output_divergence(
                exact_BK, outputs_BK, is_multilabel=is_multilabel, are_numbers=are_numbers
            )
        return dict(sorted(divergences.items(), key=lambda item: -item[1]))
