"""The endpoint against its own OpenAPI document: schemathesis generates valid and invalid requests from it, and checks
every response against it."""

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

from bloomery.data_contracts.serving.api_keys import ApiKey, ApiKeys, hash_key
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.auth.key_ring import KeyMetrics
from bloomery.deployments.endpoint.auth.middleware import require_keys
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from tests.examples import examples

pytestmark = pytest.mark.slow

KEY = "blm_fuzz"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}  # schemathesis expects this capitalization
BENTOML_PATHS = ["/livez", "/readyz", "/metrics"]
# An invalid request may also be too large, which the endpoint checks first.
REJECTED = ["400", "401", "403", "405", "413", "415", "422", "429"]
CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REJECTED}}})


@pytest.fixture(scope="module", params=["classification", "regression"])
def application(request: Any, packaged: Callable[..., Path], metrics: Metrics) -> Application:
    application = Application(Limits(body_bytes=200_000, rows=100, explain_evaluations=64), metrics)
    application.use_version(LoadedVersion(packaged(tag="people:fuzz", is_regression=request.param == "regression")))
    return application


@pytest.fixture
def protected(packaged: Callable[..., Path], metrics: Metrics, tmp_path: Path) -> Any:
    """An endpoint that requires a key."""
    path = tmp_path / "clients.json"
    key = ApiKey(
        name="fuzz", sha256=hash_key(KEY.encode()), rate=None, created_at="2026-01-01T00:00:00Z", revoked_at=None
    )
    path.write_text(ApiKeys(keys=(key,)).model_dump_json())
    application = Application(Limits(explain_evaluations=64), metrics, "required")
    application.use_version(LoadedVersion(packaged(tag="people:protected")))
    environment = {"BLOOMERY_SERVE_KEYS_FILE": str(path), "BLOOMERY_SERVE_KEYS": "required"}
    return require_keys(application, environment, KeyMetrics(CollectorRegistry()), lambda status, _: None)


def collect_statuses(application: Any, mode: GenerationMode, num_cases: int, **headers: str) -> Counter[int]:
    """The statuses of `num_cases` requests per operation, after checking each response against the document."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", application, config=CONFIG, headers=headers)
    schema = schema.exclude(path=BENTOML_PATHS)
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == GenerationMode.NEGATIVE and operation.method == "get":
            continue  # a GET has no input to invalidate

        @settings(max_examples=examples(num_cases), derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            statuses[case.call_and_validate(headers=headers).status_code] += 1

        send()
    return statuses


def test_valid_requests_succeed(application: Application) -> None:
    statuses = collect_statuses(application, GenerationMode.POSITIVE, 80)
    assert set(statuses) == {200}, statuses
    assert statuses[200] > examples(150)


def test_invalid_requests_are_rejected(application: Application) -> None:
    statuses = collect_statuses(application, GenerationMode.NEGATIVE, 80)
    assert set(statuses) <= {200, 400, 405, 413, 415, 422}, statuses  # 200: an extra query parameter is no error
    assert statuses[422] > examples(50), statuses


def test_requests_without_a_key_are_rejected(protected: Any) -> None:
    """schemathesis repeats each admitted request without the key and with invented keys."""
    statuses = collect_statuses(protected, GenerationMode.POSITIVE, 15, **WITH_KEY)
    assert set(statuses) == {200, 401}, statuses
