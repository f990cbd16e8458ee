"""Publishes the ranked candidates of a choice in MLflow and in the Prefect run."""

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


def log_ranking(run_id: str, candidates: Candidates, budget: Budget, decision: Decision, plot: Path) -> None:
    """Draws `plot` and logs it, the ranked table and the budget to the MLflow run."""
    chosen_name = decision.best.name if decision.best else None
    plot_pareto_front(candidates, budget, decision, plot)
    mlflow_runs.log_params(run_id, budget.model_dump())
    mlflow_runs.client().log_artifact(run_id, str(plot))
    columns = candidate_table.candidate_columns(candidates, decision.verdicts, chosen_name)
    mlflow_runs.client().log_table(run_id, columns, TABLE)


@log_failures
def publish_ranking(choice: Choice) -> None:
    """Puts the ranked table and the plot into the Prefect run."""
    from prefect.artifacts import create_image_artifact, create_table_artifact

    description = f"Chosen: {choice.candidate.name}. MLflow run {choice.run_id} has the table with raw numbers"
    create_table_artifact(key="candidates", description=description, table=candidate_table.candidate_rows(choice))
    plot = settings().path(choice.plot_uri)
    create_image_artifact(key="candidates-picture", description=str(plot), image_url=_image_url(plot, choice.run_id))


def _image_url(plot: Path, run_id: str) -> str:
    """A URL that a browser can open: on the MLflow server, or else a data URI, since browsers open no local file."""
    tracking_uri = settings().tracking_uri
    if tracking_uri.startswith("http"):
        return f"{tracking_uri.rstrip('/')}/get-artifact?path={candidate_table.PICTURE}&run_uuid={run_id}"
    return f"data:image/png;base64,{base64.b64encode(plot.read_bytes()).decode()}"
