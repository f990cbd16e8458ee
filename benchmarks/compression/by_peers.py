"""Quantizes a network to 8 bits with Olive or Neural Compressor. Run by `peers.py` in a Python that has them.

    PEERS_PYTHON by_peers.py WAY FOLDER

FOLDER has fp32.onnx, network.pt (the same network, pickled by PyTorch) and rows.npy, float32 (B, ...), for calibration;
the result is FOLDER/WAY.onnx. All settings are the tools' defaults. Of our code only the network's own module is
imported, which the pickle names.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

NAME = "x"  # of the networks' input


def olive(quantization: dict[str, Any], folder: Path, target: Path) -> None:
    """A workflow with this one pass, as in Olive's documentation."""
    from olive.data.registry import Registry
    from olive.workflows import run

    rows = np.load(folder / "rows.npy")

    @Registry.register_dataset()  # type: ignore[untyped-decorator]
    def calibration_rows(**_: Any) -> Any:
        return [({NAME: row}, 0) for row in rows]

    data = {"name": "rows", "load_dataset_config": {"type": "calibration_rows"}}
    made = folder / "olive" / target.stem
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(folder / "fp32.onnx")},
            "data_configs": [data],
            "passes": {"quantization": quantization},
            "output_dir": str(made),
            "cache_dir": str(folder / "olive-cache"),
        }
    )
    shutil.copyfile(next(made.rglob("*.onnx")), target)


def olive_optimize(folder: Path, target: Path) -> None:
    """Olive's command that chooses the passes itself."""
    from olive.cli.api import optimize

    made = folder / "olive" / target.stem
    optimize(str(folder / "fp32.onnx"), output_path=str(made), device="cpu", precision="int8")
    shutil.copyfile(next(made.rglob("*.onnx")), target)


def neural_compressor(folder: Path, target: Path) -> None:
    """Neural Compressor 3 quantizes PyTorch networks for `torch.compile` only; the result is exported to ONNX."""
    import torch
    from neural_compressor.torch import export, quantization

    rows = torch.from_numpy(np.load(folder / "rows.npy"))
    network = torch.load(folder / "network.pt", weights_only=False)
    free = ({0: torch.export.Dim("batch")},)
    exported = export.export(network, (rows[:2],), dynamic_shapes=free)
    prepared = quantization.prepare(exported, quantization.get_default_static_config(), example_inputs=(rows[:2],))
    for start in range(0, len(rows), 32):
        prepared(rows[start : start + 32])
    quantized = quantization.convert(prepared)
    names: dict[str, Any] = {"input_names": [NAME], "output_names": ["logits"]}
    # Not optimized: that would turn the rounded weights back into floats.
    program = torch.onnx.export(quantized, (rows[:2],), dynamo=True, optimize=False, dynamic_shapes=free, **names)
    assert program is not None
    exported_file, folded_once = (folder / f"neural-compressor-{word}.onnx" for word in ("exported", "folded"))
    program.save(str(exported_file))
    _fold(exported_file, folded_once)
    _fold(folded_once, target)  # the second pass folds what functions such as CastLike become in the first


def _fold(source: Path, target: Path) -> None:
    """Folds the rounding of weights with ONNX Runtime, since PyTorch leaves it to the session."""
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


def onnx_neural_compressor(how: str, folder: Path, target: Path) -> None:
    """The successor of Neural Compressor for ONNX files."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Rows(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self._rows: Iterator[np.ndarray] = iter(np.load(folder / "rows.npy"))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {NAME: row[None]}

    chosen = config.StaticQuantConfig(Rows()) if how == "static" else config.DynamicQuantConfig()
    quantize(str(folder / "fp32.onnx"), str(target), chosen)


STATIC = {"type": "OnnxStaticQuantization", "data_config": "rows"}
WAYS: dict[str, Callable[[Path, Path], None]] = {
    "olive-static": lambda folder, target: olive(STATIC, folder, target),
    "olive-dynamic": lambda folder, target: olive({"type": "OnnxDynamicQuantization"}, folder, target),
    "olive-optimize": olive_optimize,
    "neural-compressor": neural_compressor,
    "onnx-neural-compressor-static": lambda folder, target: onnx_neural_compressor("static", folder, target),
    "onnx-neural-compressor-dynamic": lambda folder, target: onnx_neural_compressor("dynamic", folder, target),
}


if __name__ == "__main__":
    way, given = sys.argv[1], Path(sys.argv[2])
    made = given / f"{way}.onnx"
    WAYS[way](given, made)
    onnx.save(onnx.load(made), made)  # one file, without external weights
