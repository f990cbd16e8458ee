"""Convolutions in 8 bits on the matrix tiles of a processor (AMX), which ONNX Runtime passes over of itself.

It has two ways to convolve with 8-bit weights. The one for weights whose zero is 0 multiplies by VNNI instructions and
takes no tiles; the other, a matrix product, takes them, and is for weights whose zero is anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

# Of smaller convolutions, laying rows out for the matrix product costs more than the tiles save: on a processor with
# AMX, 32 to 64 channels (18,432 weights) took 0.97 to 1.04 of the time, 64 to 64 (36,864) 0.9, 128 to 128 0.7.
_FEWEST_WEIGHTS = 32_768


def use_amx_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, which the static route made, with -1 as the zero of the weights of large convolutions.

    Weights are symmetric, from -127 to 127, so one less of each fits as well: the network is the same to the last bit.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        weight = made_by.get(node.input[1]) if node.op_type == "Conv" and _is_whole(node) else None
        if weight is None or len(weight.input) < 3 or not _is_large(tensors, weight.input):
            continue
        for name in (weight.input[0], weight.input[2]):
            lowered = numpy_helper.to_array(tensors[name]) - np.int8(1)
            tensors[name].CopyFrom(numpy_helper.from_array(lowered, name))
    return model


def _is_whole(convolution: onnx.NodeProto) -> bool:
    """Whether every output reads all channels: in groups, each product is too small."""
    return all(one.i == 1 for one in convolution.attribute if one.name == "group")


def _is_large(tensors: dict[str, onnx.TensorProto], names: Sequence[str]) -> bool:
    """Whether the weights are enough, and of the kind that can be lowered: a second reader finds them so already."""
    if not {names[0], names[2]} <= set(tensors) or tensors[names[0]].data_type != onnx.TensorProto.INT8:
        return False
    levels, zeros = (numpy_helper.to_array(tensors[name]) for name in (names[0], names[2]))
    return levels.size >= _FEWEST_WEIGHTS and levels.min() > -128 and not zeros.any()
