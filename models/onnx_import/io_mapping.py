"""How our rows become what a foreign network reads, and what its outputs mean.

Shapes: B rows, K outputs, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.models.inference.runtime import softmax
from bloomery.models.onnx_import.graph import REALS, find_last_activation, required_inputs, unsupported

Channels = Literal["first", "last"]
# Figures of a regression; a logit or a probability for each class; or that of the second of two classes alone.
Meaning = Literal["figures", "logits", "probabilities", "logit", "probability"]
Sizes = tuple[int | None, ...]  # None is free

_WHOLES = (TensorProto.INT32, TensorProto.INT64)
_OFF_BY = 1e-3  # what rounding leaves of probabilities that add up to 1


class InputMapping(NamedTuple):
    """How one of our rows becomes what the file reads: transposed, then of another shape, then of another type."""

    is_transposed: bool  # (C, H, W) -> (H, W, C)
    shape: tuple[int, ...] | None
    dtype: int  # as onnx.TensorProto numbers types

    def of(self, x: np.ndarray) -> np.ndarray:
        """x float32 (B, ...) as the file reads it."""
        moved = np.moveaxis(x, 1, -1) if self.is_transposed else x
        shaped = moved if self.shape is None else moved.reshape(len(x), *self.shape)
        return np.ascontiguousarray(shaped.astype(helper.tensor_dtype_to_np_dtype(self.dtype)))


class OutputMapping(NamedTuple):
    """What the file's outputs mean, and whether the activation at the end is to be cut off to have logits."""

    meaning: Meaning
    is_cut: bool = False

    def of(self, outputs: np.ndarray) -> np.ndarray:
        """Probabilities float64 (B, K), or figures float64 (B, 1), that the file's outputs (B, ...) stand for."""
        values = outputs.reshape(len(outputs), -1).astype(np.float64)
        match self.meaning:
            case "figures":
                return values
            case "logits":
                return softmax(values)
            case "logit":
                return softmax(np.hstack([np.zeros_like(values), values]))
            case "probability":
                return np.hstack([1 - values, values])
        return values / values.sum(axis=1, keepdims=True)


def find_input_mapping(model: onnx.ModelProto, layout: Layout, channels: Channels | None) -> InputMapping:
    """Raises RecipeInvalid if the file's input cannot be made of rows of `layout`, or in two ways."""
    value = required_inputs(model.graph)[0]
    tensor = value.type.tensor_type
    sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    shown = f"the input {value.name} has shape ({', '.join('free' if one is None else str(one) for one in sizes)})"
    if sizes and sizes[0] is not None:
        raise unsupported(
            f"{shown}, so that a batch has always {sizes[0]} row(s)",
            "a first size that is free",
            "export with a free batch: keras.Input without `batch_size`, torch.onnx.export with `dynamic_shapes`",
        )
    is_whole = layout.kind == "tokens" or 0 < len(layout.categories) == layout.num_values
    if tensor.elem_type not in (*REALS, *(_WHOLES if is_whole else ())):
        raise unsupported(
            f"the input {value.name} is of {TensorProto.DataType.Name(tensor.elem_type).lower()}",
            f"float32, as encoded rows are{', or int32 or int64' if is_whole else ''}",
            "export a network that reads encoded rows; scale them in the recipe's `features`",
        )
    found = _way_of_shape(sizes[1:], layout, channels)
    if found is None:
        or_behind = f", or (B, {_listed((*layout.shape[1:], layout.shape[0]))})" if layout.kind == "image" else ""
        raise unsupported(
            shown,
            f"(B, {_listed(layout.shape)}), as encoded rows have{or_behind}",
            "export a network for these rows, or change the recipe's `features`",
        )
    return InputMapping(*found, tensor.elem_type)


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _way_of_shape(
    sizes: Sizes, layout: Layout, channels: Channels | None
) -> tuple[bool, tuple[int, ...] | None] | None:
    """Whether channels move behind, and the shape that a row is given if it needs another; None if nothing fits."""
    shape = layout.shape
    if layout.kind == "image" and shape[0] > 1:
        may_be = {
            "first": channels != "last" and _fits(sizes, shape),
            "last": channels != "first" and _fits(sizes, (*shape[1:], shape[0])),
        }
        if all(may_be.values()):
            raise unsupported(
                f"images of shape {list(shape)} may have their channels first or last in it",
                "one of both",
                "say in the recipe's `model` `channels: last`, as Keras has them, or `channels: first`, as PyTorch",
            )
        # In what order values of several channels would follow each other in another shape is not known.
        return (may_be["last"], None) if any(may_be.values()) else None
    if _fits(sizes, shape):
        return False, None
    if _fits(_without_ones(sizes), _without_ones(shape)):
        there = iter(_without_ones(shape))
        return False, tuple(1 if size == 1 else next(there) or 1 for size in sizes)
    return (False, (layout.num_values,)) if _fits(sizes, (layout.num_values,)) else None


