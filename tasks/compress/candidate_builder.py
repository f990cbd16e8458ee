"""Builds the ONNX files of candidates: compresses the trained network, exports it, quantizes it, packs it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import TrainedNetwork
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.profiling.cpu_features import cpu_flags
from bloomery.tasks.compress.built_candidate import SEED, BuiltCandidate
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
    from bloomery.models.training.optimization.score_measure import ScoreMeasure
    from bloomery.models.training.out_of_scope import ScopeClass


_SUFFIXES = {"entropy_coded": "coded", "zstd": "zst"}
_NUM_SENSITIVITY_ROWS = 2048  # validation rows that decide which layers stay in float


class CandidateSplits(NamedTuple):
    """The encoded rows that candidates learn from and are measured on."""

    train: Examples
    val: Examples
    test: Examples
    unlabelled: Examples | None = None


@dataclass(frozen=True)
class CandidateBuilder:
    """The inputs of candidates, and the float networks built so far, by the digest of their specification.

    Candidates that differ only in quantization or storage share one float network.
    """

    out: Output
    trained: TrainedNetwork
    splits: CandidateSplits
    compression: Compression
    float_candidates: dict[str, BuiltCandidate] = field(default_factory=dict)

    @cached_property
    def measure(self) -> ScoreMeasure | None:
        """The measure of the recipe's score; None of the default score."""
        from bloomery.models.features.encoder import read_encoder
        from bloomery.models.training.optimization.score_measure import build_measure

        dataset = self.trained.dataset
        units = read_encoder(settings().path(dataset.encoder_uri)).units
        return build_measure(self.trained.stated_score, dataset.task, units, dataset.classes)

    @cached_property
    def tokenizers(self) -> dict[str, str]:
        """The tokenizer of each part of texts, in the JSON format of the library `tokenizers`."""
        from bloomery.models.features.encoder import read_encoder

        encoder = read_encoder(settings().path(self.trained.dataset.encoder_uri))
        states = {name: encoder.fitted[numbers[0]] for name, numbers in encoder.features.part_inputs.items()}
        return {name: state.tokenizer for name, state in states.items() if state.kind == "text"}


def build_candidates(builder: CandidateBuilder, specs: tuple[CandidateSpec, ...]) -> list[BuiltCandidate]:
    """Builds an ONNX file for each candidate."""
    built = []
    for position, spec in enumerate(specs):
        emit(Progress("compress", position, len(specs), spec.name))
        built.append(build_candidate(builder, spec))
    delete_float_files(builder)
    return built


def build_candidate(
    builder: CandidateBuilder, spec: CandidateSpec, on_epoch: Callable[[EpochResult], None] = lambda epoch: None
) -> BuiltCandidate:
    """Builds the candidate's ONNX file: compressed first, then exported, quantized and packed."""
    from bloomery.models.compression.quantization.half_precision import convert_to_half
    from bloomery.models.compression.quantization.weight_only import quantize_weights
    from bloomery.models.compression.vector_output import append_vector_output
    from bloomery.models.onnx_storage.encoder import encode
    from bloomery.models.onnx_storage.sizes import measure_coded_bytes
    from bloomery.models.onnx_storage.zstd_packing import minify, pack_for_zstd

    spec = spec.resolve_reduce_range(cpu_flags())
    digest = digest_of_document(spec.before_quantization.model_dump())
    if digest not in builder.float_candidates:
        path = builder.out.path(f"float-{len(builder.float_candidates)}.onnx")
        builder.float_candidates[digest] = _build_float(builder, spec, path, on_epoch)
    parent, path = builder.float_candidates[digest], builder.out.path(f"{spec.name}.onnx")
    if spec.storage is not None:
        path = builder.out.path(f"{spec.name}.onnx.{_SUFFIXES[spec.storage]}")
    built = parent._replace(spec=spec, path=path, device=builder.compression.serving_device)
    # Static ranges and clustered weights belong to single layers; the fused operator has three.
    is_per_layer = spec.quantize == "static" or spec.num_clusters is not None
    source = parent.path if is_per_layer else parent.fused or parent.path
    if spec.quantize is not None:
        built = built._replace(calibration=_quantize(builder, spec, parent._replace(path=source), path))
    elif spec.weight_only is not None:
        quantize_weights(source, path, spec.weight_only)
    elif spec.compute is not None:
        convert_to_half(source, path)
    else:
        shutil.copyfile(source, path)
    if builder.trained.dataset.task == "embedding":
        append_vector_output(path, spec.dimensions, as_int8=spec.vectors == "int8")
    if spec.storage is not None:
        model = path.read_bytes()
        if spec.storage == "zstd":
            built = built._replace(coded_bytes=measure_coded_bytes(path))
        path.write_bytes(pack_for_zstd(model) if spec.storage == "zstd" else encode(minify(model)))
    return built


