"""What an ONNX file's outputs mean: probabilities of classes, or figures. Travels into the bento: it needs no torch.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from bloomery.models.features.encoder import Encoder, decode
from bloomery.models.inference.runtime import run_session, softmax

# Of a probability, or of a figure in standard units: 8-bit arithmetic may round otherwise in a batch of another size.
TOLERANCE = 1e-3
_BATCH_SIZE = 1_024


def compute_outputs(runtime: onnxruntime.InferenceSession, x: np.ndarray, *, is_row_by_row: bool) -> np.ndarray:
    """outputs_BK float32 for x float32 (B, ...), a bounded number of rows at a time.

    `is_row_by_row` asks each row alone: where activations are quantized as they come, a row's answer would otherwise
    depend on the rows beside it.
    """
    step = 1 if is_row_by_row else _BATCH_SIZE
    if len(x) <= step:
        return run_session(runtime, x)
    return np.concatenate([run_session(runtime, x[start : start + step]) for start in range(0, max(len(x), 1), step)])


def predictions_from(encoder: Encoder, outputs_BK: np.ndarray) -> np.ndarray:
    """Probabilities float64 (B, K) of the encoder's classes, or for a regression the figures float64 (B,)."""
    if encoder.features.task == "classification":
        return softmax(outputs_BK)
    return decode(encoder, outputs_BK)


def label_deviation(encoder: Encoder) -> float:
    """One standard unit of a regression, in the units of the label."""
    nothing, one = predictions_from(encoder, np.array([[0.0], [1.0]], np.float32))
    return float(one - nothing)


def score_unit(encoder: Encoder) -> float:
    """What a network's score or difference of 1 is to a person: a standard unit of a regression's label, or just 1."""
    return 1.0 if encoder.features.task == "classification" else label_deviation(encoder)
