"""The number of examples that Hypothesis tries: few for each change, many each night (`make test-all`)."""

from __future__ import annotations

import os

from hypothesis import settings

_IS_NIGHTLY = os.environ.get("BLOOMERY_TESTS") == "all"

settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.register_profile("nightly", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("nightly" if _IS_NIGHTLY else "ci")


def examples(num: int) -> int:
    """Returns `num` for the nightly tests, and a quarter of it, but at least 8 (or `num`), otherwise."""
    return num if _IS_NIGHTLY else max(num // 4, min(num, 8))