def _quantize(builder: CandidateBuilder, spec: CandidateSpec, parent: BuiltCandidate, path: Path) -> str | None:
    """Quantizes `parent` to 8 bits, except for the layers that the candidate keeps in float, and writes it to `path`.

    Returns:
        The sha256 of the encoded rows that calibrated static activation ranges; None with dynamic ranges.
    """
    from bloomery.models.compression.quantization.post_training import QuantizationOptions, find_first_layer, quantize
    from bloomery.models.compression.quantization.sensitivity import ValidationRows, find_float_layers
    from bloomery.models.training.data.batches import even_sample
    from bloomery.models.training.optimization.loss import is_multilabel, is_multioutput, is_multitask

    assert spec.quantize is not None
    num_rows = builder.compression.calibration_rows
    calibration = even_sample(builder.splits.train.x, num_rows)[:num_rows].numpy()
    options = QuantizationOptions(
        mode=spec.quantize,
        calibration_method=spec.calibration_method,
        reduce_range=bool(spec.reduce_range),
        amx=spec.amx,
        ranges=parent.ranges,
    )
    float_layers: tuple[str, ...] = ()
    if spec.float_layers == "first":
        float_layers = find_first_layer(parent.path, spec.quantize)
    elif spec.float_layers is not None:
        val = builder.splits.val
        x, y = (even_sample(tensor, _NUM_SENSITIVITY_ROWS) for tensor in (val.x, val.y))
        validation = ValidationRows(x.numpy(), _loss_on(y), is_multilabel(y), is_multioutput(y) or is_multitask(y))
        float_layers = find_float_layers(parent.path, calibration, validation, spec.float_layers, options)
    quantize(parent.path, path, calibration, options._replace(keep_float=float_layers))
    return hashlib.sha256(calibration.tobytes()).hexdigest() if spec.quantize == "static" else None


def _loss_on(y: torch.Tensor) -> Callable[[np.ndarray], float]:
    """The loss of outputs (B, K) for rows with the labels `y`: the error rate, or the RMSE in standard units."""
    from bloomery.models.training.optimization.loss import is_multioutput, is_regression, score_outputs

    def loss(outputs_BK: np.ndarray) -> float:
        score = score_outputs(outputs_BK, y)
        return score if is_regression(y) or is_multioutput(y) else 1 - score

    return loss


def delete_float_files(builder: CandidateBuilder) -> None:
    """Deletes the float networks that candidates were built from, so that only candidates remain."""
    for parent in builder.float_candidates.values():
        parent.path.unlink()
        if parent.fused is not None:
            parent.fused.unlink()
    builder.float_candidates.clear()


