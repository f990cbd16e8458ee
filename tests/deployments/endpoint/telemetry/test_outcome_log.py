"""Outcomes are counted for all requests, including those without a row in the prediction log."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bloomery.data_contracts.serving.prediction_log import OUTCOMES_SUFFIX, read_log, read_outcomes
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.deployments.endpoint.telemetry.outcome_log import OutcomeLog

GOOD = {"age": 30, "height": 1.7, "town": "york"}


def ask(application: Application, bodies: list[Any], path: str = "/predict") -> list[int]:
    async def call() -> list[int]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            headers = {"content-type": "application/json"}
            return [(await client.post(path, content=json.dumps(body), headers=headers)).status_code for body in bodies]

    return asyncio.run(call())


def test_rejected_requests_are_counted_with_their_violations(
    packaged: Callable[..., Path], metrics: Metrics, tmp_path: Path
) -> None:
    application = Application(Limits(explain_evaluations=8), metrics)
    application.use_version(LoadedVersion(packaged()))
    log = OutcomeLog(tmp_path, write_interval_s=60)
    log.start()
    application.request_listeners.append(log)
    invalid = [{"rows": [{**GOOD, "age": 200}, {**GOOD, "age": -1}]}, {"rows": [{**GOOD, "town": None}]}, {"lines": []}]
    statuses = ask(application, [{"rows": [GOOD]}] * 3 + invalid)
    ask(application, [{"rows": [{**GOOD, "age": 200}]}], "/explain")
    log.close()
    (outcome,) = read_outcomes(tmp_path)
    assert (outcome.version, outcome.statuses) == ("people:one", dict(Counter(statuses)))
    assert outcome.statuses[200] == 3
    assert sum(count for rule, count in outcome.violations.items() if rule.startswith("age: ")) == 2
    assert sum(count for rule, count in outcome.violations.items() if rule.startswith("town: ")) == 1
    assert list(read_log(tmp_path, ["row"])) == []


def test_column_names_chosen_by_clients_do_not_grow_the_file(tmp_path: Path) -> None:
    log = OutcomeLog(tmp_path)
    log.start()
    for number in range(500):
        log("people:one", 422, [{"column": f"made-up-{number}" * 100, "rule": "is unknown"}])
    log.close()
    (outcome,) = read_outcomes(tmp_path)
    assert len(outcome.violations) == 101
    assert outcome.violations["others"] == 400
    assert max(map(len, outcome.violations)) == 200


def test_an_incomplete_line_and_earlier_days_are_left_out(tmp_path: Path) -> None:
    for _ in range(2):
        log = OutcomeLog(tmp_path)
        log.start()
        log("people:one", 200, [])
        log.close()
    (path,) = tmp_path.glob(f"day=*/*{OUTCOMES_SUFFIX}")
    assert len(list(read_outcomes(tmp_path))) == 2
    path.write_text(path.read_text()[:-10])
    (outcome,) = read_outcomes(tmp_path)
    assert list(read_outcomes(tmp_path, outcome.at.date())) == [outcome]
    path.parent.rename(tmp_path / "day=2020-01-01")
    assert list(read_outcomes(tmp_path, outcome.at.date())) == []


def test_an_unwritable_folder_does_not_stop_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").write_text("no folder")
    log = OutcomeLog(tmp_path / "log")
    log.start()
    log("people:one", 200, [])
    log.close()
    assert "serving continues" in caplog.text
