"""Adapts a trained ONNX network to our inputs and outputs, and compares it with the original.

Exports of PyTorch, Keras and others differ in the names and types of input and output, in the position of an image's
channels, and in a softmax at the end. The weights stay.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as failures
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.models.export.onnx_exporter import OPSET, PARITY_BATCHES, TOLERANCE, strip_metadata
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import INPUT, OUTPUT, create_session, run_session, softmax
from bloomery.models.onnx_import.graph import (
    find_last_activation,
    first_line,
    make_constant,
    read_onnx,
    remove_unused,
    rename_tensors,
    replace_nodes,
    required_inputs,
    unsupported,
)
from bloomery.models.onnx_import.io_mapping import (
    Channels,
    InputMapping,
    OutputMapping,
    describe_changes,
    find_input_mapping,
    find_output_mapping,
)

_RUNTIME_ERRORS = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NotImplemented,
    failures.RuntimeException,
)
_MIN_PROBABILITY = 1e-12  # smaller probabilities are clipped, so that logarithms are finite


class ImportedNetwork(NamedTuple):
    """An ONNX network with the inputs and outputs of our own networks.

    Attributes:
        error: the largest difference of a probability, or of a value in standard units, from the original file.
        changes: a description of each change.
    """

    model: onnx.ModelProto
    error: float
    changes: list[str]


class SessionModule(nn.Module):
    """An ONNX session as a module without parameters or gradients: x float32 (B, ...) -> float32 (B, K)."""

    def __init__(self, runtime: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self._runtime = runtime

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compute_outputs(self._runtime, x.numpy(), is_row_by_row=False))


def import_network(
    path: Path, layout: Layout, task: Task, num_outputs: int, x: np.ndarray, channels: Channels | None = None
) -> ImportedNetwork:
    """Adapt the network at `path` to rows of `layout`, and compare it with the original on `x` float32 (B, ...).

    Its input becomes `x` float32 (B, ...) with B dynamic, its output `logits` float32 (B, K); its bytes depend on the
    original network only. A softmax or sigmoid at the end is removed; otherwise probabilities are followed by a
    logarithm. The single output of a binary classifier becomes two, the first of which is 0.

    Raises:
        RecipeInvalid: ONNX Runtime cannot run the file, or the network does not fit such rows and outputs.
    """
    original = read_onnx(path)
    input_mapping = find_input_mapping(original, layout, channels)
    runtime = _open_session(original)
    rows = _add_edge_cases(x[: max(PARITY_BATCHES)], layout)
    outputs_of_rows = [
        _run(runtime, input_mapping.apply(rows[position : position + 1]), layout) for position in range(len(rows))
    ]
    outputs = np.concatenate(outputs_of_rows)
    output_mapping = find_output_mapping(original, outputs, task, num_outputs)
    model = _adapt(original, input_mapping, output_mapping, layout, num_outputs)
    expected = output_mapping.apply(outputs)
    error = _largest_difference(model, expected, rows, is_regression=output_mapping.meaning == "values")
    if not error <= TOLERANCE:
        batch_outputs = output_mapping.apply(_run(runtime, input_mapping.apply(rows), layout))
        raise _parity_error(error, mixes_rows=not _max_difference(batch_outputs, expected) <= TOLERANCE)
    activation = find_last_activation(original.graph)
    changes = describe_changes(input_mapping, output_mapping, "" if activation is None else activation.op_type)
    return ImportedNetwork(model, error, changes)


class ImportedFeatures(NamedTuple):
    """An ONNX network whose output is `logits` float32 (B, M), the values of the original's output."""

    model: onnx.ModelProto
    num_features: int


