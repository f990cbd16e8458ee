"""Initial weights of networks with other names, channels, vocabularies or classes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Transformer
from bloomery.models.networks.token_bag_config import TokenBag
from bloomery.models.training.transfer_config import StartFrom
from bloomery.models.training.transfer_learning import Names, TransferResult, name_thresholds, transfer_weights

CNN = Cnn(kind="cnn", channels=(4, 8), hidden=16)


def cnn(channels: int = 1, num_outputs: int = 3) -> torch.nn.Module:
    layout = Layout(kind="image", shape=(channels, 8, 8))
    return build_network(Blueprint(config=CNN, layout=layout, num_outputs=num_outputs))


def transformer(num_tokens: int, num_outputs: int = 2) -> torch.nn.Module:
    config = Transformer(kind="transformer", width=8, num_heads=2, num_layers=1, wide=True)
    layout = Layout(kind="tokens", shape=(5,), num_tokens=num_tokens)
    return build_network(Blueprint(config=config, layout=layout, num_outputs=num_outputs))


def renamed(network: torch.nn.Module, **prefixes: str) -> dict[str, torch.Tensor]:
    """The weights with other names of children."""
    weights = network.state_dict()
    return {".".join([prefixes.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): weights[name]
            for name in weights}  # fmt: skip


def load(network: torch.nn.Module, weights: dict[str, torch.Tensor], **options: object) -> TransferResult:
    return transfer_weights(network, weights, StartFrom(network="source", **options))


@pytest.mark.parametrize(
    "mapping",
    [
        {"stages": "blocks", "fc": "hidden"},
        {"stages.": "blocks.", "fc": "hidden"},
        {r"^stages\.(\d+)\.": r"blocks.\1.", "^fc": "hidden"},
    ],
)
def test_weights_under_other_names_are_loaded_by_prefix_or_expression(mapping):
    source, target = cnn(), cnn()
    result = load(target, renamed(source, blocks="stages", hidden="fc"), mapping=mapping, drop="head")
    assert torch.equal(target.hidden.weight, source.hidden.weight)
    assert torch.equal(target.blocks[1][1].running_var, source.blocks[1][1].running_var)
    assert result.mapped["fc.weight"] == "hidden.weight"
    assert set(result.initialised) == {"head.weight", "head.bias"}
    assert result.unused == ("head.weight", "head.bias")


def test_prefixes_are_added_and_removed():
    source, target = cnn(), cnn()
    inner = {f"model.{name}": weight for name, weight in source.state_dict().items()}
    assert load(target, inner, mapping={"model": ""}).initialised == ()
    assert torch.equal(target.head.weight, source.head.weight)
    only_head = {"weight": source.head.weight, "bias": source.head.bias}
    assert load(cnn(), only_head, mapping={"": "head"}).loaded == ("head.weight", "head.bias")


def test_channels_are_averaged_so_that_equal_channels_give_equal_responses():
    x = torch.rand(2, 1, 8, 8)
    for num_source, num_own in ((3, 1), (1, 3), (3, 4)):
        source, target = cnn(num_source).eval(), cnn(num_own).eval()
        result = load(target, source.state_dict(), adapt="channels")
        torch.testing.assert_close(target(x.expand(2, num_own, 8, 8)), source(x.expand(2, num_source, 8, 8)))
        assert result.adapted == {"blocks.0.0.weight": f"the mean over {num_source} channels for each of {num_own}"}
    assert "blocks.0.0.weight" in load(cnn(1), cnn(3).state_dict()).initialised  # only where the recipe says so


def test_rows_of_equal_tokens_and_classes_are_copied():
    source, target = transformer(4, 3), transformer(5, 2)
    before = target.steps.embedding.weight.detach().clone()
    names = Names(tokens=("[PAD]", "sun", "moon", "", "rain"), classes=("warm", "cold"))
    source_names = Names(tokens=("[PAD]", "moon", "", "sun"), classes=("cold", "mild", "warm"))
    start = StartFrom(network="source", adapt=("vocabulary", "outputs"))
    result = transfer_weights(target, source.state_dict(), start, names, source_names)
    own, other = target.steps.embedding.weight, source.steps.embedding.weight
    assert torch.equal(own[1], other[3])
    assert torch.equal(own[2], other[1])
    assert torch.equal(own[3:], before[3:])
    assert torch.equal(target.head.weight, source.head.weight[[2, 0]])
    assert torch.equal(target.head.bias, source.head.bias[[2, 0]])
    assert result.adapted["steps.embedding.weight"] == "3 of 5 rows, of equal tokens"
    assert "steps.embedding.weight" in result.loaded


def test_the_importances_of_other_tokens_are_not_taken_over():
    config, layout = TokenBag(kind="token_bag", width=4, pairs=8), Layout(kind="tokens", shape=(3,), num_tokens=4)
    source, target = (build_network(Blueprint(config=config, layout=layout, num_outputs=2)) for _ in range(2))
    source.learn_importances(torch.tensor([[1.0, 2, 0], [1, 2, 0]]))
    target.learn_importances(torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 0, 0]]))
    own = target.importances_V.clone()
    names, source_names = Names(tokens=("[PAD]", "sun", "moon", "rain")), Names(tokens=("[PAD]", "rain", "sun", "moon"))
    result = transfer_weights(
        target, source.state_dict(), StartFrom(network="source", adapt="vocabulary"), names, source_names
    )
    assert torch.equal(target.importances_V, own)
    assert "importances_V" in result.initialised
    assert torch.equal(target.embedding.weight[1], source.embedding.weight[2])
    assert "importances_V" in load(target, source.state_dict()).loaded  # of the same tokens


def test_positions_are_no_tokens_even_if_there_are_more_of_them():
    source, target = transformer(4), transformer(4)
    names, source_names = Names(tokens=("[PAD]", "sun", "moon")), Names(tokens=("[PAD]", "moon", "sun"))
    start = StartFrom(network="source", adapt="vocabulary")
    result = transfer_weights(target, source.state_dict(), start, names, source_names)
    (position,) = (name for name in source.state_dict() if name.endswith("places.weight"))
    assert torch.equal(target.state_dict()[position], source.state_dict()[position])
    assert position not in result.adapted


def test_an_unknown_vocabulary_is_refused():
    start = StartFrom(network="source", adapt="vocabulary")
    with pytest.raises(RecipeInvalid, match="the source source has no known vocabulary"):
        transfer_weights(transformer(4), transformer(5).state_dict(), start, Names(tokens=("a",)))
    with pytest.raises(RecipeInvalid, match="this network has no vocabulary") as failure:
        transfer_weights(cnn(), cnn().state_dict(), start, source_names=Names(tokens=("a",)))
    assert (failure.value.required, failure.value.remedy) == (
        "a model of texts with one vocabulary",
        "leave vocabulary out",
    )


def test_outputs_without_classes_are_not_adapted():
    start = StartFrom(network="source", adapt="outputs")
    with pytest.raises(RecipeInvalid, match="this network has no classes") as failure:
        transfer_weights(cnn(num_outputs=1), cnn().state_dict(), start, source_names=Names(classes=("a", "b", "c")))
    assert failure.value.remedy == "leave outputs out"
    with pytest.raises(RecipeInvalid, match="the source source has no known classes") as failure:
        transfer_weights(cnn(), cnn().state_dict(), start, Names(classes=("a", "b", "c")))
    assert "a registered version of a model with classes" in failure.value.required


def test_thresholds_of_ordered_classes_are_copied_between_equal_neighbours():
    source, target = cnn(num_outputs=3), cnn(num_outputs=3)
    before = target.head.weight.detach().clone()
    names = Names(classes=name_thresholds(("poor", "fair", "good", "best")))
    source_names = Names(classes=name_thresholds(("fair", "good", "great", "best")))
    start = StartFrom(network="source", adapt="outputs")
    result = transfer_weights(target, source.state_dict(), start, names, source_names)
    assert torch.equal(target.head.weight[1], source.head.weight[0])
    assert torch.equal(target.head.weight[[0, 2]], before[[0, 2]])
    assert result.adapted["head.weight"] == "1 of 3 rows, of equal classes"
    unordered = Names(classes=("fair", "good", "best"))
    assert transfer_weights(cnn(), source.state_dict(), start, unordered, source_names).adapted["head.weight"][0] == "0"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mapping": {"encoder": "blocks"}}, "'encoder': no weight of source has such a name"),
        ({"drop": ["classifier"]}, "'classifier': no weight of source"),
        ({"mapping": {"blocks": "stages"}}, "blocks.0.0.weight is mapped to stages.0.0.weight, which this network"),
        ({"mapping": {"hidden": "head"}, "drop": "head"}, r"hidden.weight is mapped to head.weight, but has the shape"),
        ({"mapping": {"^hidden": "head"}}, "several weights of source have the name head.bias: hidden.bias, head.bias"),
        ({"mapping": {"hidden": "hidden", "hidden.weight": "hidden.weight"}}, "or an earlier rule matches it"),
        ({"drop": ["blocks", "hidden", "head"]}, "none of the 16 weights of source"),
    ],
)
def test_rules_that_do_not_fit_are_refused(options, problem):
    with pytest.raises(RecipeInvalid, match=problem):
        load(cnn(), cnn().state_dict(), **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mapping": {"^(blocks": "stages"}}, "no regular expression"),
        ({"mapping": {"^blocks": r"stages\1"}}, "names a group"),
        ({"adapt": ["classes"]}, "channels"),
        ({"drop": [""]}, "at least 1 character"),
    ],
)
def test_invalid_rules_are_refused_when_the_recipe_is_read(options, problem):
    with pytest.raises(ValidationError, match=problem):
        StartFrom(network="source", **options)


def test_options_that_are_not_set_are_no_part_of_keys():
    assert StartFrom(network="digits:3").identity() == {"network": "digits:3"}
