"""The keys of the endpoint's clients: made, listed and revoked, in a file of the state folder."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing, SettingInvalid
from bloomery.data_contracts.serving.api_keys import KEYS_FILE, PREFIX, Key, Keys, digest_of_key, read_keys
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.security import private_files

_NUM_BYTES = 32


def keys_file() -> Path:
    """The file that the environment names, else the state folder's."""
    named = os.environ.get(KEYS_FILE)
    return Path(named).expanduser().absolute() if named else settings().keys / "clients.json"


def create(name: str, rate: float | None = None) -> tuple[str, Key]:
    """A new key, and what is kept of it. Nobody sees the key again.

    Raises:
        SettingInvalid: the name or the rate is none, or the name is taken.
        DocumentInvalid: the file of keys cannot be read.
        StateUnwritable: it cannot be written.
    """
    shown = PREFIX + secrets.token_urlsafe(_NUM_BYTES)
    try:
        made = Key(name=name, sha256=digest_of_key(shown.encode()), rate=rate, made=_now())
    except ValidationError as failure:
        raise SettingInvalid(
            f"{name!r} with rate {rate} names no key: {failure.errors()[0]['msg']}",
            required="a name of at most 63 letters, digits, dots, dashes and underlines, and a rate above 0",
            where="the command line",
            remedy="mend the name or the rate",
        ) from failure
    path = keys_file()
    with private_files.locked(path.parent):
        kept = read_keys(path)
        if any(key.name == name for key in kept.in_use()):
            raise SettingInvalid(
                f"there is a key {name!r} already",
                required="a name that no key in use has",
                where=str(path),
                remedy=f"choose another name, or `bloomery key revoke {name}` first",
            )
        _write(path, Keys(keys=(*kept.keys, made)))
    return shown, made


def revoke(name: str) -> Key:
    """Afterwards the key of that name opens nothing; an endpoint sees it within a second.

    Raises:
        DataMissing: no key in use has the name.
        DocumentInvalid: the file of keys cannot be read.
        StateUnwritable: it cannot be written.
    """
    path = keys_file()
    with private_files.locked(path.parent):
        kept = read_keys(path)
        found = next((key for key in kept.in_use() if key.name == name), None)
        if found is None:
            names = ", ".join(key.name for key in kept.in_use())
            raise DataMissing(
                f"there is no key {name!r} in use",
                required=f"one of {names}" if names else "a key; there is none",
                where=str(path),
                remedy="look at `bloomery key list`",
            )
        gone = found.model_copy(update={"revoked": _now()})
        _write(path, Keys(keys=tuple(gone if key is found else key for key in kept.keys)))
    return gone


def listed() -> tuple[Key, ...]:
    """All keys, the revoked ones too. Raises DocumentInvalid where the file cannot be read."""
    return read_keys(keys_file()).keys


def _write(path: Path, keys: Keys) -> None:
    private_files.write(path, keys.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
