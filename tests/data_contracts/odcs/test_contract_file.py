"""A contract file with the references beside it, and the lines of invalid rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bloomery.data_contracts.errors import ContractInvalid, DataMissing
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from tests.data_contracts.odcs.quality_checks import DOCUMENT, NONE, library, own, sql

DRIFT = own("distribution", divergence="psi", reference="year-2018", mustBeLessThan=0.2)

REFERENCE = {"columns": {"fare": {"edges": [5.0, 10.0], "shares": [0.25, 0.5, 0.125], "nullShare": 0.125}}}


def write_contract(folder: Path, *checks: dict[str, Any], table: tuple[dict[str, Any], ...] = ()) -> Path:
    document = json.loads(json.dumps(DOCUMENT))
    document["schema"][0]["properties"][1]["quality"] = list(checks)
    document["schema"][0]["quality"] = list(table)
    path = folder / "made.odcs.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("checks", "table", "key"),
    [
        ((library("nullValue", **NONE),), (), "metric: nullValue"),
        ((), (own("expression", expression="fare > pickup"),), "type: custom"),
        ((own("between", minimum=3, maximun=4),), (), "maximun: 4"),
        ((), (sql("SELECT max(fare) FROM {object}"),), "type: sql"),
    ],
)
def test_an_invalid_rule_is_reported_with_file_and_line(tmp_path, checks, table, key):
    path = write_contract(tmp_path, *checks, table=table)
    with pytest.raises(ContractInvalid) as caught:
        read_contract(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if key in text]
    assert caught.value.found.startswith(f"made.odcs.yaml:{line}: ")
    assert caught.value.where == f"{path}:{line}"


def test_a_reference_is_read_from_the_contracts_folder_and_stored_in_the_contract(tmp_path):
    (tmp_path / "year-2018.reference.json").write_text(json.dumps(REFERENCE))
    contract = read_contract(write_contract(tmp_path, DRIFT))
    assert contract.references["year-2018"].columns["fare"].all_shares == (0.25, 0.5, 0.125, 0, 0.125)
    again = Contract.model_validate_json(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    assert again == contract


def test_a_missing_reference_is_missing_data(tmp_path):
    with pytest.raises(DataMissing, match=r"year-2018\.reference\.json cannot be read"):
        read_contract(write_contract(tmp_path, DRIFT))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"other": REFERENCE["columns"]["fare"]}, "has no column fare; it has other"),
        ({"fare": {"values": ["a"], "shares": [1.0]}}, "do not fit column fare"),
        ({"fare": {"edges": [5.0, 10.0], "shares": [0.5, 0.5]}}, "3 bins have 2 shares"),
        ({"fare": {"edges": [5.0], "shares": [0.5, 0.4]}}, "add up to 0.9"),
        ({"fare": {"edges": [5.0, 5.0], "shares": [0.5, 0.5, 0.0]}}, "edges must rise"),
        ({"fare": {"shares": [1.0]}}, "either edges or values"),
    ],
)
def test_an_inconsistent_reference_is_refused(tmp_path, columns, reason):
    (tmp_path / "year-2018.reference.json").write_text(json.dumps({"columns": columns}))
    with pytest.raises(ContractInvalid, match=reason):
        read_contract(write_contract(tmp_path, DRIFT))
