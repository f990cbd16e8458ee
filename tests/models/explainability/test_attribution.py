"""Explanations: they add up, they repeat, they find a planted signal, and they see whether a network has learnt it.

Shapes: N rows, C channels, H height, W width, T steps, F values of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.attribution import Explanation, explain, explain_session
from bloomery.models.explainability.baselines import make_baseline
from bloomery.models.explainability.feature_groups import FeatureGroups, column_names, group_features, sum_by_group
from bloomery.models.explainability.feature_importance import group_importance, token_importance
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, fit, partial_statistics
from bloomery.models.features.input_config import (
    BooleanInput,
    CategoryInput,
    DateInput,
    Input,
    NumberInput,
    SequenceInput,
    SeriesInput,
)
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Mlp, Model, Rnn, Transformer
from bloomery.models.training.config import AttributionMethod, Loop
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import evaluate, train

METHODS = get_args(AttributionMethod)
LAYOUTS = {
    "image": Layout(kind="image", shape=(1, 8, 8)),
    "flat": Layout(kind="flat", shape=(8,)),
    "sequence": Layout(kind="sequence", shape=(10, 3)),
    "padded": Layout(kind="sequence", shape=(10, 3), is_padded=True),
    "tokens": Layout(kind="tokens", shape=(12,), num_tokens=300),
}
NETWORKS: dict[str, Model] = {
    "image": Cnn(kind="cnn", channels=(8,), hidden=16, dropout=0.0),
    "flat": Mlp(kind="mlp", hidden=(16,), dropout=0.0),
    "sequence": Rnn(kind="rnn", cell="gru", hidden=16, pooling="max", dropout=0.0),
    "padded": Rnn(kind="rnn", cell="gru", hidden=16, pooling="max", dropout=0.0),
    "tokens": Transformer(kind="transformer", width=16, num_layers=1, num_heads=2, dropout=0.0),
}
WORD = 7  # the token that decides


class Planted(NamedTuple):
    """Rows whose class stands in one place alone, and which positions that is."""

    x: torch.Tensor
    y: torch.Tensor
    is_signal: np.ndarray  # bool of x's shape


def noise(kind: str, num_rows: int) -> torch.Tensor:
    """Rows that say nothing."""
    layout, drawn = LAYOUTS[kind], torch.Generator().manual_seed(5)
    if kind == "tokens":
        lengths_N1 = torch.randint(4, 13, (num_rows, 1), generator=drawn)
        words_NT = torch.randint(10, 300, (num_rows, 12), generator=drawn)
        return (words_NT * (torch.arange(12) < lengths_N1)).float()
    x = torch.randn(num_rows, *layout.shape, generator=drawn)
    if layout.is_padded:
        there_NT = torch.arange(10) < torch.randint(6, 11, (num_rows, 1), generator=drawn)
        x = torch.where(there_NT[..., None], x, 0.0)
        x[..., -1] = there_NT
    return x


def planted(kind: str, num_rows: int = 400) -> Planted:
    x, y = noise(kind, num_rows), torch.arange(num_rows) % 2
    is_signal = torch.zeros_like(x, dtype=torch.bool)
    match kind:
        case "image":
            is_signal[:, 0, 2:4, 5:7] = True
        case "flat":
            is_signal[:, 3] = True
        case "tokens":
            is_signal[:, 2] = True
        case _:
            is_signal[:, 4, 1] = True
    size = 3.0 if kind in ("sequence", "padded") else 1.5
    strong = torch.where(y == 1, size, -size).view(-1, *[1] * (x.dim() - 1))
    if kind == "tokens":
        strong = torch.where(y == 1, WORD, x[:, 2])[:, None]
    return Planted(torch.where(is_signal, strong, x), y, is_signal.numpy())


@pytest.fixture(scope="module")
def learnt() -> Callable[..., nn.Module]:
    """A small network of the kind's own, trained once on planted rows, or on the same rows with shuffled labels."""
    known: dict[tuple[str, bool], nn.Module] = {}

    def make(kind: str, *, is_shuffled: bool = False) -> nn.Module:
        if (kind, is_shuffled) not in known:
            rows = planted(kind)
            torch.manual_seed(1)
            order = torch.randperm(len(rows.y)) if is_shuffled else torch.arange(len(rows.y))
            part = Examples(rows.x, rows.y[order], np.arange(len(rows.y)))
            network = build_network(Blueprint(config=NETWORKS[kind], layout=LAYOUTS[kind], num_outputs=2))
            train(network, part, part, Loop(epochs=15, batch_size=32, learning_rate=0.01), seed=0)
            assert is_shuffled or evaluate(network, part)[1] > 0.95, "only what was learnt can be explained"
            known[kind, is_shuffled] = network.eval()
        return known[kind, is_shuffled]

    return make


