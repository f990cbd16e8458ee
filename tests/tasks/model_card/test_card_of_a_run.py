"""The model card of a released version: in its bento, in MLflow and in the registry."""

import html
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import Release
from bloomery.data_contracts.records.score_format import format_score

pytestmark = pytest.mark.slow

FinishedRun = tuple[Path, dict[str, Any]]
FILES_OF_THE_RUN = ("artifacts/card/", "artifacts/provenance.json", "artifacts/manifest.json")


@pytest.fixture
def release(finished_run: FinishedRun) -> Release:
    return Release.model_validate(finished_run[1])


@pytest.fixture
def artifacts(finished_run: FinishedRun, release: Release) -> Path:
    name, version = release.bento.tag.split(":")
    return finished_run[0] / "bentoml" / "bentos" / name / version / "src" / "artifacts"


def test_the_card_states_the_values_of_the_records(
    finished_run: FinishedRun, release: Release, artifacts: Path
) -> None:
    page = (artifacts / "card" / "card.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]*>|\s+", " ", re.sub(r"<(style|title)>.*?</\1>", "", page, flags=re.DOTALL)))
    text = re.sub(r"\s+", " ", text)
    choice = release.bento.choice
    trained = choice.candidates.trained
    dataset = trained.dataset
    assert trained.resource_usage is not None
    predictions = pq.read_table(finished_run[0] / choice.candidate.predictions_uri)
    for label in dataset.classes:
        assert f" {label} {predictions['truth'].to_pylist().count(label)} " in text
    for expected in (
        *(f"{candidate.size_bytes:,} bytes" for candidate in choice.candidates.candidates),
        *(format_score(dataset.task, candidate.score) for candidate in choice.candidates.candidates),
        *(digest[:16] for digest in (dataset.digest, trained.digest, choice.digest)),
        *(f"{split.num_rows:,} {name}" for name, split in (("train", dataset.train), ("val", dataset.val))),
        dataset.valid_rows.contract.description["purpose"],
        dataset.valid_rows.contract.description["limitations"],
        f"{trained.num_parameters:,} parameters",
        f"{trained.resource_usage.cpu_seconds:,.1f}",
        trained.processor,
        "Licence",
        "CC BY 4.0",
    ):
        assert expected in text, expected
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert len(addresses) == 5
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "<script" not in page
    plot_names = {"calibration.png", "candidates.png", "curves.png", "importance.png", "explained-rows.png"}
    assert {path.name for path in (artifacts / "card").iterdir()} == plot_names | {"card.html", "card.md"}
    markdown = (artifacts / "card" / "card.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([^)]*)\)", markdown)) == plot_names


def test_the_card_is_signed_and_not_part_of_the_versions_digest(release: Release, artifacts: Path) -> None:
    manifest = json.loads((artifacts / "manifest.json").read_text(encoding="utf-8"))
    assert {"card/card.html", "card/card.md", "provenance.json"} <= set(manifest["files"])
    files = {path: sha256 for path, sha256 in release.bento.files if not path.startswith(FILES_OF_THE_RUN)}
    assert release.bento.digest == digest_of_document([release.name, digest_of_document(files)])


def test_the_registry_has_the_card_and_tags_to_search_for(
    finished_run: FinishedRun, release: Release, artifacts: Path
) -> None:
    home, candidate = finished_run[0], release.bento.choice.candidate
    (logged,) = (home / "mlflow").glob(f"**/{candidate.run_id}/artifacts/card/card.html")
    assert logged.read_bytes() == (artifacts / "card" / "card.html").read_bytes()
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as connection:
        tags = dict(connection.execute("select key, value from registered_model_tags where name = 'digits'"))
        ((model_description,),) = connection.execute("select description from registered_models where name = 'digits'")
        ((version_description,),) = connection.execute("select description from model_versions where version = 1")
    search_tags = {name: tags[name] for name in ("task", "network", "contract", "target", "data.source", "licence")}
    assert search_tags == {
        "task": "classification",
        "network": "cnn",
        "contract": "digits",
        "target": "label",
        "data.source": "sklearn:digits",
        "licence": "CC BY 4.0",
    }
    assert "Tell which digit" in model_description
    assert f"runs/{candidate.run_id}/artifacts/card/card.html" in version_description
    assert f"{candidate.size_bytes:,} bytes" in version_description
