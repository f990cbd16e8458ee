"""Candidates in the forms that are wanted beside ONNX: a program of torch.export, a file for LiteRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bloomery.models.compression.config import ExtraFormat
from bloomery.tasks.compress.candidate_measurement import BuiltCandidate, ExtraFile
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.orchestration.stage_store import Output

if TYPE_CHECKING:
    import torch

_COMPARED_ROWS = 32
_ENDINGS = {"pt2": "pt2", "litert": "tflite"}


def add_extra_formats(
    out: Output, made: Sequence[BuiltCandidate], wanted: Sequence[ExtraFormat], x: torch.Tensor
) -> list[BuiltCandidate]:
    """The same candidates, with files of those that are in float for each of the forms that are `wanted`.

    They are compared with PyTorch on rows of `x`. Neither form has the 8 bits that ONNX Runtime computes with, so a
    quantized candidate has no such file: it would be another network under its name.

    Raises:
        EngineMissing: LiteRT is wanted, and what converts is not there.
        ParityBroken: a file answers otherwise than PyTorch, or cannot be written.
    """
    written = []
    for position, one in enumerate(made):
        others: tuple[ExtraFile, ...] = ()
        if one.spec.is_float and one.network is not None:
            for form in wanted:
                emit(Progress("compress", position, len(made), f"{one.spec.name} as {form}"))
                others += (_write(out, one, form, x[:_COMPARED_ROWS]),)
        written.append(one._replace(network=None, others=others))
    return written


def _write(out: Output, made: BuiltCandidate, form: ExtraFormat, x: torch.Tensor) -> ExtraFile:
    from bloomery.models.export.litert_exporter import export_litert
    from bloomery.models.export.onnx_exporter import export_program

    assert made.network is not None
    path = out.path(f"{made.spec.name}.{_ENDINGS[form]}")
    if form == "pt2":
        return ExtraFile(form, path, export_program(made.network, x, path))
    return ExtraFile(form, path, export_litert(made.network, x, path, settings().litert_python))
