"""Publishes a release in the Prefect run: the version, its lineage and its endpoints."""

from __future__ import annotations

from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Release
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.prefect_artifacts import log_failures, privacy_paragraph
from bloomery.tasks.registry.champion import endpoint_urls


@log_failures
def publish_release(record: Release) -> None:
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    lineage = "\n".join(
        f"| {name} | {description} | `{digest[:16]}` |" for name, digest, description in describe_lineage(record)
    )
    urls = endpoint_urls(record.name)
    for url in urls:
        create_link_artifact(key="endpoint", link=f"{url}/docs", link_text=f"{record.name} is served at {url}")
    create_markdown_artifact(
        key="release",
        description=f"{record.name} version {record.version} is {record.alias}",
        markdown=(
            f"# {record.name} version {record.version} is `{record.alias}`\n\n"
            f"{_describe_location(record, urls)}\n\n"
            f"Smoke test over HTTP: {record.num_smoke_test_rows} test rows, all predictions as measured.\n\n"
            f"{privacy_paragraph(record.bento.choice.candidates.trained)}"
            f"| stage | output | digest |\n| --- | --- | --- |\n{lineage}\n"
        ),
    )


def _describe_location(record: Release, urls: list[str]) -> str:
    """Links to the version in MLflow and to the running endpoints, or else the command that starts one."""
    server = settings().mlflow_url
    page = f"{server}/#/models/{record.name}/versions/{record.version}"
    mlflow = f"in MLflow: `{settings().tracking_uri}`" if server is None else f"[in MLflow]({page})"
    served = ", ".join(f"[{url}]({url}/docs)" for url in urls)
    endpoint = f"served at {served}" if served else f"to serve it: `bloomery serve {record.name}`"
    return f"The version {mlflow}; bento `{record.bento.tag}`; {endpoint}"
