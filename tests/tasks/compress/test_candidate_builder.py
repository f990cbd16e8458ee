"""What the builder of candidates reads of the encoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bloomery.models.features.config import Features
from bloomery.tasks.compress import candidate_builder
from bloomery.tasks.compress.candidate_builder import CandidateBuilder


def test_each_part_has_the_tokenizer_of_its_own_input(monkeypatch: pytest.MonkeyPatch) -> None:
    number = {"kind": "number", "columns": ["size"]}
    text = {"kind": "text", "column": "note", "length": 8}
    words, tokens = {**text, "tokenizer": "words", "vocabulary_size": 100}, {**text, "tokenizer": "checkpoint"}
    features = Features.model_validate({"key": "id", "label": "kind", "inputs": [number, words, tokens]})
    fitted = [
        SimpleNamespace(kind="number"),
        *(SimpleNamespace(kind="text", tokenizer=name) for name in ("own", "of the checkpoint")),
    ]
    encoder = SimpleNamespace(features=features, fitted=fitted)
    monkeypatch.setattr("bloomery.models.features.encoder.read_encoder", lambda path: encoder)
    monkeypatch.setattr(candidate_builder, "settings", lambda: SimpleNamespace(path=Path))
    trained: Any = SimpleNamespace(dataset=SimpleNamespace(encoder_uri="encoder.json"))
    unused: Any = None
    builder = CandidateBuilder(unused, trained, unused, unused)
    assert builder.tokenizers == {"note": "own", "note_": "of the checkpoint"}
