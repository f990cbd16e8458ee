"""The text of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable

from bloomery.models.features.checkpoint_tokenizer import token_pieces
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.kinds.text import FittedText


def token_texts(encoder: Encoder, tokens: Iterable[int]) -> list[str]:
    """The text of each token, with blanks. An incomplete multi-byte character becomes �."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel

    (fitted,) = encoder.fitted
    if not isinstance(fitted, FittedText):
        raise TypeError(f"an input of kind {fitted.kind} has no tokens")
    if getattr(encoder.features.inputs[0], "tokenizer", None) == "checkpoint":
        return token_pieces(fitted.tokenizer, tokens)
    tokenizer, byte_decoder = Tokenizer.from_str(fitted.tokenizer), ByteLevel()
    pieces = [tokenizer.id_to_token(int(token)) or "" for token in tokens]
    if json.loads(fitted.tokenizer)["model"]["type"] != "BPE":
        return [f" {piece}" for piece in pieces]
    return [byte_decoder.decode([piece]) for piece in pieces]
