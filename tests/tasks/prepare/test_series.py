"""Windows over time series: those of a plain loop, inside their parts, with the same bytes from every engine."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL, decode, encode, read_encoder
from bloomery.tasks.prepare.duckdb_engine import DUCKDB_FUNCTIONS
from bloomery.tasks.prepare.split_sql import split_query
from bloomery.tasks.prepare.stage import prepare
from tests.examples import examples

LOCAL, SPARK = Engine(kind="local"), Engine(kind="spark")
PARTS = ("train", "val", "test")
START = datetime(2024, 1, 1, tzinfo=UTC)
# A kind of time, how a whole number becomes one, and what `spacing` calls a step of one.
TIMES: dict[str, tuple[Callable[[int], Any], float]] = {
    "integer": (lambda number: number, 1),
    "timestamp": (lambda number: START + timedelta(seconds=number / 2), 0.5),
    "date": (lambda number: START.date() + timedelta(days=number), 1),
}
ROWS = st.lists(
    st.tuples(
        st.integers(0, 14),
        st.sampled_from("ab"),
        st.sampled_from(PARTS),
        st.integers(-5, 5),
        st.sampled_from([-0.0, 1.5]),
    ),
    min_size=1,
    max_size=40,
)


def features_of(split: dict[str, Any], label: str = "label", task: str = "classification", **series: Any) -> Features:
    stated = {"kind": "series", "columns": ["heat", "wind"], "time": "seen", "group": "place", "length": 3, **series}
    return Features.model_validate({"key": "key", "label": label, "task": task, "inputs": [stated], "split": split})


def contract_of(time: str = "timestamp") -> Contract:
    kinds = {"key": "integer", "seen": time, "place": "string", "given": "string", "heat": "integer", "wind": "number"}
    properties = [{"name": name, "logicalType": kind, "required": True} for name, kind in kinds.items()]
    properties[0]["primaryKey"] = True
    label = {"name": "label", "logicalType": "string", "required": True}
    return Contract.model_validate(
        {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": "weather",
            "name": "weather",
            "version": "1.0.0",
            "status": "draft",
            "schema": [{"name": "weather", "properties": [*properties, label]}],
        }
    )


def windows(rows: list[dict[str, Any]], length: int, step: int | None, *, in_groups: bool) -> dict[int, list[Any]]:
    """The windows as a loop finds them: by the row's key, the window's values of heat and wind."""
    found = {}
    for row in rows:
        past = [
            one
            for one in rows
            if one["given"] == row["given"]
            and (not in_groups or one["place"] == row["place"])
            and (one["seen"], one["key"]) <= (row["seen"], row["key"])
        ]
        past = sorted(past, key=lambda one: (one["seen"], one["key"]))[-length:]
        gaps = [late["number"] - early["number"] for early, late in itertools.pairwise(past)]
        if len(past) == length and (step is None or set(gaps) == {step}):
            found[row["key"]] = [[one[name] for one in past] for name in ("heat", "wind")]
    return found


@settings(deadline=None, max_examples=examples(60))
@given(
    drawn=ROWS,
    kind=st.sampled_from(sorted(TIMES)),
    length=st.integers(2, 4),
    step=st.sampled_from([None, 1, 2]),
    in_groups=st.booleans(),
    order=st.randoms(),
)
def test_windows_are_those_of_a_loop_whatever_gaps_groups_and_ties_there_are(
    drawn, kind, length, step, in_groups, order
):
    time_of, unit = TIMES[kind]
    names = ("number", "place", "given", "heat", "wind")
    rows = [
        {"key": key, **dict(zip(names, one, strict=True))} for key, one in enumerate([*drawn, (0, "z", "val", 0, 0.0)])
    ]
    rows = [{**row, "seen": time_of(row["number"]), "label": "x"} for row in rows]
    spacing = None if step is None else step * unit
    features = features_of(
        {"by": "given", "column": "given"}, length=length, spacing=spacing, group="place" if in_groups else None
    )
    with duckdb.connect(config={"threads": 2}) as engine:
        engine.register("arrow", pa.Table.from_pylist(order.sample(rows, len(rows))))
        engine.execute("create table checked as select * from arrow")
        query = split_query(
            features, contract_of(kind), "checked", lambda one: engine.sql(one).fetchall(), DUCKDB_FUNCTIONS
        )
        found = engine.sql(f"select key, heat, wind, _part from ({query})").fetchall()
    wanted = windows(rows, length, step, in_groups=in_groups)
    assert {key: [heat, wind] for key, heat, wind, _ in found} == wanted
    assert all(part == rows[key]["given"] for key, _, _, part in found)
    assert len(found) == len(wanted)


def ahead(rows: list[dict[str, Any]], step: int | None, horizon: int, *, in_groups: bool) -> dict[int, Any]:
    """The value of dust `horizon` rows later, as a loop finds it: by the row's key, where there is one."""
    found = {}
    for row in rows:
        later = [
            one
            for one in rows
            if one["given"] == row["given"]
            and (not in_groups or one["place"] == row["place"])
            and (one["seen"], one["key"]) > (row["seen"], row["key"])
        ]
        later = sorted(later, key=lambda one: (one["seen"], one["key"]))[:horizon]
        if len(later) < horizon or later[-1]["dust"] is None:
            continue
        if step is None or later[-1]["number"] - row["number"] == horizon * step:
            found[row["key"]] = later[-1]["dust"]
    return found


