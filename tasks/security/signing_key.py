"""The key that vouches for what is packaged here, and its public part, which others trust."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.data_contracts.serving.signatures import MANIFEST, OWN_KEYS, SIGNATURE, public_pem, signed
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.security import private_files


def signing_key() -> Ed25519PrivateKey:
    """The key that BLOOMERY_SIGNING_KEY names, else the state folder's own, which is made when it is first asked for.

    Afterwards its public part is among those that the state folder trusts. What was signed before by another key stays
    good.

    Raises:
        SettingInvalid: the named file holds no private Ed25519 key.
        StateUnwritable: no key can be kept.
    """
    named, path = settings().signing_key, _path()
    with private_files.locked(settings().keys):
        if named is None and not path.is_file():
            made = Ed25519PrivateKey.generate()
            private_files.write(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key = _read(path)
        trusted = trusted_file().read_bytes() if trusted_file().is_file() else b""
        public = public_pem(key.public_key())
        if public not in trusted:
            private_files.write(trusted_file(), trusted + public, mode=0o644)
    return key


def trusted_file() -> Path:
    """Where the public parts lie of the keys that have signed here."""
    return settings().home / OWN_KEYS


def sign(artifacts: Path) -> None:
    """Afterwards the signature lies beside the manifest."""
    (artifacts / SIGNATURE).write_bytes(signed((artifacts / MANIFEST).read_bytes(), signing_key()))


def is_signed(artifacts: Path) -> bool:
    """Whether the signature beside the manifest is what `sign` would write. It makes no key."""
    if settings().signing_key is None and not _path().is_file():
        return False
    try:
        found, content = (artifacts / SIGNATURE).read_bytes(), (artifacts / MANIFEST).read_bytes()
    except OSError:
        return False
    return found == signed(content, signing_key())


def _path() -> Path:
    return settings().signing_key or settings().keys / "signing.pem"


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as failure:
        found = failure.strerror or str(failure)
    except TypeError:
        found = "it is encrypted"
    except (ValueError, UnsupportedAlgorithm):
        found = "it is no PEM file of a private key"
    else:
        if isinstance(key, Ed25519PrivateKey):
            return key
        found = "it is a key of another kind"
    raise SettingInvalid(
        f"the signing key cannot be used: {found}",
        required="a private Ed25519 key in PEM, not encrypted",
        where=str(path),
        remedy="make one with `openssl genpkey -algorithm ed25519 -out FILE` and let BLOOMERY_SIGNING_KEY name it, or "
        "leave that variable out: then the state folder has a key of its own",
    )
