"""Attention together with the linear maps before it as one operator, which is quicker where rows are few."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import optimizer

from bloomery.models.export.onnx_exporter import strip_metadata

_PARTS = 3  # query, key, value
_MASK = 4  # which input of MultiHeadAttention it is


class _Map(NamedTuple):
    """A linear map of one tensor."""

    source: str
    weight: np.ndarray  # (inputs, outputs)
    bias: np.ndarray


def fuse_attention(source: Path, target: Path) -> bool:
    """Write the ONNX file at `source` to `target` with `Attention` of ONNX Runtime's for what our exporter writes.

    Each `MultiHeadAttention` whose queries, keys and values are linear maps of the same steps, three products and three
    sums, becomes one operator with them. The answers differ by rounding alone. What is quantized with fixed ranges, or
    has few values in each layer, is not to be fused: the three weights become one.

    Returns whether there was any; otherwise nothing is written.
    """
    model = onnx.load(source)
    makers = {output: node for node in model.graph.node for output in node.output}
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    fused = 0
    for node in [one for one in model.graph.node if one.op_type == "MultiHeadAttention"]:
        maps = [_map(makers, known, name) for name in node.input[:_PARTS]]
        found = [one for one in maps if one is not None]
        if len(found) == _PARTS and len({one.source for one in found}) == 1:
            _fuse(model.graph, node, found)
            fused += 1
    if fused:
        optimizer.remove_unused_nodes(model)  # the maps, and their weights
        onnx.save(strip_metadata(model), target)  # the pass notes shapes
    return fused > 0


def _map(makers: dict[str, onnx.NodeProto], known: dict[str, onnx.TensorProto], name: str) -> _Map | None:
    """What gives the tensor `name`, if it is a product with a known weight and a known bias behind it."""
    total = makers.get(name)
    if total is None or total.op_type != "Add":
        return None
    biases = [one for one in total.input if one in known]
    products = [makers[one] for one in total.input if one in makers and makers[one].op_type == "MatMul"]
    if len(biases) != 1 or len(products) != 1 or products[0].input[1] not in known:
        return None
    weight, bias = (numpy_helper.to_array(known[one]) for one in (products[0].input[1], biases[0]))
    return _Map(products[0].input[0], weight, bias)


def _fuse(graph: onnx.GraphProto, node: onnx.NodeProto, maps: list[_Map]) -> None:
    """Afterwards `node` reckons the maps before it, too, which nobody reads any more."""
    weight, bias = f"{node.name}.weight", f"{node.name}.bias"
    graph.initializer.append(numpy_helper.from_array(np.concatenate([one.weight for one in maps], axis=1), weight))
    graph.initializer.append(numpy_helper.from_array(np.concatenate([one.bias for one in maps]), bias))
    node.op_type = "Attention"
    node.input[:] = [maps[0].source, weight, bias, *node.input[_MASK:]]
