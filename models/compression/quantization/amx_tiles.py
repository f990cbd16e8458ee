"""Makes 8-bit convolutions use the matrix tiles of a processor (AMX), which ONNX Runtime does not do by default.

It has two 8-bit convolutions. The one for weights with zero point 0 uses VNNI instructions and no tiles; the other, a
matrix product for any other zero point, uses tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

# Below this the matrix product's layout of rows costs more than tiles save: on a processor with AMX, convolutions of 32
# to 64 channels (18,432 weights) took 0.97 to 1.04 of the time, 64 to 64 (36,864) 0.9, 128 to 128 0.7.
_MIN_WEIGHTS = 32_768


def use_amx_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Change `model`, statically quantized, in place: weights of large convolutions get the zero point -1.

    Weights are symmetric, from -127 to 127, so each can be lowered by one as well: outputs keep their bits.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        weight = dequantizers.get(node.input[1]) if node.op_type == "Conv" and _is_ungrouped(node) else None
        if weight is None or len(weight.input) < 3 or not _can_be_lowered(tensors, weight.input):
            continue
        for name in (weight.input[0], weight.input[2]):
            lowered = numpy_helper.to_array(tensors[name]) - np.int8(1)
            tensors[name].CopyFrom(numpy_helper.from_array(lowered, name))
    return model


def _is_ungrouped(convolution: onnx.NodeProto) -> bool:
    """Whether every output reads all channels: the products of groups are too small."""
    return all(attribute.i == 1 for attribute in convolution.attribute if attribute.name == "group")


def _can_be_lowered(tensors: dict[str, onnx.TensorProto], names: Sequence[str]) -> bool:
    """Whether the weights are large and not lowered yet, as they are for a second reader of the same tensor."""
    if not {names[0], names[2]} <= set(tensors) or tensors[names[0]].data_type != onnx.TensorProto.INT8:
        return False
    levels, zero_points = (numpy_helper.to_array(tensors[name]) for name in (names[0], names[2]))
    return levels.size >= _MIN_WEIGHTS and levels.min() > -128 and not zero_points.any()