@settings(deadline=None, max_examples=examples(60))
@given(
    drawn=ROWS,
    dust=st.lists(st.none() | st.integers(-3, 3), min_size=41, max_size=41),
    kind=st.sampled_from(sorted(TIMES)),
    step=st.sampled_from([None, 1, 2]),
    horizon=st.integers(1, 3),
    in_groups=st.booleans(),
    order=st.randoms(),
)
def test_forecasts_are_those_of_a_loop_with_gaps_in_their_windows_and_labels(
    drawn, dust, kind, step, horizon, in_groups, order
):
    time_of, unit = TIMES[kind]
    names = ("number", "place", "given", "heat", "wind")
    drawn = [*drawn, (0, "z", "val", 0, 0.0)]
    rows = [
        {"key": key, **dict(zip(names, one, strict=True)), "dust": dust[key], "label": "x"}
        for key, one in enumerate(drawn)
    ]
    rows = [{**row, "seen": time_of(row["number"])} for row in rows]
    features = features_of(
        {"by": "given", "column": "given"},
        label="dust",
        task="regression",
        columns=["heat", "dust"],
        length=2,
        horizon=horizon,
        missing="previous",
        spacing=None if step is None else step * unit,
        group="place" if in_groups else None,
    )
    with duckdb.connect(config={"threads": 2}) as engine:
        engine.register("arrow", pa.Table.from_pylist(order.sample(rows, len(rows)), schema=schema_of(rows, kind)))
        engine.execute("create table checked as select * from arrow")
        ask: Callable[[str], Any] = lambda one: engine.sql(one).fetchall()  # noqa: E731
        query = split_query(features, contract_of(kind), "checked", ask, DUCKDB_FUNCTIONS)
        found = engine.sql(f"select key, heat, dust, {features.label_column} from ({query})").fetchall()
    pasts = windows([{**row, "wind": row["dust"]} for row in rows], 2, step, in_groups=in_groups)
    labels = ahead(rows, step, horizon, in_groups=in_groups)
    assert {key: ([heat, dust], label) for key, heat, dust, label in found} == {
        key: (pasts[key], labels[key]) for key in pasts.keys() & labels.keys()
    }


def schema_of(rows: list[dict[str, Any]], time: str) -> pa.Schema:
    """Arrow cannot know the type of a column of nulls."""
    times = {"integer": pa.int64(), "timestamp": pa.timestamp("us", "UTC"), "date": pa.date32()}
    kinds = {
        "place": pa.string(),
        "given": pa.string(),
        "label": pa.string(),
        "wind": pa.float64(),
        "seen": times[time],
    }
    return pa.schema([(name, kinds.get(name, pa.int64())) for name in rows[0]])


@pytest.fixture(scope="module")
def weather() -> pa.Table:
    """4 places with 400 half hours each, some of them missing or there twice, in no order."""
    random = np.random.default_rng(0)
    start = np.datetime64("2024-01-01T00:00:00", "us")
    place = np.repeat(np.arange(4), 400)
    whole = pa.table(
        {
            "seen": pa.array(start + np.tile(np.arange(400), 4) * np.timedelta64(30, "m"), pa.timestamp("us", "UTC")),
            "place": pa.array([f"plÀce {one}" for one in place]),
            "given": pa.array([("test", "train", "train", "val")[one] for one in place]),
            "heat": pa.array(random.integers(-20, 30, 1600), pa.int64()),
            "wind": pa.array(np.where(random.random(1600) < 0.1, -0.0, random.normal(size=1600))),
            "label": pa.array(np.where(random.random(1600) < 0.5, "wet", "dry")),
            "dust": pa.array(np.cumsum(random.normal(size=1600)), mask=random.random(1600) < 0.1),
        }
    )
    rows = np.flatnonzero(random.random(1600) > 0.03)
    rows = random.permutation(np.concatenate([rows, rows[:20]]))
    keys = pa.array(random.permutation(len(rows)), pa.int64())
    return whole.take(pa.array(rows)).add_column(0, "key", keys)


