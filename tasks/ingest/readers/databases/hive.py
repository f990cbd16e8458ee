"""Hive tables, through Spark and the metastore of its settings, or else a metastore in the state folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, canonical_schema, conform_batch

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_BATCH_ROWS = 65_536


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of a Hive table, sorted by all columns, since a table has no order.

    Raises:
        DataMissing: there is no such table, or it has a column that cannot be sorted.
        EngineMissing: Spark does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="hive-", dir=_scratch_folder()))
    table = _open_table(origin)
    try:
        table.orderBy(*[table[name] for name in table.columns]).write.mode("overwrite").parquet(folder.as_uri())
    except Exception as failure:
        shutil.rmtree(folder, ignore_errors=True)
        if type(failure).__name__ != "AnalysisException":
            raise
        raise _table_error(origin, f"its rows cannot be sorted: {failure}", "columns that have an order") from failure
    finally:
        spark_session.stop_session()  # the next stage starts its own, without Hive
    files = sorted(folder.glob("*.parquet"))
    schema = canonical_schema(pq.read_schema(files[0]))

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for file in files:
                for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(_BATCH_ROWS):
                    yield conform_batch(batch, schema)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return RowStream(schema, batches())


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the table's columns, and the name, size and modification time of each of its files."""
    table = _open_table(origin)
    jvm: Any = table.sparkSession._jvm
    conf = table.sparkSession._jsc.hadoopConfiguration()
    identities: list[list[object]] = []
    for root in sorted(table.inputFiles()):
        path = jvm.org.apache.hadoop.fs.Path(root)
        files = path.getFileSystem(conf).listFiles(path, True)
        while files.hasNext():
            status = files.next()
            identities.append([status.getPath().toString(), status.getLen(), status.getModificationTime()])
    return [table.schema.json(), sorted(identities, key=str)]


def hive_session() -> SparkSession:
    """Returns a session with Hive's catalog, which is in the state folder unless there is a hive-site.xml.

    Raises:
        EngineMissing: Spark does not start.
    """
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None and active.conf.get("spark.sql.catalogImplementation") == "hive":
        return active
    spark_session.stop_session()  # Spark chooses its catalog when it starts
    scratch = _scratch_folder()
    database = f"jdbc:derby:;databaseName={scratch}/metastore;create=true"
    derby = f"-Djava.io.tmpdir={scratch} -Dderby.system.home={scratch} -Dderby.stream.error.file={scratch}/derby.log"
    return spark_session.get_session(
        SparkConfig(
            settings={
                "spark.sql.catalogImplementation": "hive",
                "spark.sql.caseSensitive": "false",  # as Hive itself is
                "spark.hadoop.javax.jdo.option.ConnectionURL": database,
                "spark.driver.extraJavaOptions": derby,
            }
        )
    )


def _scratch_folder() -> Path:
    scratch = settings().home / "spark"
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch


def _open_table(origin: SourceFile) -> DataFrame:
    from pyspark.errors import AnalysisException

    name = origin.source.removeprefix("hive:")
    try:
        return hive_session().table(name)
    except AnalysisException as failure:
        raise _table_error(origin, str(failure), "DATABASE.TABLE as the metastore names it") from failure


def _table_error(origin: SourceFile, failure: str, required: str) -> DataMissing:
    return DataMissing(
        f"the Hive table {origin.source} cannot be read: {failure.splitlines()[0]}",
        required=required,
        where="the recipe's data.source",
        remedy="correct the name, or name the right metastore in a hive-site.xml in SPARK_CONF_DIR",
    )
