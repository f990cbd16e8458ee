"""Dated recipes: runs by period and backfills, in which no older version replaces a newer champion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid, SettingInvalid
from bloomery.flows.cli.commands.backfill import _PeriodRun, _recipes, _require_data, _run_all
from bloomery.flows.recipe.recipe import read_recipe

Bloomery = Callable[..., subprocess.CompletedProcess[str]]
CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: trips-for-a-test
name: trips
version: 1.0.0
status: active
schema:
  - name: trips
    properties:
      - {name: id, logicalType: integer, primaryKey: true, required: true}
      - {name: miles, logicalType: number, required: true}
      - {name: fare, logicalType: number, required: true}
"""
RECIPE = """
name: trips
data: {source: 'trips-{period:%Y-%m}.csv'}
contract: trips.odcs.yaml
period_length: month
features:
  key: id
  label: fare
  task: regression
  inputs: [{kind: number, columns: [miles]}]
  split: {train: 0.6, val: 0.1, test: 0.3, salt: trips}
model: {kind: mlp, hidden: [4]}
training: {epochs: 1, seed: 0, explain: null}
compression: {candidates: [{name: fp32}]}
gates: {champion_rise: 99, num_rows: 10}
"""


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """Writes a dated recipe, with the data of three months."""
    (tmp_path / "trips.odcs.yaml").write_text(CONTRACT)
    path = tmp_path / "trips.yaml"
    path.write_text(RECIPE)
    for month in (1, 2, 3):
        miles = np.random.default_rng(month).uniform(1, 9, 200)
        rows = "".join(f"{number},{mile:.6f},{2 + month * mile:.6f}\n" for number, mile in enumerate(miles))
        (tmp_path / f"trips-2019-{month:02d}.csv").write_text("id,miles,fare\n" + rows)
    return path


def test_a_dated_recipe_is_read_for_a_period(dated: Path) -> None:
    recipe = read_recipe(str(dated), "2019-02")
    assert (recipe.period, recipe.data.description) == ("2019-02", str(dated.parent / "trips-2019-02.csv"))
    assert recipe.digest != read_recipe(str(dated), "2019-03").digest
    newest = read_recipe(str(dated)).period
    assert newest is not None
    assert newest > "2026"
    with pytest.raises(SettingInvalid, match="'2019-W02' is not a month such as 2019-02"):
        read_recipe(str(dated), "2019-W02")
    with pytest.raises(SettingInvalid, match=r"digits\.yaml has no periods"):
        read_recipe("digits", "2019-02")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"period_length": None}, "data that names a period needs month"),
        ({"data": {"source": "trips.csv"}}, "no source contains the period"),
        ({"data": {"source": "trips-{period}.csv"}}, "a period must be written as in {period:%Y-%m}"),
    ],
)
def test_a_dated_source_and_its_period_length_require_each_other(
    dated: Path, changes: dict[str, Any], message: str
) -> None:
    dated.write_text(yaml.safe_dump({**yaml.safe_load(RECIPE), **changes}))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(str(dated), "2019-02")
    assert message in caught.value.found


def test_a_backfill_requires_the_data_of_every_period(dated: Path, home: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        _require_data(_recipes(str(dated), "2019-01", "2019-04"))
    assert caught.value.exit_code == 2
    assert "1 of 4 periods have no data:\n  2019-04: there is no csv file" in caught.value.found


@pytest.mark.parametrize(("keep_going", "last"), [(False, "not run"), (True, "failed")])
def test_after_a_failure_no_period_starts_without_keep_going(
    dated: Path, home: Path, monkeypatch: pytest.MonkeyPatch, keep_going: bool, last: str
) -> None:
    """Each run is replaced by a process that fails at once."""
    error = {"error": "ContractBroken", "found": "a column is missing", "exit_code": 3}

    def fail(reference: str, period: str) -> _PeriodRun:
        out = dated.parent / f"{period}.json"
        out.write_text(json.dumps(error))
        return _PeriodRun(period, time.monotonic(), subprocess.Popen(["false"], stdin=subprocess.DEVNULL), out)

    monkeypatch.setattr("bloomery.flows.cli.commands.backfill._start", fail)
    recipes = _recipes(str(dated), "2019-01", "2019-02")
    results = list(_run_all(str(dated), recipes, 1, keep_going, lambda line: None))
    assert [result.outcome for result in results] == ["failed", last]
    assert results[0].error == error


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_backfill_completes_periods_and_no_older_version_replaces_a_newer_champion(
    is_killed: bool,
    dated: Path,
    home: Path,
    prefect: str,
    forked_bloomery: Bloomery,
    clean_environment: Callable[..., dict[str, str]],
) -> None:
    def fill(first: str, *more: str) -> tuple[int, list[tuple[str, int | None, str | None]]]:
        arguments = ("backfill", str(dated), "--from", first, "--to", "2019-03", "--json")
        # Without a kill, Python need not start again for each period.
        completed = forked_bloomery(home, *arguments, *more, forks_children=not is_killed)
        results = json.loads(completed.stdout)["periods"]
        return completed.returncode, [(result["outcome"], result["version"], result["alias"]) for result in results]

    second = dated.parent / "trips-2019-02.csv"
    rows = second.read_text()
    second.write_text("id,miles\n1,2\n")
    # A failure affects no other period: the newest runs at the same time and becomes champion.
    code, outcomes = fill("2019-02", "--concurrency", "2", "--keep-going")
    assert outcomes == [("failed", None, None), ("released", 1, "champion")]
    assert code == 3
    second.write_text(rows)

    if is_killed:
        kill_in_the_second_period(dated, home, clean_environment(home, PREFECT_API_URL=prefect))
    code, outcomes = fill("2019-01")
    assert code == 0, outcomes
    first = "done" if is_killed else "released"
    assert outcomes == [(first, 2, "2019-01"), ("released", 3, "2019-02"), ("done", 1, "champion")]
    version = json.loads(forked_bloomery(home, "show", "trips@2019-01", "--json").stdout)
    assert (version["version"], version["release"]) == (2, "older data: of 2019-01, and the champion is of 2019-03")


def kill_in_the_second_period(dated: Path, home: Path, environment: dict[str, str]) -> None:
    """Kills a backfill of three periods after the first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bloomery.flows.cli", "backfill", str(dated), "--from", "2019-01", "--to", "2019-03"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (home / "logs" / f"backfill-{process.pid}-2019-02.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
