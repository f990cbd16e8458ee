"""Logs a version as an MLflow model: the twin of its bento, which reads rows in the contract's columns."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.columns.typed_elements import TypedElement
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Bento
from bloomery.data_contracts.serving.predictions import flatten_classes
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE
from bloomery.models.features.encoder import Encoder, read_encoder
from bloomery.models.onnx_storage.decoder import decompress, is_compressed
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.bundled_code import LOADER, REGISTRY_MODEL
from bloomery.tasks.bentos.requirements import pin_requirements
from bloomery.tasks.orchestration.code_version import packages_of, reach
from bloomery.tasks.registry.model_registry import bento_of, list_versions
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import Model, ModelSignature

LOADER_NAME = "bloomery_model_loader"
_VERSION, _ARTIFACTS, _NETWORK = "version", "artifacts", "network.onnx"
_INCOMPLETE = "incomplete"  # tag of a logged model: why it lacks files
_TYPES = {"integer": "long", "number": "double", "boolean": "boolean", "date": "datetime", "timestamp": "datetime"}


def log_model(bento: Bento) -> str:
    """Logs the bento as an MLflow model of its candidate's run, once; returns its uri.

    A model that was interrupted, or the files of which are gone, gets its files again, also if the bento was packaged
    again by another run. The run keeps its status.
    """
    client = mlflow_runs.client()
    run = client.get_run(bento.choice.candidate.run_id)
    versions = list_versions(bento.tag.split(":")[0])
    sources = [version.source for version in versions if bento_of(version) == bento.tag]
    model = next(filter(None, map(_read_model, sources)), None) or find_logged_model(run, bento.tag)
    is_new = model is None
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id,
            name="model",
            source_run_id=run.info.run_id,
            params=run.data.params,
            tags={_INCOMPLETE: "its files are being written"},
        )
    uri = f"models:/{model.model_id}"
    if run.data.tags.get(_model_tag(bento.tag)) != uri:
        client.set_tag(run.info.run_id, _model_tag(bento.tag), uri)
    if _is_complete(model):
        return uri
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = model_options(bento_folder(bento.tag) / "src", Path(scratch))
        if is_new:
            _log_files(model, options)
        else:
            mark_incomplete(model.model_id, "its files are being written")
            _restore_files(model, options, Path(scratch) / "model")
    client.delete_logged_model_tag(model.model_id, _INCOMPLETE)
    return uri


def find_logged_model(run: Run, bento_tag: str) -> LoggedModel | None:
    """The MLflow model of a bento, which the candidate's run names; None if there is none, or it was deleted."""
    return _read_model(run.data.tags.get(_model_tag(bento_tag), ""))


def _read_model(uri: str) -> LoggedModel | None:
    """The model with the address `models:/ID`; None if it was deleted, or the address is another one."""
    from mlflow.exceptions import MlflowException

    if not uri.startswith("models:/"):
        return None
    try:
        return mlflow_runs.client().get_logged_model(uri.removeprefix("models:/"))
    except MlflowException:
        return None


def mark_incomplete(model_id: str, reason: str) -> None:
    """Marks a logged model, so that `log_model` writes its files again."""
    mlflow_runs.client().set_logged_model_tags(model_id, {_INCOMPLETE: reason})


def _model_tag(bento_tag: str) -> str:
    return f"model.{bento_tag}"  # the same candidate may be packaged under several names


def _is_complete(model: LoggedModel) -> bool:
    """Whether all files of a model were written, and are still there."""
    from mlflow.exceptions import MlflowException

    if _INCOMPLETE in model.tags or model.status != "READY":
        return False
    try:
        files = mlflow_runs.client().list_logged_model_artifacts(model.model_id)
    except (MlflowException, OSError):
        return False
    return any(file.path == "MLmodel" for file in files)


def _log_files(model: LoggedModel, options: dict[str, Any]) -> None:
    """Writes the files of a new model, and shows it with its metrics on the page of its run."""
    import mlflow

    mlflow.models.Model.log(
        artifact_path=None, run_id=model.source_run_id, model_id=model.model_id, flavor=RegistryFlavor, **options
    )


def _restore_files(model: LoggedModel, options: dict[str, Any], folder: Path) -> None:
    """Writes the files of an existing model again, in the empty or missing `folder` and then in their place."""
    import mlflow

    mlflow_model = mlflow.models.Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
    )
    RegistryFlavor.save_model(str(folder), mlflow_model, **options)
    client = mlflow_runs.client()
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")


