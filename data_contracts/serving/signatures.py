"""Signatures of manifests, which prove who packaged a version.

The signature is Ed25519 over the bytes of the manifest, in a file beside it. The manifest has the digest of each file
of the version, so the signature covers them all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from bloomery.data_contracts.errors import SettingInvalid, SignatureRefused
from bloomery.data_contracts.serving.api_keys import read_path_variable

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = f"{MANIFEST_FILE}.sig"
TRUSTED_KEY_VARIABLE, UNSIGNED_VARIABLE = "BLOOMERY_SERVE_TRUSTED_KEY", "BLOOMERY_SERVE_UNSIGNED"
OWN_KEYS_FILE = Path("keys", "trusted.pem")  # in the state folder: the public parts of the keys that have signed there
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


def encode_public_key(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """The fingerprint of a key for people: the start of the sha256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def sign_bytes(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """The content of the signature file for `content`. Equal content and key give equal bytes."""
    signature = base64.b64encode(key.sign(content)).decode()
    document = {"algorithm": "ed25519", "key": key_fingerprint(key.public_key()), "signature": signature}
    return json.dumps(document, indent=1).encode()


def read_trusted_keys(environment: Mapping[str, str]) -> tuple[Ed25519PublicKey, ...]:
    """The public keys whose signatures are trusted: those of the configured file, else the state folder's own.

    A bento that is served from the store of a state folder finds the key beside that store.

    Raises:
        SettingInvalid: the file does not exist or is not a PEM file of public Ed25519 keys; or its path is relative.
    """
    path = read_path_variable(environment, TRUSTED_KEY_VARIABLE)
    if path:
        return read_public_keys(path)
    home, store = environment.get("BLOOMERY_HOME"), environment.get("BENTOML_HOME")
    for folder in (Path(home) if home else None, Path(store).parent if store else None):
        if folder and (folder / OWN_KEYS_FILE).is_file():
            return read_public_keys(folder / OWN_KEYS_FILE)
    return ()


def read_public_keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    """Reads one or more keys. Raises SettingInvalid if the file is not a PEM file of public Ed25519 keys."""
    problem = "it has no PEM block"
    try:
        blocks = [block.group(0) for block in _PEM.finditer(path.read_bytes())]
        keys = [load_pem_public_key(block) for block in blocks]
    except OSError as failure:
        problem, keys = failure.strerror or str(failure), []
    except (ValueError, UnsupportedAlgorithm):
        problem, keys = "a block is not a public key", []
    ed25519_keys = tuple(key for key in keys if isinstance(key, Ed25519PublicKey))
    if not ed25519_keys or len(ed25519_keys) < len(keys):
        raise SettingInvalid(
            f"the trusted key cannot be read: {'a key is not an Ed25519 key' if keys else problem}",
            required="a PEM file with public Ed25519 keys",
            where=str(path),
            remedy="write it with `bloomery key signing --output FILE` where the version was packaged",
        )
    return ed25519_keys


def require_signed(content: bytes, artifacts: Path, environment: Mapping[str, str]) -> None:
    """Verifies the signature beside the manifest of `artifacts`, whose bytes are `content`.

    If `BLOOMERY_SERVE_UNSIGNED` is `allowed`, a version passes that has no signature, or for which there is no trusted
    key. A wrong signature never passes.

    Raises:
        SignatureRefused: the signature is missing, wrong or by an untrusted key, or there is no trusted key.
        SettingInvalid: a variable has an invalid value.
    """
    allowed = environment.get(UNSIGNED_VARIABLE) or "refused"
    if allowed not in ("allowed", "refused"):
        raise SettingInvalid(
            f"{UNSIGNED_VARIABLE} is {allowed!r}",
            required="allowed or refused",
            where="the environment of the endpoint",
            remedy=f"leave {UNSIGNED_VARIABLE} out: then only signed versions are served",
        )
    trusted = read_trusted_keys(environment)
    signature_file = _read(artifacts / SIGNATURE_FILE)
    if signature_file is None or not trusted:
        if allowed == "allowed":
            return
        raise _unsigned(artifacts) if signature_file is None else _unverifiable(artifacts, _signer(signature_file))
    signature, signer = _signature(signature_file), _signer(signature_file)
    for key in trusted:
        try:
            key.verify(signature, content)
            return
        except InvalidSignature:
            continue
    names = [key_fingerprint(key) for key in trusted]
    if signer in names:
        raise SignatureRefused(
            f"the signature by key {signer} does not fit the manifest: one of the two was changed",
            required="the manifest as it was signed",
            where=str(artifacts / MANIFEST_FILE),
            remedy="package the version again by `bloomery run RECIPE`, or serve another one",
        )
    raise SignatureRefused(
        f"the version is signed by another key: {signer or 'its signature names none'}",
        required=f"a signature by {' or '.join(names)}, which is trusted here",
        where=str(artifacts / SIGNATURE_FILE),
        remedy=f"if you trust that key, add its public part to the file of {TRUSTED_KEY_VARIABLE}; else package "
        "the version again by `bloomery run RECIPE`",
    )


def _unsigned(artifacts: Path) -> SignatureRefused:
    return SignatureRefused(
        "the version is not signed",
        required=f"a signature by a trusted key in {SIGNATURE_FILE}",
        where=str(artifacts),
        remedy="package it again by `bloomery run RECIPE`, which signs it; or set "
        f"{UNSIGNED_VARIABLE}=allowed, if you know where it comes from",
    )


def _unverifiable(artifacts: Path, signer: str) -> SignatureRefused:
    return SignatureRefused(
        f"the version is signed by {signer}, but no trusted key is configured that could verify it",
        required=f"the trusted public key in a PEM file, whose path is in {TRUSTED_KEY_VARIABLE}",
        where=str(artifacts / SIGNATURE_FILE),
        remedy="write it with `bloomery key signing --output FILE` where the version was packaged, and copy it here; "
        f"or set {UNSIGNED_VARIABLE}=allowed, if you know where the version comes from",
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _document(signature_file: bytes) -> dict[str, str]:
    try:
        document = json.loads(signature_file)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _signer(signature_file: bytes) -> str:
    """The fingerprint that the file names. It proves nothing and is only shown in messages."""
    fingerprint = str(_document(signature_file).get("key"))
    return fingerprint if re.fullmatch("[0-9a-f]{16}", fingerprint) else ""


def _signature(signature_file: bytes) -> bytes:
    try:
        return base64.b64decode(str(_document(signature_file).get("signature")), validate=True)
    except ValueError:
        return b""
