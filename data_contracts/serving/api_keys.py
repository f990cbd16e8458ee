"""The keys of an endpoint's clients: what is kept of them, and where one is demanded.

A key is 256 random bits, shown once to whoever makes it. Kept is its sha256: nobody can try that many keys, so it needs
no salt and no slow hash, and a key is looked up by its digest, which tells whoever times it nothing of the key.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bloomery.data_contracts.errors import DocumentInvalid, SettingInvalid

KEY_PREFIX = "bloomery_"
KEYS_FILE_VARIABLE, KEY_POLICY_VARIABLE = "BLOOMERY_SERVE_KEYS_FILE", "BLOOMERY_SERVE_KEYS"
KeyPolicy = Literal["auto", "required", "off"]
_DEMANDS: tuple[KeyPolicy, ...] = ("auto", "required", "off")

# A name is a label in /metrics and a word of the command line.
KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class ApiKey(BaseModel):
    """One client's key. A revoked one stays, so that its holder is told so; its name may be given again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: KeyName
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # requests a second, of one process
    created_at: str
    revoked_at: str | None = None


class ApiKeys(BaseModel):
    """The file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    def active_keys(self) -> tuple[ApiKey, ...]:
        return tuple(key for key in self.keys if key.revoked_at is None)


def hash_key(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> ApiKeys:
    """The keys of a file; none where there is no file.

    Raises:
        DocumentInvalid: the file is no file of keys, or cannot be read.
    """
    try:
        return ApiKeys.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return ApiKeys()
    except OSError as failure:
        found = failure.strerror or str(failure)
    except ValidationError as failure:
        first = failure.errors()[0]  # never the input, which may be a key
        found = f"{'.'.join(map(str, first['loc'])) or 'the document'}: {first['msg']}"
    raise DocumentInvalid(
        f"the file of keys cannot be read: {found}",
        required="the file that `bloomery key` writes, readable for the endpoint's user",
        where=str(path),
        remedy="mend its permissions, or take the file away and make the keys again with `bloomery key create NAME`",
    )


def read_key_policy(environment: Mapping[str, str]) -> KeyPolicy:
    """Where a key is demanded: `auto` on every address but loopback, `required` everywhere, or `off`.

    Raises:
        SettingInvalid: the variable says something else.
    """
    text = environment.get(KEY_POLICY_VARIABLE) or "auto"
    for known in _DEMANDS:
        if text == known:
            return known
    raise SettingInvalid(
        f"{KEY_POLICY_VARIABLE} is {text!r}",
        required=f"one of {', '.join(_DEMANDS)}",
        where="the environment of the endpoint",
        remedy=f"leave {KEY_POLICY_VARIABLE} out: then keys are demanded on every address but loopback",
    )


def read_path_variable(environment: Mapping[str, str], name: str) -> Path | None:
    """The path that a variable of the endpoint's environment states; None where it is not set.

    Raises:
        SettingInvalid: it is relative. BentoML's processes work in folders of their own.
    """
    text = environment.get(name)
    if text and not Path(text).is_absolute():
        raise SettingInvalid(
            f"{name} is {text!r}, which is relative",
            required="the absolute path of a file",
            where="the environment of the endpoint",
            remedy=f"set it to {Path(text).absolute()}",
        )
    return Path(text) if text else None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address. A name is no address: who knows where it leads?"""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
