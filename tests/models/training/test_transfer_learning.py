"""Transfer learning: initial weights, frozen layers, and learning rates by layer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Gpt, Mlp, Transformer
from bloomery.models.training.config import Loop, Training
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.layer_freezing import freeze_parameters, frozen_modules, rate_shares
from bloomery.models.training.loop import evaluate, train
from bloomery.models.training.transfer_config import StartFrom
from bloomery.models.training.transfer_learning import transfer_weights

IMAGES = Layout(kind="image", shape=(1, 8, 8))
CNN = Cnn(kind="cnn", channels=(8, 16), hidden=32, dropout=0.0)
TOKENS = Layout(kind="tokens", shape=(5,), num_tokens=9)
TRANSFORMER = Transformer(kind="transformer", width=8, num_heads=2, num_layers=2)
GPT = Gpt(kind="gpt", width=8, num_heads=2, num_layers=2)
MLP = Mlp(kind="mlp", hidden=(8, 4))


def network_of(num_outputs: int, seed: int = 0) -> torch.nn.Module:
    set_deterministic(seed, num_threads=1)
    return build_network(Blueprint(config=CNN, layout=IMAGES, num_outputs=num_outputs))


def pattern_images(num_rows: int, seed: int) -> Examples:
    """Images of noise and one of six patterns of 3 x 3 pixels at a random position; the class is the pattern."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(7)).sign() * 1.5
    y = torch.randint(6, (num_rows,), generator=random)
    x = torch.randn(num_rows, 1, 8, 8, generator=random) * 0.7
    for row, (top, left) in enumerate(torch.randint(0, 6, (num_rows, 2), generator=random).tolist()):
        x[row, 0, top : top + 3, left : left + 3] += patterns[y[row]]
    return Examples(x, y, np.arange(num_rows))


def with_odd_labels(examples: Examples) -> Examples:
    """The same rows with another label: whether the number of the pattern is odd."""
    return examples._replace(y=examples.y % 2)


def test_weights_of_equal_name_and_shape_are_loaded_and_others_initialised():
    source, target = network_of(10, seed=1), network_of(3, seed=2)
    head = target.head.weight.detach().clone()
    result = transfer_weights(target, source.state_dict(), StartFrom(network="source"))
    assert torch.equal(target.hidden.weight, source.hidden.weight)
    assert torch.equal(target.head.weight, head)
    assert set(result.initialised) == {"head.weight", "head.bias"}
    assert set(result.loaded) == source.state_dict().keys() - set(result.initialised)


def test_weights_without_any_match_are_refused():
    with pytest.raises(RecipeInvalid, match="same kind and widths"):
        transfer_weights(network_of(3), {"other.weight": torch.zeros(3)}, StartFrom(network="other"))


@pytest.mark.parametrize("freeze", [("blocks", "nothing"), ("blocks", "hidden", "head")])
def test_invalid_freeze_prefixes_are_refused(freeze):
    with pytest.raises(RecipeInvalid, match="freeze"):
        freeze_parameters(network_of(3), freeze)


def test_frozen_layers_and_their_batch_statistics_do_not_change_in_training(splits):
    network = network_of(10)
    transfer_weights(network, network_of(10, seed=1).state_dict(), StartFrom(network="same"))
    freeze_parameters(network, ("blocks",))
    before = copy.deepcopy(network.state_dict())
    train(network, TrainingData(splits.train, splits.val), Loop(epochs=1))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}


def frozen_children(network: torch.nn.Module, freeze: object) -> set[str]:
    """The names of children, and of elements of lists among them, whose parameters are all frozen by `freeze`."""
    freeze_parameters(network, Training(epochs=1, freeze=freeze).freeze)
    modules = dict(network.named_modules())
    return {name for name in modules if modules[name] in frozen_modules(network) and name.count(".") < 2}


