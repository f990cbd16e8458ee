"""The candidates of a choice in a ranked table and a picture, for MLflow and for Prefect."""

from __future__ import annotations

import base64
from pathlib import Path

from bloomery.data_contracts.records.records import Candidates, Choice
from bloomery.models.compression.budget import Budget
from bloomery.tasks.choose.budget_verdicts import Decision
from bloomery.tasks.choose.pareto_plot import plot_pareto_front
from bloomery.tasks.evaluation import candidate_table
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.prefect_artifacts import log_failures
from bloomery.tasks.tracking import mlflow_runs

TABLE = "candidates.json"


def log_ranking(run_id: str, options: Candidates, budget: Budget, decision: Decision, picture: Path) -> None:
    """Afterwards `picture` is there, and the run has it, the ranked table and the budget."""
    chosen = decision.best.name if decision.best else None
    plot_pareto_front(options, budget, decision, picture)
    mlflow_runs.log_params(run_id, budget.model_dump())
    mlflow_runs.client().log_artifact(run_id, str(picture))
    mlflow_runs.client().log_table(run_id, candidate_table.candidate_columns(options, decision.verdicts, chosen), TABLE)


@log_failures
def publish_ranking(record: Choice) -> None:
    """The ranked table and the picture in the Prefect run."""
    from prefect.artifacts import create_image_artifact, create_table_artifact

    description = f"Chosen: {record.candidate.name}. The same in figures: MLflow run {record.run_id}"
    create_table_artifact(key="candidates", description=description, table=candidate_table.candidate_rows(record))
    picture = settings().path(record.plot_uri)
    create_image_artifact(
        key="candidates-picture", description=str(picture), image_url=_address_of(picture, record.run_id)
    )


def _address_of(picture: Path, run_id: str) -> str:
    """Where a browser finds the picture: at MLflow's server, else in the address itself, for it opens no local file."""
    tracking_uri = settings().tracking_uri
    if tracking_uri.startswith("http"):
        return f"{tracking_uri.rstrip('/')}/get-artifact?path={candidate_table.PICTURE}&run_uuid={run_id}"
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
