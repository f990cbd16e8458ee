"""A network that came trained, as one that another can learn from.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session


class OnnxTeacher(nn.Module):
    """x float32 (B, ...) -> what the ONNX file at `path` answers, float32 (B, K). It has no gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._runtime = create_session(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers = compute_outputs(self._runtime, x.cpu().numpy(), is_row_by_row=False)
        return torch.from_numpy(answers).to(x.device)