def _build_float(
    builder: CandidateBuilder, spec: CandidateSpec, path: Path, on_epoch: Callable[[EpochResult], None]
) -> BuiltCandidate:
    """Writes the candidate before quantization to `path`. An ONNX network without compression is copied."""
    from bloomery.models.compression.compressor import FineTuning, compress_network
    from bloomery.models.compression.fused_attention import fuse_attention
    from bloomery.models.compression.quantization.quantization_aware import learned_ranges, remove_fake_quantization
    from bloomery.models.export.onnx_exporter import export_onnx, measure_parity
    from bloomery.models.networks.blueprint import num_parameters, read_blueprint, read_network
    from bloomery.models.onnx_import.teacher import OnnxTeacher
    from bloomery.models.profiling.macs import count_macs

    trained, splits = builder.trained, builder.splits
    weights, config = settings().path(trained.uri), settings().path(trained.network_uri)
    if trained.file_error is not None and not spec.changes_network:
        shutil.copyfile(weights, path)
        return BuiltCandidate(spec, path, trained.num_parameters, trained.file_error)
    if trained.trees_error is not None and spec.student is None:
        return _prune_trees(builder, spec, path)
    network: nn.Module
    if trained.file_error is not None:
        network, blueprint = OnnxTeacher(weights), read_blueprint(config)
    else:
        network, blueprint = read_network(weights, config)
    shifts = [] if trained.scope_shift is None else [trained.scope_shift.value]
    if spec.changes_network:
        unlabelled = None if splits.unlabelled is None else splits.unlabelled.x
        device = select_device(builder.compression.device)
        fine_tuning = FineTuning(
            splits.train,
            splits.val,
            network,
            builder.compression,
            unlabelled,
            SEED,
            device,
            on_epoch,
            builder.measure,
            builder.tokenizers if spec.trim_vocabulary is not None else {},
            _remove_scope_shift(trained, network),
            shifts.append,
        )
        network = compress_network(network, blueprint, spec, fine_tuning)
    ranges = None
    if spec.quantization_aware:
        ranges, network = learned_ranges(network), remove_fake_quantization(network)
    error = export_onnx(network, splits.test.x, path, keep_names=spec.quantization_aware)
    fused = path.with_suffix(".fused.onnx")
    is_fused = fuse_attention(path, fused)
    if is_fused:
        error = max(error, measure_parity(network, splits.test.x, fused))
    built = BuiltCandidate(spec, path, num_parameters(network), error, ranges, count_macs(network, splits.test.x))
    if spec.trim_vocabulary is not None:
        from bloomery.models.compression.vocabulary import measure_removed_tokens

        removed_tokens = measure_removed_tokens(network, splits.test.x)
        built = built._replace(removed_tokens=removed_tokens)
        emit(
            Progress("compress", 0, 1, f"{spec.name}: {removed_tokens:.2%} of the test rows' tokens have no embedding")
        )
    return built._replace(
        network=network if builder.compression.extra_formats else None,
        scope_shift=shifts[-1] if shifts else None,
        fused=fused if is_fused else None,
    )


def _remove_scope_shift(trained: TrainedNetwork, network: nn.Module) -> ScopeClass | None:
    """Removes the shift for the class out of scope from the trained network, and returns that class.

    The candidate learns from unshifted logits, and its own shift is chosen after its last training.
    """
    from bloomery.models.training.out_of_scope import ScopeClass, shift_class

    shift = trained.scope_shift
    if shift is None:
        return None
    label = trained.dataset.classes.index(shift.label)
    shift_class(network, label, -shift.value)
    return ScopeClass(label, shift.max_drop)


def _prune_trees(builder: CandidateBuilder, spec: CandidateSpec, path: Path) -> BuiltCandidate:
    """Writes the file of boosted trees, or of an ensemble with them, without a share of its trees and members."""
    import onnx
    import torch

    from bloomery.models.tree_ensembles.pruning import count_numbers, prune_ensemble

    trained, splits = builder.trained, builder.splits
    assert spec.prune is not None
    assert spec.prune.ratio is not None
    assert trained.trees_error is not None
    rows = [split.x for split in (splits.train, splits.unlabelled) if split is not None]
    pruned = prune_ensemble(onnx.load(settings().path(trained.uri)), spec.prune.ratio, torch.cat(rows).numpy())
    onnx.save(pruned, path)
    return BuiltCandidate(spec, path, count_numbers(pruned), trained.trees_error)
