"""Splits are stable and leak nothing, and every engine writes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.recipe.recipe import CONTRACTS, read_contract, read_recipe
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL, decode, encode, read_encoder
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.prepare.stage import needs_spark, prepare
from bloomery.tasks.validate.stage import validate

LOCAL, SPARK = Engine(kind="local"), Engine(kind="spark")
SPLITS: dict[str, dict[str, Any]] = {
    "key": {"salt": "s"},
    "group": {"by": "group", "column": "family"},
    "time": {"by": "time", "column": "seen", "train": 0.6, "val": 0.2, "test": 0.2},
    "given": {"by": "given", "column": "given"},
}


def features_of(split: dict[str, Any], **more: Any) -> Features:
    inputs = [
        {"kind": "number", "columns": ["height"], "missing": "median", "clip": {"high_quantile": 0.99}},
        {"kind": "category", "columns": ["city"]},
    ]
    stated = {"key": "key", "label": "label", "inputs": inputs, "deduplicate": True, "split": split}
    return Features.model_validate({**stated, **more})


def keys_of(home: Path, dataset: Dataset) -> dict[str, list[Any]]:
    return {name: pq.read_table(home / getattr(dataset, name).uri)[dataset.key].to_pylist() for name in PARTS}


PARTS = ("train", "val", "test")


def test_parts_are_disjoint_whole_and_sorted_by_key(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    features = features_of({"duplicates": "allow"}, deduplicate=False)
    keys = keys_of(home, prepare.task.fn(checked_rows_of(people), features, LOCAL))
    assert sorted(key for some in keys.values() for key in some) == sorted(people["key"].to_pylist())
    assert all(some == sorted(some) for some in keys.values())
    shares = [len(keys[name]) / people.num_rows for name in PARTS]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=0.03)


def test_a_row_stays_in_its_part_when_rows_are_added(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    features = features_of({"duplicates": "allow"}, deduplicate=False)
    fewer = keys_of(home, prepare.task.fn(checked_rows_of(people.slice(0, 1500)), features, LOCAL))
    more = keys_of(home, prepare.task.fn(checked_rows_of(people), features, LOCAL))
    assert all(set(fewer[name]) < set(more[name]) for name in PARTS)


def test_of_equal_rows_the_one_with_the_least_key_stays(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    content = people.select(["height", "city", "label"])
    first: dict[Any, str] = {}
    for row, key in zip(content.to_pylist(), people["key"].to_pylist(), strict=True):
        values = tuple(row.values())
        first[values] = min(key, first.get(values, key))
    kept = keys_of(home, prepare.task.fn(checked_rows_of(people), features_of({}), LOCAL))
    assert sorted(key for some in kept.values() for key in some) == sorted(first.values())


def test_a_split_by_group_keeps_groups_together(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    keys = keys_of(home, prepare.task.fn(checked_rows_of(people), features_of(SPLITS["group"]), LOCAL))
    family = dict(zip(people["key"].to_pylist(), people["family"].to_pylist(), strict=True))
    families = [{family[key] for key in keys[name]} for name in PARTS]
    assert not families[0] & families[1]
    assert not (families[0] | families[1]) & families[2]


def test_a_split_by_time_puts_the_earliest_rows_first(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    keys = keys_of(home, prepare.task.fn(checked_rows_of(people), features_of(SPLITS["time"]), LOCAL))
    seen = dict(zip(people["key"].to_pylist(), people["seen"].to_pylist(), strict=True))
    times = [[seen[key] for key in keys[name]] for name in PARTS]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])


def test_given_parts_are_kept_and_val_is_taken_from_train(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    keys = keys_of(home, prepare.task.fn(checked_rows_of(people), features_of(SPLITS["given"]), LOCAL))
    given = dict(zip(people["key"].to_pylist(), people["given"].to_pylist(), strict=True))
    assert {given[key] for key in keys["test"]} == {"test"}
    assert {given[key] for key in keys["train"] + keys["val"]} == {"train"}
    assert 0.06 < len(keys["val"]) / len(keys["train"] + keys["val"]) < 0.14


def with_few_labels(people: pa.Table) -> pa.Table:
    """Two of five rows have no label."""
    place = people.column_names.index("label")
    has_none = pc.is_in(pa.array(np.arange(people.num_rows) % 5), value_set=pa.array([1, 3]))
    return people.set_column(place, "label", pc.if_else(has_none, None, people["label"].combine_chunks()))


@pytest.mark.parametrize("split", SPLITS)
def test_rows_without_a_label_are_a_part_of_their_own_that_the_split_keeps_apart(
    home: Path, people: pa.Table, checked_rows_of: Any, split: str
) -> None:
    """Training, validation and test have none; the new part has what the split would have given to training."""
    few = with_few_labels(people)
    features = features_of(SPLITS[split], deduplicate=False, unlabelled="teach")
    features = features.model_copy(update={"split": features.split.model_copy(update={"duplicates": "allow"})})
    dataset = prepare.task.fn(checked_rows_of(few), features, LOCAL)
    keys = keys_of(home, dataset)
    unlabelled = pq.read_table(home / dataset.unlabelled.uri)
    label, family, seen, given = (
        dict(zip(few["key"].to_pylist(), few[name].to_pylist(), strict=True))
        for name in ("label", "family", "seen", "given")
    )
    assert all(label[key] is not None for name in PARTS for key in keys[name])
    assert set(unlabelled[ENCODED_LABEL].to_pylist()) == {-100}
    none = unlabelled["key"].to_pylist()
    assert none == sorted(none)
    assert {label[key] for key in none} == {None}
    num_none = few["label"].null_count
    assert len(none) + dataset.num_dropped == num_none
    match split:
        case "key":
            assert len(none) == num_none
        case "group":
            held_out = {family[key] for name in ("val", "test") for key in keys[name]}
            assert not {family[key] for key in none} & held_out
        case "time":
            assert max(seen[key] for key in none) < min(seen[key] for key in keys["val"])
        case "given":
            assert {key for key in label if label[key] is None and given[key] == "train"} == set(none)
    assert f", {len(none)} unlabelled" in describe_lineage(dataset)[0][2]


def test_a_group_with_and_without_labels_is_one_of_training(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    features = features_of({**SPLITS["group"], "apart": ["family"]}, unlabelled="teach")
    dataset = prepare.task.fn(checked_rows_of(with_few_labels(people)), features, LOCAL)
    assert dataset.unlabelled.num_rows > 0
    with pytest.raises(DataUnfit, match="labels None are in the data"):
        prepare.task.fn(checked_rows_of(with_few_labels(people)), features_of(SPLITS["group"]), LOCAL)


def test_where_every_row_has_a_label_none_is_left_for_students(people: pa.Table, checked_rows_of: Any) -> None:
    dataset = prepare.task.fn(checked_rows_of(people), features_of({}, unlabelled="teach"), LOCAL)
    assert dataset.unlabelled.num_rows == dataset.num_dropped == 0


def regression_of(split: dict[str, Any], **more: Any) -> Features:
    inputs = [
        {"kind": "category", "columns": ["city"], "encoding": "target"},
        {"kind": "category", "columns": ["label"], "encoding": "index"},
    ]
    return features_of(split, label="height", task="regression", inputs=inputs, **more)


def with_heights(people: pa.Table) -> pa.Table:
    """Every row with a figure to learn; minus zero is among them."""
    return people.set_column(1, "height", people["height"].fill_null(-0.0))


def test_figures_are_learnt_in_standard_units_and_decoded(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    whole = with_heights(people)
    dataset = prepare.task.fn(checked_rows_of(whole), regression_of(SPLITS["group"]), LOCAL)
    assert (dataset.task, dataset.classes, dataset.layout.categories) == ("regression", (), ((1, 4),))
    encoder = read_encoder(home / dataset.encoder_uri)
    height = dict(zip(whole["key"].to_pylist(), whole["height"].to_pylist(), strict=True))
    for part in PARTS:
        rows = pq.read_table(home / getattr(dataset, part).uri)
        wanted = np.array([height[key] for key in rows["key"].to_pylist()])
        assert np.abs(decode(encoder, rows[ENCODED_LABEL].to_numpy()[:, None]) - wanted).max() < 1e-6
    train = pq.read_table(home / dataset.train.uri)[ENCODED_LABEL].to_numpy()
    assert (train.mean(), train.std()) == pytest.approx((0, 1), abs=1e-5)


def test_copies_with_equal_figures_in_two_parts_are_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
        prepare.task.fn(checked_rows_of(with_heights(people)), regression_of({}, deduplicate=False), LOCAL)


def test_a_part_of_another_name_is_refused(people: pa.Table, checked_rows_of: Any) -> None:
    wrong = people.set_column(6, "given", pa.array(["tset", *people["given"].to_pylist()[1:]]))
    with pytest.raises(DataUnfit, match="holds tset"):
        prepare.task.fn(checked_rows_of(wrong), features_of(SPLITS["given"]), LOCAL)


def test_copies_in_two_parts_are_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
        prepare.task.fn(checked_rows_of(people), features_of({}, deduplicate=False), LOCAL)


def test_a_group_in_two_parts_is_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="values of family are in two splits"):
        prepare.task.fn(checked_rows_of(people), features_of({**SPLITS["given"], "apart": ["family"]}), LOCAL)


def test_parts_that_overlap_in_time_are_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="before the end of train"):
        prepare.task.fn(checked_rows_of(people), features_of({**SPLITS["given"], "in_time": "seen"}), LOCAL)


def test_an_empty_part_is_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="the splits have"):
        prepare.task.fn(checked_rows_of(people.slice(0, 3)), features_of({}), LOCAL)


def test_the_engine_has_no_say_in_what_is_found(people: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(people)
    first = prepare(checked, features_of({}), LOCAL)
    assert prepare.lookup(checked, features_of({}), SPARK) == first


def test_a_path_is_no_pattern(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(people)
    (home / "a[1]*").mkdir()
    (home / checked.uri).rename(home / "a[1]*" / checked.uri)
    moved = checked.model_copy(update={"uri": f"a[1]*/{checked.uri}"})
    assert prepare.task.fn(moved, features_of({}), LOCAL).train.num_rows > 1000


def test_auto_asks_for_spark_only_where_a_cluster_is_named(people: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(people)
    assert not needs_spark(checked, Engine())
    assert not needs_spark(checked, Engine(spark=SparkConfig(master="spark://far:7077")))  # so few rows
    assert needs_spark(checked, SPARK)


def test_a_row_of_the_digits_is_encoded_alone_as_it_was_in_the_data_set(home: Path) -> None:
    recipe = read_recipe("digits")
    contract = read_contract(CONTRACTS / "digits.odcs.yaml")
    checked = validate.task.fn(ingest.task.fn(locate_source(DataSource(source="sklearn:digits"))), contract)
    dataset = prepare.task.fn(checked, recipe.features, LOCAL)
    encoder = read_encoder(home / dataset.encoder_uri)
    rows = pq.read_table(home / checked.uri)
    test = pq.read_table(home / dataset.test.uri).slice(0, 50)
    for key, x in zip(test["id"].to_pylist(), test[ENCODED_INPUT].to_pylist(), strict=True):
        alone = encode(encoder, rows.filter(pc.equal(rows["id"], key)))
        assert alone.reshape(-1).tolist() == x


def digests_of(home: Path, dataset: Dataset) -> list[str]:
    return [dataset.digest, *(digest_of_file(home / getattr(dataset, name).uri) for name in PARTS)]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("split", ["key", "time"])  # the test below has all, of rows with and without a label
def test_spark_writes_the_bytes_that_this_machine_writes_alone(
    home: Path, people: pa.Table, checked_rows_of: Any, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    checked, features = checked_rows_of(people), features_of(SPLITS[split])
    with_spark = digests_of(home, prepare.task.fn(checked, features, SPARK))
    (home / "stages").rename(home / "by-spark")  # or it would be found
    assert with_spark == digests_of(home, prepare.task.fn(checked, features, LOCAL))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("split", SPLITS)
def test_spark_writes_the_unlabelled_rows_that_this_machine_writes_alone(
    home: Path, people: pa.Table, checked_rows_of: Any, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    checked = checked_rows_of(with_few_labels(people))
    features = features_of(SPLITS[split], unlabelled="teach")
    with_spark = prepare.task.fn(checked, features, SPARK)
    (home / "stages").rename(home / "by-spark")  # or it would be found
    alone = prepare.task.fn(checked, features, LOCAL)
    assert (with_spark.digest, with_spark.unlabelled.sha256) == (alone.digest, alone.unlabelled.sha256)
    assert with_spark.num_dropped == alone.num_dropped


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_writes_the_figures_that_this_machine_writes_alone(
    home: Path, people: pa.Table, checked_rows_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    checked, features = checked_rows_of(with_heights(people)), regression_of({"salt": "s"})
    with_spark = digests_of(home, prepare.task.fn(checked, features, SPARK))
    (home / "stages").rename(home / "by-spark")  # or it would be found
    assert with_spark == digests_of(home, prepare.task.fn(checked, features, LOCAL))


PREPARE = """
import sys
from pathlib import Path
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
from bloomery.data_contracts.records.records import ValidRows
from bloomery.models.features.config import Features
from bloomery.tasks.infrastructure import settings, spark_session as spark
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.prepare import spark_engine as rows_spark
from bloomery.tasks.prepare.stage import prepare
apply_engine_environment()
settings.require_state_folder()
rows_spark._BYTES_PER_PARTITION = 40_000
folder = Path(sys.argv[1])
checked = ValidRows.model_validate_json((folder / "checked.json").read_text())
features = Features.model_validate_json((folder / "features.json").read_text())
means = SparkConfig(master=sys.argv[2], settings={"spark.executor.memory": "512m", "spark.executor.cores": "1"})
print("DIGEST", prepare(checked, features, Engine(kind="spark", spark=means)).digest)
spark.stop_session()
"""


@pytest.fixture
def cluster(home: Path) -> Iterator[str]:
    """A standalone cluster of one master and two workers on the loopback interface; gives its address."""
    import pyspark

    from bloomery.tasks.infrastructure.tethered_process import find_free_port

    port = find_free_port()
    master = f"spark://127.0.0.1:{port}"
    java = {**os.environ, "JAVA_HOME": str(spark_session.find_java().home), "SPARK_LOCAL_DIRS": str(home / "cluster")}
    launch = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), "org.apache.spark.deploy."]
    loopback = ["--host", "127.0.0.1", "--webui-port", "0"]
    works = [["worker.Worker", *loopback, "-c", "1", "-m", "1g", "-d", str(home / f"w{n}"), master] for n in range(2)]
    commands = [["master.Master", *loopback, "--port", str(port)], *works]
    log = (home / "cluster.log").open("wb")
    servers = [
        subprocess.Popen([launch[0], launch[1] + kind, *rest], env=java, stdout=log, stderr=log)
        for kind, *rest in commands
    ]
    try:
        deadline = time.monotonic() + 60
        while (home / "cluster.log").read_text(errors="replace").count("Registering worker") < 2:
            assert time.monotonic() < deadline, (home / "cluster.log").read_text(errors="replace")
            time.sleep(0.2)
        yield master
    finally:
        for server in servers:
            for child in psutil.Process(server.pid).children(recursive=True):
                child.kill()
            server.kill()
            server.wait()
        log.close()


def executors() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any("CoarseGrainedExecutorBackend" in part for part in process.info["cmdline"] or ())
    ]


@pytest.mark.slow
def test_a_cluster_that_loses_an_executor_writes_the_same_bytes(
    home: Path, people: pa.Table, checked_rows_of: Any, cluster: str, clean_environment: Any
) -> None:
    many = pa.concat_tables(
        [people.set_column(0, "key", pc.binary_join_element_wise(people["key"], str(n), "-")) for n in range(10)]
    )
    checked, features = checked_rows_of(many), features_of({"duplicates": "allow"}, deduplicate=False)
    (home / "checked.json").write_text(checked.model_dump_json(by_alias=True))
    (home / "features.json").write_text(features.model_dump_json())
    killed: list[int] = []

    def kill_one() -> None:
        # An executor starts a Python only once it works on rows.
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in executors():
                if process.children():
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    ended = subprocess.run(
        [sys.executable, "-c", PREPARE, str(home), cluster],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    killer.join()
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert killed
    (home / "stages").rename(home / "by-spark")  # or it would be found
    alone = prepare.task.fn(checked, features, LOCAL)
    assert f"DIGEST {alone.digest}" in ended.stdout