def _without_ones(sizes: Sizes) -> Sizes:
    return tuple(size for size in sizes if size != 1)


def _fits(sizes: Sizes, shape: Sizes) -> bool:
    return len(sizes) == len(shape) and all(size in (None, side) for size, side in zip(sizes, shape, strict=True))


def find_output_mapping(model: onnx.ModelProto, given: np.ndarray, task: Task, num_outputs: int) -> OutputMapping:
    """What the outputs `given` (B, ...) mean, each of which was answered to a row alone.

    Raises:
        RecipeInvalid: they are not as many as there are classes or figures, or not finite.
    """
    _require_figures(given, task, num_outputs)
    if task == "regression":
        return OutputMapping("figures")
    end = find_last_activation(model.graph)
    activation = "" if end is None else end.op_type
    is_exact = given.dtype != np.float16  # else what rounding does to probabilities is part of the network
    is_share = bool(((given >= 0) & (given <= 1 + _OFF_BY)).all())
    if given.size == len(given):
        if activation == "Sigmoid" and is_exact:
            return OutputMapping("probability", is_cut=True)
        return OutputMapping("probability" if is_share else "logit")
    if is_share and bool((np.abs(given.sum(axis=1) - 1) < _OFF_BY).all()):
        return OutputMapping("probabilities", is_cut=activation == "Softmax" and is_exact)
    return OutputMapping("probabilities" if activation == "Sigmoid" else "logits")


def _require_figures(given: np.ndarray, task: Task, num_outputs: int) -> None:
    width = given.shape[1] if given.ndim == 2 else 1 if given.ndim == 1 else 0
    is_half = task == "classification" and num_outputs == 2
    if width not in (num_outputs, *((1,) if is_half else ())) or not np.issubdtype(given.dtype, np.floating):
        wanted = "one real number" if task == "regression" else f"{num_outputs} real numbers, one for each class"
        raise unsupported(
            f"to a row it answers {given.dtype} of shape {list(given.shape[1:])}",
            f"{wanted}, or one for the second class" if is_half else wanted,
            "end the network in a dense layer of that width, its outputs in the order of the classes",
        )
    is_finite = np.isfinite(given).reshape(len(given), -1).all(axis=1)
    if not is_finite.all():
        raise unsupported(
            f"its answer to {np.count_nonzero(~is_finite)} of {len(given)} rows is not finite",
            "a finite answer to every row; of texts, also to one that is empty",
            "look at masks that leave nothing to attend to, and at logarithms of 0",
        )


def describe_changes(way_in: InputMapping, way_out: OutputMapping, activation: str) -> list[str]:
    """What has to be changed for rows and outputs like ours."""
    words = []
    if way_in.is_transposed:
        words.append("channels moved behind")
    if way_in.shape is not None:
        words.append(f"rows as {list(way_in.shape)}")
    if way_in.dtype != TensorProto.FLOAT:
        words.append(f"rows as {TensorProto.DataType.Name(way_in.dtype).lower()}")
    if way_out.is_cut:
        words.append(f"{activation} cut off")
    elif way_out.meaning in ("probability", "probabilities"):
        words.append("logarithm of the probabilities")
    if way_out.meaning in ("logit", "probability"):
        words.append("a logit of 0 for the first class")
    return words
