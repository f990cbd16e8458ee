"""Half precision: ONNX files whose arithmetic is in float16, which GPUs compute faster than float32."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

# Operators that move values of an input without arithmetic, and comparisons: before them nothing may be rounded.
_MOVING = ("Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_COMPARING = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


def convert_to_half(source: Path, target: Path) -> None:
    """Write the ONNX file at `source` to `target` with arithmetic in float16. Inputs and outputs stay float32.

    What reads the inputs without arithmetic stays in float32, since token ids and categories above 2,048 have no exact
    float16. ONNX Runtime also computes the file on a processor, by casts around each operator, and slowly.

    Source: Micikevicius et al. 2018, "Mixed Precision Training".
    """
    model = onnx.load(source)
    del model.graph.value_info[:]
    exact = _cast_behind_inputs(model)
    inputs = [value for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    for value in inputs:  # hidden from the converter, which would round them first
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    half = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, op_block_list=[], node_block_list=exact
    )
    names = {value.name for value in inputs}
    for value in half.graph.input:
        if value.name in names:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del half.graph.value_info[:]
    onnx.save(half, target)


def _cast_behind_inputs(model: onnx.ModelProto) -> list[str]:
    """Adds casts to float16 behind the nodes that read inputs without arithmetic; returns the names of those nodes."""
    graph = model.graph
    floats = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    exact: list[str] = []
    nodes: list[onnx.NodeProto] = []
    casts: set[str] = set()
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"
        # The further inputs of other operators are positions and shapes.
        data = list(node.input) if node.op_type in ("Concat", *_COMPARING) else list(node.input[:1])
        reads_exact = any(name in floats for name in data) and all(name in {*floats, *initializers} for name in data)
        if reads_exact and node.op_type in (*_MOVING, *_COMPARING, "Cast"):
            exact.append(node.name)
            _copy_initializers(graph, node, initializers)
            if node.op_type in _MOVING or _casts_to_float(node):
                floats.update(node.output)
        else:
            uncast = [name for name in dict.fromkeys(node.input) if name in floats and name not in casts]
            nodes += [
                helper.make_node("Cast", [name], [f"{name}.half"], f"{name}.cast", to=TensorProto.FLOAT16)
                for name in uncast
            ]
            casts.update(uncast)
            node.input[:] = [f"{name}.half" if name in floats else name for name in node.input]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return exact


def _casts_to_float(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(
        entry.name == "to" and entry.i == TensorProto.FLOAT for entry in node.attribute
    )


def _copy_initializers(graph: onnx.GraphProto, node: onnx.NodeProto, initializers: dict[str, onnx.TensorProto]) -> None:
    """Gives `node` constants of its own, since those that it shares with others become float16."""
    for position, name in enumerate(node.input):
        if name in initializers and initializers[name].data_type == TensorProto.FLOAT:
            own = onnx.TensorProto()
            own.CopyFrom(initializers[name])
            own.name = f"{name}.{node.name}"
            graph.initializer.append(own)
            node.input[position] = own.name
