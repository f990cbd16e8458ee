"""Exports candidates to formats beside ONNX: torch.export programs and LiteRT files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bloomery.models.compression.config import ExtraFormat
from bloomery.tasks.compress.built_candidate import BuiltCandidate, ExtraFile
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.orchestration.stage_store import Output

if TYPE_CHECKING:
    import torch

_NUM_COMPARED_ROWS = 32
_SUFFIXES = {"pt2": "pt2", "litert": "tflite"}


def add_extra_formats(
    out: Output, built: Sequence[BuiltCandidate], formats: Sequence[ExtraFormat], x: torch.Tensor
) -> list[BuiltCandidate]:
    """Returns the candidates with a file in each of `formats` for those in float.

    Each file is compared with PyTorch on rows of `x`. Quantized candidates get none: neither format has the 8-bit
    arithmetic of ONNX Runtime, so the file would hold another network under the same name.

    Raises:
        EngineMissing: LiteRT is requested, and its converter is not installed.
        ParityBroken: the outputs of a file differ from PyTorch's, or the file cannot be written.
    """
    exported = []
    for position, candidate in enumerate(built):
        files: tuple[ExtraFile, ...] = ()
        if candidate.spec.is_float and candidate.network is not None:
            for extra_format in formats:
                emit(Progress("compress", position, len(built), f"{candidate.spec.name} as {extra_format}"))
                files += (_write_file(out, candidate, extra_format, x[:_NUM_COMPARED_ROWS]),)
        exported.append(candidate._replace(network=None, extra_files=files))
    return exported


def _write_file(out: Output, candidate: BuiltCandidate, extra_format: ExtraFormat, x: torch.Tensor) -> ExtraFile:
    from bloomery.models.export.litert_exporter import export_litert
    from bloomery.models.export.onnx_exporter import export_program

    assert candidate.network is not None
    path = out.path(f"{candidate.spec.name}.{_SUFFIXES[extra_format]}")
    if extra_format == "pt2":
        return ExtraFile(extra_format, path, export_program(candidate.network, x, path))
    return ExtraFile(extra_format, path, export_litert(candidate.network, x, path, settings().litert_python))
