"""API key authentication: an ASGI middleware that admits or rejects each request.

Whether a key is required depends on the local address of the connection. That address comes from the socket, not from
the client. The body of a rejected request is not read.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import SecretMissing
from bloomery.data_contracts.serving.api_keys import (
    KEY_POLICY_VARIABLE,
    KEYS_FILE_VARIABLE,
    KeyPolicy,
    is_loopback,
    read_key_policy,
    read_keys,
    read_path_variable,
)
from bloomery.deployments.endpoint.auth.key_ring import KeyMetrics, KeyRing
from bloomery.deployments.endpoint.http.asgi_types import Headers, Receive, Scope, Send
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.responses import (
    EndpointApp,
    Response,
    SendResponse,
    error_response,
    write_response,
)

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/healthz"})  # for the orchestrator that starts and watches the process
_ROW_PATHS = (
    "/predict",
    "/explain",
    "/v1/embeddings",
    "/rerank",
)  # a browser must not ask for a password when a script calls these
_is_loopback = lru_cache(maxsize=256)(is_loopback)

OnRejected = Callable[[int, float], None]  # status, seconds


class AuthMiddleware:
    """Passes requests with a valid key on to `application`."""

    def __init__(
        self, application: EndpointApp, policy: KeyPolicy, keys: KeyRing, on_rejected: OnRejected | None = None
    ) -> None:
        """`on_rejected` is called for each rejected request to `/predict` or `/explain`."""
        self._application = application
        self._policy = policy
        self._keys = keys
        self._on_rejected = on_rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] == "lifespan" else self._check(scope)
        if error is None:
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await write_response(self._reject(error, scope["path"]), send, is_head=scope["method"] == "HEAD")

    def handle_predict(self, scope: Mapping[str, Any], body: bytes, send_response: SendResponse) -> None:
        error = self._check(scope)
        if error is None:
            self._application.handle_predict(scope, body, send_response)
        else:
            send_response(self._reject(error, scope["path"]))

    def _check(self, scope: Mapping[str, Any]) -> HTTPError | None:
        if not self._requires_key(scope.get("server")) or scope["path"] in PUBLIC_PATHS:
            return None
        try:
            self.authenticate(scope["headers"])
        except HTTPError as error:
            return error
        return None

    def authenticate(self, headers: Headers) -> str:
        """Returns the name of the key in the headers. Raises HTTPError if there is none, or it is not valid now."""
        key = _read_key(headers)
        now = time.monotonic()
        client = self._keys.find_client(key, now)
        if client is None:
            raise self._unauthorized(has_key=bool(key))
        if client.is_revoked:
            client.count_revoked()
            raise HTTPError(
                HTTPStatus.FORBIDDEN,
                f"the key {client.key.name} was revoked at {client.key.revoked_at}",
                headers={"connection": "close"},
            )
        wait_s = client.bucket.take(now)
        if wait_s > 0:
            client.count_rate_limited()
            raise HTTPError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the key {client.key.name} allows {client.key.rate:g} requests per second; try again later",
                headers={"retry-after": str(int(wait_s) + 1)},
            )
        client.count_admitted()
        return client.key.name

    def _requires_key(self, server: tuple[str, int | None] | None) -> bool:
        if self._policy != "auto":
            return True
        if server is None:
            return True
        host, port = server
        return port is not None and not _is_loopback(host)  # a Unix socket has no port, and may belong to a proxy

    def _unauthorized(self, *, has_key: bool) -> HTTPError:
        if not self._keys.is_readable:
            return HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "the endpoint cannot read its key file; see its log")
        if has_key and len(self._keys):
            message = "the key is unknown"
        elif len(self._keys):
            message = "a key is required: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`"
        else:
            message = (
                "a key is required on this address, and the endpoint has none; create one with "
                f"`bloomery key create NAME`, and set {KEYS_FILE_VARIABLE} to the key file"
            )
        return HTTPError(
            HTTPStatus.UNAUTHORIZED,
            message,
            headers={"www-authenticate": 'Bearer realm="bloomery"', "connection": "close"},
        )

    def _reject(self, error: HTTPError, path: str) -> Response:
        if path not in _ROW_PATHS:
            is_unauthorized = error.status == HTTPStatus.UNAUTHORIZED
            basic = (b"www-authenticate", b'Basic realm="the key is the password"')
            return error_response(error, (basic,) if is_unauthorized else (), path)
        if self._on_rejected is not None:
            self._on_rejected(error.status, 0.0)
        return error_response(error, path=path)


def read_key_settings(environment: Mapping[str, str]) -> tuple[KeyPolicy, Path | None]:
    """Returns where a key is required, and the key file.

    Raises:
        SettingInvalid: a variable is not valid.
        SecretMissing: a key is required everywhere, and there is none.
        DocumentInvalid: the key file cannot be read.
    """
    policy, path = read_key_policy(environment), read_path_variable(environment, KEYS_FILE_VARIABLE)
    keys = read_keys(path).active_keys() if path and policy != "off" else ()
    if policy == "required" and not keys:
        raise SecretMissing(
            f"{KEY_POLICY_VARIABLE} is required, and there is no key",
            required=f"a key in use, in the file that {KEYS_FILE_VARIABLE} names",
            where=str(path or f"{KEYS_FILE_VARIABLE}, which is not set"),
            remedy="create one with `bloomery key create NAME`",
        )
    return policy, path


def require_keys(
    application: EndpointApp,
    environment: Mapping[str, str],
    metrics: KeyMetrics,
    on_rejected: OnRejected | None = None,
) -> EndpointApp:
    """Adds the authentication that the environment configures; returns `application` unchanged if keys are off.

    Raises as `read_key_settings` does.
    """
    policy, path = read_key_settings(environment)
    if policy == "off":
        return application
    return AuthMiddleware(application, policy, KeyRing(path, metrics), on_rejected)


def _read_key(headers: Headers) -> bytes:
    """Returns the key that a client sends, or no bytes if there is none."""
    authorization = b""
    for name, value in headers:
        if name == b"x-api-key":  # has precedence: `authorization` may be meant for a proxy
            return value.strip()
        if name == b"authorization":
            authorization = value
    scheme, _, credentials = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return credentials.strip()
        case b"basic":  # from a browser, which asks its user for a password
            try:
                return base64.b64decode(credentials.strip()).partition(b":")[2]
            except binascii.Error:
                return b""
    return b""
