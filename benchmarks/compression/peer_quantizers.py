"""Quantizes a network to 8 bits with Olive or Neural Compressor. `peers.py` runs it in a Python that has them.

    PEERS_PYTHON peer_quantizers.py METHOD FOLDER

FOLDER has fp32.onnx, network.pt (the same network, pickled by PyTorch) and rows.npy, float32 (B, ...), for calibration;
the result is FOLDER/METHOD.onnx. All settings are the tools' defaults. The pickle imports the module of the network's
class; nothing else of Bloomery is imported.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

INPUT_NAME = "x"


def quantize_by_olive(quantization: dict[str, Any], folder: Path, target: Path) -> None:
    """Runs a workflow with this one pass, as in Olive's documentation."""
    from olive.data.registry import Registry
    from olive.workflows import run

    rows = np.load(folder / "rows.npy")

    @Registry.register_dataset()
    def calibration_rows(**_: Any) -> Any:
        return [({INPUT_NAME: row}, 0) for row in rows]

    data = {"name": "rows", "load_dataset_config": {"type": "calibration_rows"}}
    output_folder = folder / "olive" / target.stem
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(folder / "fp32.onnx")},
            "data_configs": [data],
            "passes": {"quantization": quantization},
            "output_dir": str(output_folder),
            "cache_dir": str(folder / "olive-cache"),
        }
    )
    shutil.copyfile(next(output_folder.rglob("*.onnx")), target)


def optimize_by_olive(folder: Path, target: Path) -> None:
    """Runs Olive's `optimize`, which chooses the passes itself."""
    from olive.cli.api import optimize

    output_folder = folder / "olive" / target.stem
    optimize(str(folder / "fp32.onnx"), output_path=str(output_folder), device="cpu", precision="int8")
    shutil.copyfile(next(output_folder.rglob("*.onnx")), target)


def quantize_by_neural_compressor(folder: Path, target: Path) -> None:
    """Quantizes with Neural Compressor 3, which supports PyTorch networks only, and exports the result to ONNX."""
    import torch
    from neural_compressor.torch import export, quantization

    rows = torch.from_numpy(np.load(folder / "rows.npy"))
    network = torch.load(folder / "network.pt", weights_only=False)
    dynamic_shapes = ({0: torch.export.Dim("batch")},)
    exported = export.export(network, (rows[:2],), dynamic_shapes=dynamic_shapes)
    prepared = quantization.prepare(exported, quantization.get_default_static_config(), example_inputs=(rows[:2],))
    for start in range(0, len(rows), 32):
        prepared(rows[start : start + 32])
    quantized = quantization.convert(prepared)
    names: dict[str, Any] = {"input_names": [INPUT_NAME], "output_names": ["logits"]}
    # Not optimized: that would turn the rounded weights back into floats.
    program = torch.onnx.export(
        quantized, (rows[:2],), dynamo=True, optimize=False, dynamic_shapes=dynamic_shapes, **names
    )
    assert program is not None
    exported_file, folded_file = (folder / f"neural-compressor-{step}.onnx" for step in ("exported", "folded"))
    program.save(str(exported_file))
    _fold_constants(exported_file, folded_file)
    _fold_constants(folded_file, target)  # the first pass expands functions such as CastLike, the second folds them


def _fold_constants(source: Path, target: Path) -> None:
    """Folds the rounding of weights with ONNX Runtime, since PyTorch's exporter does not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:], model.metadata_props[:], model.graph.metadata_props[:]
    onnx.save(model, target)


def quantize_by_onnx_neural_compressor(mode: str, folder: Path, target: Path) -> None:
    """Quantizes with Neural Compressor's successor for ONNX files."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Rows(data_reader.CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self._rows: Iterator[np.ndarray] = iter(np.load(folder / "rows.npy"))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {INPUT_NAME: row[None]}

    settings = config.StaticQuantConfig(Rows()) if mode == "static" else config.DynamicQuantConfig()
    quantize(str(folder / "fp32.onnx"), str(target), settings)


STATIC = {"type": "OnnxStaticQuantization", "data_config": "rows"}
METHODS: dict[str, Callable[[Path, Path], None]] = {
    "olive-static": lambda folder, target: quantize_by_olive(STATIC, folder, target),
    "olive-dynamic": lambda folder, target: quantize_by_olive({"type": "OnnxDynamicQuantization"}, folder, target),
    "olive-optimize": optimize_by_olive,
    "neural-compressor": quantize_by_neural_compressor,
    "onnx-neural-compressor-static": lambda folder, target: quantize_by_onnx_neural_compressor(
        "static", folder, target
    ),
    "onnx-neural-compressor-dynamic": lambda folder, target: quantize_by_onnx_neural_compressor(
        "dynamic", folder, target
    ),
}


if __name__ == "__main__":
    method, folder = sys.argv[1], Path(sys.argv[2])
    target = folder / f"{method}.onnx"
    METHODS[method](folder, target)
    onnx.save(onnx.load(target), target)  # one file, without external weights
