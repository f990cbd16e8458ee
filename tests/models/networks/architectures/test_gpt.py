"""The decoder: causality, next-token prediction, and generation with cached keys and values."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.architectures.gpt import GptDecoder, build, generate, next_token_loss
from bloomery.models.networks.blueprint import Blueprint, num_parameters
from bloomery.models.networks.config import Gpt

TOKENS = Layout(kind="tokens", shape=(16,), num_tokens=11)


def config_of(**options: object) -> Gpt:
    return Gpt.model_validate({"kind": "gpt", "width": 8, "num_heads": 2, "dropout": 0.0, **options})


@pytest.fixture(scope="module")
def decoder() -> GptDecoder:
    """A decoder with weights so large that its states differ clearly."""
    torch.manual_seed(0)
    network = GptDecoder(config_of(), TOKENS).eval()
    for weight in network.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    return network


def tokens_of(num_rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 11, (num_rows, length), generator=torch.Generator().manual_seed(length))


def generate_without_cache(decoder: GptDecoder, tokens_BT: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The most likely tokens, with all states computed again at each step."""
    for _ in range(num_tokens):
        logits_BV = decoder.next_token_logits(tokens_BT)[:, -1]
        tokens_BT = torch.cat([tokens_BT, logits_BV[:, 1:].argmax(1, keepdim=True) + 1], dim=1)
    return tokens_BT


def test_the_gpt_2_small_config_has_its_published_number_of_parameters():
    with torch.device("meta"):
        network = GptDecoder(
            config_of(width=768, num_layers=12, num_heads=12, max_length=1024),
            Layout(kind="tokens", shape=(1024,), num_tokens=50257),
        )
    assert num_parameters(network) == 124_439_808


def test_later_tokens_do_not_affect_earlier_states(decoder):
    x = tokens_of(2, 9)
    logits_BTV = decoder.next_token_logits(x)
    for position in range(1, 9):
        changed = x.clone()
        changed[:, position:] = changed[:, position:] % 10 + 1
        torch.testing.assert_close(decoder.next_token_logits(changed)[:, :position], logits_BTV[:, :position])
        assert not torch.allclose(decoder.next_token_logits(changed)[:, position], logits_BTV[:, position])


def test_the_next_token_logits_use_the_embedding(decoder):
    x = tokens_of(2, 4)
    torch.testing.assert_close(decoder.next_token_logits(x), decoder(x) @ decoder.steps.embedding.weight.T)


@pytest.mark.parametrize("length", [1, 5, 10])
def test_the_key_value_cache_does_not_change_the_logits(decoder, length):
    prompt = tokens_of(3, length)
    assert torch.equal(generate(decoder, prompt, 6, temperature=0), generate_without_cache(decoder, prompt, 6))


