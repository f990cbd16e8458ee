"""Text inputs: token ids of byte pairs or words, learnt from the training split, or of a checkpoint's tokenizer.

The column of a tagging task has sentences as lists of words.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.checkpoint_tokenizer import count_tokens, encode_texts, find_separator, load_tokenizer
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import TextInput
from bloomery.models.features.statistics.arrow_arrays import (
    Rows,
    combine_chunks,
    list_offsets,
    refuse_missing,
    require_values,
)
from bloomery.models.features.statistics.column_counts import CategoryCounts, limit_counts
from bloomery.models.features.word_pieces import EncodedWords, encode_words, read_words_apart

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

MAX_WORDS = 1_000_000
PADDING = "[PAD]"  # token 0
UNKNOWN = "[UNK]"  # token 1 of tokenizer words; as input text it would be three tokens
_SEPARATOR = "\n"  # never inside a word: the byte-level alphabet represents it by another letter


class FittedText(Document):
    """The tokenizer, in the JSON format of the library `tokenizers`."""

    kind: Literal["text"]
    tokenizer: str
    num_tokens: int  # including padding
    separator: Annotated[
        int | None, Field(exclude_if=is_unset, description="of pairs: the encoded token after the first text")
    ] = None


def _pre_tokenizer(source: TextInput) -> PreTokenizer:
    """Splits text into words and punctuation marks; for byte pairs also maps UTF-8 bytes to letters."""
    from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

    if source.tokenizer == "words":
        return BertPreTokenizer()
    return ByteLevel(add_prefix_space=True, use_regex=True)


def _read_texts(source: TextInput, rows: Rows, name: str | None = None) -> pa.Array:
    """The column, or the one called `name`, as text: lowercase if configured, and "" if missing."""
    name = source.column if name is None else name
    column = combine_chunks(rows[name])
    refuse_missing(name, bool(column.null_count) and source.missing == "refuse", source.kind)
    filled = column.fill_null("") if column.null_count else column
    return pc.utf8_lower(filled) if source.lowercase and source.tokenizer != "checkpoint" else filled


def _read_words(source: TextInput, rows: Rows) -> pa.ListArray:
    """The column of sentences as lists of words: lowercase if configured, and without a word if missing."""
    column = combine_chunks(rows[source.column])
    refuse_missing(source.column, bool(column.null_count) and source.missing == "refuse", source.kind)
    words = column.flatten().fill_null("")
    if source.lowercase and source.tokenizer != "checkpoint":
        words = pc.utf8_lower(words)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    return pa.ListArray.from_arrays(list_offsets(lengths), words)


def _has_sentences(source: TextInput, rows: Rows) -> bool:
    return pa.types.is_list(rows.schema.field(source.column).type)


def encode_sentences(source: TextInput, fitted: FittedText, rows: Rows) -> EncodedWords:
    """Sentences as tokens, with the first token of each word."""
    is_of_checkpoint = source.tokenizer == "checkpoint"
    return encode_words(
        read_words_apart(fitted.tokenizer, keeps_words=source.tokenizer == "words"),
        _read_words(source, rows).to_pylist(),
        source.length,
        shift=1 if is_of_checkpoint else 0,
        add_special_tokens=is_of_checkpoint,
    )


def partial_fit(source: TextInput, features: Features, rows: Rows) -> tuple[CategoryCounts, ...]:
    """Counts each word; a checkpoint's tokenizer needs no counts."""
    if source.tokenizer == "checkpoint":
        return ()
    pre_tokenizer = _pre_tokenizer(source)
    counts: Counter[str] = Counter()
    has_sentences = _has_sentences(source, rows)
    texts = _read_words(source, rows).flatten() if has_sentences else _read_texts(source, rows)
    for text in pc.value_counts(texts).to_pylist():
        if has_sentences and source.tokenizer == "words":
            counts[text["values"]] += text["counts"]
            continue
        for word, _ in pre_tokenizer.pre_tokenize_str(text["values"]):
            counts[word] += text["counts"]
    return (limit_counts({(word,): count for word, count in counts.items()}, MAX_WORDS),)


