"""The label of an embedding is a text, which the input encodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from bloomery.models.features.config import Features
from bloomery.models.features.encoder import encode, encode_rows, encoded_schema, fit, partial_statistics

TEXT = {"kind": "text", "column": "query", "length": 4, "vocabulary_size": 300}
ROWS = pa.RecordBatch.from_pydict({"id": [1, 2], "query": ["pay my bill", "a"], "answer": ["settle accounts", ""]})


def make_features(**changes: Any) -> Features:
    document = {"key": "id", "label": "answer", "task": "embedding", "inputs": [TEXT], **changes}
    return Features.model_validate(document)


@pytest.mark.parametrize("tokenizer", ["words", "byte_pairs"])
def test_positives_are_encoded_as_queries_are_and_the_tokenizer_knows_both(tokenizer):
    features = make_features(inputs=[{**TEXT, "tokenizer": tokenizer}])
    encoder = fit(features, partial_statistics(features, [ROWS]).__next__().column(0).to_pylist())
    encoded = encode_rows(encoder, ROWS)
    assert encoded.schema.field("y").type == encoded_schema(encoder, pa.int64()).field("y").type == pa.list_(pa.int32())
    as_queries = encode(encoder, pa.table({"query": ROWS["answer"]}))
    np.testing.assert_array_equal(np.array(encoded["y"].to_pylist()), as_queries)
    assert encoder.classes == ()
    assert encoder.units is None
    if tokenizer == "words":
        assert set(np.array(encoded["y"].to_pylist())[0].tolist()) - {0, 1}  # words of answers are no unknown words


@pytest.mark.parametrize(
    "inputs", [[{"kind": "number", "columns": ["x"]}], [{"kind": "sequence", "columns": [["a", "b"]]}]]
)
def test_an_embedding_needs_a_text(inputs):
    with pytest.raises(ValidationError, match="needs one input of kind text"):
        make_features(inputs=inputs)
