"""Dividing and encoding rows on Spark, for data that has outgrown one machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bloomery.data_contracts.odcs.arrow_schema import spark_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.data_contracts.records.records import ValidRows
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, partial_statistics
from bloomery.models.features.partition_writer import NUM_ROWS, write_partition
from bloomery.models.features.splits import hash_threshold
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.personal_data import protected_schema
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import quote_name, quote_text
from bloomery.tasks.prepare.split_sql import (
    SPLIT_COLUMN,
    EngineFunctions,
    RunQuery,
    count_dropped_rows,
    require_no_leakage,
    split_query,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_PARTITION = "_partition"
_MOST_PARTITIONS = 1000
_KEYS_OF_PARTITION = 200  # looked at, to cut the keys into ranges
_BYTES_OF_PARTITION = 32_000_000  # of Parquet: some hundred megabytes as rows, which an executor sorts in memory
SPARK_FUNCTIONS = EngineFunctions(
    # Spark leaves out nulls, but not a struct that holds one.
    collect="transform(collect_list(named_struct('value', {value})) {window}, one -> one.value)",
    microseconds="unix_micros",
)


class SparkSplits:
    """Divided rows in a data frame whose partitions follow each other by key, each sorted by part and key.

    `num_dropped` rows had no whole window, or no label of a forecast.
    """

    def __init__(self, rows: DataFrame, features: Features, scratch: Path, num_dropped: int) -> None:
        self._rows = rows
        self._features = features
        self._scratch = scratch
        self._folder = scratch / "encoded"
        self.num_dropped = num_dropped

    def summaries(self) -> Iterator[str]:
        """What `fit` learns from, of the training part."""
        train = self._rows.where(f"{SPLIT_COLUMN} = 'train'").drop(SPLIT_COLUMN, _PARTITION)
        found = train.mapInArrow(partial(partial_statistics, self._features), f"{STATISTICS} string").collect()
        return (row[STATISTICS] for row in found)

    def encoded(self, part: str, encoder: Encoder) -> Iterator[pa.RecordBatch]:
        """The encoded rows of one part in the order of their keys."""
        if not self._folder.exists():
            write = partial(write_partition, encoder, SPLIT_COLUMN, _PARTITION, self._folder)
            self._rows.mapInArrow(write, f"{NUM_ROWS} bigint").collect()
        for path in sorted((self._folder / part).glob("[0-9]*.parquet")):
            yield from read_batches(path)

    def raw(self, part: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns `names` of the divided rows of one part, in the order of their keys."""
        folder = self._scratch / "raw"
        rows = self._rows.where(f"{SPLIT_COLUMN} = {quote_text(part)}")
        rows = rows.select(*map(quote_for_spark, (*names, SPLIT_COLUMN, _PARTITION)))
        rows.mapInArrow(
            partial(write_partition, None, SPLIT_COLUMN, _PARTITION, folder), f"{NUM_ROWS} bigint"
        ).collect()
        for path in sorted((folder / part).glob("[0-9]*.parquet")):
            yield from read_batches(path)


@contextlib.contextmanager
def split_with_spark(
    checked: ValidRows, features: Features, means: SparkConfig, scratch: Path
) -> Iterator[SparkSplits]:
    """The checked rows divided as `features` say. `scratch` is a folder that all executors can write.

    Raises:
        DataUnfit: the parts share what they must not, or one is empty.
        EngineMissing: Spark does not start.
    """
    from pyspark import StorageLevel
    from pyspark.sql import functions as f
    from pyspark.sql.types import StructType

    engine = spark_session.get_session(means)

    def ask(query: str) -> Sequence[Sequence[Any]]:
        return engine.sql(query).collect()

    path = settings().path(checked.uri)
    source = engine.read.schema(StructType.fromJson(_schema(checked.contract))).parquet(str(path))
    source.createOrReplaceTempView("checked")
    num_partitions = min(max(2, -(-path.stat().st_size // _BYTES_OF_PARTITION)), _MOST_PARTITIONS)
    bounds = _bounds(features.key, checked.num_rows, num_partitions, ask)
    rows = (
        engine.sql(split_query(features, checked.contract, "checked", ask, SPARK_FUNCTIONS))
        .withColumn(_PARTITION, f.expr(_partition(features.key, bounds)))
        .repartitionById(num_partitions, f.col(_PARTITION))
        .sortWithinPartitions(SPLIT_COLUMN, f.col(quote_for_spark(features.key)))
        .persist(StorageLevel.DISK_ONLY)
    )
    try:
        rows.createOrReplaceTempView("divided")
        require_no_leakage(features, "divided", ask)
        dropped = count_dropped_rows(features, checked.contract, "checked", "divided", ask)
        yield SparkSplits(rows, features, scratch, dropped)
    finally:
        rows.unpersist()


def _schema(contract: Contract) -> dict[str, Any]:
    """The columns of checked rows for Spark: without those about people that are dropped, and text where hashed."""
    kept = protected_schema(contract)
    whole = spark_schema(contract)
    fields = [field for field in whole["fields"] if field["name"] in kept.names]
    texts = {field.name for field in kept if pa.types.is_string(field.type)}
    return {**whole, "fields": [{**field, "type": "string"} if field["name"] in texts else field for field in fields]}


def quote_for_spark(name: str) -> str:
    """A column's name as Spark's own functions take it."""
    return "`" + name.replace("`", "``") + "`"


def _bounds(key: str, num_rows: int, num_partitions: int, ask: RunQuery) -> list[Any]:
    """Keys that cut all keys into ranges of about equal length. Where they lie decides nothing but the work's division.

    Taken from the keys themselves, since Spark's own sampling would compute all that comes before once more.
    """
    share = min(_KEYS_OF_PARTITION * num_partitions / max(num_rows, 1), 1.0)
    text = f"cast({quote_name(key)} as string)"
    found = sorted(
        row[0]
        for row in ask(
            f"select {quote_name(key)} from checked where md5({text}) <= {quote_text(hash_threshold(share))}"
        )
    )
    places = {len(found) * position // num_partitions for position in range(1, num_partitions)}
    return [found[place] for place in sorted(places) if place < len(found)]


def _partition(key: str, bounds: list[Any]) -> str:
    """The number of a key's partition as an expression."""
    limits = [quote_text(bound) if isinstance(bound, str) else str(bound) for bound in bounds]
    cases = " ".join(f"when {quote_name(key)} < {limit} then {number}" for number, limit in enumerate(limits))
    return f"case {cases} else {len(limits)} end" if cases else "0"
