"""prepare: split, fit the encoder on the training part, encode."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset, EncodedSplit, ValidRows
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import encoded_schema, fit
from bloomery.models.features.splits import SPLITS, UNLABELLED
from bloomery.tasks.infrastructure.parquet import write_rows
from bloomery.tasks.infrastructure.personal_data import protected_schema
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.prepare.duckdb_engine import DuckdbSplits, split_with_duckdb
from bloomery.tasks.prepare.spark_engine import SparkSplits, split_with_spark

if TYPE_CHECKING:
    from pathlib import Path

_FITS_ONE_MACHINE = 20_000_000_000  # bytes of Parquet, for which a cluster is not asked for even where there is one


@stage()
def prepare(out: Output, checked: ValidRows, features: Features, engine: Engine) -> Dataset:
    """Afterwards `train`, `val` and `test.parquet` hold encoded rows sorted by key, `encoder.json` the fitted state.

    Where the features have a use for rows whose label is null, `unlabelled.parquet` holds them in the same way. For a
    series, `test_rows.parquet` has the key and raw windows of the test part. The bytes of all files depend on the rows
    and the features alone, not on the engine or its executors.

    Raises:
        DataUnfit: there are fewer than two classes or figures, a part is empty, or parts share what they must not.
    """
    scratch = out.path(".scratch")
    scratch.mkdir()
    with _divided(checked, features, engine, scratch) as rows:
        encoder = fit(features, rows.summaries())
        out.path("encoder.json").write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
        schema = encoded_schema(encoder, protected_schema(checked.contract).field(features.key).type)
        parts = {}
        for name in (*SPLITS, *([UNLABELLED] if features.unlabelled == "teach" else [])):
            path = out.path(f"{name}.parquet")
            num_rows = write_rows(path, schema, rows.encoded(name, encoder))
            parts[name] = EncodedSplit(uri=out.uri(path.name), sha256=digest_of_file(path), num_rows=num_rows)
        test_rows_uri = checked.uri if features.series is None else _keep_windows(out, checked, features, rows)
        num_dropped = rows.num_dropped
    shutil.rmtree(scratch)
    return Dataset(
        **parts,
        encoder_uri=out.uri("encoder.json"),
        key=features.key,
        label=features.label,
        inputs=encoder.columns,
        task=features.task,
        layout=encoder.layout,
        classes=encoder.classes,
        test_rows_uri=test_rows_uri,
        num_dropped=num_dropped,
        valid_rows=checked,
        digest=digest_of_document(
            [digest_of_file(out.path("encoder.json")), *(part.sha256 for part in parts.values())]
        ),
    )


def _keep_windows(out: Output, checked: ValidRows, features: Features, rows: DuckdbSplits | SparkSplits) -> str:
    """Write the test part's raw windows, as a client of the endpoint would send them, and give their address."""
    inputs = (column for source in features.inputs for column in source.columns)
    whole = arrow_schema(with_windows(checked.contract, features.window_lengths))
    key = protected_schema(checked.contract).field(features.key)
    schema = pa.schema([key, *(whole.field(name) for name in inputs)])
    path = out.path("test_rows.parquet")
    batches = (
        cast
        for batch in rows.raw("test", schema.names)
        for cast in pa.Table.from_batches([batch]).cast(schema).to_batches()
    )
    write_rows(path, schema, batches)
    return out.uri(path.name)


def _divided(
    checked: ValidRows, features: Features, engine: Engine, scratch: Path
) -> AbstractContextManager[DuckdbSplits | SparkSplits]:
    if needs_spark(checked, engine):
        return split_with_spark(checked, features, engine.spark, scratch)
    return split_with_duckdb(checked, features, scratch)


def needs_spark(checked: ValidRows, engine: Engine) -> bool:
    """Whether Spark is asked for, or a cluster is there and the rows are too many for one machine."""
    if engine.kind != "auto":
        return engine.kind == "spark"
    has_cluster = not (engine.spark.master or settings().spark_master).startswith("local")
    return has_cluster and settings().path(checked.uri).stat().st_size > _FITS_ONE_MACHINE
