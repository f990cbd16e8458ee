"""The tokenizer of a pretrained checkpoint, as JSON: encoding needs only `tokenizers`.

Shapes: B texts, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def count_tokens(document: str) -> int:
    """The number of different values in encoded rows: 0 is padding, and the others are an id plus 1."""
    return max(load_tokenizer(document).get_vocab(with_added_tokens=True).values()) + 2


def find_separator(document: str) -> int | None:
    """The encoded token that follows the first text of a pair; None if the tokenizer puts none between two texts."""
    encoding = load_tokenizer(document).encode("a", "a")
    texts = encoding.sequence_ids  # 0 and 1 for tokens of the first and the second text, None for special ones
    last = max((position for position, text in enumerate(texts) if text == 0), default=None)
    if last is None or last + 1 >= len(texts) or texts[last + 1] is not None:
        return None
    return int(encoding.ids[last + 1]) + 1


def encode_texts(document: str, texts: Sequence[str] | Sequence[tuple[str, str]], out: np.ndarray) -> None:
    """Fills `out` float32 (B, T), all 0 before, with the id plus 1 of each token, special ones included.

    Pairs of texts are encoded by the tokenizer's template for pairs; the longer text is truncated first.
    """
    tokenizer = load_tokenizer(document)
    if len(texts) == 1:
        (text,) = texts
        encodings = [tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)]
    else:
        encodings = tokenizer.encode_batch_fast(texts)
    for row, encoding in zip(out, encodings, strict=True):
        row[: len(encoding)] = encoding.ids
        row[: len(encoding)] += 1


def token_pieces(document: str, values: Iterable[int]) -> list[str]:
    """The text of each encoded value, with a blank before a word; "" for padding."""
    from tokenizers.decoders import ByteLevel

    tokenizer, byte_decoder = load_tokenizer(document), ByteLevel()
    pieces = [(tokenizer.id_to_token(int(value) - 1) or "") if value else "" for value in values]
    options = json.loads(document)
    if options["model"]["type"] == "WordPiece":
        prefix = options["model"]["continuing_subword_prefix"]
        return [
            piece.removeprefix(prefix) if piece.startswith(prefix) or not piece else f" {piece}" for piece in pieces
        ]
    if "ByteLevel" in json.dumps(options["pre_tokenizer"]):
        return [byte_decoder.decode([piece]) for piece in pieces]
    return [piece.replace("▁", " ") for piece in pieces]


@lru_cache(maxsize=8)
def load_tokenizer(document: str) -> Tokenizer:
    """The tokenizer of a JSON document, which is parsed once in a process."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(document)
