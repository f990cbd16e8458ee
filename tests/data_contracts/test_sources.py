"""Where rows come from."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from data_contracts.sources import Data, Source


def test_a_source_needs_a_name():
    with pytest.raises(ValidationError):
        Data(source="")


def test_a_source_survives_json():
    source = Source(source="sklearn:digits", digest="ab")
    assert Source.model_validate(source.model_dump(mode="json")) == source
