"""What the endpoint is told by its environment, read once when it starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from bloomery.data_contracts.errors import SettingInvalid

_Value = TypeVar("_Value")
_PREFIX = "BLOOMERY_SERVE_"


class Limits(NamedTuple):
    """How much one request, and all of them together, may ask for."""

    body_bytes: int = 16_000_000
    rows: int = 10_000
    waiting: int = 512  # requests; further ones are told to come again
    head_seconds: float = 10.0  # in which the head of a request has to be there
    body_seconds: float = 30.0  # in which a body has to be there
    explain_rows: int = 16  # of a request that explains
    explain_evaluations: int = 8192  # rows through the network, to explain one
    explain_seconds: float = 10.0  # in which all rows of a request have to be explained
    answer_seconds: float = 60.0  # in which an answer has to be taken


def read_limits(environment: Mapping[str, str] = os.environ) -> Limits:
    """Raises SettingInvalid where a variable is no number above 0."""
    defaults = Limits._field_defaults.items()
    return Limits(
        **{name: _positive(environment, f"{_PREFIX}{name.upper()}", type(value), value) for name, value in defaults}
    )


def _positive(environment: Mapping[str, str], name: str, kind: Callable[[str], _Value], default: _Value) -> _Value:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = kind("0")
    if not 0 < float(value) < float("inf"):  # type: ignore[arg-type]
        raise SettingInvalid(
            f"{name} is {text!r}",
            required="a number above 0",
            where="the environment of the endpoint",
            remedy=f"leave {name} out, which means {default}, or state such a number",
        )
    return value
