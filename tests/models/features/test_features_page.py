"""Every snippet of docs/features.md is a valid section of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from bloomery.models.features.config import Features
from bloomery.models.features.input_config import FlatInput, ShapedInput

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "features.md").read_text(encoding="utf-8")
# Of each section about a kind of input, which has one word as its title.
SECTIONS = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
SNIPPETS = {kind: "".join(re.findall(r"```yaml\n(.*?)```", section, re.S)) for kind, section in SECTIONS}


def test_every_kind_of_input_has_a_section():
    kinds = [
        get_args(input_class.model_fields["kind"].annotation)[0] for input_class in get_args(FlatInput | ShapedInput)
    ]
    assert set(SNIPPETS) == set(kinds)


@pytest.mark.parametrize("kind", SNIPPETS)
def test_snippets_are_valid(kind):
    features = Features.model_validate({"key": "id", "label": "label", "inputs": yaml.safe_load(SNIPPETS[kind])})
    assert {source.kind for source in features.inputs} == {kind}
