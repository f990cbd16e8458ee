"""HTTP errors and the JSON document that a client receives for each."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

_MAX_PROBLEMS = 20


class HTTPError(Exception):
    """An error response: a status, a message, the problems of single rows, and further headers."""

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
        self.problems = (problems or [])[:_MAX_PROBLEMS]
        self.headers = headers or {}

    @property
    def document(self) -> dict[str, Any]:
        return {"error": self.error, "problems": self.problems}


class ApiError(HTTPError):
    """An error of a request in OpenAI's form: the parameter that is wrong, and a code that programs recognize."""

    def __init__(self, status: int, error: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, error)
        self.param, self.code = param, code


_KINDS = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error", HTTPStatus.UNAUTHORIZED: "authentication_error"}
_CODES = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded", HTTPStatus.UNAUTHORIZED: "invalid_api_key"}


def openai_document(error: HTTPError) -> dict[str, Any]:
    """The document of an error as OpenAI's clients read it."""
    status = HTTPStatus(error.status)
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, None)
    facts = {
        "message": error.error,
        "type": _KINDS.get(status, kind),
        "param": param,
        "code": code or _CODES.get(status),
    }
    return {"error": facts}


def body_too_large(limit: int, size: str) -> HTTPError:
    return HTTPError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has {size}; the limit is {limit:,} bytes; send the rows in several requests",
    )


def too_many_rows(num_rows: int, limit: int) -> HTTPError:
    return HTTPError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request has {num_rows:,} rows; the limit is {limit:,}; send them in several requests",
    )


def overloaded() -> HTTPError:
    return HTTPError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "too many requests are waiting; try again",
        headers={"retry-after": "1"},
    )


def unsupported_media_type(media_type: str, supported: tuple[str, ...]) -> HTTPError:
    return HTTPError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"the content type is {media_type or 'missing'}; supported: {' or '.join(supported)}",
        headers={"accept": ", ".join(supported)},
    )
