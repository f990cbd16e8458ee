"""API key authentication: by address, by key, by rate, and after a key was revoked."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from bloomery.data_contracts.errors import DocumentInvalid, SecretMissing, SettingInvalid
from bloomery.data_contracts.serving.api_keys import ApiKey, ApiKeys, hash_key, is_loopback, read_key_policy
from bloomery.deployments.endpoint.asgi.openapi import openapi_document
from bloomery.deployments.endpoint.auth import middleware
from bloomery.deployments.endpoint.auth.key_ring import KeyMetrics, KeyRing
from bloomery.deployments.endpoint.auth.middleware import read_key_settings, require_keys
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion

SHOP_KEY, SLOW_KEY, REVOKED_KEY = "bloomery_shop", "bloomery_slow", "bloomery_gone"
OPEN_ADDRESS = "203.0.113.7"


def key_file(*keys: tuple[str, str, float | None, str | None]) -> bytes:
    """A key file: for each key a name, the key itself, its rate, and when it was revoked."""
    entries = [
        ApiKey(
            name=name, sha256=hash_key(key.encode()), rate=rate, created_at="2026-01-01T00:00:00Z", revoked_at=revoked
        )
        for name, key, rate, revoked in keys
    ]
    return ApiKeys(keys=tuple(entries)).model_dump_json().encode()


def replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "clients.json"
    revoked = ("gone", REVOKED_KEY, None, "2026-02-03T04:05:06Z")
    path.write_bytes(key_file(("shop", SHOP_KEY, None, None), ("slow", SLOW_KEY, 2.0, None), revoked))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the middleware; a test advances it."""
    now = [1000.0]
    monkeypatch.setattr(middleware.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def key_metrics(registry: CollectorRegistry) -> KeyMetrics:
    return KeyMetrics(registry)


@pytest.fixture
def rejected() -> list[int]:
    return []


@pytest.fixture
def protect(path, key_metrics, rejected) -> Callable[..., Any]:
    """Makes the middleware in front of an application that returns 200."""

    def make(**environment: str) -> Any:
        variables = {"BLOOMERY_SERVE_KEYS_FILE": str(path), **environment}
        return require_keys(admit, variables, key_metrics, lambda status, _: rejected.append(status))

    return make


async def admit(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"admitted"})


def ask(application: Any, path: str = "/predict", address: Any = OPEN_ADDRESS, method: str = "POST", **headers: str):
    """The response to one request that arrives at `address`: a host, or ASGI's `server` tuple."""
    server = (address, 3000) if isinstance(address, str) else address

    async def set_address(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "server": server}, receive, send)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(set_address)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return asyncio.run(call())


def bearer(key: str) -> str:
    return f"Bearer {key}"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_no_key(protect, address) -> None:
    assert ask(protect(), address=address).status_code == 200
    assert ask(protect(BLOOMERY_SERVE_KEYS="required"), address=address).status_code == 401


@pytest.mark.parametrize(
    "address", [OPEN_ADDRESS, "10.0.0.5", "fd00::2", "::ffff:10.0.0.5", "fe80::1%eth0", "localhost"]
)
def test_every_other_address_needs_a_key(protect, address) -> None:
    assert ask(protect(), address=address).status_code == 401
    assert ask(protect(), address=address, authorization=bearer(SHOP_KEY)).status_code == 200
    assert ask(protect(BLOOMERY_SERVE_KEYS="off"), address=address).status_code == 200


def test_an_unknown_address_needs_a_key_and_a_unix_socket_does_not(protect) -> None:
    assert ask(protect(), address=None).status_code == 401
    assert ask(protect(), address=("/run/endpoint.sock", None)).status_code == 200


