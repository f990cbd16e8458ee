"""Pairs of texts are encoded by the checkpoint's template for pairs, and the network tells both texts apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.feature_groups import group_encoded_row
from bloomery.models.explainability.raw_columns import group_row, sum_by_column
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode, fit, partial_statistics
from bloomery.models.networks.architectures.pretrained import build
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.input_checkpoints import add_input_checkpoints
from bloomery.tasks.prepare.checkpoint_tokenizers import read_tokenizers
from tests.checkpoints import SENTENCES, WORDS, CheckpointFolder
from tests.examples import examples

transformers = pytest.importorskip("transformers")

LENGTH = 12
TEXTS = st.one_of(st.text(max_size=20), st.lists(st.sampled_from([*WORDS, *SENTENCES, " "]), max_size=6).map("".join))


def make_checkpoint(folder: Path) -> Checkpoint:
    names = [path.name for path in folder.iterdir() if path.name.startswith(("tokenizer", "special_tokens"))]
    return Checkpoint(
        reference="tiny", folder=str(folder), files={name: digest_of_file(folder / name) for name in names}
    )


def make_features(folder: Path, **options: Any) -> Features:
    text = {"kind": "text", "column": "query", "pair": "document", "length": LENGTH, "tokenizer": "checkpoint"}
    text |= {"checkpoint": make_checkpoint(folder), **options}
    return Features.model_validate({"key": "id", "label": "score", "task": "regression", "inputs": [text]})


def make_rows(pairs: list[tuple[str, str | None]]) -> pa.RecordBatch:
    queries, documents = (list(texts) for texts in zip(*pairs, strict=True))
    numbers = list(range(len(pairs)))
    columns = {"id": numbers, "query": queries, "document": documents, "score": numbers, "size": numbers}
    return pa.RecordBatch.from_pydict(columns)


def fit_encoder(features: Features) -> Encoder:
    statistics = next(partial_statistics(features, [make_rows([("a", "b"), ("c", "d")])]))
    return Encoder.model_validate_json(
        fit(read_tokenizers(features), statistics.column(0).to_pylist()).model_dump_json()
    )


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm_roberta"])
def tokenizer(request: pytest.FixtureRequest, checkpoint_folder: CheckpointFolder) -> tuple[Encoder, Any]:
    folder = checkpoint_folder(request.param)
    return fit_encoder(make_features(folder)), transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_encoded_pairs_equal_those_of_transformers(tokenizer, pairs):
    encoder, reference = tokenizer
    expected = reference([pair[0] for pair in pairs], [pair[1] for pair in pairs], truncation=True, max_length=LENGTH)
    encoded = encode(encoder, make_rows(pairs))
    for row, ids in zip(encoded, expected["input_ids"], strict=True):
        assert row[: len(ids)].astype(int).tolist() == [token + 1 for token in ids]
        assert not row[len(ids) :].any()


def test_the_network_gives_both_texts_their_token_types(tiny_bert):
    encoder = fit_encoder(make_features(tiny_bert))
    assert encoder.layout.separator is not None
    config = json.loads((tiny_bert / "config.json").read_text())
    checkpoint = Checkpoint(reference="tiny", folder=str(tiny_bert), files={"model.safetensors": "0" * 64})
    network = build(
        Pretrained(kind="pretrained", checkpoint="tiny", pooling="cls", resolved=checkpoint, config=config),
        encoder.layout,
        2,
    ).eval()
    pairs = [("what is the balance", "my card"), ("play", "music of the time, a flight to Málaga")]
    reference = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    model = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    for pair in pairs:
        inputs = reference(*pair, truncation=True, max_length=LENGTH, return_tensors="pt")
        assert inputs["token_type_ids"].any()
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state[:, 0]
            vectors = network.embed(torch.from_numpy(encode(encoder, make_rows([pair]))))
        torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


def test_single_texts_have_no_separator_and_their_layout_stays_as_it_was(tiny_bert):
    encoder = fit_encoder(make_features(tiny_bert, pair=None))
    assert encoder.layout.separator is None
    assert "separator" not in encoder.layout.model_dump()
    assert "pair" not in encoder.features.inputs[0].model_dump()
    assert "separator" not in Layout(kind="tokens", shape=(4,), num_tokens=9).model_dump()


def test_a_pair_needs_a_tokenizer_with_a_template(checkpoint_folder):
    folder = checkpoint_folder("gpt2")
    resolved = Checkpoint(
        reference="tiny", folder=str(folder), files=dict.fromkeys(("tokenizer.json", "model.safetensors"), "0" * 64)
    )
    model = Pretrained(kind="pretrained", checkpoint="tiny", resolved=resolved, config={"vocab_size": 10_000})
    with pytest.raises(RecipeInvalid, match="puts no token between two texts"):
        add_input_checkpoints(make_features(folder, checkpoint=None), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "words", "vocabulary_size": 300, "checkpoint": None}, "set `tokenizer: checkpoint`"),
        ({"pair": "query"}, "column named twice in one input: query"),
        ({"pair": "score"}, "column 'score' is the label"),
    ],
)
def test_impossible_pairs_are_refused(tiny_bert, changes, message):
    with pytest.raises(ValidationError, match=message):
        make_features(tiny_bert, **changes)


def test_an_embedding_reads_single_texts(tiny_bert):
    document = make_features(tiny_bert).model_dump()
    with pytest.raises(ValidationError, match="a vector for each text: leave out `pair`"):
        Features.model_validate({**document, "task": "embedding"})


def test_contributions_belong_to_the_text_that_has_the_token(tiny_bert):
    encoder = fit_encoder(make_features(tiny_bert))
    x = encode(encoder, make_rows([("my card", "the balance")]))[0]
    groups = group_row(encoder, x)
    values = np.zeros(groups.grid[0])
    values[1], values[-2] = 2.0, 3.0  # a token of the query, and the last one of the document
    assert sum_by_column(encoder, groups, values, x) == {"query": 2.0, "document": 3.0}


def test_padding_has_no_contribution_of_its_own(tiny_bert):
    encoder = fit_encoder(make_features(tiny_bert))
    x = encode(encoder, make_rows([("my card", "the balance")]))[0]
    groups = group_encoded_row(encoder)  # a group for each position, as over many rows
    values = np.where(x != 0, 1.0, 0.0)
    contributions = sum_by_column(encoder, groups, values, x)
    assert sum(contributions.values()) == np.count_nonzero(x)
    assert contributions["query"] > 0


def test_an_absent_pair_shares_the_value_of_its_flag(tiny_bert):
    document = make_features(tiny_bert).model_dump()
    (pair,) = document["inputs"]
    inputs = [{**pair, "missing": "absent"}, {"kind": "number", "columns": ["size"]}]
    encoder = fit_encoder(Features.model_validate({**document, "inputs": inputs}))
    x = encode(encoder, make_rows([("my card", None)]))[0]
    groups = group_row(encoder, x)
    assert groups.num_groups == 3
    values = np.array([0.0, 4.0, 1.0])  # the pair, its flag, the number
    assert sum_by_column(encoder, groups, values, x) == {"query": 2.0, "document": 2.0, "size": 1.0}
