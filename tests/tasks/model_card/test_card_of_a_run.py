"""The card of a version that a run has released: in its bento, in MLflow, and told of in the registry."""

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
OF_ITS_OWN_RUN = ("artifacts/card/", "artifacts/provenance.json", "artifacts/manifest.json")


@pytest.fixture
def release(finished_run: FinishedRun) -> Release:
    return Release.model_validate(finished_run[1])


@pytest.fixture
def artifacts(finished_run: FinishedRun, release: Release) -> Path:
    name, version = release.bento.tag.split(":")
    return finished_run[0] / "bentoml" / "bentos" / name / version / "src" / "artifacts"


def test_the_card_says_what_the_records_say(finished_run: FinishedRun, release: Release, artifacts: Path) -> None:
    page = (artifacts / "card" / "card.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]*>|\s+", " ", re.sub(r"<(style|title)>.*?</\1>", "", page, flags=re.DOTALL)))
    text = re.sub(r"\s+", " ", text)
    chosen = release.bento.choice
    trained = chosen.candidates.trained
    dataset = trained.dataset
    assert trained.resource_usage is not None
    answers = pq.read_table(finished_run[0] / chosen.candidate.predictions_uri)
    for label in dataset.classes:
        assert f" {label} {answers['truth'].to_pylist().count(label)} " in text
    for told in (
        *(f"{one.size_bytes:,} bytes" for one in chosen.candidates.candidates),
        *(format_score(dataset.task, one.score) for one in chosen.candidates.candidates),
        *(digest[:16] for digest in (dataset.digest, trained.digest, chosen.digest)),
        *(f"{part.num_rows:,} {name}" for name, part in (("train", dataset.train), ("val", dataset.val))),
        dataset.valid_rows.contract.description["purpose"],
        dataset.valid_rows.contract.description["limitations"],
        f"{trained.num_parameters:,} parameters",
        f"{trained.resource_usage.cpu_seconds:,.1f}",
        trained.processor,
        "Licence",
        "CC BY 4.0",
    ):
        assert told in text, told
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert len(addresses) == 5
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "<script" not in page
    pictures = {"calibration.png", "candidates.png", "curves.png", "importance.png", "explained-rows.png"}
    assert {path.name for path in (artifacts / "card").iterdir()} == pictures | {"card.html", "card.md"}
    markdown = (artifacts / "card" / "card.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([^)]*)\)", markdown)) == pictures


def test_the_card_is_signed_and_no_part_of_the_versions_digest(release: Release, artifacts: Path) -> None:
    manifest = json.loads((artifacts / "manifest.json").read_text(encoding="utf-8"))
    assert {"card/card.html", "card/card.md", "provenance.json"} <= set(manifest["files"])
    files = {path: sha256 for path, sha256 in release.bento.files if not path.startswith(OF_ITS_OWN_RUN)}
    assert release.bento.digest == digest_of_document([release.name, digest_of_document(files)])


def test_the_registry_has_the_card_and_what_a_person_searches_for(
    finished_run: FinishedRun, release: Release, artifacts: Path
) -> None:
    home, candidate = finished_run[0], release.bento.choice.candidate
    (logged,) = (home / "mlflow").glob(f"**/{candidate.run_id}/artifacts/card/card.html")
    assert logged.read_bytes() == (artifacts / "card" / "card.html").read_bytes()
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as connection:
        tags = dict(connection.execute("select key, value from registered_model_tags where name = 'digits'"))
        ((about,),) = connection.execute("select description from registered_models where name = 'digits'")
        ((version,),) = connection.execute("select description from model_versions where version = 1")
    stated = {name: tags[name] for name in ("task", "network", "contract", "target", "data.source", "licence")}
    assert stated == {
        "task": "classification",
        "network": "cnn",
        "contract": "digits",
        "target": "label",
        "data.source": "sklearn:digits",
        "licence": "CC BY 4.0",
    }
    assert "Tell which digit" in about
    assert f"runs/{candidate.run_id}/artifacts/card/card.html" in version
    assert f"{candidate.size_bytes:,} bytes" in version
