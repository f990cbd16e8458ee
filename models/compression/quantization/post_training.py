"""Post-training quantization to 8 bits: static with calibrated ranges, or dynamic, with those of a batch."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
from bloomery.models.inference.named_inputs import INPUT, NamedInput, model_inputs, split_inputs

# Operators with 8-bit kernels in ONNX Runtime, and those that can stand between two of them without dequantization.
OPERATORS: dict[QuantizationMode, tuple[str, ...]] = {
    "static": ("Add", "AveragePool", "Clip", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Relu"),
    "dynamic": ("Attention", "Gather", "Gemm", "LSTM", "MatMul"),
}
# Operators that hold weights: candidates for `keep_float`.
WEIGHTED_OPERATORS = ("Attention", "Conv", "Gather", "Gemm", "LSTM", "MatMul")

_ORT_METHODS = {
    "minmax": OrtCalibrationMethod.MinMax,
    "entropy": OrtCalibrationMethod.Entropy,
    "percentile": OrtCalibrationMethod.Percentile,
}
# ONNX Runtime's default histograms for entropy have as many bins as levels, which leaves no choice of a range; its
# percentiles are symmetric about 0, which wastes half of the levels behind a ReLU.
_HISTOGRAM_OPTIONS = {"num_bins": 512, "num_quantized_bins": 256, "percentile": 99.99, "symmetric": False}
_RANGE_PRESERVING = ("Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_MAX_BATCH_SIZE = 64  # of calibration


class QuantizationOptions(NamedTuple):
    """How an ONNX file is quantized.

    Attributes:
        mode: `static` or `dynamic`, see `quantize`.
        calibration_method: how static activation ranges follow from the calibration rows.
        reduce_range: 7-bit weights, for processors that add products up in 16 bits (cpu_features.py).
        amx: static convolutions use AMX (amx_tiles.py), which is slower without it. The outputs are the same.
        keep_float: names of operators that stay in float, from `quantizable_layers`.
        ranges: by layer name, the least and largest input in place of the calibrated ones, such as those of
            quantization-aware training.
    """

    mode: QuantizationMode = "static"
    calibration_method: CalibrationMethod = "minmax"
    reduce_range: bool = False
    amx: bool = False
    keep_float: Sequence[str] = ()
    ranges: Mapping[str, tuple[float, float]] | None = None


DEFAULT_OPTIONS = QuantizationOptions()


class _CalibrationRows(CalibrationDataReader):
    """Batches of the rows `x` for the inputs of a file, with all their padding: histograms need equal shapes."""

    def __init__(self, x: np.ndarray, inputs: Sequence[NamedInput]) -> None:
        # Histograms can be merged only over batches of one size.
        batch_size = max((size for size in range(1, _MAX_BATCH_SIZE + 1) if len(x) % size == 0), default=1)
        self._batches: Iterator[dict[str, np.ndarray]] = (
            split_inputs(inputs, rows, trim=False) if inputs else {INPUT: rows}
            for rows in (x[start : start + batch_size] for start in range(0, len(x), batch_size))
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(
    source: Path, target: Path, calibration: np.ndarray, options: QuantizationOptions = DEFAULT_OPTIONS
) -> None:
    """Quantize the ONNX file at `source` to 8-bit arithmetic and write it to `target`.

    static: uint8 activations in the ranges found on the rows `calibration` float32 (B, ...), and int8 weights per
    channel, which processors with VNNI run fastest. It suits convolutions. The logits stay in float, so that rows do
    not tie.

    dynamic: uint8 activations in the ranges of each batch, so `calibration` is not read; embeddings, dense and LSTM
    layers and attention's linear maps become int8. Convolutions, Elman layers and GRUs stay in float, since their 8-bit
    kernels are slow or missing.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Wu et al. 2020, "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation",
    section 3 (per channel) and 5.2 (calibration by largest value, entropy and percentile).

    Raises:
        RecipeInvalid: `keep_float` or `ranges` name layers that the network does not have.
    """
    with tempfile.TemporaryDirectory() as folder:
        quantize_preprocessed(preprocess(source, Path(folder)), target, calibration, options)
    if options.amx and options.mode == "static":
        onnx.save(use_amx_kernels(onnx.load(target)), target)


def preprocess(source: Path, folder: Path) -> Path:
    """Write a copy of `source` to `folder` for the quantizer, with batch normalisation folded into the layer before."""
    path = folder / "preprocessed.onnx"
    with _silence_quantizer():
        quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    model = onnx.load(path)
    del model.graph.value_info[:]  # the optimizer leaves wrong inferred shapes
    # Types behind ONNX Runtime's own operators are not inferred, and tensors without a type stay in float.
    untyped = [name for node in model.graph.node if node.op_type == "MultiHeadAttention" for name in node.output]
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in untyped
    )
    onnx.save(model, path)
    return path


def quantizable_layers(model: onnx.ModelProto, mode: QuantizationMode) -> list[str]:
    """Names of the operators of a preprocessed model that hold weights and can be quantized, in graph order."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    op_types = set(WEIGHTED_OPERATORS) & set(OPERATORS[mode])
    nodes = [node for node in model.graph.node if node.op_type in op_types and weights & set(node.input[:2])]
    stacked = _stacked_products(model) if mode == "dynamic" else []
    return [node.name for node in nodes if node.name not in stacked]


def _stacked_products(model: onnx.ModelProto) -> list[str]:
    """Products with a stack of matrices, such as one for each member of TabM, which have no dynamic 8-bit kernel."""
    stacks = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and stacks & set(node.input)]