def import_features(path: Path, layout: Layout, x: np.ndarray, channels: Channels | None = None) -> ImportedFeatures:
    """Adapt the network at `path` to rows of `layout`, as `import_network` does, and flatten its outputs to features.

    A softmax or sigmoid at the end is removed, since logits tell more. The file has opset `OPSET`, so that it can be a
    part of an exported network.

    Raises:
        RecipeInvalid: ONNX Runtime cannot run the file, it does not fit such rows, or its opset cannot be converted.
    """
    original = read_onnx(path)
    activation = find_last_activation(original.graph)
    if activation is not None and activation.op_type in ("Softmax", "Sigmoid"):
        original.graph.output[0].name = activation.input[0]
    mapping = find_input_mapping(original, layout, channels)
    rows = _add_edge_cases(x[: max(PARITY_BATCHES)], layout)
    runtime = _open_session(original)
    outputs = [_run(runtime, mapping.apply(rows[position : position + 1]), layout) for position in range(len(rows))]
    expected = np.concatenate(outputs).reshape(len(rows), -1).astype(np.float32)
    model = _adapt_features(original, mapping, layout, expected.shape[1])
    for size in PARITY_BATCHES:
        error = _max_difference(run_session(_open_session(model), rows[:size]), expected[:size])
        if not error <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise _parity_error(error, mixes_rows=True)
    return ImportedFeatures(model, expected.shape[1])


def _adapt_features(
    original: onnx.ModelProto, mapping: InputMapping, layout: Layout, num_features: int
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    rename_tensors(graph, {name: f"{name}/imported" for name in (INPUT, OUTPUT)})
    first, last = required_inputs(graph)[0].name, graph.output[0].name
    flatten = _Operator("Reshape", (np.array([-1, num_features], np.int64),))
    cast = _Operator("Cast", attributes={"to": TensorProto.FLOAT})
    replace_nodes(graph, [*_input_nodes(mapping, first), *graph.node, *_chain(last, [flatten, cast], OUTPUT)])
    remove_unused(graph, OUTPUT)
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *layout.shape]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_features]))
    model = strip_metadata(model)
    if all(entry.version == OPSET for entry in model.opset_import if entry.domain in ("", "ai.onnx")):
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as failure:
        raise unsupported(
            f"the file cannot be converted to opset {OPSET}: {first_line(failure)}",
            f"opset {OPSET}, which the other branches have",
            f"export it with opset {OPSET}",
        ) from failure


def _add_edge_cases(x: np.ndarray, layout: Layout) -> np.ndarray:
    """For tokens, adds a row of the last token, which an embedding may lack, and one of padding only."""
    if layout.num_tokens is None:
        return x
    return np.concatenate([x, np.full_like(x[:1], layout.num_tokens - 1), np.zeros_like(x[:1])])


def _open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    try:
        return create_session(model.SerializeToString())
    except _RUNTIME_ERRORS as failure:
        raise unsupported(
            f"ONNX Runtime cannot run the network: {first_line(failure)}",
            "operators of ONNX Runtime",
            "replace the layer that the operator comes from",
        ) from failure


def _run(runtime: onnxruntime.InferenceSession, x: np.ndarray, layout: Layout) -> np.ndarray:
    """The file's outputs (B, ...) for x in the file's own form."""
    try:
        outputs = runtime.run(None, {runtime.get_inputs()[0].name: x})[0]
    except _RUNTIME_ERRORS as failure:
        tokens = "" if layout.num_tokens is None else f" of tokens below {layout.num_tokens}"
        raise unsupported(
            f"the network fails on {len(x)} row(s): {first_line(failure)}",
            f"outputs for any number of rows of shape {list(x.shape[1:])}{tokens}",
            "export a network with a dynamic batch that reads these rows",
        ) from failure
    if np.ndim(outputs) == 0 or len(outputs) != len(x):
        raise unsupported(
            f"the network's output has shape {list(np.shape(outputs))} for {len(x)} row(s)",
            "one output per row",
            "export a network with a dynamic batch",
        )
    return np.asarray(outputs)


def _adapt(
    original: onnx.ModelProto,
    input_mapping: InputMapping,
    output_mapping: OutputMapping,
    layout: Layout,
    num_outputs: int,
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    rename_tensors(graph, {name: f"{name}/imported" for name in (INPUT, OUTPUT)})
    first, last = required_inputs(graph)[0].name, graph.output[0].name
    needs_cast = graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT
    activation = find_last_activation(graph)
    if output_mapping.removes_activation and activation is not None:
        last = activation.input[0]
    before, after = _input_nodes(input_mapping, first), _output_nodes(output_mapping, last, needs_cast=needs_cast)
    replace_nodes(graph, [*before, *graph.node, *after])
    remove_unused(graph, OUTPUT)
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *layout.shape]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_outputs]))
    return strip_metadata(model)


