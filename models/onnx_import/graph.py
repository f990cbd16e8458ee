"""Reads foreign ONNX files, and inspects and changes their graphs."""

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
_MIN_OPSET = 13  # the first with scales per channel, which 8-bit weights need
_RECURRENT_OR_ATTENTION = {"LSTM", "GRU", "RNN", "Loop", "Scan", "Softmax", "Attention"}


def read_onnx(path: Path) -> onnx.ModelProto:
    """The network in an ONNX file that can be imported: one input, one output, no external weights.

    Raises:
        RecipeInvalid: the file is not such a network.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        _require_internal_weights(model, path.name)
        _replace_erfc(model.graph)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as failure:
        raise unsupported(
            f"{path.name} is not valid ONNX: {first_line(failure)}",
            "an ONNX file of standard operators",
            "export it again, as with Keras's model.export(path, format='onnx')",
        ) from failure
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _MIN_OPSET:
        raise unsupported(f"{path.name} has opset {opset}", f"{_MIN_OPSET} or newer", "export with a newer opset")
    for name, values in (("inputs", required_inputs(model.graph)), ("outputs", list(model.graph.output))):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise unsupported(
                f"{path.name} has {len(values)} {name}: {names}",
                "one input, for the encoded row, and one output",
                "export a network with one of each; turn a constant input into a weight",
            )
    return model


def _require_internal_weights(model: onnx.ModelProto, name: str) -> None:
    external = [tensor.name for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    if external:
        raise unsupported(
            f"{len(external)} weights of {name} are in other files, such as {external[0]}",
            "one file with all weights",
            "export without external data, as torch.onnx.export(..., external_data=False) does",
        )


def _replace_erfc(graph: onnx.GraphProto) -> None:
    """Replace TensorFlow's Erfc, from Keras's exact GELU, by 1 - Erf, since ONNX does not have it."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Erfc" and not node.domain:
            one_name, erf_name = f"{node.output[0]}/one", f"{node.output[0]}/erf"
            nodes += [
                make_constant(one_name, np.array(1, np.float32)),
                helper.make_node("Erf", [node.input[0]], [erf_name]),
                helper.make_node("Sub", [one_name, erf_name], [node.output[0]]),
            ]
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


def required_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs without weights, which older files list among them."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def find_last_activation(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """The node that produces the output, without `Identity` nodes; None if the output is the input."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type == "Identity":
        node = producers.get(node.input[0])
    return node


def count_weights(model: onnx.ModelProto) -> int:
    """The number of real values in the weights and constants of the file."""
    constants = (attribute.t for node in _nodes(model.graph) for attribute in node.attribute if attribute.HasField("t"))
    tensors = (*_tensors(model.graph), *constants)
    return sum(int(np.prod(tensor.dims)) for tensor in tensors if tensor.data_type in REALS)


def choose_quantization(model: onnx.ModelProto) -> Literal["static", "dynamic"]:
    """Static for convolutional networks. Recurrent cells and attention have no kernels for static ranges."""
    operators = {node.op_type for node in _nodes(model.graph)}
    return "static" if "Conv" in operators and not operators & _RECURRENT_OR_ATTENTION else "dynamic"


def make_constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def rename_tensors(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename the tensors of `graph` by `names`, including uses in subgraphs."""
    for node in graph.node:
        for tensor_names in (node.input, node.output):
            for position, name in enumerate(tensor_names):
                tensor_names[position] = names.get(name, name)
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for subgraph in _subgraphs(graph):
        rename_tensors(subgraph, names)


def remove_unused(graph: onnx.GraphProto, result: str) -> None:
    """Remove all nodes and weights from `graph` that the tensor `result` does not need."""
    needed_tensors, needed_nodes = {result}, []
    for node in reversed(graph.node):
        if needed_tensors.intersection(node.output):
            needed_nodes.append(node)
            needed_tensors.update(node.input)
            needed_tensors.update(
                name for inner in _subgraphs_of(node) for child in _nodes(inner) for name in child.input
            )
            needed_tensors.update(value.name for inner in _subgraphs_of(node) for value in inner.output)
    replace_nodes(graph, reversed(needed_nodes))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed_tensors]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        yield from _subgraphs_of(node)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, including those of subgraphs, such as the body of a loop."""
    yield from graph.node
    for subgraph in _subgraphs(graph):
        yield from _nodes(subgraph)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for subgraph in _subgraphs(graph):
        yield from _tensors(subgraph)


def first_line(failure: Exception) -> str:
    return next((line.strip() for line in str(failure).splitlines() if line.strip()), type(failure).__name__)[:300]


def unsupported(problem: str, required: str, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(
        problem,
        required=required,
        where="model.path in the recipe",
        remedy=f"{remedy}; see docs/bring-your-own.md",
    )
