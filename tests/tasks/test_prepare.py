"""Splits are stable and stratified, the encoder sees the training part alone, and there is no skew. On real Spark."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_contracts.contract import read_contract
from data_contracts.digests import digest_of_file
from data_contracts.errors import DataUnfit
from data_contracts.records import CheckedRows, Dataset
from data_contracts.sources import Data
from flows.recipe import CONTRACTS, read_recipe
from models.encoder import CLASS, ENCODED, encode, fit, moments, read_encoder
from tasks import spark
from tasks.ingest import ingest, locate
from tasks.prepare import prepare
from tasks.validate import validate

pytestmark = pytest.mark.slow
FEATURES = read_recipe("digits").features


@pytest.fixture(scope="module", autouse=True)
def _one_session() -> Iterator[None]:
    yield
    spark.stop()


def checked_rows(source: str = "sklearn:digits") -> CheckedRows:
    return validate.task.fn(ingest.task.fn(locate(Data(source=source))), read_contract(CONTRACTS / "digits.odcs.yaml"))


def parts_of(home: Path, dataset: Dataset) -> dict[str, pa.Table]:
    return {name: pq.read_table(home / getattr(dataset, name).uri) for name in ("train", "val", "test")}


def test_parts_are_disjoint_whole_sorted_and_stratified(home: Path) -> None:
    checked = checked_rows()
    parts = parts_of(home, prepare.task.fn(checked, FEATURES))
    keys = {name: part["id"].to_pylist() for name, part in parts.items()}
    assert sorted(key for some in keys.values() for key in some) == list(range(1797))
    assert all(some == sorted(some) for some in keys.values())
    per_class = Counter(pq.read_table(home / checked.uri)["label"].to_pylist())
    for label, count in Counter(parts["test"][CLASS].to_pylist()).items():
        assert abs(count - 0.3 * per_class[label]) <= 1


def test_a_row_is_encoded_by_spark_as_by_the_encoder_in_process_row_by_row(home: Path) -> None:
    checked = checked_rows()
    dataset = prepare.task.fn(checked, FEATURES)
    encoder = read_encoder(home / dataset.encoder_uri)
    raw = pq.read_table(home / checked.uri)
    for part in parts_of(home, dataset).values():
        rows = raw.take(pc.index_in(part["id"], raw["id"]))
        by_spark = np.array(part[ENCODED].to_pylist(), dtype=np.float32)
        one_by_one = np.concatenate([encode(encoder, rows.slice(position, 1)) for position in range(rows.num_rows)])
        assert np.array_equal(by_spark, one_by_one.reshape(rows.num_rows, -1))
        assert part[CLASS].to_pylist() == rows["label"].to_pylist()


def test_the_encoder_is_fitted_on_the_training_part_alone(home: Path) -> None:
    checked = checked_rows()
    dataset = prepare.task.fn(checked, FEATURES)
    raw = pq.read_table(home / checked.uri)
    train = raw.take(pc.index_in(parts_of(home, dataset)["train"]["id"], raw["id"]))
    expected = fit(FEATURES, [moments(train, FEATURES.inputs[0])], train["label"].to_pylist())
    assert read_encoder(home / dataset.encoder_uri) == expected
    assert expected != fit(FEATURES, [moments(raw, FEATURES.inputs[0])], raw["label"].to_pylist())


def test_a_row_stays_in_its_part_when_rows_are_in_another_order(home: Path, tmp_path: Path) -> None:
    first = parts_of(home, prepare.task.fn(checked_rows(), FEATURES))
    raw = pq.read_table(home / ingest.task.fn(locate(Data(source="sklearn:digits"))).uri)
    path = tmp_path / "reversed.parquet"
    pq.write_table(raw.take(pa.array(range(raw.num_rows - 1, -1, -1))), path)
    second = parts_of(home, prepare.task.fn(checked_rows(str(path)), FEATURES))
    assert all(first[name].equals(second[name]) for name in first)


def test_one_class_is_refused(home: Path, tmp_path: Path) -> None:
    raw = pq.read_table(home / ingest.task.fn(locate(Data(source="sklearn:digits"))).uri)
    path = tmp_path / "threes.parquet"
    pq.write_table(raw.filter(pc.equal(raw["label"], 3)), path)
    with pytest.raises(DataUnfit, match=r"1 class\(es\): 3") as caught:
        prepare.task.fn(checked_rows(str(path)), FEATURES)
    assert caught.value.exit_code == 3


def test_the_bytes_do_not_depend_on_the_number_of_executors_or_on_the_java_process(home: Path) -> None:
    dataset = prepare.task.fn(checked_rows(), FEATURES)
    expected = [getattr(dataset, name).sha256 for name in ("train", "val", "test")]
    for cores in ("local[1]", "local[2]"):
        shutil.rmtree(home / "stages" / "prepare")
        code = (
            "from tests_prepare import checked_rows, prepare, FEATURES, spark\n"
            "dataset = prepare(checked_rows(), FEATURES)\n"
            "print('DIGESTS', dataset.train.sha256, dataset.val.sha256, dataset.test.sha256)\n"
            "spark.stop()\n"
        ).replace("tests_prepare", Path(__file__).stem)
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={**os.environ, "BLOOMERY_HOME": str(home), "BLOOMERY_SPARK_MASTER": cores},
            capture_output=True,
            text=True,
        )
        assert ended.stdout.rpartition("DIGESTS")[2].split() == expected, ended.stderr
    assert [digest_of_file(home / getattr(dataset, name).uri) for name in ("train", "val", "test")] == expected
