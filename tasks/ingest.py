"""ingest: rows from their source into one Parquet file, unchecked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.digests import digest_of_document, digest_of_file, digest_of_table
from data_contracts.errors import DataMissing
from data_contracts.records import RawRows
from data_contracts.sources import Data, Source
from tasks.stages import stage
from tasks.store import Output

_CARRIED = ("digits",)


@stage()
def ingest(out: Output, source: Source) -> RawRows:
    """Afterwards `rows.parquet` holds the rows as the source has them, in its order."""
    table = _read_carried(source.source) if source.source.startswith("sklearn:") else _read_parquet(source.source)
    pq.write_table(table, out.path("rows.parquet"))
    return RawRows(
        uri=out.uri("rows.parquet"),
        source=source.source,
        num_rows=table.num_rows,
        digest=digest_of_table(table),
    )


def locate(data: Data) -> Source:
    """The source that `data` names, with a digest that changes when its content does.

    Raises:
        DataMissing: there is no such file or set.
    """
    if data.source.startswith("sklearn:"):
        name = data.source.removeprefix("sklearn:")
        if name not in _CARRIED:
            raise DataMissing(
                f"scikit-learn carries no set {name!r} that Bloomery reads",
                required=f"one of {', '.join(f'sklearn:{known}' for known in _CARRIED)}, or a path",
                where="the recipe's data.source",
                remedy="mend the name, or give the path of a Parquet file",
            )
        import importlib.metadata

        version = importlib.metadata.version("scikit-learn")
        return Source(source=data.source, digest=digest_of_document([data.source, version]))
    files = _parquet_files(Path(data.source))
    digests = [[str(path.relative_to(data.source)), digest_of_file(path)] for path in files]
    return Source(source=data.source, digest=digest_of_document(digests))


def _parquet_files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataMissing(
            f"there is no Parquet {'in the folder' if path.is_dir() else 'file'} {path}",
            required="a Parquet file, or a folder of them",
            where="the recipe's data.source (a relative path starts at the recipe's own folder)",
            remedy="mend the path in the recipe, or put the data there",
        )
    return files


def _read_parquet(path: str) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as failure:
        raise DataMissing(
            f"{path} cannot be read as Parquet: {failure}",
            required="whole Parquet files of one schema",
            where=path,
            remedy="write the data again; a file that was cut off while it was copied ends like this",
        ) from failure


def _read_carried(source: str) -> pa.Table:
    """The UCI test part of the handwritten digits: the copy that scikit-learn carries is without writers."""
    from sklearn.datasets import load_digits

    carried = load_digits()
    return pa.table(
        {
            "id": pa.array(range(len(carried.target)), pa.int64()),
            "image": pa.array(list(carried.data.astype("uint8")), pa.list_(pa.uint8())),
            "label": pa.array(carried.target, pa.int64()),
        }
    )
