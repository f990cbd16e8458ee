"""Texts are encoded by a checkpoint's own tokenizer, as `transformers` does, and equally wherever they are encoded."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.explainability.token_text import token_texts
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import (
    ENCODED_INPUT,
    Encoder,
    encode,
    encode_batches,
    encode_rows,
    fit,
    partial_statistics,
)
from bloomery.models.features.partition_writer import RowColumns, write_partition
from bloomery.tasks.infrastructure.python_processes import code_command
from bloomery.tasks.prepare.checkpoint_tokenizers import read_tokenizers
from tests.checkpoints import SENTENCES, WORDS, CheckpointFolder
from tests.examples import examples

KINDS = ("bert", "roberta", "gpt2", "xlm_roberta", "minilm")
SPECIAL = (
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "<s>",
    "</s>",
    "<pad>",
    "<mask>",
    "<|endoftext|>",
    "▁",
    "##s",
    "  ",
    "\n",
    "İ",
    "ﬁ",
)
TEXTS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from([*WORDS, *SPECIAL, *SENTENCES, " "]), max_size=12).map("".join)
)
LENGTH = 12


def make_checkpoint(folder: Path) -> Checkpoint:
    names = [path.name for path in folder.iterdir() if path.name.startswith(("tokenizer", "special_tokens"))]
    return Checkpoint(
        reference="tiny", folder=str(folder), files={name: digest_of_file(folder / name) for name in names}
    )


def make_features(folder: Path, **options: Any) -> Features:
    text = {"kind": "text", "column": "text", "length": LENGTH, "tokenizer": "checkpoint", **options}
    text["checkpoint"] = make_checkpoint(folder)
    return Features.model_validate({"key": "id", "label": "kind", "inputs": [text]})


def make_rows(texts: list[str | None]) -> pa.RecordBatch:
    columns = {"id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())}
    return pa.RecordBatch.from_pydict({**columns, "kind": pa.array(["a", "b"] * len(texts), pa.string())[: len(texts)]})


def fit_encoder(features: Features) -> Encoder:
    statistics = next(partial_statistics(features, [make_rows(["x", "y"])]))
    return fit(read_tokenizers(features), statistics.column(0).to_pylist())


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, checkpoint_folder: CheckpointFolder) -> tuple[Encoder, Any]:
    """An encoder that was written and read again, and the tokenizer of `transformers`."""
    from transformers import AutoTokenizer

    is_real = request.param == "minilm"
    folder = request.getfixturevalue("minilm") if is_real else checkpoint_folder(request.param)
    encoder = fit_encoder(make_features(folder))
    return Encoder.model_validate_json(encoder.model_dump_json()), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=examples(200))
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_ids_are_those_of_transformers(tokenizer: tuple[Encoder, Any], texts: list[str]) -> None:
    encoder, reference = tokenizer
    x_BT = encode(encoder, make_rows(list(texts)))
    for row, text in zip(x_BT, texts, strict=True):
        ids = reference(text, truncation=True, max_length=LENGTH)["input_ids"]
        assert row.tolist() == [*(number + 1 for number in ids), *[0] * (LENGTH - len(ids))]
    assert x_BT.max() < (encoder.layout.num_tokens or 0)


@settings(max_examples=examples(60))
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_training_spark_and_endpoint_encode_equally(
    tokenizer: tuple[Encoder, Any], tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    encoder, _ = tokenizer
    rows, folder = make_rows([*texts, texts[0]]), tmp_path_factory.mktemp("partition")
    trained = encode_rows(encoder, rows, is_training=True)[ENCODED_INPUT].to_pylist()
    in_batches = [rows.slice(start, 2) for start in range(0, rows.num_rows, 2)]
    assert [x for batch in encode_batches(encoder, in_batches) for x in batch[ENCODED_INPUT].to_pylist()] == trained
    marked = rows.append_column("s", pa.array(["train"] * rows.num_rows)).append_column(
        "p", pa.array([0] * rows.num_rows)
    )
    columns = RowColumns({name: name for name in rows.schema.names}, "s", "p")
    list(write_partition(encoder, columns, folder, [marked]))
    assert pq.read_table(folder / "train" / "000000.parquet")[ENCODED_INPUT].to_pylist() == trained
    served = [encode(encoder, rows.slice(number, 1)).reshape(-1).tolist() for number in range(rows.num_rows)]
    assert served == trained


def test_a_missing_text_has_the_special_tokens_alone(tiny_bert: Path) -> None:
    encoder = fit_encoder(make_features(tiny_bert, missing="empty"))
    x_BT = encode(encoder, make_rows([None, "", "card"]))
    assert x_BT[0].tolist() == x_BT[1].tolist() == [3, 4, *[0] * 10]
    assert np.count_nonzero(x_BT[2]) == 3


def test_an_encoder_holds_no_path_and_needs_no_transformers(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = fit_encoder(make_features(tiny_bert))
    path = tmp_path / "encoder.json"
    path.write_text(encoder.model_dump_json())
    assert str(tiny_bert) not in path.read_text()
    assert '"vocabulary_size"' not in path.read_text()
    code = (
        "import sys, pathlib, pyarrow as pa; from bloomery.models.features.encoder import encode, read_encoder; "
        f"encoder = read_encoder(pathlib.Path({str(path)!r})); "
        "print(encode(encoder, pa.table({'text': ['my card']})).tolist(), 'transformers' in sys.modules, "
        "'torch' in sys.modules)"
    )
    completed = subprocess.run(code_command(code), capture_output=True, text=True, timeout=120)
    x_BT = encode(encoder, make_rows(["my card"]))
    assert completed.stdout.strip() == f"{x_BT.tolist()} False False", completed.stderr


def test_a_tokenizer_counts_by_its_files_and_not_by_its_place(tiny_bert: Path, tiny_gpt2: Path) -> None:
    features = make_features(tiny_bert)
    elsewhere = features.inputs[0].model_copy(
        update={"checkpoint": make_checkpoint(tiny_bert).model_copy(update={"folder": "/x", "reference": "y"})}
    )
    assert features.model_copy(update={"inputs": (elsewhere,)}).identity() == features.identity()
    assert make_features(tiny_gpt2).identity() != features.identity()
    learnt = Features.model_validate(
        {"key": "id", "label": "kind", "inputs": [{"kind": "text", "column": "t", "length": 3, "vocabulary_size": 300}]}
    )
    (options,) = learnt.identity()["inputs"]
    assert set(options) == {"kind", "column", "length", "tokenizer", "vocabulary_size", "lowercase", "missing"}


def test_a_file_that_has_changed_since_the_recipe_was_read_is_refused(tiny_bert: Path) -> None:
    checkpoint = make_checkpoint(tiny_bert)
    changed = checkpoint.model_copy(update={"files": {**checkpoint.files, "tokenizer.json": "0" * 64}})
    features = make_features(tiny_bert)
    source = features.inputs[0].model_copy(update={"checkpoint": changed})
    with pytest.raises(OutputCorrupt, match="has changed since the recipe was read"):
        fit_encoder(features.model_copy(update={"inputs": (source,)}))


def test_a_tokenizer_that_transformers_cannot_load_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RecipeInvalid, match="cannot be loaded"):
        fit_encoder(make_features(tmp_path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokenizer": "checkpoint", "vocabulary_size": 300}, "leave out `vocabulary_size`"),
        ({"tokenizer": "checkpoint", "lowercase": True}, "leave out `lowercase`"),
        ({"tokenizer": "words"}, "vocabulary_size: missing; tokenizer words needs it"),
        ({}, "vocabulary_size: missing; tokenizer byte_pairs needs it"),
    ],
)
def test_options_that_the_tokenizer_does_not_have_are_refused(options: dict[str, Any], sentence: str) -> None:
    text = {"kind": "text", "column": "text", "length": 3, **options}
    with pytest.raises(ValidationError, match=sentence):
        Features.model_validate({"key": "id", "label": "kind", "inputs": [text]})


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("bert", [" [CLS]", " my", " card", "s", " [SEP]"]),
        ("gpt2", None),
        ("xlm_roberta", ["<s>", " my", " card", "s", "</s>"]),
    ],
)
def test_tokens_have_texts(checkpoint_folder: CheckpointFolder, name: str, pieces: list[str] | None) -> None:
    encoder = fit_encoder(make_features(checkpoint_folder(name)))
    x_T = encode(encoder, make_rows(["my cards"]))[0]
    texts = [text for text in token_texts(encoder, x_T) if text]
    if pieces is None:
        assert "".join(texts) == "my cards"
    else:
        assert texts == pieces
