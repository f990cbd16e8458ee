"""compress: every candidate, exported and measured in the form in which it ships."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_contracts.digests import digest_of_document
from data_contracts.records import Latency, Options, Trained
from models.compression.config import CandidateSpec, Compression, Quantization, candidates_for
from tasks import tracking
from tasks.candidates import TIMED_BATCHES, Made, batch_of, measure_all
from tasks.events import Progress, emit
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    from models.training.batches import Examples


class _Parts(NamedTuple):
    train: Examples
    val: Examples
    test: Examples


def _runs_are_kept(record: Options) -> bool:
    return all(tracking.run_exists(candidate.run_id) for candidate in record.candidates)


@stage(is_whole=_runs_are_kept)
def compress(out: Output, trained: Trained, compression: Compression) -> Options:
    """Afterwards there is an ONNX file and a table of answers on the test part for each candidate.

    Candidates that are pruned alike share one pruned network, fine-tuned once. After private training none is
    pruned, and 8 bits take their ranges from the validation part.
    """
    from models.networks.blueprint import read_blueprint
    from models.randomness import fix_randomness
    from models.training.batches import read_examples

    dataset = trained.dataset
    is_private = trained.privacy is not None
    fix_randomness(seed=0, num_threads=1)
    parts = _Parts(
        *(
            read_examples(settings().path(part.uri), dataset.key, dataset.layout)
            # Without noise the training rows may not be looked at again: of validation rows nothing is promised.
            for part in (dataset.val if is_private else dataset.train, dataset.val, dataset.test)
        )
    )
    blueprint = read_blueprint(settings().path(trained.network_uri))
    specs = compression.candidates or candidates_for(blueprint.config.kind, _quantization_for(trained))
    if is_private:
        specs = tuple(spec for spec in specs if spec.prune is None)  # what is pruned is fine-tuned on training rows
    made = _make_all(out, trained, parts, specs, compression)
    baseline = next(spec.name for spec in specs if spec.prune is None and spec.quantize is None)
    timed = _time_all(made, parts.test, baseline, compression.latency_rounds)
    candidates = measure_all(out, made, parts.test, trained, timed, baseline)
    return Options(
        candidates=candidates,
        baseline=baseline,
        trained=trained,
        # Times differ from run to run; what the candidates are and answer does not.
        digest=digest_of_document([[one.name, one.sha256, one.score.value] for one in candidates]),
    )


def _time_all(made: list[Made], test: Examples, baseline: str, rounds: int) -> dict[str, tuple[Latency, ...]]:
    """Each one's latency for each of `TIMED_BATCHES`, in turns with all others, as they are served."""
    from models.compression import latency

    files = {one.spec.name: one.path for one in made}
    row_by_row = {one.spec.name for one in made if one.is_row_by_row}
    timed = [
        latency.compare(files, batch_of(test, size), baseline=baseline, rounds=rounds, row_by_row=row_by_row)
        for size in TIMED_BATCHES
    ]
    return {name: tuple(of_batch[name] for of_batch in timed) for name in files}


def _quantization_for(trained: Trained) -> Quantization | None:
    """What the operators of an imported network suggest; of others, their kind says it."""
    import onnx

    from models.imported.reading import quantization_for

    return None if trained.import_error is None else quantization_for(onnx.load(settings().path(trained.uri)))


def _make_all(
    out: Output,
    trained: Trained,
    parts: _Parts,
    specs: tuple[CandidateSpec, ...],
    compression: Compression,
) -> list[Made]:
    """An ONNX file for each candidate: pruned and fine-tuned first, then exported, then quantized."""
    from models.compression.quantization import quantize

    floats: dict[float | None, Made] = {}
    made = []
    for position, spec in enumerate(specs):
        emit(Progress("compress", position, len(specs), spec.name))
        if spec.prune not in floats:
            floats[spec.prune] = _in_float(
                spec, trained, parts, compression, out.path(f"float-{spec.prune or 0:g}.onnx")
            )
        parent = floats[spec.prune]
        path = out.path(f"{spec.name}.onnx")
        if spec.quantize is None:
            path.write_bytes(parent.path.read_bytes())
        else:
            # Rows are sorted by key, so a step through them is an even sample.
            step = max(len(parts.train.x) // compression.calibration_rows, 1)
            calibration = parts.train.x[::step][: compression.calibration_rows]
            quantize(parent.path, path, calibration.numpy(), how=spec.quantize)
        made.append(parent._replace(spec=spec, path=path))
    for parent in floats.values():
        parent.path.unlink()
    return made


def _in_float(spec: CandidateSpec, trained: Trained, parts: _Parts, compression: Compression, path: Path) -> Made:
    """The candidate before it is quantized, at `path`. An imported network is a file already, which is not pruned."""
    from models.compression.pruning import prune
    from models.export import export
    from models.networks.blueprint import num_parameters, read_network
    from models.training.loop import train

    if trained.import_error is not None:
        assert spec.prune is None, spec
        shutil.copyfile(settings().path(trained.uri), path)
        return Made(spec, path, trained.num_parameters, trained.import_error)
    network, blueprint = read_network(settings().path(trained.uri), settings().path(trained.network_uri))
    if spec.prune is not None:
        network, _ = prune(network, blueprint, spec.prune)
        train(network, parts.train, parts.val, compression.fine_tune, seed=0)
    error = export(network, parts.test.x, path)
    return Made(spec, path, num_parameters(network), error)