def explained(
    network: nn.Module, kind: str, num_rows: int, method: AttributionMethod | None = None, **more: int
) -> Explanation:
    """Rows of class 1, whose signal is there in every kind."""
    x = planted(kind).x[1 : 2 * num_rows : 2]
    still = make_baseline(x, LAYOUTS[kind], planted(kind).x)
    return explain(network, x, LAYOUTS[kind], still, method=method, **more)


def likeness(one: Explanation, other: Explanation) -> float:
    """The rank correlation of the sizes of weights, where there can be any."""
    is_free = one.weights != 0
    return float(spearmanr(np.abs(one.weights[is_free]), np.abs(other.weights[is_free])).statistic)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_method_finds_the_planted_signal(
    learnt: Callable[..., nn.Module], kind: str, method: AttributionMethod
) -> None:
    found = explained(learnt(kind), kind, 4, method, passes=32 if method == "integrated_gradients" else 300)
    assert found.weights.dtype == np.float32
    assert found.weights.shape == (4, *LAYOUTS[kind].shape)
    assert (found.target == 1).all()
    is_signal = planted(kind).is_signal[:4]
    inside = np.where(is_signal, found.weights, 0).sum(tuple(range(1, is_signal.ndim)))
    assert (inside > 0).all(), "the signal must speak for the class"
    units = group_features(LAYOUTS[kind])
    in_signal = np.unique(units.of[is_signal[0]])
    assert int(group_importance(found.weights, units).argmax()) in in_signal
    of_rows = np.abs(sum_by_group(found.weights, units)).reshape(4, -1).argmax(1)
    assert np.isin(of_rows, in_signal).sum() >= 3


