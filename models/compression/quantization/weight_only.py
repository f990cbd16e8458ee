"""Weights that are stored in few bits and computed with in float: smaller files at the pace of the float network.

Shapes: N values of a weight, G blocks of S values each.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from bloomery.models.compression.config import WeightType

_FEWEST = 256  # values of a weight that is worth it: biases and the like stay as they are
_BLOCK = 64  # values that share a scale
_LEVEL: dict[WeightType, int] = {"int8": 128, "int4": 8}
_TYPE: dict[WeightType, np.dtype] = {
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(ml_dtypes.int4),
}
_SCALE = np.dtype(ml_dtypes.bfloat16)  # as wide as float32, so that no block is too small for it
_OPSET = 21  # the first in which integers of 4 bits can be cast


def quantize_weights(source: Path, target: Path, stored: WeightType, *, block: int = _BLOCK) -> None:
    """Write the ONNX file at `source` to `target` with its large weights stored as `stored`.

    They become float32 again when a session opens the file, since ONNX Runtime computes what is constant once; so it
    answers as fast as the float network, whatever the operator: also GRUs and convolutions, which have no dynamic 8-bit
    kernels. `DequantizeLinear` would say the same, but is computed anew for each batch, and MatMulNBits unpacks weights
    in each product.

    Integers have a scale for each `block` of consecutive values, as bfloat16. That of 4 bits is the one with the least
    squared error of several.

    Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.1 (blocks); Micikevicius et
    al. 2018, "Mixed Precision Training" (float16); Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning
    Training" (bfloat16).
    """
    model = onnx.load(source)
    if stored == "int4" and _opset(model) < _OPSET:
        model = version_converter.convert_version(model, _OPSET)
    graph = model.graph
    decoded: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= _FEWEST:
            weight = numpy_helper.to_array(tensor)
            graph.initializer.remove(tensor)
            if stored in ("fp16", "bf16"):
                decoded += _halved(graph, tensor.name, weight, stored)
            else:
                decoded += _rounded(graph, tensor.name, weight, stored, block)
    nodes = [*decoded, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _opset(model: onnx.ModelProto) -> int:
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _halved(graph: onnx.GraphProto, name: str, weight: np.ndarray, stored: WeightType) -> list[onnx.NodeProto]:
    graph.initializer.append(numpy_helper.from_array(weight.astype(_TYPE[stored]), f"{name}_{stored}"))
    return [helper.make_node("Cast", [f"{name}_{stored}"], [name], to=onnx.TensorProto.FLOAT)]


def _rounded(
    graph: onnx.GraphProto, name: str, weight: np.ndarray, stored: WeightType, block: int
) -> list[onnx.NodeProto]:
    padded = np.pad(weight.ravel(), (0, -weight.size % block)).reshape(-1, block)
    scale_G1, level_GS = _levels(padded, _LEVEL[stored])
    whole = weight.size % block == 0
    parts = {
        f"{name}_{stored}": level_GS.astype(_TYPE[stored]),
        f"{name}_scale": scale_G1,
        f"{name}_shape": np.array(weight.shape, np.int64),
    }
    if not whole:
        parts |= {
            f"{name}_start": np.array([0]),
            f"{name}_end": np.array([weight.size]),
            f"{name}_flat": np.array([-1]),
        }
    graph.initializer.extend(numpy_helper.from_array(values, part) for part, values in parts.items())
    kind = int(onnx.TensorProto.FLOAT)
    nodes = [
        helper.make_node("Cast", [f"{name}_{stored}"], [f"{name}_levels"], to=kind),
        helper.make_node("Cast", [f"{name}_scale"], [f"{name}_scales"], to=kind),
        helper.make_node("Mul", [f"{name}_levels", f"{name}_scales"], [f"{name}_blocks"]),
    ]
    blocks = f"{name}_blocks"
    if not whole:  # what fills up the last block
        nodes.append(helper.make_node("Reshape", [blocks, f"{name}_flat"], [f"{name}_filled"]))
        nodes.append(helper.make_node("Slice", [f"{name}_filled", f"{name}_start", f"{name}_end"], [f"{name}_values"]))
        blocks = f"{name}_values"
    return [*nodes, helper.make_node("Reshape", [blocks, f"{name}_shape"], [name])]


def _levels(weight_GS: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """scale_G1 bfloat16 and whole numbers (G, S) from -level to level - 1, whose product is close to the weights."""
    at_G1 = np.abs(weight_GS).argmax(axis=1)[:, None]
    # The value furthest from 0 gets the lowest level, of which there is one more than above 0.
    widest_G1 = -np.take_along_axis(weight_GS, at_G1, axis=1) / level
    # With many levels clipping the largest values never pays.
    shares = (1.0,) if level > 8 else (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
    best_G1 = np.full_like(widest_G1, np.inf)
    scale_G1 = np.zeros(widest_G1.shape, _SCALE)
    levels_GS = np.zeros_like(weight_GS)
    for share in shares:
        tried_G1 = (widest_G1 * share).astype(_SCALE)
        divisor_G1 = np.where(tried_G1 == 0, 1, tried_G1.astype(np.float32))
        tried_GS = np.clip(np.round(weight_GS / divisor_G1), -level, level - 1)
        error_G1 = np.square(tried_GS * tried_G1.astype(np.float32) - weight_GS).sum(axis=1, keepdims=True)
        is_better_G1 = error_G1 < best_G1
        best_G1 = np.where(is_better_G1, error_G1, best_G1)
        scale_G1 = np.where(is_better_G1, tried_G1, scale_G1)
        levels_GS = np.where(is_better_G1, tried_GS, levels_GS)
    return scale_G1, levels_GS
