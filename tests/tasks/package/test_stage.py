"""The package stage: the content of a bento, its tag, and the bentos that are packaged again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bloomery.data_contracts.monitoring import REFERENCE_FILE
from bloomery.data_contracts.records.provenance import PROVENANCE_FILE, RecipeDocument
from bloomery.data_contracts.records.records import Bento, Choice, Release
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE, SIGNATURE_FILE
from bloomery.tasks.bentos.bento_server import require_bento
from bloomery.tasks.bentos.bento_store import artifacts_folder, bento_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.package.stage import package
from bloomery.tasks.registry.bento_provenance import read_bento_provenance
from tests.conftest import copy_state

pytestmark = pytest.mark.slow

RECIPE = RecipeDocument(recipe={"name": "digits"})


@pytest.fixture
def choice(finished_run: tuple[Path, dict[str, Any]], home: Path) -> Choice:
    """The choice of a finished run, the state folder of which is copied to `home`."""
    copy_state(finished_run[0], home)
    return Release.model_validate(finished_run[1]).bento.choice


def find_bento(choice: Choice, name: str = "digits") -> Bento:
    record = package.lookup(choice, name, RECIPE)
    assert record is not None
    return record


def test_a_bento_has_the_served_files_and_their_manifest(choice: Choice) -> None:
    record = find_bento(choice)
    files = dict(record.files)
    artifacts = {path.removeprefix("artifacts/") for path in files if path.startswith("artifacts/")}
    assert {path for path in artifacts if not path.startswith("card/")} == {
        *("model.onnx", "encoder.json", "contract.json", "examples.json", "background.json"),
        *(REFERENCE_FILE, PROVENANCE_FILE, MANIFEST_FILE),
    }
    assert {"card/card.html", "card/card.md"} <= artifacts
    assert {"bloomery/deployments/service.py", "bloomery/models/features/encoder.py"} <= set(files)
    assert not [path for path in files if path.startswith(("bloomery/models/training/", "bloomery/flows/"))]
    manifest = json.loads((artifacts_folder(record.tag) / MANIFEST_FILE).read_text(encoding="utf-8"))
    digests = {f"artifacts/{name}": sha256 for name, sha256 in manifest["files"].items()} | manifest["code"]
    assert digests == {path: sha256 for path, sha256 in files.items() if path != f"artifacts/{MANIFEST_FILE}"}
    assert (manifest["tag"], manifest["candidate"]) == (record.tag, choice.candidate.name)
    require_bento(record.tag)


def test_a_bento_has_the_chosen_model_and_its_provenance(choice: Choice) -> None:
    record = find_bento(choice)
    model = artifacts_folder(record.tag) / "model.onnx"
    assert model.read_bytes() == settings().path(choice.candidate.uri).read_bytes()
    provenance = read_bento_provenance(record.tag)
    assert (provenance.tag, provenance.digest, provenance.choice) == (record.tag, record.digest, choice)


def test_a_damaged_bento_is_packaged_again_under_its_tag(choice: Choice, home: Path) -> None:
    record = find_bento(choice)
    model = artifacts_folder(record.tag) / "model.onnx"
    model.write_bytes(b"damaged")
    assert package.lookup(choice, "digits", RECIPE) is None
    repaired = package(choice, "digits", RECIPE)
    assert (repaired.tag, repaired.digest) == (record.tag, record.digest)
    assert model.read_bytes() == settings().path(choice.candidate.uri).read_bytes()
    require_bento(repaired.tag)
    assert find_bento(choice) == repaired
    assert (bento_folder(record.tag).parent / "latest").read_text() == record.tag.split(":")[1]
    assert not [*(home / "bentoml" / ".building").iterdir()]
    # The recipe is not part of the key, but the repaired bento has the one of the latest run.
    assert read_bento_provenance(record.tag).recipe == RECIPE.recipe


def test_a_removed_bento_counts_as_absent(choice: Choice) -> None:
    shutil.rmtree(bento_folder(find_bento(choice).tag))
    assert package.lookup(choice, "digits", RECIPE) is None


def test_a_bento_without_a_signature_of_the_current_key_counts_as_absent(
    choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = find_bento(choice)
    signature = artifacts_folder(record.tag) / SIGNATURE_FILE
    content = signature.read_bytes()
    signature.unlink()
    assert package.lookup(choice, "digits", RECIPE) is None
    signature.write_bytes(content)
    assert find_bento(choice) == record
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    monkeypatch.setenv("BLOOMERY_SIGNING_KEY", str(tmp_path / "key.pem"))
    settings.cache_clear()
    assert package.lookup(choice, "digits", RECIPE) is None


def test_equal_content_gets_the_same_version_under_another_name(choice: Choice) -> None:
    record = find_bento(choice)
    renamed = package(choice, "numbers", RECIPE)
    assert renamed.tag == f"numbers:{record.tag.split(':')[1]}"
    assert renamed.digest != record.digest
    require_bento(renamed.tag)
    assert find_bento(choice) == record


def test_another_candidate_gets_another_version(choice: Choice) -> None:
    baseline = next(
        candidate for candidate in choice.candidates.candidates if candidate.name == choice.candidates.baseline
    )
    assert baseline != choice.candidate
    bento = package(choice.model_copy(update={"candidate": baseline, "digest": "baseline"}), "digits", RECIPE)
    assert bento.tag != find_bento(choice).tag
    model = artifacts_folder(bento.tag) / "model.onnx"
    assert model.read_bytes() == settings().path(baseline.uri).read_bytes()
