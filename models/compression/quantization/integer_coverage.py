"""Measures how much of a network ONNX Runtime computes in integers, from the graph that it runs, not from the file."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime

from bloomery.models.inference.runtime import unpack_model

# Operators that multiply integers.
_INTEGER = {
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
_FLOAT = {
    "Attention",
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "GRU",
    "Gemm",
    "LSTM",
    "MatMul",
    "MatMulNBits",  # unpacks weights of few bits and multiplies floats
    "MultiHeadAttention",
    "RNN",
}


class IntegerCoverage(NamedTuple):
    """Counts of the operators that multiply, by type, and the share of weights that are multiplied as integers.

    `share` is from 0 to 1, and 0 where there are no weights.
    """

    integer_operators: dict[str, int]
    float_operators: dict[str, int]
    share: float


def measure_integer_coverage(path: Path) -> IntegerCoverage:
    """The coverage of the ONNX file at `path` after ONNX Runtime's optimization for this processor.

    Compressed files are decompressed first. Products without weights, such as those of attention, count as operators
    but not in the share.
    """
    graph = optimized_graph(path).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    integer_operators: Counter[str] = Counter()
    float_operators: Counter[str] = Counter()
    num_weights = {True: 0, False: 0}
    for node in graph.node:
        if node.op_type in _INTEGER | _FLOAT:
            is_integer = node.op_type in _INTEGER
            (integer_operators if is_integer else float_operators)[node.op_type] += 1
            # Scales, zero points and biases are smaller than the weights; an LSTM has two: for inputs and states.
            constants = sorted((sizes[name] for name in set(node.input) if name in sizes), reverse=True)
            num_weights[is_integer] += sum(constants[: 2 if "LSTM" in node.op_type else 1])
    total = sum(num_weights.values())
    return IntegerCoverage(
        dict(sorted(integer_operators.items())),
        dict(sorted(float_operators.items())),
        num_weights[True] / total if total else 0.0,
    )


def optimized_graph(path: Path) -> onnx.ModelProto:
    """The graph that a session runs for the file at `path`, optimized by ONNX Runtime for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3  # it warns that such a file is for this processor only
        onnxruntime.InferenceSession(unpack_model(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)