@pytest.mark.parametrize(
    ("config", "freeze", "expected"),
    [
        (CNN, 1, {"blocks.0"}),
        (CNN, "body", {"blocks", "blocks.0", "blocks.1", "hidden"}),
        (TRANSFORMER, "embeddings", {"steps", "steps.embedding", "positions", "positions.places", "norm_in"}),
        (TRANSFORMER, 1, {"steps", "steps.embedding", "positions", "positions.places", "norm_in", "blocks.0"}),
        (GPT, 1, {"decoder.steps", "decoder.positions"}),
        (MLP, 1, {"layers.0"}),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_freeze_covers_embeddings_and_layers_by_number_or_the_body(config, freeze, expected):
    layout = {"cnn": IMAGES, "mlp": Layout(kind="flat", shape=(4,))}.get(config.kind, TOKENS)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=2))
    assert frozen_children(network, freeze) == expected


def test_a_whole_body_leaves_the_parts_as_wide_as_the_outputs():
    config = TRANSFORMER.model_copy(update={"wide": True})
    network = build_network(Blueprint(config=config, layout=TOKENS, num_outputs=2))
    freeze_parameters(network, ("body",))
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable == {"head.weight", "head.bias", "wide.weights.weight"}


@pytest.mark.parametrize("freeze", [3, "embeddings"])
def test_more_layers_than_exist_and_missing_embeddings_are_refused(freeze):
    config = CNN.model_copy(update={"hidden": 0})
    network = build_network(Blueprint(config=config, layout=IMAGES, num_outputs=2))
    with pytest.raises(RecipeInvalid, match=r"has 2|no embeddings") as refusal:
        frozen_children(network, freeze)
    assert "body" in f"{refusal.value.required} {refusal.value.remedy}"


def test_options_that_moved_from_start_from_name_their_place():
    with pytest.raises(ValidationError, match=r"write `training: \{freeze: …\}`"):
        Training(epochs=1, start_from={"network": "digits@champion", "freeze": ["blocks"]})


@pytest.mark.parametrize("freeze", [True, 0, -1, 1.5, [""], {"body": True}])
def test_values_that_name_no_layers_are_refused(freeze):
    with pytest.raises(ValidationError, match="freeze"):
        Training(epochs=1, freeze=freeze)


def test_options_that_are_not_set_are_no_part_of_keys():
    assert {"freeze", "discount"}.isdisjoint(Training(epochs=1, freeze=(), discount=1.0).identity())
    assert Training(epochs=1, freeze="body").identity()["freeze"] == ["body"]


def test_a_module_is_frozen_only_if_all_its_parameters_are():
    network = network_of(3)
    assert frozen_modules(network) == []
    network.hidden.bias.requires_grad_(False)
    assert frozen_modules(network) == []
    network.hidden.weight.requires_grad_(False)
    assert frozen_modules(network) == [network.hidden]


def test_each_layer_has_a_fraction_of_the_next_layers_learning_rate():
    config = Transformer(kind="transformer", width=8, num_heads=2, num_layers=2)
    network = build_network(
        Blueprint(config=config, layout=Layout(kind="tokens", shape=(5,), num_tokens=9), num_outputs=2)
    )
    shares = rate_shares(network, 0.5)
    assert shares["head.weight"] == 1
    assert shares["blocks.1.up.weight"] == shares["blocks.1.down.bias"] == 2 * shares["blocks.0.up.weight"]
    assert len(set(shares.values())) == len({name.split(".")[0] for name in shares} - {"blocks"}) + 2


def test_pretraining_on_many_rows_helps_with_few_rows():
    source = network_of(6)
    train(source, TrainingData(pattern_images(2000, 0), pattern_images(300, 1)), Loop(epochs=6))
    train_rows, val_rows = with_odd_labels(pattern_images(24, 10)), with_odd_labels(pattern_images(600, 2))
    scores = {}
    for name in ("scratch", "transfer"):
        network, shares = network_of(2, seed=3), None
        if name == "transfer":
            transfer_weights(network, source.state_dict(), StartFrom(network="source"))
            shares = rate_shares(network, 0.5)
        train(network, TrainingData(train_rows, train_rows), Loop(epochs=15, batch_size=8), rate_shares=shares)
        scores[name] = evaluate(network, val_rows)[1]
    assert scores["transfer"] > scores["scratch"] + 0.08
