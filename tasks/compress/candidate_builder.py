"""Candidates as ONNX files: the network as trained, made smaller, quantized."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import TrainedNetwork
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.profiling.cpu_features import cpu_flags
from bloomery.tasks.compress.candidate_measurement import SEED, BuiltCandidate
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.orchestration.stage_store import Output

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from bloomery.models.training.data.batches import Examples
    from bloomery.models.training.loop import EpochResult


_ENDINGS = {"entropy_coded": "coded", "zstd": "zst"}
_LEAST_ROWS = 2048  # of the validation part, by which layers are chosen that stay in float


class CandidateSplits(NamedTuple):
    train: Examples
    val: Examples
    test: Examples
    unlabelled: Examples | None = None


@dataclass(frozen=True)
class CandidateBuilder:
    """What candidates are made of, and those in float that are made already: what is made alike is made once."""

    out: Output
    trained: TrainedNetwork
    parts: CandidateSplits
    compression: Compression
    floats: dict[str, BuiltCandidate] = field(default_factory=dict)


def build_candidates(builder: CandidateBuilder, specs: tuple[CandidateSpec, ...]) -> list[BuiltCandidate]:
    """An ONNX file for each candidate."""
    made = []
    for position, spec in enumerate(specs):
        emit(Progress("compress", position, len(specs), spec.name))
        made.append(build_candidate(builder, spec))
    delete_float_files(builder)
    return made


def build_candidate(
    builder: CandidateBuilder, spec: CandidateSpec, on_epoch: Callable[[EpochResult], None] = lambda epoch: None
) -> BuiltCandidate:
    """The candidate's ONNX file: made smaller first, then exported, then quantized."""
    from bloomery.models.compression.quantization.weight_only import quantize_weights
    from bloomery.models.onnx_storage.encoder import encode
    from bloomery.models.onnx_storage.sizes import measure_coded_bytes
    from bloomery.models.onnx_storage.zstd_packing import minify, pack_for_zstd

    spec = spec.resolve_reduce_range(cpu_flags())
    alike = digest_of_document(spec.before_quantization.model_dump())
    if alike not in builder.floats:
        path = builder.out.path(f"float-{len(builder.floats)}.onnx")
        builder.floats[alike] = _in_float(builder, spec, path, on_epoch)
    parent, path = builder.floats[alike], builder.out.path(f"{spec.name}.onnx")
    if spec.storage is not None:
        path = builder.out.path(f"{spec.name}.onnx.{_ENDINGS[spec.storage]}")
    made = parent._replace(spec=spec, path=path)
    # Fixed ranges and few values are those of a layer, of which there are three in one operator.
    source = parent.path if spec.quantize == "static" or spec.num_clusters is not None else parent.fused or parent.path
    if spec.quantize is not None:
        made = made._replace(calibration=_quantize(builder, spec, parent._replace(path=source), path))
    elif spec.weight_only is not None:
        quantize_weights(source, path, spec.weight_only)
    else:
        shutil.copyfile(source, path)
    if spec.storage is not None:
        model = path.read_bytes()
        if spec.storage == "zstd":
            made = made._replace(coded_bytes=measure_coded_bytes(path))
        path.write_bytes(pack_for_zstd(model) if spec.storage == "zstd" else encode(minify(model)))
    return made


