"""Creates, lists and revokes the API keys of the endpoint's clients, in a file of the state folder."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from pydantic import ValidationError

from bloomery.data_contracts.documents.files import write_bytes
from bloomery.data_contracts.errors import DataMissing, SettingInvalid
from bloomery.data_contracts.serving.api_keys import (
    KEY_PREFIX,
    KEYS_FILE_VARIABLE,
    ApiKey,
    ApiKeys,
    hash_key,
    read_keys,
)
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.security.private_files import lock_folder

_NUM_BYTES = 32


def keys_file() -> Path:
    """The key file: that of the environment variable, else that of the state folder."""
    text = os.environ.get(KEYS_FILE_VARIABLE)
    return Path(text).expanduser().absolute() if text else settings().keys / "clients.json"


def create_key(name: str, rate: float | None = None) -> tuple[str, ApiKey]:
    """A new key, and its entry in the key file. The key itself is not stored.

    Raises:
        SettingInvalid: the name or the rate is not valid, or a key in use has the name.
        DocumentInvalid: the key file cannot be read.
        StateUnwritable: it cannot be written.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(_NUM_BYTES)
    try:
        entry = ApiKey(name=name, sha256=hash_key(key.encode()), rate=rate, created_at=_timestamp())
    except ValidationError as failure:
        raise SettingInvalid(
            f"{name!r} with rate {rate} is not a valid key: {failure.errors()[0]['msg']}",
            required="a name of at most 63 letters, digits, dots, dashes and underscores, and a rate above 0",
            where="the command line",
            remedy="correct the name or the rate",
        ) from failure
    path = keys_file()
    with lock_folder(path.parent):
        keys = read_keys(path)
        if any(key.name == name for key in keys.active_keys()):
            raise SettingInvalid(
                f"there is a key {name!r} already",
                required="a name that no key in use has",
                where=str(path),
                remedy=f"choose another name, or `bloomery key revoke {name}` first",
            )
        _write_keys(path, ApiKeys(keys=(*keys.keys, entry)))
    return key, entry


def revoke_key(name: str) -> ApiKey:
    """Marks the key of that name as revoked; an endpoint notices within a second.

    Raises:
        DataMissing: no key in use has the name.
        DocumentInvalid: the key file cannot be read.
        StateUnwritable: it cannot be written.
    """
    path = keys_file()
    with lock_folder(path.parent):
        keys = read_keys(path)
        entry = next((key for key in keys.active_keys() if key.name == name), None)
        if entry is None:
            names = ", ".join(key.name for key in keys.active_keys())
            raise DataMissing(
                f"there is no key {name!r} in use",
                required=f"one of {names}" if names else "a key; there is none",
                where=str(path),
                remedy="see `bloomery key list`",
            )
        revoked = entry.model_copy(update={"revoked_at": _timestamp()})
        _write_keys(path, ApiKeys(keys=tuple(revoked if key is entry else key for key in keys.keys)))
    return revoked


def list_keys() -> tuple[ApiKey, ...]:
    """All keys, including revoked ones. Raises DocumentInvalid where the file cannot be read."""
    return read_keys(keys_file()).keys


def _write_keys(path: Path, keys: ApiKeys) -> None:
    write_bytes(path, keys.model_dump_json(indent=1, exclude_none=True).encode() + b"\n", mode=0o600)


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
