"""Quantization to 8 bits: of weights, and of activations in ranges known before or found row by row."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from models.runtime import INPUT


class _Rows(CalibrationDataReader):
    def __init__(self, x: np.ndarray, batch_size: int = 64) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = (
            {INPUT: x[start : start + batch_size]} for start in range(0, len(x), batch_size)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(
    source: Path, target: Path, calibration: np.ndarray, *, how: Literal["static", "dynamic"] = "static"
) -> None:
    """Write the ONNX file at `source` to `target` with 8-bit arithmetic.

    static: activations are uint8 in the ranges from the least to the largest value seen on the rows `calibration`
    float32 (B, ...), and weights int8 per channel, which is what processors with VNNI instructions run fastest. It
    suits convolutions.

    dynamic: activations are uint8 in the ranges of each batch, so `calibration` is not read; embeddings, dense and LSTM
    layers become int8. Convolutions, Elman's layers and GRUs stay in float: their 8-bit kernels are slow or missing.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference".
    """
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the quantizer warns through the root logger about every file
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready = Path(folder) / "ready.onnx"
            # ONNX Runtime's own optimiser folds batch normalisation into the convolutions before.
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            model = onnx.load(ready)
            del model.graph.value_info[:]  # inferred shapes that the optimiser has made untrue
            onnx.save(model, ready)
            if how == "static":
                _quantize_static(ready, target, calibration)
            else:
                _quantize_dynamic(ready, target)
            model = onnx.load(target)
            del model.metadata_props[:]
            del model.graph.value_info[:]
            onnx.save(model, target)
    finally:
        logging.root.setLevel(level)


def _quantize_static(ready: Path, target: Path, calibration: np.ndarray) -> None:
    quantize_static(
        str(ready),
        str(target),
        _Rows(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool", "Relu"],
    )


def _quantize_dynamic(ready: Path, target: Path) -> None:
    quantize_dynamic(
        str(ready),
        str(target),
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Gather", "Gemm", "LSTM", "MatMul"],
    )
