"""Splits and encodes rows on Spark, for data that is too large for one machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bloomery.data_contracts.odcs.columns.arrow_schema import spark_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.data_contracts.records.records import ValidRows
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder
from bloomery.models.features.partition_writer import NUM_ROWS, RowColumns, partition_statistics, write_partition
from bloomery.models.features.splits import hash_threshold
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.personal_data import protected_schema
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import column_alias, quote_text
from bloomery.tasks.prepare.split_sql import (
    SPLIT_COLUMN,
    EngineFunctions,
    RunQuery,
    count_dropped_rows,
    names_by_alias,
    require_no_leakage,
    split_query,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_PARTITION = "_partition"
_MAX_PARTITIONS = 1000
_KEYS_PER_PARTITION = 200  # sampled, to divide the keys into ranges
_BYTES_PER_PARTITION = 32_000_000  # of Parquet: some hundred megabytes of rows, which an executor sorts in memory
SPARK_FUNCTIONS = EngineFunctions(
    # Spark skips nulls, but not a struct that contains one.
    collect="transform(collect_list(named_struct('value', {value})) {window}, item -> item.value)",
    microseconds="unix_micros",
    sort_set="array_sort(array_distinct(filter({value}, item -> item is not null)))",
    make_array="array({values})",
    text="string",
)


class SparkSplits:
    """Split rows in a data frame. Its partitions are ranges of keys in order, each sorted by split and key.

    `num_dropped` rows had no complete window, or no label of a forecast.
    """

    def __init__(self, rows: DataFrame, features: Features, scratch: Path, num_dropped: int) -> None:
        self._rows = rows
        self._features = features
        self._columns = RowColumns(names_by_alias(features), SPLIT_COLUMN, _PARTITION)
        self._scratch = scratch
        self._folder = scratch / "encoded"
        self.num_dropped = num_dropped

    def training_statistics(self) -> Iterator[str]:
        """Yields the statistics of the training split, for `fit`."""
        train = self._rows.where(f"{SPLIT_COLUMN} = 'train'")
        summarize = partial(partition_statistics, self._features, self._columns)
        return (row[STATISTICS] for row in train.mapInArrow(summarize, f"{STATISTICS} string").collect())

    def encode_split(self, split: str, encoder: Encoder) -> Iterator[pa.RecordBatch]:
        """Yields the encoded rows of one split, sorted by key."""
        if not self._folder.exists():
            write = partial(write_partition, encoder, self._columns, self._folder)
            self._rows.mapInArrow(write, f"{NUM_ROWS} bigint").collect()
        for path in sorted((self._folder / split).glob("[0-9]*.parquet")):
            yield from read_batches(path)

    def read_split(self, split: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the columns `names` of one split without encoding, sorted by key."""
        folder = self._scratch / "raw"
        rows = self._rows.where(f"{SPLIT_COLUMN} = {quote_text(split)}")
        rows = rows.select(*map(column_alias, names), SPLIT_COLUMN, _PARTITION)
        rows.mapInArrow(partial(write_partition, None, self._columns, folder), f"{NUM_ROWS} bigint").collect()
        for path in sorted((folder / split).glob("[0-9]*.parquet")):
            yield from read_batches(path)


@contextlib.contextmanager
def split_with_spark(
    valid_rows: ValidRows, features: Features, config: SparkConfig, scratch: Path
) -> Iterator[SparkSplits]:
    """Yields the validated rows in the splits of `features`. All executors write to the folder `scratch`.

    Raises:
        DataUnfit: two splits share what they must not, or one is empty.
        EngineMissing: Spark does not start.
    """
    from pyspark import StorageLevel
    from pyspark.sql import functions as f
    from pyspark.sql.types import StructType

    engine = spark_session.get_session(config)

    def run_query(query: str) -> Sequence[Sequence[Any]]:
        return engine.sql(query).collect()

    path = settings().path(valid_rows.uri)
    source = engine.read.schema(StructType.fromJson(_schema(valid_rows.contract))).parquet(str(path))
    source.toDF(*map(column_alias, source.columns)).createOrReplaceTempView("checked")
    num_partitions = min(max(2, -(-path.stat().st_size // _BYTES_PER_PARTITION)), _MAX_PARTITIONS)
    bounds = _bounds(features.key, valid_rows.num_rows, num_partitions, run_query)
    rows = (
        engine.sql(split_query(features, valid_rows.contract, "checked", run_query, SPARK_FUNCTIONS))
        .withColumn(_PARTITION, f.expr(_partition(features.key, bounds)))
        .repartitionById(num_partitions, f.col(_PARTITION))
        .sortWithinPartitions(SPLIT_COLUMN, f.col(column_alias(features.key)))
        .persist(StorageLevel.DISK_ONLY)
    )
    try:
        rows.createOrReplaceTempView("split_rows")
        require_no_leakage(features, "split_rows", run_query)
        num_dropped = count_dropped_rows(
            features, valid_rows.contract, "checked", "split_rows", run_query, SPARK_FUNCTIONS
        )
        yield SparkSplits(rows, features, scratch, num_dropped)
    finally:
        rows.unpersist()


def _schema(contract: Contract) -> dict[str, Any]:
    """Returns Spark's schema of validated rows: without dropped personal columns, and with text for hashed columns."""
    protected = protected_schema(contract)
    schema = spark_schema(contract.columns)
    fields = [field for field in schema["fields"] if field["name"] in protected.names]
    texts = {field.name for field in protected if pa.types.is_string(field.type)}
    return {**schema, "fields": [{**field, "type": "string"} if field["name"] in texts else field for field in fields]}


def _bounds(key: str, num_rows: int, num_partitions: int, run_query: RunQuery) -> list[Any]:
    """Returns keys that divide all keys into ranges of about equal size. They decide only how the work is distributed.

    They are sampled from the keys, since Spark's own sampling would compute all previous steps again.
    """
    share = min(_KEYS_PER_PARTITION * num_partitions / max(num_rows, 1), 1.0)
    alias = column_alias(key)
    keys = sorted(
        row[0]
        for row in run_query(
            f"select {alias} from checked where md5(cast({alias} as string)) <= {quote_text(hash_threshold(share))}"
        )
    )
    indices = {len(keys) * position // num_partitions for position in range(1, num_partitions)}
    return [keys[index] for index in sorted(indices) if index < len(keys)]


def _partition(key: str, bounds: list[Any]) -> str:
    """Returns the number of a key's partition as an expression."""
    limits = [quote_text(bound) if isinstance(bound, str) else str(bound) for bound in bounds]
    cases = " ".join(f"when {column_alias(key)} < {limit} then {number}" for number, limit in enumerate(limits))
    return f"case {cases} else {len(limits)} end" if cases else "0"
