"""The stored form of an ONNX file: a few bytes from which the very same file comes back.

    stored = encode(path.read_bytes())
    runtime = session(stored)                # models/inference/runtime.py opens it by decoding.py

Tensors of few values, most of them the same one, are coded bit by bit (`matrices.py`); what is left of the file, its
graph, is compressed with the words that such graphs are made of; other tensors are compressed by zstd. Worth it for
what `sparsity.py` and `codebook.py` have made; any other file comes out about as long as by zstd. Needs no torch.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.onnx_storage.arithmetic_coder import ArithmeticEncoder
from bloomery.models.onnx_storage.context_model import code_matrix, count_decisions, describe_matrix
from bloomery.models.onnx_storage.decoder import (
    DEFLATE_DICTIONARY,
    FEW_VALUED,
    MAGIC,
    MAX_DECISIONS,
    MAX_VALUES,
    OTHER,
    UNSIGNED,
    VERSION,
    zstd_codec,
)

_FEWEST_BYTES = 16  # of a tensor that is looked at


class _Hole(NamedTuple):
    """Where a tensor's bytes lie in the file, and its shape as rows and columns."""

    start: int
    stop: int
    num_rows: int
    item_bytes: int


def encode(model: bytes) -> bytes:
    """`model`, the bytes of an ONNX file, in fewer: the same bytes each time.

    Raises:
        RecipeInvalid: this is no ONNX file, or its tensors lie in other files.
    """
    head, others, encoder = bytearray(), bytearray(), ArithmeticEncoder()
    rest, position, num_holes, decisions_left = bytearray(), 0, 0, MAX_DECISIONS
    for hole in _holes(model):
        raw = model[hole.start : hole.stop]
        codes = _codes_of(raw, hole, decisions_left)
        head += encode_varints(hole.start - position, hole.stop - hole.start, OTHER if codes is None else FEW_VALUED)
        if codes is None:
            others += raw
        else:
            codes_RC, values = codes
            shape = describe_matrix(codes_RC, len(values) - 1)
            head += encode_varints(hole.item_bytes, *shape) + _written(values, hole.item_bytes)
            code_matrix(encoder, shape, codes_RC, decisions_left)
            decisions_left -= count_decisions(codes_RC, shape.num_values)
        rest += model[position : hole.start]
        position, num_holes = hole.stop, num_holes + 1
    rest += model[position:]
    table = encode_varints(num_holes) + bytes(head)
    begin = _deflated(encode_varints(len(table), len(others)) + table + bytes(rest))
    cells, squeezed = encoder.finish(), zstd_codec().compress(bytes(others), asbytes=True) if others else b""
    begin = encode_varints(len(model), len(begin), len(cells)) + begin
    return MAGIC + bytes([VERSION]) + zlib.crc32(model).to_bytes(4, "big") + begin + cells + squeezed


def _holes(model: bytes) -> Iterator[_Hole]:
    """The tensors whose bytes can be taken out, in the order in which they lie in the file."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load_from_string(model).graph
    except DecodeError as error:
        raise RecipeInvalid(
            "this is no ONNX file", required="an ONNX file", where="what is to be stored", remedy="export it first"
        ) from error
    position = 0
    for tensor in _tensors(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise RecipeInvalid(
                f"the tensor {tensor.name} lies in another file",
                required="all tensors within the ONNX file",
                where="what is to be stored",
                remedy="save the model with `save_as_external_data=False`",
            )
        raw = tensor.raw_data
        start = model.find(raw, position) if len(raw) >= _FEWEST_BYTES else -1
        if start < 0:
            continue
        position = start + len(raw)
        num_items = int(np.prod(tensor.dims))
        item_bytes = len(raw) // max(num_items, 1)
        if item_bytes in UNSIGNED and item_bytes * num_items == len(raw):
            yield _Hole(start, position, tensor.dims[0] if len(tensor.dims) > 1 else 1, item_bytes)
        else:  # such as two to a byte
            yield _Hole(start, position, 1, 1)


def _tensors(graph: Any) -> Iterator[Any]:
    """Nodes come before initializers in a file."""
    for attribute in itertools.chain.from_iterable(node.attribute for node in graph.node):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)
    yield from graph.initializer


def _codes_of(raw: bytes, hole: _Hole, most_decisions: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(codes (R, C), values (1 + K,)), 0 for the most frequent value; or None where zstd does as well, or sooner."""
    items = np.frombuffer(raw, UNSIGNED[hole.item_bytes])
    values, codes, counts = np.unique(items, return_inverse=True, return_counts=True)
    if not 1 < len(values) <= MAX_VALUES:
        return None
    most = int(counts.argmax())
    order = np.concatenate([[most], np.delete(np.arange(len(values)), most)])
    codes_RC = np.argsort(order).astype(np.uint8)[codes].reshape(hole.num_rows, -1)
    if count_decisions(codes_RC, len(values) - 1) > most_decisions:
        return None
    num_bits = -float(counts @ np.log2(counts / len(items))) + 8 * values.nbytes
    return (codes_RC, values[order]) if num_bits < 8 * 0.9 * len(zstd_codec().compress(raw, asbytes=True)) else None


def _written(values: np.ndarray, item_bytes: int) -> bytes:
    """How many low bytes of each value are zero in all of them, such as two of a bfloat16's, and the other bytes."""
    bytes_VI = values.view(np.uint8).reshape(len(values), item_bytes)  # the lowest first
    skipped = int((bytes_VI.any(axis=0)).argmax())
    return bytes([skipped]) + bytes_VI[:, skipped:].tobytes()


def encode_varints(*numbers: int) -> bytes:
    """As protocol buffers have them: seven bits to a byte, the lowest first; the highest bit says that more follow."""
    written = bytearray()
    for number in numbers:
        while number > 127:
            written.append(number & 127 | 128)
            number >>= 7
        written.append(number)
    return bytes(written)


def _deflated(given: bytes) -> bytes:
    squeezer = zlib.compressobj(9, wbits=-15, zdict=DEFLATE_DICTIONARY)
    return squeezer.compress(given) + squeezer.flush()
