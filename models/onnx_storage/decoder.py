"""Decompresses stored ONNX files: entropy-coded by `encode` (encoder.py), or compressed by zstd.

    runtime = create_session(path)     # inference/runtime.py opens either format

Part of the bento, which decodes at its start, so it needs neither torch nor onnx.
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
_MAX_LENGTH = 1 << 31  # of an ONNX file, a limit of protocol buffers
MAX_DECISIONS = 1 << 20  # for all tensors together: a few seconds of a bento's start
MAX_VALUES = 256
FEW_VALUED, OTHER = 0, 1  # how a tensor is stored: by code_matrix, or by zstd
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# Strings that are frequent in ONNX graphs, the most frequent last, since deflate reaches those in fewer bits.
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
    """The bytes that `encode` stored.

    Raises:
        OutputCorrupt: `stored` is not complete output of `encode` in this version.
    """
    if stored[:3] != MAGIC:
        raise _corrupt("does not begin with the bytes of a stored model")
    if stored[3:4] != bytes([VERSION]):
        raise _corrupt(f"is of version {int.from_bytes(stored[3:4], 'big')}, and this program reads {VERSION}")
    try:
        model = _decode(_Reader(stored, 8))
    except (ValueError, IndexError, OverflowError, zlib.error, OSError, MemoryError) as error:
        raise _corrupt(f"cannot be decoded: {error}") from error
    if zlib.crc32(model) != int.from_bytes(stored[4:8], "big"):
        raise _corrupt("decodes into another model than was stored: the checksums differ")
    return model


def is_compressed(beginning: bytes) -> bool:
    """Whether a file that begins with these four bytes or more needs `decompress`, and is not an ONNX file itself."""
    return beginning.startswith((MAGIC, _ZSTD_MAGIC))


def decompress(stored: bytes) -> bytes:
    """The bytes of an ONNX file that is stored as such, by zstd, or by `encode`.

    Raises:
        OutputCorrupt: `stored` is corrupt.
    """
    if stored.startswith(MAGIC):
        return decode(stored)
    if stored.startswith(_ZSTD_MAGIC):
        try:
            return bytes(pa.CompressedInputStream(pa.BufferReader(stored), "zstd").read())
        except OSError as failure:
            raise _corrupt(f"is not a complete zstd file: {failure}") from failure
    return stored


def _decode(stored: _Reader) -> bytes:
    length, header_length, cells_length = stored.varint(_MAX_LENGTH), stored.varint(), stored.varint()
    header = _Reader(_inflate(stored.take(header_length), length))
    table_length, tensors_length = header.varint(), header.varint(length)
    table = _Reader(header.take(table_length))
    decoder = ArithmeticDecoder(stored.take(cells_length))
    tensors = _Reader(zstd_codec().decompress(stored.rest(), tensors_length, asbytes=True) if tensors_length else b"")
    model, decisions_left = bytearray(), MAX_DECISIONS
    for _ in range(table.varint()):
        model += header.take(table.varint())
        size = table.varint(length - len(model))
        if table.varint() == OTHER:
            model += tensors.take(size)
            continue
        item_bytes = table.varint()
        matrix = MatrixHeader(*(table.varint() for _ in MatrixHeader._fields))
        # A matrix of another size than its tensor is refused before memory is allocated.
        if matrix.num_rows * matrix.num_columns * item_bytes != size or not 0 < matrix.num_values < MAX_VALUES:
            raise ValueError(f"{matrix} does not have {size} bytes")
        values = _read_values(table, matrix.num_values + 1, item_bytes)
        codes_RC = code_matrix(decoder, matrix, None, decisions_left)
        decisions_left -= count_decisions(codes_RC, matrix.num_values)
        model += values[codes_RC].tobytes()
    return bytes(model + header.rest())


def _read_values(table: _Reader, number: int, item_bytes: int) -> np.ndarray:
    num_zero_bytes = table.varint(item_bytes - 1)
    bytes_VI = np.zeros((number, item_bytes), np.uint8)
    stored_bytes = table.take(number * (item_bytes - num_zero_bytes))
    bytes_VI[:, num_zero_bytes:] = np.frombuffer(stored_bytes, np.uint8).reshape(number, -1)
    return bytes_VI.view(UNSIGNED[item_bytes])[:, 0]


class _Reader:
    """Reads bytes from the front."""

    def __init__(self, content: bytes, position: int = 0) -> None:
        self.content, self.position = content, position

    def take(self, number: int) -> bytes:
        if number > len(self.content) - self.position:
            raise ValueError("it is truncated")
        self.position += number
        return self.content[self.position - number : self.position]

    def rest(self) -> bytes:
        return self.take(len(self.content) - self.position)

    def varint(self, maximum: int = _MAX_LENGTH) -> int:
        number = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                break
        if number > maximum:
            raise ValueError(f"the number {number} is above {maximum}")
        return number


def _inflate(deflated: bytes, length: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=-15, zdict=DEFLATE_DICTIONARY)
    # The header is hardly longer than the model: a larger one is corrupt.
    inflated = decompressor.decompress(deflated, length + 4096)
    if not decompressor.eof:
        raise ValueError("its header is truncated")
    return inflated


def zstd_codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=22)


def _corrupt(problem: str) -> OutputCorrupt:
    return OutputCorrupt(
        f"the stored model {problem}",
        required=f"the bytes that `encode` wrote, in version {VERSION}",
        where="the stored model file",
        remedy="take another copy of it, or store the ONNX file again with this program",
    )
