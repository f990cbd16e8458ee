"""The convolutional network on images of every size."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.cnn import ConvNet, pruned_config
from bloomery.models.networks.config import Cnn

SHAPES = [(1, 1, 1), (1, 1, 9), (1, 3, 5), (2, 7, 4), (1, 8, 8), (3, 28, 28), (3, 33, 2)]


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_any_size_give_one_logit_per_class(shape, kernel_size):
    network = ConvNet(
        Cnn(kind="cnn", channels=(3, 4, 5, 6), kernel_size=kernel_size, hidden=7),
        Layout(kind="image", shape=shape),
        num_outputs=4,
    )
    logits_BK = network(torch.randn(5, *shape))
    assert (logits_BK.shape, logits_BK.dtype) == ((5, 4), torch.float32)
    assert torch.isfinite(logits_BK).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_affects_the_output(shape):
    torch.manual_seed(0)
    network = ConvNet(
        Cnn(kind="cnn", channels=(3, 4), hidden=50, dropout=0), Layout(kind="image", shape=shape), num_outputs=3
    )
    network(torch.randn(6, *shape)).square().sum().backward()
    unaffected = [name for name, weight in network.named_parameters() if not weight.grad.abs().sum() > 0]
    assert unaffected == []


def test_blocks_halve_the_image_until_a_side_is_one():
    network = ConvNet(Cnn(kind="cnn", channels=(2, 2, 2, 2, 3)), Layout(kind="image", shape=(1, 28, 28)), num_outputs=2)
    sides = []
    x_BCHW = torch.zeros(2, 1, 28, 28)
    for block in network.blocks:
        x_BCHW = block(x_BCHW)
        sides.append(x_BCHW.shape[-1])
    assert sides == [14, 7, 3, 1, 1]
    assert network.hidden.in_features == 3


@pytest.mark.parametrize(("strided", "sides"), [(0, [13, 6, 3]), (1, [14, 7, 3]), (2, [14, 7, 3]), (3, [14, 7, 4])])
def test_strided_blocks_halve_by_a_convolution_and_round_up(strided, sides):
    config = Cnn(kind="cnn", channels=(2, 3, 4), convolutions=(1, 2, 3), strided=strided, hidden=5)
    network = ConvNet(config, Layout(kind="image", shape=(1, 27, 27)), num_outputs=2)
    block_sides = []
    x_BCHW = torch.zeros(2, 1, 27, 27)
    for block in network.blocks:
        x_BCHW = block(x_BCHW)
        block_sides.append(x_BCHW.shape[-1])
    assert block_sides == sides
    assert network.hidden.in_features == 4 * sides[-1] ** 2
    layers = [[layer for layer in block if isinstance(layer, torch.nn.Conv2d)] for block in network.blocks]
    assert [len(block) for block in layers] == [1, 2, 3]
    assert [block[0].stride[0] for block in layers] == [2] * strided + [1] * (3 - strided)
    assert sum(isinstance(layer, torch.nn.MaxPool2d) for layer in network.modules()) == 3 - strided
    assert pruned_config(network, config.model_copy(update={"channels": (9, 9, 9), "hidden": 70})) == config


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strided_blocks_read_images_of_any_size(shape):
    config = Cnn(kind="cnn", channels=(3, 4, 5, 6), convolutions=(1, 2, 1, 1), strided=3, hidden=7)
    logits_BK = ConvNet(config, Layout(kind="image", shape=shape), num_outputs=4)(torch.randn(5, *shape))
    assert logits_BK.shape == (5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convolutions": [1, 2, 1]}, "`convolutions` lists 3 blocks, but `channels` lists 2"),
        ({"strided": 3}, "`strided` is 3, but `channels` lists only 2 blocks"),
    ],
)
def test_options_for_the_wrong_number_of_blocks_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Cnn.model_validate({"kind": "cnn", "channels": [4, 8], **options})


def test_the_output_of_a_row_does_not_depend_on_its_batch(trained, splits):
    network, x = trained.network, splits.test.x[:33]
    with torch.no_grad():
        single_rows = torch.cat([network(row) for row in x.split(1)])
        torch.testing.assert_close(network(x), single_rows, atol=1e-5, rtol=1e-5)


def test_pruned_config_has_the_widths_of_the_network():
    config = Cnn(kind="cnn", channels=(3, 5), hidden=7, dropout=0.3)
    network = ConvNet(config, Layout(kind="image", shape=(1, 8, 8)), num_outputs=2)
    assert pruned_config(network, config.model_copy(update={"channels": (30, 50), "hidden": 70})) == config


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("hidden", [0, 7])
def test_blocks_with_several_convolutions_and_global_average_pooling_work(shape, hidden):
    config = Cnn(kind="cnn", channels=(3, 4, 5), convolutions=2, hidden=hidden)
    network = ConvNet(config, Layout(kind="image", shape=shape), num_outputs=4)
    assert network(torch.randn(5, *shape)).shape == (5, 4)
    assert len([layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]) == 6
    assert pruned_config(network, config.model_copy(update={"channels": (9,), "hidden": 70})) == config


def test_without_a_hidden_layer_the_head_reads_the_average_pooling():
    config = Cnn(kind="cnn", channels=(3, 4), hidden=0, dropout=0)
    network = ConvNet(config, Layout(kind="image", shape=(1, 8, 8)), num_outputs=2).eval()
    x_BCHW = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = network.head(network.blocks(x_BCHW).flatten(2).mean(2))
        torch.testing.assert_close(network(x_BCHW), expected)


def test_rows_that_are_not_images_are_refused():
    with pytest.raises(RecipeInvalid, match=r"the cnn got rows of kind flat and shape \[6\]"):
        ConvNet(Cnn(kind="cnn"), Layout(kind="flat", shape=(6,)), num_outputs=2)