def fit(source: TextInput, statistics: tuple[CategoryCounts, ...], classes: Classes) -> FittedText:
    """Learns the tokenizer from word counts, whose order does not matter, or takes that of a checkpoint.

    Raises:
        DataUnfit: there is no word, or there are too many different words.
    """
    if source.tokenizer == "checkpoint":
        if source.tokenizer_document is None:
            raise ValueError("the tokenizer of a checkpoint is read before the encoder is fitted")
        document = source.tokenizer_document
        separator = None if source.pair is None else find_separator(document)
        return FittedText(kind="text", tokenizer=document, num_tokens=count_tokens(document), separator=separator)
    (word_counts,) = statistics
    if word_counts.is_full:
        raise DataUnfit(
            f"column {source.column} has more than {word_counts.limit:,} different words",
            required=f"at most {word_counts.limit:,} words to learn tokens from",
            where=f"column {source.column}",
            remedy="clean the text (numbers, addresses, other alphabets), or train on fewer rows",
        )
    require_values(source.column, len(word_counts.counts))
    words = sorted((str(word), count) for (word, *_), count in word_counts.counts.items())
    tokenizer = _learn_words(source, words) if source.tokenizer == "words" else _learn_byte_pairs(source, words)
    tokenizer.pre_tokenizer = _pre_tokenizer(source)
    tokenizer.enable_truncation(source.length)
    tokenizer.enable_padding(length=source.length, pad_id=0, pad_token=PADDING)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = []  # otherwise the text "[PAD]" would be encoded as padding
    return FittedText(
        kind="text", tokenizer=json.dumps(document, ensure_ascii=False), num_tokens=tokenizer.get_vocab_size()
    )


def _learn_words(source: TextInput, words: list[tuple[str, int]]) -> Tokenizer:
    """Numbers the most frequent words, after the padding and the unknown token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    assert source.vocabulary_size is not None
    frequent = sorted(words, key=lambda pair: (-pair[1], pair[0]))[: source.vocabulary_size - 2]
    ids = {word: number for number, word in enumerate([PADDING, UNKNOWN, *(word for word, _ in frequent)])}
    return Tokenizer(WordLevel(ids, unk_token=UNKNOWN))


def _learn_byte_pairs(source: TextInput, words: list[tuple[str, int]]) -> Tokenizer:
    """Source: Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units" (byte
    pairs); Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (over bytes).
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.trainers import BpeTrainer

    assert source.vocabulary_size is not None
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Split(_SEPARATOR, "removed")
    trainer = BpeTrainer(
        vocab_size=source.vocabulary_size,
        special_tokens=[PADDING],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_SEPARATOR.join([word] * count) for word, count in words), trainer)
    return tokenizer


def shape(source: TextInput, fitted: FittedText) -> tuple[int, ...]:
    return source.input_shape


def transform_into(
    source: TextInput, fitted: FittedText, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out` float32 (B, T) with token ids. They are below 2**24, so float32 represents them exactly."""
    if _has_sentences(source, rows):
        out[:] = encode_sentences(source, fitted, rows).x
        return
    if source.pair is not None:
        pairs = zip(
            _read_texts(source, rows).to_pylist(), _read_texts(source, rows, source.pair).to_pylist(), strict=True
        )
        encode_texts(fitted.tokenizer, list(pairs), out)
        return
    coded = _read_texts(source, rows).dictionary_encode()
    texts = coded.dictionary.to_pylist()
    if source.tokenizer == "checkpoint":
        if len(texts) == len(out):  # dictionary encoding keeps the order of different texts
            encode_texts(fitted.tokenizer, texts, out)
            return
        numbers = np.zeros((len(texts), source.length), np.float32)
        encode_texts(fitted.tokenizer, texts, numbers)
        out[:] = numbers[coded.indices.to_numpy(zero_copy_only=False)]
        return
    tokenizer = load_tokenizer(fitted.tokenizer)
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    numbers = np.array([encoding.ids for encoding in encodings], np.float32).reshape(len(texts), source.length)
    out[:] = numbers[coded.indices.to_numpy(zero_copy_only=False)]
