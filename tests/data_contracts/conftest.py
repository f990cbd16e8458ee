"""Contracts for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bloomery import data_contracts
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.validation.row_checks import cast_batch, find_violations, parse_conditions, row_rules

DIGITS = Path(data_contracts.__file__).parent / "contracts" / "digits.odcs.yaml"


@pytest.fixture(scope="session")
def digits_contract() -> Contract:
    return read_contract(DIGITS)


@pytest.fixture
def changed_digits(tmp_path: Path) -> Callable[..., Path]:
    """Writes the contract of digits with one text replaced, and returns the path of the file."""

    def write(old: str, new: str) -> Path:
        text = DIGITS.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in the contract"
        path = tmp_path / "changed.odcs.yaml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def quarantined_rows() -> Callable[[pa.Table, Contract], set[int]]:
    """Finds the rows of a table that training quarantines: those that break a rule of severity error."""

    def find(table: pa.Table, contract: Contract) -> set[int]:
        schema = arrow_schema(contract.columns)
        rules = tuple(rule for rule in row_rules(contract) if rule.severity == "error")
        (raw_rows,) = table.combine_chunks().to_batches()
        batch, conditions = cast_batch(raw_rows, schema), parse_conditions(rules, schema)
        masks = [find_violations(rule, batch, conditions).to_numpy(zero_copy_only=False) for rule in rules]
        return set(np.flatnonzero(np.any(masks, axis=0)).tolist()) if masks else set()

    return find
