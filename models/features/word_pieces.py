"""Sentences that are lists of words, as tokens: the first token of each word carries its tag.

Shapes: B sentences, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bloomery.models.features.checkpoint_tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

_NO_PIECES = "?"  # is read in place of a word without any token, such as a blank


class EncodedWords(NamedTuple):
    """Sentences as tokens.

    Attributes:
        x: float32 (B, T), 0 after the last token.
        is_first: bool (B, T), True for the first token of each word that is read, in the order of the words. Words that
            begin after `length` tokens are cut off.
        num_words: int64 (B,), with those that are cut off.
    """

    x: np.ndarray
    is_first: np.ndarray
    num_words: np.ndarray


def encode_words(
    document: str, sentences: Sequence[list[str]], length: int, *, shift: int, add_special_tokens: bool
) -> EncodedWords:
    """Encodes sentences by the tokenizer `document`, which truncates them to `length` tokens.

    Each value is the token's id plus `shift`. Every word has a token, so the first words are read, none left out.
    """
    tokenizer = load_tokenizer(document)
    shape = (len(sentences), length)
    num_words = np.array([len(words) for words in sentences], np.int64)
    encoded = EncodedWords(np.zeros(shape, np.float32), np.zeros(shape, bool), num_words)
    encodings = _encode(tokenizer, sentences, add_special_tokens)
    incomplete = [
        number
        for number, (words, encoding) in enumerate(zip(sentences, encodings, strict=True))
        if _lacks_words(words, encoding)
    ]
    if incomplete:
        replaced = [[word if _has_pieces(tokenizer, word) else _NO_PIECES for word in sentences[n]] for n in incomplete]
        for number, encoding in zip(incomplete, _encode(tokenizer, replaced, add_special_tokens), strict=True):
            encodings[number] = encoding
    for row, encoding in enumerate(encodings):
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
        num_tokens = int(np.count_nonzero(encoding.attention_mask))
        encoded.x[row, :num_tokens] = np.array(encoding.ids[:num_tokens], np.float32) + shift
        encoded.is_first[row, : len(words)] = (words >= 0) & (np.append(-1, words[:-1]) != words)
    return encoded


def _encode(tokenizer: Any, sentences: Sequence[list[str]], add_special_tokens: bool) -> list[Encoding]:
    return list(tokenizer.encode_batch(sentences, is_pretokenized=True, add_special_tokens=add_special_tokens))


def _lacks_words(words: list[str], encoding: Encoding) -> bool:
    """Whether a word before the last one that is read has no token."""
    numbers = [word for word in encoding.word_ids if word is not None]
    is_cut = bool(encoding.overflowing)
    num_read = (numbers[-1] + 1 if numbers else 0) if is_cut else len(words)
    return len(set(numbers)) < num_read


def _has_pieces(tokenizer: Any, word: str) -> bool:
    return bool(tokenizer.encode([word], is_pretokenized=True, add_special_tokens=False).ids)


@lru_cache(maxsize=8)
def read_words_apart(document: str, *, keeps_words: bool = False) -> str:
    """The tokenizer with a blank before each word, where it tells words by blanks, as in a text.

    It cuts off the last words of a long sentence, also where the checkpoint's own tokenizer cuts off the first ones.
    With `keeps_words` it does not divide words, as at punctuation marks.
    """
    options = json.loads(document)
    if options.get("truncation"):
        options["truncation"]["direction"] = "Right"
    if keeps_words:
        options["pre_tokenizer"] = None
    steps = options.get("pre_tokenizer") or {}
    for step in steps.get("pretokenizers", [steps]):
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
        elif step.get("type") == "Metaspace":
            step["prepend_scheme"] = "always"
    return json.dumps(options, ensure_ascii=False)
