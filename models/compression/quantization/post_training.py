"""Quantization to 8 bits: of weights, and of activations in ranges known before or found row by row."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization import CalibrationMethod as OrtCalibrationMethod
from onnxruntime.quantization.calibrate import save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.config import CalibrationMethod, QuantizationMode
from bloomery.models.compression.quantization.amx_tiles import use_amx_kernels
from bloomery.models.inference.runtime import INPUT

# What ONNX Runtime has 8-bit kernels for, and what may stand between two of them without a way back to float.
OPERATORS: dict[QuantizationMode, tuple[str, ...]] = {
    "static": ("Add", "AveragePool", "Clip", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Relu"),
    "dynamic": ("Attention", "Gather", "Gemm", "LSTM", "MatMul"),
}
# Operators that hold weights: what may be left in float by name.
WEIGHTED_OPERATORS = ("Attention", "Conv", "Gather", "Gemm", "LSTM", "MatMul")

_METHODS = {
    "minmax": OrtCalibrationMethod.MinMax,
    "entropy": OrtCalibrationMethod.Entropy,
    "percentile": OrtCalibrationMethod.Percentile,
}
# By default ONNX Runtime's histograms for entropy have as many bins as levels, so that there is nothing to choose; and
# its percentiles reach as far below 0 as above, which wastes half the levels behind a ReLU.
_HISTOGRAMS = {"num_bins": 512, "num_quantized_bins": 256, "percentile": 99.99, "symmetric": False}
_MOVING = ("Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # values stay in their range


class _Rows(CalibrationDataReader):
    def __init__(self, x: np.ndarray) -> None:
        # Histograms are only added up over batches of one size.
        batch_size = max((size for size in range(1, 65) if len(x) % size == 0), default=1)
        self._batches: Iterator[dict[str, np.ndarray]] = (
            {INPUT: x[start : start + batch_size]} for start in range(0, len(x), batch_size)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(
    source: Path,
    target: Path,
    calibration: np.ndarray,
    *,
    how: QuantizationMode = "static",
    calibrate: CalibrationMethod = "minmax",
    reduce_range: bool = False,
    tiles: bool = False,
    keep_float: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the ONNX file at `source` to `target` with 8-bit arithmetic.

    static: activations are uint8 in the ranges that `calibrate` finds on the rows `calibration` float32 (B, ...), and
    weights int8 per channel, which is what processors with VNNI instructions run fastest. It suits convolutions. The
    logits themselves stay float, so that rows do not tie.

    dynamic: activations are uint8 in the ranges of each batch, so `calibration` is not read; embeddings, dense and LSTM
    layers become int8, and attention's linear maps. Convolutions, Elman's layers and GRUs stay in float: their 8-bit
    kernels are slow or missing.

    Args:
        reduce_range: weights of 7 bits, for processors that add products up in 16 bits (`processor.py` tells).
        tiles: static convolutions are written for processors with matrix tiles (`tiles.py`), and slower on others. The
            answers are the same.
        keep_float: names of operators, as `layers` tells them, that stay in float.
        ranges: by the name of a layer, the least and largest value that goes into it, in place of what is seen on
            the rows; such as training has learnt them (`fake_quantization.py`).

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Wu et al. 2020, "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation",
    section 3 (per channel) and 5.2 (calibration by largest value, entropy and percentile).

    Raises:
        RecipeInvalid: `keep_float` or `ranges` name what the network does not have.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = preprocess(source, Path(folder))
        quantize_preprocessed(
            ready,
            target,
            calibration,
            how=how,
            calibrate=calibrate,
            reduce_range=reduce_range,
            keep_float=keep_float,
            ranges=ranges,
        )
    if tiles and how == "static":
        onnx.save(use_amx_kernels(onnx.load(target)), target)


def preprocess(source: Path, folder: Path) -> Path:
    """A copy of `source` in `folder` as the quantizer takes it: batch normalisation is folded into what is before."""
    ready = folder / "ready.onnx"
    with _quiet():
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    model = onnx.load(ready)
    del model.graph.value_info[:]  # inferred shapes that the optimiser has made untrue
    # Of operators of ONNX Runtime's own no type is inferred, and what has none is left in float.
    own = [name for node in model.graph.node if node.op_type == "MultiHeadAttention" for name in node.output]
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in own
    )
    onnx.save(model, ready)
    return ready


def quantizable_layers(model: onnx.ModelProto, how: QuantizationMode) -> list[str]:
    """Names of the operators of a prepared model that hold weights and can be quantized, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    kinds = set(WEIGHTED_OPERATORS) & set(OPERATORS[how])
    return [node.name for node in model.graph.node if node.op_type in kinds and weights & set(node.input[:2])]


