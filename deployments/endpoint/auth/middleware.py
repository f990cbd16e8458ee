"""Who may ask: an ASGI application before ours that lets a request in, or says why not.

Whether a key is demanded depends on the address that a connection came in on, which is the socket's own and nothing
that a client says. The body of a refused request is not read.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from bloomery.data_contracts.errors import BloomeryError, SecretMissing
from bloomery.data_contracts.serving.api_keys import (
    DEMANDED,
    KEYS_FILE,
    Demand,
    Key,
    demand,
    is_loopback,
    read_keys,
    stated_path,
)
from bloomery.deployments.endpoint.http.errors import Refused
from bloomery.deployments.endpoint.http.responses import Front, Reply, Tell, refusal, send_reply

OPEN = frozenset({"/livez", "/readyz", "/healthz"})  # of whoever starts and watches the process
ASKED = ("/predict", "/explain")  # a browser's page may not ask for a password on behalf of these
_SECONDS_BETWEEN_LOOKS = 0.5
_local = lru_cache(maxsize=256)(is_loopback)
_log = logging.getLogger("bloomery.endpoint")


class Usage:
    """What `/metrics` tells of each key: its labels are the names of the keys of the file, so it does not grow."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "bloomery_key_requests_total",
            "Requests by the name of their key: let in, over its rate, or revoked",
            ["key", "outcome"],
            registry=registry,
        )

    def of(self, name: str, outcome: str) -> Callable[[], None]:
        bound: Callable[[], None] = self._requests.labels(name, outcome).inc
        return bound


class _Client:
    """One key at work. Its rate is a bucket that holds what may come in one second, and at least one request."""

    def __init__(self, key: Key, usage: Usage) -> None:
        self.key = key
        self.is_revoked = key.revoked is not None
        self.let_in, self.over, self.gone = (usage.of(key.name, outcome) for outcome in ("let in", "over", "revoked"))
        self._room = 0.0 if key.rate is None else max(1.0, key.rate)
        self._left, self._at = self._room, time.monotonic()

    def seconds_to_wait(self, now: float) -> float:
        """0 where the key's rate allows a request now, which is then taken from it."""
        rate = self.key.rate
        if rate is None:
            return 0.0
        left = min(self._room, self._left + (now - self._at) * rate)
        self._at = now
        self._left = left if left < 1 else left - 1
        return 0.0 if left >= 1 else (1 - left) / rate


class KeyRing:
    """The keys of a file, read again when the file changes."""

    def __init__(self, path: Path | None, usage: Usage) -> None:
        """Raises DocumentInvalid where the file is there and cannot be read."""
        self.path = path
        self._usage = usage
        self._clients: dict[bytes, _Client] = {}
        self._seen: object = None
        self._looked = time.monotonic()
        self.is_readable = True
        self._read(self._state())

    def __len__(self) -> int:
        return sum(not client.is_revoked for client in self._clients.values())

    def client(self, key: bytes, now: float) -> _Client | None:
        if now - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._look_again()
        return self._clients.get(sha256(key).digest())

    def _state(self) -> object:
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _look_again(self) -> None:
        state = self._state()
        if state == self._seen and self.is_readable:
            return
        try:
            self._read(state)
            self.is_readable = True
        except BloomeryError as failure:
            if self.is_readable:
                _log.error("the keys have changed, and nobody is let in until they can be read\n%s", failure)
            # Which keys were revoked meanwhile cannot be told.
            self._clients, self.is_readable = {}, False

    def _read(self, state: object) -> None:
        keys = () if self.path is None else read_keys(self.path).keys
        before = self._clients
        self._clients = {}
        for key in keys:
            digest = bytes.fromhex(key.sha256)
            client = before.get(digest)  # a key that stayed keeps what is left of its rate
            self._clients[digest] = client if client and client.key == key else _Client(key, self._usage)
        self._seen = state


