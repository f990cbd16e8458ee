"""ONNX files as they come, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.errors import RecipeInvalid

REALS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_LEAST_OPSET = 13  # has scales per channel, which 8-bit weights need
_RECURRENT_OR_ATTENDING = {"LSTM", "GRU", "RNN", "Loop", "Scan", "Softmax", "Attention"}


def read_onnx(path: Path) -> onnx.ModelProto:
    """The network in an ONNX file, as far as it can be one of ours: one input, one output, all weights within.

    Raises:
        RecipeInvalid: it is not.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        _require_weights(model, path.name)
        _say_erfc(model.graph)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as failure:
        raise unsupported(
            f"{path.name} is no valid ONNX: {first_line(failure)}",
            "an ONNX file of operators that ONNX has",
            "export it again, as with Keras's model.export(path, format='onnx')",
        ) from failure
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < _LEAST_OPSET:
        raise unsupported(f"{path.name} is of opset {opset}", f"{_LEAST_OPSET} or newer", "export with a newer opset")
    for what, values in (("inputs", required_inputs(model.graph)), ("outputs", list(model.graph.output))):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise unsupported(
                f"{path.name} has {len(values)} {what}: {names}",
                "one input, which takes the encoded row, and one output",
                "export a network with one of each; a constant that became an input belongs into a weight",
            )
    return model


def _require_weights(model: onnx.ModelProto, name: str) -> None:
    outside = [tensor.name for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise unsupported(
            f"{len(outside)} weights of {name} lie in other files, such as {outside[0]}",
            "one file with all weights",
            "export without external data, as torch.onnx.export(..., external_data=False) does",
        )


def _say_erfc(graph: onnx.GraphProto) -> None:
    """Keras's exact GELU is exported with TensorFlow's Erfc, which ONNX lacks: it is 1 - Erf."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Erfc" and not node.domain:
            one, erf = f"{node.output[0]}/one", f"{node.output[0]}/erf"
            nodes += [
                make_constant(one, np.array(1, np.float32)),
                helper.make_node("Erf", [node.input[0]], [erf]),
                helper.make_node("Sub", [one, erf], [node.output[0]]),
            ]
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


def required_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What has to be given. Older files name their weights among the inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def find_last_activation(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """The node that the output comes from, apart from changes of name; None if it is the input."""
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(graph.output[0].name)
    while node is not None and node.op_type == "Identity":
        node = made_by.get(node.input[0])
    return node


def count_weights(model: onnx.ModelProto) -> int:
    """How many real numbers the file holds."""
    constants = (attribute.t for node in _nodes(model.graph) for attribute in node.attribute if attribute.HasField("t"))
    tensors = (*_tensors(model.graph), *constants)
    return sum(int(np.prod(tensor.dims)) for tensor in tensors if tensor.data_type in REALS)


def choose_quantization(model: onnx.ModelProto) -> Literal["static", "dynamic"]:
    """Static for networks of convolutions. Recurrent cells and attention have no kernels for fixed ranges."""
    operators = {node.op_type for node in _nodes(model.graph)}
    return "static" if "Conv" in operators and not operators & _RECURRENT_OR_ATTENDING else "dynamic"


def make_constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def rename_tensors(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Afterwards every tensor named in `names` has its new name, also where inner graphs read it."""
    for node in graph.node:
        for places in (node.input, node.output):
            for place, name in enumerate(places):
                places[place] = names.get(name, name)
    for one in (*graph.initializer, *graph.input, *graph.output):
        one.name = names.get(one.name, one.name)
    for inner in _inner_graphs(graph):
        rename_tensors(inner, names)


def remove_unused(graph: onnx.GraphProto, result: str) -> None:
    """Afterwards `graph` has no node and no weight that the tensor `result` does not need."""
    needed, kept = {result}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for inner in _inner_graphs_of(node) for one in _nodes(inner) for name in one.input)
            needed.update(value.name for inner in _inner_graphs_of(node) for value in inner.output)
    replace_nodes(graph, reversed(kept))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _inner_graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        yield from _inner_graphs_of(node)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, also those of graphs within, such as the body of a loop."""
    yield from graph.node
    for inner in _inner_graphs(graph):
        yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for inner in _inner_graphs(graph):
        yield from _tensors(inner)


def first_line(failure: Exception) -> str:
    return next((line.strip() for line in str(failure).splitlines() if line.strip()), type(failure).__name__)[:300]


def unsupported(found: str, required: str, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(
        found,
        required=required,
        where="model.path in the recipe",
        remedy=f"{remedy}; see docs/bring-your-own.md",
    )
