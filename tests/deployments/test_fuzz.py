"""The endpoint against its own OpenAPI page: schemathesis makes requests of it, good ones and broken ones, and holds
every answer against what the page promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from prometheus_client import CollectorRegistry
from schemathesis import GenerationMode

from bloomery.data_contracts.serving.api_keys import Key, Keys, digest_of_key
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.auth.middleware import Usage, doors
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.telemetry.metrics import Measures

pytestmark = pytest.mark.slow

KEY = "blm_fuzz"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}  # schemathesis looks for the name in capitals
OF_BENTOML = ["/livez", "/readyz", "/metrics"]


@pytest.fixture(scope="module", params=["classes", "figures"])
def application(request: Any, packaged: Callable[..., Path], measures: Measures) -> Application:
    application = Application(Limits(body_bytes=200_000, rows=100, explain_evaluations=64), measures)
    application.use(Version(packaged(tag="people:fuzz", is_regression=request.param == "figures")))
    return application


@pytest.fixture
def closed(packaged: Callable[..., Path], measures: Measures, tmp_path: Path) -> Any:
    """An endpoint that demands a key."""
    path = tmp_path / "clients.json"
    key = Key(name="fuzz", sha256=digest_of_key(KEY.encode()), rate=None, made="2026-01-01T00:00:00Z", revoked=None)
    path.write_text(Keys(keys=(key,)).model_dump_json())
    application = Application(Limits(explain_evaluations=64), measures, "required")
    application.use(Version(packaged(tag="people:closed")))
    stated = {"BLOOMERY_SERVE_KEYS_FILE": str(path), "BLOOMERY_SERVE_KEYS": "required"}
    return doors(application, stated, Usage(CollectorRegistry()), lambda status, _: None)


def told(application: Any, mode: GenerationMode, num_cases: int, **headers: str) -> Counter[int]:
    """The statuses of so many cases for each operation of the page, all of which keep its promises."""
    page = schemathesis.openapi.from_asgi("/openapi.json", application, headers=headers).exclude(path=OF_BENTOML)
    statuses: Counter[int] = Counter()
    for found in page.get_all_operations():
        operation = found.ok()
        if mode == GenerationMode.NEGATIVE and operation.method == "get":
            continue  # pages take nothing that could be broken

        @settings(max_examples=num_cases, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            statuses[case.call_and_validate(headers=headers).status_code] += 1

        ask()
    return statuses


def test_whatever_rows_the_page_allows_are_answered(application: Application) -> None:
    statuses = told(application, GenerationMode.POSITIVE, 80)
    assert set(statuses) == {200}, statuses
    assert statuses[200] > 150


def test_whatever_rows_it_does_not_allow_are_refused(application: Application) -> None:
    statuses = told(application, GenerationMode.NEGATIVE, 80)
    assert set(statuses) <= {200, 400, 405, 413, 415, 422}, statuses  # 200: a further argument of the query is no fault
    assert statuses[422] > 50, statuses


def test_nobody_comes_in_without_a_key(closed: Any) -> None:
    """schemathesis leaves the key out of every request that was let in, and invents others."""
    statuses = told(closed, GenerationMode.POSITIVE, 15, **WITH_KEY)
    assert set(statuses) == {200, 401}, statuses
