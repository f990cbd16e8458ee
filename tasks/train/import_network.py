"""Imports a trained ONNX network: adapts its file, evaluates it on the validation split, and logs the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import Imported
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit, run_logging
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    from bloomery.models.onnx_import.importer import SessionModule

_NUM_COMPARED_ROWS = 32  # on which the outputs of the adapted file are compared with those of the original


class AdaptedNetwork(NamedTuple):
    """The adapted network. `error` is the largest difference of an output from the original's."""

    network: SessionModule
    digest: str
    num_parameters: int
    error: float
    changes: list[str]


def adapt_network(
    model: Imported, dataset: Dataset, splits: fit.TrainingSplits, path: Path, blueprint_path: Path
) -> AdaptedNetwork:
    """Writes the network with the inputs and outputs that Bloomery expects to `path`, and its blueprint.

    Raises:
        OutputCorrupt: the file has changed since the recipe was read.
        RecipeInvalid: the network does not fit these rows.
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
    x = fit.sample_validation_rows(dataset, splits.val).x[:_NUM_COMPARED_ROWS].numpy()
    imported = import_network(source, blueprint.layout, blueprint.task, blueprint.num_outputs, x, model.channels)
    onnx.save(imported.model, path)
    blueprint_path.write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    network = SessionModule(create_session(path)).eval()
    return AdaptedNetwork(
        network, digest_of_file(path), count_weights(imported.model), imported.error, imported.changes
    )


def log_adapted_network(run: TrainingRun, out: Output, adapted: AdaptedNetwork) -> None:
    """Logs the same as for a trained network, except for what only training measures."""
    sample = fit.sample_validation_rows(run.dataset, run.splits.val)
    metrics = {
        "num_parameters": adapted.num_parameters,
        "import_error": adapted.error,
        "rows_per_second": run_logging.measure_rows_per_second(adapted.network, sample),
    }
    mlflow_runs.log_metrics(run.run_id, metrics)
    mlflow_runs.client().set_tag(run.run_id, "imported.changes", "; ".join(adapted.changes) or "none")
    run_logging.log_onnx_network(run, out, adapted.network, sample)
