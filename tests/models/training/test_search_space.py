"""Search spaces: valid paths and values, and the default spaces."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Auto, BoostedTrees, Cnn, FtTransformer, Mlp, Periodic, Rnn, TabularEnsemble
from bloomery.models.training.config import Range, Search, Training
from bloomery.models.training.search_space import apply_values, default_networks, require_valid_space, search_space

TRAINING = Training(epochs=3)
LAYOUTS = [
    Layout(kind="flat", shape=(6,), categories=((1, 4),)),
    Layout(kind="image", shape=(1, 8, 8)),
    Layout(kind="image", shape=(3, 28, 28)),
    Layout(kind="sequence", shape=(7, 3)),
    Layout(kind="tokens", shape=(9,), num_tokens=20),
]


def test_values_are_set_at_their_paths_and_nothing_else_changes():
    model, training = apply_values(
        Mlp(kind="mlp", dropout=0.3), TRAINING, {"model.hidden": [5, 6], "training.augment.flip": True}
    )
    assert model == Mlp(kind="mlp", hidden=(5, 6), dropout=0.3)
    assert training == TRAINING.model_copy(update={"augment": training.augment})
    assert training.augment.flip


def test_a_complete_optional_block_can_be_a_choice():
    space = {"model.periodic": (None, {"spread": 8})}
    training = TRAINING.model_copy(update={"search": Search(space=space)})
    for model in (Mlp(kind="mlp"), Mlp(kind="mlp", periodic=Periodic(spread=2))):
        require_valid_space(model, training)
        assert apply_values(model, TRAINING, {"model.periodic": None})[0].periodic is None
        assert apply_values(model, TRAINING, {"model.periodic": {"spread": 8}})[0].periodic == Periodic(spread=8)
    assert search_space(Mlp(kind="mlp"), space) == space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.periodic": (None, {"spred": 8})}, "model.periodic"),
        ({"training": ({"epochs": 3},)}, "no searchable option 'training'"),
        ({"training.augment": ({},), "training.augment.flip": (True,)}, "training.augment.flip inside it"),
        ({"model.hiden": (1, 2)}, "'model.hiden'.*did you mean 'model.hidden'"),
        ({"training.search.trials": (1, 2)}, "'training.search.trials'"),
        ({"model.kind": ("mlp", "rnn")}, "'model.kind'"),
        ({"learning_rate": (1e-3, 1e-2)}, "did you mean 'training.learning_rate'"),
        ({"model.dropout": Range(low=0.0, high=1.5)}, "dropout"),
        ({"training.schedule": ("cosine", "sine")}, "schedule"),
    ],
)
def test_an_invalid_space_is_refused_before_training(space, message):
    training = TRAINING.model_copy(update={"search": Search(space=space)})
    with pytest.raises(RecipeInvalid, match=message):
        require_valid_space(Mlp(kind="mlp"), training)


def test_with_auto_a_path_applies_only_to_the_networks_that_have_it():
    valid_space = {"model.hidden": ((8,), (16,)), "training.batch_size": (16, 32)}
    require_valid_space(Auto(kind="auto"), TRAINING.model_copy(update={"search": Search(space=valid_space)}))
    assert search_space(Mlp(kind="mlp"), valid_space) == valid_space
    assert search_space(FtTransformer(kind="ft_transformer"), valid_space).keys() == {"training.batch_size"}
    assert search_space(Rnn(kind="rnn"), valid_space).keys() == {
        "training.batch_size"
    }  # its `hidden` is a single number
    for space, message in (
        ({"model.hiden": (8,)}, "no searchable option 'model.hiden'"),
        ({"model.cell": ("lstn",)}, "model.cell"),
    ):
        with pytest.raises(RecipeInvalid, match=message):
            require_valid_space(Auto(kind="auto"), TRAINING.model_copy(update={"search": Search(space=space)}))


def test_epochs_are_either_searched_or_fixed_and_choices_are_not_empty():
    training = TRAINING.model_copy(update={"search": Search(epochs=3, space={"training.epochs": (2, 4)})})
    with pytest.raises(RecipeInvalid, match=r"training\.epochs is searched"):
        require_valid_space(Mlp(kind="mlp"), training)
    with pytest.raises(ValidationError, match="at least 1 item"):
        Search(space={"model.dropout": ()})


def test_a_configured_space_replaces_the_default_one():
    space = {"model.dropout": (0.0, 0.5)}
    assert search_space(Cnn(kind="cnn"), space) == space
    assert {"training.learning_rate", "model.hidden"} <= search_space(Rnn(kind="rnn"), {}).keys()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}{list(layout.shape)}")
def test_every_default_network_reads_its_rows_and_has_a_valid_space(layout):
    for model in default_networks(layout):
        for path, choices in search_space(model, {}).items():
            for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
                apply_values(model, TRAINING, {path: value})
        if isinstance(model, BoostedTrees | TabularEnsemble):
            continue  # written as ONNX when they are fitted: tests/tasks/train/test_tree_training.py
        network = build_network(Blueprint(config=model, layout=layout, num_outputs=2)).eval()
        assert network(torch.ones(2, *layout.shape)).shape == (2, 2)


def test_no_trees_are_tried_for_a_quantile():
    """Trees and ensembles with trees predict means, and a recipe that names them is refused."""
    table = Layout(kind="flat", shape=(3,))
    quantile = default_networks(table, Score(name="quantile_loss", quantile=0.9))
    assert [model.kind for model in quantile] == ["tabm", "mlp", "ft_transformer"]
    assert default_networks(table, Score(name="mae")) == default_networks(table)


@pytest.mark.parametrize(("low", "high", "log"), [(2, 1, False), (1, 1, False), (0.0, 1.0, True)])
def test_an_empty_range_is_refused(low, high, log):
    with pytest.raises(ValueError, match=r"the range from .* is empty"):
        Range(low=low, high=high, log=log)
