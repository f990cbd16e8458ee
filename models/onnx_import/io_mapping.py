"""Maps encoded rows to the input of a foreign network, and its outputs to probabilities or values.

Shapes: B rows, K outputs, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from bloomery.data_contracts.records.tensor_layout import Layout, Task, predicts_one_class
from bloomery.models.inference.runtime import softmax
from bloomery.models.onnx_import.graph import REALS, find_last_activation, required_inputs, unsupported

Channels = Literal["first", "last"]
# Values of a regression; a logit or probability for each class; or that of the second of two classes only.
OutputMeaning = Literal["values", "logits", "probabilities", "logit", "probability"]
Sizes = tuple[int | None, ...]  # None is dynamic

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_SUM_TOLERANCE = 1e-3  # rounding error of probabilities that add up to 1


class InputMapping(NamedTuple):
    """How an encoded row becomes the file's input: transposed, then reshaped, then cast."""

    is_transposed: bool  # (C, H, W) -> (H, W, C)
    shape: tuple[int, ...] | None
    dtype: int  # of onnx.TensorProto

    def apply(self, x: np.ndarray) -> np.ndarray:
        """x float32 (B, ...) as the file's input."""
        transposed = np.moveaxis(x, 1, -1) if self.is_transposed else x
        shaped = transposed if self.shape is None else transposed.reshape(len(x), *self.shape)
        return np.ascontiguousarray(shaped.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))


class OutputMapping(NamedTuple):
    """What the file's outputs mean, and whether its last activation is removed so that it has logits."""

    meaning: OutputMeaning
    removes_activation: bool = False

    def apply(self, outputs: np.ndarray) -> np.ndarray:
        """Probabilities float64 (B, K), or values float64 (B, 1), of the file's outputs (B, ...)."""
        values = outputs.reshape(len(outputs), -1).astype(np.float64)
        match self.meaning:
            case "values":
                return values
            case "logits":
                return softmax(values)
            case "logit":
                return softmax(np.hstack([np.zeros_like(values), values]))
            case "probability":
                return np.hstack([1 - values, values])
        return values / values.sum(axis=1, keepdims=True)


def find_input_mapping(model: onnx.ModelProto, layout: Layout, channels: Channels | None) -> InputMapping:
    """The mapping from rows of `layout` to the file's input.

    Raises:
        RecipeInvalid: there is no such mapping, or more than one.
    """
    value = required_inputs(model.graph)[0]
    tensor = value.type.tensor_type
    sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    shape = ", ".join("dynamic" if size is None else str(size) for size in sizes)
    problem = f"the input {value.name} has shape ({shape})"
    if sizes and sizes[0] is not None:
        raise unsupported(
            f"{problem}, a fixed batch of {sizes[0]} row(s)",
            "a dynamic first dimension",
            "export with a dynamic batch: keras.Input without `batch_size`, torch.onnx.export with `dynamic_shapes`",
        )
    takes_integers = layout.kind == "tokens" or 0 < len(layout.categories) == layout.num_values
    if tensor.elem_type not in (*REALS, *(_INTEGERS if takes_integers else ())):
        raise unsupported(
            f"the input {value.name} has type {TensorProto.DataType.Name(tensor.elem_type).lower()}",
            f"float32, the type of encoded rows{', or int32 or int64' if takes_integers else ''}",
            "export a network that reads encoded rows; scale them in the recipe's `features`",
        )
    transposition_and_shape = _match_shape(sizes[1:], layout, channels)
    if transposition_and_shape is None:
        channels_last = (
            f", or (B, {_format_shape((*layout.shape[1:], layout.shape[0]))})" if layout.kind == "image" else ""
        )
        raise unsupported(
            problem,
            f"(B, {_format_shape(layout.shape)}), the shape of encoded rows{channels_last}",
            "export a network for these rows, or change the recipe's `features`",
        )
    return InputMapping(*transposition_and_shape, tensor.elem_type)


