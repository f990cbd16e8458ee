"""Rows that break the contract are quarantined with reasons, too many stop the run, and every row is accounted for."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import html
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import ContractBroken, DataUnfit
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.records.records import ValidRows
from bloomery.flows.recipe.recipe import CONTRACTS
from bloomery.tasks.infrastructure import duckdb_session, parquet
from bloomery.tasks.infrastructure.personal_data import decryption_properties
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.validate.stage import _is_fresh, validate
from tests.examples import examples

IMAGE = [0, 4, 16, 1] * 16
ID = {"name": "id", "logicalType": "integer", "primaryKey": True}
LIMIT_1 = [{"property": "quarantineLimit", "value": 1}]
LIMIT_0 = [{"property": "quarantineLimit", "value": 0}]
PERSONAL = {"customProperties": [{"property": "personal", "value": "hash"}]}


def determines(target: str, *columns: str, **keys: Any) -> dict[str, Any]:
    rule = {"rule": "determines", "columns": list(columns), "target": target}
    return {"type": "custom", "engine": "bloomery", "implementation": rule, **keys}


def write_rows_file(path: Path, changes: dict[int, dict[str, Any]], num_rows: int = 400, **columns: Any) -> Path:
    """Writes a Parquet file of valid rows, with some cells changed."""
    rows = [{"id": number, "image": IMAGE, "label": number % 10, **columns} for number in range(num_rows)]
    for number, change in changes.items():
        rows[number] |= change
    pq.write_table(pa.Table.from_pylist(rows) if rows else pa.table({"id": [], "image": [], "label": []}), path)
    return path


def validate_file(path: Path, contract: Contract | None = None) -> ValidRows:
    contract = contract or read_contract(CONTRACTS / "digits.odcs.yaml")
    return validate.task.fn(ingest.task.fn(locate_source(DataSource(source=str(path)))), contract)


def read_quarantine(home: Path, result: ValidRows) -> list[dict[str, Any]]:
    return pq.read_table(home / result.quarantine_uri, decryption_properties=decryption_properties()).to_pylist()


def read_report(home: Path, result: ValidRows) -> str:
    return (home / result.report_uri).read_text(encoding="utf-8")


def test_rows_that_break_a_rule_are_quarantined_with_rule_column_and_value(home, tmp_path):
    changes = {7: {"label": 12}, 9: {"image": [*IMAGE[:-1], 99]}, 11: {"image": IMAGE[:-1]}}
    result = validate_file(write_rows_file(tmp_path / "rows.parquet", changes))
    assert (result.num_rows, result.num_quarantined, result.raw_rows.num_rows) == (397, 3, 400)
    quarantine = read_quarantine(home, result)
    assert [row["_row"] for row in quarantine] == [7, 9, 11]
    reasons = [row["_reasons"] for row in quarantine]
    assert reasons[0] == [{"column": "label", "rule": "must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "value": "12"}]
    assert reasons[1] == [{"column": "image[]", "rule": "must be at least 0 and at most 16", "value": "99"}]
    assert reasons[2][0]["rule"] == "must have exactly 64 items"
    assert reasons[2][0]["value"] == "63 items"
    valid_rows = pq.read_table(home / result.uri)
    assert valid_rows["id"].to_pylist() == [number for number in range(400) if number not in changes]
    assert valid_rows.schema.field("image").type == pa.list_(pa.uint8())
    page = read_report(home, result)
    assert "label: must be one of 0, 1, 2" in page


def test_the_report_lists_what_is_not_checked(home, tmp_path, contract_of):
    contract = contract_of(
        {**ID, "physicalType": "bigint"},
        {"name": "image", "logicalType": "object"},
        {"name": "label", "logicalType": "integer", "quality": [{"type": "text", "description": "<b>Drawn by hand."}]},
    )
    result = validate_file(write_rows_file(tmp_path / "rows.parquet", {}), contract)
    assert pq.read_schema(home / result.uri).names == ["id", "label"]
    page = read_report(home, result)
    assert "<h2>Not checked</h2>" in page
    for item in contract.unchecked:
        assert f"<li>{html.escape(str(item))}</li>" in page
    assert "&lt;b&gt;Drawn by hand." in page


def test_too_many_broken_rows_fail_the_contract_and_are_kept_for_inspection(home, tmp_path):
    path = write_rows_file(tmp_path / "rows.parquet", {number: {"label": 10} for number in range(5)})
    with pytest.raises(ContractBroken) as caught:
        validate_file(path)
    assert "5 of 400 rows (1.2%) break the contract" in caught.value.found
    assert "5 x label: must be one of" in caught.value.found
    assert "(row 0: found 10)" in caught.value.found
    (folder,) = (home / "quarantine").glob("digits-*")
    assert pq.read_table(folder / "quarantine.parquet")["_row"].to_pylist() == [0, 1, 2, 3, 4]
    assert "label: must be one of" in (folder / "report.html").read_text()
    assert str(folder) in caught.value.where
    assert list((home / "stages" / "validate").glob("*")) == []


def test_all_rows_with_a_duplicate_key_are_quarantined(home, tmp_path):
    result = validate_file(write_rows_file(tmp_path / "rows.parquet", {5: {"id": 6}}))
    quarantine = read_quarantine(home, result)
    assert [row["_row"] for row in quarantine] == [5, 6]
    assert quarantine[0]["_reasons"] == [{"column": "id", "rule": "must be unique", "value": "6"}]


def test_missing_extra_and_mistyped_columns_break_the_contract(home, tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1], "image": ["text"], "colour": [1]}), path)
    with pytest.raises(ContractBroken) as caught:
        validate_file(path)
    assert "column label is missing" in caught.value.found
    assert "column colour is not in the contract" in caught.value.found
    assert "column image is string, not list<item: uint8>" in caught.value.found
    assert caught.value.exit_code == 3


def test_data_without_a_column_of_the_contract_breaks_it(contract_of, validate_table):
    with pytest.raises(ContractBroken, match="column id is missing"):
        validate_table(pa.table({"x": [1]}), contract_of(ID))


def test_too_few_rows_break_the_contract(home, tmp_path):
    with pytest.raises(ContractBroken, match="the table: found 99, must have at least"):
        validate_file(write_rows_file(tmp_path / "rows.parquet", {}, num_rows=99))


def test_an_empty_data_set_is_refused(home, tmp_path):
    with pytest.raises(DataUnfit, match="no rows") as caught:
        validate_file(write_rows_file(tmp_path / "rows.parquet", {}, num_rows=0))
    assert caught.value.exit_code == 3


def test_the_digest_depends_on_the_contract_even_if_all_rows_pass(home, tmp_path):
    path = write_rows_file(tmp_path / "rows.parquet", {})
    contract = read_contract(CONTRACTS / "digits.odcs.yaml")
    wider = contract.model_copy(update={"version": "2.0.0"})
    assert validate_file(path).digest != validate_file(path, wider).digest


def test_text_is_cast_to_the_types_of_the_contract_and_quarantined_unchanged(contract_of, validate_table, home):
    contract = contract_of(
        ID,
        {"name": "day", "logicalType": "date"},
        {"name": "price", "logicalType": "number", "logicalTypeOptions": {"minimum": 0}},
        customProperties=LIMIT_1,
    )
    table = pa.table(
        {
            "id": ["1", " 2.0", "x", "1e0", "5"],
            "day": ["2024-02-29", None, "2024-01-01", "2024-01-01", "2023-02-29"],
            "price": ["1.5", "-1", "2", "3", "0"],
        }
    )
    result = validate_table(table, contract, is_text=True)
    assert [
        (row["_row"], row["id"], [reason["column"] for reason in row["_reasons"]])
        for row in read_quarantine(home, result)
    ] == [
        (1, " 2.0", ["price"]),
        (2, "x", ["id"]),
        (4, "5", ["day"]),
        (0, "1", ["id"]),
        (3, "1e0", ["id"]),
    ]
    assert pq.read_schema(home / result.uri).types == [pa.int64(), pa.date32(), pa.float64()]
    assert result.num_rows == 0


def test_text_is_not_cast_to_an_array(contract_of, validate_table):
    contract = contract_of({"name": "l", "logicalType": "array", "items": {"logicalType": "integer"}})
    with pytest.raises(ContractBroken, match=r"column l is string, not list"):
        validate_table(pa.table({"l": ["[1]"]}), contract, is_text=True)


CELLS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, -1, None]), st.sampled_from([7, 8])), min_size=1, max_size=25)


@settings(
    deadline=None,
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(cells=CELLS, batch_rows=st.integers(1, 9), num_malformed=st.integers(0, 2))
def test_all_rows_are_accounted_for_with_correct_positions(
    contract_of, validate_table, home, monkeypatch, cells, batch_rows, num_malformed
):
    monkeypatch.setattr("bloomery.tasks.infrastructure.parquet.ROW_GROUP_SIZE", batch_rows)
    contract = contract_of(
        {"name": "v", "logicalType": "integer", "required": True, "logicalTypeOptions": {"minimum": 0}, "unique": True},
        {"name": "w", "logicalType": "integer"},
        {"name": "place", "logicalType": "integer"},
        quality=[determines("w", "v", severity="warning")],
        customProperties=LIMIT_1,
    )
    table = pa.table(
        {"v": pa.array([v for v, _ in cells], pa.int64()), "w": [w for _, w in cells], "place": range(len(cells))}
    )
    result = validate_table(table, contract, num_malformed=num_malformed)
    quarantine, passed = read_quarantine(home, result), pq.read_table(home / result.uri).to_pylist()
    assert [row["_row"] for row in quarantine] == [row["place"] for row in quarantine]
    assert sorted(row["place"] for row in (*quarantine, *passed)) == list(range(len(cells)))
    assert result.num_rows == len(passed)
    assert result.num_rows + result.num_quarantined == len(cells) + num_malformed
    values = [v for v, _ in cells]
    valid_positions = [place for place, v in enumerate(values) if v is not None and v >= 0 and values.count(v) == 1]
    assert [row["place"] for row in passed] == valid_positions


def test_the_report_shows_positions_in_the_source(contract_of, validate_table, home):
    contract = contract_of(
        {"name": "v", "logicalType": "integer", "required": True, "unique": True}, customProperties=LIMIT_1
    )
    result = validate_table(pa.table({"v": pa.array([None, None, 5, None, 6, 5], pa.int64())}), contract)
    assert "2, 5" in read_report(home, result)
    assert [row["_row"] for row in read_quarantine(home, result)] == [0, 1, 3, 2, 5]


def test_rules_that_only_warn_quarantine_no_row(contract_of, validate_table, home):
    contract = contract_of(
        {
            "name": "v",
            "logicalType": "integer",
            "quality": [
                {"metric": "nullValues", "mustBe": 0, "severity": "warning"},
                {"metric": "duplicateValues", "mustBe": 0, "severity": "warning"},
                {"type": "sql", "query": "SELECT count(*) FROM {object}", "mustBe": 9, "severity": "warning"},
            ],
        },
        customProperties=LIMIT_0,
    )
    result = validate_table(pa.table({"v": pa.array([1, 1, None], pa.int64())}), contract)
    assert (result.num_rows, result.num_quarantined) == (3, 0)
    assert result.violations[:3] == (
        ("v: must not be null (warning)", 1),
        ("v: must be unique (warning)", 2),
        ("v: result of SELECT count(*) FROM {object} must be exactly 9 (warning)", 1),
    )
    assert "0, 1" in read_report(home, result)


@pytest.mark.parametrize(("num_nulls", "is_kept"), [(0, True), (1, True), (2, True), (3, False)])
def test_a_tolerance_is_a_share_and_its_rows_do_not_count_towards_the_limit(
    contract_of, validate_table, num_nulls, is_kept
):
    check = {"metric": "nullValues", "mustBeLessOrEqualTo": 20, "unit": "percent"}
    contract = contract_of(ID, {"name": "v", "logicalType": "integer", "quality": [check]}, customProperties=LIMIT_0)
    table = pa.table({"id": range(10), "v": pa.array([None] * num_nulls + [1] * (10 - num_nulls), pa.int64())})
    if is_kept:
        assert validate_table(table, contract).num_quarantined == num_nulls
        return
    with pytest.raises(ContractBroken, match=r"3 of 10 values \(30\.0%\) break v: must not be null, in at least 80%"):
        validate_table(table, contract)


@pytest.mark.parametrize(("limit", "num_bad", "is_kept"), [(0, 0, True), (0, 1, False), (0.25, 1, True), (1, 4, True)])
def test_the_limit_counts_quarantined_rows(contract_of, validate_table, limit, num_bad, is_kept):
    properties = [{"property": "quarantineLimit", "value": limit}]
    contract = contract_of({"name": "v", "logicalType": "integer", "required": True}, customProperties=properties)
    table = pa.table({"v": pa.array([None] * num_bad + [1] * (4 - num_bad), pa.int64())})
    if is_kept:
        assert validate_table(table, contract).num_rows == 4 - num_bad
    else:
        with pytest.raises(ContractBroken, match="1 of 4 rows"):
            validate_table(table, contract)


def test_malformed_lines_count_towards_the_limit(contract_of, validate_table):
    contract = contract_of({"name": "v", "logicalType": "integer", "required": True}, customProperties=LIMIT_0)
    with pytest.raises(ContractBroken, match=r"1 of 3 rows \(33\.3%\) break") as caught:
        validate_table(pa.table({"v": [1, 2]}), contract, num_malformed=1)
    assert "1 x a malformed line" in caught.value.found


def test_no_report_reason_or_error_contains_a_personal_value(contract_of, validate_table, home, monkeypatch):
    monkeypatch.setenv("BLOOMERY_PERSONAL_KEY", "a secret of some length")
    mail = {"name": "mail", "logicalType": "string", "unique": True, "logicalTypeOptions": {"pattern": "@"}, **PERSONAL}
    town = {"name": "town", "logicalType": "string"}
    rules = [determines("town", "mail"), determines("mail", "town")]
    table = pa.table({"mail": ["s3cret", "s3cret@x", "s3cret@x", "s3cret@y"], "town": ["a", "b", "c", "b"]})
    result = validate_table(table, contract_of(mail, town, quality=rules, customProperties=LIMIT_1))
    quarantine = read_quarantine(home, result)
    assert len(quarantine) == 4
    assert {reason["value"] for row in quarantine for reason in row["_reasons"]} == {"(personal)"}
    assert "s3cret" not in read_report(home, result)
    with pytest.raises(ContractBroken) as caught:
        validate_table(table, contract_of(mail, town, quality=rules))
    assert "s3cret" not in str(caught.value)


def test_the_name_of_a_contract_is_not_used_as_a_path(contract_of, validate_table, home):
    contract = contract_of({"name": "v", "logicalType": "integer", "required": True}, name="../../x/<b>")
    with pytest.raises(ContractBroken):
        validate_table(pa.table({"v": pa.array([None], pa.int64())}), contract)
    (folder,) = (home / "quarantine").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["quarantine.parquet", "report.html"]


def test_a_stored_result_expires_when_the_data_is_no_longer_fresh(contract_of, validate_table):
    sla = [{"property": "freshness", "value": 2, "unit": unit, "element": unit} for unit in ("d", "h")]
    contract = contract_of(*({"name": unit, "logicalType": "timestamp"} for unit in "dh"), slaProperties=sla)
    now = dt.datetime.now(dt.UTC)
    table = pa.table({"d": [now - dt.timedelta(hours=40)], "h": [now - dt.timedelta(hours=1)]})
    result = validate_table(table.cast(pa.schema([(unit, pa.timestamp("us", "UTC")) for unit in "dh"])), contract)
    assert result.fresh_until is not None
    assert abs(result.fresh_until - (now + dt.timedelta(hours=1))) < dt.timedelta(seconds=1)
    assert _is_fresh(result)
    assert not _is_fresh(result.model_copy(update={"fresh_until": now}))
    assert _is_fresh(result.model_copy(update={"fresh_until": None}))


def test_the_bytes_depend_on_neither_batches_nor_threads(contract_of, validate_table, home, monkeypatch):
    contract = contract_of(
        {"name": "v", "logicalType": "integer", "required": True, "unique": True},
        {"name": "w", "logicalType": "number", "physicalType": "float32", "logicalTypeOptions": {"maximum": 3}},
        quality=[determines("w", "v"), {"type": "sql", "query": "SELECT avg(w) FROM {object}", "mustBeLessThan": 9}],
        customProperties=LIMIT_1,
    )
    numbers = [None if row % 13 == 0 else row % 900 if row % 3 else row for row in range(3000)]
    table = pa.table({"v": pa.array(numbers, pa.int64()), "w": [row % 41 / 10 for row in range(3000)]})
    read_batches, open_session = parquet.read_batches, duckdb_session.open_session
    digests = set()
    for batch_rows, threads in ((1, 1), (700, 2), (100_000, 4)):

        def read_slices(path: Path, columns: list[str] | None = None, size: int = batch_rows) -> Any:
            for batch in read_batches(path, columns):
                yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))

        @contextlib.contextmanager
        def with_threads(num: int = threads) -> Any:
            with open_session() as engine:
                engine.execute(f"set threads = {num}")
                yield engine

        monkeypatch.setattr("bloomery.tasks.validate.row_filter.read_batches", read_slices)
        monkeypatch.setattr("bloomery.tasks.validate.table_checks.read_batches", read_slices)
        monkeypatch.setattr("bloomery.tasks.infrastructure.duckdb_session.open_session", with_threads)
        result = validate_table(table, contract)
        paths = [home / uri for uri in (result.uri, result.quarantine_uri, result.report_uri)]
        digests.add((result.digest, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)))
        for path in paths:
            path.unlink()
    assert len(digests) == 1
