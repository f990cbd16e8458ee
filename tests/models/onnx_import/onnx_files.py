"""Writes small ONNX files for tests of the importer, and rows for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.inference.runtime import create_session, run_session

FLAT = Layout(kind="flat", shape=(4,))
IMAGE = Layout(kind="image", shape=(3, 4, 5))
GREY = Layout(kind="image", shape=(1, 4, 5))
SEQUENCE = Layout(kind="sequence", shape=(6, 2))
TOKENS = Layout(kind="tokens", shape=(6,), num_tokens=9)
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
Node = tuple[str, list[str], list[str], dict[str, Any]]


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def write_model(
    path: Path,
    shape: list[Any],
    nodes: list[Node],
    weights: dict[str, np.ndarray],
    *,
    dtype: int = FLOAT,
    output_dtype: int = FLOAT,
    width: list[Any] | None = None,
    opset: int = 15,
) -> Path:
    """Writes a file with the input `keras_tensor`, as Keras names it, whose last node produces `Identity:0`."""
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, outputs, **attributes) for operator, inputs, outputs, attributes in nodes],
        "network",
        [helper.make_tensor_value_info("keras_tensor", dtype, shape)],
        [helper.make_tensor_value_info("Identity:0", output_dtype, width or ["unk__1", None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def dense(
    path: Path, *last_nodes: Node, shape: list[Any] | None = None, outputs: int = 3, inputs: int = 4, **options: Any
) -> Path:
    """Writes x W + b as the tensor `h`, followed by `last_nodes`."""
    nodes: list[Node] = [("MatMul", ["keras_tensor", "W"], ["x"], {}), ("Add", ["x", "b"], ["h"], {})]
    weights = {"W": weight(inputs, outputs), "b": weight(outputs)} | options.pop("weights", {})
    return write_model(path, shape or ["unk__0", inputs], [*nodes, *last_nodes], weights, **options)


def end(operator: str, **attributes: Any) -> Node:
    return (operator, ["h"], ["Identity:0"], attributes)


def rows_of(layout: Layout, num: int = 40) -> np.ndarray:
    random = np.random.default_rng(1)
    if layout.num_tokens is not None:
        return random.integers(0, layout.num_tokens, (num, *layout.shape)).astype(np.float32)
    return random.normal(size=(num, *layout.shape)).astype(np.float32)


def run_original(path: Path, x: np.ndarray) -> np.ndarray:
    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return runtime.run(None, {runtime.get_inputs()[0].name: x})[0]


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run_session(create_session(model.SerializeToString()), x)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
