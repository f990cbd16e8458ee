"""A candidate as `compress` builds it, before it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.records.serving_device import GpuDevice
from bloomery.models.compression.config import CandidateSpec, ExtraFormat

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

SEED = 0  # of everything random about candidates: fine-tuning, and the order of latency measurements


class ExtraFile(NamedTuple):
    """A candidate in another format than ONNX."""

    format: ExtraFormat
    path: Path
    parity_error: float  # the largest difference of an output from PyTorch's


class BuiltCandidate(NamedTuple):
    """The ONNX file of a candidate, and the properties that are known from building it."""

    spec: CandidateSpec
    path: Path
    num_parameters: int
    parity_error: float
    ranges: Mapping[str, tuple[float, float]] | None = None  # of the inputs of layers, where training learned them
    num_macs: int = 0  # for one row; 0 of an imported network and of trees
    calibration: str | None = None  # sha256 of the rows that calibrated static activation ranges
    coded_bytes: int | None = None  # of a candidate with zstd storage, measured before it is packed
    network: nn.Module | None = None  # before quantization, kept where extra formats are requested
    extra_files: tuple[ExtraFile, ...] = ()
    removed_tokens: float | None = None  # share of the test rows' tokens without an embedding in a trimmed vocabulary
    scope_shift: float | None = None  # added to the logit of the class out of scope, if the recipe names one
    fused: Path | None = None  # the same network with attention as one operator, if it has attention
    device: GpuDevice | None = None  # that it is measured on and served by; None is the processor

    def open_session(self) -> onnxruntime.InferenceSession:
        """A session as the endpoint opens it."""
        from bloomery.models.inference.runtime import create_session

        return create_session(self.path, device=self.device)

    @property
    def is_row_by_row(self) -> bool:
        """Whether rows must be predicted one at a time: dynamic ranges would depend on the other rows of a batch."""
        return self.spec.quantize == "dynamic"
