"""Contracts for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data_contracts
from data_contracts.contract import Contract, read_contract

DIGITS = Path(data_contracts.__file__).parent / "digits.odcs.yaml"


@pytest.fixture(scope="session")
def contract_of() -> Callable[..., Contract]:
    """Makes a contract of the given properties, and of the table's own keys, as they would stand in a file."""

    def make(*properties: dict[str, Any], **table: Any) -> Contract:
        return Contract.model_validate(
            {
                "apiVersion": "v3.1.0",
                "kind": "DataContract",
                "id": "made-for-a-test",
                "name": "made",
                "version": "1.0.0",
                "status": "active",
                "schema": [{"name": "rows", "properties": list(properties), **table}],
            }
        )

    return make


@pytest.fixture(scope="session")
def digits_contract() -> Contract:
    return read_contract(DIGITS)


@pytest.fixture
def changed_digits(tmp_path: Path) -> Callable[..., Path]:
    """Writes the digits' contract with one piece of its text replaced, and returns the file."""

    def write(old: str, new: str) -> Path:
        text = DIGITS.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the contract"
        path = tmp_path / "changed.odcs.yaml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return path

    return write
