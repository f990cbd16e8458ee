"""What a person reads of a release in the Prefect run, and where it answers."""

from __future__ import annotations

from bloomery.data_contracts.records.records import Release, describe_lineage
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.prefect_artifacts import log_failures, privacy_paragraph
from bloomery.tasks.registry.champion import endpoint_urls


@log_failures
def publish_release(record: Release) -> None:
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    lineage = "\n".join(f"| {name} | {words} | `{digest[:16]}` |" for name, digest, words in describe_lineage(record))
    addresses = endpoint_urls(record.name)
    for address in addresses:
        create_link_artifact(key="endpoint", link=f"{address}/docs", link_text=f"{record.name} answers at {address}")
    create_markdown_artifact(
        key="release",
        description=f"{record.name} version {record.version} is {record.alias}",
        markdown=(
            f"# {record.name} version {record.version} is `{record.alias}`\n\n"
            f"{_where(record, addresses)}\n\n"
            f"Asked over HTTP before the release: {record.num_smoke_test_rows} held-out rows, "
            "all answered as measured.\n\n"
            f"{privacy_paragraph(record.bento.choice.candidates.trained)}"
            f"| stage | what | digest |\n| --- | --- | --- |\n{lineage}\n"
        ),
    )


def _where(record: Release, addresses: list[str]) -> str:
    """Links to the version in MLflow and to the endpoints, where servers stand; else how to start them."""
    server = settings().mlflow_url
    page = f"{server}/#/models/{record.name}/versions/{record.version}"
    mlflow = f"in MLflow: `{settings().tracking_uri}`" if server is None else f"[in MLflow]({page})"
    served = ", ".join(f"[{address}]({address}/docs)" for address in addresses)
    answers = f"answered at {served}" if served else f"to serve it: `bloomery serve {record.name}`"
    return f"The version {mlflow}; bento `{record.bento.tag}`; {answers}"
