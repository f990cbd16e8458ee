"""Vocabulary trimming keeps the outputs of the tokens it keeps, and gives others a similar token's embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bloomery.models.compression.product_codes import fit_product_codes
from bloomery.models.compression.vocabulary import (
    EssentialTokens,
    find_essential_tokens,
    measure_removed_tokens,
    select_tokens,
    trim_vocabulary,
)
from bloomery.models.networks.blueprint import read_network, write_network
from tests.checkpoints import CheckpointFolder
from tests.models.compression.pretrained_networks import LENGTH, build_tiny

NONE = EssentialTokens(frozenset(), frozenset())


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta"])
def test_rows_of_kept_tokens_have_the_same_outputs(family: str, checkpoint_folder: CheckpointFolder, tmp_path: Path):
    tiny = build_tiny(checkpoint_folder(family))
    essential = find_essential_tokens((checkpoint_folder(family) / "tokenizer.json").read_text())
    kept = select_tokens(tiny.x, 1, essential)
    trimmed, blueprint = trim_vocabulary(tiny.network, tiny.blueprint, kept, essential.special)
    assert len(kept) < tiny.network.body.config.vocab_size
    with torch.no_grad():
        assert torch.equal(trimmed(tiny.x), tiny.network(tiny.x))
    assert measure_removed_tokens(trimmed, tiny.x) == 0
    write_network(trimmed, blueprint, tmp_path / "weights.safetensors", tmp_path / "network.json")
    rebuilt, _ = read_network(tmp_path / "weights.safetensors", tmp_path / "network.json")
    everything = torch.arange(1.0, tiny.network.body.config.vocab_size + 1)[None, :12]
    with torch.no_grad():
        assert torch.equal(rebuilt(everything), trimmed(everything))


def test_another_token_has_the_embedding_of_the_most_similar_one_plus_a_difference(
    checkpoint_folder: CheckpointFolder,
):
    tiny = build_tiny(checkpoint_folder("bert"))
    weight = tiny.network.body.get_input_embeddings().weight.data
    weight[20], weight[21] = 2 * weight[10], -weight[10]
    trimmed, _ = trim_vocabulary(tiny.network, tiny.blueprint, torch.tensor([0, 1, 10, 11]), special={0, 1})
    embedding = trimmed.body.get_input_embeddings()
    assert embedding.rows[[0, 1, 10, 11, 20]].tolist() == [0, 1, 2, 3, 2]
    assert embedding.rows[21] == 3  # never a special token
    assert not embedding.codes[[0, 1, 10, 11]].any()
    # So few differences have a code of their own.
    torch.testing.assert_close(embedding(torch.arange(len(weight))[None])[0], weight)
    assert measure_removed_tokens(trimmed, torch.tensor([[11.0, 21, 22, 0]])) == pytest.approx(2 / 3)


def test_codes_approximate_more_vectors_than_there_are_codes():
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    codes, codebook = fit_product_codes(x)
    assert codes.shape == (2000, 2)
    assert codes.min() > 0
    decoded = torch.cat([codebook[part, codes[:, part].long()] for part in range(2)], dim=1)
    assert (decoded - x).square().mean() < 0.6 * x.square().mean()
    assert not codebook[:, 0].any()
    again = fit_product_codes(x)
    assert torch.equal(codes, again[0])


def test_positions_that_no_row_reaches_are_removed(checkpoint_folder: CheckpointFolder):
    for family, offset in (("bert", 0), ("roberta", 2)):
        tiny = build_tiny(checkpoint_folder(family))
        trimmed, blueprint = trim_vocabulary(tiny.network, tiny.blueprint, torch.arange(50))
        assert blueprint.config.shape.num_positions == LENGTH + offset
        assert trimmed.max_length == LENGTH


def test_the_share_counts_tokens_by_their_frequency():
    x = torch.tensor([[3.0, 3, 3, 3, 3, 3, 3, 3, 5, 7], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert select_tokens(x, 1, NONE).tolist() == [2, 4, 6]
    assert select_tokens(x, 0.9, NONE).tolist() == [2, 4]
    assert select_tokens(x, 0.8, NONE).tolist() == [2]
    assert select_tokens(x, 0.5, EssentialTokens(frozenset({0}), frozenset({9}))).tolist() == [0, 2, 9]


def test_special_tokens_and_letters_are_essential(tiny_bert: Path, tiny_roberta: Path):
    essential = find_essential_tokens((tiny_bert / "tokenizer.json").read_text())
    assert essential.special == {0, 1, 2, 3, 4}
    assert len(essential.letters) == 26 + 10 + 4 + 6 + 36  # letters, digits, umlauts, punctuation, continuations
    letters = find_essential_tokens((tiny_roberta / "tokenizer.json").read_text()).letters
    assert len(letters) >= 256  # all bytes, and some of them behind a space
