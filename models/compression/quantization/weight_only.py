"""Weight-only quantization: weights stored in few bits and computed with in float, at the speed of the float network.

Shapes: G blocks of S values each.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from bloomery.models.compression.config import WeightType

_MIN_VALUES = 256  # of a weight; smaller ones, such as biases, stay as they are
_BLOCK_SIZE = 64  # values that share a scale
_MAX_LEVEL: dict[WeightType, int] = {"int8": 128, "int4": 8}
_DTYPE: dict[WeightType, np.dtype] = {
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(ml_dtypes.int4),
}
_SCALE_DTYPE = np.dtype(ml_dtypes.bfloat16)  # has the exponents of float32, so no block is too small for it
_MIN_OPSET = 21  # the first with casts from 4-bit integers
_CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # scales that are tried, as shares of the widest


def quantize_weights(source: Path, target: Path, weight_type: WeightType, *, block_size: int = _BLOCK_SIZE) -> None:
    """Write the ONNX file at `source` to `target` with its large weights stored as `weight_type`.

    They become float32 again when a session opens the file, since ONNX Runtime folds constants. So it runs as fast as
    the float network, whatever the operator, also GRUs and convolutions, which have no dynamic 8-bit kernels.
    `DequantizeLinear` is not folded and would run for each batch, and MatMulNBits unpacks weights in each product.

    Integers have a bfloat16 scale for each `block_size` consecutive values; with 4 bits, of several scales the one with
    the least squared error.

    Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.1 (blocks); Micikevicius et
    al. 2018, "Mixed Precision Training" (float16); Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning
    Training" (bfloat16).
    """
    model = onnx.load(source)
    if weight_type == "int4" and _opset(model) < _MIN_OPSET:
        model = version_converter.convert_version(model, _MIN_OPSET)
    graph = model.graph
    decoding_nodes: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= _MIN_VALUES:
            weight = numpy_helper.to_array(tensor)
            graph.initializer.remove(tensor)
            if weight_type in ("fp16", "bf16"):
                decoding_nodes += _store_as_half(graph, tensor.name, weight, weight_type)
            else:
                decoding_nodes += _store_as_integers(graph, tensor.name, weight, weight_type, block_size)
    nodes = [*decoding_nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _opset(model: onnx.ModelProto) -> int:
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _store_as_half(
    graph: onnx.GraphProto, name: str, weight: np.ndarray, weight_type: WeightType
) -> list[onnx.NodeProto]:
    graph.initializer.append(numpy_helper.from_array(weight.astype(_DTYPE[weight_type]), f"{name}_{weight_type}"))
    return [helper.make_node("Cast", [f"{name}_{weight_type}"], [name], to=onnx.TensorProto.FLOAT)]


def _store_as_integers(
    graph: onnx.GraphProto, name: str, weight: np.ndarray, weight_type: WeightType, block_size: int
) -> list[onnx.NodeProto]:
    padded = np.pad(weight.ravel(), (0, -weight.size % block_size)).reshape(-1, block_size)
    scale_G1, level_GS = _quantize_blocks(padded, _MAX_LEVEL[weight_type])
    is_padded = weight.size % block_size != 0
    constants = {
        f"{name}_{weight_type}": level_GS.astype(_DTYPE[weight_type]),
        f"{name}_scale": scale_G1,
        f"{name}_shape": np.array(weight.shape, np.int64),
    }
    if is_padded:
        constants |= {
            f"{name}_start": np.array([0]),
            f"{name}_end": np.array([weight.size]),
            f"{name}_flat": np.array([-1]),
        }
    graph.initializer.extend(numpy_helper.from_array(values, constant) for constant, values in constants.items())
    float_type = int(onnx.TensorProto.FLOAT)
    nodes = [
        helper.make_node("Cast", [f"{name}_{weight_type}"], [f"{name}_levels"], to=float_type),
        helper.make_node("Cast", [f"{name}_scale"], [f"{name}_scales"], to=float_type),
        helper.make_node("Mul", [f"{name}_levels", f"{name}_scales"], [f"{name}_blocks"]),
    ]
    blocks = f"{name}_blocks"
    if is_padded:  # cut off the padding of the last block
        nodes.append(helper.make_node("Reshape", [blocks, f"{name}_flat"], [f"{name}_filled"]))
        nodes.append(helper.make_node("Slice", [f"{name}_filled", f"{name}_start", f"{name}_end"], [f"{name}_values"]))
        blocks = f"{name}_values"
    return [*nodes, helper.make_node("Reshape", [blocks, f"{name}_shape"], [name])]


def _quantize_blocks(weight_GS: np.ndarray, max_level: int) -> tuple[np.ndarray, np.ndarray]:
    """scale_G1 bfloat16 and integers (G, S) from -max_level to max_level - 1. Their product is close to the weights."""
    widest_position_G1 = np.abs(weight_GS).argmax(axis=1)[:, None]
    # The value furthest from 0 gets the lowest level, since there is one level more below 0 than above.
    widest_scale_G1 = -np.take_along_axis(weight_GS, widest_position_G1, axis=1) / max_level
    # With many levels, clipping the largest values never reduces the error.
    shares = (1.0,) if max_level > 8 else _CLIPPING
    best_error_G1 = np.full_like(widest_scale_G1, np.inf)
    scale_G1 = np.zeros(widest_scale_G1.shape, _SCALE_DTYPE)
    levels_GS = np.zeros_like(weight_GS)
    for share in shares:
        tried_scale_G1 = (widest_scale_G1 * share).astype(_SCALE_DTYPE)
        divisor_G1 = np.where(tried_scale_G1 == 0, 1, tried_scale_G1.astype(np.float32))
        tried_levels_GS = np.clip(np.round(weight_GS / divisor_G1), -max_level, max_level - 1)
        decoded_GS = tried_levels_GS * tried_scale_G1.astype(np.float32)
        error_G1 = np.square(decoded_GS - weight_GS).sum(axis=1, keepdims=True)
        is_better_G1 = error_G1 < best_error_G1
        best_error_G1 = np.where(is_better_G1, error_G1, best_error_G1)
        scale_G1 = np.where(is_better_G1, tried_scale_G1, scale_G1)
        levels_GS = np.where(is_better_G1, tried_levels_GS, levels_GS)
    return scale_G1, levels_GS
