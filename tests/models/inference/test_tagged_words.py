"""Outputs for tokens become a tag for each word, and entities; words that are cut off are named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.serving.predictions import format_prediction, max_difference
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import fit, partial_statistics
from bloomery.models.inference.tagged_words import (
    drop_unread,
    format_tagged_words,
    tag_tokens,
    tag_words,
    tagged_words_table,
)

TAGS = ["B-PER", "I-PER", "O"]
FEATURES = Features.model_validate(
    {
        "key": "id",
        "label": "tags",
        "task": "tagging",
        "inputs": [{"kind": "text", "column": "words", "tokenizer": "words", "length": 3, "vocabulary_size": 9}],
    }
)
ROWS = pa.table({"id": [0, 1], "words": [["ada", "lovelace", "wrote", "it"], []], "tags": [[*TAGS, "O"], []]})


def best_of_token(x: np.ndarray) -> np.ndarray:
    """Outputs for which the tags of a row are those of `TAGS`, with a probability of about a half."""
    return np.log(np.tile(np.where(np.eye(3, dtype=bool), 2.0, 1.0), (len(x), 1, 1)))


def tagged() -> np.ndarray:
    encoder = fit(FEATURES, next(partial_statistics(FEATURES, ROWS.to_batches())).column(0).to_pylist())
    assert encoder.classes == tuple(TAGS)
    return tag_words(encoder, ROWS, best_of_token)


def test_words_that_are_cut_off_have_no_tag():
    first, second = format_tagged_words(TAGS, tagged())
    assert first["tags"] == [*TAGS, None]
    assert first["unread_words"] == 1
    assert np.allclose(first["probabilities"][:3], 0.5)
    assert first["probabilities"][3] is None
    assert first["entities"] == [{"text": "ada lovelace", "type": "PER", "start": 0, "end": 2}]
    assert second == {"tags": [], "probabilities": [], "entities": [], "unread_words": 0}


def test_the_registry_s_model_has_the_words_that_were_read_alone():
    first, second = map(drop_unread, format_tagged_words(TAGS, tagged()))
    assert (first["tags"], first["unread_words"]) == (TAGS, 1)
    assert len(first["probabilities"]) == 3
    assert second["tags"] == []


def test_the_table_has_the_same_predictions():
    sentences = tagged()
    table = tagged_words_table(TAGS, sentences)
    assert table.to_pylist() == format_tagged_words(TAGS, sentences)
    assert tagged_words_table(TAGS, []).schema == table.schema
    assert tagged_words_table([1, 2], []).schema.field("tags").type == pa.list_(pa.int64())


def test_many_rows_are_tagged_in_parts():
    x = np.zeros((2500, 3), np.float32)
    sizes: list[int] = []

    def compute(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return best_of_token(rows)

    tags, shares = tag_tokens(compute, x)
    assert (tags == [0, 1, 2]).all()
    assert shares.shape == (2500, 3)
    assert max(sizes) < 2000


def test_predictions_are_compared_by_tags_and_probabilities():
    (first, empty), (other, _) = (format_tagged_words(TAGS, tagged()) for _ in range(2))
    other["probabilities"] = [0.5, 0.4, 0.5, None]
    assert np.isclose(max_difference(first, other), 0.1)
    assert max_difference(first, {**other, "tags": ["O", "I-PER", "O", None]}) == 1
    assert max_difference(empty, empty) == 0
    assert format_prediction(first) == "ada lovelace (PER)"
    assert format_prediction({**first, "entities": []}) == "B-PER I-PER O None"
