"""Nothing of a version is believed before a key that is trusted vouches for it, and nothing of it is ever unpickled."""

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
from bloomery.data_contracts.serving.signatures import MANIFEST, OWN_KEYS, SIGNATURE, fingerprint, public_pem, signed
from bloomery.deployments.endpoint.inference import model_version
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.tasks.orchestration.code_version import reach

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED, UNSIGNED = "BLOOMERY_SERVE_TRUSTED_KEY", "BLOOMERY_SERVE_UNSIGNED"


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of trusted keys, with KEY in it, and nothing else allowed."""
    path = tmp_path / "trusted.pem"
    path.write_bytes(public_pem(KEY.public_key()))
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
    (folder / SIGNATURE).write_bytes(signed((folder / MANIFEST).read_bytes(), key))
    return folder


def test_a_version_that_a_trusted_key_has_signed_is_loaded(artifacts, trusted) -> None:
    assert Version(artifacts).tag == "people:one"


def test_a_changed_manifest_is_refused_before_it_is_believed(artifacts, trusted, monkeypatch) -> None:
    (artifacts / MANIFEST).write_bytes((artifacts / MANIFEST).read_bytes().replace(b"0.9", b"0.8"))
    monkeypatch.setattr(model_version, "json", None)  # so it cannot read it
    with pytest.raises(SignatureRefused, match=f"the signature by key {fingerprint(KEY.public_key())} does not fit"):
        Version(artifacts)


def test_a_changed_file_is_refused_though_the_manifest_is_signed(artifacts, trusted) -> None:
    (artifacts / "model.onnx").write_bytes((artifacts / "model.onnx").read_bytes() + b" ")
    with pytest.raises(OutputCorrupt, match=r"model\.onnx is not the file"):
        Version(artifacts)


def test_another_keys_signature_is_refused_whatever_it_says_of_itself(artifacts, trusted) -> None:
    sign(artifacts, OTHER)
    with pytest.raises(SignatureRefused, match=f"signed by another key: {fingerprint(OTHER.public_key())}"):
        Version(artifacts)
    document = json.loads((artifacts / SIGNATURE).read_bytes())
    document["key"] = fingerprint(KEY.public_key())
    (artifacts / SIGNATURE).write_text(json.dumps(document))
    with pytest.raises(SignatureRefused, match="does not fit the manifest"):
        Version(artifacts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"key": 3, "signature": "%%"}', b"\xff" * 64])
def test_a_signature_that_is_none_is_refused(artifacts, trusted, content) -> None:
    (artifacts / SIGNATURE).write_bytes(content)
    with pytest.raises(SignatureRefused, match="does not say"):
        Version(artifacts)


def test_an_unsigned_version_is_refused_and_told_how_to_be_signed(artifacts, trusted, monkeypatch) -> None:
    (artifacts / SIGNATURE).unlink()
    with pytest.raises(SignatureRefused, match="bloomery run RECIPE"):
        Version(artifacts)
    monkeypatch.setenv(UNSIGNED, "allowed")
    Version(artifacts)


def test_unsigned_allowed_allows_no_wrong_signature(artifacts, trusted, monkeypatch) -> None:
    monkeypatch.setenv(UNSIGNED, "allowed")
    sign(artifacts, OTHER)
    with pytest.raises(SignatureRefused):
        Version(artifacts)


def test_without_a_trusted_key_a_signature_cannot_be_judged(artifacts, trusted, monkeypatch) -> None:
    monkeypatch.delenv(TRUSTED)
    with pytest.raises(SignatureRefused, match="bloomery key signing --output FILE"):
        Version(artifacts)
    monkeypatch.setenv(UNSIGNED, "allowed")
    Version(artifacts)


def test_a_bento_served_by_hand_from_the_state_folder_is_judged_by_that_folders_key(
    artifacts, trusted, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv(TRUSTED)
    own = tmp_path / "home" / OWN_KEYS
    own.parent.mkdir(parents=True)
    shutil.copyfile(trusted, own)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home" / "bentoml"))
    Version(artifacts)
    sign(artifacts, OTHER)
    with pytest.raises(SignatureRefused):
        Version(artifacts)


def test_several_keys_may_be_trusted_so_that_they_can_be_changed(artifacts, trusted) -> None:
    trusted.write_bytes(public_pem(OTHER.public_key()) + trusted.read_bytes())
    Version(artifacts)
    Version(sign(artifacts, OTHER))


def test_a_trusted_key_that_is_none_is_told_of(artifacts, trusted, monkeypatch) -> None:
    other = generate_private_key(SECP256R1()).public_key()
    of_another_kind = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for content in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", of_another_kind):
        trusted.write_bytes(content)
        with pytest.raises(SettingInvalid, match="the trusted key cannot be read"):
            Version(artifacts)
    for path in ("/nowhere/trusted.pem", "trusted.pem"):
        monkeypatch.setenv(TRUSTED, path)
        with pytest.raises(SettingInvalid):
            Version(artifacts)


def test_equal_manifests_have_equal_signatures_by_one_key(artifacts) -> None:
    before = (artifacts / SIGNATURE).read_bytes()
    assert (sign(artifacts, KEY) / SIGNATURE).read_bytes() == before


ANSWERED_WITHOUT_PICKLE = """
import asyncio, pickle, sys
def refuse(event, arguments):
    if event == "pickle.find_class":
        raise SystemError(f"unpickled: {arguments}")
def never(*_, **__):
    raise SystemError("unpickled")
import bloomery.deployments.service  # with BentoML and all that it brings
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import Version
sys.addaudithook(refuse)
pickle.load = pickle.loads = never
import httpx, numpy, pathlib
application = bloomery.deployments.service.application
application.use(Version(pathlib.Path(sys.argv[1])))
ROW = {"age": 30, "height": 1.7, "town": "york"}
async def ask():
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        told = [await client.post("/predict", json={"rows": [ROW]})]
        for kind in ("application/vnd.bentoml+pickle", "application/octet-stream"):
            content = b"\\x80\\x04c" + b"os\\nsystem\\n."
            told.append(await client.post("/predict", content=content, headers={"content-type": kind}))
        return told + [await client.get(path) for path in ("/info", "/docs", "/openapi.json")]
print([one.status_code for one in asyncio.run(ask())])
"""


def test_no_version_and_no_request_is_ever_unpickled(artifacts, trusted) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ANSWERED_WITHOUT_PICKLE, str(artifacts)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith("[200, 415, 415, 200, 200, 200]")


def test_no_module_of_the_service_names_pickle() -> None:
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
    named = {
        module: word
        for module, path in reach("bloomery.deployments.service").items()
        for word in words
        if word in path.read_text()
    }
    assert named == {}