class Doors:
    """Lets requests in to `application`."""

    def __init__(
        self, application: Front, demanded: Demand, keys: KeyRing, refused: Callable[[int, float], None] | None = None
    ) -> None:
        self._application = application
        self._demanded = demanded
        self._keys = keys
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refused = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refused is None:
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send_reply(self._told(refused, scope["path"]), send, is_head=scope["method"] == "HEAD")

    def answer(self, scope: Mapping[str, Any], body: bytes, tell: Tell) -> None:
        refused = self._refusal(scope)
        if refused is None:
            self._application.answer(scope, body, tell)
        else:
            tell(self._told(refused, scope["path"]))

    def _refusal(self, scope: Mapping[str, Any]) -> Refused | None:
        if not self._is_demanded(scope.get("server")) or scope["path"] in OPEN:
            return None
        try:
            self.admit(scope["headers"])
        except Refused as refused:
            return refused
        return None

    def admit(self, headers: list[tuple[bytes, bytes]]) -> str:
        """The name of the key that the headers hold. Raises Refused where they hold none, or one that may not."""
        key = _stated(headers)
        now = time.monotonic()
        client = self._keys.client(key, now)
        if client is None:
            raise self._no_key(bool(key))
        if client.is_revoked:
            client.gone()
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"the key {client.key.name} was revoked at {client.key.revoked}",
                headers={"connection": "close"},
            )
        seconds = client.seconds_to_wait(now)
        if seconds > 0:
            client.over()
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the key {client.key.name} is good for {client.key.rate:g} requests a second; come again later",
                headers={"retry-after": str(int(seconds) + 1)},
            )
        client.let_in()
        return client.key.name

    def _is_demanded(self, server: tuple[str, int | None] | None) -> bool:
        if self._demanded != "auto":
            return True
        if server is None:
            return True
        host, port = server
        return port is not None and not _local(host)  # a Unix socket has no port, and the file system's own doors

    def _no_key(self, is_stated: bool) -> Refused:
        if not self._keys.is_readable:
            return Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the endpoint cannot read its keys; its log says more")
        if is_stated and len(self._keys):
            error = "the key is not known here"
        elif len(self._keys):
            error = "a key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`"
        else:
            error = (
                f"a key is needed on this address, and none has been made; `bloomery key create NAME` makes one, and "
                f"{KEYS_FILE} tells the endpoint of its file"
            )
        return Refused(
            HTTPStatus.UNAUTHORIZED,
            error,
            headers={"www-authenticate": 'Bearer realm="bloomery"', "connection": "close"},
        )

    def _told(self, refused: Refused, path: str) -> Reply:
        if path not in ASKED:
            is_asking = refused.status == HTTPStatus.UNAUTHORIZED
            basic = (b"www-authenticate", b'Basic realm="the key is the password"')
            return refusal(refused, (basic,) if is_asking else ())
        if self._refused is not None:
            self._refused(refused.status, 0.0)
        return refusal(refused)


def settled(environment: Mapping[str, str]) -> tuple[Demand, Path | None]:
    """Where keys are demanded, and the file that holds them.

    Raises:
        SettingInvalid: a variable is not what it must be.
        SecretMissing: keys are required everywhere, and there is none.
        DocumentInvalid: the file of keys cannot be read.
    """
    demanded, path = demand(environment), stated_path(environment, KEYS_FILE)
    keys = read_keys(path).in_use() if path and demanded != "off" else ()
    if demanded == "required" and not keys:
        raise SecretMissing(
            f"{DEMANDED} is required, and there is no key",
            required=f"a key in use, in the file that {KEYS_FILE} names",
            where=str(path or f"{KEYS_FILE}, which is not set"),
            remedy="make one with `bloomery key create NAME`",
        )
    return demanded, path


def doors(
    application: Front,
    environment: Mapping[str, str],
    usage: Usage,
    refused: Callable[[int, float], None] | None = None,
) -> Front:
    """`application` behind the doors that the environment asks for; itself where it asks for none.

    `refused` is told the status and the seconds of a request for an answer that is refused. Raises as `settled` does.
    """
    demanded, path = settled(environment)
    return application if demanded == "off" else Doors(application, demanded, KeyRing(path, usage), refused)


def _stated(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The key that a client sends; empty where there is none."""
    stated = b""
    for name, value in headers:
        if name == b"x-api-key":  # `authorization` may be for somebody on the way
            return value.strip()
        if name == b"authorization":
            stated = value
    scheme, _, rest = stated.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return rest.strip()
        case b"basic":  # of a browser, which knows no other way to ask its user
            try:
                return base64.b64decode(rest.strip()).partition(b":")[2]
            except binascii.Error:
                return b""
    return b""


def with_keys(document: dict[str, Any], demanded: Demand) -> dict[str, Any]:
    """The OpenAPI document with what keys are demanded for."""
    if demanded == "off":
        return document
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key that `bloomery key create` has made"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key"},
    }
    needed: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    if demanded == "auto":
        needed.append({})  # nothing is needed on loopback
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    refused = {
        "401": {
            "description": "no key, or an unknown one",
            "content": content,
            "headers": {"www-authenticate": {"schema": {"type": "string"}}},
        },
        "403": {"description": "the key was revoked", "content": content},
        "429": {
            "description": "more requests than the key is good for",
            "content": content,
            "headers": {"retry-after": {"schema": {"type": "integer"}}},
        },
    }
    for path, operations in document["paths"].items():
        if path not in OPEN:
            for operation in operations.values():
                operation["security"] = needed
                operation["responses"].update(refused)
    document["components"]["securitySchemes"] = schemes
    return document
