"""The HTML page of a contract: complete, well-formed, and safe whatever the contract contains."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.html_page import render_contract_page

EVIL = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(contract: Contract) -> Reader:
    reader = Reader()
    reader.feed(render_contract_page(contract))
    assert reader.open == []
    return reader


def test_the_page_has_the_columns_and_rules_of_the_contract(digits_contract):
    text = re.sub(r"\s+", " ", read(digits_contract).text)
    assert "digits 1.0.0" in text
    assert "A run stops if more than 1% of the rows are quarantined" in text
    assert "Optical Recognition of Handwritten Digits" in text
    for column in digits_contract.columns:
        assert column.name in text
        assert column.description in text
    for rule in digits_contract.rules():
        assert rule.sentence in text


def test_the_page_loads_nothing(digits_contract):
    reader = read(digits_contract)
    assert reader.links == ["https://doi.org/10.24432/C50P49"]
    assert not reader.tags & {"script", "img", "link", "iframe"}


@pytest.fixture
def evil_contract() -> Contract:
    return Contract.model_validate(
        {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": EVIL,
            "name": EVIL,
            "version": "1.0.0",
            "status": "active",
            "domain": EVIL,
            "description": {EVIL: EVIL},
            "team": {"name": EVIL, "description": EVIL},
            "authoritativeDefinitions": [{"type": EVIL, "url": f"javascript:{EVIL}", "description": EVIL}],
            "references": {EVIL: {"columns": {EVIL: {"values": [EVIL], "shares": [1.0]}}}},
            "schema": [
                {
                    "name": EVIL,
                    "dataGranularityDescription": EVIL,
                    "properties": [
                        {
                            "name": "v",
                            "logicalType": "string",
                            "description": EVIL,
                            "businessName": EVIL,
                            "classification": EVIL,
                            "examples": [EVIL],
                            "customProperties": [{"property": "unit", "value": EVIL}],
                            "quality": [{"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": [EVIL]}}],
                            "authoritativeDefinitions": [{"type": EVIL, "url": f"https://a.b/{EVIL}"}],
                        }
                    ],
                }
            ],
        }
    )


def test_text_of_a_contract_never_becomes_a_tag_or_a_script(evil_contract):
    reader = read(evil_contract)
    assert "script" not in reader.tags
    assert reader.links == [f"https://a.b/{EVIL}"]
    assert reader.text.count("<script>") >= 15
