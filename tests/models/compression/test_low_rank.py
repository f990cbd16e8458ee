"""Low-rank factorization: the best approximation of its rank, and never larger."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.low_rank import factorize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Mlp, Rnn, Transformer
from tests.examples import examples


@settings(max_examples=examples(30), deadline=None)
@given(rows=st.integers(16, 200), columns=st.integers(16, 200), share=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_the_product_is_the_best_of_its_rank_and_loses_the_share_of_parameters(rows, columns, share, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(columns, rows))
    thin = factorize(network, share)
    before, after = num_parameters(network), num_parameters(thin)
    if isinstance(thin[0], nn.Linear):
        rank = int((1 - share) * rows * columns / (rows + columns))
        assert rows * columns < 4096 or rank < 1 or rank >= min(rows, columns)
        return
    rank = thin[0][0].out_features
    assert after - rows <= (1 - share) * (before - rows)
    error = (thin[0][1].weight @ thin[0][0].weight - network[0].weight).norm()
    best = torch.linalg.svdvals(network[0].weight.detach())[rank:].norm()
    torch.testing.assert_close(error, best, atol=1e-3, rtol=1e-3)
    assert torch.equal(thin[0][1].bias, network[0].bias)


def test_a_low_rank_matrix_is_factorized_exactly():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(100, 120))
    network[0].weight.data = torch.randn(120, 5) @ torch.randn(5, 100) / 10
    x = torch.randn(7, 100)
    torch.testing.assert_close(factorize(network, 0.8)(x), network(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (Transformer(kind="transformer", width=64, num_heads=2), Layout(kind="tokens", shape=(9,), num_tokens=300)),
        (Rnn(kind="rnn", hidden=8, embedding=64), Layout(kind="tokens", shape=(9,), num_tokens=300)),
        (Mlp(kind="mlp", hidden=(128, 64), embedding=64), Layout(kind="flat", shape=(6,), categories=((1, 200),))),
    ],
    ids=lambda value: value.kind,
)
def test_factorized_networks_run_and_are_exported(config, layout, tmp_path):
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=3)).eval()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    thin = factorize(network, 0.5)
    assert num_parameters(thin) < 0.8 * num_parameters(network)
    assert not any(module.training for module in thin.modules())
    x = torch.randint(1, 200, (40, *layout.shape)).float()
    if layout.kind == "tokens":
        x[0, 4:] = 0  # a padded row has the outputs of a short one
        torch.testing.assert_close(thin(x[:1]), thin(x[:1, :4]), atol=1e-5, rtol=1e-4)
    assert export_onnx(thin, x, tmp_path / "thin.onnx") < 1e-4
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
