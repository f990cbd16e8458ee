"""Valid rows and candidates for the tests of stages that come after `validate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file, digest_of_table
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Candidate, RawRows, Release, ValidRows
from bloomery.tasks.infrastructure.parquet import write_rows
from bloomery.tasks.validate.stage import validate
from tests.records import contract_document

MakeChecked = Callable[[pa.Table], ValidRows]
MakeCandidate = Callable[..., Candidate]
_KINDS = {
    pa.int64(): {"logicalType": "integer"},
    pa.float64(): {"logicalType": "number"},
    pa.string(): {"logicalType": "string"},
    pa.timestamp("us", "UTC"): {"logicalType": "timestamp"},
    pa.list_(pa.int64()): {"logicalType": "array", "items": {"logicalType": "integer"}},
    pa.list_(pa.string()): {"logicalType": "array", "items": {"logicalType": "string"}},
}


def contract_for(table: pa.Table) -> Contract:
    """A contract that `table` satisfies: its first column is the key, and only columns with nulls are optional."""
    properties = [
        {
            "name": field.name,
            **_KINDS[field.type],
            "required": table[field.name].null_count == 0,
            "primaryKey": position == 0,
        }
        for position, field in enumerate(table.schema)
    ]
    return Contract.model_validate(contract_document(*properties))


@pytest.fixture
def validate_table(home: Path) -> Callable[..., ValidRows]:
    """Runs `validate` on a table as on the output of `ingest`."""

    def check(table: pa.Table, contract: Contract, **raw: Any) -> ValidRows:
        home.mkdir(exist_ok=True)
        path = home / "raw.parquet"
        write_rows(path, table.schema, table.combine_chunks().to_batches())
        fields = {"num_rows": table.num_rows, "malformed_uri": "none", "num_malformed": 0, "is_text": False, **raw}
        digest = digest_of_document([digest_of_file(path), fields])
        rows = RawRows(uri=path.name, source="made", digest=digest, **fields)
        return validate(rows, contract)

    return check


@pytest.fixture
def checked_rows_of(home: Path) -> MakeChecked:
    """Writes a table to the state folder as `validate` does, under a contract that it satisfies."""

    def make(table: pa.Table) -> ValidRows:
        digest = digest_of_table(table)
        path = home / f"{digest[:16]}.parquet"
        write_rows(path, table.schema, table.combine_chunks().to_batches())
        raw = RawRows(
            uri=path.name,
            source="made",
            num_rows=table.num_rows,
            malformed_uri="none",
            num_malformed=0,
            is_text=False,
            digest=digest,
        )
        return ValidRows(
            uri=path.name,
            quarantine_uri="none",
            report_uri="none",
            num_rows=table.num_rows,
            num_quarantined=0,
            violations=(),
            fresh_until=None,
            contract=contract_for(table),
            raw_rows=raw,
            digest=digest,
        )

    return make


@pytest.fixture(scope="session")
def candidate_of(release: Release) -> MakeCandidate:
    """Makes a candidate like that of the release, with files and a run of the given name and with the given fields."""

    def make(name: str, size_bytes: int, **fields: Any) -> Candidate:
        name_fields = {
            "name": name,
            "uri": f"{name}.onnx",
            "sha256": name,
            "run_id": name,
            "predictions_uri": f"{name}.parquet",
        }
        update = {**name_fields, "size_bytes": size_bytes, "zstd_bytes": size_bytes, **fields}
        return release.bento.choice.candidate.model_copy(update=update)

    return make


@pytest.fixture(scope="session")
def people() -> pa.Table:
    """3,000 rows with a text key, a group, a time, a given part, nulls, minus zero, and copies under another key."""
    random = np.random.default_rng(0)
    num = 3000
    source = np.where(random.random(num) < 0.05, random.integers(0, num, num), np.arange(num))
    height = np.where(random.random(num) < 0.02, -0.0, random.normal(size=num))
    town = random.integers(0, 9, num)
    city = pa.array([f"tówn {'=' * number}" for number in town], mask=random.random(num) < 0.1)
    start = np.datetime64("2024-01-01T00:00:00", "us")
    content = pa.table(
        {
            "height": pa.array(height, mask=random.random(num) < 0.05),
            "city": city,
            "label": pa.array(np.where(random.random(num) < 0.3, "yes", "no")),
        }
    ).take(pa.array(source))
    return pa.table(
        {
            "key": pa.array([f"k{position * 7919 % num:05d}é" for position in range(num)]),
            **{name: content[name] for name in content.column_names},
            "family": pa.array(np.arange(num) // 3),
            "seen": pa.array(start + random.integers(0, 1000, num) * np.timedelta64(1, "h"), pa.timestamp("us", "UTC")),
            "given": pa.array(np.where(np.arange(num) % 5 == 0, "test", "train")),
        }
    )
