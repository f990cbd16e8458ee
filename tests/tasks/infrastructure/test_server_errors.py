"""An error about a server that does not respond names the server, and has a remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from bloomery.tasks.infrastructure.server_errors import unreachable_server_error
from bloomery.tasks.infrastructure.settings import Settings, settings

ADDRESS = "http://127.0.0.1:4200"


def raised(raise_failure: object) -> BaseException:
    try:
        raise_failure()  # type: ignore[operator]
    except BaseException as failure:
        return failure
    raise AssertionError("nothing was raised")


def refused() -> None:
    httpx.get("http://127.0.0.1:9/api/health", trust_env=False)


def prefect_client() -> None:
    try:
        refused()
    except httpx.HTTPError as failure:
        raise RuntimeError(f"Failed to reach API at {ADDRESS}/api/") from failure


def mlflow_client() -> None:
    try:
        requests.get("http://127.0.0.1:9/mlflow", timeout=1)
    except requests.RequestException as failure:
        raise MlflowException(f"API request failed with exception {failure}")  # noqa: B904 - as MLflow does


def configured(home: Path, prefect: str | None = None, tracking: str = "sqlite:///x.db") -> Settings:
    return replace(settings(), home=home, prefect_api_url=prefect, tracking_uri=tracking)


@pytest.mark.parametrize(
    ("failure", "prefect", "tracking", "found", "remedy"),
    [
        (refused, None, "sqlite:///x.db", "a server of this command at http://127.0.0.1:9/", "less busy"),
        (
            refused,
            "http://127.0.0.1:9/api",
            "sqlite:///x.db",
            "Prefect's server at http://127.0.0.1:9/",
            "bloomery status",
        ),
        (prefect_client, f"{ADDRESS}/api", "sqlite:///x.db", f"Prefect's server at {ADDRESS}/api/", "PREFECT_API_URL"),
        (prefect_client, None, "sqlite:///x.db", f"a server of this command at {ADDRESS}/api/", "prefect-server.log"),
        (mlflow_client, None, "http://127.0.0.1:9", "MLflow's server at", "MLFLOW_TRACKING_URI"),
    ],
)
def test_an_unreachable_server_is_named_with_a_remedy(
    tmp_path: Path, failure: object, prefect: str | None, tracking: str, found: str, remedy: str
) -> None:
    error = unreachable_server_error(raised(failure), configured(tmp_path, prefect, tracking))
    assert error is not None
    assert error.found.startswith(found)
    assert remedy in error.remedy
    assert "continues after them" in error.remedy


def test_other_failures_are_reported_unchanged(tmp_path: Path) -> None:
    def fall_back() -> None:
        try:
            refused()
        except httpx.HTTPError:
            raise ValueError("another problem")  # noqa: B904 - the handled failure is only its context

    for failure in (ValueError("x"), RuntimeError("y"), httpx.InvalidURL("z"), raised(fall_back)):
        assert unreachable_server_error(failure, configured(tmp_path)) is None


@pytest.mark.parametrize(
    "failure",
    [
        UnsupportedModelRegistryStoreURIException("nonsense://", ["sqlite", "http"]),
        MlflowException(
            "API request to endpoint /api/2.0/mlflow/experiments/get-by-name failed with error code 404 != 200"
        ),
    ],
)
def test_an_address_without_mlflow_is_named(tmp_path: Path, failure: MlflowException) -> None:
    error = unreachable_server_error(failure, configured(tmp_path, tracking="nonsense://"))
    assert error is not None
    assert "MLFLOW_TRACKING_URI is 'nonsense://'" in error.found
    assert "unset it" in error.remedy
    assert unreachable_server_error(MlflowException("No such run"), configured(tmp_path)) is None