def test_headers_cannot_claim_a_loopback_address(protect) -> None:
    response = ask(
        protect(), host="127.0.0.1", x_forwarded_for="127.0.0.1", forwarded="for=127.0.0.1", x_real_ip="127.0.0.1"
    )
    assert response.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": bearer(SHOP_KEY)},
        {"authorization": f"bearer   {SHOP_KEY} "},
        {"x_api_key": SHOP_KEY},
        {"x_api_key": SHOP_KEY, "authorization": "Bearer for-somebody-else"},
        {"authorization": "Basic " + base64.b64encode(f"me:{SHOP_KEY}".encode()).decode()},
    ],
)
def test_a_key_is_accepted_in_each_header(protect, headers) -> None:
    assert ask(protect(), **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": SHOP_KEY},
        {"authorization": bearer(SHOP_KEY[:-1])},
        {"authorization": bearer(SHOP_KEY + "x")},
        {"authorization": bearer(hash_key(SHOP_KEY.encode()))},
        {"authorization": "Basic %%%"},
        {"authorization": f"Digest {SHOP_KEY}"},
        {"x_api_key": ""},
    ],
)
def test_a_request_without_a_valid_key_gets_401(protect, rejected, headers) -> None:
    response = ask(protect(), **headers)
    assert (response.status_code, set(response.json())) == (401, {"error", "problems"})
    assert response.headers["www-authenticate"] == 'Bearer realm="bloomery"'
    assert response.headers["connection"] == "close"
    assert "key" in response.json()["error"]
    assert rejected == [401]


@pytest.mark.parametrize("page", ["/info", "/docs", "/openapi.json", "/", "/metrics", "/schema.json", "/nowhere"])
def test_every_page_needs_a_key_and_browsers_get_a_basic_challenge(protect, rejected, page) -> None:
    response = ask(protect(), path=page, method="GET")
    assert response.status_code == 401
    assert "Basic" in response.headers["www-authenticate"]
    assert ask(protect(), path=page, method="GET", x_api_key=SHOP_KEY).status_code == 200
    assert rejected == []  # these are no prediction requests


@pytest.mark.parametrize("page", ["/livez", "/readyz", "/healthz"])
def test_health_checks_need_no_key(protect, page) -> None:
    assert ask(protect(BLOOMERY_SERVE_KEYS="required"), path=page, method="GET").status_code == 200


def test_a_revoked_key_gets_403(protect) -> None:
    response = ask(protect(), authorization=bearer(REVOKED_KEY))
    assert response.status_code == 403
    assert response.json()["error"] == "the key gone was revoked at 2026-02-03T04:05:06Z"


def test_a_change_of_the_file_is_noticed_within_a_second(protect, path, clock) -> None:
    application = protect()
    assert ask(application, x_api_key=SHOP_KEY).status_code == 200
    replace(path, key_file(("shop", SHOP_KEY, None, "2026-03-01T00:00:00Z"), ("new", "bloomery_new", None, None)))
    clock[0] += 0.6
    assert ask(application, x_api_key=SHOP_KEY).status_code == 403
    assert ask(application, x_api_key="bloomery_new").status_code == 200
    path.unlink()
    clock[0] += 0.6
    assert ask(application, x_api_key="bloomery_new").status_code == 401


def test_the_file_is_polled_at_most_twice_per_second(protect, path, clock, monkeypatch) -> None:
    application, num_polls = protect(), 0
    stat = KeyRing._stat

    def count_and_stat(ring: KeyRing) -> object:
        nonlocal num_polls
        num_polls += 1
        return stat(ring)

    monkeypatch.setattr(KeyRing, "_stat", count_and_stat)
    for _ in range(50):
        clock[0] += 0.1
        ask(application, x_api_key=SHOP_KEY)
    assert 7 <= num_polls <= 10


def test_every_request_gets_503_while_the_file_cannot_be_read(protect, path, clock) -> None:
    application = protect()
    replace(path, b"{")
    clock[0] += 0.6
    assert ask(application, x_api_key=SHOP_KEY).status_code == 503
    replace(path, key_file(("shop", SHOP_KEY, None, None)))
    clock[0] += 0.6
    assert ask(application, x_api_key=SHOP_KEY).status_code == 200


