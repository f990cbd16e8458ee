"""Residual networks for images."""

from __future__ import annotations

import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.resnet import ResidualNetwork
from bloomery.models.networks.blueprint import num_parameters
from bloomery.models.networks.config import ResNet


def network_for(shape: tuple[int, ...], num_outputs: int = 3, **options: object) -> ResidualNetwork:
    config = ResNet.model_validate({"kind": "resnet", "width": 2, **options})
    return ResidualNetwork(config, Layout(kind="image", shape=shape), num_outputs)


@pytest.mark.parametrize(("depth", "expected"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_it_has_the_known_number_of_parameters_for_imagenet(depth, expected):
    with torch.device("meta"):
        network = network_for((3, 224, 224), num_outputs=1000, depth=depth, width=64)
    assert num_parameters(network) == expected


@pytest.mark.parametrize(("depth", "num_layers"), [(18, 18), (34, 34), (50, 50)])
def test_it_has_the_configured_depth(depth, num_layers):
    network = network_for((3, 8, 8), depth=depth)
    weighted = [name for name, weight in network.named_parameters() if weight.dim() > 1 and "shortcut" not in name]
    assert len(weighted) == num_layers


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stem", ["small", "large"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 9), (1, 28, 28), (3, 33, 32)], ids=str)
def test_grey_and_colour_images_of_any_size_give_outputs(shape, stem, depth):
    network = network_for(shape, num_outputs=1, depth=depth, stem=stem)
    outputs_BK = network(torch.randn(4, *shape))
    assert (outputs_BK.shape, outputs_BK.dtype) == ((4, 1), torch.float32)
    assert torch.isfinite(outputs_BK).all()


@pytest.mark.parametrize(
    ("stem", "side", "stem_side"),
    [("auto", 32, 32), ("auto", 95, 95), ("auto", 96, 24), ("large", 32, 8), ("small", 100, 100)],
)
def test_the_stem_keeps_the_resolution_of_small_images(stem, side, stem_side):
    network = network_for((1, side, side), stem=stem)
    assert network.stem(torch.zeros(2, 1, side, side)).shape == (2, 2, stem_side, stem_side)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_three_of_four_stages_halve_the_image_and_double_the_channels(depth):
    network = network_for((1, 16, 16), depth=depth)
    x_BCHW, shapes = network.stem(torch.zeros(2, 1, 16, 16)), []
    for block in network.blocks:
        x_BCHW = block(x_BCHW)
        shapes.append(tuple(x_BCHW.shape[1:]))
    expansion = 4 if depth == 50 else 1
    assert sorted(set(shapes)) == [
        (2 * expansion, 16, 16),
        (4 * expansion, 8, 8),
        (8 * expansion, 4, 4),
        (16 * expansion, 2, 2),
    ]


def test_every_block_is_initialised_as_the_identity_by_default():
    torch.manual_seed(0)
    x_BCHW = torch.rand(4, 2, 8, 8)
    identity_block, random_block = (network_for((2, 8, 8), zero_init=flag).blocks[0] for flag in (True, False))
    assert torch.equal(identity_block(x_BCHW), x_BCHW)
    assert not torch.allclose(random_block(x_BCHW), x_BCHW)


def test_rows_that_are_not_images_are_refused():
    with pytest.raises(RecipeInvalid, match="the resnet got rows of kind tokens"):
        ResidualNetwork(ResNet(kind="resnet"), Layout(kind="tokens", shape=(7,), num_tokens=9), num_outputs=2)
