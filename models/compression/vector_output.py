"""Adds to an ONNX file of an embedding what makes its outputs vectors: their length, and the type of their values.

Shapes: B rows, W values of a vector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bloomery.models.inference.runtime import OUTPUT, VECTORS

_LARGEST = 127.0
_TINY = 1e-12  # a vector of zeros stays one


def append_vector_output(path: Path, dimensions: int | None, *, as_int8: bool) -> None:
    """Replaces the outputs (B, W) of the file at `path` by vectors of length 1, float32.

    Args:
        dimensions: so many first values are kept.
        as_int8: each vector is scaled to the largest absolute value 127 and rounded, so that values are integers, in
            float32. This changes no cosine but by rounding, and needs no calibration.
    """
    model = onnx.load(path)
    graph = model.graph
    inner = f"{OUTPUT}_unscaled"
    for node in graph.node:
        node.output[:] = [inner if name == OUTPUT else name for name in node.output]
        node.input[:] = [inner if name == OUTPUT else name for name in node.input]
    current = inner
    if dimensions is not None:
        for name, value in (("start", 0), ("end", dimensions), ("axis", 1)):
            graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"vector_{name}"))
        names = [current, "vector_start", "vector_end", "vector_axis"]
        graph.node.append(helper.make_node("Slice", names, ["vector_values"], name="vector_slice"))
        current = "vector_values"
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "vector_axes"))
    graph.initializer.append(numpy_helper.from_array(np.array(_TINY, np.float32), "vector_tiny"))
    if as_int8:
        graph.node.append(helper.make_node("Abs", [current], ["vector_absolute"], name="vector_abs"))
        measure, measured = "ReduceMax", "vector_absolute"
    else:
        measure, measured = "ReduceL2", current
    graph.node.append(helper.make_node(measure, [measured, "vector_axes"], ["vector_size"], name="vector_size"))
    graph.node.append(helper.make_node("Max", ["vector_size", "vector_tiny"], ["vector_divisor"], name="vector_max"))
    scaled = "vector_scaled" if as_int8 else OUTPUT
    graph.node.append(helper.make_node("Div", [current, "vector_divisor"], [scaled], name="vector_div"))
    if as_int8:
        graph.initializer.append(numpy_helper.from_array(np.array(_LARGEST, np.float32), "vector_largest"))
        graph.node.append(helper.make_node("Mul", [scaled, "vector_largest"], ["vector_levels"], name="vector_mul"))
        graph.node.append(helper.make_node("Round", ["vector_levels"], [OUTPUT], name="vector_round"))
    if dimensions is not None:
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = dimensions
    helper.set_model_props(model, {VECTORS: "int8" if as_int8 else "float32"})
    onnx.save(model, path)
