"""Who is let in: by which address, by which key, how often, and how soon a revoked key is none."""

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
from bloomery.data_contracts.serving.api_keys import Key, Keys, demand, digest_of_key, is_loopback
from bloomery.deployments.endpoint.asgi.documentation import openapi
from bloomery.deployments.endpoint.auth import middleware as doors_module
from bloomery.deployments.endpoint.auth.middleware import KeyRing, Usage, doors, settled, with_keys
from bloomery.deployments.endpoint.inference.model_version import Version

SHOP, SLOW, GONE = "bloomery_shop", "bloomery_slow", "bloomery_gone"
OPEN_ADDRESS = "203.0.113.7"


def kept(*keys: tuple[str, str, float | None, str | None]) -> bytes:
    """The file of keys: each a name, the key itself, its rate, and when it was revoked."""
    made = [
        Key(name=name, sha256=digest_of_key(key.encode()), rate=rate, made="2026-01-01T00:00:00Z", revoked=revoked)
        for name, key, rate, revoked in keys
    ]
    return Keys(keys=tuple(made)).model_dump_json().encode()


def replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".beside")
    beside.write_bytes(content)
    beside.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "clients.json"
    gone = ("gone", GONE, None, "2026-02-03T04:05:06Z")
    path.write_bytes(kept(("shop", SHOP, None, None), ("slow", SLOW, 2.0, None), gone))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the doors see; a test moves them on."""
    now = [1000.0]
    monkeypatch.setattr(doors_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def usage(registry: CollectorRegistry) -> Usage:
    return Usage(registry)


@pytest.fixture
def refused() -> list[int]:
    return []


@pytest.fixture
def made(path, usage, refused) -> Callable[..., Any]:
    """Makes doors before an application that answers 200."""

    def make(**environment: str) -> Any:
        stated = {"BLOOMERY_SERVE_KEYS_FILE": str(path), **environment}
        return doors(answering, stated, usage, lambda status, _: refused.append(status))

    return make


async def answering(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"let in"})


def ask(application: Any, path: str = "/predict", address: Any = OPEN_ADDRESS, method: str = "POST", **headers: str):
    """The response to one request that came in on `address`: a host, or what ASGI calls `server`."""
    server = (address, 3000) if isinstance(address, str) else address

    async def at(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "server": server}, receive, send)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(at)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return asyncio.run(call())


def bearer(key: str) -> str:
    return f"Bearer {key}"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_on_loopback_nobody_needs_a_key(made, address) -> None:
    assert ask(made(), address=address).status_code == 200
    assert ask(made(BLOOMERY_SERVE_KEYS="required"), address=address).status_code == 401


@pytest.mark.parametrize(
    "address", [OPEN_ADDRESS, "10.0.0.5", "fd00::2", "::ffff:10.0.0.5", "fe80::1%eth0", "localhost"]
)
def test_on_any_other_address_everybody_does(made, address) -> None:
    assert ask(made(), address=address).status_code == 401
    assert ask(made(), address=address, authorization=bearer(SHOP)).status_code == 200
    assert ask(made(BLOOMERY_SERVE_KEYS="off"), address=address).status_code == 200


def test_an_unknown_address_needs_a_key_and_a_unix_socket_none(made) -> None:
    assert ask(made(), address=None).status_code == 401
    assert ask(made(), address=("/run/endpoint.sock", None)).status_code == 200


def test_headers_do_not_say_on_which_address_a_request_came_in(made) -> None:
    told = ask(made(), host="127.0.0.1", x_forwarded_for="127.0.0.1", forwarded="for=127.0.0.1", x_real_ip="127.0.0.1")
    assert told.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": bearer(SHOP)},
        {"authorization": f"bearer   {SHOP} "},
        {"x_api_key": SHOP},
        {"x_api_key": SHOP, "authorization": "Bearer for-somebody-else"},
        {"authorization": "Basic " + base64.b64encode(f"me:{SHOP}".encode()).decode()},
    ],
)
def test_a_key_may_be_sent_in_the_usual_ways(made, headers) -> None:
    assert ask(made(), **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": SHOP},
        {"authorization": bearer(SHOP[:-1])},
        {"authorization": bearer(SHOP + "x")},
        {"authorization": bearer(digest_of_key(SHOP.encode()))},
        {"authorization": "Basic %%%"},
        {"authorization": f"Digest {SHOP}"},
        {"x_api_key": ""},
    ],
)
def test_whoever_has_no_key_is_told_how_to_send_one(made, refused, headers) -> None:
    told = ask(made(), **headers)
    assert (told.status_code, set(told.json())) == (401, {"error", "problems"})
    assert told.headers["www-authenticate"] == 'Bearer realm="bloomery"'
    assert told.headers["connection"] == "close"
    assert "key" in told.json()["error"]
    assert refused == [401]


@pytest.mark.parametrize("page", ["/info", "/docs", "/openapi.json", "/", "/metrics", "/schema.json", "/nowhere"])
def test_every_page_needs_the_key_and_a_browser_may_ask_for_it(made, refused, page) -> None:
    told = ask(made(), path=page, method="GET")
    assert told.status_code == 401
    assert "Basic" in told.headers["www-authenticate"]
    assert ask(made(), path=page, method="GET", x_api_key=SHOP).status_code == 200
    assert refused == []  # those are no requests for predictions


@pytest.mark.parametrize("page", ["/livez", "/readyz", "/healthz"])
def test_whoever_watches_the_process_needs_no_key(made, page) -> None:
    assert ask(made(BLOOMERY_SERVE_KEYS="required"), path=page, method="GET").status_code == 200


def test_a_revoked_key_is_told_so(made) -> None:
    told = ask(made(), authorization=bearer(GONE))
    assert told.status_code == 403
    assert told.json()["error"] == "the key gone was revoked at 2026-02-03T04:05:06Z"


def test_a_change_of_the_file_is_seen_within_a_second(made, path, clock) -> None:
    application = made()
    assert ask(application, x_api_key=SHOP).status_code == 200
    replace(path, kept(("shop", SHOP, None, "2026-03-01T00:00:00Z"), ("new", "bloomery_new", None, None)))
    clock[0] += 0.6
    assert ask(application, x_api_key=SHOP).status_code == 403
    assert ask(application, x_api_key="bloomery_new").status_code == 200
    path.unlink()
    clock[0] += 0.6
    assert ask(application, x_api_key="bloomery_new").status_code == 401


def test_the_file_is_looked_at_twice_a_second_at_most(made, path, clock, monkeypatch) -> None:
    application, num_looks = made(), 0
    state = KeyRing._state

    def counted(ring: KeyRing) -> object:
        nonlocal num_looks
        num_looks += 1
        return state(ring)

    monkeypatch.setattr(KeyRing, "_state", counted)
    for _ in range(50):
        clock[0] += 0.1
        ask(application, x_api_key=SHOP)
    assert 7 <= num_looks <= 10


def test_nobody_is_let_in_while_the_file_cannot_be_read(made, path, clock) -> None:
    application = made()
    replace(path, b"{")
    clock[0] += 0.6
    assert ask(application, x_api_key=SHOP).status_code == 503
    replace(path, kept(("shop", SHOP, None, None)))
    clock[0] += 0.6
    assert ask(application, x_api_key=SHOP).status_code == 200


def test_a_keys_rate_holds_and_a_change_of_the_file_does_not_refill_it(made, path, clock) -> None:
    application = made()
    told = [ask(application, x_api_key=SLOW) for _ in range(4)]
    assert [one.status_code for one in told] == [200, 200, 429, 429]
    assert told[2].headers["retry-after"] == "1"
    assert ask(application, x_api_key=SHOP).status_code == 200  # another's rate is another's
    replace(path, kept(("slow", SLOW, 2.0, None), ("shop", SHOP, None, None)))
    clock[0] += 0.55
    assert [ask(application, x_api_key=SLOW).status_code for _ in range(2)] == [200, 429]
    clock[0] += 60
    assert [ask(application, x_api_key=SLOW).status_code for _ in range(3)] == [200, 200, 429]


def test_a_rate_below_one_is_one_request_in_its_time(made, path, clock) -> None:
    path.write_bytes(kept(("rare", "bloomery_rare", 0.1, None)))
    application = made()
    assert ask(application, x_api_key="bloomery_rare").status_code == 200
    told = ask(application, x_api_key="bloomery_rare")
    assert (told.status_code, told.headers["retry-after"]) == (429, "11")
    clock[0] += 10.1
    assert ask(application, x_api_key="bloomery_rare").status_code == 200


def test_use_is_counted_by_key_and_strangers_make_no_labels(made, registry) -> None:
    application = made()
    for key in (SHOP, SHOP, SLOW, SLOW, SLOW, GONE, "bloomery_stranger", "another"):
        ask(application, x_api_key=key)
    counted = {
        (sample.labels["key"], sample.labels["outcome"]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert {key: value for key, value in counted.items() if value} == {
        ("shop", "let in"): 2,
        ("slow", "let in"): 2,
        ("slow", "over"): 1,
        ("gone", "revoked"): 1,
    }
    assert {name for name, _ in counted} == {"shop", "slow", "gone"}


def test_without_any_key_the_answer_says_how_to_make_one(made, path) -> None:
    path.unlink()
    told = ask(made(), x_api_key=SHOP)
    assert told.status_code == 401
    assert "bloomery key create" in told.json()["error"]
    assert "BLOOMERY_SERVE_KEYS_FILE" in told.json()["error"]
    with pytest.raises(SecretMissing, match="there is no key"):
        made(BLOOMERY_SERVE_KEYS="required")


def test_where_none_are_demanded_there_are_no_doors(made) -> None:
    assert made(BLOOMERY_SERVE_KEYS="off") is answering


def test_a_websocket_without_a_key_is_closed(made) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/predict", "headers": [], "server": (OPEN_ADDRESS, 3000)}
    asyncio.run(made()(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"BLOOMERY_SERVE_KEYS": "on"}, SettingInvalid),
        ({"BLOOMERY_SERVE_KEYS_FILE": "keys.json"}, SettingInvalid),
        ({"BLOOMERY_SERVE_KEYS": "required", "BLOOMERY_SERVE_KEYS_FILE": ""}, SecretMissing),
        ({"BLOOMERY_SERVE_KEYS_FILE": os.path.dirname(__file__)}, DocumentInvalid),
    ],
)
def test_an_endpoint_that_is_told_nonsense_does_not_start(environment, kind) -> None:
    with pytest.raises(kind):
        settled(environment)


def test_demands_have_a_default_and_addresses_that_are_names_are_not_trusted() -> None:
    assert demand({}) == demand({"BLOOMERY_SERVE_KEYS": ""}) == "auto"
    assert not is_loopback("localhost")
    assert not is_loopback("")


def test_the_openapi_page_says_where_a_key_is_needed(packaged: Callable[..., Path]) -> None:
    version = Version(packaged())
    assert "security" not in json.dumps(with_keys(openapi(version), "off"))
    optional, needed = (with_keys(openapi(version), how) for how in ("auto", "required"))
    assert optional["paths"]["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}, {}]
    assert needed["paths"]["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert {"401", "403", "429"} <= set(needed["paths"]["/info"]["get"]["responses"])
    assert "security" not in needed["paths"]["/livez"]["get"]
    assert set(needed["components"]["securitySchemes"]) == {"bearer", "header"}
