"""A trained network from an ONNX file as a frozen branch: its outputs are features of a new linear layer.

Shapes: B rows, M outputs of the file, W features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    import onnxruntime

INPUT, OUTPUT = "x", "logits"  # of the adapted file


class ImportedBranch(nn.Module):
    """x float32 (B, ...) -> float32 (B, W). No gradient reaches the file, which is a buffer of the state.

    It is empty until `load_file` or until its state is loaded.
    """

    file: torch.Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self._num_features = num_features
        self.register_buffer("file", torch.zeros(0, dtype=torch.uint8))
        self.head = nn.Linear(1, num_features)
        self._session = _Session()

    @property
    def model(self) -> bytes:
        """The adapted ONNX file."""
        return bytes(self.file.cpu().numpy())

    def load_file(self, model: bytes, num_outputs: int) -> None:
        """Takes the adapted file and a new linear layer for its `num_outputs`."""
        self.file = torch.frombuffer(bytearray(model), dtype=torch.uint8)
        self.head = nn.Linear(num_outputs, self._num_features)
        self._session = _Session()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self._session.run(self.file, x.detach().cpu().numpy())
        features: torch.Tensor = self.head(torch.from_numpy(outputs).to(x.device))
        return features

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        file, weight = state_dict.get(f"{prefix}file"), state_dict.get(f"{prefix}head.weight")
        if file is not None and not (file.shape == self.file.shape and torch.equal(file.cpu(), self.file.cpu())):
            self.file = torch.empty_like(file, device=self.file.device)
            self._session = _Session()
        if weight is not None and weight.shape != self.head.weight.shape:
            self.head = nn.Linear(weight.shape[1], weight.shape[0]).to(self.head.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class _Session:
    """An ONNX session that is opened when it is first used; a copy opens its own."""

    def __init__(self) -> None:
        self._runtime: onnxruntime.InferenceSession | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Session:
        return _Session()

    def __reduce__(self) -> tuple[type[_Session], tuple[()]]:
        return _Session, ()

    def run(self, file: torch.Tensor, x: np.ndarray) -> np.ndarray:
        if self._runtime is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            model = bytes(file.cpu().numpy())
            self._runtime = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        outputs: np.ndarray = self._runtime.run([OUTPUT], {INPUT: np.ascontiguousarray(x)})[0]
        return outputs
