"""The private key that signs packaged versions, and the public keys that are trusted."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from bloomery.data_contracts.documents.files import write_bytes
from bloomery.data_contracts.errors import SettingInvalid
from bloomery.data_contracts.serving.signatures import (
    MANIFEST_FILE,
    OWN_KEYS_FILE,
    SIGNATURE_FILE,
    encode_public_key,
    sign_bytes,
)
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.security.private_files import lock_folder


def load_signing_key() -> Ed25519PrivateKey:
    """The key that BLOOMERY_SIGNING_KEY names, else the state folder's own, which the first call generates.

    Adds its public key to the trusted keys of the state folder; earlier signing keys stay trusted.

    Raises:
        SettingInvalid: the named file holds no private Ed25519 key.
        StateUnwritable: a key cannot be stored.
    """
    configured, path = settings().signing_key, _signing_key_file()
    with lock_folder(settings().keys):
        if configured is None and not path.is_file():
            generated = Ed25519PrivateKey.generate()
            write_bytes(path, generated.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
        key = _read_key(path)
        trusted = trusted_keys_file().read_bytes() if trusted_keys_file().is_file() else b""
        public = encode_public_key(key.public_key())
        if public not in trusted:
            write_bytes(trusted_keys_file(), trusted + public, mode=0o644)
    return key


def trusted_keys_file() -> Path:
    """The public keys of all signing keys of this state folder."""
    return settings().home / OWN_KEYS_FILE


def sign_manifest(artifacts: Path) -> None:
    """Writes the signature beside the manifest."""
    (artifacts / SIGNATURE_FILE).write_bytes(sign_bytes((artifacts / MANIFEST_FILE).read_bytes(), load_signing_key()))


def is_signed(artifacts: Path) -> bool:
    """Whether the signature beside the manifest is the one `sign_manifest` would write. Generates no key."""
    if settings().signing_key is None and not _signing_key_file().is_file():
        return False
    try:
        signature, content = (artifacts / SIGNATURE_FILE).read_bytes(), (artifacts / MANIFEST_FILE).read_bytes()
    except OSError:
        return False
    return signature == sign_bytes(content, load_signing_key())


def _signing_key_file() -> Path:
    return settings().signing_key or settings().keys / "signing.pem"


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as failure:
        problem = failure.strerror or str(failure)
    except TypeError:
        problem = "it is encrypted"
    except (ValueError, UnsupportedAlgorithm):
        problem = "it is not a PEM file of a private key"
    else:
        if isinstance(key, Ed25519PrivateKey):
            return key
        problem = "it is a key of another type"
    raise SettingInvalid(
        f"the signing key cannot be used: {problem}",
        required="a private Ed25519 key in PEM, not encrypted",
        where=str(path),
        remedy="generate one with `openssl genpkey -algorithm ed25519 -out FILE` and set BLOOMERY_SIGNING_KEY to it, "
        "or unset that variable to use a key of the state folder",
    )