@pytest.mark.parametrize("kind", LAYOUTS)
def test_integrated_gradients_add_up_to_the_rise_of_the_answer(learnt: Callable[..., nn.Module], kind: str) -> None:
    found = explained(learnt(kind), kind, 6, "integrated_gradients", passes=128)
    np.testing.assert_allclose(found.weights.reshape(6, -1).sum(1), found.rise, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", ["kernel_shap", "shapley"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_shapley_values_add_up_to_the_rise_of_the_answer(
    learnt: Callable[..., nn.Module], kind: str, method: AttributionMethod
) -> None:
    found = explained(learnt(kind), kind, 3, method, passes=300)
    np.testing.assert_allclose(found.weights.reshape(3, -1).sum(1), found.rise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_explanation_changes_when_weights_are_drawn_anew_or_labels_were_shuffled(
    learnt: Callable[..., nn.Module], kind: str
) -> None:
    """Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", sections 4 and 5."""
    network = learnt(kind)
    torch.manual_seed(3)
    anew = build_network(Blueprint(config=NETWORKS[kind], layout=LAYOUTS[kind], num_outputs=2)).eval()
    found, same = explained(network, kind, 20), explained(copy.deepcopy(network), kind, 20)
    is_signal = planted(kind).is_signal[:20]
    assert likeness(found, same) == pytest.approx(1)
    for other in (anew, learnt(kind, is_shuffled=True)):
        changed = explained(other, kind, 20)
        assert likeness(found, changed) < 0.8

        def share(weights: np.ndarray) -> float:
            return float(np.abs(weights[is_signal]).sum() / np.abs(weights).sum())

        assert share(found.weights) > 1.5 * share(changed.weights)


@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_repeats_and_leaves_the_network_and_the_random_numbers_alone(
    learnt: Callable[..., nn.Module], method: AttributionMethod
) -> None:
    network = copy.deepcopy(learnt("image")).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    first, second = (explained(network, "image", 2, method, seed=4, passes=80) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training


def test_rows_are_explained_alike_alone_and_together(learnt: Callable[..., nn.Module]) -> None:
    network, rows = learnt("padded"), planted("padded").x
    still = make_baseline(rows, LAYOUTS["padded"], rows)
    together = explain(network, rows, LAYOUTS["padded"], still)
    alone = explain(network, rows[7:8], LAYOUTS["padded"], still[7:8])
    np.testing.assert_allclose(together.weights[7:8], alone.weights, atol=1e-5)


@pytest.mark.parametrize("kind", ["padded", "tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_padding_has_no_weight(learnt: Callable[..., nn.Module], kind: str, method: AttributionMethod) -> None:
    found, x = explained(learnt(kind), kind, 6, method, passes=50), planted(kind).x[1:12:2]
    is_padding = (x == 0 if kind == "tokens" else (x[..., -1:] == 0).expand_as(x)).numpy()
    assert is_padding.any()
    assert (found.weights[is_padding] == 0).all()


@given(weights=st.lists(st.floats(-3, 3), min_size=6, max_size=6), seed=st.integers(0, 100))
@settings(max_examples=8, deadline=None)
def test_the_weights_of_a_linear_network_are_its_terms(weights: list[float], seed: int) -> None:
    layout = Layout(kind="flat", shape=(6,))
    network = nn.Linear(6, 1)
    network.weight.data[:] = torch.tensor(weights)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    still = make_baseline(x, layout, torch.randn(9, 6, generator=torch.Generator().manual_seed(seed + 1)))
    terms = (x - still).numpy() * network.weight.detach().numpy()
    methods: tuple[AttributionMethod, ...] = ("integrated_gradients", "occlusion", "shapley", "kernel_shap")
    for method in methods:
        found = explain(network, x, layout, still, method=method)
        np.testing.assert_allclose(found.weights, terms, atol=1e-2 if method == "kernel_shap" else 1e-4)


def test_shapley_values_are_those_of_captum(learnt: Callable[..., nn.Module]) -> None:
    from captum.attr import ShapleyValues

    network, x = learnt("flat"), planted("flat").x[:1].clone()
    still = make_baseline(x, LAYOUTS["flat"], planted("flat").x)

    def half_log_odds(rows: torch.Tensor) -> torch.Tensor:
        outputs = network(rows)
        return outputs - outputs.mean(1, keepdim=True)

    x[:, 6:] = still[:, 6:]
    with torch.no_grad():
        # By every one of the 720 orders of six columns, since the other two are as in the baseline.
        exact = ShapleyValues(half_log_odds).attribute(
            x, still, target=1, feature_mask=torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5]]), perturbations_per_eval=8
        )
    found = explain(network, x, LAYOUTS["flat"], still, method="shapley", passes=6 * 600, target=np.array([1]))
    np.testing.assert_allclose(found.weights[0, :6], exact[0, :6].numpy(), atol=0.03)


def test_a_target_of_ones_own_is_explained(learnt: Callable[..., nn.Module]) -> None:
    x = planted("flat").x[:4]
    still = make_baseline(x, LAYOUTS["flat"], planted("flat").x)
    first, second = (
        explain(learnt("flat"), x, LAYOUTS["flat"], still, target=np.full(4, place)).weights for place in (0, 1)
    )
    np.testing.assert_allclose(first, -second, atol=1e-5)  # two classes: what speaks for one speaks against the other


def test_an_onnx_file_is_explained_like_the_network_it_came_from(trained, exported, parts):
    x, layout, served = parts.test.x[:3], trained.blueprint.layout, create_session(exported)
    still = make_baseline(x, layout, x)
    of_file = explain_session(served, x.numpy(), layout, still.numpy(), passes=128)
    of_network = explain(trained.network, x, layout, still, method="shapley", passes=128)
    np.testing.assert_allclose(of_file.weights, of_network.weights, atol=1e-3)
    np.testing.assert_allclose(of_file.weights.sum((1, 2, 3)), of_file.rise, atol=1e-3)
    assert (of_file.target == run_session(served, x.numpy()).argmax(1)).all()


def test_gradients_are_refused_where_there_are_none() -> None:
    layout = Layout(kind="flat", shape=(2,), categories=((0, 5),))
    x = torch.tensor([[1.0, 0.3], [2.0, 0.1], [1.0, 0.2]])
    still = make_baseline(x, layout, x)
    assert still[:, 0].tolist() == [1, 1, 1]  # a category is compared with the most frequent one
    with pytest.raises(RecipeInvalid, match="numbers of categories"):
        explain(nn.Linear(2, 1), x, layout, still, method="integrated_gradients")
    assert explain(nn.Linear(2, 1), x, layout, still).weights[0, 0] == 0


def test_only_images_are_blurred() -> None:
    x = noise("image", 3)
    blurred = make_baseline(x, LAYOUTS["image"], x, "blur")
    assert blurred.shape == x.shape
    assert blurred.std() < 0.7 * x.std()
    flat = torch.full((1, 3, 8, 12), 2.5)
    still = make_baseline(flat, Layout(kind="image", shape=(3, 8, 12)), flat, "blur")
    torch.testing.assert_close(still, flat)
    with pytest.raises(RecipeInvalid, match="blurred"):
        make_baseline(noise("flat", 2), LAYOUTS["flat"], noise("flat", 2), "blur")


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
def test_every_pixel_belongs_to_one_of_at_most_64_patches(channels: int, height: int, width: int) -> None:
    units = group_features(Layout(kind="image", shape=(channels, height, width)))
    num_units = int(np.prod(units.grid))
    assert num_units <= 64
    assert np.array_equal(np.unique(units.of), np.arange(num_units))
    weights = np.random.default_rng(0).normal(size=(2, channels, height, width))
    np.testing.assert_allclose(sum_by_group(weights, units).sum((1, 2)), weights.sum((1, 2, 3)))


@given(st.integers(1, 300), st.integers(1, 12), st.booleans())
def test_steps_are_put_together_where_there_are_many(steps: int, values: int, is_padded: bool) -> None:
    units = group_features(Layout(kind="sequence", shape=(steps, values + is_padded), is_padded=is_padded))
    assert int(np.prod(units.grid)) <= 128 + values
    assert np.array_equal(np.unique(units.of), np.arange(int(np.prod(units.grid))))
    assert units.of[0, :values].tolist() == list(range(values))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    drawn = np.random.default_rng(0)
    return pa.table(
        {
            "id": list(range(40)),
            "age": drawn.normal(size=40),
            "pay": [None if row % 5 == 0 else float(row) for row in range(40)],
            "job": drawn.choice(["cook", "smith", "clerk"], 40).tolist(),
            "town": drawn.choice(["Ulm", "Bonn", "Kiel", "Hof"], 40).tolist(),
            "born": pa.array(drawn.integers(0, 9000, 40).astype("int32")).cast(pa.date32()),
            "is_old": (drawn.random(40) > 0.5).tolist(),
            "label": (drawn.random(40) > 0.5).astype(int).tolist(),
        }
    )


@pytest.fixture(scope="module")
def fitted(table: pa.Table) -> Encoder:
    features = Features(
        key="id",
        label="label",
        inputs=(
            NumberInput(kind="number", columns=("age", "pay"), missing="mean", indicator=True),
            CategoryInput(kind="category", columns=("job", "town")),
            DateInput(kind="date", columns=("born",), parts=("month", "day_of_week"), elapsed=True),
            BooleanInput(kind="boolean", columns=("is_old",)),
        ),
    )
    return fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, table.to_batches())]
    )


