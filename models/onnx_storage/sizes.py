"""What is in an ONNX file: weights that are not zero, and how many bytes remain when it is compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from onnx import numpy_helper

from bloomery.models.onnx_storage.decoder import decompress
from bloomery.models.onnx_storage.encoder import encode
from bloomery.models.onnx_storage.zstd_packing import minify

# Where an operator reads a quantized weight, and where the number that stands for zero in it.
_ZERO_OF = {
    "DequantizeLinear": {0: 2},
    "MatMulInteger": {0: 2, 1: 3},
    "ConvInteger": {0: 2, 1: 3},
    "DynamicQuantizeLSTM": {1: 9, 2: 11},
}
# Inputs that say how a weight is read, and are no weights.
_NO_WEIGHTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}
_MOST_CODED_BYTES = 4_000_000  # which take two seconds at most; the time grows with them
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def measure_zstd_bytes(path: Path) -> int:
    """The size of the file as a download: compressed by Zstandard at level 19."""
    return len(pa.Codec("zstd", compression_level=19).compress(path.read_bytes(), asbytes=True))


def measure_coded_bytes(path: Path) -> int | None:
    """The size of the ONNX file in the fewest bytes (`coding.py`), or None if it has more than `_MOST_CODED_BYTES`."""
    if path.stat().st_size > _MOST_CODED_BYTES:
        return None
    return len(encode(minify(path.read_bytes())))


def count_nonzero(path: Path) -> int:
    """How many weights of the ONNX file are not zero, also where they are stored as integers."""
    graph = onnx.load_from_string(decompress(path.read_bytes())).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    zeros: dict[str, str] = {}  # the name of each quantized weight, and of its zero
    passed_over: set[str] = set()
    for node in graph.node:
        for weight, zero in _ZERO_OF.get(node.op_type, {}).items():
            if len(node.input) > weight:
                zeros[node.input[weight]] = node.input[zero] if len(node.input) > zero else ""
        passed_over.update(node.input[place] for place in _NO_WEIGHTS.get(node.op_type, ()) if place < len(node.input))
    # The scales of a dynamic product are multiplied by each other, and are known by their zero's name alone.
    passed_over.update(name for name in tensors if f"{name.removesuffix('_scale')}_zero_point" in tensors)
    count = 0
    for name, tensor in tensors.items():
        is_float = tensor.data_type in _FLOATS and len(tensor.dims) > 0
        if name in passed_over or not (is_float or name in zeros):
            continue
        values = numpy_helper.to_array(tensor)
        if name in zeros and zeros[name] in tensors:
            count += int(np.count_nonzero(_differs(values, numpy_helper.to_array(tensors[zeros[name]]))))
        else:
            count += int(np.count_nonzero(values))
    return count


def _differs(values: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Where `values` are not their zero. Where channels have zeros of their own, each value counts."""
    if zero.size and np.all(zero == zero.flat[0]):
        return np.asarray(values != zero.flat[0])
    return np.ones(values.shape, dtype=bool)