def _format_shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _match_shape(sizes: Sizes, layout: Layout, channels: Channels | None) -> tuple[bool, tuple[int, ...] | None] | None:
    """(whether channels move to the end, the new shape of a row or None if it stays); None if nothing matches."""
    shape = layout.shape
    if layout.kind == "image" and shape[0] > 1:
        possible = {
            "first": channels != "last" and _matches(sizes, shape),
            "last": channels != "first" and _matches(sizes, (*shape[1:], shape[0])),
        }
        if all(possible.values()):
            raise unsupported(
                f"the channels of images of shape {list(shape)} can be first or last in the input",
                "one of the two",
                "set in the recipe's `model` `channels: last`, as in Keras, or `channels: first`, as in PyTorch",
            )
        # The order of several channels in any other shape is unknown.
        return (possible["last"], None) if any(possible.values()) else None
    if _matches(sizes, shape):
        return False, None
    if _matches(_without_ones(sizes), _without_ones(shape)):
        remaining = iter(_without_ones(shape))
        return False, tuple(1 if size == 1 else next(remaining) or 1 for size in sizes)
    return (False, (layout.num_values,)) if _matches(sizes, (layout.num_values,)) else None


def _without_ones(sizes: Sizes) -> Sizes:
    return tuple(size for size in sizes if size != 1)


def _matches(sizes: Sizes, shape: Sizes) -> bool:
    return len(sizes) == len(shape) and all(size in (None, side) for size, side in zip(sizes, shape, strict=True))


def find_output_mapping(model: onnx.ModelProto, outputs: np.ndarray, task: Task, num_outputs: int) -> OutputMapping:
    """The meaning of `outputs` (B, ...), each of which was computed for a row alone.

    Raises:
        RecipeInvalid: their number is not that of the classes or values, or they are not finite.
    """
    _require_valid_outputs(outputs, task, num_outputs)
    if task == "regression":
        return OutputMapping("values")
    last = find_last_activation(model.graph)
    activation = "" if last is None else last.op_type
    is_exact = outputs.dtype != np.float16  # otherwise the rounding of probabilities is part of the network
    is_probability = bool(((outputs >= 0) & (outputs <= 1 + _SUM_TOLERANCE)).all())
    if outputs.size == len(outputs):
        if activation == "Sigmoid" and is_exact:
            return OutputMapping("probability", removes_activation=True)
        return OutputMapping("probability" if is_probability else "logit")
    if is_probability and bool((np.abs(outputs.sum(axis=1) - 1) < _SUM_TOLERANCE).all()):
        return OutputMapping("probabilities", removes_activation=activation == "Softmax" and is_exact)
    return OutputMapping("probabilities" if activation == "Sigmoid" else "logits")


def _require_valid_outputs(outputs: np.ndarray, task: Task, num_outputs: int) -> None:
    width = outputs.shape[1] if outputs.ndim == 2 else 1 if outputs.ndim == 1 else 0
    is_binary = predicts_one_class(task) and num_outputs == 2
    if width not in (num_outputs, *((1,) if is_binary else ())) or not np.issubdtype(outputs.dtype, np.floating):
        required = "one real number" if task == "regression" else f"{num_outputs} real numbers, one for each class"
        raise unsupported(
            f"the network's output for a row is {outputs.dtype} of shape {list(outputs.shape[1:])}",
            f"{required}, or one for the second class" if is_binary else required,
            "end the network in a dense layer of that width, its outputs in the order of the classes",
        )
    is_finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
    if not is_finite.all():
        raise unsupported(
            f"the network's output for {np.count_nonzero(~is_finite)} of {len(outputs)} rows is not finite",
            "a finite output for every row; for texts, also for an empty one",
            "check masks that leave nothing to attend to, and logarithms of 0",
        )


def describe_changes(input_mapping: InputMapping, output_mapping: OutputMapping, activation: str) -> list[str]:
    """Describes the changes of the network that the mappings need."""
    changes = []
    if input_mapping.is_transposed:
        changes.append("channels moved to the end")
    if input_mapping.shape is not None:
        changes.append(f"rows reshaped to {list(input_mapping.shape)}")
    if input_mapping.dtype != TensorProto.FLOAT:
        changes.append(f"rows cast to {TensorProto.DataType.Name(input_mapping.dtype).lower()}")
    if output_mapping.removes_activation:
        changes.append(f"{activation} removed")
    elif output_mapping.meaning in ("probability", "probabilities"):
        changes.append("logarithm of the probabilities")
    if output_mapping.meaning in ("logit", "probability"):
        changes.append("a logit of 0 for the first class")
    return changes
