"""Personal data is dropped, hashed or encrypted, and appears in no report, message or raw file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import ContractBroken, SecretMissing
from bloomery.data_contracts.odcs.columns.column import can_be_encrypted
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import ValidRows
from bloomery.models.features.config import Features
from bloomery.tasks.infrastructure import personal_data
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.validate.stage import validate

SECRET = "a secret of many characters"
NAMES = [f"Person Nr {number}" for number in range(200)]


def make_contract(**table: Any) -> Contract:
    def column(name: str, kind: str, personal: str | None = None, **more: Any) -> dict[str, Any]:
        properties = [{"property": "personal", "value": personal}] if personal else []
        return {"name": name, "logicalType": kind, "required": True, "customProperties": properties, **more}

    properties = [
        column("email", "string", "hash", primaryKey=True),
        column("name", "string", "drop", logicalTypeOptions={"pattern": "^Person"}),
        column("phone", "integer", "encrypt"),
        column("size", "number"),
        column("label", "string"),
    ]
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "p", "name": "people", "version": "1.0.0"}
    return Contract.model_validate(
        {**head, "status": "active", "schema": [{"name": "people", "properties": properties, **table}]}
    )


def make_rows(names: list[str] = NAMES) -> pa.Table:
    numbers = range(len(names))
    return pa.table(
        {
            "email": [f"p{number}@example.org" for number in numbers],
            "name": names,
            "phone": [4930_000_000 + number for number in numbers],
            "size": [float(number) for number in numbers],
            "label": ["yes" if number % 2 else "no" for number in numbers],
        }
    )


def validate_file(path: Path, contract: Contract) -> ValidRows:
    return validate(ingest(locate_source(DataSource(source=str(path)), contract.personal_columns)), contract)


def file_contents(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def _key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(personal_data.KEY_VARIABLE, SECRET)  # after `home`, which clears the variables


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pq.write_table(make_rows(), tmp_path / "people.parquet")
    return tmp_path / "people.parquet"


@pytest.mark.usefixtures("_key")
def test_each_personal_column_is_protected_as_the_contract_says(home: Path, source: Path) -> None:
    result = validate_file(source, make_contract())
    path = home / result.uri
    assert pq.read_schema(path).names == ["email", "phone", "size", "label"]
    readable = duckdb.connect().sql(f"select email, size from '{path}'").to_arrow_table().to_pydict()
    assert len(set(readable["email"])) == 200
    assert all(len(digest) == 64 for digest in readable["email"])
    assert readable["size"] == make_rows()["size"].to_pylist()
    with pytest.raises(OSError, match="decrypt"):
        pq.read_table(path)
    decrypted = pa.Table.from_batches(read_batches(path))
    assert decrypted["phone"].to_pylist() == make_rows()["phone"].to_pylist()


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize(
    "name", ["e.mail", "E-Mail (privat)", "адрес 😀", '"q"', "a/b", "street, town", "a:b", "a;b", " a"]
)
def test_a_column_is_encrypted_under_any_name_that_arrow_takes(name: str, tmp_path: Path) -> None:
    rows = pa.table({name: ["secret"], "size": [1]})
    path = tmp_path / "rows.parquet"
    if not can_be_encrypted(name):
        with pytest.raises(OSError, match="column"):
            write_encrypted(path, rows, name)
        return
    write_encrypted(path, rows, name)
    assert b"secret" not in path.read_bytes()
    assert pa.Table.from_batches(read_batches(path)) == rows


def write_encrypted(path: Path, rows: pa.Table, name: str) -> None:
    with RowWriter(path, rows.schema, encrypted=[name]) as writer:
        for batch in rows.to_batches():
            writer.write(batch)


@pytest.mark.usefixtures("_key")
def test_no_file_of_the_state_folder_contains_a_personal_value_as_plain_text(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    lines = [",".join(map(str, row.values())) for row in make_rows(["Nobody Inparticular", *NAMES[1:]]).to_pylist()]
    path.write_text("email,name,phone,size,label\n" + "\n".join(lines) + "\nPerson Broken,line\n")
    result = validate_file(path, make_contract(customProperties=[{"property": "quarantineLimit", "value": 0.1}]))
    assert result.num_quarantined == 2
    contents = list(file_contents(home))
    for value in (b"Nobody Inparticular", b"Person Nr 7", b"p7@example.org", b"4930000007", b"Person Broken"):
        assert not any(value in content for content in contents), value
    quarantine = pa.Table.from_batches(read_batches(home / result.quarantine_uri)).to_pylist()
    assert quarantine[0]["name"] == "Nobody Inparticular"
    assert quarantine[0]["_reasons"] == [{"column": "name", "rule": "must match ^Person", "value": "(personal)"}]
    assert "(personal)" in (home / result.report_uri).read_text()


@pytest.mark.usefixtures("_key")
def test_an_error_conceals_personal_values(home: Path, tmp_path: Path) -> None:
    pq.write_table(make_rows(["Nobody", *NAMES[1:]]), tmp_path / "people.parquet")
    with pytest.raises(ContractBroken, match=r"found \(personal\)") as caught:
        validate_file(tmp_path / "people.parquet", make_contract())
    assert "Nobody" not in str(caught.value)


def test_personal_data_is_not_read_without_a_key(home: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(personal_data.KEY_VARIABLE, raising=False)
    with pytest.raises(SecretMissing, match="BLOOMERY_PERSONAL_KEY is not set"):
        locate_source(DataSource(source=str(source)), make_contract().personal_columns)
    monkeypatch.setenv(personal_data.KEY_VARIABLE, "short")
    with pytest.raises(SecretMissing, match="has 5 characters"):
        locate_source(DataSource(source=str(source)), make_contract().personal_columns)


def test_the_digest_depends_on_rows_and_key_and_not_on_the_time_of_writing(
    source: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    contract = make_contract()

    def digest_under(secret: str) -> str:
        monkeypatch.setenv(personal_data.KEY_VARIABLE, secret)
        raw = ingest.task.fn(locate_source(DataSource(source=str(source)), contract.personal_columns))
        return validate.task.fn(raw, contract).digest

    assert digest_under(SECRET) == digest_under(SECRET)
    assert digest_under(SECRET) != digest_under(SECRET + "!")


@pytest.mark.usefixtures("_key")
def test_a_hashed_key_still_identifies_rows(home: Path, source: Path) -> None:
    features = Features.model_validate(
        {"key": "email", "label": "label", "inputs": [{"kind": "number", "columns": ["size"]}]}
    )
    dataset = prepare(validate_file(source, make_contract()), features, Engine(kind="local"))
    keys = pq.read_table(home / dataset.train.uri)["email"].to_pylist()
    assert keys == sorted(keys)
    assert dataset.train.num_rows + dataset.val.num_rows + dataset.test.num_rows == 200


def test_personal_columns_survive_a_round_trip_through_json() -> None:
    contract = make_contract()
    restored = Contract.model_validate(json.loads(contract.model_dump_json(by_alias=True)))
    assert restored.personal_columns == {"email", "name", "phone"}
