"""An imported ONNX network as a teacher for distillation.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session


class OnnxTeacher(nn.Module):
    """x float32 (B, ...) -> the outputs of the ONNX file at `path`, float32 (B, K), without gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._runtime = create_session(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = compute_outputs(self._runtime, x.cpu().numpy(), is_row_by_row=False)
        return torch.from_numpy(outputs).to(x.device)
