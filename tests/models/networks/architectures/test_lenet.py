"""LeNet-5 as used in papers on compression."""

from __future__ import annotations

import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.architectures.lenet import LeNet5
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import LeNet


def network_for(*shape: int) -> LeNet5:
    return LeNet5(LeNet(kind="lenet"), Layout(kind="image", shape=shape), num_outputs=10)


def test_it_has_the_published_number_of_parameters():
    network = network_for(1, 28, 28)
    # Han et al. 2015, table 3: the layers have 0.5, 25, 400 and 5 thousand weights, 431 thousand in all.
    assert num_parameters(network) == 431_080
    sizes = [num_parameters(layer) for layer in (network.first, network.second, network.hidden, network.head)]
    assert sizes == [520, 25_050, 400_500, 5_010]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 40), (1, 28, 28), (3, 32, 32), (2, 19, 23)], ids=str)
def test_images_of_every_valid_size_give_outputs(shape):
    outputs_BK = network_for(*shape)(torch.randn(4, *shape))
    assert (outputs_BK.shape, outputs_BK.dtype) == ((4, 10), torch.float32)


@pytest.mark.parametrize("shape", [(1, 15, 28), (1, 28, 8), (3, 1, 1)], ids=str)
def test_too_small_images_are_refused(shape):
    with pytest.raises(RecipeInvalid, match=f"the lenet got images of {shape[1]} x {shape[2]} pixels"):
        network_for(*shape)


def test_rows_that_are_not_images_are_refused():
    with pytest.raises(RecipeInvalid, match="rows of kind sequence"):
        LeNet5(LeNet(kind="lenet"), Layout(kind="sequence", shape=(28, 28)), num_outputs=10)


def test_half_the_channels_have_a_quarter_of_the_weights():
    layout = Layout(kind="image", shape=(1, 28, 28))
    blueprint = Blueprint(config=LeNet(kind="lenet"), layout=layout, num_outputs=10)
    smaller, pruned = prune_network(build_network(blueprint), blueprint, Pruning(ratio=0.5))
    assert (pruned.config.channels, pruned.config.hidden) == ((10, 25), 250)
    assert num_parameters(smaller) == 10 * 26 + 25 * (250 + 1) + 250 * (16 * 25 + 1) + 10 * 251
