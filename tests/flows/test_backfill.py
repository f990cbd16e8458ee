"""Dated recipes: run by period, filled in from the oldest on, and no older one replaces a newer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_contracts.errors import RecipeInvalid, SettingInvalid
from flows.recipe import read_recipe

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
every: month
features:
  key: id
  label: fare
  task: regression
  inputs: [{kind: number, columns: [miles]}]
  split: {train: 0.6, val: 0.1, test: 0.3, salt: trips}
model: {kind: mlp, hidden: [4]}
training: {epochs: 1, seed: 0}
compression: {candidates: [{name: fp32}]}
gates: {champion_rise: 99, num_rows: 10}
"""


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """A dated recipe, with the data of three months."""
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
    assert (recipe.period, recipe.data.described) == ("2019-02", str(dated.parent / "trips-2019-02.csv"))
    assert recipe.digest != read_recipe(str(dated), "2019-03").digest
    newest = read_recipe(str(dated)).period
    assert newest is not None
    assert newest > "2026"
    with pytest.raises(SettingInvalid, match="'2019-W02' is no month, such as 2019-02"):
        read_recipe(str(dated), "2019-W02")
    with pytest.raises(SettingInvalid, match=r"digits\.yaml is for all times"):
        read_recipe("digits", "2019-02")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every": None}, "data that names a period needs its length"),
        ({"data": {"source": "trips.csv"}}, "no source says where the period stands"),
        ({"data": {"source": "trips-{period}.csv"}}, "a period is written as in {period:%Y-%m}"),
    ],
)
def test_a_period_is_named_and_has_a_length(dated: Path, changes: dict[str, Any], said: str) -> None:
    dated.write_text(yaml.safe_dump({**yaml.safe_load(RECIPE), **changes}))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(str(dated), "2019-02")
    assert said in caught.value.found


@pytest.mark.slow
def test_periods_are_filled_in_and_no_older_one_replaces_a_newer(
    dated: Path, tmp_path: Path, bloomery: Bloomery
) -> None:
    home = tmp_path / "home"

    def fill(first: str, last: str, *more: str) -> tuple[int, Any]:
        ended = bloomery(home, "backfill", str(dated), "--from", first, "--to", last, "--json", *more)
        return ended.returncode, json.loads(ended.stdout)

    code, told = fill("2019-01", "2019-04")
    assert (code, told["error"]) == (2, "DataMissing")
    assert "1 of 4 periods have no data:\n  2019-04: there is no csv file" in told["found"]
    assert not (home / "stages").exists()
    good = (dated.parent / "trips-2019-02.csv").read_text()
    (dated.parent / "trips-2019-02.csv").write_text("id,miles\n1,2\n")
    code, told = fill("2019-02", "2019-03")
    assert code == 3 or told["periods"][0]["error"]["exit_code"] == code
    assert [one["outcome"] for one in told["periods"]] == ["failed", "not run"]
    (dated.parent / "trips-2019-02.csv").write_text(good)
    code, told = fill("2019-02", "2019-03")
    assert code == 0, told
    assert [(one["outcome"], one["version"], one["alias"]) for one in told["periods"]] == [
        ("released", 1, "2019-02"),
        ("released", 2, "champion"),
    ]
    code, told = fill("2019-01", "2019-03")
    assert code == 0, told
    assert [(one["outcome"], one["version"], one["alias"]) for one in told["periods"]] == [
        ("released", 3, "2019-01"),
        ("done", 1, "2019-02"),
        ("done", 2, "champion"),
    ]
    shown = json.loads(bloomery(home, "show", "trips@2019-01", "--json").stdout)
    assert (shown["version"], shown["release"]) == (3, "older data: of 2019-01, and the champion is of 2019-03")
    assert json.loads(bloomery(home, "show", "trips", "--json").stdout)["versions"][1]["aliases"] == ["champion"]
