"""compress: every candidate, exported and measured in the form in which it ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import Candidates, Latency, TrainedNetwork
from bloomery.models.compression.config import CandidateSpec, Compression, QuantizationMode, default_candidates
from bloomery.models.profiling.cpu_features import cpu_flags, has_amx
from bloomery.tasks.compress.candidate_builder import CandidateBuilder, CandidateSplits, build_candidates
from bloomery.tasks.compress.candidate_measurement import SEED, BuiltCandidate, measure_candidates
from bloomery.tasks.compress.candidate_search import search_candidates
from bloomery.tasks.compress.extra_formats import add_extra_formats
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs, resource_usage

if TYPE_CHECKING:
    from bloomery.models.training.data.batches import Examples


def _runs_are_kept(record: Candidates) -> bool:
    return all(mlflow_runs.run_exists(candidate.run_id) for candidate in record.candidates)


@stage(is_whole=_runs_are_kept)
def compress(out: Output, trained: TrainedNetwork, compression: Compression) -> Candidates:
    """Afterwards there is an ONNX file and a table of answers on the test part for each candidate.

    Candidates that are made smaller alike share one network, taught once by the one as trained. After private training
    none is, and 8 bits take their ranges from the validation part.

    Raises:
        EngineMissing: a file for LiteRT is wanted, and what converts it is not there.
        ParityBroken: a network answers otherwise in one of the forms than in PyTorch.
    """
    from bloomery.models.training.data.batches import read_examples
    from bloomery.models.training.determinism import set_deterministic

    dataset = trained.dataset
    is_private = trained.privacy is not None
    set_deterministic(seed=SEED, num_threads=1)
    parts = CandidateSplits(
        *(
            None if part is None else read_examples(settings().path(part.uri), dataset.key, dataset.layout)
            # Without noise the training rows may not be looked at again: of validation rows nothing is promised.
            for part in (dataset.val if is_private else dataset.train, dataset.val, dataset.test, dataset.unlabelled)
        )  # type: ignore[arg-type]  # the first three are there
    )
    usual = _usual(trained)
    specs = compression.candidates or usual
    if is_private:
        specs = tuple(
            spec for spec in specs if not spec.changes_network
        )  # what is smaller has learnt from training rows
    builder = CandidateBuilder(out, trained, parts, compression)
    with resource_usage.measure_usage(on_gpu=select_device(compression.device) == "cuda") as told:
        wanted = None if is_private else compression.search
        made = build_candidates(builder, specs) if wanted is None else search_candidates(builder, specs, wanted, usual)
        made = add_extra_formats(out, made, compression.extra_formats, parts.test.x)
        baseline = next(spec.name for spec in specs if spec.is_baseline)
        timed = _time_all(made, parts.test, baseline, compression.latency_rounds)
        candidates = measure_candidates(out, made, parts.test, trained, timed, baseline)
        spent = told()
    mlflow_runs.log_resource_usage(trained.run_id, spent, "compress_")
    return Candidates(
        candidates=candidates,
        baseline=baseline,
        resource_usage=spent,
        trained=trained,
        # Times differ from run to run; what the candidates are and answer does not.
        digest=digest_of_document([[one.name, one.sha256, one.score.value] for one in candidates]),
    )


def _time_all(made: list[BuiltCandidate], test: Examples, baseline: str, rounds: int) -> dict[str, tuple[Latency, ...]]:
    """Each one's latency for each of `TIMED_BATCH_SIZES`, in turns with all others, as they are served."""
    from bloomery.models.profiling.latency import TIMED_BATCH_SIZES, compare_latency, take_batch

    return compare_latency(
        {one.spec.name: one.path for one in made},
        [take_batch(test.x.numpy(), size) for size in TIMED_BATCH_SIZES],
        baseline=baseline,
        rounds=rounds,
        row_by_row={one.spec.name for one in made if one.is_row_by_row},
        seed=SEED,
    )


def _usual(trained: TrainedNetwork) -> tuple[CandidateSpec, ...]:
    """The candidates where the recipe names none, for this network on this processor."""
    from bloomery.models.networks.blueprint import read_blueprint

    config = read_blueprint(settings().path(trained.network_uri)).config
    return default_candidates(
        config.kind,
        _quantization_for(trained),
        weight_only=config.kind == "rnn" and config.cell != "lstm",
        amx=has_amx(cpu_flags()),
    )


def _quantization_for(trained: TrainedNetwork) -> QuantizationMode | None:
    """What the operators of an imported network suggest; of others, their kind says it."""
    import onnx

    from bloomery.models.onnx_import.graph import choose_quantization

    return None if trained.import_error is None else choose_quantization(onnx.load(settings().path(trained.uri)))
