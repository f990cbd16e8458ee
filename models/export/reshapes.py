"""Removes operators of an exported graph that change a shape and change it back, as networks split and join heads."""

from __future__ import annotations

import onnx


def remove_inverse_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes pairs of `Reshape` where the second restores the shape before the first, in place.

    The exporter's inferred shapes decide, so call this before they are removed.
    """
    shapes = {value.name: _dimensions(value) for value in (*model.graph.value_info, *model.graph.input)}
    producers = {output: node for node in model.graph.node for output in node.output}
    replaced: dict[str, str] = {}
    for node in model.graph.node:
        first = producers.get(node.input[0]) if node.op_type == "Reshape" else None
        if first is not None and first.op_type == "Reshape":
            before, after = shapes.get(first.input[0]), shapes.get(node.output[0])
            if before is not None and before == after:
                replaced[node.output[0]] = first.input[0]
    for node in model.graph.node:
        node.input[:] = [replaced.get(name, name) for name in node.input]
    return model


def _dimensions(value: onnx.ValueInfoProto) -> tuple[str | int, ...] | None:
    """The dimensions, where each has a number or a name."""
    dimensions = tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
    return dimensions if dimensions and all(dimensions) else None