def find_first_layer(source: Path, mode: QuantizationMode) -> tuple[str, ...]:
    """The first quantizable layer of the ONNX file at `source`, for `keep_float`; empty if there is none.

    A first convolution has few input channels, and an integer product copies each byte of its windows. So it can be
    faster in float, unless pooling follows, which then runs in float too.
    """
    with tempfile.TemporaryDirectory() as folder:
        return tuple(quantizable_layers(onnx.load(preprocess(source, Path(folder))), mode)[:1])


def quantize_preprocessed(
    source: Path,
    target: Path,
    calibration: np.ndarray,
    options: QuantizationOptions,
    range_cache: Path | None = None,
) -> None:
    """`quantize` for a file that `preprocess` wrote, without `amx`. `range_cache` is a file from `calibrate_ranges`."""
    model = onnx.load(source)
    _require_names(options.keep_float, {node.name for node in model.graph.node}, "keep_float")
    with _silence_quantizer():
        if options.mode == "static":
            quantize_static(
                str(source),
                str(target),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=options.reduce_range,
                op_types_to_quantize=list(OPERATORS[options.mode]),
                nodes_to_exclude=list(options.keep_float),
                calibrate_method=_ORT_METHODS[options.calibration_method],
                calibration_cache_path=range_cache or calibrate_ranges(source, calibration, options.calibration_method),
                extra_options={"TensorQuantOverrides": _range_overrides(model, options.ranges or {})},
            )
        else:
            quantize_dynamic(
                str(source),
                str(target),
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=options.reduce_range,
                op_types_to_quantize=list(OPERATORS[options.mode]),
                nodes_to_exclude=[*options.keep_float, *_stacked_products(model)],
                # Types behind ONNX Runtime's own operators cannot be inferred.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
    onnx.save(_remove_overhead(_dequantize_outputs(onnx.load(target))), target)


def calibrate_ranges(source: Path, calibration: np.ndarray, method: CalibrationMethod) -> Path:
    """Write the activation ranges on the rows `calibration` float32 (B, ...) to a file beside `source`."""
    with _silence_quantizer(), tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            source,
            list(OPERATORS["static"]),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=_ORT_METHODS[method],
            extra_options={} if method == "minmax" else _HISTOGRAM_OPTIONS,
        )
        calibrator.collect_data(_CalibrationRows(calibration, model_inputs(onnx.load(source))))
        path = source.with_suffix(f".{method}.json")
        save_tensors_data(calibrator.compute_data(), path)
    return path


def _range_overrides(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """By tensor: the range for the input of a layer, which is found by its weight's name."""
    consumers = {node.input[1].removesuffix(".weight"): node for node in model.graph.node if len(node.input) > 1}
    producers = {name: node for node in model.graph.node for name in node.output}
    _require_names(tuple(ranges), set(consumers), "ranges")
    overrides: dict[str, list[dict[str, np.ndarray]]] = {}
    for layer, (low, high) in ranges.items():
        tensor = consumers[layer].input[0]
        while tensor in producers and producers[tensor].op_type in _RANGE_PRESERVING:  # quantized before these
            tensor = producers[tensor].input[0]
        overrides[tensor] = [{"rmin": np.asarray(low, np.float32), "rmax": np.asarray(high, np.float32)}]
    return overrides


def _remove_overhead(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes what the quantizer adds, which can be a third of a small file: metadata, inferred shapes, unused operator
    sets, and zero points of biases, which have 4 bytes each and are 0 by default.
    """
    del model.metadata_props[:]
    del model.graph.value_info[:]
    used_domains = {node.domain for node in model.graph.node} | {""}
    for opset in [opset for opset in model.opset_import if opset.domain not in used_domains]:
        model.opset_import.remove(opset)
    zeros = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT32 and not onnx.numpy_helper.to_array(tensor).any()
    }
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2] in zeros:
            del node.input[2]
    inputs = {name for node in model.graph.node for name in node.input}
    for name in zeros.keys() - inputs:
        model.graph.initializer.remove(zeros[name])
    return model


def _dequantize_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the rounding of the outputs to 8 bits: with 256 levels rows tie, and 8-bit products also give floats."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        dequantize = producers[output.name]
        quantize_node = producers.get(dequantize.input[0])
        if dequantize.op_type != "DequantizeLinear" or quantize_node is None:
            continue
        if quantize_node.op_type != "QuantizeLinear":
            continue
        name = quantize_node.input[0]
        is_shared = any(name in node.input for node in graph.node if node is not quantize_node)
        if name not in producers or is_shared:
            continue
        outputs = producers[name].output
        outputs[list(outputs).index(name)] = output.name
        unused = {*dequantize.input[1:], *quantize_node.input[1:]}
        graph.node.remove(dequantize)
        graph.node.remove(quantize_node)
        unused -= {name for node in graph.node for name in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name in unused]:
            graph.initializer.remove(tensor)
    return model


def _require_names(names: Sequence[str], existing: set[str], option: str) -> None:
    unknown = sorted(set(names) - existing)
    if unknown:
        raise RecipeInvalid(
            f"{option} names {', '.join(unknown)}",
            required=f"names of operators or layers of the network, such as {', '.join(sorted(existing)[:5])}",
            where="the quantization of a candidate",
            remedy="take names from `measure_sensitivities`",
        )


@contextlib.contextmanager
def _silence_quantizer() -> Iterator[None]:
    """The quantizer warns through the root logger about every file, and prints its progress."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
