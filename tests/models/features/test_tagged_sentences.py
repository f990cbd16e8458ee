"""Sentences are lists of words: the first token of each word has its tag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import (
    Encoder,
    encode,
    encode_rows,
    encode_sentences,
    encoded_schema,
    partial_statistics,
)
from bloomery.models.features.encoder import fit as fit_encoder
from bloomery.models.features.labels import IGNORED_LABEL, code_tag_lists, name_tags

SENTENCES = [["Ada", "met", "U.S.", "Grant"], ["No", "one"], []]
TAGS = [["B-PER", "O", "B-LOC", "B-PER"], ["O", "O"], []]
N = IGNORED_LABEL


def make_rows(sentences: list[list[str] | None], tags: list[list[str] | None]) -> pa.RecordBatch:
    lists = [pa.array(values, pa.list_(pa.string())) for values in (sentences, tags)]
    return pa.RecordBatch.from_arrays([pa.array(range(len(tags))), *lists], names=["id", "words", "tags"])


def fit(source: dict[str, Any], rows: pa.RecordBatch, document: str | None = None) -> Encoder:
    features = Features.model_validate(
        {"key": "id", "label": "tags", "task": "tagging", "inputs": [{"kind": "text", "column": "words", **source}]}
    )
    if document is not None:
        inputs = (features.inputs[0].model_copy(update={"tokenizer_document": document}),)
        features = features.model_copy(update={"inputs": inputs})
    return fit_encoder(features, next(partial_statistics(features, [rows])).column(0).to_pylist())


def test_a_token_of_words_is_a_whole_word():
    rows = make_rows(SENTENCES, TAGS)
    encoder = fit({"tokenizer": "words", "length": 4, "vocabulary_size": 20}, rows)
    assert encoder.classes == ("B-LOC", "B-PER", "O")
    encoded = encode_rows(encoder, rows)
    x = np.array(encoded["x"].to_pylist())
    assert (x[0] > 1).all()
    assert (x[1:] > 0).sum() == 2
    assert encoded["y"].to_pylist() == [[1, 2, 0, 1], [2, 2, N, N], [N] * 4]
    assert encoded_schema(encoder, pa.int64()).field("y").type == encoded["y"].type == pa.list_(pa.int16())
    unknown = encode(encoder, make_rows([["ada", "unseen"]], [["O", "O"]]))
    assert unknown[0].tolist() == [x[0, 0], 1, 0, 0]  # lowercase, as the training words


def test_words_of_several_byte_pairs_have_one_tag_and_words_after_the_length_are_cut_off():
    rows = make_rows(SENTENCES, TAGS)
    encoder = fit({"tokenizer": "byte_pairs", "length": 8, "vocabulary_size": 257}, rows)
    encoded = encode_sentences(encoder, rows)  # a letter per token, and a blank before each word
    assert encoded.is_first[0].tolist() == [True, False, False, False, True, False, False, False]
    assert np.array(encode_rows(encoder, rows)["y"].to_pylist())[0].tolist() == [1, N, N, N, 2, N, N, N]


def make_checkpoint(folder: Path, length: int) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text())
    tokenizer.enable_truncation(length)
    return tokenizer.to_str()


def test_words_are_encoded_as_transformers_encodes_them(tiny_bert: Path):
    from transformers import AutoTokenizer

    sentences = [["book", "a", "flight"], ["unable", "cards", "x?"], ["the"] * 20, []]
    rows = make_rows(sentences, [["O", "B-X", "O"]] * 2 + [["O"] * 20, []])
    encoder = fit({"tokenizer": "checkpoint", "length": 12}, rows, make_checkpoint(tiny_bert, 12))
    encoded = encode_sentences(encoder, rows)
    expected = AutoTokenizer.from_pretrained(tiny_bert)(
        sentences, is_split_into_words=True, truncation=True, max_length=12, padding="max_length"
    )
    ids, mask = np.array(expected["input_ids"]), np.array(expected["attention_mask"])
    assert (encoded.x == (ids + 1) * mask).all()
    for row, is_first in enumerate(encoded.is_first):
        words = expected.word_ids(row)
        assert [words[position] for position in np.flatnonzero(is_first)] == sorted({*words} - {None})
    assert encoded.is_first.sum(axis=1).tolist() == [3, 3, 10, 0]


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_xlm_roberta"])
def test_every_word_has_a_token_whatever_its_letters(name: str, request: pytest.FixtureRequest):
    rows = make_rows(
        [["a", "", " ", "\u200b", "\x07", "b"], ["a", "\u200b"]], [["O", "X", "O", "O", "O", "X"], ["O"] * 2]
    )
    encoder = fit({"tokenizer": "checkpoint", "length": 32}, rows, make_checkpoint(request.getfixturevalue(name), 32))
    encoded = encode_sentences(encoder, rows)
    assert encoded.is_first.sum(axis=1).tolist() == [6, 2]
    alone = encode_sentences(encoder, rows.slice(1))
    assert (alone.x == encoded.x[1]).all()  # other rows do not count


def test_the_first_words_are_read_where_a_tokenizer_cuts_off_the_start_of_texts(tiny_bert: Path):
    sentence = ["book", "a", "flight", "to", "the", "card"]
    rows = make_rows([sentence], [["B-X", "O", "B-X", "O", "O", "O"]])
    right = make_checkpoint(tiny_bert, 5)
    left = json.loads(right)
    left["truncation"]["direction"] = "Left"
    encoders = [fit({"tokenizer": "checkpoint", "length": 5}, rows, text) for text in (right, json.dumps(left))]
    expected, encoded = (encode_rows(encoder, rows) for encoder in encoders)
    assert encoded.equals(expected)
    is_first = encode_sentences(encoders[1], rows).is_first[0]
    assert np.array(encoded["y"].to_pylist())[0, is_first].tolist() == [0, 1, 0][: is_first.sum()]
    assert not is_first[0]


def test_a_blank_is_before_each_word_where_a_tokenizer_tells_words_by_it(tiny_roberta: Path):
    rows = make_rows([["card", "card"]], [["O", "X"]])
    encoder = fit({"tokenizer": "checkpoint", "length": 16}, rows, make_checkpoint(tiny_roberta, 16))
    encoded = encode_sentences(encoder, rows)
    first, second = np.flatnonzero(encoded.is_first[0])
    size = second - first
    assert (encoded.x[0, first:second] == encoded.x[0, second : second + size]).all()


@pytest.mark.parametrize(
    ("sentences", "tags", "message"),
    [
        ([["a"], ["a", "b"]], [["O"], ["X"]], r"1 row\(s\) have not one tag for each word, such as 1 tag\(s\) for 2"),
        ([["a"], ["b"]], [["O"], None], "such as 0 tag"),
        ([["a"], ["b"]], [["O"], ["NEW"]], "labels NEW are in the data, but not in its training split"),
        ([["a"], ["b"]], [["O"], [None]], "labels None are in the data"),
    ],
)
def test_rows_without_a_known_tag_for_each_word_are_refused(sentences, tags, message):
    encoder = fit({"tokenizer": "words", "length": 4, "vocabulary_size": 20}, make_rows(SENTENCES, [*TAGS[:2], []]))
    encoder = encoder.model_copy(update={"classes": ("O", "X")})
    with pytest.raises(DataUnfit, match=message):
        encode_rows(encoder, make_rows(sentences, tags))


def test_codes_and_names_are_the_reverse_of_each_other():
    tags, lists = ("B-X", "NOUN", "O"), pa.array([["O", "B-X"], [], ["NOUN"]])
    codes = code_tag_lists(tags, lists)
    assert codes.tolist() == [[0, 1], [-1, -1], [-3, -1]]
    assert name_tags(tags, codes, codes != -1).to_pylist() == lists.to_pylist()
    assert code_tag_lists(tags, pa.array([["O", None]]), 3).tolist() == [[0, -1, -1]]


def test_a_tagging_task_reads_the_words_alone():
    with pytest.raises(ValidationError, match="needs one input of kind text"):
        Features.model_validate(
            {"key": "id", "label": "tags", "task": "tagging", "inputs": [{"kind": "number", "columns": ["words"]}]}
        )