def _quantize(builder: CandidateBuilder, spec: CandidateSpec, parent: BuiltCandidate, path: Path) -> str | None:
    """Afterwards the candidate is at `path` in 8 bits, but for the layers that it may keep in float.

    Returns the sha256 of the encoded rows that gave ranges to its activations, if any did.
    """
    from bloomery.models.compression.quantization.post_training import QuantizationOptions, find_first_layer, quantize
    from bloomery.models.compression.quantization.sensitivity import find_float_layers
    from bloomery.models.training.data.batches import even_sample

    assert spec.quantize is not None
    wanted = builder.compression.calibration_rows
    calibration = even_sample(builder.parts.train.x, wanted)[:wanted].numpy()
    options = QuantizationOptions(
        mode=spec.quantize,
        calibration_method=spec.calibration_method,
        reduce_range=bool(spec.reduce_range),
        amx=spec.amx,
        ranges=parent.ranges,
    )
    kept: tuple[str, ...] = ()
    if spec.float_layers == "first":
        kept = find_first_layer(parent.path, spec.quantize)
    elif spec.float_layers is not None:
        x, y = (even_sample(part, _LEAST_ROWS) for part in (builder.parts.val.x, builder.parts.val.y))
        limit = spec.float_layers
        kept = find_float_layers(parent.path, calibration, x.numpy(), _loss_on(y), limit, options)
    quantize(parent.path, path, calibration, options._replace(keep_float=kept))
    return hashlib.sha256(calibration.tobytes()).hexdigest() if spec.quantize == "static" else None


def _loss_on(y: torch.Tensor) -> Callable[[np.ndarray], float]:
    """Of outputs for rows with these labels: the share of wrong answers, or RMSE in standard units."""
    from bloomery.models.training.optimization.loss import is_regression, score_outputs

    def loss(outputs_BK: np.ndarray) -> float:
        score = score_outputs(outputs_BK, y)
        return score if is_regression(y) else 1 - score

    return loss


def delete_float_files(builder: CandidateBuilder) -> None:
    """Afterwards the files that candidates were made of are gone, and only candidates are left."""
    for parent in builder.floats.values():
        parent.path.unlink()
        if parent.fused is not None:
            parent.fused.unlink()
    builder.floats.clear()


def _in_float(
    builder: CandidateBuilder, spec: CandidateSpec, path: Path, on_epoch: Callable[[EpochResult], None]
) -> BuiltCandidate:
    """The candidate before it is quantized, at `path`. An imported network, a file already, is taken as it is."""
    from bloomery.models.compression.compressor import FineTuning, compress_network
    from bloomery.models.compression.fused_attention import fuse_attention
    from bloomery.models.compression.quantization.quantization_aware import learned_ranges, remove_fake_quantization
    from bloomery.models.export.onnx_exporter import export_onnx, measure_parity
    from bloomery.models.networks.blueprint import num_parameters, read_blueprint, read_network
    from bloomery.models.onnx_import.teacher import OnnxTeacher
    from bloomery.models.profiling.macs import count_macs

    trained, parts = builder.trained, builder.parts
    weights, config = settings().path(trained.uri), settings().path(trained.network_uri)
    if trained.import_error is not None and not spec.changes_network:
        shutil.copyfile(weights, path)
        return BuiltCandidate(spec, path, trained.num_parameters, trained.import_error)
    network: nn.Module
    if trained.import_error is not None:
        network, blueprint = OnnxTeacher(weights), read_blueprint(config)
    else:
        network, blueprint = read_network(weights, config)
    if spec.changes_network:
        more = None if parts.unlabelled is None else parts.unlabelled.x
        device = select_device(builder.compression.device)
        lesson = FineTuning(parts.train, parts.val, network, builder.compression, more, SEED, device, on_epoch)
        network = compress_network(network, blueprint, spec, lesson)
    ranges = None
    if spec.quantization_aware:
        ranges, network = learned_ranges(network), remove_fake_quantization(network)
    error = export_onnx(network, parts.test.x, path, keep_names=spec.quantization_aware)
    fused = path.with_suffix(".fused.onnx")
    is_fused = fuse_attention(path, fused)
    if is_fused:
        error = max(error, measure_parity(network, parts.test.x, fused))
    made = BuiltCandidate(spec, path, num_parameters(network), error, ranges, count_macs(network, parts.test.x))
    return made._replace(
        network=network if builder.compression.extra_formats else None,
        fused=fused if is_fused else None,
    )
