"""Breaking rows go to quarantine with the reason; a broken contract stops the run; every row is accounted for."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.contract import Contract, read_contract
from data_contracts.errors import ContractBroken, DataUnfit
from data_contracts.records import CheckedRows
from data_contracts.sources import Data
from flows.recipe import CONTRACTS
from tasks.ingest import ingest, locate
from tasks.validate import validate

IMAGE = [0, 4, 16, 1] * 16


def rows_of(path: Path, changes: dict[int, dict[str, Any]], num_rows: int = 400, **columns: Any) -> Path:
    """A Parquet file of good rows, with some cells changed."""
    rows = [{"id": number, "image": IMAGE, "label": number % 10, **columns} for number in range(num_rows)]
    for number, change in changes.items():
        rows[number] |= change
    pq.write_table(pa.Table.from_pylist(rows) if rows else pa.table({"id": [], "image": [], "label": []}), path)
    return path


def checked(path: Path, contract: Contract | None = None) -> CheckedRows:
    contract = contract or read_contract(CONTRACTS / "digits.odcs.yaml")
    return validate.task.fn(ingest.task.fn(locate(Data(source=str(path)))), contract)


def test_breaking_rows_are_set_aside_with_rule_column_and_value(home: Path, tmp_path: Path) -> None:
    changes = {7: {"label": 12}, 9: {"image": [*IMAGE[:-1], 99]}, 11: {"image": IMAGE[:-1]}}
    result = checked(rows_of(tmp_path / "rows.parquet", changes))
    assert (result.num_rows, result.num_quarantined, result.rows.num_rows) == (397, 3, 400)
    quarantine = pq.read_table(home / result.quarantine_uri).to_pylist()
    assert [row["_row"] for row in quarantine] == [7, 9, 11]
    reasons = [row["_reasons"] for row in quarantine]
    assert reasons[0] == [{"column": "label", "rule": "must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "value": "12"}]
    assert reasons[1] == [{"column": "image[]", "rule": "must be at least 0 and at most 16", "value": "99"}]
    assert reasons[2][0]["rule"] == "number of items must be at least 64 and at most 64"
    kept = pq.read_table(home / result.uri)
    assert kept["id"].to_pylist() == [number for number in range(400) if number not in changes]
    assert kept.schema.field("image").type == pa.list_(pa.uint8())


def test_too_many_breaking_rows_break_the_contract_and_are_kept_to_look_at(home: Path, tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows.parquet", {number: {"label": 10} for number in range(5)})
    with pytest.raises(ContractBroken) as caught:
        checked(path)
    assert "5 of 400 rows (1.2%) break the contract" in caught.value.found
    assert "label must be one of" in caught.value.found
    kept = list((home / "quarantine").glob("digits-*.parquet"))
    assert pq.read_table(kept[0])["_row"].to_pylist() == [0, 1, 2, 3, 4]
    assert str(kept[0]) in caught.value.where


def test_keys_that_come_twice_are_both_set_aside(home: Path, tmp_path: Path) -> None:
    result = checked(rows_of(tmp_path / "rows.parquet", {5: {"id": 6}}))
    assert pq.read_table(home / result.quarantine_uri)["_row"].to_pylist() == [5, 6]


def test_a_missing_an_extra_and_a_wrong_column_break_the_contract(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1], "image": ["text"], "colour": [1]}), path)
    with pytest.raises(ContractBroken) as caught:
        checked(path)
    assert "column label is missing" in caught.value.found
    assert "column colour is not in the contract" in caught.value.found
    assert "column image is string, not list<item: uint8>" in caught.value.found
    assert caught.value.exit_code == 3


def test_too_few_rows_break_the_contract(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractBroken, match="number of rows is 99"):
        checked(rows_of(tmp_path / "rows.parquet", {}, num_rows=99))


def test_an_empty_data_set_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataUnfit, match="no rows") as caught:
        checked(rows_of(tmp_path / "rows.parquet", {}, num_rows=0))
    assert caught.value.exit_code == 3


def test_another_contract_makes_another_digest_even_where_all_rows_pass(home: Path, tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows.parquet", {})
    contract = read_contract(CONTRACTS / "digits.odcs.yaml")
    wider = contract.model_copy(update={"version": "2.0.0"})
    assert checked(path).digest != checked(path, wider).digest
