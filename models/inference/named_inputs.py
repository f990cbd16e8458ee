"""The inputs of an ONNX file for mixed rows: one for each part, and one that says whether an optional part is there.

They have the order of the row's values. The name of a dynamic length ends with the number of steps of an encoded row:
its padding at the end can be left out. Part of the bento, so it needs no torch.

Shapes: B rows, T steps, F values of a row or step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnxruntime

INPUT = "x"  # of a file with one input
_AT_MOST = "_at_most_"
_Dimensions = Sequence[int | str | None]


class NamedInput(NamedTuple):
    """An input of an ONNX file: `shape` is that of one encoded row; one with `can_trim` takes fewer steps."""

    name: str
    shape: tuple[int, ...]
    can_trim: bool

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


_INPUTS: WeakKeyDictionary[onnxruntime.InferenceSession, tuple[NamedInput, ...]] = WeakKeyDictionary()


def name_length(number: int, num_steps: int) -> str:
    """The name of the dynamic length of input `number`, whose encoded rows have `num_steps` steps."""
    return f"length_{number}{_AT_MOST}{num_steps}"


def session_inputs(runtime: onnxruntime.InferenceSession) -> tuple[NamedInput, ...]:
    """The inputs of a session for mixed rows; none of a file with one input."""
    inputs = _INPUTS.get(runtime)
    if inputs is None:
        inputs = _INPUTS[runtime] = _read_inputs((value.name, value.shape) for value in runtime.get_inputs())
    return inputs


def model_inputs(model: onnx.ModelProto) -> tuple[NamedInput, ...]:
    """The inputs of an ONNX file for mixed rows; none of a file with one input."""
    dimensions = (
        (value.name, [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim])
        for value in model.graph.input
    )
    return _read_inputs(dimensions)


def _read_inputs(values: Iterable[tuple[str, _Dimensions]]) -> tuple[NamedInput, ...]:
    values = list(values)
    return () if len(values) == 1 else tuple(_read_input(name, dimensions) for name, dimensions in values)


def _read_input(name: str, dimensions: _Dimensions) -> NamedInput:
    sizes, can_trim = [], False
    for size in dimensions[1:]:
        is_length = isinstance(size, str) and _AT_MOST in size
        can_trim |= is_length
        sizes.append(int(str(size).rpartition(_AT_MOST)[2]) if is_length else int(size or 0))
    return NamedInput(name, tuple(sizes), can_trim)


def split_inputs(inputs: Iterable[NamedInput], x_BF: np.ndarray, *, trim: bool) -> dict[str, np.ndarray]:
    """The values of each input, by name. `trim` leaves out steps that are padding in all rows."""
    feed, start = {}, 0
    for name, shape, can_trim in inputs:
        stop = start + math.prod(shape)
        values = np.ascontiguousarray(x_BF[:, start:stop]).reshape(len(x_BF), *shape)
        feed[name] = _trim_common_padding(values) if trim and can_trim else values
        start = stop
    return feed


def _trim_common_padding(values: np.ndarray) -> np.ndarray:
    """Without trailing steps that are padding in every row, of tokens (B, T) or padded steps (B, T, F)."""
    is_real_T = (values >= 1 if values.ndim == 2 else values[..., -1] > 0.5).any(axis=0)
    num_steps = max(int(np.flatnonzero(is_real_T)[-1]) + 1 if is_real_T.any() else 1, 1)
    return np.ascontiguousarray(values[:, :num_steps])