def find_first_layer(source: Path, how: QuantizationMode) -> tuple[str, ...]:
    """For `keep_float` of `quantize`: the layer of the ONNX file at `source` that comes first, or none if none can be
    quantized.

    What reads an image has few channels, and lays each byte of its window out by itself for a product of integers. So
    it may be quicker in float, unless pooling follows: that is done in float then, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        return tuple(quantizable_layers(onnx.load(preprocess(source, Path(folder))), how)[:1])


def quantize_preprocessed(
    ready: Path,
    target: Path,
    calibration: np.ndarray,
    *,
    how: QuantizationMode,
    calibrate: CalibrationMethod = "minmax",
    reduce_range: bool = False,
    keep_float: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    seen: Path | None = None,
) -> None:
    """As `quantize`, for what `prepared` returned. `seen` is the file that `calibrate_ranges` wrote."""
    model = onnx.load(ready)
    _require_known(keep_float, {node.name for node in model.graph.node}, "keep_float")
    with _quiet():
        if how == "static":
            quantize_static(
                str(ready),
                str(target),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
                op_types_to_quantize=list(OPERATORS[how]),
                nodes_to_exclude=list(keep_float),
                calibrate_method=_METHODS[calibrate],
                calibration_cache_path=seen or calibrate_ranges(ready, calibration, calibrate),
                extra_options={"TensorQuantOverrides": _overrides(model, ranges or {})},
            )
        else:
            quantize_dynamic(
                str(ready),
                str(target),
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
                op_types_to_quantize=list(OPERATORS[how]),
                nodes_to_exclude=list(keep_float),
                # Behind operators of ONNX Runtime's own, types cannot be inferred.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
    onnx.save(_lean(_float_outputs(onnx.load(target))), target)


def calibrate_ranges(ready: Path, calibration: np.ndarray, calibrate: CalibrationMethod) -> Path:
    """A file beside `ready` with the ranges that its activations have on the rows `calibration` float32 (B, ...)."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            ready,
            list(OPERATORS["static"]),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=_METHODS[calibrate],
            extra_options={} if calibrate == "minmax" else _HISTOGRAMS,
        )
        calibrator.collect_data(_Rows(calibration))
        written = ready.with_suffix(f".{calibrate}.json")
        save_tensors_data(calibrator.compute_data(), written)
    return written


def _overrides(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """By tensor: the range that was learnt for what goes into a layer, which is known by its weight's name."""
    readers = {node.input[1].removesuffix(".weight"): node for node in model.graph.node if len(node.input) > 1}
    makers = {name: node for node in model.graph.node for name in node.output}
    _require_known(tuple(ranges), set(readers), "ranges")
    overrides: dict[str, list[dict[str, np.ndarray]]] = {}
    for layer, (low, high) in ranges.items():
        tensor = readers[layer].input[0]
        while tensor in makers and makers[tensor].op_type in _MOVING:  # quantized once, before it is moved
            tensor = makers[tensor].input[0]
        overrides[tensor] = [{"rmin": np.asarray(low, np.float32), "rmax": np.asarray(high, np.float32)}]
    return overrides


def _lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the quantizer notes, which can be a third of a small file: inferred shapes, sets of operators that
    none is of, and the zeros of biases, 4 bytes for each, which are 0 where none are stated.
    """
    del model.metadata_props[:]
    del model.graph.value_info[:]
    used = {node.domain for node in model.graph.node} | {""}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    zeros = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT32 and not onnx.numpy_helper.to_array(tensor).any()
    }
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2] in zeros:
            del node.input[2]
    read = {name for node in model.graph.node for name in node.input}
    for name in zeros.keys() - read:
        model.graph.initializer.remove(zeros[name])
    return model


def _float_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without 8 bits on the outputs of the graph: 256 levels make rows tie, and 8-bit products come as floats too."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        back = makers[output.name]
        there = makers.get(back.input[0])
        if back.op_type != "DequantizeLinear" or there is None or there.op_type != "QuantizeLinear":
            continue
        name = there.input[0]
        is_shared = any(name in node.input for node in graph.node if node is not there)
        if name not in makers or is_shared:
            continue
        outputs = makers[name].output
        outputs[list(outputs).index(name)] = output.name
        dropped = {*back.input[1:], *there.input[1:]}
        graph.node.remove(back)
        graph.node.remove(there)
        dropped -= {name for node in graph.node for name in node.input}
        for tensor in [one for one in graph.initializer if one.name in dropped]:
            graph.initializer.remove(tensor)
    return model


def _require_known(names: Sequence[str], known: set[str], what: str) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise RecipeInvalid(
            f"{what} names {', '.join(unknown)}",
            required=f"names of operators or layers of the network, such as {', '.join(sorted(known)[:5])}",
            where="the quantization of a candidate",
            remedy="take names from `measure_sensitivities`",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer warns through the root logger about every file, and prints what it does."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
