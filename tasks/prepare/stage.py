"""prepare: splits the rows, fits the encoder on the training split, and encodes all splits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset, EncodedSplit, ValidRows
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encoded_schema, fit
from bloomery.models.features.splits import SPLITS, UNLABELLED
from bloomery.tasks.infrastructure.parquet import row_group_size_for, write_rows
from bloomery.tasks.infrastructure.personal_data import protected_schema
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.prepare.checkpoint_tokenizers import read_tokenizers
from bloomery.tasks.prepare.duckdb_engine import split_with_duckdb
from bloomery.tasks.prepare.spark_engine import split_with_spark

if TYPE_CHECKING:
    from pathlib import Path

_MAX_LOCAL_BYTES = 20_000_000_000  # of Parquet; `engine: auto` takes a cluster only for more


class SplitRows(Protocol):
    """Rows in their splits, as an engine holds them. `num_dropped` had no complete window or no label."""

    num_dropped: int

    def training_statistics(self) -> Iterator[str]:
        """Yields the statistics of the training split, for `fit`."""
        ...

    def encode_split(self, split: str, encoder: Encoder) -> Iterator[pa.RecordBatch]:
        """Yields the encoded rows of one split, sorted by key."""
        ...

    def read_split(self, split: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the columns `names` of one split without encoding, sorted by key."""
        ...


@stage()
def prepare(out: Output, checked: ValidRows, features: Features, engine: Engine) -> Dataset:
    """Writes encoded rows sorted by key to `train`, `val` and `test.parquet`, and the fitted encoder to `encoder.json`.

    If the features use rows without a label, `unlabelled.parquet` holds these. For a series, `test_rows.parquet`
    has the key and the raw windows of the test split. The bytes of all files depend on the rows and the features alone,
    not on the engine or its executors.

    Raises:
        DataUnfit: there are fewer than two classes or numbers, a split is empty, or splits share what they must not.
    """
    scratch = out.path(".scratch")
    scratch.mkdir()
    with _open_splits(checked, features, engine, scratch) as rows:
        integer_columns = {column.name for column in checked.contract.columns if column.logical_type == "integer"}
        encoder = fit(read_tokenizers(features), rows.training_statistics(), integer_columns)
        out.path("encoder.json").write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
        schema = encoded_schema(encoder, protected_schema(checked.contract).field(features.key).type)
        row_group_size = row_group_size_for(encoder.layout.num_values)
        splits = {}
        for name in (*SPLITS, *([UNLABELLED] if features.unlabelled == "teach" else [])):
            path = out.path(f"{name}.parquet")
            num_rows = write_rows(path, schema, rows.encode_split(name, encoder), row_group_size)
            splits[name] = EncodedSplit(uri=out.uri(path.name), sha256=digest_of_file(path), num_rows=num_rows)
        test_rows_uri = checked.uri if features.series is None else _write_test_windows(out, checked, features, rows)
        num_dropped = rows.num_dropped
    shutil.rmtree(scratch)
    return Dataset(
        **splits,
        encoder_uri=out.uri("encoder.json"),
        key=features.key,
        label=features.label,
        inputs=encoder.columns,
        task=features.task,
        layout=encoder.layout,
        classes=encoder.classes,
        outputs=encoder.outputs,
        class_outputs=encoder.class_outputs,
        test_rows_uri=test_rows_uri,
        num_dropped=num_dropped,
        valid_rows=checked,
        digest=digest_of_document(
            [digest_of_file(out.path("encoder.json")), *(split.sha256 for split in splits.values())]
        ),
    )


def _write_test_windows(out: Output, checked: ValidRows, features: Features, rows: SplitRows) -> str:
    """Writes the raw windows of the test split, as a client would send them to the endpoint, and returns their URI."""
    inputs = (column for source in features.inputs for column in source.columns)
    windows = arrow_schema(with_windows(checked.contract, features.window_lengths).columns)
    key = protected_schema(checked.contract).field(features.key)
    schema = pa.schema([key, *(windows.field(name) for name in inputs)])
    path = out.path("test_rows.parquet")
    batches = (
        cast_batch
        for batch in rows.read_split("test", schema.names)
        for cast_batch in pa.Table.from_batches([batch]).cast(schema).to_batches()
    )
    write_rows(path, schema, batches, row_group_size_for(sum(features.window_lengths.values())))
    return out.uri(path.name)


def _open_splits(
    checked: ValidRows, features: Features, engine: Engine, scratch: Path
) -> AbstractContextManager[SplitRows]:
    if needs_spark(checked, engine):
        return split_with_spark(checked, features, engine.spark, scratch)
    return split_with_duckdb(checked, features, scratch)


def needs_spark(checked: ValidRows, engine: Engine) -> bool:
    """Whether the recipe requests Spark, or there is a cluster and the rows are too many for one machine."""
    if engine.kind != "auto":
        return engine.kind == "spark"
    has_cluster = not (engine.spark.master or settings().spark_master).startswith("local")
    return has_cluster and settings().path(checked.uri).stat().st_size > _MAX_LOCAL_BYTES
