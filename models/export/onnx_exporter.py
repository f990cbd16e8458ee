"""From a PyTorch network to an ONNX file, and the proof that both answer alike.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from onnxscript import optimizer
from torch import nn

from bloomery.data_contracts.errors import ParityBroken
from bloomery.models.inference.runtime import INPUT, OUTPUT, create_session, run_session

PARITY_BATCHES = (1, 3, 32)
TOLERANCE = 1e-4  # the largest difference of a logit that float32 arithmetic in another order explains
_OPSET = 18


def export_onnx(network: nn.Module, examples: torch.Tensor, path: Path, *, keep_names: bool = False) -> float:
    """Write `network` as ONNX with a free batch size, and compare it with PyTorch on `examples` (B, ...).

    A network that reads sequences or tokens of any length up to its attribute `max_length` keeps that freedom; it is
    then compared at several lengths, with rows that end in padding or are nothing else. The file's bytes depend on
    nothing but the network: what the exporter notes about source files is taken out.

    Args:
        keep_names: the weight of each linear layer is called as in `network`, by which ranges that were learnt know it;
            else that of one over the steps of a sequence has a short name of the exporter's, and the file is smaller.

    Returns:
        The largest absolute difference of a logit over batches of several sizes and lengths.

    Raises:
        ParityBroken: that difference is above `TOLERANCE`, or PyTorch cannot write the network down.
    """
    network.eval()
    longest = _longest(network, examples)
    given = _of_length(examples[:2], max(examples.shape[1], 2)) if longest > 1 else examples[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # The newer exporter freezes the length of what goes through recurrent layers, and unrolls Elman's.
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
        try:
            model = _traced(network, given, longest) if is_recurrent else _captured(network, given, longest)
        except (RuntimeError, ValueError, TypeError) as failure:
            raise _not_written(failure) from failure
    if keep_names:
        _name_weights(model.graph, network)
    onnx.save(strip_metadata(model), path)
    return measure_parity(network, examples, path)


def measure_parity(network: nn.Module, examples: torch.Tensor, path: Path) -> float:
    """The largest absolute difference of a logit between the file at `path` and `network`, as `export` takes it.

    Raises:
        ParityBroken: it is above `TOLERANCE`, or ONNX Runtime has no answer.
    """
    error = _largest_difference(network, examples, _longest(network, examples), create_session(path))
    if not error <= TOLERANCE:
        raise _differs("ONNX Runtime", error, path)
    return error


def _not_written(failure: Exception) -> ParityBroken:
    """The exporter wraps what is wrong in advice of its own, so the innermost cause is told."""
    cause: BaseException = failure
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said = str(cause).strip().splitlines() or [type(cause).__name__]
    return ParityBroken(
        f"PyTorch cannot write this network as ONNX: {said[0][:300]}",
        required="a `forward` that does the same operations whatever the values are, for any number of rows",
        where="the network",
        remedy="if it is your own, branch and loop in `forward` over shapes alone, and take no value out of a tensor",
    )


def _longest(network: nn.Module, examples: torch.Tensor) -> int:
    """The most steps that a row may have, or 0 where all rows have the same shape."""
    is_image = examples.dim() == 4  # spectrograms, which are all of one length
    return 0 if is_image else int(getattr(network, "max_length", 0))


def _captured(network: nn.Module, given: torch.Tensor, longest: int) -> onnx.ModelProto:
    free = {0: torch.export.Dim("batch")}
    if longest > 1:
        free[1] = torch.export.Dim("length", min=1, max=longest)
    program = torch.onnx.export(
        network,
        (given,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(free,),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


def _traced(network: nn.Module, given: torch.Tensor, longest: int) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        network,
        (given,),
        file,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=_OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "batch", 1: "length"} if longest > 1 else {0: "batch"}, OUTPUT: {0: "batch"}},
    )
    # What the newer exporter does on its own: constants folded in, and what nobody reads left out.
    return optimizer.optimize(onnx.load_from_string(file.getvalue()))


def _name_weights(graph: onnx.GraphProto, network: nn.Module) -> None:
    """A weight that the exporter has turned for a product of more than two dimensions is told by its values."""
    named = {tensor.name for tensor in graph.initializer}
    unknown = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in network.state_dict()}
    new: dict[str, str] = {}
    for layer, module in network.named_modules():
        if isinstance(module, nn.Linear) and f"{layer}.weight" not in named:
            turned = module.weight.detach().T.numpy()
            same = (name for name, tensor in unknown.items() if _is_same(tensor, turned))
            if (name := next(same, None)) is not None:
                unknown.pop(name)
                new[name] = f"{layer}.weight"
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]


def _is_same(tensor: onnx.TensorProto, values: np.ndarray) -> bool:
    return tuple(tensor.dims) == values.shape and np.array_equal(onnx.numpy_helper.to_array(tensor), values)


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without doc strings, metadata and inferred shapes, which carry paths and can be a third of a small file."""
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
    """Write what a version is and came from into the ONNX file at `path`, in place of what it said of itself before.

    Any ONNX Runtime tells it again: `session.get_modelmeta().custom_metadata_map`. The order of `metadata` leaves no
    trace.
    """
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.save(model, path)