def test_generation_is_reproducible_by_seed(decoder):
    tokens, repeated, of_other_seed = (
        generate(decoder, tokens_of(4, 2), 14, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(tokens, repeated)
    assert not torch.equal(tokens, of_other_seed)
    assert (tokens.shape, tokens.dtype) == ((4, 16), torch.int64)
    assert torch.equal(tokens[:, :2], tokens_of(4, 2))


def test_tokens_are_sampled_by_their_probability(decoder):
    prompt = tokens_of(1, 3)
    with torch.no_grad():
        logits_V = decoder.next_token_logits(prompt)[0, -1]
    logits_V[0] = -torch.inf
    samples = generate(
        decoder, prompt.expand(20_000, -1), 1, temperature=2.0, generator=torch.Generator().manual_seed(0)
    )
    share_V = torch.bincount(samples[:, -1], minlength=11) / 20_000
    torch.testing.assert_close(share_V, (logits_V / 2).softmax(0), atol=0.02, rtol=0)
    assert share_V[0] == 0


def test_top_k_restricts_sampling_to_the_most_likely_tokens(decoder):
    prompt = tokens_of(1, 3).expand(300, -1)
    top_two = generate(decoder, prompt, 1, top_k=2, temperature=5.0, generator=torch.Generator().manual_seed(0))
    assert len(top_two[:, -1].unique()) == 2
    top_one = generate(decoder, prompt[:5], 6, top_k=1)
    assert torch.equal(top_one, generate(decoder, prompt[:5], 6, temperature=0))


@pytest.mark.parametrize(
    ("prompt", "num_tokens"), [([[1, 2]], 15), ([[1, 0]], 1), ([[]], 1)], ids=["long", "padded", "empty"]
)
def test_invalid_prompts_are_refused(decoder, prompt, num_tokens):
    with pytest.raises(ValueError, match="16 tokens at most"):
        generate(decoder, torch.tensor(prompt, dtype=torch.int64), num_tokens)


def test_the_loss_covers_next_tokens_and_ignores_padding():
    logits_BTV = torch.zeros(2, 4, 5)
    logits_BTV[0, 0, 3] = 2.0
    x = torch.tensor([[1.0, 3.0, 2.0, 0.0], [4.0, 0.0, 0.0, 0.0]])
    first = math.log(4 + math.exp(2)) - 2
    assert next_token_loss(logits_BTV, x).item() == pytest.approx((first + math.log(5)) / 2)
    assert next_token_loss(logits_BTV, torch.zeros(2, 4)).item() == 0


def test_a_learnt_pattern_is_continued():
    torch.manual_seed(0)
    decoder = GptDecoder(config_of(width=16), TOKENS)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    rows = torch.stack([(torch.arange(16) + start) % 5 + 1 for start in range(5)])
    for _ in range(60):
        optimizer.zero_grad()
        next_token_loss(decoder.next_token_logits(rows), rows).backward()
        optimizer.step()
    assert torch.equal(generate(decoder, rows[:, :3], 13, temperature=0), rows)


def test_a_decoder_of_steps_has_no_next_token_logits():
    decoder = GptDecoder(config_of(), Layout(kind="sequence", shape=(5, 2)))
    with pytest.raises(ValueError, match="of tokens"):
        decoder.next_token_logits(torch.zeros(1, 5, 2))


@pytest.mark.parametrize("is_training", [True, False])
def test_it_predicts_from_the_last_real_token(is_training):
    torch.manual_seed(0)
    network = build(config_of(), TOKENS, 3).train(is_training)
    x = tokens_of(2, 16).float()
    x[0, 5:], x[1, 9:] = 0, 0
    expected = torch.stack(
        [network.head(network.decoder(row[None, :num])[0, -1]) for row, num in zip(x, (5, 9), strict=True)]
    )
    torch.testing.assert_close(network(x), expected, atol=1e-6, rtol=1e-5)
    assert torch.isfinite(network(torch.zeros(2, 16))).all()


@pytest.mark.parametrize(
    "layout",
    [Layout(kind="sequence", shape=(9, 3), is_padded=True), Layout(kind="image", shape=(1, 4, 9))],
    ids=["padded", "sound"],
)
def test_it_reads_steps_and_spectrograms(layout):
    network = build(config_of(), layout, 3).eval()
    x = torch.randn(2, *layout.shape)
    assert network(x).shape == (2, 3)
    if layout.is_padded:
        x[..., -1] = (torch.arange(9) < 4).float()
        torch.testing.assert_close(network(x), network(x[:, :4]), atol=1e-6, rtol=1e-5)


def test_pruning_zero_hidden_units_does_not_change_the_outputs():
    torch.manual_seed(0)
    config = config_of(feed_forward=1.0)
    network = build(config, TOKENS, 3).eval()
    with torch.no_grad():
        for block in network.decoder.blocks:
            block.up.weight[:4] = 0
            block.down.weight[:, :4] = 0
    smaller, blueprint = prune_network(
        network, Blueprint(config=config, layout=TOKENS, num_outputs=3), Pruning(ratio=0.5)
    )
    x = tokens_of(3, 16).float()
    torch.testing.assert_close(smaller(x), network(x), atol=1e-6, rtol=1e-5)
    rebuilt = build(blueprint.config, TOKENS, 3).eval()
    rebuilt.load_state_dict(smaller.state_dict())
    assert torch.equal(rebuilt(x), smaller(x))
    assert num_parameters(rebuilt) < num_parameters(network)
