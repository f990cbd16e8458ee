"""A network that comes trained made to answer as our own do, and compared with what it was.

What PyTorch, Keras and others write differs in the names and types of input and output, in where the channels of an
image lie, and in whether a softmax stands at the end. The weights stay as they are.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as failures
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.models.export.onnx_exporter import PARITY_BATCHES, TOLERANCE, strip_metadata
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

_REFUSALS = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NotImplemented,
    failures.RuntimeException,
)
_LEAST_SHARE = 1e-12  # what has less is as good as impossible, but its logarithm is finite


class ImportedNetwork(NamedTuple):
    """A file that answers as our own networks do.

    Attributes:
        error: the largest difference of a probability, or of a figure in standard units, from the file as it came.
        changes: what was changed, in words.
    """

    model: onnx.ModelProto
    error: float
    changes: list[str]


class SessionModule(nn.Module):
    """An ONNX file as a module without parameters or gradients: x float32 (B, ...) -> float32 (B, K)."""

    def __init__(self, runtime: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self._runtime = runtime

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compute_outputs(self._runtime, x.numpy(), is_row_by_row=False))


def import_network(
    path: Path, layout: Layout, task: Task, num_outputs: int, x: np.ndarray, channels: Channels | None = None
) -> ImportedNetwork:
    """The network at `path` for rows of `layout`, compared with the file as it came on `x` float32 (B, ...).

    Its input is then `x` float32 (B, ...) with B free, its output `logits` float32 (B, K), and its bytes depend on
    nothing but the file's network. A softmax or sigmoid at the end is cut off; of other probabilities the logarithm is
    taken. The single output of a network for two classes becomes two, of which the first is 0.

    Raises:
        RecipeInvalid: the file is no ONNX that ONNX Runtime can run, or no network for such rows and outputs.
    """
    original = read_onnx(path)
    way_in = find_input_mapping(original, layout, channels)
    runtime = _session(original)
    rows = _with_edges(x[: max(PARITY_BATCHES)], layout)
    alone = [_ask(runtime, way_in.of(rows[place : place + 1]), layout) for place in range(len(rows))]
    given = np.concatenate(alone)
    way_out = find_output_mapping(original, given, task, num_outputs)
    model = _changed(original, way_in, way_out, layout, num_outputs)
    error = _largest_difference(model, way_out.of(given), rows, is_figures=way_out.meaning == "figures")
    if not error <= TOLERANCE:
        together = _ask(runtime, way_in.of(rows), layout)
        raise _apart(error, does_mix=not _furthest(way_out.of(together), way_out.of(given)) <= TOLERANCE)
    end = find_last_activation(original.graph)
    return ImportedNetwork(model, error, describe_changes(way_in, way_out, "" if end is None else end.op_type))


def _with_edges(x: np.ndarray, layout: Layout) -> np.ndarray:
    """With tokens, rows of the last one, which an embedding may lack, and of padding alone."""
    if layout.num_tokens is None:
        return x
    return np.concatenate([x, np.full_like(x[:1], layout.num_tokens - 1), np.zeros_like(x[:1])])


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    try:
        return create_session(model.SerializeToString())
    except _REFUSALS as failure:
        raise unsupported(
            f"ONNX Runtime cannot run it: {first_line(failure)}",
            "operators that ONNX Runtime has",
            "replace the layer that the operator comes from",
        ) from failure


def _ask(runtime: onnxruntime.InferenceSession, x: np.ndarray, layout: Layout) -> np.ndarray:
    """The file's outputs (B, ...) for x as the file reads it."""
    try:
        outputs = runtime.run(None, {runtime.get_inputs()[0].name: x})[0]
    except _REFUSALS as failure:
        tokens = "" if layout.num_tokens is None else f" of tokens below {layout.num_tokens}"
        raise unsupported(
            f"it has no answer to {len(x)} row(s): {first_line(failure)}",
            f"an answer to any number of rows of shape {list(x.shape[1:])}{tokens}",
            "export a network with a free batch that reads these rows",
        ) from failure
    if np.ndim(outputs) == 0 or len(outputs) != len(x):
        raise unsupported(
            f"its output has shape {list(np.shape(outputs))} for {len(x)} row(s)",
            "as many answers as rows",
            "export a network with a free batch",
        )
    return np.asarray(outputs)


