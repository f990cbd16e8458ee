"""Measures ONNX files: nonzero weights, and sizes after compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from onnx import numpy_helper

from bloomery.models.onnx_storage.decoder import decompress
from bloomery.models.onnx_storage.encoder import encode
from bloomery.models.onnx_storage.zstd_packing import minify

# By operator: the input that is a quantized weight, and the input that is its zero point.
_ZERO_POINT_OF = {
    "DequantizeLinear": {0: 2},
    "MatMulInteger": {0: 2, 1: 3},
    "ConvInteger": {0: 2, 1: 3},
    "DynamicQuantizeLSTM": {1: 9, 2: 11},
}
# By operator: inputs that are scales and zero points, not weights.
_QUANTIZATION_PARAMETERS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}
_MAX_CODED_BYTES = 4_000_000  # which take two seconds at most; the time grows with the size
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def measure_zstd_bytes(path: Path) -> int:
    """The size of the file as a download: compressed by Zstandard at level 19."""
    return len(pa.Codec("zstd", compression_level=19).compress(path.read_bytes(), asbytes=True))


def measure_coded_bytes(path: Path) -> int | None:
    """The entropy-coded size of the ONNX file (encoder.py), or None above `_MAX_CODED_BYTES`."""
    if path.stat().st_size > _MAX_CODED_BYTES:
        return None
    return len(encode(minify(path.read_bytes())))


def count_nonzero(path: Path) -> int:
    """The number of nonzero weights in the ONNX file, including those stored as integers."""
    graph = onnx.load_from_string(decompress(path.read_bytes())).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    zero_points: dict[str, str] = {}  # by the name of a quantized weight
    excluded: set[str] = set()
    for node in graph.node:
        for weight, zero_point in _ZERO_POINT_OF.get(node.op_type, {}).items():
            if len(node.input) > weight:
                zero_points[node.input[weight]] = node.input[zero_point] if len(node.input) > zero_point else ""
        parameters = _QUANTIZATION_PARAMETERS.get(node.op_type, ())
        excluded.update(node.input[position] for position in parameters if position < len(node.input))
    # Scales of a dynamic product are multiplied with each other; only the name of their zero point identifies them.
    excluded.update(name for name in tensors if f"{name.removesuffix('_scale')}_zero_point" in tensors)
    count = 0
    for name, tensor in tensors.items():
        is_float = tensor.data_type in _FLOATS and len(tensor.dims) > 0
        if name in excluded or not (is_float or name in zero_points):
            continue
        values = numpy_helper.to_array(tensor)
        if name in zero_points and zero_points[name] in tensors:
            zero_point_values = numpy_helper.to_array(tensors[zero_points[name]])
            count += int(np.count_nonzero(_is_nonzero(values, zero_point_values)))
        else:
            count += int(np.count_nonzero(values))
    return count


def _is_nonzero(values: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Where `values` differ from the zero point. With different zero points per channel, every value counts."""
    if zero_point.size and np.all(zero_point == zero_point.flat[0]):
        return np.asarray(values != zero_point.flat[0])
    return np.ones(values.shape, dtype=bool)
