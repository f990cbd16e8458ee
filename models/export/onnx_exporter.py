"""Exports PyTorch networks to ONNX and torch.export files, and checks that outputs agree.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from onnxscript import optimizer
from torch import nn

from bloomery.data_contracts.errors import ParityBroken
from bloomery.models.export.branch_merging import export_fused
from bloomery.models.export.reshapes import remove_inverse_reshapes
from bloomery.models.inference.parity import require_parity
from bloomery.models.inference.runtime import INPUT, OUTPUT, TOKENS, create_session, run_session
from bloomery.models.networks.architectures.fused import FusedNetwork

PARITY_BATCHES = (1, 3, 32)
TOLERANCE = 1e-4  # of a logit: the largest difference that a different order of float32 arithmetic explains
_LARGE_OUTPUT = 100  # outputs beyond it, such as forecasts far from the training rows, may differ in proportion
OPSET = 18
_OPERATOR_REGISTRIES: dict[int, Any] = {}  # PyTorch's translations of its operators to ONNX, by version of ONNX's


def export_onnx(network: nn.Module, examples: torch.Tensor, path: Path, *, keep_names: bool = False) -> float:
    """Export `network` to ONNX with a dynamic batch size, and compare it with PyTorch on `examples` (B, ...).

    A network with an attribute `max_length` keeps a dynamic sequence length; it is then compared at several lengths,
    also with padded and empty rows. The file's bytes depend on the network only: the exporter's notes about source
    files are removed.

    Args:
        keep_names: keeps the names of all linear layers' weights, which learned ranges refer to. Otherwise weights over
            the steps of a sequence get short names, and the file is smaller.

    Returns:
        The largest absolute difference of a logit over batches of several sizes and lengths.

    Raises:
        ParityBroken: that difference is above `TOLERANCE`, or PyTorch cannot export the network.
    """
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            if isinstance(network, FusedNetwork):
                model = export_fused(network, examples[:2], _export_module)
            else:
                model = _export_module(network, (examples[:2],), [INPUT], _max_length(network, examples))
        except (RuntimeError, ValueError, TypeError) as failure:
            raise _export_error(failure) from failure
    if keep_names:
        _restore_weight_names(model.graph, network)
    onnx.save(strip_metadata(model), path)
    return measure_parity(network, examples, path)


def measure_parity(network: nn.Module, examples: torch.Tensor, path: Path) -> float:
    """The largest absolute difference of a logit between the ONNX file at `path` and `network`, as in `export_onnx`.

    Raises:
        ParityBroken: it is above `TOLERANCE`, or ONNX Runtime fails.
    """
    error, largest = _largest_difference(network, examples, _max_length(network, examples), create_session(path))
    _require_parity("ONNX Runtime", error, path, largest)
    return error


def _export_error(failure: Exception) -> ParityBroken:
    """Reports the innermost cause, since the exporter wraps it in advice of its own."""
    cause: BaseException = failure
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return ParityBroken(
        f"PyTorch cannot export this network to ONNX: {lines[0][:300]}",
        required="a `forward` with operations that do not depend on values, for any number of rows",
        where="the network",
        remedy="in a network of your own, branch and loop in `forward` over shapes only, and read no value of a tensor",
    )


def _max_length(network: nn.Module, examples: torch.Tensor) -> int:
    """The maximum number of steps of a row, or 0 if all rows have the same shape."""
    is_image = examples.dim() == 4  # spectrograms of one length
    return 0 if is_image else int(getattr(network, "max_length", 0))


def _export_module(
    network: nn.Module, examples: tuple[torch.Tensor, ...], input_names: Sequence[str], max_length: int
) -> onnx.ModelProto:
    """Exports a network; with `max_length` above 1, its only input has a dynamic length."""
    if max_length > 1:
        examples = (_with_length(examples[0], max(examples[0].shape[1], 2)),)
    # The newer exporter fixes the sequence length of recurrent layers, and unrolls Elman layers.
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    export = _export_by_tracing if is_recurrent else _export_program_to_onnx
    model = export(network, examples, input_names, max_length)
    if any(node.op_type == "MultiHeadAttention" for node in model.graph.node):
        optimizer.remove_unused_nodes(remove_inverse_reshapes(model))
    return model


def _export_program_to_onnx(
    network: nn.Module, examples: tuple[torch.Tensor, ...], input_names: Sequence[str], max_length: int
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    dynamic_shapes: tuple[Any, ...] = tuple({0: batch} for _ in examples)
    if max_length > 1:
        name = TOKENS if getattr(network, "trims_padding", False) else "length"
        dynamic_shapes[0][1] = torch.export.Dim(name, min=1, max=max_length)
    if len(examples) > 1:
        dynamic_shapes = (dynamic_shapes,)  # the tensors of `*args`
    with shared_operator_registry():
        program = torch.onnx.export(
            network,
            examples,
            dynamo=True,
            input_names=list(input_names),
            output_names=[OUTPUT],
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


@contextlib.contextmanager
def shared_operator_registry() -> Iterator[None]:
    """Makes the exporter build its registry of operators once in a process, not once for each export.

    Building it parses the source of 500 operators, which takes longer than the rest of a small network's export. An
    export only reads the registry, unless it brings operators of its own, and `_export_program_to_onnx` brings none.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # another version of PyTorch
        yield
        return
    build_registry = ONNXRegistry.from_torchlib
    original = ONNXRegistry.__dict__["from_torchlib"]

    def find_or_build(*, opset_version: int) -> Any:
        if opset_version not in _OPERATOR_REGISTRIES:
            _OPERATOR_REGISTRIES[opset_version] = build_registry(opset_version=opset_version)
        return _OPERATOR_REGISTRIES[opset_version]

    setattr(ONNXRegistry, "from_torchlib", staticmethod(find_or_build))  # noqa: B010 - mypy refuses an assignment
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", original)  # noqa: B010


