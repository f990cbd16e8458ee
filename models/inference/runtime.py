"""ONNX Runtime sessions with the settings of the endpoint. Part of the bento, so it needs no torch.

Shapes: B rows, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.records.serving_device import GpuDevice
from bloomery.models.inference.named_inputs import INPUT as INPUT
from bloomery.models.inference.named_inputs import session_inputs, split_inputs
from bloomery.models.inference.serving_device import (
    CPU_PROVIDER,
    fallback_error,
    provides,
    runtime_error,
    select_providers,
    uses_device,
)
from bloomery.models.onnx_storage.decoder import decompress, is_compressed

if TYPE_CHECKING:
    import onnxruntime

OUTPUT = "logits"
_SORTED_ROWS = 64  # more rows of tokens are run in batches of similar length
TOKENS = "tokens"  # the name of a length of rows, where trailing padding may be removed
VECTORS = "vectors"  # in the metadata of an embedding's file: the type of its values, float32 or int8


def create_session(
    model: Path | bytes, num_threads: int = 1, device: GpuDevice | None = None
) -> onnxruntime.InferenceSession:
    """Creates an ONNX Runtime session with the settings of the endpoint: one thread, which suits small networks.

    `model` is a file or its bytes; a stored form (`models/onnx_storage/decoder.py`) is decompressed first. `device` is
    None for the processor.

    Raises:
        OutputCorrupt: a stored form is damaged.
        EngineMissing: ONNX Runtime cannot compute on `device` on this machine.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = unpack_model(model)
    if device is None:
        return onnxruntime.InferenceSession(source, options, providers=[CPU_PROVIDER])
    if not provides(device, onnxruntime.get_available_providers()):
        raise runtime_error(device)
    onnxruntime.preload_dlls()  # the libraries of NVIDIA's packages, where they are installed
    inputs = onnxruntime.InferenceSession(source, options, providers=[CPU_PROVIDER]).get_inputs()
    session = onnxruntime.InferenceSession(source, options, providers=select_providers(device, inputs))
    if not uses_device(session, device):
        raise fallback_error(device)
    return session


def unpack_model(model: Path | bytes) -> str | bytes:
    """The path or bytes for ONNX Runtime. Only stored forms are read here, so large files are not in memory twice."""
    if isinstance(model, bytes):
        return decompress(model)
    with model.open("rb") as file:
        if not is_compressed(file.read(4)):
            return str(model)
    return decompress(model.read_bytes())


def run_session(runtime: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
    """logits_BK float32 for x float32 (B, ...). Mixed rows are divided among the inputs of their parts.

    If the file declares rows of tokens (B, T), trailing steps that are padding in all rows are left out. Outputs of
    each step (B, T, K) are 0 there, as the network's own for padding.
    """
    inputs = session_inputs(runtime)
    if inputs:
        return runtime.run([OUTPUT], split_inputs(inputs, x, trim=True))[0]
    if x.ndim == 2 and runtime.get_inputs()[0].shape[1] == TOKENS:
        return _run_tokens(runtime, x)
    return runtime.run([OUTPUT], {INPUT: x})[0]


def _run_tokens(runtime: onnxruntime.InferenceSession, x_BT: np.ndarray) -> np.ndarray:
    """The outputs of rows of tokens without common padding; of many rows, those of similar length together."""
    if len(x_BT) <= _SORTED_ROWS:
        return _run_trimmed(runtime, x_BT)
    order_B = (x_BT >= 1).sum(axis=1).argsort(kind="stable")
    parts = np.array_split(order_B, -(-len(x_BT) // _SORTED_ROWS))
    outputs_BK = np.concatenate([_run_trimmed(runtime, x_BT[rows]) for rows in parts])
    in_order_BK = np.empty_like(outputs_BK)
    in_order_BK[order_B] = outputs_BK
    return in_order_BK


def _run_trimmed(runtime: onnxruntime.InferenceSession, x_BT: np.ndarray) -> np.ndarray:
    outputs: np.ndarray = runtime.run([OUTPUT], {INPUT: trim_padding(x_BT)})[0]
    if outputs.ndim < 3:
        return outputs
    return np.pad(outputs, ((0, 0), (0, x_BT.shape[1] - outputs.shape[1]), (0, 0)))


def trim_padding(x_BT: np.ndarray) -> np.ndarray:
    """Rows of tokens without the trailing steps that are 0 in all of them; one step is left at least."""
    used_T = np.flatnonzero(x_BT.any(axis=0))
    return x_BT[:, : int(used_T[-1]) + 1 if len(used_T) else 1]


def sigmoid(logits_BK: np.ndarray) -> np.ndarray:
    """The probability float64 (B, K) of each label by itself."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits_BK.astype(np.float64))))


def softmax(logits_BK: np.ndarray) -> np.ndarray:
    """Probabilities float64 (B, K), each row adding up to 1; or (B, T, K), each step."""
    shifted = np.exp(logits_BK.astype(np.float64) - logits_BK.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
