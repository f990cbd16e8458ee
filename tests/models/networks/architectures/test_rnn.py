"""Recurrent networks: directions, padding, the highway, and pruning."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.architectures.rnn import build
from bloomery.models.networks.blueprint import Blueprint, num_parameters
from bloomery.models.networks.config import Rnn
from bloomery.models.networks.layers.padding import StepEmbedding, pool, reverse_steps
from tests.examples import examples

STEPS = Layout(kind="sequence", shape=(6, 3))
PADDED = Layout(kind="sequence", shape=(6, 3), is_padded=True)
TOKENS = Layout(kind="tokens", shape=(6,), num_tokens=11)
SOUND = Layout(kind="image", shape=(1, 4, 6))
LAYOUTS = {"steps": STEPS, "padded": PADDED, "tokens": TOKENS, "sound": SOUND}
CELLS = ["elman", "lstm", "gru"]
POOLINGS = ["last", "mean", "max"]


def config_of(**options: object) -> Rnn:
    return Rnn.model_validate({"kind": "rnn", "hidden": 4, "embedding": 5, "dropout": 0.0, **options})


def rows_of(layout: Layout, num_rows: int, num_valid: int) -> torch.Tensor:
    x = torch.randn(num_rows, *layout.shape)
    if layout.kind == "tokens":
        x = torch.randint(1, 11, (num_rows, *layout.shape)).float()
    if layout.is_padded:
        x[..., -1] = 1
    if layout.kind == "tokens" or layout.is_padded:
        x[:, num_valid:] = 0
    return x


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", [TOKENS, PADDED], ids=["tokens", "padded"])
def test_padding_does_not_affect_any_output(layout, cell, pooling):
    torch.manual_seed(0)
    config = config_of(cell=cell, pooling=pooling, num_layers=2, bidirectional=True, highway=4)
    network = build(config, layout, 2).eval()
    torch.nn.init.normal_(network.highway.weight)
    for num_valid in (1, 3, 5):
        x = rows_of(layout, 3, num_valid)
        if layout.is_padded:
            x[:, num_valid:, :-1] = torch.randn(3, 6 - num_valid, 2) * 1e3
        torch.testing.assert_close(network(x), network(x[:, :num_valid]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", [TOKENS, PADDED], ids=["tokens", "padded"])
def test_a_row_of_only_padding_has_a_finite_output_and_gradient(layout, pooling):
    network = build(config_of(pooling=pooling, bidirectional=True, highway=3), layout, 2)
    outputs = network(torch.zeros(2, *layout.shape))
    outputs.sum().backward()
    assert torch.isfinite(outputs).all()
    assert all(weight.grad is None or torch.isfinite(weight.grad).all() for weight in network.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_without_padding_it_equals_pytorch_layers(cell):
    torch.manual_seed(0)
    network = build(config_of(cell=cell, num_layers=2, bidirectional=True), STEPS, 2).eval()
    layer_class = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    reference = layer_class(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    for number, directions in enumerate(network.layers):
        for direction, suffix in zip(directions, ("", "_reverse"), strict=True):
            for name, weight in direction.named_parameters():
                getattr(reference, name.replace("_l0", f"_l{number}") + suffix).data.copy_(weight)
    x = torch.randn(5, 6, 3)
    h_BTH, state = reference(x)
    last_BH = torch.cat(list((state[0] if cell == "lstm" else state)[-2:]), dim=1)
    torch.testing.assert_close(network(x), network.head(last_BH))
    assert h_BTH.shape[2] == 8


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_only_bidirectional_networks_see_the_complete_first_step(is_bidirectional):
    """The gradient with respect to the first of many steps vanishes with one direction and not with two."""
    torch.manual_seed(0)
    layout = Layout(kind="sequence", shape=(60, 2))
    network = build(config_of(cell="elman", bidirectional=is_bidirectional), layout, 1).eval()
    with torch.no_grad():
        for name, weight in network.layers.named_parameters():
            if "weight_hh" in name:
                weight *= 0.5
    x = torch.randn(4, 60, 2, requires_grad=True)
    network(x).sum().backward()
    assert (x.grad[:, 0].abs().max() > 1e-4) == is_bidirectional


def test_the_highway_reads_the_last_values():
    torch.manual_seed(0)
    network = build(config_of(highway=2), PADDED, 1).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.highway.weight.copy_(torch.tensor([[2.0, 0.0, 10.0, 0.0]]))
        network.highway.bias.zero_()
    x = rows_of(PADDED, 3, 4)
    torch.testing.assert_close(network(x)[:, 0], 2 * x[:, 3, 0] + 10 * x[:, 2, 0])
    torch.testing.assert_close(network(x[:, :1])[:, 0], 2 * x[:, 0, 0])


def test_a_relative_network_starts_as_the_last_value():
    network = build(config_of(highway=3, relative=True), PADDED, 1).eval()
    x = rows_of(PADDED, 3, 4)
    torch.testing.assert_close(network(x)[:, 0], x[:, 3, 0])


def test_a_relative_network_follows_levels_beyond_those_it_has_learned():
    layout = Layout(kind="sequence", shape=(6, 1))
    torch.manual_seed(0)
    network = build(config_of(highway=6, relative=True), layout, 1).eval()
    with torch.no_grad():
        network.highway.weight.normal_()
    x = torch.randn(5, 6, 1)
    torch.testing.assert_close(network(x + 100) - network(x), torch.full((5, 1), 100.0), atol=1e-3, rtol=0)


def test_a_spectrogram_is_read_along_its_time_axis():
    network = build(config_of(), SOUND, 2).eval()
    step_network = build(config_of(), Layout(kind="sequence", shape=(6, 4)), 2).eval()
    step_network.load_state_dict(network.state_dict())
    x = torch.randn(3, 1, 4, 6)
    torch.testing.assert_close(network(x), step_network(x[:, 0].transpose(1, 2)))


@pytest.mark.parametrize("layout", [Layout(kind="flat", shape=(5,)), Layout(kind="image", shape=(3, 4, 4))])
def test_rows_that_are_not_sequences_are_refused(layout):
    with pytest.raises(RecipeInvalid, match="are not sequences"):
        build(config_of(), layout, 2)


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_reversing_is_its_own_inverse_and_keeps_padding(lengths, seed):
    x_BTW = torch.randn(len(lengths), 5, 2, generator=torch.Generator().manual_seed(seed))
    valid_BT = torch.arange(5) < torch.tensor(lengths)[:, None]
    reversed_BTW = reverse_steps(x_BTW, valid_BT)
    assert torch.equal(reverse_steps(reversed_BTW, valid_BT), x_BTW)
    for row, reversed_row, length in zip(x_BTW, reversed_BTW, lengths, strict=True):
        assert torch.equal(reversed_row[:length], row[:length].flip(0))
        assert torch.equal(reversed_row[length:], row[length:])


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_pooling_uses_only_real_steps(lengths):
    h_BTW = torch.randn(len(lengths), 5, 3, generator=torch.Generator().manual_seed(0))
    valid_BT = torch.arange(5) < torch.tensor(lengths)[:, None]
    expected = {
        "first": [row[0] for row in h_BTW],
        "last": [row[n - 1] for row, n in zip(h_BTW, lengths, strict=True)],
        "mean": [row[:n].mean(0) for row, n in zip(h_BTW, lengths, strict=True)],
        "max": [row[:n].amax(0) for row, n in zip(h_BTW, lengths, strict=True)],
    }
    for pooling, rows in expected.items():
        torch.testing.assert_close(pool(h_BTW, valid_BT, pooling), torch.stack(rows))


def test_token_ids_out_of_range_are_clamped():
    steps = StepEmbedding(TOKENS, 4)
    x_BTW, valid_BT = steps(torch.tensor([[3.0, 99.0, -2.0, 0.0]]))
    assert torch.equal(x_BTW[0, 1], steps.embedding.weight[10])
    assert valid_BT.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("is_bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_pruning_zero_units_does_not_change_the_outputs(cell, is_bidirectional, layout):
    torch.manual_seed(0)
    config = config_of(cell=cell, num_layers=2, bidirectional=is_bidirectional, highway=2)
    network = build(config, layout, 3).eval()
    num_directions = 2 if is_bidirectional else 1
    with torch.no_grad():
        for number, directions in enumerate(network.layers):
            for cell_of_direction in directions:
                for name, weight in cell_of_direction.named_parameters():
                    weight.unflatten(0, (-1, 4))[:, [0, 2]] = 0  # these units are 0 at every step
                    if "weight_hh" in name:
                        weight[:, [0, 2]] = 0
                    if name == "weight_ih_l0" and number:
                        weight.unflatten(1, (num_directions, 4))[..., [0, 2]] = 0
        network.head.weight.unflatten(1, (num_directions, 4))[..., [0, 2]] = 0
    smaller, blueprint = prune_network(
        network, Blueprint(config=config, layout=layout, num_outputs=3), Pruning(ratio=0.5)
    )
    pruned = blueprint.config
    x = rows_of(layout, 4, 5)
    torch.testing.assert_close(smaller(x), network(x), atol=1e-6, rtol=1e-5)
    assert pruned.hidden == 2
    rebuilt = build(pruned, layout, 3).eval()
    rebuilt.load_state_dict(smaller.state_dict())
    assert torch.equal(rebuilt(x), smaller(x))


@pytest.mark.parametrize(("share", "num_units"), [(0.1, 4), (0.25, 3), (0.9, 1), (0.99, 1)])
def test_the_configured_share_is_pruned_but_at_least_one_unit_remains(share, num_units):
    network = build(config_of(), STEPS, 2).eval()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    smaller, pruned = prune_network(
        network, Blueprint(config=config_of(), layout=STEPS, num_outputs=2), Pruning(ratio=share)
    )
    assert pruned.config.hidden == num_units
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert (num_parameters(smaller) < num_parameters(network)) == (num_units < 4)
    F.mse_loss(smaller.train()(rows_of(STEPS, 3, 6)), torch.zeros(3, 2)).backward()  # it can be trained
    assert all(weight.grad is not None for weight in smaller.parameters())
