"""A network that comes trained: its file adapted, judged on the validation part, and all told in the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import Imported
from bloomery.models.training.config import Training
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit

if TYPE_CHECKING:
    from bloomery.models.features.encoder import Encoder
    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.training.data.batches import Examples

_ROWS = 32  # on which the adapted file is compared with the file as it came


class AdaptedNetwork(NamedTuple):
    """The file as it was written. `error` is how far it answers from the file as it came."""

    network: SessionModule
    digest: str
    num_parameters: int
    error: float
    changes: list[str]


def adapt_network(
    model: Imported, dataset: Dataset, parts: fit.TrainingSplits, path: Path, blueprint_path: Path
) -> AdaptedNetwork:
    """Write the network as a file that answers as our own do, and its blueprint beside.

    Raises:
        OutputCorrupt: the file is not the one that the recipe was read with.
        RecipeInvalid: it is no network for these rows.
    """
    import onnx

    from bloomery.models.inference.runtime import create_session
    from bloomery.models.onnx_import.graph import count_weights
    from bloomery.models.onnx_import.importer import SessionModule, import_network

    source = Path(model.path)
    if digest_of_file(source) != model.sha256:
        raise OutputCorrupt(
            f"{source.name} has changed since the recipe was read",
            required=f"the file with sha256 {model.sha256}",
            where=str(source),
            remedy="run the recipe again",
        )
    blueprint = fit.make_blueprint(dataset, model.model_copy(update={"path": source.name}))
    x = fit.sample_validation_rows(dataset, parts.val).x[:_ROWS].numpy()
    made = import_network(source, blueprint.layout, blueprint.task, blueprint.num_outputs, x, model.channels)
    onnx.save(made.model, path)
    blueprint_path.write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    network = SessionModule(create_session(path)).eval()
    return AdaptedNetwork(network, digest_of_file(path), count_weights(made.model), made.error, made.changes)


def log_adapted_network(
    run_id: str,
    out: Output,
    path: Path,
    adapted: AdaptedNetwork,
    parts: fit.TrainingSplits,
    dataset: Dataset,
    encoder: Encoder,
    training: Training,
) -> None:
    """Afterwards the run has what it has of a network that was trained here, as far as that can be known."""
    from bloomery.tasks.evaluation.slices import read_slice_values
    from bloomery.tasks.train.explanations import log_explanations
    from bloomery.tasks.train.validation_report import log_validation_report

    shown = fit.sample_validation_rows(dataset, parts.val)
    figures = {"num_parameters": adapted.num_parameters, "import_error": adapted.error}
    mlflow_runs.log_metrics(run_id, figures | {"rows_per_second": _pace(adapted.network, shown)})
    client = mlflow_runs.client()
    client.set_tag(run_id, "imported.changes", "; ".join(adapted.changes) or "none")
    client.set_tag(run_id, "reported_rows", f"{shown.num_rows} of {parts.val.num_rows}, validation part")
    client.log_artifact(run_id, str(path), "network")
    folder = out.path("report")
    folder.mkdir()
    log_validation_report(run_id, folder, adapted.network, shown, dataset, encoder, training.slices)
    if training.explain is not None:
        log_explanations(
            run_id,
            out.path("explanations"),
            adapted.network.forward,  # a function, which has no gradients
            dataset.layout,
            encoder,
            shown,
            training.explain,
            raw=lambda keys: read_slice_values(dataset, keys, encoder.columns),
            seed=training.seed,
        )


def _pace(network: SessionModule, shown: Examples) -> float:
    """Rows answered a second."""
    start = time.perf_counter()
    network(shown.x)
    return shown.num_rows / (time.perf_counter() - start)
