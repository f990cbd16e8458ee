"""How much of a network ONNX Runtime really computes in integers, which is not what its file says but what runs."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime

from bloomery.models.inference.runtime import unpack_model

# Operators whose products are of integers, by what they multiply.
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
    "MatMulNBits",  # weights of few bits, unpacked and multiplied with floats
    "MultiHeadAttention",
    "RNN",
}


class IntegerCoverage(NamedTuple):
    """What runs in integers: as operators, and as a share of all weights that operators multiply with.

    `integers` and `floats` count operators that multiply, by kind; `share` is from 0 to 1, and 0 where there are none.
    """

    integers: dict[str, int]
    floats: dict[str, int]
    share: float


def measure_integer_coverage(path: Path) -> IntegerCoverage:
    """What the operators of the ONNX file at `path` are once ONNX Runtime has optimised it as it will run.

    A file in a stored form is unpacked first. Products without weights, such as those of attention, count as operators
    and not in the share.
    """
    graph = optimized_graph(path).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    integer: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    weights = {True: 0, False: 0}
    for node in graph.node:
        if node.op_type in _INTEGER | _FLOAT:
            is_integer = node.op_type in _INTEGER
            (integer if is_integer else floats)[node.op_type] += 1
            # Scales, zero points and biases are vectors beside weights; the largest two are LSTM's inputs and states.
            known = sorted((sizes[name] for name in set(node.input) if name in sizes), reverse=True)
            weights[is_integer] += sum(known[: 2 if "LSTM" in node.op_type else 1])
    total = sum(weights.values())
    return IntegerCoverage(
        dict(sorted(integer.items())), dict(sorted(floats.items())), weights[True] / total if total else 0.0
    )


def optimized_graph(path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of the file at `path` on this processor, as a session runs it."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(written)
        options.log_severity_level = 3  # it warns that such a file is for this processor alone
        onnxruntime.InferenceSession(unpack_model(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(written)
