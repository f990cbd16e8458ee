"""The bag of tokens: importances of terms, padding, pairs, and texts as a part of mixed rows."""

from __future__ import annotations

import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.networks.architectures.token_bag import TokenBagNetwork, learn_importances
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Fused
from bloomery.models.networks.token_bag_config import TokenBag

TOKENS = Layout(kind="tokens", shape=(5,), num_tokens=10)
ROWS = torch.tensor([[3.0, 4, 0, 0, 0], [3, 4, 3, 0, 0], [5, 3, 0, 0, 0], [3, 0, 0, 0, 0]])


def build(**options: object) -> TokenBagNetwork:
    torch.manual_seed(0)
    config = TokenBag.model_validate({"kind": "token_bag", "width": 8, "pairs": 64, **options})
    network = build_network(Blueprint(config=config, layout=TOKENS, num_outputs=2))
    assert isinstance(network, TokenBagNetwork)
    return network.eval()


def test_rare_terms_count_more_and_those_of_a_single_row_nothing() -> None:
    network = build()
    network.learn_importances(ROWS)
    importances = network.importances_V
    frequent, rare, single = importances[3], importances[4], importances[5]
    assert frequent == pytest.approx(1.0)  # in all rows, however often in one
    assert rare == pytest.approx(1 + torch.log(torch.tensor(5 / 3)).item())
    assert (single, importances[0]) == (0, 0)
    pairs = network.find_terms(ROWS)[:, 5:]
    assert importances[pairs[0, 0]] == pytest.approx(rare)  # 3, 4 is in two rows
    assert importances[pairs[2, 0]] == 0  # 5, 3 in one


def test_features_depend_on_real_tokens_and_their_pairs() -> None:
    network = build()
    longer = torch.cat([ROWS, torch.zeros(4, 3)], dim=1)
    with torch.no_grad():
        assert torch.allclose(network(ROWS), network(longer), atol=1e-6)
        assert not torch.allclose(network(torch.tensor([[3.0, 4, 5]])), network(torch.tensor([[4.0, 3, 5]])))
        empty = network(torch.zeros(1, 5))
        assert torch.allclose(empty, network.head.bias)
        alone = build(pairs=0)
        assert torch.allclose(alone(torch.tensor([[3.0, 4, 5]])), alone(torch.tensor([[4.0, 3, 5]])), atol=1e-6)


def test_importances_of_an_optional_part_are_those_of_rows_that_have_it() -> None:
    layout = mixed_layout(
        [
            Part(name="table", layout=Layout(kind="flat", shape=(2,))),
            Part(name="text", layout=TOKENS, is_optional=True),
        ]
    )
    config = Fused.model_validate(
        {"kind": "fused", "branches": {"table": {"kind": "mlp"}, "text": {"kind": "token_bag", "pairs": 64}}}
    )
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=2))
    present = torch.cat([torch.zeros(4, 2), ROWS, torch.ones(4, 1)], dim=1)
    x = torch.cat([present, torch.zeros(50, 8)])
    learn_importances(network, x)
    expected = build()
    expected.learn_importances(ROWS)
    assert torch.equal(network.branches[1].importances_V, expected.importances_V)


def test_only_text_is_read() -> None:
    config = TokenBag(kind="token_bag")
    with pytest.raises(RecipeInvalid, match="a token_bag reads tokens, but rows are of kind flat"):
        build_network(Blueprint(config=config, layout=Layout(kind="flat", shape=(3,)), num_outputs=2))
