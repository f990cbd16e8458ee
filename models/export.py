"""From a PyTorch network to an ONNX file, and the proof that both answer alike.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from data_contracts.errors import ParityBroken
from models.runtime import INPUT, OUTPUT, answer, session

PARITY_BATCHES = (1, 3, 32)
TOLERANCE = 1e-4  # the largest difference of a logit that float32 arithmetic in another order explains


def export(network: nn.Module, examples: torch.Tensor, path: Path) -> float:
    """Write `network` as ONNX with a free batch size, and compare it with PyTorch on `examples` (B, ...).

    The file's bytes depend on nothing but the network: what the exporter notes about source files is taken out.

    Returns:
        The largest absolute difference of a logit over batches of several sizes.

    Raises:
        ParityBroken: that difference is above `TOLERANCE`.
    """
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (examples[:2],),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    onnx.save(_stripped(program.model_proto), path)
    error = _largest_difference(network, examples, session(path))
    if not error <= TOLERANCE:
        raise ParityBroken(
            f"ONNX Runtime and PyTorch differ by up to {error:.2g} in a logit",
            required=f"at most {TOLERANCE:g} on batches of {', '.join(map(str, PARITY_BATCHES))} rows",
            where=str(path),
            remedy="report the network's config: an operator of it is exported wrongly",
        )
    return error


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without doc strings, metadata and inferred shapes, which carry paths and can be a third of a small file."""
    model.producer_version = ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    return model


@torch.no_grad()
def _largest_difference(network: nn.Module, examples: torch.Tensor, runtime: onnxruntime.InferenceSession) -> float:
    differences = []
    for size in PARITY_BATCHES:
        x = examples[:size]
        differences.append(np.abs(network(x).numpy() - answer(runtime, x.numpy())).max())
    return float(np.max(differences))
