"""Entropy-coded storage of ONNX files: few bytes, from which exactly the same file is decoded.

    stored = encode(path.read_bytes())
    runtime = create_session(stored)                # inference/runtime.py decodes it with decoder.py

Tensors of few values, most of them the same one, are entropy-coded (context_model.py); the rest of the file, its graph,
is deflated with a dictionary of strings frequent in graphs; other tensors are compressed by zstd. Files with sparse and
clustered weights become smaller than with zstd, and others about as large. Needs no torch.
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

_MIN_BYTES = 16  # of a tensor that is coded apart from the graph


class _TensorSpan(NamedTuple):
    """The position of a tensor's bytes in the file, and its shape as a matrix."""

    start: int
    stop: int
    num_rows: int
    item_bytes: int


def encode(model: bytes) -> bytes:
    """`model`, the bytes of an ONNX file, in fewer bytes, deterministically.

    Raises:
        RecipeInvalid: `model` is not an ONNX file, or has external tensors.
    """
    table, plain_tensors, encoder = bytearray(), bytearray(), ArithmeticEncoder()
    graph, position, num_tensors, decisions_left = bytearray(), 0, 0, MAX_DECISIONS
    for span in _tensor_spans(model):
        raw = model[span.start : span.stop]
        matrix = _to_matrix(raw, span, decisions_left)
        table += encode_varints(span.start - position, span.stop - span.start, OTHER if matrix is None else FEW_VALUED)
        if matrix is None:
            plain_tensors += raw
        else:
            codes_RC, values = matrix
            header = describe_matrix(codes_RC, len(values) - 1)
            table += encode_varints(span.item_bytes, *header) + _encode_values(values, span.item_bytes)
            code_matrix(encoder, header, codes_RC, decisions_left)
            decisions_left -= count_decisions(codes_RC, header.num_values)
        graph += model[position : span.start]
        position, num_tensors = span.stop, num_tensors + 1
    graph += model[position:]
    full_table = encode_varints(num_tensors) + bytes(table)
    header_bytes = _deflate(encode_varints(len(full_table), len(plain_tensors)) + full_table + bytes(graph))
    cells = encoder.finish()
    compressed_tensors = zstd_codec().compress(bytes(plain_tensors), asbytes=True) if plain_tensors else b""
    lengths = encode_varints(len(model), len(header_bytes), len(cells))
    checksum = zlib.crc32(model).to_bytes(4, "big")
    return MAGIC + bytes([VERSION]) + checksum + lengths + header_bytes + cells + compressed_tensors


def _tensor_spans(model: bytes) -> Iterator[_TensorSpan]:
    """The tensors that are coded apart from the graph, in file order."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load_from_string(model).graph
    except DecodeError as error:
        raise RecipeInvalid(
            "the model to store is not an ONNX file",
            required="an ONNX file",
            where="the model to store",
            remedy="export it first",
        ) from error
    position = 0
    for tensor in _tensors(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise RecipeInvalid(
                f"the tensor {tensor.name} is stored in another file",
                required="all tensors within the ONNX file",
                where="the model to store",
                remedy="save the model with `save_as_external_data=False`",
            )
        raw = tensor.raw_data
        start = model.find(raw, position) if len(raw) >= _MIN_BYTES else -1
        if start < 0:
            continue
        position = start + len(raw)
        num_items = int(np.prod(tensor.dims))
        item_bytes = len(raw) // max(num_items, 1)
        if item_bytes in UNSIGNED and item_bytes * num_items == len(raw):
            yield _TensorSpan(start, position, tensor.dims[0] if len(tensor.dims) > 1 else 1, item_bytes)
        else:  # such as two 4-bit integers in a byte
            yield _TensorSpan(start, position, 1, 1)


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors in file order: nodes come before initializers."""
    for attribute in itertools.chain.from_iterable(node.attribute for node in graph.node):
        yield from (attribute.t, *attribute.tensors)
        for subgraph in (attribute.g, *attribute.graphs):
            yield from _tensors(subgraph)
    yield from graph.initializer


def _to_matrix(raw: bytes, span: _TensorSpan, max_decisions: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(codes (R, C), values (1 + K,)) with code 0 for the most frequent value; None where zstd is as good."""
    items = np.frombuffer(raw, UNSIGNED[span.item_bytes])
    values, codes, counts = np.unique(items, return_inverse=True, return_counts=True)
    if not 1 < len(values) <= MAX_VALUES:
        return None
    most_frequent = int(counts.argmax())
    order = np.concatenate([[most_frequent], np.delete(np.arange(len(values)), most_frequent)])
    codes_RC = np.argsort(order).astype(np.uint8)[codes].reshape(span.num_rows, -1)
    if count_decisions(codes_RC, len(values) - 1) > max_decisions:
        return None
    num_bits = -float(counts @ np.log2(counts / len(items))) + 8 * values.nbytes
    max_bits = 8 * 0.9 * len(zstd_codec().compress(raw, asbytes=True))
    return (codes_RC, values[order]) if num_bits < max_bits else None


def _encode_values(values: np.ndarray, item_bytes: int) -> bytes:
    """The number of low bytes that are zero in all values, such as two of a bfloat16, and the other bytes of each."""
    bytes_VI = values.view(np.uint8).reshape(len(values), item_bytes)  # little-endian
    num_zero_bytes = int((bytes_VI.any(axis=0)).argmax())
    return bytes([num_zero_bytes]) + bytes_VI[:, num_zero_bytes:].tobytes()


def encode_varints(*numbers: int) -> bytes:
    """Protocol-buffer varints: seven bits in a byte, the lowest first; the highest bit marks that more bytes follow."""
    encoded = bytearray()
    for number in numbers:
        while number > 127:
            encoded.append(number & 127 | 128)
            number >>= 7
        encoded.append(number)
    return bytes(encoded)


def _deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15, zdict=DEFLATE_DICTIONARY)
    return compressor.compress(content) + compressor.flush()
