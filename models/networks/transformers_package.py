"""Whether the package `transformers` is installed, which networks of Hugging Face need."""

from __future__ import annotations

import importlib.util
import sys

from bloomery.data_contracts.errors import EngineMissing


def require_transformers(kinds: str) -> None:
    """Requires the package for networks of `kinds`, without importing it.

    Raises:
        EngineMissing: it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise missing_transformers(kinds)


def missing_transformers(kinds: str) -> EngineMissing:
    """The error of networks of `kinds` without the package."""
    return EngineMissing(
        "the package transformers is not installed",
        required=f"transformers, for a network of kind {kinds}",
        where=sys.prefix,
        remedy="pip install 'bloomery[huggingface]'",
    )
