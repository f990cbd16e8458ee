"""Nothing of a version is used before its signature is verified, and nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bloomery.data_contracts.errors import OutputCorrupt, SettingInvalid, SignatureRefused
from bloomery.data_contracts.serving.signatures import (
    MANIFEST_FILE,
    OWN_KEYS_FILE,
    SIGNATURE_FILE,
    encode_public_key,
    key_fingerprint,
    sign_bytes,
)
from bloomery.deployments.endpoint.inference import model_version
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.tasks.orchestration.code_version import reach

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED, UNSIGNED = "BLOOMERY_SERVE_TRUSTED_KEY", "BLOOMERY_SERVE_UNSIGNED"


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of trusted keys, with KEY in it; unsigned versions are not allowed."""
    path = tmp_path / "trusted.pem"
    path.write_bytes(encode_public_key(KEY.public_key()))
    for name in ("BLOOMERY_HOME", "BENTOML_HOME", UNSIGNED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(TRUSTED, str(path))
    return path


@pytest.fixture
def artifacts(packaged: Callable[..., Path], tmp_path: Path) -> Path:
    """A version that KEY has signed."""
    folder = tmp_path / "artifacts"
    shutil.copytree(packaged(), folder)
    return sign(folder, KEY)


def sign(folder: Path, key: Ed25519PrivateKey) -> Path:
    (folder / SIGNATURE_FILE).write_bytes(sign_bytes((folder / MANIFEST_FILE).read_bytes(), key))
    return folder


def test_a_version_signed_by_a_trusted_key_is_loaded(artifacts, trusted) -> None:
    assert LoadedVersion(artifacts).tag == "people:one"


def test_a_changed_manifest_is_rejected_before_it_is_parsed(artifacts, trusted, monkeypatch) -> None:
    (artifacts / MANIFEST_FILE).write_bytes((artifacts / MANIFEST_FILE).read_bytes().replace(b"0.9", b"0.8"))
    monkeypatch.setattr(model_version, "json", None)  # so that it cannot be parsed
    with pytest.raises(
        SignatureRefused, match=f"the signature by key {key_fingerprint(KEY.public_key())} does not fit"
    ):
        LoadedVersion(artifacts)


def test_a_changed_file_is_rejected_though_the_manifest_is_signed(artifacts, trusted) -> None:
    (artifacts / "model.onnx").write_bytes((artifacts / "model.onnx").read_bytes() + b" ")
    with pytest.raises(OutputCorrupt, match=r"model\.onnx differs from the packaged file"):
        LoadedVersion(artifacts)


def test_a_signature_of_another_key_is_rejected_for_every_claimed_key(artifacts, trusted) -> None:
    sign(artifacts, OTHER)
    with pytest.raises(SignatureRefused, match=f"signed by another key: {key_fingerprint(OTHER.public_key())}"):
        LoadedVersion(artifacts)
    document = json.loads((artifacts / SIGNATURE_FILE).read_bytes())
    document["key"] = key_fingerprint(KEY.public_key())
    (artifacts / SIGNATURE_FILE).write_text(json.dumps(document))
    with pytest.raises(SignatureRefused, match="does not fit the manifest"):
        LoadedVersion(artifacts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"key": 3, "signature": "%%"}', b"\xff" * 64])
def test_an_invalid_signature_file_is_rejected(artifacts, trusted, content) -> None:
    (artifacts / SIGNATURE_FILE).write_bytes(content)
    with pytest.raises(SignatureRefused, match="its signature names none"):
        LoadedVersion(artifacts)


def test_an_unsigned_version_is_rejected_with_a_remedy(artifacts, trusted, monkeypatch) -> None:
    (artifacts / SIGNATURE_FILE).unlink()
    with pytest.raises(SignatureRefused, match="bloomery run RECIPE"):
        LoadedVersion(artifacts)
    monkeypatch.setenv(UNSIGNED, "allowed")
    LoadedVersion(artifacts)


def test_a_wrong_signature_is_rejected_even_if_unsigned_is_allowed(artifacts, trusted, monkeypatch) -> None:
    monkeypatch.setenv(UNSIGNED, "allowed")
    sign(artifacts, OTHER)
    with pytest.raises(SignatureRefused):
        LoadedVersion(artifacts)


def test_without_a_trusted_key_a_version_is_rejected(artifacts, trusted, monkeypatch) -> None:
    monkeypatch.delenv(TRUSTED)
    with pytest.raises(SignatureRefused, match="bloomery key signing --output FILE"):
        LoadedVersion(artifacts)
    monkeypatch.setenv(UNSIGNED, "allowed")
    LoadedVersion(artifacts)


def test_a_bento_served_directly_from_the_state_folder_is_verified_with_its_key(
    artifacts, trusted, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv(TRUSTED)
    own = tmp_path / "home" / OWN_KEYS_FILE
    own.parent.mkdir(parents=True)
    shutil.copyfile(trusted, own)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home" / "bentoml"))
    LoadedVersion(artifacts)
    sign(artifacts, OTHER)
    with pytest.raises(SignatureRefused):
        LoadedVersion(artifacts)


def test_several_keys_may_be_trusted(artifacts, trusted) -> None:
    trusted.write_bytes(encode_public_key(OTHER.public_key()) + trusted.read_bytes())
    LoadedVersion(artifacts)
    LoadedVersion(sign(artifacts, OTHER))


def test_an_invalid_trusted_key_is_reported(artifacts, trusted, monkeypatch) -> None:
    elliptic_key = generate_private_key(SECP256R1()).public_key()
    of_another_type = elliptic_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for content in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", of_another_type):
        trusted.write_bytes(content)
        with pytest.raises(SettingInvalid, match="the trusted key cannot be read"):
            LoadedVersion(artifacts)
    for path in ("/nowhere/trusted.pem", "trusted.pem"):
        monkeypatch.setenv(TRUSTED, path)
        with pytest.raises(SettingInvalid):
            LoadedVersion(artifacts)


def test_signatures_are_deterministic(artifacts) -> None:
    before = (artifacts / SIGNATURE_FILE).read_bytes()
    assert (sign(artifacts, KEY) / SIGNATURE_FILE).read_bytes() == before


SERVE_WITHOUT_PICKLE = """
import asyncio, pickle, sys
def refuse(event, arguments):
    if event == "pickle.find_class":
        raise SystemError(f"unpickled: {arguments}")
def fail(*_, **__):
    raise SystemError("unpickled")
import bloomery.deployments.service  # with BentoML and its dependencies
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
sys.addaudithook(refuse)
pickle.load = pickle.loads = fail
import httpx, numpy, pathlib
application = bloomery.deployments.service.application
application.use_version(LoadedVersion(pathlib.Path(sys.argv[1])))
ROW = {"age": 30, "height": 1.7, "town": "york"}
async def ask():
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        responses = [await client.post("/predict", json={"rows": [ROW]})]
        for kind in ("application/vnd.bentoml+pickle", "application/octet-stream"):
            content = b"\\x80\\x04c" + b"os\\nsystem\\n."
            responses.append(await client.post("/predict", content=content, headers={"content-type": kind}))
        return responses + [await client.get(path) for path in ("/info", "/docs", "/openapi.json")]
print([response.status_code for response in asyncio.run(ask())])
"""


def test_no_version_and_no_request_is_unpickled(artifacts, trusted) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", SERVE_WITHOUT_PICKLE, str(artifacts)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip().endswith("[200, 415, 415, 200, 200, 200]")


def test_no_module_of_the_service_mentions_pickle() -> None:
    words = (
        "import pickle",
        "from pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "allow_pickle=True",
        "torch.load",
        "marshal",
    )
    matches = {
        module: word
        for module, path in reach("bloomery.deployments.service").items()
        for word in words
        if word in path.read_text()
    }
    assert matches == {}
