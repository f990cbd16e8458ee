"""The Transformer over the columns of a table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.ft_transformer import TableTransformer
from bloomery.models.networks.config import FtTransformer
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import evaluate, train

CONFIG = FtTransformer(kind="ft_transformer", width=8, num_layers=2, num_heads=2, dropout=0)
MIXED = Layout(kind="flat", shape=(4,), categories=((1, 5), (3, 100)))
LAYOUTS = {
    "numbers": Layout(kind="flat", shape=(3,)),
    "categories": Layout(kind="flat", shape=(2,), categories=((0, 4), (1, 9))),
    "both": MIXED,
}


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_column_is_one_token_after_the_cls_token(name, num_outputs):
    layout = LAYOUTS[name]
    network = TableTransformer(CONFIG, layout, num_outputs)
    x_BF = torch.ones(5, *layout.shape)
    assert network.tokens(x_BF).shape == (5, 1 + layout.num_values, 8)
    assert network(x_BF).shape == (5, num_outputs)


def test_equal_codes_of_different_columns_have_different_embeddings():
    network = TableTransformer(CONFIG, LAYOUTS["categories"], 2)
    tokens_BTW = network.tokens(torch.tensor([[3.0, 3.0], [0.0, 8.0]]))
    assert torch.equal(tokens_BTW[0, 1], network.tokens.categories.weight[3])
    assert torch.equal(tokens_BTW[0, 2], network.tokens.categories.weight[4 + 3])
    assert torch.equal(tokens_BTW[1, 2], network.tokens.categories.weight[4 + 8])


@pytest.mark.parametrize("code", [-3.0, 5.0, 1e12, float("nan")])
def test_a_code_out_of_range_gives_an_output(code):
    network = TableTransformer(CONFIG, MIXED, 2).eval()
    with torch.no_grad():
        assert torch.isfinite(network(torch.tensor([[0.5, code, -0.5, 7.0]]))).all()


def test_computing_only_the_first_token_does_not_change_the_output():
    torch.manual_seed(0)
    network = TableTransformer(CONFIG, MIXED, 2).eval()
    x_BF = torch.tensor([[0.5, 2.0, -0.5, 7.0], [1.5, 0.0, 2.5, 70.0]])
    with torch.no_grad():
        x_BTW = network.tokens(x_BF)
        for block in network.blocks:
            x_BTW = block(x_BTW)
        expected = network.head(torch.relu(network.norm(x_BTW[:, 0])))
        torch.testing.assert_close(network(x_BF), expected)


def test_it_learns_interactions_of_columns():
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(3, (300, 2), generator=random)
    rows = Examples(codes.float(), (codes[:, 0] == codes[:, 1]).long(), np.arange(300))
    torch.manual_seed(0)
    network = TableTransformer(CONFIG, Layout(kind="flat", shape=(2,), categories=((0, 3), (1, 3))), 2)
    train(network, TrainingData(rows, rows), Loop(epochs=12, batch_size=16, learning_rate=5e-3))
    assert evaluate(network, rows)[1] > 0.98


def test_rows_that_are_not_flat_are_refused():
    with pytest.raises(RecipeInvalid, match="the ft_transformer got rows of kind image"):
        TableTransformer(CONFIG, Layout(kind="image", shape=(1, 8, 8)), 2)
