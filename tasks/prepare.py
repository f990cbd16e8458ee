"""prepare: split, fit the encoder on the training part, encode. On Spark."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from data_contracts.digests import digest_of_document, digest_of_file
from data_contracts.errors import DataUnfit
from data_contracts.records import CheckedRows, Dataset, Part
from data_contracts.schemas import spark_schema
from models.config import Features, Split
from models.encoder import CLASS, ENCODED, Encoder, Moments, encode_batches, fit, summarise_batches
from tasks import spark
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_PART = "_part"
_PARTS = ("train", "val", "test")
_ROWS_OF_GROUP = 65_536


@stage()
def prepare(out: Output, checked: CheckedRows, features: Features) -> Dataset:
    """Afterwards `train`, `val` and `test.parquet` hold encoded rows sorted by key, `encoder.json` the fitted state.

    The bytes of all files depend on the rows and the features alone, not on the number of executors.

    Raises:
        DataUnfit: there are fewer than two classes, or too few rows for three parts.
    """
    from pyspark.sql.types import StructType

    engine = spark.session()
    rows = engine.read.schema(StructType.fromJson(spark_schema(checked.contract))).parquet(
        str(settings().path(checked.uri))
    )
    divided = divide(rows, features.key, features.label, features.split).persist()
    try:
        encoder = _fit(divided.where(f"{_PART} = 'train'"), features)
        out.path("encoder.json").write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
        parts = {name: _write(divided.where(f"{_PART} = '{name}'"), encoder, name, out) for name in _PARTS}
    finally:
        divided.unpersist()
    _require_rows(parts, features.split)
    return Dataset(
        **parts,
        encoder_uri=out.uri("encoder.json"),
        key=features.key,
        label=features.label,
        inputs=encoder.columns,
        input_shape=encoder.input_shape,
        classes=encoder.classes,
        checked=checked,
        digest=digest_of_document([digest_of_file(out.path("encoder.json")), *(parts[name].sha256 for name in _PARTS)]),
    )


def divide(rows: DataFrame, key: str, label: str, split: Split) -> DataFrame:
    """`rows` with a column that names each row's part.

    In every class the rows are ranked by a hash of their key, and the ranks are cut by the split's shares; the first
    row of a class is always for training, so no class is unknown to the encoder.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    hashed = f.sha2(f.concat_ws(":", f.lit(split.salt), f.col(key).cast("string")), 256)
    of_class = Window.partitionBy(label)
    rank = f.row_number().over(of_class.orderBy(hashed, key))
    position = (rank - 0.5) / f.count("*").over(of_class)
    part = (
        f.when((rank == 1) | (position < split.train), "train")
        .when(position < split.train + split.val, "val")
        .otherwise("test")
    )
    return rows.withColumn(_PART, part)


def _fit(train: DataFrame, features: Features) -> Encoder:
    label_type = train.schema[features.label].dataType.simpleString()
    summaries = train.mapInArrow(
        partial(summarise_batches, features), f"moments string, labels array<{label_type}>"
    ).collect()
    return fit(
        features,
        (Moments.model_validate_json(summary["moments"]) for summary in summaries),
        {label for summary in summaries for label in summary["labels"]},
    )


def _write(rows: DataFrame, encoder: Encoder, name: str, out: Output) -> Part:
    """One part as one Parquet file, sorted by key."""
    key = encoder.features.key
    key_type = rows.schema[key].dataType.simpleString()
    folder = out.path(f".{name}")
    (
        rows.repartition(1)
        .sortWithinPartitions(key)
        .mapInArrow(partial(encode_batches, encoder), f"{key} {key_type}, {CLASS} bigint, {ENCODED} array<float>")
        .write.parquet(str(folder))
    )
    target = out.path(f"{name}.parquet")
    num_rows = _gather(folder, target)
    return Part(uri=out.uri(target.name), sha256=digest_of_file(target), num_rows=num_rows)


def _gather(folder: Path, target: Path) -> int:
    """Write the rows of Spark's one output file to `target`, drop its folder, and return the number of rows.

    Spark's own Parquet files hold equal rows but not equal bytes from one Java process to the next: the order of the
    encodings in the footer follows Java's identity hashes. Arrow writes the same bytes every time.
    """
    files = list(folder.glob("part-*.parquet"))
    if len(files) != 1:
        raise RuntimeError(f"Spark wrote {len(files)} files for one partition in {folder}")
    source = pq.ParquetFile(files[0])
    schema = source.schema_arrow.remove_metadata()
    with pq.ParquetWriter(target, schema) as writer:
        for batch in source.iter_batches(_ROWS_OF_GROUP):
            writer.write_batch(batch.replace_schema_metadata(None))
    shutil.rmtree(folder)
    return int(source.metadata.num_rows)


def _require_rows(parts: dict[str, Part], split: Split) -> None:
    counts = {name: part.num_rows for name, part in parts.items()}
    if min(counts.values()) == 0:
        raise DataUnfit(
            f"the parts have {', '.join(f'{count} {name}' for name, count in counts.items())} rows",
            required="at least one row in every part",
            where=f"split {split.train:g} / {split.val:g} / {split.test:g} in each class",
            remedy="bring more rows, or larger shares for the empty parts in the recipe's features.split",
        )
