"""Stage `compress`: builds every candidate and measures it in the form in which it ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import Candidates, EncodedSplit, Latency, TrainedNetwork
from bloomery.data_contracts.records.serving_device import GpuDevice
from bloomery.models.compression.config import CandidateSpec, Compression, QuantizationMode
from bloomery.models.compression.default_candidates import STATIC_KINDS, default_candidates
from bloomery.models.compression.inherited_loss import inherit_candidate_losses
from bloomery.models.compression.obstacles import find_compression_obstacle
from bloomery.models.networks.config import Fused, Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.profiling.cpu_features import cpu_flags, has_amx
from bloomery.tasks.compress.built_candidate import SEED, BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateBuilder, CandidateSplits, build_candidates
from bloomery.tasks.compress.candidate_measurement import measure_candidates
from bloomery.tasks.compress.candidate_search import search_candidates
from bloomery.tasks.compress.extra_formats import add_extra_formats
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs, resource_usage

if TYPE_CHECKING:
    from bloomery.models.training.data.batches import Examples


def _runs_exist(record: Candidates) -> bool:
    return all(mlflow_runs.run_exists(candidate.run_id) for candidate in record.candidates)


@stage(is_complete=_runs_exist)
def compress(out: Output, trained: TrainedNetwork, compression: Compression) -> Candidates:
    """Builds and measures each candidate; writes its ONNX file and its predictions for the test split.

    Candidates with the same compression share one network, fine-tuned once with the trained network as its teacher.
    After private training no network is compressed, and static quantization is calibrated on the validation split.

    Raises:
        EngineMissing: LiteRT is requested, and its converter is not installed; or ONNX Runtime cannot compute on the
            device of the recipe's `serve`.
        ParityBroken: the outputs of an exported network differ from PyTorch's.
    """
    from bloomery.models.training.determinism import set_deterministic

    is_private = trained.privacy is not None
    set_deterministic(seed=SEED, num_threads=1)
    splits = _read_splits(trained)
    defaults = inherit_candidate_losses(_default_specs(trained), compression.fine_tune)
    if compression.serving_device is not None:
        defaults = (*defaults, CandidateSpec(name="fp16", compute="fp16"))
    specs = _applicable_specs(trained, compression.candidates or defaults, compression.serving_device)
    if is_private:
        specs = tuple(spec for spec in specs if not spec.changes_network)  # compression learns from training rows
    builder = CandidateBuilder(out, trained, splits, compression)
    with resource_usage.measure_usage(use_gpu=select_device(compression.device) == "cuda") as read_usage:
        search = None if is_private or trained.trees_error is not None else compression.search
        if search is None:
            built = build_candidates(builder, specs)
        else:
            built = search_candidates(builder, specs, search, defaults)
        built = add_extra_formats(out, built, compression.extra_formats, splits.test.x)
        baseline = next(spec.name for spec in specs if spec.is_baseline)
        latencies = _measure_latencies(built, splits.test, baseline, compression.latency_rounds)
        candidates = measure_candidates(out, built, splits, trained, latencies, baseline)
        usage = read_usage()
    mlflow_runs.log_resource_usage(trained.run_id, usage, "compress_")
    return Candidates(
        candidates=candidates,
        baseline=baseline,
        resource_usage=usage,
        trained=trained,
        # Latencies differ from run to run; files and scores do not.
        digest=digest_of_document(
            [[candidate.name, candidate.sha256, candidate.score.value] for candidate in candidates]
        ),
    )


def _read_splits(trained: TrainedNetwork) -> CandidateSplits:
    """The encoded splits. After private training the validation split takes the place of the training split.

    Reading training rows again without noise would break the privacy promise; nothing is promised of validation rows.
    """
    from bloomery.models.training.data.batches import read_examples

    dataset = trained.dataset

    def read(split: EncodedSplit) -> Examples:
        return read_examples(settings().path(split.uri), dataset.key, dataset.layout)

    return CandidateSplits(
        train=read(dataset.train if trained.privacy is None else dataset.val),
        val=read(dataset.val),
        test=read(dataset.test),
        unlabelled=None if dataset.unlabelled is None else read(dataset.unlabelled),
    )


def _measure_latencies(
    built: list[BuiltCandidate], test: Examples, baseline: str, rounds: int
) -> dict[str, tuple[Latency, ...]]:
    """The latencies of each candidate at each of `TIMED_BATCH_SIZES`, measured in turns, as they are served."""
    from bloomery.models.profiling.latency import TIMED_BATCH_SIZES, ComparedFiles, compare_latency, take_batch

    files = ComparedFiles(
        {candidate.spec.name: candidate.path for candidate in built},
        baseline=baseline,
        row_by_row={candidate.spec.name for candidate in built if candidate.is_row_by_row},
        device=built[0].device,
    )
    batches = [take_batch(test.x.numpy(), size) for size in TIMED_BATCH_SIZES]
    return compare_latency(files, batches, rounds=rounds, seed=SEED)


def _default_specs(trained: TrainedNetwork) -> tuple[CandidateSpec, ...]:
    """The candidates of a recipe that names none, for this network on this processor."""
    from bloomery.models.networks.blueprint import read_blueprint

    config = read_blueprint(settings().path(trained.network_uri)).config
    return default_candidates(
        config.kind,
        _choose_quantization(trained) or _choose_for_branches(config),
        weight_only=config.kind == "rnn" and config.cell != "lstm",
        amx=has_amx(cpu_flags()),
        pretrained=config if _has_checkpoint(config) else None,
    )


def _has_checkpoint(config: Model) -> TypeGuard[Pretrained | Fused]:
    """Whether the network or one of its branches is that of a checkpoint."""
    if isinstance(config, Fused) and config.branches is not None:
        return any(isinstance(branch, Pretrained) for branch in config.branches.values())
    return isinstance(config, Pretrained)


def _applicable_specs(
    trained: TrainedNetwork, specs: tuple[CandidateSpec, ...], device: GpuDevice | None = None
) -> tuple[CandidateSpec, ...]:
    """The candidates that this kind of network can become, which `model: auto` may have chosen, served by `device`."""
    from bloomery.models.networks.blueprint import read_blueprint

    kind = read_blueprint(settings().path(trained.network_uri)).config.kind
    obstacles = {spec.name: find_compression_obstacle(kind, spec) for spec in specs}
    for spec in specs:
        if spec.compute is not None and device is None:
            obstacles[spec.name] = (
                f"a processor computes {spec.compute} slower than float32: set `serve: {{device: cuda}}`"
            )
    reasons = {name: obstacle for name, obstacle in obstacles.items() if obstacle is not None}
    if reasons:
        emit(Progress("compress", 0, len(specs), f"without {', '.join(reasons)}: {next(iter(reasons.values()))}"))
    return tuple(spec for spec in specs if spec.name not in reasons)


def _choose_for_branches(config: Model) -> QuantizationMode | None:
    """Static ranges if every branch is of a kind that they suit; None of other networks."""
    if not isinstance(config, Fused) or config.branches is None or config.join == "attention":
        return None
    return "static" if all(branch.kind in STATIC_KINDS for branch in config.branches.values()) else None


def _choose_quantization(trained: TrainedNetwork) -> QuantizationMode | None:
    """The mode that the operators of an imported network suggest; None of others, whose kind decides it."""
    import onnx

    from bloomery.models.onnx_import.graph import choose_quantization

    return None if trained.import_error is None else choose_quantization(onnx.load(settings().path(trained.uri)))
