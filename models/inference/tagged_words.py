"""From the outputs of a network for each token to a tag for each word, and to entities. Needs no torch.

Shapes: B sentences, T tokens, K tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.serving.entities import entity_types, find_entities, tag_codes
from bloomery.data_contracts.serving.predictions import Prediction
from bloomery.models.features.encoder import Encoder, encode_sentences
from bloomery.models.features.statistics.arrow_arrays import Rows, combine_chunks
from bloomery.models.inference.runtime import softmax

_MAX_ROWS = 1_024  # whose outputs for each token are in memory at a time
_ENTITY_FIELDS = {"text": pa.string(), "type": pa.string(), "start": pa.int32(), "end": pa.int32()}


class TaggedWords(NamedTuple):
    """The words of a sentence, and the position and probability of the best tag of each word that was read."""

    words: list[str]
    tags: np.ndarray
    probabilities: np.ndarray


def tag_tokens(compute: Callable[[np.ndarray], np.ndarray], x_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of the best tag of each token, int16 (B, T), and its probability, float32 (B, T).

    `compute` returns the outputs (B, T, K) for encoded rows.
    """
    tags_BT, shares_BT = np.zeros(x_BT.shape, np.int16), np.zeros(x_BT.shape, np.float32)
    for start in range(0, len(x_BT), _MAX_ROWS):
        part = slice(start, start + _MAX_ROWS)
        shares_BTK = softmax(compute(x_BT[part]))
        tags_BT[part], shares_BT[part] = shares_BTK.argmax(axis=2), shares_BTK.max(axis=2)
    return tags_BT, shares_BT


def tag_words(encoder: Encoder, rows: Rows, compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`TaggedWords` of each row, an array of objects (B,)."""
    (column,) = encoder.columns
    encoded = encode_sentences(encoder, rows)
    tags_BT, shares_BT = tag_tokens(compute, encoded.x)
    sentences = combine_chunks(rows[column]).to_pylist()
    result = np.empty(len(sentences), object)
    for row, words in enumerate(sentences):
        is_first_T = encoded.is_first[row]
        result[row] = TaggedWords(words or [], tags_BT[row, is_first_T], shares_BT[row, is_first_T])
    return result


def format_tagged_words(tags: Sequence[int | str], sentences: Iterable[TaggedWords]) -> list[Prediction]:
    """JSON predictions: a tag for each word, null for words beyond those that were read, and the entities.

    Words of an entity are those from `start` to before `end`.
    """
    return [
        {
            "tags": [*(tags[position] for position in sentence.tags.tolist()), *[None] * _num_unread(sentence)],
            "probabilities": [*sentence.probabilities.astype(float).tolist(), *[None] * _num_unread(sentence)],
            "entities": _name_entities(tags, sentence),
            "unread_words": _num_unread(sentence),
        }
        for sentence in sentences
    ]


def drop_unread(prediction: Prediction) -> Prediction:
    """The prediction without the tags and probabilities of unread words, which are null.

    Spark's arrays of texts and of numbers have no null.
    """
    num_read = len(prediction["tags"]) - prediction["unread_words"]
    return {**prediction, **{name: prediction[name][:num_read] for name in ("tags", "probabilities")}}


def _num_unread(sentence: TaggedWords) -> int:
    return len(sentence.words) - len(sentence.tags)


def _name_entities(tags: Sequence[int | str], sentence: TaggedWords) -> list[dict[str, Any]]:
    codes_1T = tag_codes(tags)[sentence.tags.astype(np.int64)][None]
    entities, types = find_entities(codes_1T, np.ones(codes_1T.shape, bool)), entity_types(tags)
    return [
        {"text": " ".join(sentence.words[start:stop]), "type": types[kind], "start": start, "end": stop}
        for start, stop, kind in zip(*(values.tolist() for values in entities[1:]), strict=True)
    ]


def tagged_words_table(tags: Sequence[int | str], sentences: Iterable[TaggedWords]) -> pa.Table:
    """`format_tagged_words` as columns."""
    kind = pa.array(list(tags)).type
    schema = pa.schema(
        {
            "tags": pa.list_(kind),
            "probabilities": pa.list_(pa.float64()),
            "entities": pa.list_(pa.struct(_ENTITY_FIELDS)),
            "unread_words": pa.int32(),
        }
    )
    return pa.Table.from_pylist(format_tagged_words(tags, sentences), schema=schema)