def test_a_column_owns_just_the_positions_that_change_with_it(table: pa.Table, fitted: Encoder) -> None:
    names = np.array(column_names(fitted))
    x = encode(fitted, table)
    assert len(names) == x.shape[1]
    for column in fitted.columns:
        shuffled = table.set_column(
            table.schema.get_field_index(column), column, table[column].take(list(range(39, -1, -1)))
        )
        changed = (encode(fitted, shuffled) != x).any(axis=0)
        assert set(names[changed]) == {column}
    units = group_features(fitted.layout, column_names(fitted))
    assert units.columns == fitted.columns
    assert sum_by_group(x, units).shape == (40, 6)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (SeriesInput(kind="series", columns=("warmth", "wind"), time="at", length=3), ("warmth", "wind")),
        (
            SeriesInput(kind="series", columns=("a", "b"), time="at", length=3, missing="mean", indicator=True),
            ("a", "b", "a", "b"),
        ),
        (SequenceInput(kind="sequence", steps=(("x1", "y1"), ("x2", "y2"))), ("x", "y")),
        (SequenceInput(kind="sequence", steps=(("up", "on"), ("to", "in"))), ("value 0", "value 1")),
        (SequenceInput(kind="sequence", column="points", length=3, width=2), ("value 0", "value 1")),
    ],
)
def test_the_values_of_a_step_have_the_names_of_their_columns(source: Input, names: tuple[str, ...]) -> None:
    drawn = np.random.default_rng(0).normal(size=(4, 6))
    table = pa.table(
        {"id": range(4), "at": range(4), "label": [0, 1, 0, 1], "points": drawn.tolist()}
        | {name: drawn[:, :3].tolist() for name in ("warmth", "wind", "a", "b")}
        | dict.fromkeys(("x1", "y1", "x2", "y2", "up", "on", "to", "in"), drawn[:, 0])
    )
    features = Features(key="id", label="label", inputs=(source,))
    encoder = fit(features, [one[STATISTICS][0].as_py() for one in partial_statistics(features, table.to_batches())])
    assert column_names(encoder) == names
    units = group_features(encoder.layout, names)
    assert units.grid == (encoder.layout.shape[0], 2)
    assert units.of.shape == encoder.layout.shape


def test_importance_is_the_mean_size_of_a_units_weight() -> None:
    units = FeatureGroups(np.array([0, 0, 1]), (2,), ("a", "b"))
    np.testing.assert_allclose(group_importance(np.array([[1.0, -1, 2], [1, 2, -4]]), units), [1.5, 3])


def test_the_weightiest_tokens_come_first_and_padding_not_at_all() -> None:
    tokens = np.array([[5, 6, 0], [6, 7, 0]], np.float32)
    found = token_importance(tokens, np.array([[1.0, -2, 9], [4, 1, 9]]))
    assert [(one.token, one.times, one.weight) for one in found] == [(6, 2, 3), (5, 1, 1), (7, 1, 1)]
    assert [one.token for one in token_importance(tokens, np.ones((2, 3)), least_times=2)] == [6]
