"""What a client is told when it gets no prediction."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

_MOST_PROBLEMS = 20


class Refused(Exception):
    """A request that is not answered with a prediction: the status, a sentence, and what is wrong where."""

    def __init__(
        self,
        status: int,
        error: str,
        problems: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.problems = (problems or [])[:_MOST_PROBLEMS]
        self.headers = headers or {}

    @property
    def document(self) -> dict[str, Any]:
        return {"error": self.error, "problems": self.problems}


def too_large(limit: int, found: str) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has {found}, and at most {limit:,} bytes are read; send the rows in several requests",
    )


def too_many_rows(found: int, limit: int) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request has {found:,} rows, and at most {limit:,} are answered at once; send them in several requests",
    )


def overloaded() -> Refused:
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "more requests wait here than can be answered soon; try again",
        headers={"retry-after": "1"},
    )


def no_media_type(found: str, known: tuple[str, ...]) -> Refused:
    return Refused(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"the content type is {found or 'not stated'}, and {' or '.join(known)} is read",
        headers={"accept": ", ".join(known)},
    )
