"""What became of requests is counted, also of those that the log of predictions has no row of."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bloomery.data_contracts.serving.prediction_log import OUTCOMES, read_log, read_outcomes
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.telemetry.metrics import Measures
from bloomery.deployments.endpoint.telemetry.outcome_log import Outcomes

GOOD = {"age": 30, "height": 1.7, "town": "york"}


def ask(application: Application, bodies: list[Any], path: str = "/predict") -> list[int]:
    async def call() -> list[int]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            headers = {"content-type": "application/json"}
            return [(await client.post(path, content=json.dumps(body), headers=headers)).status_code for body in bodies]

    return asyncio.run(call())


def test_refused_requests_are_counted_with_the_rules_that_they_broke(
    packaged: Callable[..., Path], measures: Measures, tmp_path: Path
) -> None:
    application = Application(Limits(explain_evaluations=8), measures)
    application.use(Version(packaged()))
    outcomes = Outcomes(tmp_path, seconds_between_writes=60)
    outcomes.start()
    application.on_asked.append(outcomes)
    bad = [{"rows": [{**GOOD, "age": 200}, {**GOOD, "age": -1}]}, {"rows": [{**GOOD, "town": None}]}, {"lines": []}]
    statuses = ask(application, [{"rows": [GOOD]}] * 3 + bad)
    ask(application, [{"rows": [{**GOOD, "age": 200}]}], "/explain")
    outcomes.end()
    (told,) = read_outcomes(tmp_path)
    assert (told.version, told.statuses) == ("people:one", dict(Counter(statuses)))
    assert told.statuses[200] == 3
    assert sum(count for rule, count in told.broken.items() if rule.startswith("age: ")) == 2
    assert sum(count for rule, count in told.broken.items() if rule.startswith("town: ")) == 1
    assert list(read_log(tmp_path, ["row"])) == []


def test_what_clients_make_up_does_not_let_the_lines_grow(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path)
    outcomes.start()
    for number in range(500):
        outcomes("people:one", 422, [{"column": f"made-up-{number}" * 100, "rule": "is unknown"}])
    outcomes.end()
    (told,) = read_outcomes(tmp_path)
    assert len(told.broken) == 101
    assert told.broken["others"] == 400
    assert max(map(len, told.broken)) == 200


def test_a_line_that_was_broken_off_is_left_out_and_the_day_is_asked_for(tmp_path: Path) -> None:
    for _ in range(2):
        outcomes = Outcomes(tmp_path)
        outcomes.start()
        outcomes("people:one", 200, [])
        outcomes.end()
    (path,) = tmp_path.glob(f"day=*/*{OUTCOMES}")
    assert len(list(read_outcomes(tmp_path))) == 2
    path.write_text(path.read_text()[:-10])
    (told,) = read_outcomes(tmp_path)
    assert list(read_outcomes(tmp_path, told.at.date())) == [told]
    path.parent.rename(tmp_path / "day=2020-01-01")
    assert list(read_outcomes(tmp_path, told.at.date())) == []


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").write_text("no folder")
    outcomes = Outcomes(tmp_path / "log")
    outcomes.start()
    outcomes("people:one", 200, [])
    outcomes.end()
    assert "answering goes on" in caplog.text
