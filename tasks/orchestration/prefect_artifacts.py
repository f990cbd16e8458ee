"""Prefect artifacts that show a stage's record.

Called only inside a Prefect task run. A failure never fails the stage.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

from bloomery.data_contracts.records.records import Bento, TrainedNetwork, ValidRows
from bloomery.data_contracts.records.score_format import format_score_value
from bloomery.tasks.infrastructure.settings import settings

P = ParamSpec("P")


def log_failures(function: Callable[P, None]) -> Callable[P, None]:
    """Turns failures of `function` into warnings in the log."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            logging.getLogger(__name__).warning("%s could not publish its artifact", function.__name__, exc_info=True)

    return call


@log_failures
def publish_contract_report(record: ValidRows) -> None:
    from prefect.artifacts import create_markdown_artifact

    rules = "\n".join(f"| {rule.replace('|', '&#124;')} | {count} |" for rule, count in record.violations)
    points = "\n".join(f"- {item}" for item in record.contract.unchecked)
    unchecked = f"Not checked:\n\n{points}\n\n" if points else ""
    create_markdown_artifact(
        key="contract-report",
        description=f"{record.num_rows} rows passed, {record.num_quarantined} quarantined",
        markdown=(
            f"# Contract {record.contract.name} {record.contract.version}\n\n"
            f"Of {record.raw_rows.num_rows + record.raw_rows.num_malformed} rows **{record.num_rows} passed** and "
            f"**{record.num_quarantined} were quarantined**.\n\n"
            f"| rule | violations |\n| --- | ---: |\n{rules}\n\n"
            f"{unchecked}"
            f"Great Expectations' report: [{record.report_uri}]({settings().path(record.report_uri).as_uri()})\n\n"
            f"Quarantine: `{settings().path(record.quarantine_uri)}`\n\n"
            f"Malformed lines: {record.raw_rows.num_malformed}, `{settings().path(record.raw_rows.malformed_uri)}`\n"
        ),
    )


@log_failures
def publish_training_run(record: TrainedNetwork) -> None:
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    tracking_uri, server = settings().tracking_uri, settings().mlflow_url
    if server is not None:
        from mlflow import MlflowClient

        experiment = MlflowClient().get_run(record.run_id).info.experiment_id
        create_link_artifact(
            key="mlflow-run",
            link=f"{server}/#/experiments/{experiment}/runs/{record.run_id}",
            link_text=f"MLflow run {record.run_id}",
        )
        return
    score = record.score
    create_markdown_artifact(
        key="mlflow-run",
        description=f"MLflow run {record.run_id}",
        markdown=(
            f"MLflow run **{record.run_id}** in `{tracking_uri}`: {record.num_parameters:,} parameters, "
            f"validation {score.title} {format_score_value(score, record.val_score)} {record.origin}.\n\n"
            f"{privacy_paragraph(record)}"
            f"To look at it: `mlflow server --backend-store-uri {tracking_uri}`\n"
        ),
    )


@log_failures
def publish_bento(record: Bento) -> None:
    from prefect.artifacts import create_markdown_artifact

    files = "\n".join(f"| `{path}` | `{sha256[:16]}` |" for path, sha256 in record.files)
    create_markdown_artifact(
        key="bento",
        description=f"Bento {record.tag}",
        markdown=f"# Bento `{record.tag}`\n\n| file | sha256 |\n| --- | --- |\n{files}\n\n"
        f"To serve it: `bloomery serve {record.tag.split(':')[0]}`\n",
    )


def privacy_paragraph(record: TrainedNetwork) -> str:
    """A paragraph on the privacy guarantee of training, empty if there is none."""
    return f"Each training row is {record.privacy}.\n\n" if record.privacy is not None else ""
