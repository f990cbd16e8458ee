"""Contracts find the known faults of real dirty data."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import ContractBroken
from bloomery.data_contracts.odcs.contract import read_contract
from bloomery.data_contracts.odcs.distributions import Bins, Reference, count_into_bins, reference_column
from bloomery.data_contracts.records.records import ValidRows

TAXI = Path(__file__).with_name("taxi.odcs.yaml")
MONTHS = ("2018-01", "2018-07", "2019-01", "2019-02", "2019-07", "2020-01")
MONTHS += ("2020-02", "2020-03", "2020-04", "2020-05", "2020-06", "2020-12")


def read_text_table(path: Path) -> pa.Table:
    """Reads a CSV file with every column as text; empty cells are null."""
    names = path.open(encoding="utf-8").readline().strip().split(",")
    texts = {name: pa.string() for name in names}
    options = pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
    return pa.csv.read_csv(path, convert_options=options)


def read_quarantine(home: Path, result: ValidRows) -> list[dict[str, Any]]:
    return pq.read_table(home / result.quarantine_uri).to_pylist()


def read_dependencies(path: Path) -> list[tuple[tuple[str, ...], str]]:
    """Reads the determining columns and the determined column of each denial constraint."""
    dependencies = []
    for line in path.read_text(encoding="utf-8").split():
        (target,) = re.findall(r"IQ\(t1\.(\w+)", line)
        dependencies.append((tuple(re.findall(r"EQ\(t1\.(\w+)", line)), target))
    return dependencies


def test_fifteen_dependencies_find_most_wrong_cells_of_the_hospital_data(
    datasets, contract_of, validate_table, home, capsys
):
    folder = datasets / "hospital_dirty"
    table = read_text_table(folder / "hospital.csv")
    rules = [
        {
            "type": "custom",
            "engine": "bloomery",
            "implementation": {"rule": "determines", "columns": list(columns), "target": target},
        }
        for columns, target in read_dependencies(folder / "hospital_constraints.txt")
    ]
    assert len(rules) == 15
    contract = contract_of(
        *({"name": name, "logicalType": "string"} for name in table.column_names),
        quality=rules,
        customProperties=[{"property": "quarantineLimit", "value": 1}],
    )
    result = validate_table(table, contract, is_text=True)
    reported_cells = {
        (row["_row"], reason["column"]) for row in read_quarantine(home, result) for reason in row["_reasons"]
    }
    dirty_rows = table.to_pylist()
    with (folder / "hospital_clean.csv").open(encoding="utf-8", newline="") as stream:
        truth = {(int(cell["tid"]), cell["attribute"]): cell["correct_val"] for cell in csv.DictReader(stream)}
    wrong_cells = {(row, name) for (row, name), value in truth.items() if (dirty_rows[row][name] or "") != value}
    assert len(wrong_cells) == 509
    num_correct = len(reported_cells & wrong_cells)
    precision, recall = num_correct / len(reported_cells), num_correct / len(wrong_cells)
    with capsys.disabled():
        counts = f"{num_correct} of {len(reported_cells)} reported cells are wrong"
        print(f"\nhospital: {counts}, precision {precision:.3f}, recall {recall:.3f}")
    assert (num_correct, len(reported_cells)) == (435, 460)


@pytest.fixture
def taxi(datasets: Path, tmp_path: Path) -> Path:
    """The folder of the contract, with the distribution of January 2018 as its reference."""
    shutil.copy(TAXI, tmp_path / "taxi.odcs.yaml")
    january = read_text_table(datasets / "nyc_taxi" / "yellow_tripdata_sample_2018-01.csv")
    types = january["payment_type"].cast(pa.int64())
    reference = Reference(columns={"payment_type": reference_column(count_into_bins(Bins(values=(1, 2, 3, 4)), types))})
    (tmp_path / "january-2018.reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_none=True))
    return tmp_path


def test_faults_of_the_taxi_data_are_counted_month_by_month(datasets, taxi, validate_table, home, capsys):
    contract = read_contract(taxi / "taxi.odcs.yaml")
    counts = {}
    for month in MONTHS:
        table = read_text_table(datasets / "nyc_taxi" / f"yellow_tripdata_sample_{month}.csv")
        result = validate_table(table, contract, is_text=True)
        assert result.num_rows + result.num_quarantined == table.num_rows
        counts[month] = dict(result.violations)
        page = (home / result.report_uri).read_text(encoding="utf-8")
        psi = re.search(r"psi against january-2018.*?<td[^>]*><div[^>]*>([\de.-]+)", page, re.DOTALL)
        assert psi is not None
        counts[month]["psi"] = float(psi[1])
        with capsys.disabled():
            broken_rules = {rule: count for rule, count in counts[month].items() if count and rule != "psi"}
            print(f"\n{month}: {result.num_quarantined} quarantined, PSI {counts[month]['psi']:.3f}, {broken_rules}")
    surcharge = "congestion_surcharge: must not be null, in at least 50% (warning)"
    drift = "payment_type: psi against january-2018 must be less than 0.1 (warning)"
    empty_months = [month for month in MONTHS if counts[month][surcharge] > 5000]
    assert empty_months == ["2018-01", "2018-07", "2019-01"]
    assert [counts[month][surcharge] for month in empty_months[:2]] == [10_000, 10_000]
    for name in ("vendor_id", "passenger_count", "rate_code_id", "store_and_fwd_flag", "payment_type"):
        nulls = [counts[month][f"{name}: must not be null, in at least 99.5% (warning)"] for month in MONTHS]
        assert nulls == [0, 0, 0, 0, 59, 95, 92, 134, 803, 1675, 906, 674]
    assert all(2 <= counts[month]["fare_amount: must be at least 0"] <= 58 for month in MONTHS)
    assert counts["2019-01"]["table: must satisfy total_amount <= 1000 (warning)"] == 1
    assert [month for month in MONTHS if counts[month][drift]] == ["2020-04", "2020-05", "2020-06", "2020-12"]


def test_drift_as_an_error_fails_the_contract_and_the_report_lists_all_faults(datasets, taxi, validate_table, home):
    path = taxi / "taxi.odcs.yaml"
    text = path.read_text(encoding="utf-8")
    drift = "severity: warning\n            implementation: {rule: distribution"
    assert drift in text
    path.write_text(text.replace(drift, "implementation: {rule: distribution").replace("value: 0.01", "value: 0.001"))
    table = read_text_table(datasets / "nyc_taxi" / "yellow_tripdata_sample_2020-05.csv")
    with pytest.raises(ContractBroken) as caught:
        validate_table(table, read_contract(path), is_text=True)
    assert "payment_type: found 1." in caught.value.found
    assert "46 x fare_amount: must be at least 0" in caught.value.found
    (folder,) = (home / "quarantine").iterdir()
    page = (folder / "report.html").read_text(encoding="utf-8")
    for rule in ("psi against january-2018", "vendor_id: must not be null", "fare_amount: must be at least 0"):
        assert rule in page
