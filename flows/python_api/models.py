"""`bloomery.load`: a registered version that predicts in this process, with what is known about it."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import BloomeryError, ContractBroken, DataUnfit, OutputCorrupt
from bloomery.data_contracts.records.records import Choice
from bloomery.data_contracts.records.score_format import format_score
from bloomery.flows.python_api.displays import Card, ConfusionMatrix, ParetoFront, html_table, missing_file
from bloomery.flows.python_api.frames import to_same_kind
from bloomery.flows.python_api.local_versions import load_local_version
from bloomery.flows.python_api.state_folder import follow_state_folder, require_state_folder_of


def load(reference: str | Path) -> Model:
    """The registered version that `NAME`, `NAME@ALIAS` or `NAME:VERSION` refers to; `NAME` alone means its champion.

    The path of a recipe stands for its name, and MLflow's `models:/NAME@ALIAS` for `NAME@ALIAS`.

    Raises:
        DataMissing: there is none, or `bloomery gc` has freed it.
        DataUnfit: it was not registered by Bloomery.
    """
    from bloomery.tasks.infrastructure.settings import require_state_folder

    follow_state_folder()
    require_state_folder()
    with _registry(needs_client=False):
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.registry.model_registry import find_version, require_bento_tag, require_not_freed

        version = find_version(resolve_model(str(reference)))
        bento = require_bento_tag(version)
        require_not_freed(version, has_bento=bento_folder(bento).is_dir())
        return Model(version.name, int(version.version), bento, version.tags.get("score", ""))


class RowsInvalid(ContractBroken):
    """Rows given to a model break its contract."""

    problems: list[dict[str, Any]]  # each with row, column, found and rule


class Model:
    """One version of a model. It predicts raw rows in the contract's columns, as its endpoint does."""

    def __init__(self, name: str, version: int, bento: str, score: str) -> None:
        self.name, self.version, self.bento = name, version, bento
        self._score = score
        self._state_folder = follow_state_folder()

    def predict(self, data: Any) -> Any:
        """The predictions for a DataFrame of pandas or Polars, an Arrow table, rows or one row, in the same form.

        They have the label and the probability of each class, or the value. Columns of the contract that the model does
        not read, such as the label, may be there.

        Raises:
            RowsInvalid: a row breaks the contract; its attribute `problems` lists rows, columns and rules.
        """
        try:
            predictions = self._python_function.predict(data)
        except Exception as failure:  # MlflowException, which is imported where it is raised
            details: dict[str, Any] = getattr(failure, "json_kwargs", {})
            if "problems" not in details:
                raise
            error = RowsInvalid(
                str(getattr(failure, "message", failure)),
                required="rows that keep the contract, as the endpoint requires them",
                where=f"the rows given to {self.name} version {self.version}",
                remedy="correct or drop these rows; the attribute `problems` of this error lists them",
            )
            error.problems = details["problems"]
            raise error from None
        return to_same_kind(predictions, data)

    @cached_property
    def _python_function(self) -> Any:
        self._require_state_folder()
        version = load_local_version(self.name, self.version)
        if version is not None:
            return version
        with _registry():
            import mlflow.pyfunc

            function = mlflow.pyfunc.load_model(f"models:/{self.name}/{self.version}", suppress_warnings=True)
        if "onnx" in str(function.metadata.flavors["python_function"].get("loader_module")):
            raise OutputCorrupt(
                f"{self.name} version {self.version} was registered by an earlier Bloomery, as a bare network",
                required="a version that reads rows in the contract's columns",
                where="the MLflow model registry",
                remedy="run its recipe again, which registers the same model anew",
            )
        return function

    @property
    def card(self) -> Card:
        """The model card. Raises DataMissing where the bento is not on this machine."""
        from bloomery.tasks.bentos.bento_store import artifacts_folder
        from bloomery.tasks.model_card.card import CARD_FOLDER
        from bloomery.tasks.model_card.rendering import HTML, MARKDOWN

        self._require_state_folder()
        return Card.read(artifacts_folder(self.bento) / CARD_FOLDER, HTML, MARKDOWN)

    @property
    def candidates(self) -> ParetoFront:
        """The candidates of the run, best first, and their Pareto front."""
        from bloomery.tasks.evaluation.candidate_table import candidate_columns, candidate_rows
        from bloomery.tasks.infrastructure.settings import settings

        self._require_state_folder()
        choice = self._choice
        picture = settings().path(choice.plot_uri)
        return ParetoFront(
            title=f"{self.name} version {self.version}: candidates on the held-out rows",
            rows=tuple(candidate_rows(choice)),
            columns=candidate_columns(choice.candidates, choice.verdicts, choice.candidate.name),
            picture=picture.read_bytes() if picture.is_file() else None,
        )

    @property
    def confusion_matrix(self) -> ConfusionMatrix:
        """The confusion matrix of a classification on the held-out rows.

        Raises:
            DataUnfit: the model predicts no class.
            DataMissing: the predictions of its run are not on this machine.
        """
        from bloomery.data_contracts.records.tensor_layout import predicts_one_class
        from bloomery.models.evaluation import metrics
        from bloomery.tasks.evaluation.held_out import read_measured_predictions
        from bloomery.tasks.infrastructure.settings import settings

        self._require_state_folder()
        choice = self._choice
        dataset = choice.candidates.trained.dataset
        if not predicts_one_class(dataset.task):
            kinds = {
                "regression": f"predicts {dataset.label} as a number",
                "multioutput": f"predicts {dataset.label} as numbers",
                "multitask": f"predicts {dataset.label}, a class of each",
                "multilabel": f"predicts {dataset.label} as a set of labels",
                "embedding": "computes vectors",
                "tagging": f"predicts {dataset.label} for each word",
            }
            raise DataUnfit(
                f"{self.name} {kinds[dataset.task]}",
                required="a classification",
                where=f"the confusion matrix of {self.name} version {self.version}",
                remedy="see its card, which shows the errors of a regression, and recall and precision of each label",
            )
        path = settings().path(choice.candidate.predictions_uri)
        if not path.is_file():
            raise missing_file("the table of predictions", path)
        rows = read_measured_predictions(choice)
        positions = {value: number for number, value in enumerate(dataset.classes)}
        truth, predictions = (
            [positions[value] for value in rows[name].to_pylist()] for name in ("truth", "prediction")
        )
        import numpy as np

        counts = metrics.confusion_matrix(np.array(truth), np.array(predictions), len(dataset.classes))
        return ConfusionMatrix(dataset.label, dataset.classes, counts)

    @cached_property
    def _choice(self) -> Choice:
        from bloomery.tasks.registry.bento_provenance import read_bento_provenance

        self._require_state_folder()
        return read_bento_provenance(self.bento).choice

    def _require_state_folder(self) -> None:
        require_state_folder_of(f"{self.name} version {self.version}", self._state_folder)

    def __repr__(self) -> str:
        score = f", score {self._score}" if self._score else ""
        return f"<bloomery.Model {self.name} version {self.version}{score}, bento {self.bento}>"

    def _repr_html_(self) -> str:
        try:
            facts = self._facts()
        except BloomeryError:  # its bento is on another machine
            facts = [("score", self._score)]
        note = "attributes: card, candidates, confusion_matrix; method: predict(data)"
        return html_table(f"{self.name} version {self.version}", ("", ""), [*facts, ("bento", self.bento)], note)

    def _facts(self) -> list[tuple[str, str]]:
        choice = self._choice
        candidate, trained = choice.candidate, choice.candidates.trained
        dataset = trained.dataset
        score = f"{format_score(trained.score, candidate.score)} on {dataset.test.num_rows:,} held-out rows"
        return [
            ("predicts", f"{dataset.label}, from {len(dataset.inputs):,} columns"),
            (trained.score.title, score),
            ("candidate", candidate.name),
            ("size", f"{candidate.size_bytes:,} bytes"),
            ("p50", f"{candidate.latency.p50_ms * 1000:.0f} µs for one row{candidate.latency.where}"),
        ]


@contextlib.contextmanager
def _registry(*, needs_client: bool = True) -> Iterator[None]:
    """Uses the state folder's registry inside the `with` block, and then again the one that the notebook has used.

    Where that was MLFLOW_TRACKING_URI or MLflow's default, no address is left set: it would outweigh a variable that
    the notebook sets later. With `needs_client=False`, MLflow is imported only by what needs it.
    """
    if needs_client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the progress bars that Jupyter could show
            import mlflow  # noqa: F401
    module: Any = sys.modules.get("mlflow")
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    before: Any = module.get_tracking_uri() if module is not None and module.is_tracking_uri_set() else None
    from bloomery.tasks.infrastructure.settings import settings
    from bloomery.tasks.tracking.mlflow_runs import client

    try:
        if module is not None:
            client()
            module.set_tracking_uri(settings().tracking_uri)
        yield
    finally:
        module = sys.modules.get("mlflow")
        address: Any = None if before == variable else before
        if module is not None:
            module.set_tracking_uri(address)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if variable is not None:
            os.environ["MLFLOW_TRACKING_URI"] = variable
