"""Hand-made versions of models that read an image or a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, encode, fit, partial_statistics
from bloomery.models.media.config import MEDIA_FILE, AudioDecoding, ImageDecoding, MediaColumn
from tests.deployments.artifacts import write_artifacts

IMAGE_SHAPE = (3, 2, 3)  # channels, height, width
IMAGE = MediaColumn(column="picture", decoding=ImageDecoding(mode="RGB"), shape=IMAGE_SHAPE)
RESIZED_IMAGE = IMAGE.model_copy(update={"decoding": ImageDecoding(mode="RGB", size=IMAGE_SHAPE[1:])})
RECORDING = MediaColumn(column="wave", decoding=AudioDecoding(sample_rate=8000, resample=True, mono=True))
_INPUTS: dict[str, dict[str, Any]] = {
    "picture": {"kind": "image", "column": "picture", "shape": IMAGE_SHAPE},
    "wave": {
        "kind": "audio",
        "column": "wave",
        "sample_rate": 8000,
        "duration_s": 0.05,
        "window_s": 0.01,
        "step_s": 0.01,
        "num_mels": 4,
    },
}
_COLUMNS: dict[str, dict[str, Any]] = {
    "picture": {
        "logicalTypeOptions": {"minItems": 18, "maxItems": 18},
        "items": {"logicalType": "integer", "physicalType": "uint8"},
    },
    "wave": {
        "logicalTypeOptions": {"minItems": 1, "maxItems": 800},
        "items": {"logicalType": "number", "physicalType": "float"},
    },
}


def package_version(folder: Path, media: MediaColumn, contract_of: Callable[..., Contract]) -> Path:
    """Writes the `artifacts` of a version with random weights that takes files in the column of `media`."""
    random, name = np.random.default_rng(0), media.column
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True, "primaryKeyPosition": 1},
        {"name": name, "logicalType": "array", "required": True, **_COLUMNS[name]},
        {"name": "label", "logicalType": "string", "required": True},
    )
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [_INPUTS[name]]})
    values = random.integers(0, 256, (8, 18)) if name == "picture" else random.normal(size=(8, 400))
    item_type = pa.uint8() if name == "picture" else pa.float32()
    rows = pa.table({"id": range(8), name: pa.array(values.tolist(), pa.list_(item_type)), "label": ["a", "b"] * 4})
    encoder = fit(features, next(iter(partial_statistics(features, rows.to_batches())))[STATISTICS].to_pylist())
    _write_network(folder / "model.onnx", encode(encoder, rows).shape[1:], random)
    write_artifacts(folder, "pictures:one", [name], contract, encoder, {MEDIA_FILE: media.model_dump_json()})
    return folder


def _write_network(path: Path, shape: tuple[int, ...], random: np.random.Generator) -> None:
    weights = random.normal(size=(int(np.prod(shape)), 2)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["x"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
