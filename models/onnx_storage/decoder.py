"""The stored form of an ONNX file, opened: what `coding.py` wrote, and what zstd did.

    runtime = session(path)     # models/inference/runtime.py opens either form

Travels into the bento, so that a start can decode: it needs neither torch nor onnx.
"""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.models.onnx_storage.arithmetic_coder import ArithmeticDecoder
from bloomery.models.onnx_storage.context_model import MatrixHeader, code_matrix, count_decisions

MAGIC = b"BLY"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
VERSION = 1
_LONGEST = 1 << 31  # what ONNX, by its protocol buffers, can be at most
MAX_DECISIONS = 1 << 20  # for all tensors together: some seconds of a bento's start
MAX_VALUES = 256
FEW_VALUED, OTHER = 0, 1
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# What graphs say again and again, the most frequent last, as deflate likes it.
DEFLATE_DICTIONARY = (
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


def decode(stored: bytes) -> bytes:
    """The bytes that were given to `encode`.

    Raises:
        OutputCorrupt: `stored` is not what `encode` wrote, whole and in this version.
    """
    if stored[:3] != MAGIC:
        raise _corrupt("does not begin as a stored model does")
    if stored[3:4] != bytes([VERSION]):
        raise _corrupt(f"is of version {int.from_bytes(stored[3:4], 'big')}, and this program reads {VERSION}")
    try:
        model = _decoded(_Reader(stored, 8))
    except (ValueError, IndexError, OverflowError, zlib.error, OSError, MemoryError) as error:
        raise _corrupt(f"cannot be decoded: {error}") from error
    if zlib.crc32(model) != int.from_bytes(stored[4:8], "big"):
        raise _corrupt("decodes into another model than was stored: the checksums differ")
    return model


def is_compressed(beginning: bytes) -> bool:
    """Whether a file that begins with these four bytes or more needs `opened`, and is no ONNX file as such."""
    return beginning.startswith((MAGIC, _ZSTD_MAGIC))


def decompress(stored: bytes) -> bytes:
    """The bytes of an ONNX file, whether they come as such, compressed by zstd, or as `encode` wrote them.

    Raises:
        OutputCorrupt: they are broken on the way.
    """
    if stored.startswith(MAGIC):
        return decode(stored)
    if stored.startswith(_ZSTD_MAGIC):
        try:
            return bytes(pa.CompressedInputStream(pa.BufferReader(stored), "zstd").read())
        except OSError as failure:
            raise _corrupt(f"is no whole file of zstd: {failure}") from failure
    return stored


def _decoded(stored: _Reader) -> bytes:
    length, num_begin, num_cells = stored.varint(_LONGEST), stored.varint(), stored.varint()
    begin = _Reader(_inflated(stored.take(num_begin), length))
    num_head, num_others = begin.varint(), begin.varint(length)
    head = _Reader(begin.take(num_head))
    decoder = ArithmeticDecoder(stored.take(num_cells))
    others = _Reader(zstd_codec().decompress(stored.rest(), num_others, asbytes=True) if num_others else b"")
    model, decisions_left = bytearray(), MAX_DECISIONS
    for _ in range(head.varint()):
        model += begin.take(head.varint())
        size = head.varint(length - len(model))
        if head.varint() == OTHER:
            model += others.take(size)
            continue
        item_bytes = head.varint()
        shape = MatrixHeader(*(head.varint() for _ in MatrixHeader._fields))
        # What does not fill the hole is refused before anything of that size is made.
        if shape.num_rows * shape.num_columns * item_bytes != size or not 0 < shape.num_values < MAX_VALUES:
            raise ValueError(f"{shape} is no matrix of {size} bytes")
        values = _read_values(head, shape.num_values + 1, item_bytes)
        codes_RC = code_matrix(decoder, shape, None, decisions_left)
        decisions_left -= count_decisions(codes_RC, shape.num_values)
        model += values[codes_RC].tobytes()
    return bytes(model + begin.rest())


def _read_values(head: _Reader, number: int, item_bytes: int) -> np.ndarray:
    skipped = head.varint(item_bytes - 1)
    bytes_VI = np.zeros((number, item_bytes), np.uint8)
    bytes_VI[:, skipped:] = np.frombuffer(head.take(number * (item_bytes - skipped)), np.uint8).reshape(number, -1)
    return bytes_VI.view(UNSIGNED[item_bytes])[:, 0]


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


def _inflated(given: bytes, length: int) -> bytes:
    opener = zlib.decompressobj(wbits=-15, zdict=DEFLATE_DICTIONARY)
    # The head says less of the cells than they are, so what is unpacked is hardly longer than the model.
    found = opener.decompress(given, length + 4096)
    if not opener.eof:
        raise ValueError("the beginning has no end")
    return found


def zstd_codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=22)


def _corrupt(what: str) -> OutputCorrupt:
    return OutputCorrupt(
        f"the stored model {what}",
        required=f"the bytes that `encode` wrote, in version {VERSION}",
        where="the stored form of the model",
        remedy="take another copy of it, or store the ONNX file again with this program",
    )