def test_a_rate_is_enforced_and_a_change_of_the_file_does_not_refill_it(protect, path, clock) -> None:
    application = protect()
    responses = [ask(application, x_api_key=SLOW_KEY) for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 429, 429]
    assert responses[2].headers["retry-after"] == "1"
    assert ask(application, x_api_key=SHOP_KEY).status_code == 200  # another key has its own rate
    replace(path, key_file(("slow", SLOW_KEY, 2.0, None), ("shop", SHOP_KEY, None, None)))
    clock[0] += 0.55
    assert [ask(application, x_api_key=SLOW_KEY).status_code for _ in range(2)] == [200, 429]
    clock[0] += 60
    assert [ask(application, x_api_key=SLOW_KEY).status_code for _ in range(3)] == [200, 200, 429]


def test_a_rate_below_one_allows_one_request_per_interval(protect, path, clock) -> None:
    path.write_bytes(key_file(("rare", "bloomery_rare", 0.1, None)))
    application = protect()
    assert ask(application, x_api_key="bloomery_rare").status_code == 200
    response = ask(application, x_api_key="bloomery_rare")
    assert (response.status_code, response.headers["retry-after"]) == (429, "11")
    clock[0] += 10.1
    assert ask(application, x_api_key="bloomery_rare").status_code == 200


def test_requests_are_counted_by_key_and_unknown_keys_make_no_labels(protect, registry) -> None:
    application = protect()
    for key in (SHOP_KEY, SHOP_KEY, SLOW_KEY, SLOW_KEY, SLOW_KEY, REVOKED_KEY, "bloomery_stranger", "another"):
        ask(application, x_api_key=key)
    counts = {
        (sample.labels["key"], sample.labels["outcome"]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert {key: value for key, value in counts.items() if value} == {
        ("shop", "admitted"): 2,
        ("slow", "admitted"): 2,
        ("slow", "rate_limited"): 1,
        ("gone", "revoked"): 1,
    }
    assert {name for name, _ in counts} == {"shop", "slow", "gone"}


def test_without_any_key_the_error_says_how_to_create_one(protect, path) -> None:
    path.unlink()
    response = ask(protect(), x_api_key=SHOP_KEY)
    assert response.status_code == 401
    assert "bloomery key create" in response.json()["error"]
    assert "BLOOMERY_SERVE_KEYS_FILE" in response.json()["error"]
    with pytest.raises(SecretMissing, match="there is no key"):
        protect(BLOOMERY_SERVE_KEYS="required")


def test_without_required_keys_there_is_no_middleware(protect) -> None:
    assert protect(BLOOMERY_SERVE_KEYS="off") is admit


def test_a_websocket_without_a_key_is_closed(protect) -> None:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "websocket", "path": "/predict", "headers": [], "server": (OPEN_ADDRESS, 3000)}
    asyncio.run(protect()(scope, None, send))
    assert messages == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"BLOOMERY_SERVE_KEYS": "on"}, SettingInvalid),
        ({"BLOOMERY_SERVE_KEYS_FILE": "keys.json"}, SettingInvalid),
        ({"BLOOMERY_SERVE_KEYS": "required", "BLOOMERY_SERVE_KEYS_FILE": ""}, SecretMissing),
        ({"BLOOMERY_SERVE_KEYS_FILE": os.path.dirname(__file__)}, DocumentInvalid),
    ],
)
def test_invalid_settings_are_rejected(environment, kind) -> None:
    with pytest.raises(kind):
        read_key_settings(environment)


def test_the_default_policy_is_auto_and_host_names_are_not_loopback() -> None:
    assert read_key_policy({}) == read_key_policy({"BLOOMERY_SERVE_KEYS": ""}) == "auto"
    assert not is_loopback("localhost")
    assert not is_loopback("")


def test_the_openapi_document_says_where_a_key_is_needed(packaged: Callable[..., Path]) -> None:
    version = LoadedVersion(packaged())
    assert "security" not in json.dumps(openapi_document(version, "off", has_card=True))
    optional = openapi_document(version, "auto", has_card=True)
    needed = openapi_document(version, "required", has_card=True)
    assert optional["paths"]["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}, {}]
    assert needed["paths"]["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert {"401", "403", "429"} <= set(needed["paths"]["/info"]["get"]["responses"])
    assert "security" not in needed["paths"]["/livez"]["get"]
    assert set(needed["components"]["securitySchemes"]) == {"bearer", "header"}