def export_program(network: nn.Module, examples: torch.Tensor, path: Path) -> float:
    """Write `network` as a program of `torch.export` with a free batch size, which PyTorch opens without our code.

    `torch.export.load(path).module()` answers rows of the shape of `examples` (B, ...). The file's bytes depend on
    nothing but the network: it holds no example, and nothing of the machine.

    Returns:
        The largest absolute difference of an output between the file, opened again, and `network` on batches of several
        sizes.

    Raises:
        ParityBroken: that difference is above `TOLERANCE`, or PyTorch cannot write the network down.
    """
    network.eval()
    nothing = examples.new_zeros(2, *examples.shape[1:])  # a part of the examples would be saved with all of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(network, (nothing,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except (RuntimeError, ValueError, TypeError) as failure:
            raise _not_written(failure) from failure
        for node in program.graph.nodes:
            for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):  # these name source files
                node.meta.pop(name, None)
        file = io.BytesIO()  # a path's name would be in the bytes
        torch.export.save(program, file)
        path.write_bytes(file.getvalue())
        opened = torch.export.load(path).module()
    with torch.no_grad():
        error = max(float((opened(x) - network(x)).abs().max()) for x in (examples[:size] for size in PARITY_BATCHES))
    if not error <= TOLERANCE:
        raise _differs("a program of torch.export", error, path)
    return error


def _differs(what: str, error: float, path: Path) -> ParityBroken:
    return ParityBroken(
        f"{what} and PyTorch differ by up to {error:.2g} in a logit",
        required=f"at most {TOLERANCE:g} on batches of {', '.join(map(str, PARITY_BATCHES))} rows",
        where=str(path),
        remedy="report the network's config: an operator of it is exported wrongly",
    )


@torch.no_grad()
def _largest_difference(
    network: nn.Module, examples: torch.Tensor, longest: int, runtime: onnxruntime.InferenceSession
) -> float:
    return float(np.max([_difference(network, x, runtime) for x in _batches(examples, longest)]))


def _difference(network: nn.Module, x: torch.Tensor, runtime: onnxruntime.InferenceSession) -> float:
    try:
        answered = run_session(runtime, x.numpy())
    except (Fail, InvalidArgument, RuntimeException) as error:
        raise ParityBroken(
            f"ONNX Runtime has no answer: {str(error).splitlines()[0][:300]}",
            required=f"an answer to rows of shape {list(x.shape)}, which PyTorch gives",
            where="the exported network",
            remedy="if it is your own, take sizes from the tensors in `forward` and none as a number from Python",
        ) from error
    expected = network(x).numpy()
    return float(np.abs(expected - answered).max()) if expected.shape == answered.shape else float("inf")


def _batches(examples: torch.Tensor, longest: int) -> Iterator[torch.Tensor]:
    for size in PARITY_BATCHES:
        yield examples[:size]
    if longest > 1:
        length = examples.shape[1]
        for size, steps in zip(PARITY_BATCHES, (max(length // 2, 1), min(length + 3, longest), 1), strict=True):
            yield _of_length(examples[:size], steps)
        padded = examples[:3].clone()
        padded[0, length // 2 :] = 0
        padded[-1] = 0
        yield padded


def _of_length(x: torch.Tensor, length: int) -> torch.Tensor:
    """Rows cut, or filled with 0 behind, to `length` steps."""
    filled = x.new_zeros(len(x), length, *x.shape[2:])
    filled[:, : x.shape[1]] = x[:, :length]
    return filled
