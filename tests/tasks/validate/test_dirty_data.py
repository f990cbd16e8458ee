"""What contracts find in real dirty data, of which the faults are known."""

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


def read_text(path: Path) -> pa.Table:
    """A CSV file with every column as text, and nothing as null where nothing stands."""
    names = path.open(encoding="utf-8").readline().strip().split(",")
    texts = {name: pa.string() for name in names}
    options = pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
    return pa.csv.read_csv(path, convert_options=options)


def quarantine_of(home: Path, result: ValidRows) -> list[dict[str, Any]]:
    return pq.read_table(home / result.quarantine_uri).to_pylist()


def dependencies(path: Path) -> list[tuple[tuple[str, ...], str]]:
    """The determining columns and the determined one of each denial constraint."""
    found = []
    for line in path.read_text(encoding="utf-8").split():
        (target,) = re.findall(r"IQ\(t1\.(\w+)", line)
        found.append((tuple(re.findall(r"EQ\(t1\.(\w+)", line)), target))
    return found


def test_the_fifteen_dependencies_find_most_wrong_cells_of_the_hospitals(
    datasets, contract_of, validated, home, capsys
):
    folder = datasets / "hospital_dirty"
    table = read_text(folder / "hospital.csv")
    rules = [
        {
            "type": "custom",
            "engine": "bloomery",
            "implementation": {"rule": "determines", "columns": list(columns), "target": target},
        }
        for columns, target in dependencies(folder / "hospital_constraints.txt")
    ]
    assert len(rules) == 15
    contract = contract_of(
        *({"name": name, "logicalType": "string"} for name in table.column_names),
        quality=rules,
        customProperties=[{"property": "quarantineLimit", "value": 1}],
    )
    result = validated(table, contract, is_text=True)
    found = {(row["_row"], reason["column"]) for row in quarantine_of(home, result) for reason in row["_reasons"]}
    dirty = table.to_pylist()
    with (folder / "hospital_clean.csv").open(encoding="utf-8", newline="") as stream:
        truth = {(int(cell["tid"]), cell["attribute"]): cell["correct_val"] for cell in csv.DictReader(stream)}
    wrong = {(row, name) for (row, name), value in truth.items() if (dirty[row][name] or "") != value}
    assert len(wrong) == 509
    right = len(found & wrong)
    precision, recall = right / len(found), right / len(wrong)
    with capsys.disabled():
        print(
            f"\nhospital: {right} of {len(found)} found cells are wrong, precision {precision:.3f}, recall {recall:.3f}"
        )
    assert (right, len(found)) == (435, 460)


@pytest.fixture
def taxi(datasets: Path, tmp_path: Path) -> Path:
    """The folder of the contract, with the distribution of January 2018 beside it."""
    shutil.copy(TAXI, tmp_path / "taxi.odcs.yaml")
    types = read_text(datasets / "nyc_taxi" / "yellow_tripdata_sample_2018-01.csv")["payment_type"].cast(pa.int64())
    reference = Reference(columns={"payment_type": reference_column(count_into_bins(Bins(values=(1, 2, 3, 4)), types))})
    (tmp_path / "january-2018.reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_none=True))
    return tmp_path


def test_the_faults_of_the_taxis_are_found_month_by_month(datasets, taxi, validated, home, capsys):
    contract = read_contract(taxi / "taxi.odcs.yaml")
    num = {}
    for month in MONTHS:
        table = read_text(datasets / "nyc_taxi" / f"yellow_tripdata_sample_{month}.csv")
        result = validated(table, contract, is_text=True)
        assert result.num_rows + result.num_quarantined == table.num_rows
        num[month] = dict(result.violations)
        page = (home / result.report_uri).read_text(encoding="utf-8")
        psi = re.search(r"psi against january-2018.*?<td[^>]*><div[^>]*>([\de.-]+)", page, re.DOTALL)
        assert psi is not None
        num[month]["psi"] = float(psi[1])
        with capsys.disabled():
            broken = {rule: count for rule, count in num[month].items() if count and rule != "psi"}
            print(f"\n{month}: {result.num_quarantined} set aside, PSI {num[month]['psi']:.3f}, {broken}")
    surcharge = "congestion_surcharge: must not be null, in at least 50% (warning)"
    drift = "payment_type: psi against january-2018 must be less than 0.1 (warning)"
    empty = [month for month in MONTHS if num[month][surcharge] > 5000]
    assert empty == ["2018-01", "2018-07", "2019-01"]
    assert [num[month][surcharge] for month in empty[:2]] == [10_000, 10_000]
    for name in ("vendor_id", "passenger_count", "rate_code_id", "store_and_fwd_flag", "payment_type"):
        nulls = [num[month][f"{name}: must not be null, in at least 99.5% (warning)"] for month in MONTHS]
        assert nulls == [0, 0, 0, 0, 59, 95, 92, 134, 803, 1675, 906, 674]
    assert all(2 <= num[month]["fare_amount: must be at least 0"] <= 58 for month in MONTHS)
    assert num["2019-01"]["table: must satisfy total_amount <= 1000 (warning)"] == 1
    assert [month for month in MONTHS if num[month][drift]] == ["2020-04", "2020-05", "2020-06", "2020-12"]


def test_drift_as_an_error_stops_the_month_and_the_report_has_all_faults(datasets, taxi, validated, home):
    path = taxi / "taxi.odcs.yaml"
    text = path.read_text(encoding="utf-8")
    drift = "severity: warning\n            implementation: {rule: distribution"
    assert drift in text
    path.write_text(text.replace(drift, "implementation: {rule: distribution").replace("value: 0.01", "value: 0.001"))
    table = read_text(datasets / "nyc_taxi" / "yellow_tripdata_sample_2020-05.csv")
    with pytest.raises(ContractBroken) as caught:
        validated(table, read_contract(path), is_text=True)
    assert "payment_type: found 1." in caught.value.found
    assert "46 x fare_amount: must be at least 0" in caught.value.found
    (place,) = (home / "quarantine").iterdir()
    page = (place / "report.html").read_text(encoding="utf-8")
    for rule in ("psi against january-2018", "vendor_id: must not be null", "fare_amount: must be at least 0"):
        assert rule in page