class _Operator(NamedTuple):
    """An operator, and its constant inputs after the first input."""

    op_type: str
    constants: tuple[np.ndarray, ...] = ()
    attributes: Mapping[str, Any] = {}


def _input_nodes(mapping: InputMapping, target: str) -> list[onnx.NodeProto]:
    operators = []
    if mapping.is_transposed:
        operators.append(_Operator("Transpose", attributes={"perm": [0, 2, 3, 1]}))
    if mapping.shape is not None:
        operators.append(_Operator("Reshape", (np.array([-1, *mapping.shape], np.int64),)))
    if mapping.dtype != TensorProto.FLOAT:
        operators.append(_Operator("Cast", attributes={"to": mapping.dtype}))
    return _chain(INPUT, operators, target)


def _output_nodes(mapping: OutputMapping, source: str, *, needs_cast: bool) -> list[onnx.NodeProto]:
    operators = [_Operator("Cast", attributes={"to": TensorProto.FLOAT})] if needs_cast else []
    if mapping.meaning in ("values", "logit", "probability"):
        operators.append(_Operator("Reshape", (np.array([-1, 1], np.int64),)))
    if mapping.meaning == "probability" and not mapping.removes_activation:
        # The inverse of a sigmoid: log(p / (1 - p)) = -log(1/p - 1).
        limits = np.array(_MIN_PROBABILITY, np.float32), np.array(1 - 1e-7, np.float32)
        odds = (_Operator("Clip", limits), _Operator("Reciprocal"), _Operator("Sub", (np.array(1, np.float32),)))
        operators += [*odds, _Operator("Log"), _Operator("Neg")]
    if mapping.meaning in ("logit", "probability"):
        operators.append(_Operator("Pad", (np.array([0, 1, 0, 0], np.int64),)))
    if mapping.meaning == "probabilities" and not mapping.removes_activation:
        operators += [_Operator("Clip", (np.array(_MIN_PROBABILITY, np.float32),)), _Operator("Log")]
    return _chain(source, operators, OUTPUT)


def _chain(first: str, operators: list[_Operator], last: str) -> list[onnx.NodeProto]:
    """Nodes from the tensor `first` to `last`, at least one."""
    nodes, name = [], first
    operators = operators or [_Operator("Identity")]
    for position, operator in enumerate(operators):
        result = last if operator is operators[-1] else f"{last}/step{position}"
        names = [f"{result}/{operator.op_type}{number}" for number in range(len(operator.constants))]
        nodes += [make_constant(name, value) for name, value in zip(names, operator.constants, strict=True)]
        nodes.append(helper.make_node(operator.op_type, [name, *names], [result], **operator.attributes))
        name = result
    return nodes


def _largest_difference(
    model: onnx.ModelProto, expected: np.ndarray, rows: np.ndarray, *, is_regression: bool
) -> float:
    """Between `expected`, the original's outputs for each row alone, and the adapted network's outputs for batches."""
    runtime = _open_session(model)
    error = 0.0
    for size in (*PARITY_BATCHES, len(rows)):
        try:
            outputs_BK = run_session(runtime, rows[:size])
        except _RUNTIME_ERRORS as failure:
            raise unsupported(
                f"the network runs on one row, but not on {size}: {first_line(failure)}",
                "outputs for any number of rows",
                "export a network with a dynamic batch",
            ) from failure
        predictions = outputs_BK.astype(np.float64) if is_regression else softmax(outputs_BK)
        error = float(np.maximum(error, _max_difference(predictions, expected[:size])))
    return error


def _max_difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max()) if left.shape == right.shape else float("inf")


def _parity_error(error: float, *, mixes_rows: bool) -> Exception:
    if mixes_rows:
        return unsupported(
            "the network's output for a row depends on the other rows of the batch",
            "an independent output for each row",
            "export it for inference and in float: batch normalisation in training mode mixes rows",
        )
    return unsupported(
        f"the adapted network differs from the original by up to {error:.2g}",
        f"at most {TOLERANCE:g}",
        "report the file: one of its operators is adapted wrongly",
    )
