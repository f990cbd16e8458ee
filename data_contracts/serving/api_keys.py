"""API keys of an endpoint's clients: how they are stored, and where a client needs one.

A key is 256 random bits and is shown once, when it is created. Only its sha256 is stored: since 2^256 keys
cannot be tried, neither a salt nor a slow hash is needed. Keys are looked up by digest, so timing reveals nothing.
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
_POLICIES: tuple[KeyPolicy, ...] = ("auto", "required", "off")

# A name is a label in /metrics and an argument of the command line.
KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class ApiKey(BaseModel):
    """One client's key. A revoked key stays in the file, so that its use can be reported; its name may be reused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: KeyName
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # requests per second and process
    created_at: str
    revoked_at: str | None = None


class ApiKeys(BaseModel):
    """The content of the file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    def active_keys(self) -> tuple[ApiKey, ...]:
        return tuple(key for key in self.keys if key.revoked_at is None)


def hash_key(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> ApiKeys:
    """The keys of a file; none if the file does not exist.

    Raises:
        DocumentInvalid: the file cannot be read, or is not a file of keys.
    """
    try:
        return ApiKeys.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return ApiKeys()
    except OSError as failure:
        problem = failure.strerror or str(failure)
    except ValidationError as failure:
        first = failure.errors()[0]  # never the input, which may be a key
        problem = f"{'.'.join(map(str, first['loc'])) or 'the document'}: {first['msg']}"
    raise DocumentInvalid(
        f"the file of keys cannot be read: {problem}",
        required="the file that `bloomery key` writes, readable for the endpoint's user",
        where=str(path),
        remedy="correct its permissions, or delete the file and create the keys again with `bloomery key create NAME`",
    )


def read_key_policy(environment: Mapping[str, str]) -> KeyPolicy:
    """Where a client needs a key: `auto` on every address but loopback, `required` everywhere, or `off`.

    Raises:
        SettingInvalid: the variable has another value.
    """
    text = environment.get(KEY_POLICY_VARIABLE) or "auto"
    for policy in _POLICIES:
        if text == policy:
            return policy
    raise SettingInvalid(
        f"{KEY_POLICY_VARIABLE} is {text!r}",
        required=f"one of {', '.join(_POLICIES)}",
        where="the environment of the endpoint",
        remedy=f"leave {KEY_POLICY_VARIABLE} out: then clients need a key on every address but loopback",
    )


def read_path_variable(environment: Mapping[str, str], name: str) -> Path | None:
    """The path in a variable of the endpoint's environment; None if it is not set.

    Raises:
        SettingInvalid: the path is relative. BentoML's processes have working folders of their own.
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
    """Whether only this machine reaches the IP address. A host name is never loopback, since it may resolve to any."""
    try:
        ip_address = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = ip_address.ipv4_mapped if isinstance(ip_address, ipaddress.IPv6Address) else None
    return (mapped or ip_address).is_loopback
