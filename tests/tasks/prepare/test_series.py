"""Series in the stage `prepare`: no leakage between splits, forecasts, errors, and equal bytes from every engine."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL, decode, encode, read_encoder
from bloomery.tasks.prepare.stage import prepare
from tests.tasks.prepare.features import LOCAL, SPARK, SPLIT_NAMES, make_series_features


@pytest.fixture(scope="module")
def weather() -> pa.Table:
    """4 places with 400 half hours each, some of them missing or duplicated, in random order."""
    random = np.random.default_rng(0)
    start = np.datetime64("2024-01-01T00:00:00", "us")
    place_numbers = np.repeat(np.arange(4), 400)
    complete_rows = pa.table(
        {
            "seen": pa.array(start + np.tile(np.arange(400), 4) * np.timedelta64(30, "m"), pa.timestamp("us", "UTC")),
            "place": pa.array([f"plÀce {number}" for number in place_numbers]),
            "given": pa.array([("test", "train", "train", "val")[number] for number in place_numbers]),
            "heat": pa.array(random.integers(-20, 30, 1600), pa.int64()),
            "wind": pa.array(np.where(random.random(1600) < 0.1, -0.0, random.normal(size=1600))),
            "label": pa.array(np.where(random.random(1600) < 0.5, "wet", "dry")),
            "dust": pa.array(np.cumsum(random.normal(size=1600)), mask=random.random(1600) < 0.1),
        }
    )
    rows = np.flatnonzero(random.random(1600) > 0.03)
    rows = random.permutation(np.concatenate([rows, rows[:20]]))
    keys = pa.array(random.permutation(len(rows)), pa.int64())
    return complete_rows.take(pa.array(rows)).add_column(0, "key", keys)


BY_TIME = {"by": "time", "column": "seen", "in_time": "seen"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "time": (BY_TIME, {"spacing": 1800}),
    "group": ({"by": "given", "column": "given", "apart": ["place"]}, {"length": 5}),
    "no group": (BY_TIME, {"group": None, "length": 9}),
    "no copies": (BY_TIME, {"spacing": 1800, "scale": "none"}),
    "forecast": (
        BY_TIME,
        {"label": "dust", "task": "regression", "columns": ["dust", "heat"], "horizon": 2, "missing": "previous"}
        | {"indicator": True, "spacing": 1800, "group": ["place", "given"]},
    ),
}


def make_case_features(case: str) -> Features:
    split, series = CASES[case]
    return make_series_features(split, **series).model_copy(update={"deduplicate": case == "no copies"})


def test_no_window_of_train_or_val_depends_on_test(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    features = make_case_features("time")
    before = prepare.task.fn(checked_rows_of(weather), features, LOCAL)
    is_test = pc.is_in(weather["key"], pq.read_table(home / before.test.uri)["key"].combine_chunks())
    changed = weather.set_column(4, "heat", pc.if_else(is_test, pc.multiply(weather["heat"], 1000), weather["heat"]))
    after = prepare.task.fn(checked_rows_of(changed), features, LOCAL)
    assert (before.train.sha256, before.val.sha256) == (after.train.sha256, after.val.sha256)
    assert digest_of_file(home / before.encoder_uri) == digest_of_file(home / after.encoder_uri)
    assert before.test.sha256 != after.test.sha256


def test_no_window_of_val_or_test_depends_on_train(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    features = make_case_features("no copies")  # unscaled, so that val and test do not depend on statistics of train
    before = prepare.task.fn(checked_rows_of(weather), features, LOCAL)
    last = pc.max(weather.filter(pc.is_in(weather["key"], pq.read_table(home / before.train.uri)["key"]))["seen"])
    is_train = pc.less_equal(weather["seen"], last)
    changed = weather.set_column(4, "heat", pc.if_else(is_train, pc.add(weather["heat"], 1000), weather["heat"]))
    after = prepare.task.fn(checked_rows_of(changed), features, LOCAL)
    assert (before.val.sha256, before.test.sha256) == (after.val.sha256, after.test.sha256)
    assert before.train.sha256 != after.train.sha256


def test_all_rows_are_windows_or_counted_as_dropped(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(weather)
    counts = {}
    for case in CASES:
        dataset = prepare.task.fn(checked, make_case_features(case), LOCAL)
        counts[case] = dataset.num_dropped
        assert dataset.layout.shape == make_case_features(case).inputs[0].input_shape
        num_kept = sum(getattr(dataset, name).num_rows for name in SPLIT_NAMES)
        copies = 20 if case == "no copies" else 0
        assert num_kept + dataset.num_dropped <= weather.num_rows
        assert num_kept + dataset.num_dropped >= weather.num_rows - copies
    assert counts["group"] == 4 * 4  # each place starts with four rows without a complete window
    assert counts["no group"] == 3 * 8  # each split starts with eight such rows
    assert counts["no copies"] < counts["time"]  # a copy makes a gap
    assert counts["forecast"] > counts["time"]  # the last rows have no later row, and some rows have no label


@pytest.mark.parametrize("case", ["time", "forecast"])
def test_the_endpoint_encodes_held_out_windows_as_the_stage_does(
    home: Path, weather: pa.Table, checked_rows_of: Any, case: str
) -> None:
    checked, features = checked_rows_of(weather), make_case_features(case)
    dataset = prepare.task.fn(checked, features, LOCAL)
    encoder = read_encoder(home / dataset.encoder_uri)
    raw = pq.read_table(home / dataset.test_rows_uri)
    encoded = pq.read_table(home / dataset.test.uri)
    assert raw["key"] == encoded["key"]
    parser = JsonRowParser(with_windows(checked.contract, features.window_lengths), encoder.columns)
    request_rows = json.loads(json.dumps(raw.select(list(dataset.inputs)).to_pylist()))
    x = encode(encoder, parser.parse_table(request_rows))
    assert x.reshape(len(request_rows), -1).tolist() == encoded[ENCODED_INPUT].to_pylist()
    assert any(None in row[name] for row in request_rows for name in dataset.inputs) == (case == "forecast")


def test_a_forecast_has_the_label_of_the_later_row(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    features = make_case_features("forecast")
    dataset = prepare.task.fn(checked_rows_of(weather), features, LOCAL)
    assert (dataset.task, dataset.classes) == ("regression", ())
    encoder = read_encoder(home / dataset.encoder_uri)
    encoded = pq.read_table(home / dataset.test.uri)
    assert encoded.schema.field(ENCODED_LABEL).type == pa.float32()
    rows = {row["key"]: row for row in weather.to_pylist()}
    dust = {(row["place"], row["seen"]): row["dust"] for row in rows.values() if row["dust"] is not None}
    decoded = decode(encoder, encoded[ENCODED_LABEL].to_numpy()[:, None])
    assert len(decoded) > 100
    for key, value in zip(encoded["key"].to_pylist(), decoded, strict=True):
        later_time = rows[key]["seen"] + timedelta(hours=1)
        assert value == pytest.approx(dust[rows[key]["place"], later_time], abs=1e-4)


def test_a_series_without_a_complete_window_is_refused(weather: pa.Table, checked_rows_of: Any) -> None:
    features = make_series_features(BY_TIME, spacing=1799)
    with pytest.raises(DataUnfit, match="0 train, 0 val, 0 test rows with a complete window of 3"):
        prepare.task.fn(checked_rows_of(weather), features, LOCAL)


@pytest.mark.parametrize("deduplicate", [True, False])
def test_copies_of_a_group_in_two_splits_are_refused(
    weather: pa.Table, checked_rows_of: Any, deduplicate: bool
) -> None:
    train_rows = weather.filter(pc.equal(weather["given"], "train"))
    changes = {
        "key": pc.add(train_rows["key"], 10_000),
        "place": pc.binary_join_element_wise(train_rows["place"], "", " "),
    }
    changes |= {"given": pa.array(["test"] * train_rows.num_rows)}
    columns = [changes.get(name, train_rows[name]) for name in train_rows.column_names]
    rows = pa.concat_tables([weather, pa.table(dict(zip(train_rows.column_names, columns, strict=True)))])
    features = make_case_features("group").model_copy(update={"deduplicate": deduplicate})
    with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
        prepare.task.fn(checked_rows_of(rows), features, LOCAL)


def test_val_is_not_taken_out_of_the_train_split_of_a_series(weather: pa.Table, checked_rows_of: Any) -> None:
    rows_without_val = weather.filter(pc.not_equal(weather["given"], "val"))
    with pytest.raises(DataUnfit, match="puts no row into val"):
        prepare.task.fn(checked_rows_of(rows_without_val), make_case_features("group"), LOCAL)


def file_digests(home: Path, dataset: Dataset) -> list[str | int]:
    uris = [*(getattr(dataset, name).uri for name in SPLIT_NAMES), dataset.encoder_uri, dataset.test_rows_uri]
    return [dataset.digest, dataset.num_dropped, *(digest_of_file(home / uri) for uri in uris)]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("case", ["group", "no copies", "forecast"])
def test_spark_writes_the_same_bytes_as_duckdb(
    home: Path, weather: pa.Table, checked_rows_of: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    monkeypatch.setattr("bloomery.tasks.prepare.duckdb_engine._ROW_GROUP_VALUES", 1)  # several row groups
    checked = checked_rows_of(weather)
    with_spark = file_digests(home, prepare.task.fn(checked, make_case_features(case), SPARK))
    (home / "stages").rename(home / "by-spark")
    assert with_spark == file_digests(home, prepare.task.fn(checked, make_case_features(case), LOCAL))


CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: beijing
name: beijing
version: 1.0.0
status: active
schema:
  - name: weather
    properties:
      - {name: counter, logicalType: integer, primaryKey: true}
      - {name: year, logicalType: integer}
      - {name: month, logicalType: integer}
      - {name: day, logicalType: integer}
      - {name: hour, logicalType: integer}
      - {name: pm25, logicalType: number}
      - {name: DEWP, logicalType: integer, required: true, logicalTypeOptions: {minimum: -60, maximum: 60}}
      - {name: TEMP, logicalType: number, required: true, logicalTypeOptions: {minimum: -60, maximum: 60}}
      - {name: PRES, logicalType: number, required: true}
      - {name: cbwd, logicalType: string, required: true}
      - {name: Iws, logicalType: number, required: true, logicalTypeOptions: {minimum: 0}}
      - {name: Is, logicalType: integer}
      - {name: Ir, logicalType: integer}
"""


