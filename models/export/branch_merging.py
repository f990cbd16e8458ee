"""Merges the ONNX files of a fused network's branches and of its join into one file with an input for each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from bloomery.models.inference.named_inputs import name_length
from bloomery.models.inference.runtime import OUTPUT
from bloomery.models.networks.architectures.fused import FusedNetwork, part_rows
from bloomery.models.networks.architectures.imported_branch import ImportedBranch

_BATCH = "batch"

# Exports a network: its example inputs, their names, and the largest number of steps of the first input, or 0.
PartExporter = Callable[[nn.Module, tuple[torch.Tensor, ...], Sequence[str], int], onnx.ModelProto]


def export_fused(network: FusedNetwork, examples: torch.Tensor, export: PartExporter) -> onnx.ModelProto:
    """The ONNX file of `network`: each branch and the join is exported by itself, since their exporters differ.

    The names of weights are those of the network's state.
    """
    inputs: list[onnx.ValueInfoProto] = []
    features, flags, models = [], [], []
    taken = {OUTPUT}
    for number, (branch, (part, start, stop)) in enumerate(zip(network.branches, network.slices, strict=True)):
        rows = part_rows(examples, part, start, stop)
        max_length = getattr(branch, "max_length", 0) if part.layout.kind in ("tokens", "sequence") else 0
        prefix, name = f"branches.{number}.", _free_name(part.name, taken)
        if isinstance(branch, ImportedBranch):
            model = _append_linear(branch)
        else:
            model = export(branch, (rows,), ["x"], max_length)
        models.append(compose.add_prefix(model, prefix))
        with torch.no_grad():
            features.append(branch(rows))
        _rename(models[-1].graph, {f"{prefix}x": name})
        shape: list[int | str] = [_BATCH, *part.layout.shape]
        if max_length > 1 and (part.layout.kind == "tokens" or part.layout.is_padded):
            shape[1] = name_length(number, part.layout.shape[0])
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if part.is_optional:
            name = _free_name(f"{part.name}.present", taken)
            flags.append((name, examples[:, stop : stop + 1]))
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, 1]))
    names = [*(f"branches.{number}.{OUTPUT}" for number in range(len(models))), *(name for name, _ in flags)]
    tensors = (*features, *(values for _, values in flags))
    join = compose.add_prefix(export(network.join, tensors, [f"{name}/in" for name in names], 0), "join.")
    _rename(join.graph, {f"join.{name}/in": name for name in names} | {f"join.{OUTPUT}": OUTPUT})
    return _merge([*models, join], inputs, join.graph.output)


def _append_linear(branch: ImportedBranch) -> onnx.ModelProto:
    """The file of an imported branch, followed by its linear layer."""
    model = compose.add_prefix(onnx.load_from_string(branch.model), "file/")
    graph = model.graph
    _rename(graph, {"file/x": "x"})
    graph.node.append(helper.make_node("Gemm", [f"file/{OUTPUT}", "head.weight", "head.bias"], [OUTPUT], transB=1))
    for name in ("weight", "bias"):
        values = getattr(branch.head, name).detach().cpu().numpy()
        graph.initializer.append(numpy_helper.from_array(values, f"head.{name}"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [_BATCH, branch.head.out_features]))
    return model


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken or name.startswith(("branches.", "join.")):
        name = f"{name}_" if name in taken else f"part.{name}"
    taken.add(name)
    return name


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames inputs and outputs of the graph, also inside nodes."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for subgraph in _graphs(graph):
        for node in subgraph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _merge(
    models: Sequence[onnx.ModelProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node for model in models for node in model.graph.node],
        "fused",
        list(inputs),
        list(outputs),
        [tensor for model in models for tensor in model.graph.initializer],
    )
    opsets = {opset.domain: opset for model in models for opset in model.opset_import}
    merged = helper.make_model(
        graph,
        opset_imports=[opsets[domain] for domain in sorted(opsets)],
        ir_version=max(model.ir_version for model in models),
        producer_name="bloomery",
    )
    for function in (function for model in models for function in model.functions):
        merged.functions.append(function)
    return merged