def model_options(source: Path, scratch: Path) -> dict[str, Any]:
    """The options of `RegistryFlavor.save_model`, for the packaged files in `source`; files are prepared in `scratch`.

    `source` holds the artifacts and the code, as a bento's folder `src`.
    """
    import pandas as pd

    artifacts = source / _ARTIFACTS
    encoder = read_encoder(artifacts / "encoder.json")
    contract = Contract.model_validate_json((artifacts / "contract.json").read_text(encoding="utf-8"))
    examples = json.loads((artifacts / "examples.json").read_text(encoding="utf-8"))
    columns = [column for column in contract.columns if column.name in encoder.columns]
    shutil.copytree(source, scratch / _VERSION, ignore=shutil.ignore_patterns("__pycache__", "bentofile.yaml"))
    loader = scratch / f"{LOADER_NAME}.py"
    shutil.copyfile(reach(LOADER)[LOADER], loader)
    return {
        "data_path": str(scratch / _VERSION),
        "code_paths": [str(loader)],
        "signature": _signature(columns, _example_prediction(examples[0]["prediction"], encoder)),
        "input_example": pd.DataFrame([example["row"] for example in examples]),
        "pip_requirements": pin_requirements(packages_of(reach(REGISTRY_MODEL).values())),
        "validate_serving_input": False,  # the release is checked more thoroughly
    }


class RegistryFlavor:
    """A flavor of MLflow's models: the python function of a version, and its network in ONNX."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
        """Writes the model to the folder `path`. `options` are those of `model_options`."""
        import mlflow.pyfunc

        del options["validate_serving_input"]
        mlflow_model.signature = options.pop("signature")  # given as an option, it would be enforced on the example
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, loader_module=LOADER_NAME, **options)
        version = Path("data") / _VERSION
        network = _plain_network(Path(path) / version)
        mlflow_model.add_flavor(
            "onnx",
            onnx_version=metadata.version("onnx"),
            data=str(network.relative_to(path)),
            providers=["CPUExecutionProvider"],
            onnx_session_options=None,
            code=None,
        )
        mlflow_model.save(str(Path(path) / "MLmodel"))


def _plain_network(version: Path) -> Path:
    """The version's network as an ONNX file, which is decompressed where the bento has a smaller form of it."""
    manifest = json.loads((version / _ARTIFACTS / MANIFEST_FILE).read_text(encoding="utf-8"))
    stored = version / _ARTIFACTS / manifest["model"]
    content = stored.read_bytes()
    if not is_compressed(content[:4]):
        return stored
    (version / _NETWORK).write_bytes(decompress(content))
    return version / _NETWORK


def _example_prediction(prediction: Mapping[str, Any], encoder: Encoder) -> Mapping[str, Any]:
    """The prediction, with a label where it has none, so that the type of labels can be seen; also tags and entities.

    Several labels with classes have a column each.
    """
    if encoder.class_outputs:
        return flatten_classes(dict(prediction))
    if "tags" in prediction:
        entity = {"text": "", "type": "", "start": 0, "end": 0}
        return {"tags": [encoder.classes[0]], "probabilities": [0.5], "entities": [entity], "unread_words": 0}
    return {**prediction, "labels": [encoder.classes[0]]} if "labels" in prediction else prediction


def _signature(columns: Sequence[Column], prediction: Mapping[str, Any]) -> ModelSignature:
    """The columns in the contract's types, and the predictions as in the example.

    It is marked as that of a model that checks its rows itself. MLflow's own check would refuse rows that the contract
    allows, such as whole numbers in a column of numbers, drop unknown columns, and have errors of its own.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec(_input_type(column), column.name, required=column.is_required) for column in columns]),
        Schema([ColSpec(_output_type(value), name) for name, value in prediction.items()]),
    )
    signature._is_signature_from_type_hint = True
    return signature


def _input_type(item: TypedElement) -> Any:
    from mlflow.types.schema import Array, DataType

    items = getattr(item, "items", None)
    if items is not None:
        return Array(_input_type(items))
    is_written = item.logical_type in ("date", "timestamp") and item.date_format is not None
    return DataType["string" if is_written else _TYPES.get(item.logical_type, "string")]


def _output_type(value: Any) -> Any:
    """The type of a value in the JSON of a prediction. An integer may be a float in another row, except for a label."""
    from mlflow.types.schema import AnyType, Array, DataType, Map, Object, Property

    match value:
        case bool():
            return DataType.boolean
        case int():
            return DataType.long
        case float():
            return DataType.double
        case str():
            return DataType.string
        case Mapping() if len({type(member) for member in value.values()}) > 1:
            return Object([Property(name, _output_type(member)) for name, member in value.items()])
        case Mapping():
            return Map(_output_type(next(iter(value.values()), 0.0)))
        case list():
            return Array(_output_type(value[0])) if value else Array(AnyType())
    return AnyType()
