"""The reader and the Open Data Contract Standard: what its JSON schema allows is read, and nothing is lost.

`odcs-json-schema-v3.1.0.json` is the standard's own (https://github.com/bitol-io/open-data-contract-standard,
Apache License 2.0). `bakery.odcs.yaml` has every key of the standard.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from bloomery import data_contracts
from bloomery.data_contracts.documents.documents import TimesAsText
from bloomery.data_contracts.errors import ContractInvalid
from bloomery.data_contracts.odcs.contract import Contract, contract_yaml, read_contract

HERE = Path(__file__).parent
BAKERY = HERE / "bakery.odcs.yaml"
SCHEMA = jsonschema.Draft201909Validator(json.loads((HERE / "odcs-json-schema-v3.1.0.json").read_text()))
BUNDLED = sorted((Path(data_contracts.__file__).parent / "contracts").glob("*.odcs.yaml"))
PUBLISHED = sorted(Path("/work/shared/cases/odcs").glob("*.odcs.yaml"))


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=TimesAsText)
    return document


def mappings(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all mappings in a document."""
    if isinstance(value, dict):
        yield at
        for key, item in value.items():
            yield from mappings(item, (*at, key))
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield from mappings(item, (*at, position))


def with_unknown_key(document: dict[str, Any], place: tuple[str | int, ...]) -> dict[str, Any]:
    document = copy.deepcopy(document)
    target: Any = document
    for part in place:
        target = target[part]
    target["descriptionn"] = "x"
    return document


@pytest.mark.parametrize("path", [BAKERY, *BUNDLED, *PUBLISHED], ids=lambda path: path.name)
def test_reading_and_writing_a_contract_loses_nothing(path, tmp_path):
    document, contract = load(path), read_contract(path)
    assert contract.document() == document
    record = Contract.model_validate_json(contract.model_dump_json(by_alias=True))
    assert (record, record.document()) == (contract, document)
    written = tmp_path / path.name
    written.write_text(contract_yaml(contract), encoding="utf-8")
    assert load(written) == document
    for table in contract.schema_:
        selected = contract.select_table(table.name)
        assert selected.table == table
        assert Contract.model_validate(selected.document()) == selected
        assert len(selected.rules()) + len(selected.unchecked) > 0


@pytest.mark.parametrize("path", [BAKERY, *BUNDLED], ids=lambda path: path.name)
def test_a_contract_is_valid_in_the_standards_json_schema(path):
    assert [error.message for error in SCHEMA.iter_errors(load(path))] == []


def test_every_key_of_the_json_schema_occurs_in_the_contract_of_the_bakery():
    """So that the tests with this contract are about the complete standard, apart from types of servers."""
    text = BAKERY.read_text(encoding="utf-8")
    definitions = [part for name, part in SCHEMA.schema["$defs"].items() if name != "ServerSource"]
    keys = {key for part in (SCHEMA.schema, *definitions) for key in keys_of(part)}
    assert {key for key in keys if f"{key}:" not in text} == set()
    assert len(keys) > 100


def keys_of(schema: Any) -> Iterator[str]:
    """The keys that parts of a JSON schema define."""
    if isinstance(schema, dict):
        properties = schema.get("properties", {})
        if all(isinstance(value, dict) for value in properties.values()):
            yield from properties
        for name, part in schema.items():
            if name != "$defs":
                yield from keys_of(part)
    if isinstance(schema, list):
        for part in schema:
            yield from keys_of(part)


def test_a_key_that_the_standard_does_not_know_is_refused_wherever_the_json_schema_refuses_it():
    document = load(BAKERY)
    open_mappings = {
        ("description",),
        *(place for place in mappings(document) if "arguments" in place or "implementation" in place),
        *(place for place in mappings(document) if "value" in place),
        next(
            ("schema", 0, "properties", position, "logicalTypeOptions")
            for position, column in enumerate(document["schema"][0]["properties"])
            if column.get("logicalType") == "boolean"
        ),
    }
    for place in mappings(document):
        changed = with_unknown_key(document, place)
        if place in open_mappings:
            assert Contract.model_validate(changed).document() == changed
            continue
        with pytest.raises(ValidationError, match=r"descriptionn|Extra inputs"):
            Contract.model_validate(changed)


@pytest.mark.nightly
def test_reader_and_json_schema_agree_on_unknown_keys():
    document = load(BAKERY)
    for place in mappings(document):
        changed = with_unknown_key(document, place)
        try:
            Contract.model_validate(changed)
            is_read = True
        except ValidationError:
            is_read = False
        assert SCHEMA.is_valid(changed) == is_read, place


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    host: db.example", "    hots: db.example", "servers.0.hots: unknown key; did you mean 'host'?"),
        ("      username: ada", "      usrname: ada", "usrname: unknown key; did you mean 'username'?"),
        ("channel: '#bakery'", "chanel: '#bakery'", "support.0.chanel: unknown key; did you mean 'channel'?"),
        ("partitioned: false", "partitoned: false", "partitoned: unknown key; did you mean 'partitioned'?"),
        ("transformLogic:", "tranformLogic:", "tranformLogic: unknown key; did you mean 'transformLogic'?"),
        ("maxLength: 80", "maxLenght: 80", "logicalTypeOptions.maxLenght: unknown key; did you mean 'maxLength'?"),
        ("to: [shops.id]", "too: [shops.id]", "relationships.0.too: unknown key; did you mean 'to'?"),
        ("tenant: north", "tennant: north", "tennant: unknown key; did you mean 'tenant'?"),
        ("valueExt: 5", "valueEx: 5", "slaProperties.1.valueEx: unknown key; did you mean 'valueExt'?"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key(tmp_path, old, new, message):
    text = BAKERY.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path = tmp_path / "changed.odcs.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ContractInvalid) as caught:
        read_contract(path)
    line = next(number for number, words in enumerate(text.splitlines(), 1) if old in words)
    assert any(
        problem.startswith(f"changed.odcs.yaml:{line}: ") and problem.endswith(message)
        for problem in caught.value.found.splitlines()
    ), caught.value.found


def test_datacontract_cli_lints_the_bundled_contracts():
    """`datacontract-cli` is no dependency of the tests (decision 9); the test runs where it is on the PATH."""
    command = shutil.which("datacontract")
    if command is None:
        pytest.skip("datacontract-cli is not installed")
    for path in BUNDLED:
        result = subprocess.run([command, "lint", path], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{path.name}: {result.stdout}{result.stderr}"
