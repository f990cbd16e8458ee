"""Fuses attention with the linear maps before it into one ONNX operator, which is faster for few rows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import optimizer

from bloomery.models.export.onnx_exporter import strip_metadata

_NUM_PROJECTIONS = 3  # query, key, value
_MASK, _BIAS = 4, 5  # positions among the inputs of MultiHeadAttention


class _LinearMap(NamedTuple):
    """A linear map of one tensor."""

    source: str
    weight: np.ndarray  # (inputs, outputs)
    bias: np.ndarray


def fuse_attention(source: Path, target: Path) -> bool:
    """Fuse the attention of the ONNX file at `source` into ONNX Runtime's `Attention` and write it to `target`.

    Each `MultiHeadAttention` with linear maps of one tensor as queries, keys and values becomes one operator,
    instead of three products, three sums and itself. Outputs differ by rounding only. Don't fuse files for static
    quantization or weight clustering: the three weights become one. Attention with a bias of its scores stays as it is,
    because the 8-bit operator has no such input.

    Returns:
        Whether anything was fused; otherwise `target` is not written.
    """
    model = onnx.load(source)
    producers = {output: node for node in model.graph.node for output in node.output}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    num_fused = 0
    for node in [node for node in model.graph.node if node.op_type == "MultiHeadAttention"]:
        if any(node.input[_BIAS:]):
            continue
        candidates = [_find_linear_map(producers, initializers, name) for name in node.input[:_NUM_PROJECTIONS]]
        maps = [linear_map for linear_map in candidates if linear_map is not None]
        if len(maps) == _NUM_PROJECTIONS and len({linear_map.source for linear_map in maps}) == 1:
            _fuse(model.graph, node, maps)
            num_fused += 1
    if num_fused:
        optimizer.remove_unused_nodes(model)  # the linear maps and their weights
        onnx.save(strip_metadata(model), target)  # the pass adds shapes
    return num_fused > 0


def _find_linear_map(
    producers: dict[str, onnx.NodeProto], initializers: dict[str, onnx.TensorProto], name: str
) -> _LinearMap | None:
    """The linear map that produces the tensor `name`: a product with a constant weight, then a constant bias."""
    total = producers.get(name)
    if total is None or total.op_type != "Add":
        return None
    biases = [tensor for tensor in total.input if tensor in initializers]
    products = [
        producers[tensor] for tensor in total.input if tensor in producers and producers[tensor].op_type == "MatMul"
    ]
    if len(biases) != 1 or len(products) != 1 or products[0].input[1] not in initializers:
        return None
    weight, bias = (numpy_helper.to_array(initializers[tensor]) for tensor in (products[0].input[1], biases[0]))
    return _LinearMap(products[0].input[0], weight, bias)


def _fuse(graph: onnx.GraphProto, node: onnx.NodeProto, maps: list[_LinearMap]) -> None:
    """Turn `node` into `Attention`, which includes `maps`; their nodes stay behind unused."""
    weight, bias = f"{node.name}.weight", f"{node.name}.bias"
    weights, biases = ([getattr(linear_map, name) for linear_map in maps] for name in ("weight", "bias"))
    graph.initializer.append(numpy_helper.from_array(np.concatenate(weights, axis=1), weight))
    graph.initializer.append(numpy_helper.from_array(np.concatenate(biases), bias))
    node.op_type = "Attention"
    node.input[:] = [maps[0].source, weight, bias, *node.input[_MASK:_BIAS]]
