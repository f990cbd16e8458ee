"""compress: every candidate, exported and measured in the form in which it ships."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_contracts.digests import digest_of_document
from data_contracts.records import Options, Trained
from models.compression.config import CandidateSpec, Compression, Quantization, candidates_for
from tasks import tracking
from tasks.candidates import Made, measure_all
from tasks.events import Progress, emit
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    from torch import nn

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

    Candidates that are made smaller alike share one network, taught once by the one as trained. After private training
    none is, and 8 bits take their ranges from the validation part.
    """
    from models.compression import latency
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
        specs = tuple(spec for spec in specs if not spec.is_smaller)  # what is smaller has learnt from training rows
    made = _make_all(out, trained, parts, specs, compression)
    baseline = next(spec.name for spec in specs if spec.is_as_trained)
    timed = latency.compare(
        {one.spec.name: one.path for one in made},
        parts.test.x[:1].numpy(),
        baseline=baseline,
        rounds=compression.latency_rounds,
    )
    candidates = measure_all(out, made, parts.test, trained, timed, baseline)
    return Options(
        candidates=candidates,
        trained=trained,
        # Times differ from run to run; what the candidates are and answer does not.
        digest=digest_of_document([[one.name, one.sha256, one.score.value] for one in candidates]),
    )


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
    """An ONNX file for each candidate: made smaller first, then exported, then quantized."""
    from models.compression.quantization import quantize

    floats: dict[str, Made] = {}
    made = []
    for position, spec in enumerate(specs):
        emit(Progress("compress", position, len(specs), spec.name))
        alike = digest_of_document(spec.model_copy(update={"name": "", "quantize": None}).model_dump())
        if alike not in floats:
            path = out.path(f"float-{len(floats)}.onnx")
            floats[alike] = _in_float(spec, trained, parts, compression, path)
        parent = floats[alike]
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
    """The candidate before it is quantized, at `path`. An imported network, a file already, is taken as it is."""
    from models.compression.smaller import Lesson, made_smaller
    from models.export import export
    from models.imported.teacher import Teacher
    from models.networks.blueprint import num_parameters, read_blueprint, read_network

    weights, config = settings().path(trained.uri), settings().path(trained.network_uri)
    if trained.import_error is not None and not spec.is_smaller:
        shutil.copyfile(weights, path)
        return Made(spec, path, trained.num_parameters, trained.import_error)
    network: nn.Module
    if trained.import_error is not None:
        network, blueprint = Teacher(weights), read_blueprint(config)
    else:
        network, blueprint = read_network(weights, config)
    if spec.is_smaller:
        network = made_smaller(network, blueprint, spec, Lesson(parts.train, parts.val, network, compression))
    error = export(network, parts.test.x, path)
    return Made(spec, path, num_parameters(network), error)