def _changed(
    original: onnx.ModelProto, way_in: InputMapping, way_out: OutputMapping, layout: Layout, num_outputs: int
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    rename_tensors(graph, {name: f"{name}/imported" for name in (INPUT, OUTPUT)})
    source, end = required_inputs(graph)[0].name, graph.output[0].name
    needs_cast = graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT
    activation = find_last_activation(graph)
    if way_out.is_cut and activation is not None:
        end = activation.input[0]
    before, after = _nodes_before(way_in, source), _nodes_after(way_out, end, needs_cast=needs_cast)
    replace_nodes(graph, [*before, *graph.node, *after])
    remove_unused(graph, OUTPUT)
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *layout.shape]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_outputs]))
    return strip_metadata(model)


class _Step(NamedTuple):
    """An operator, and its further inputs."""

    operator: str
    constants: tuple[np.ndarray, ...] = ()
    attributes: Mapping[str, Any] = {}


def _nodes_before(way: InputMapping, source: str) -> list[onnx.NodeProto]:
    steps = []
    if way.is_transposed:
        steps.append(_Step("Transpose", attributes={"perm": [0, 2, 3, 1]}))
    if way.shape is not None:
        steps.append(_Step("Reshape", (np.array([-1, *way.shape], np.int64),)))
    if way.dtype != TensorProto.FLOAT:
        steps.append(_Step("Cast", attributes={"to": way.dtype}))
    return _chain(INPUT, steps, source)


def _nodes_after(way: OutputMapping, end: str, *, needs_cast: bool) -> list[onnx.NodeProto]:
    steps = [_Step("Cast", attributes={"to": TensorProto.FLOAT})] if needs_cast else []
    if way.meaning in ("figures", "logit", "probability"):
        steps.append(_Step("Reshape", (np.array([-1, 1], np.int64),)))
    if way.meaning == "probability" and not way.is_cut:
        # What a sigmoid undoes: log(p / (1 - p)) = -log(1/p - 1).
        limits = np.array(_LEAST_SHARE, np.float32), np.array(1 - 1e-7, np.float32)
        odds = (_Step("Clip", limits), _Step("Reciprocal"), _Step("Sub", (np.array(1, np.float32),)))
        steps += [*odds, _Step("Log"), _Step("Neg")]
    if way.meaning in ("logit", "probability"):
        steps.append(_Step("Pad", (np.array([0, 1, 0, 0], np.int64),)))
    if way.meaning == "probabilities" and not way.is_cut:
        steps += [_Step("Clip", (np.array(_LEAST_SHARE, np.float32),)), _Step("Log")]
    return _chain(end, steps, OUTPUT)


def _chain(first: str, steps: list[_Step], last: str) -> list[onnx.NodeProto]:
    """Nodes that lead from the tensor `first` to `last`, at least one."""
    nodes, name = [], first
    steps = steps or [_Step("Identity")]
    for position, step in enumerate(steps):
        result = last if step is steps[-1] else f"{last}/step{position}"
        names = [f"{result}/{step.operator}{place}" for place in range(len(step.constants))]
        nodes += [make_constant(one, value) for one, value in zip(names, step.constants, strict=True)]
        nodes.append(helper.make_node(step.operator, [name, *names], [result], **step.attributes))
        name = result
    return nodes


def _largest_difference(model: onnx.ModelProto, expected: np.ndarray, rows: np.ndarray, *, is_figures: bool) -> float:
    """Between what the file as it came answers to each row alone, and what the changed one answers to batches."""
    runtime = _session(model)
    error = 0.0
    for size in (*PARITY_BATCHES, len(rows)):
        try:
            outputs_BK = run_session(runtime, rows[:size])
        except _REFUSALS as failure:
            raise unsupported(
                f"it answers one row, but not {size}: {first_line(failure)}",
                "an answer to any number of rows",
                "export a network with a free batch",
            ) from failure
        meant = outputs_BK.astype(np.float64) if is_figures else softmax(outputs_BK)
        error = float(np.maximum(error, _furthest(meant, expected[:size])))
    return error


def _furthest(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max()) if left.shape == right.shape else float("inf")


def _apart(error: float, *, does_mix: bool) -> Exception:
    if does_mix:
        return unsupported(
            "what it answers to a row depends on the other rows of the batch",
            "an answer of its own for each row",
            "export it for inference and in float: batch normalisation in training mode mixes rows",
        )
    return unsupported(
        f"in our form it answers up to {error:.2g} off what it answers as it came",
        f"at most {TOLERANCE:g}",
        "report the file: an operator of it is changed wrongly",
    )