def _export_by_tracing(
    network: nn.Module, examples: tuple[torch.Tensor, ...], input_names: Sequence[str], max_length: int
) -> onnx.ModelProto:
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "length"} if max_length > 1 else {0: "batch"} for name in input_names}
    torch.onnx.export(
        network,
        examples,
        file,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=OPSET,
        input_names=list(input_names),
        output_names=[OUTPUT],
        dynamic_axes={**axes, OUTPUT: {0: "batch", 1: "length"} if _has_steps(network, examples) else {0: "batch"}},
    )
    # The newer exporter does this itself: it folds constants and removes unused nodes.
    return optimizer.optimize(onnx.load_from_string(file.getvalue()))


def _has_steps(network: nn.Module, examples: tuple[torch.Tensor, ...]) -> bool:
    """Whether outputs are for each step (B, T, K)."""
    with torch.no_grad():
        outputs: torch.Tensor = network(*examples)
    return outputs.dim() == 3


def _restore_weight_names(graph: onnx.GraphProto, network: nn.Module) -> None:
    """Rename weights that the exporter transposed for products of more than two dimensions, found by their values."""
    names = {tensor.name for tensor in graph.initializer}
    unknown = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in network.state_dict()}
    new_names: dict[str, str] = {}
    for layer, module in network.named_modules():
        if isinstance(module, nn.Linear) and f"{layer}.weight" not in names:
            transposed = module.weight.detach().T.numpy()
            matches = (name for name, tensor in unknown.items() if _is_equal(tensor, transposed))
            if (name := next(matches, None)) is not None:
                unknown.pop(name)
                new_names[name] = f"{layer}.weight"
    for tensor in graph.initializer:
        tensor.name = new_names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]


def _is_equal(tensor: onnx.TensorProto, values: np.ndarray) -> bool:
    return tuple(tensor.dims) == values.shape and np.array_equal(onnx.numpy_helper.to_array(tensor), values)


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove doc strings, metadata and inferred shapes in place: they have paths and can be a third of a small file."""
    model.producer_version = model.doc_string = ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    return model


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace the metadata of the ONNX file at `path`, such as a version and its lineage.

    ONNX Runtime returns it by `session.get_modelmeta().custom_metadata_map`. The order of `metadata` does not matter.
    """
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.save(model, path)