@pytest.mark.slow
def test_a_recipe_for_a_series_runs_end_to_end(
    datasets: Path, tmp_path: Path, forked_bloomery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source = datasets / "beijing_pm25" / "pollution.csv"
    if not source.is_file():
        pytest.skip("the data set beijing_pm25 is not here")
    with source.open(encoding="utf-8") as file:
        (tmp_path / "pollution.csv").write_text("".join(itertools.islice(file, 8001)), encoding="utf-8")
    series = {"kind": "series", "columns": ["DEWP", "TEMP", "PRES", "Iws"], "time": "counter", "length": 24}
    recipe = {
        "name": "beijing-wind",
        "data": {"source": "pollution.csv", "missing": ["", "NA"], "rename": {"pm2.5": "pm25", "No": "counter"}},
        "contract": "weather.odcs.yaml",
        "features": {
            "key": "counter",
            "label": "cbwd",
            "inputs": [{**series, "spacing": 1}],
            "split": {"by": "time", "column": "counter"},
        },
        "model": {"kind": "mlp", "hidden": [64, 32]},
        "training": {"epochs": 10, "batch_size": 256},
        "compression": {"candidates": [{"name": "fp32"}], "latency_rounds": 20},
        "gates": {"min_accuracy": 0.5},  # the most frequent wind, SE, is right for 35% of all hours
    }
    (tmp_path / "weather.odcs.yaml").write_text(CONTRACT, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    process = forked_bloomery(tmp_path / ".bloomery", "run", str(tmp_path / "recipe.yaml"), "--json")
    assert process.returncode == 0, process.stdout + process.stderr
    release = json.loads(process.stdout)
    assert release["num_smoke_test_rows"] == 100
    dataset = release["bento"]["choice"]["candidates"]["trained"]["dataset"]
    assert dataset["num_dropped"] == 3 * 23
    assert dataset["layout"]["shape"] == [24, 4]
