"""The examples of docs/contracts.md are valid and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from bloomery.data_contracts.odcs.base import CUSTOM_PROPERTIES
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.distributions import Reference
from bloomery.data_contracts.odcs.elements.quality import Metric
from bloomery.data_contracts.odcs.rules import RuleKind

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "contracts.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
REFERENCE = re.search(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def contract_with(snippet: dict[str, Any]) -> Contract:
    if "apiVersion" in snippet:
        return Contract.model_validate(snippet)
    levels = snippet.pop("slaProperties", [])
    head = {key: value for key, value in SNIPPETS[0].items() if key != "schema"}
    return Contract.model_validate({**head, "schema": [{"name": "rows", **snippet}], "slaProperties": levels})


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: next(iter(snippet)))
def test_a_snippet_is_a_contract(snippet):
    assert contract_with(dict(snippet)).rules()


def test_the_page_shows_every_kind_of_rule_metric_and_custom_property():
    contracts = [contract_with(dict(snippet)) for snippet in SNIPPETS]
    kinds = {rule.kind for contract in contracts for rule in contract.rules()}
    assert kinds == set(get_args(RuleKind)) - {"fits"}
    assert all(f"metric: {metric}" in PAGE for metric in get_args(Metric))
    assert all(f"property: {name}" in PAGE for name in CUSTOM_PROPERTIES)


def test_the_reference_is_valid():
    assert REFERENCE is not None
    assert set(Reference.model_validate(json.loads(REFERENCE[1])).columns) == {"payment", "fare"}