def export_program(network: nn.Module, examples: torch.Tensor, path: Path) -> float:
    """Export `network` to a `torch.export` program with a dynamic batch size, which PyTorch opens without our code.

    `torch.export.load(path).module()` runs on rows of the shape of `examples` (B, ...). The file's bytes depend on the
    network only: it has no example, and nothing of the machine.

    Returns:
        The largest absolute difference of an output between the loaded file and `network` on batches of several sizes.

    Raises:
        ParityBroken: that difference is above `TOLERANCE`, or PyTorch cannot export the network.
    """
    network.eval()
    zeros = examples.new_zeros(2, *examples.shape[1:])  # a view of `examples` would be saved with all of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(network, (zeros,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except (RuntimeError, ValueError, TypeError) as failure:
            raise _export_error(failure) from failure
        for node in program.graph.nodes:
            for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):  # name source files
                node.meta.pop(name, None)
        file = io.BytesIO()  # a file name would be part of the bytes
        torch.export.save(program, file)
        path.write_bytes(file.getvalue())
        loaded = torch.export.load(path).module()
    with torch.no_grad():
        error = max(float((loaded(x) - network(x)).abs().max()) for x in (examples[:size] for size in PARITY_BATCHES))
    _require_parity("a torch.export program", error, path)
    return error


def _require_parity(runtime: str, error: float, path: Path, largest_output: float = 0.0) -> None:
    require_parity(
        error,
        TOLERANCE * max(1.0, largest_output / _LARGE_OUTPUT),
        compared=f"{runtime} and PyTorch",
        rows=f"batches of {', '.join(map(str, PARITY_BATCHES))} rows",
        path=path,
        remedy="report the network's config: one of its operators is exported wrongly",
    )


@torch.no_grad()
def _largest_difference(
    network: nn.Module, examples: torch.Tensor, max_length: int, runtime: onnxruntime.InferenceSession
) -> tuple[float, float]:
    """Returns the largest difference of an output, and the largest output."""
    pairs = [_difference(network, x, runtime) for x in _parity_batches(examples, max_length)]
    error, largest = np.max(np.array(pairs), axis=0)
    return float(error), float(largest)


def _difference(network: nn.Module, x: torch.Tensor, runtime: onnxruntime.InferenceSession) -> tuple[float, float]:
    try:
        outputs = run_session(runtime, x.numpy())
    except (Fail, InvalidArgument, RuntimeException) as error:
        raise ParityBroken(
            f"ONNX Runtime fails: {str(error).splitlines()[0][:300]}",
            required=f"outputs for rows of shape {list(x.shape)}, as PyTorch has",
            where="the exported network",
            remedy="in a network of your own, take sizes in `forward` from tensors, not from Python numbers",
        ) from error
    expected = network(x).numpy()
    if expected.shape != outputs.shape:
        return float("inf"), 0.0
    return float(np.abs(expected - outputs).max()), float(np.abs(expected).max())


def _parity_batches(examples: torch.Tensor, max_length: int) -> Iterator[torch.Tensor]:
    for size in PARITY_BATCHES:
        yield examples[:size]
    if max_length > 1:
        length = examples.shape[1]
        for size, steps in zip(PARITY_BATCHES, (max(length // 2, 1), min(length + 3, max_length), 1), strict=True):
            yield _with_length(examples[:size], steps)
        padded = examples[:3].clone()
        padded[0, length // 2 :] = 0
        padded[-1] = 0
        yield padded


def _with_length(x: torch.Tensor, length: int) -> torch.Tensor:
    """Rows truncated, or padded with 0 at the end, to `length` steps."""
    padded = x.new_zeros(len(x), length, *x.shape[2:])
    padded[:, : x.shape[1]] = x[:, :length]
    return padded