BY_TIME = {"by": "time", "column": "seen", "in_time": "seen"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "time": (BY_TIME, {"spacing": 1800}),
    "group": ({"by": "given", "column": "given", "apart": ["place"]}, {"length": 5}),
    "no group": (BY_TIME, {"group": None, "length": 9}),
    "no copies": (BY_TIME, {"spacing": 1800, "scale": "none"}),
    "forecast": (
        BY_TIME,
        {"label": "dust", "task": "regression", "columns": ["dust", "heat"], "horizon": 2, "missing": "previous"}
        | {"indicator": True, "spacing": 1800},
    ),
}


def stated(case: str) -> Features:
    split, series = CASES[case]
    return features_of(split, **series).model_copy(update={"deduplicate": case == "no copies"})


def test_no_row_of_train_or_val_shows_what_happens_in_test(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    features = stated("time")
    before = prepare.task.fn(checked_rows_of(weather), features, LOCAL)
    tested = pc.is_in(weather["key"], pq.read_table(home / before.test.uri)["key"].combine_chunks())
    changed = weather.set_column(4, "heat", pc.if_else(tested, pc.multiply(weather["heat"], 1000), weather["heat"]))
    after = prepare.task.fn(checked_rows_of(changed), features, LOCAL)
    assert (before.train.sha256, before.val.sha256) == (after.train.sha256, after.val.sha256)
    assert digest_of_file(home / before.encoder_uri) == digest_of_file(home / after.encoder_uri)
    assert before.test.sha256 != after.test.sha256


def test_no_row_of_val_or_test_shows_what_happened_in_train(
    home: Path, weather: pa.Table, checked_rows_of: Any
) -> None:
    features = stated("no copies")  # unscaled, so that nothing learnt from train shows either
    before = prepare.task.fn(checked_rows_of(weather), features, LOCAL)
    last = pc.max(weather.filter(pc.is_in(weather["key"], pq.read_table(home / before.train.uri)["key"]))["seen"])
    trained = pc.less_equal(weather["seen"], last)
    changed = weather.set_column(4, "heat", pc.if_else(trained, pc.add(weather["heat"], 1000), weather["heat"]))
    after = prepare.task.fn(checked_rows_of(changed), features, LOCAL)
    assert (before.val.sha256, before.test.sha256) == (after.val.sha256, after.test.sha256)
    assert before.train.sha256 != after.train.sha256


def test_all_rows_are_windows_or_counted_as_dropped(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(weather)
    counts = {}
    for case in CASES:
        dataset = prepare.task.fn(checked, stated(case), LOCAL)
        counts[case] = dataset.num_dropped
        assert dataset.layout.shape == stated(case).inputs[0].input_shape
        kept = sum(getattr(dataset, part).num_rows for part in PARTS)
        copies = 20 if case == "no copies" else 0
        assert kept + dataset.num_dropped <= weather.num_rows
        assert kept + dataset.num_dropped >= weather.num_rows - copies
    assert counts["group"] == 4 * 4  # four rows too few at the start of each place
    assert counts["no group"] == 3 * 8  # eight at the start of each part
    assert counts["no copies"] < counts["time"]  # a copy is a gap
    assert counts["forecast"] > counts["time"]  # no row is later than the last, and some have no label


@pytest.mark.parametrize("case", ["time", "forecast"])
def test_held_out_windows_sent_to_the_endpoint_are_encoded_as_they_were(
    home: Path, weather: pa.Table, checked_rows_of: Any, case: str
) -> None:
    checked, features = checked_rows_of(weather), stated(case)
    dataset = prepare.task.fn(checked, features, LOCAL)
    encoder = read_encoder(home / dataset.encoder_uri)
    raw = pq.read_table(home / dataset.test_rows_uri)
    encoded = pq.read_table(home / dataset.test.uri)
    assert raw["key"] == encoded["key"]
    check = JsonRowParser(with_windows(checked.contract, features.window_lengths), encoder.columns)
    sent = json.loads(json.dumps(raw.select(list(dataset.inputs)).to_pylist()))
    x = encode(encoder, check.parse_table(sent))
    assert x.reshape(len(sent), -1).tolist() == encoded[ENCODED_INPUT].to_pylist()
    assert any(None in row[name] for row in sent for name in dataset.inputs) == (case == "forecast")


def test_a_forecast_learns_what_the_later_row_has(home: Path, weather: pa.Table, checked_rows_of: Any) -> None:
    features = stated("forecast")
    dataset = prepare.task.fn(checked_rows_of(weather), features, LOCAL)
    assert (dataset.task, dataset.classes) == ("regression", ())
    encoder = read_encoder(home / dataset.encoder_uri)
    encoded = pq.read_table(home / dataset.test.uri)
    assert encoded.schema.field(ENCODED_LABEL).type == pa.float32()
    rows = {row["key"]: row for row in weather.to_pylist()}
    dust = {(row["place"], row["seen"]): row["dust"] for row in rows.values() if row["dust"] is not None}
    told = decode(encoder, encoded[ENCODED_LABEL].to_numpy()[:, None])
    assert len(told) > 100
    for key, value in zip(encoded["key"].to_pylist(), told, strict=True):
        later = rows[key]["seen"] + timedelta(hours=1)
        assert value == pytest.approx(dust[rows[key]["place"], later], abs=1e-4)


def test_a_series_without_a_whole_window_is_refused(weather: pa.Table, checked_rows_of: Any) -> None:
    features = features_of(BY_TIME, spacing=1799)
    with pytest.raises(DataUnfit, match="0 train, 0 val, 0 test rows with a complete window of 3"):
        prepare.task.fn(checked_rows_of(weather), features, LOCAL)


@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_place_that_is_a_copy_of_another_in_another_part_is_refused(
    weather: pa.Table, checked_rows_of: Any, deduplicate: bool
) -> None:
    trained = weather.filter(pc.equal(weather["given"], "train"))
    copied = {"key": pc.add(trained["key"], 10_000), "place": pc.binary_join_element_wise(trained["place"], "", " ")}
    copied |= {"given": pa.array(["test"] * trained.num_rows)}
    columns = [copied.get(name, trained[name]) for name in trained.column_names]
    both = pa.concat_tables([weather, pa.table(dict(zip(trained.column_names, columns, strict=True)))])
    features = stated("group").model_copy(update={"deduplicate": deduplicate})
    with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
        prepare.task.fn(checked_rows_of(both), features, LOCAL)


def test_val_is_not_taken_out_of_the_midst_of_a_series(weather: pa.Table, checked_rows_of: Any) -> None:
    without = weather.filter(pc.not_equal(weather["given"], "val"))
    with pytest.raises(DataUnfit, match="puts no row into val"):
        prepare.task.fn(checked_rows_of(without), stated("group"), LOCAL)


def bytes_of(home: Path, dataset: Dataset) -> list[str | int]:
    uris = [*(getattr(dataset, part).uri for part in PARTS), dataset.encoder_uri, dataset.test_rows_uri]
    return [dataset.digest, dataset.num_dropped, *(digest_of_file(home / uri) for uri in uris)]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("case", ["group", "no copies", "forecast"])
def test_spark_writes_the_bytes_that_this_machine_writes_alone(
    home: Path, weather: pa.Table, checked_rows_of: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    monkeypatch.setattr("bloomery.tasks.prepare.duckdb_engine._ROW_GROUP_VALUES", 1)  # several row groups
    checked = checked_rows_of(weather)
    with_spark = bytes_of(home, prepare.task.fn(checked, stated(case), SPARK))
    (home / "stages").rename(home / "by-spark")
    assert with_spark == bytes_of(home, prepare.task.fn(checked, stated(case), LOCAL))


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
def test_the_wind_of_beijing_is_served_from_the_weather_of_a_day(
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
        "gates": {"min_accuracy": 0.5},  # the wind of most hours, SE, is right in 35% of all hours
    }
    (tmp_path / "weather.odcs.yaml").write_text(CONTRACT, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    ended = forked_bloomery(tmp_path / ".bloomery", "run", str(tmp_path / "recipe.yaml"), "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    release = json.loads(ended.stdout)
    assert release["num_smoke_test_rows"] == 100
    dataset = release["bento"]["choice"]["candidates"]["trained"]["dataset"]
    assert dataset["num_dropped"] == 3 * 23
    assert dataset["layout"]["shape"] == [24, 4]
