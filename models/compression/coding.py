"""The stored form of an ONNX file: a few bytes from which the very same file comes back.

    stored = encode(path.read_bytes())
    runtime = session(decode(stored))            # models/runtime.py takes a file's bytes

Tensors of few values, most of them the same one, are coded bit by bit (`matrices.py`); what is left of the file, its
graph, is compressed with the words that such graphs are made of; other tensors are compressed by zstd. Worth it for
what `sparsity.py` and `codebook.py` have made; any other file comes out about as long as by zstd.

Travels into the bento, so that a start can decode: it needs no torch, and to decode no onnx.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_contracts.errors import OutputCorrupt, RecipeInvalid
from models.compression.arithmetic import Decoder, Encoder
from models.compression.matrices import Shape, num_decisions, shape_of, walk

_MAGIC = b"BLY"
_VERSION = 1
_LONGEST = 1 << 31  # what ONNX, by its protocol buffers, can be at most
_MOST_DECISIONS = 1 << 20  # for all tensors together: some seconds of a bento's start
_MOST_VALUES = 256
_FEWEST_BYTES = 16  # of a tensor that is looked at
_FEW_VALUED, _OTHER = 0, 1
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# What graphs say again and again, the most frequent last, as deflate likes it.
_WORDS = (
    b"pytorchonnxai.onnx.mltransAtransBalphabetaauto_padNOTSETceil_modestorage_ordercount_include_padgroupdilations"
    b"kernel_shapepadsstridesaxisaxeskeepdimsallowzeroepsilonmomentumperm"
    b"to"
    b"GlobalAveragePoolBatchNormalizationAveragePoolLayerNormalizationReduceMeanDequantizeLinearQuantizeLinear"
    b"DynamicQuantizeLinearMatMulIntegerConvIntegerTransposeSoftmaxUnsqueezeSqueezeConcatConstantGatherLSTMGRURNN"
    b"ScatterElementsConstantOfShapeCumSumCastSplitSliceShapeDivSubMulSqrtErfGelu"
    b"FlattenAddMatMulGemmReshapeMaxPoolReluConv"
    b".weight.biasfirstsecondhiddenheadval_conv2dlinearrelumax_pool2dviewgraphmain_graphbatchxlogits"
    b'"\x04Relu:\x00"\x04Conv*\x15\n\x0ckernel_shape@\x05@\x05\xa0\x01\x07*\x10\n\x07strides@\x01@\x01\xa0\x01\x07'
    b"*\x11\n\x04pads@\x00@\x00@\x00@\x00\xa0\x01\x07*\x12\n\tdilations@\x01@\x01\xa0\x01\x07*\x0c\n\x05group\x18\x01\xa0\x01\x02"
    b'"\x04Gemm*\x0f\n\x06transB\x18\x01\xa0\x01\x02Z\x1d\n\x01x\x12\x18\n\x16\x08\x01\x12\x12\n\x07\x12\x05batch\n\x03\x08\x01'
    b"b\x1e\n\x06logits\x12\x14\n\x12\x08\x01\x12\x0e\n\x07\x12\x05batch\n\x03\x08\n"
)


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
    head, others, encoder = bytearray(), bytearray(), Encoder()
    rest, position, num_holes, decisions_left = bytearray(), 0, 0, _MOST_DECISIONS
    for hole in _holes(model):
        raw = model[hole.start : hole.stop]
        codes = _codes_of(raw, hole, decisions_left)
        head += _varints(hole.start - position, hole.stop - hole.start, _OTHER if codes is None else _FEW_VALUED)
        if codes is None:
            others += raw
        else:
            codes_RC, values = codes
            shape = shape_of(codes_RC, len(values) - 1)
            head += _varints(hole.item_bytes, *shape) + _written(values, hole.item_bytes)
            walk(encoder, shape, codes_RC, decisions_left)
            decisions_left -= num_decisions(codes_RC, shape.num_values)
        rest += model[position : hole.start]
        position, num_holes = hole.stop, num_holes + 1
    rest += model[position:]
    table = _varints(num_holes) + bytes(head)
    begin = _deflated(_varints(len(table), len(others)) + table + bytes(rest))
    cells, squeezed = encoder.finish(), _zstd().compress(bytes(others), asbytes=True) if others else b""
    begin = _varints(len(model), len(begin), len(cells)) + begin
    return _MAGIC + bytes([_VERSION]) + zlib.crc32(model).to_bytes(4, "big") + begin + cells + squeezed


def decode(stored: bytes) -> bytes:
    """The bytes that were given to `encode`.

    Raises:
        OutputCorrupt: `stored` is not what `encode` wrote, whole and in this version.
    """
    if stored[:3] != _MAGIC:
        raise _corrupt("does not begin as a stored model does")
    if stored[3:4] != bytes([_VERSION]):
        raise _corrupt(f"is of version {int.from_bytes(stored[3:4], 'big')}, and this program reads {_VERSION}")
    try:
        model = _decoded(_Reader(stored, 8))
    except (ValueError, IndexError, OverflowError, zlib.error, OSError, MemoryError) as error:
        raise _corrupt(f"cannot be decoded: {error}") from error
    if zlib.crc32(model) != int.from_bytes(stored[4:8], "big"):
        raise _corrupt("decodes into another model than was stored: the checksums differ")
    return model


def _decoded(stored: _Reader) -> bytes:
    length, num_begin, num_cells = stored.varint(_LONGEST), stored.varint(), stored.varint()
    begin = _Reader(_inflated(stored.take(num_begin), length))
    num_head, num_others = begin.varint(), begin.varint(length)
    head = _Reader(begin.take(num_head))
    decoder = Decoder(stored.take(num_cells))
    others = _Reader(_zstd().decompress(stored.rest(), num_others, asbytes=True) if num_others else b"")
    model, decisions_left = bytearray(), _MOST_DECISIONS
    for _ in range(head.varint()):
        model += begin.take(head.varint())
        size = head.varint(length - len(model))
        if head.varint() == _OTHER:
            model += others.take(size)
            continue
        item_bytes = head.varint()
        shape = Shape(*(head.varint() for _ in Shape._fields))
        # What does not fill the hole is refused before anything of that size is made.
        if shape.num_rows * shape.num_columns * item_bytes != size or not 0 < shape.num_values < _MOST_VALUES:
            raise ValueError(f"{shape} is no matrix of {size} bytes")
        values = _read_values(head, shape.num_values + 1, item_bytes)
        codes_RC = walk(decoder, shape, None, decisions_left)
        decisions_left -= num_decisions(codes_RC, shape.num_values)
        model += values[codes_RC].tobytes()
    return bytes(model + begin.rest())


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
        if item_bytes in _UNSIGNED and item_bytes * num_items == len(raw):
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
    items = np.frombuffer(raw, _UNSIGNED[hole.item_bytes])
    values, codes, counts = np.unique(items, return_inverse=True, return_counts=True)
    if not 1 < len(values) <= _MOST_VALUES:
        return None
    most = int(counts.argmax())
    order = np.concatenate([[most], np.delete(np.arange(len(values)), most)])
    codes_RC = np.argsort(order).astype(np.uint8)[codes].reshape(hole.num_rows, -1)
    if num_decisions(codes_RC, len(values) - 1) > most_decisions:
        return None
    num_bits = -float(counts @ np.log2(counts / len(items))) + 8 * values.nbytes
    return (codes_RC, values[order]) if num_bits < 8 * 0.9 * len(_zstd().compress(raw, asbytes=True)) else None


def _written(values: np.ndarray, item_bytes: int) -> bytes:
    """How many low bytes of each value are zero in all of them, such as two of a bfloat16's, and the other bytes."""
    bytes_VI = values.view(np.uint8).reshape(len(values), item_bytes)  # the lowest first
    skipped = int((bytes_VI.any(axis=0)).argmax())
    return bytes([skipped]) + bytes_VI[:, skipped:].tobytes()


