"""Limits of size, number and time, which the endpoint reads from its environment once when it starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from bloomery.data_contracts.errors import SettingInvalid

_Value = TypeVar("_Value")
_PREFIX = "BLOOMERY_SERVE_"


class Limits(NamedTuple):
    """Limits of one request, and of all requests together (`waiting`)."""

    body_bytes: int = 16_000_000
    rows: int = 10_000
    image_pixels: int = 50_000_000  # of all images of a request; decoded they take far more memory than the body
    audio_samples: int = 10_000_000  # of all recordings of a request
    waiting: int = 512  # requests at the same time; each additional one gets 503
    head_seconds: float = 10.0  # until the head of a request is complete
    body_seconds: float = 30.0  # until the body is complete
    explain_rows: int = 16  # of a request to /explain
    explain_evaluations: int = 8192  # rows through the network to explain one row
    explain_seconds: float = 10.0  # to explain all rows of a request
    response_seconds: float = 60.0  # until the client has read the response


def read_limits(environment: Mapping[str, str] = os.environ) -> Limits:
    """Reads the limits. Raises SettingInvalid if a variable is not a number above 0."""
    defaults = Limits._field_defaults.items()
    return Limits(
        **{
            name: _read_positive(environment, f"{_PREFIX}{name.upper()}", type(default), default)
            for name, default in defaults
        }
    )


def _read_positive(
    environment: Mapping[str, str], name: str, number_type: Callable[[str], _Value], default: _Value
) -> _Value:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = number_type(text)
    except ValueError:
        value = number_type("0")
    if not 0 < float(value) < float("inf"):  # type: ignore[arg-type]
        raise SettingInvalid(
            f"{name} is {text!r}",
            required="a number above 0",
            where="the environment of the endpoint",
            remedy=f"set {name} to a number above 0, or remove it to use the default {default}",
        )
    return value
