"""Splits are stable and do not leak, and every engine writes the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.recipe.recipe import CONTRACTS, read_contract, read_recipe
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL, decode, encode, read_encoder
from bloomery.models.training.data.batches import read_examples
from bloomery.tasks.infrastructure.parquet import RowWriter
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.prepare.duckdb_engine import split_with_duckdb
from bloomery.tasks.prepare.stage import needs_spark, prepare
from bloomery.tasks.validate.stage import validate
from tests.tasks.prepare.features import INPUTS, LOCAL, SPARK, SPLIT_NAMES, make_features

SPLITS: dict[str, dict[str, Any]] = {
    "key": {"salt": "s"},
    "group": {"by": "group", "column": "family"},
    "time": {"by": "time", "column": "seen", "train": 0.6, "val": 0.2, "test": 0.2},
    "given": {"by": "given", "column": "given"},
}


def read_keys(home: Path, dataset: Dataset) -> dict[str, list[Any]]:
    return {name: pq.read_table(home / getattr(dataset, name).uri)[dataset.key].to_pylist() for name in SPLIT_NAMES}


def test_splits_are_disjoint_complete_and_sorted_by_key(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    features = make_features({"duplicates": "allow"}, deduplicate=False)
    keys = read_keys(home, prepare.task.fn(checked_rows_of(people), features, LOCAL))
    assert sorted(key for split_keys in keys.values() for key in split_keys) == sorted(people["key"].to_pylist())
    assert all(split_keys == sorted(split_keys) for split_keys in keys.values())
    shares = [len(keys[name]) / people.num_rows for name in SPLIT_NAMES]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=0.03)


def test_a_row_stays_in_its_split_when_rows_are_added(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    features = make_features({"duplicates": "allow"}, deduplicate=False)
    keys_before = read_keys(home, prepare.task.fn(checked_rows_of(people.slice(0, 1500)), features, LOCAL))
    keys_after = read_keys(home, prepare.task.fn(checked_rows_of(people), features, LOCAL))
    assert all(set(keys_before[name]) < set(keys_after[name]) for name in SPLIT_NAMES)


def test_deduplication_keeps_the_row_with_the_smallest_key(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    content = people.select(["height", "city", "label"])
    smallest_keys: dict[Any, str] = {}
    for row, key in zip(content.to_pylist(), people["key"].to_pylist(), strict=True):
        values = tuple(row.values())
        smallest_keys[values] = min(key, smallest_keys.get(values, key))
    keys = read_keys(home, prepare.task.fn(checked_rows_of(people), make_features({}), LOCAL))
    assert sorted(key for split_keys in keys.values() for key in split_keys) == sorted(smallest_keys.values())


def make_tagged_copies() -> pa.Table:
    """Forty pairs of rows that differ in nothing but the order of their labels, and a label that is there twice."""
    sets = ([], ["a", "b"], ["c", "b", "a"], ["b"])
    tags = [[*sets[number % 4]] for number in range(40)]
    return pa.table(
        {
            "key": [f"r{number:02}" for number in range(80)],
            "height": [float(number % 40) for number in range(80)],
            "family": [f"f{number % 20}" for number in range(80)],
            "tags": pa.array([*tags, *([*labels[::-1], *labels[:1]] for labels in tags)], pa.list_(pa.string())),
        }
    )


def make_tag_features(split: dict[str, Any], **options: Any) -> Features:
    inputs = [{"kind": "number", "columns": ["height"]}]
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    return make_features({**split, **shares}, label="tags", task="multilabel", inputs=inputs, **options)


@pytest.mark.parametrize("split", ["key", "group"])
def test_sets_of_labels_in_another_order_are_copies(home: Path, checked_rows_of: Any, split: str) -> None:
    checked = checked_rows_of(make_tagged_copies())
    keys = read_keys(home, prepare.task.fn(checked, make_tag_features(SPLITS[split]), LOCAL))
    assert sorted(key for split_keys in keys.values() for key in split_keys) == [
        f"r{number:02}" for number in range(40)
    ]
    if split == "key":
        with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
            prepare.task.fn(checked, make_tag_features(SPLITS[split], deduplicate=False), LOCAL)


def test_a_split_by_group_keeps_groups_together(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    keys = read_keys(home, prepare.task.fn(checked_rows_of(people), make_features(SPLITS["group"]), LOCAL))
    family_by_key = dict(zip(people["key"].to_pylist(), people["family"].to_pylist(), strict=True))
    families = [{family_by_key[key] for key in keys[name]} for name in SPLIT_NAMES]
    assert not families[0] & families[1]
    assert not (families[0] | families[1]) & families[2]


def test_a_split_by_time_puts_the_earliest_rows_first(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    keys = read_keys(home, prepare.task.fn(checked_rows_of(people), make_features(SPLITS["time"]), LOCAL))
    times_by_key = dict(zip(people["key"].to_pylist(), people["seen"].to_pylist(), strict=True))
    times = [[times_by_key[key] for key in keys[name]] for name in SPLIT_NAMES]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])


def test_given_splits_are_kept_and_val_is_taken_from_train(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    keys = read_keys(home, prepare.task.fn(checked_rows_of(people), make_features(SPLITS["given"]), LOCAL))
    given_splits = dict(zip(people["key"].to_pylist(), people["given"].to_pylist(), strict=True))
    assert {given_splits[key] for key in keys["test"]} == {"test"}
    assert {given_splits[key] for key in keys["train"] + keys["val"]} == {"train"}
    assert 0.06 < len(keys["val"]) / len(keys["train"] + keys["val"]) < 0.14


ODD_NAMES = {
    "key": "y",
    "height": "a",
    "city": "A",
    "label": "x",
    "family": "_part",
    "seen": "statistics",
    "given": 'Ä.b "`c;',
}


def rename_people(people: pa.Table) -> tuple[pa.Table, Features]:
    """Returns the people under names that stages and engines use, and their features."""
    inputs = [{**source, "columns": [ODD_NAMES[name] for name in source["columns"]]} for source in INPUTS]
    inputs.append({"kind": "number", "columns": ["_part"]})
    split = {"by": "given", "column": ODD_NAMES["given"]}
    return people.rename_columns(ODD_NAMES), make_features(split, key="y", label="x", inputs=inputs)


def test_columns_may_have_the_names_that_stages_and_engines_use(
    home: Path, people: pa.Table, checked_rows_of: Any
) -> None:
    features = make_features(SPLITS["given"], inputs=[*INPUTS, {"kind": "number", "columns": ["family"]}])
    expected = prepare.task.fn(checked_rows_of(people), features, LOCAL)
    renamed_people, renamed_features = rename_people(people)
    dataset = prepare.task.fn(checked_rows_of(renamed_people), renamed_features, LOCAL)
    for name in SPLIT_NAMES:
        rows, expected_rows = (pq.read_table(home / getattr(part, name).uri) for part in (dataset, expected))
        assert rows.column_names == [key_column("y"), ENCODED_LABEL, ENCODED_INPUT]
        assert rows.rename_columns(expected_rows.column_names) == expected_rows
    assert read_examples(home / dataset.val.uri, dataset.key, dataset.layout).key.tolist() == sorted(
        read_keys(home, expected)["val"]
    )


def drop_labels(people: pa.Table) -> pa.Table:
    """Drops the labels of two of five rows."""
    position = people.column_names.index("label")
    is_unlabelled = pc.is_in(pa.array(np.arange(people.num_rows) % 5), value_set=pa.array([1, 3]))
    return people.set_column(position, "label", pc.if_else(is_unlabelled, None, people["label"].combine_chunks()))


@pytest.mark.parametrize("split", SPLITS)
def test_unlabelled_rows_form_a_separate_split_without_leakage(
    home: Path, people: pa.Table, checked_rows_of: Any, split: str
) -> None:
    """Train, val and test hold no unlabelled row; the new split has those that would belong to train."""
    rows = drop_labels(people)
    features = make_features(SPLITS[split], deduplicate=False, unlabelled="teach")
    features = features.model_copy(update={"split": features.split.model_copy(update={"duplicates": "allow"})})
    dataset = prepare.task.fn(checked_rows_of(rows), features, LOCAL)
    keys = read_keys(home, dataset)
    unlabelled = pq.read_table(home / dataset.unlabelled.uri)
    labels, families, times, given_splits = (
        dict(zip(rows["key"].to_pylist(), rows[name].to_pylist(), strict=True))
        for name in ("label", "family", "seen", "given")
    )
    assert all(labels[key] is not None for name in SPLIT_NAMES for key in keys[name])
    assert set(unlabelled[ENCODED_LABEL].to_pylist()) == {-100}
    unlabelled_keys = unlabelled["key"].to_pylist()
    assert unlabelled_keys == sorted(unlabelled_keys)
    assert {labels[key] for key in unlabelled_keys} == {None}
    num_unlabelled = rows["label"].null_count
    assert len(unlabelled_keys) + dataset.num_dropped == num_unlabelled
    match split:
        case "key":
            assert len(unlabelled_keys) == num_unlabelled
        case "group":
            held_out = {families[key] for name in ("val", "test") for key in keys[name]}
            assert not {families[key] for key in unlabelled_keys} & held_out
        case "time":
            assert max(times[key] for key in unlabelled_keys) < min(times[key] for key in keys["val"])
        case "given":
            assert {key for key in labels if labels[key] is None and given_splits[key] == "train"} == set(
                unlabelled_keys
            )
    assert f", {len(unlabelled_keys)} unlabelled" in describe_lineage(dataset)[0][2]


def test_a_group_with_labelled_and_unlabelled_rows_belongs_to_training(
    home: Path, people: pa.Table, checked_rows_of: Any
) -> None:
    features = make_features({**SPLITS["group"], "apart": ["family"]}, unlabelled="teach")
    dataset = prepare.task.fn(checked_rows_of(drop_labels(people)), features, LOCAL)
    assert dataset.unlabelled.num_rows > 0
    with pytest.raises(DataUnfit, match="labels None are in the data"):
        prepare.task.fn(checked_rows_of(drop_labels(people)), make_features(SPLITS["group"]), LOCAL)


def test_the_unlabelled_split_is_empty_if_every_row_has_a_label(people: pa.Table, checked_rows_of: Any) -> None:
    dataset = prepare.task.fn(checked_rows_of(people), make_features({}, unlabelled="teach"), LOCAL)
    assert dataset.unlabelled.num_rows == dataset.num_dropped == 0


def make_regression_features(split: dict[str, Any], **options: Any) -> Features:
    inputs = [
        {"kind": "category", "columns": ["city"], "encoding": "target"},
        {"kind": "category", "columns": ["label"], "encoding": "index"},
    ]
    return make_features(split, label="height", task="regression", inputs=inputs, **options)


def fill_heights(people: pa.Table) -> pa.Table:
    """Fills missing heights with minus zero, so that every row has a number to learn."""
    return people.set_column(1, "height", people["height"].fill_null(-0.0))


def test_numbers_are_encoded_in_standard_units_and_decoded(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    filled = fill_heights(people)
    dataset = prepare.task.fn(checked_rows_of(filled), make_regression_features(SPLITS["group"]), LOCAL)
    assert (dataset.task, dataset.classes, dataset.layout.categories) == ("regression", (), ((1, 4),))
    encoder = read_encoder(home / dataset.encoder_uri)
    heights = dict(zip(filled["key"].to_pylist(), filled["height"].to_pylist(), strict=True))
    for split_name in SPLIT_NAMES:
        rows = pq.read_table(home / getattr(dataset, split_name).uri)
        expected = np.array([heights[key] for key in rows["key"].to_pylist()])
        assert np.abs(decode(encoder, rows[ENCODED_LABEL].to_numpy()[:, None]) - expected).max() < 1e-6
    train = pq.read_table(home / dataset.train.uri)[ENCODED_LABEL].to_numpy()
    assert (train.mean(), train.std()) == pytest.approx((0, 1), abs=1e-5)


def test_copies_with_equal_numbers_in_two_splits_are_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
        prepare.task.fn(checked_rows_of(fill_heights(people)), make_regression_features({}, deduplicate=False), LOCAL)


def test_an_unknown_split_name_is_refused(people: pa.Table, checked_rows_of: Any) -> None:
    misspelled = people.set_column(6, "given", pa.array(["tset", *people["given"].to_pylist()[1:]]))
    with pytest.raises(DataUnfit, match="holds tset"):
        prepare.task.fn(checked_rows_of(misspelled), make_features(SPLITS["given"]), LOCAL)


def test_copies_in_two_splits_are_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="rows with equal inputs and label are in two splits"):
        prepare.task.fn(checked_rows_of(people), make_features({}, deduplicate=False), LOCAL)


def test_a_group_in_two_splits_is_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="values of family are in two splits"):
        prepare.task.fn(checked_rows_of(people), make_features({**SPLITS["given"], "apart": ["family"]}), LOCAL)


def test_splits_that_overlap_in_time_are_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="before the end of train"):
        prepare.task.fn(checked_rows_of(people), make_features({**SPLITS["given"], "in_time": "seen"}), LOCAL)


def test_an_empty_split_is_refused(people: pa.Table, checked_rows_of: Any) -> None:
    with pytest.raises(DataUnfit, match="the splits have"):
        prepare.task.fn(checked_rows_of(people.slice(0, 3)), make_features({}), LOCAL)


def test_the_key_of_the_stored_result_does_not_depend_on_the_engine(people: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(people)
    first = prepare(checked, make_features({}), LOCAL)
    assert prepare.lookup(checked, make_features({}), SPARK) == first


def test_a_path_may_contain_wildcards(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(people)
    (home / "a[1]*").mkdir()
    (home / checked.uri).rename(home / "a[1]*" / checked.uri)
    moved = checked.model_copy(update={"uri": f"a[1]*/{checked.uri}"})
    assert prepare.task.fn(moved, make_features({}), LOCAL).train.num_rows > 1000


def test_auto_uses_spark_only_with_a_cluster_and_many_rows(people: pa.Table, checked_rows_of: Any) -> None:
    checked = checked_rows_of(people)
    assert not needs_spark(checked, Engine())
    assert not needs_spark(checked, Engine(spark=SparkConfig(master="spark://far:7077")))  # too few rows
    assert needs_spark(checked, SPARK)


def test_a_single_row_is_encoded_as_in_the_data_set(home: Path) -> None:
    recipe = read_recipe("digits")
    contract = read_contract(CONTRACTS / "digits.odcs.yaml")
    checked = validate.task.fn(ingest.task.fn(locate_source(DataSource(source="sklearn:digits"))), contract)
    dataset = prepare.task.fn(checked, recipe.features, LOCAL)
    encoder = read_encoder(home / dataset.encoder_uri)
    rows = pq.read_table(home / checked.uri)
    test = pq.read_table(home / dataset.test.uri).slice(0, 50)
    for key, x in zip(test["id"].to_pylist(), test[ENCODED_INPUT].to_pylist(), strict=True):
        encoded = encode(encoder, rows.filter(pc.equal(rows["id"], key)))
        assert encoded.reshape(-1).tolist() == x


def test_wide_rows_are_split_and_written_in_small_row_groups(
    home: Path, checked_rows_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.infrastructure.parquet._ROW_GROUP_VALUES", 100 * 16)
    pixels = [[row % 251, row % 7] * 8 for row in range(5_000)]
    columns = {"key": [f"r{row:04}" for row in range(5_000)], "photo": pa.array(pixels, pa.list_(pa.int64()))}
    table = pa.table({**columns, "label": [f"c{row % 2}" for row in range(5_000)]})
    image = {"kind": "image", "column": "photo", "shape": [1, 4, 4]}
    features = make_features({"duplicates": "allow"}, deduplicate=False, inputs=[image])
    checked = checked_rows_of(table)
    with RowWriter(home / checked.uri, table.schema, row_group_size=300) as writer:
        writer.write(table.to_batches()[0])
    with split_with_duckdb(checked, features, tmp_path):
        groups = pq.read_metadata(tmp_path / "split.parquet")
        assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [2048, 2048, 904]
    groups = pq.read_metadata(home / prepare.task.fn(checked, features, LOCAL).train.uri)
    assert {groups.row_group(number).num_rows for number in range(groups.num_row_groups - 1)} == {100}


def file_digests(home: Path, dataset: Dataset) -> list[str]:
    return [dataset.digest, *(digest_of_file(home / getattr(dataset, name).uri) for name in SPLIT_NAMES)]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("split", ["key", "time"])  # the next test has all splits
def test_spark_writes_the_same_bytes_as_duckdb(
    home: Path, people: pa.Table, checked_rows_of: Any, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    checked, features = checked_rows_of(people), make_features(SPLITS[split])
    with_spark = file_digests(home, prepare.task.fn(checked, features, SPARK))
    (home / "stages").rename(home / "by-spark")  # else the stored result would be found
    assert with_spark == file_digests(home, prepare.task.fn(checked, features, LOCAL))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_writes_the_same_bytes_as_duckdb_whatever_the_names(
    home: Path, people: pa.Table, checked_rows_of: Any
) -> None:
    renamed_people, features = rename_people(people)
    checked = checked_rows_of(renamed_people)
    with_spark = file_digests(home, prepare.task.fn(checked, features, SPARK))
    (home / "stages").rename(home / "by-spark")  # else the stored result would be found
    assert with_spark == file_digests(home, prepare.task.fn(checked, features, LOCAL))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("split", SPLITS)
def test_spark_writes_the_same_unlabelled_rows_as_duckdb(
    home: Path, people: pa.Table, checked_rows_of: Any, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    checked = checked_rows_of(drop_labels(people))
    features = make_features(SPLITS[split], unlabelled="teach")
    with_spark = prepare.task.fn(checked, features, SPARK)
    (home / "stages").rename(home / "by-spark")  # else the stored result would be found
    with_duckdb = prepare.task.fn(checked, features, LOCAL)
    assert (with_spark.digest, with_spark.unlabelled.sha256) == (with_duckdb.digest, with_duckdb.unlabelled.sha256)
    assert with_spark.num_dropped == with_duckdb.num_dropped


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_writes_the_same_numbers_as_duckdb(
    home: Path, people: pa.Table, checked_rows_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.prepare.spark_engine._BYTES_PER_PARTITION", 10_000)  # several partitions
    checked, features = checked_rows_of(fill_heights(people)), make_regression_features({"salt": "s"})
    with_spark = file_digests(home, prepare.task.fn(checked, features, SPARK))
    (home / "stages").rename(home / "by-spark")  # else the stored result would be found
    assert with_spark == file_digests(home, prepare.task.fn(checked, features, LOCAL))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_writes_the_same_sets_of_labels_as_duckdb(home: Path, checked_rows_of: Any) -> None:
    checked, features = checked_rows_of(make_tagged_copies()), make_tag_features(SPLITS["key"])
    with_spark = file_digests(home, prepare.task.fn(checked, features, SPARK))
    (home / "stages").rename(home / "by-spark")  # else the stored result would be found
    assert with_spark == file_digests(home, prepare.task.fn(checked, features, LOCAL))