def _read_values(head: _Reader, number: int, item_bytes: int) -> np.ndarray:
    skipped = head.varint(item_bytes - 1)
    bytes_VI = np.zeros((number, item_bytes), np.uint8)
    bytes_VI[:, skipped:] = np.frombuffer(head.take(number * (item_bytes - skipped)), np.uint8).reshape(number, -1)
    return bytes_VI.view(_UNSIGNED[item_bytes])[:, 0]


class _Reader:
    """Bytes that are taken from the front."""

    def __init__(self, given: bytes, position: int = 0) -> None:
        self.given, self.position = given, position

    def take(self, number: int) -> bytes:
        if number > len(self.given) - self.position:
            raise ValueError("the end is missing")
        self.position += number
        return self.given[self.position - number : self.position]

    def rest(self) -> bytes:
        return self.take(len(self.given) - self.position)

    def varint(self, most: int = _LONGEST) -> int:
        number = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                break
        if number > most:
            raise ValueError(f"a count of {number}")
        return number


def _varints(*numbers: int) -> bytes:
    """Seven bits to a byte, the lowest first; the highest bit says that more follow."""
    written = bytearray()
    for number in numbers:
        while number > 127:
            written.append(number & 127 | 128)
            number >>= 7
        written.append(number)
    return bytes(written)


def _deflated(given: bytes) -> bytes:
    squeezer = zlib.compressobj(9, wbits=-15, zdict=_WORDS)
    return squeezer.compress(given) + squeezer.flush()


def _inflated(given: bytes, length: int) -> bytes:
    opener = zlib.decompressobj(wbits=-15, zdict=_WORDS)
    # The head says less of the cells than they are, so what is unpacked is hardly longer than the model.
    found = opener.decompress(given, length + 4096)
    if not opener.eof:
        raise ValueError("the beginning has no end")
    return found


def _zstd() -> pa.Codec:
    return pa.Codec("zstd", compression_level=22)


def _corrupt(what: str) -> OutputCorrupt:
    return OutputCorrupt(
        f"the stored model {what}",
        required=f"the bytes that `encode` wrote, in version {_VERSION}",
        where="the stored form of the model",
        remedy="take another copy of it, or store the ONNX file again with this program",
    )
