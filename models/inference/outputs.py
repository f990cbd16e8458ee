"""Runs ONNX files and converts their outputs to predictions. Part of the bento, so it needs no torch.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.records.output_units import class_mask
from bloomery.data_contracts.records.tensor_layout import predicts_one_class
from bloomery.models.features.encoder import Encoder, decode
from bloomery.models.inference.runtime import run_session, sigmoid, softmax

if TYPE_CHECKING:
    import onnxruntime

# Of a probability or a standardised value: 8-bit arithmetic may round differently in batches of another size.
TOLERANCE = 1e-3
_BATCH_SIZE = 1_024
_BATCH_VALUES = 1 << 24  # fewer rows where these are wide


def compute_outputs(runtime: onnxruntime.InferenceSession, x: np.ndarray, *, is_row_by_row: bool) -> np.ndarray:
    """outputs_BK float32 for x float32 (B, ...), in batches of bounded size.

    `is_row_by_row` runs each row separately: with dynamically quantized activations, a row's outputs would otherwise
    depend on the other rows of its batch.
    """
    num_values = math.prod(x.shape[1:])
    step = 1 if is_row_by_row else max(min(_BATCH_SIZE, _BATCH_VALUES // max(num_values, 1)), 1)
    if len(x) <= step:
        return run_session(runtime, x)
    return np.concatenate([run_session(runtime, x[start : start + step]) for start in range(0, max(len(x), 1), step)])


def predictions_from(encoder: Encoder, outputs_BK: np.ndarray) -> np.ndarray:
    """Probabilities float64 (B, K) of the encoder's classes, or for a regression the values float64 (B,).

    Those of several outputs are float64 (B, K) in deviations from the means of their labels; `restore_units` has their
    units. Those of several labels with classes are probabilities (B, M, K), 0 beyond the classes of a label. The
    probabilities of a classification add up to 1; those of a multilabel task are independent. The predictions of an
    embedding are its vectors, float32 (B, W), as the file computes them.
    """
    if predicts_one_class(encoder.features.task):
        return softmax(outputs_BK)
    if encoder.features.task == "multilabel":
        return sigmoid(outputs_BK)
    if encoder.features.task == "embedding":
        return outputs_BK
    if encoder.class_outputs:
        mask_MK = class_mask(encoder.class_outputs)
        logits_BMK = outputs_BK.reshape(len(outputs_BK), *mask_MK.shape)
        shares = softmax(np.where(mask_MK, logits_BMK, -np.inf).reshape(-1, mask_MK.shape[1]))
        return shares.reshape(logits_BMK.shape)
    if encoder.outputs:
        return outputs_BK.astype(np.float64)
    return decode(encoder, outputs_BK)


def label_deviation(encoder: Encoder) -> float:
    """The standard deviation of a regression's label, in its units."""
    zero, unit = predictions_from(encoder, np.array([[0.0], [1.0]], np.float32))
    return float(unit - zero)


def score_unit(encoder: Encoder) -> float:
    """The factor that converts a network's score to the label's units; 1 of other tasks."""
    return label_deviation(encoder) if encoder.features.task == "regression" else 1.0


def output_deviations(encoder: Encoder) -> dict[str, float]:
    """The deviation of each of several outputs by name, in which differences of its values are judged."""
    return {output.name: output.deviation for output in encoder.outputs}
