"""Attributions: they sum up, are deterministic, find a planted signal, and depend on what a network has learnt.

Shapes: N rows, C channels, H height, W width, T steps, F values of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.attribution import AttributionOptions, Explanation, explain, explain_session
from bloomery.models.explainability.baselines import make_baseline
from bloomery.models.explainability.feature_groups import group_features, sum_by_group
from bloomery.models.explainability.feature_importance import group_importance
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Mlp, Model, Rnn, Transformer
from bloomery.models.training.config import AttributionMethod, Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import evaluate, train
from tests.examples import examples

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
    """Rows whose class depends on a few positions only, and these positions."""

    x: torch.Tensor
    y: torch.Tensor
    is_signal: np.ndarray  # bool of x's shape


def noise(kind: str, num_rows: int) -> torch.Tensor:
    """Rows of noise."""
    layout, random = LAYOUTS[kind], torch.Generator().manual_seed(5)
    if kind == "tokens":
        lengths_N1 = torch.randint(4, 13, (num_rows, 1), generator=random)
        words_NT = torch.randint(10, 300, (num_rows, 12), generator=random)
        return (words_NT * (torch.arange(12) < lengths_N1)).float()
    x = torch.randn(num_rows, *layout.shape, generator=random)
    if layout.is_padded:
        valid_NT = torch.arange(10) < torch.randint(6, 11, (num_rows, 1), generator=random)
        x = torch.where(valid_NT[..., None], x, 0.0)
        x[..., -1] = valid_NT
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
    signal = torch.where(y == 1, size, -size).view(-1, *[1] * (x.dim() - 1))
    if kind == "tokens":
        signal = torch.where(y == 1, WORD, x[:, 2])[:, None]
    return Planted(torch.where(is_signal, signal, x), y, is_signal.numpy())


@pytest.fixture(scope="module")
def trained_network() -> Callable[..., nn.Module]:
    """Trains a small network for a kind of rows once, on planted rows or on the same rows with shuffled labels."""
    cache: dict[tuple[str, bool], nn.Module] = {}

    def make(kind: str, *, is_shuffled: bool = False) -> nn.Module:
        if (kind, is_shuffled) not in cache:
            rows = planted(kind)
            torch.manual_seed(1)
            order = torch.randperm(len(rows.y)) if is_shuffled else torch.arange(len(rows.y))
            training_rows = Examples(rows.x, rows.y[order], np.arange(len(rows.y)))
            network = build_network(Blueprint(config=NETWORKS[kind], layout=LAYOUTS[kind], num_outputs=2))
            train(
                network, TrainingData(training_rows, training_rows), Loop(epochs=15, batch_size=32, learning_rate=0.01)
            )
            assert is_shuffled or evaluate(network, training_rows)[1] > 0.95, "an untrained network cannot be explained"
            cache[kind, is_shuffled] = network.eval()
        return cache[kind, is_shuffled]

    return make


def explain_planted(
    network: nn.Module, kind: str, num_rows: int, method: AttributionMethod | None = None, **options: int
) -> Explanation:
    """Explains rows of class 1, which have a signal in every kind."""
    x = planted(kind).x[1 : 2 * num_rows : 2]
    baseline = make_baseline(x, LAYOUTS[kind], planted(kind).x)
    return explain(network, x, LAYOUTS[kind], baseline, AttributionOptions(method, **options))


def rank_correlation(first: Explanation, second: Explanation) -> float:
    """The rank correlation of absolute weights, where they are not zero."""
    is_free = first.weights != 0
    return float(spearmanr(np.abs(first.weights[is_free]), np.abs(second.weights[is_free])).statistic)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_method_finds_the_planted_signal(
    trained_network: Callable[..., nn.Module], kind: str, method: AttributionMethod
) -> None:
    explanation = explain_planted(
        trained_network(kind), kind, 4, method, num_passes=32 if method == "integrated_gradients" else 300
    )
    assert explanation.weights.dtype == np.float32
    assert explanation.weights.shape == (4, *LAYOUTS[kind].shape)
    assert (explanation.target == 1).all()
    is_signal = planted(kind).is_signal[:4]
    signal_weight = np.where(is_signal, explanation.weights, 0).sum(tuple(range(1, is_signal.ndim)))
    assert (signal_weight > 0).all(), "the signal must have positive weights"
    groups = group_features(LAYOUTS[kind])
    signal_groups = np.unique(groups.group_of[is_signal[0]])
    assert int(group_importance(explanation.weights, groups).argmax()) in signal_groups
    top_groups = np.abs(sum_by_group(explanation.weights, groups)).reshape(4, -1).argmax(1)
    assert np.isin(top_groups, signal_groups).sum() >= 3


@pytest.mark.parametrize("kind", LAYOUTS)
def test_integrated_gradients_sum_up_to_the_change_of_the_output(
    trained_network: Callable[..., nn.Module], kind: str
) -> None:
    explanation = explain_planted(trained_network(kind), kind, 6, "integrated_gradients", num_passes=128)
    np.testing.assert_allclose(
        explanation.weights.reshape(6, -1).sum(1), explanation.output_change, rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("method", ["kernel_shap", "shapley"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_shapley_values_sum_up_to_the_change_of_the_output(
    trained_network: Callable[..., nn.Module], kind: str, method: AttributionMethod
) -> None:
    explanation = explain_planted(trained_network(kind), kind, 3, method, num_passes=300)
    np.testing.assert_allclose(
        explanation.weights.reshape(3, -1).sum(1), explanation.output_change, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", LAYOUTS)
def test_random_weights_and_shuffled_labels_change_the_explanation(
    trained_network: Callable[..., nn.Module], kind: str
) -> None:
    """Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", sections 4 and 5."""
    network = trained_network(kind)
    torch.manual_seed(3)
    untrained = build_network(Blueprint(config=NETWORKS[kind], layout=LAYOUTS[kind], num_outputs=2)).eval()
    explanation, repeated = explain_planted(network, kind, 20), explain_planted(copy.deepcopy(network), kind, 20)
    is_signal = planted(kind).is_signal[:20]
    assert rank_correlation(explanation, repeated) == pytest.approx(1)
    for changed_network in (untrained, trained_network(kind, is_shuffled=True)):
        changed = explain_planted(changed_network, kind, 20)
        assert rank_correlation(explanation, changed) < 0.8

        def share(weights: np.ndarray) -> float:
            return float(np.abs(weights[is_signal]).sum() / np.abs(weights).sum())

        assert share(explanation.weights) > 1.5 * share(changed.weights)


@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_is_deterministic_and_has_no_side_effects(
    trained_network: Callable[..., nn.Module], method: AttributionMethod
) -> None:
    network = copy.deepcopy(trained_network("image")).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    first, second = (explain_planted(network, "image", 2, method, seed=4, num_passes=80) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training


def test_a_row_has_the_same_explanation_alone_and_in_a_batch(trained_network: Callable[..., nn.Module]) -> None:
    network, rows = trained_network("padded"), planted("padded").x
    baseline = make_baseline(rows, LAYOUTS["padded"], rows)
    batch = explain(network, rows, LAYOUTS["padded"], baseline)
    single = explain(network, rows[7:8], LAYOUTS["padded"], baseline[7:8])
    np.testing.assert_allclose(batch.weights[7:8], single.weights, atol=1e-5)


@pytest.mark.parametrize("kind", ["padded", "tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_padding_has_no_weight(trained_network: Callable[..., nn.Module], kind: str, method: AttributionMethod) -> None:
    explanation, x = explain_planted(trained_network(kind), kind, 6, method, num_passes=50), planted(kind).x[1:12:2]
    is_padding = (x == 0 if kind == "tokens" else (x[..., -1:] == 0).expand_as(x)).numpy()
    assert is_padding.any()
    assert (explanation.weights[is_padding] == 0).all()


@given(weights=st.lists(st.floats(-3, 3), min_size=6, max_size=6), seed=st.integers(0, 100))
@settings(max_examples=examples(8), deadline=None)
def test_the_weights_of_a_linear_network_are_its_terms(weights: list[float], seed: int) -> None:
    layout = Layout(kind="flat", shape=(6,))
    network = nn.Linear(6, 1)
    network.weight.data[:] = torch.tensor(weights)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    baseline = make_baseline(x, layout, torch.randn(9, 6, generator=torch.Generator().manual_seed(seed + 1)))
    terms = (x - baseline).numpy() * network.weight.detach().numpy()
    methods: tuple[AttributionMethod, ...] = ("integrated_gradients", "occlusion", "shapley", "kernel_shap")
    for method in methods:
        explanation = explain(network, x, layout, baseline, AttributionOptions(method))
        np.testing.assert_allclose(explanation.weights, terms, atol=1e-2 if method == "kernel_shap" else 1e-4)


def test_shapley_values_agree_with_captum(trained_network: Callable[..., nn.Module]) -> None:
    from captum.attr import ShapleyValues

    network, x = trained_network("flat"), planted("flat").x[:1].clone()
    baseline = make_baseline(x, LAYOUTS["flat"], planted("flat").x)

    def half_log_odds(rows: torch.Tensor) -> torch.Tensor:
        outputs = network(rows)
        return outputs - outputs.mean(1, keepdim=True)

    x[:, 6:] = baseline[:, 6:]
    with torch.no_grad():
        # Over all 720 orders of six columns, since the other two equal the baseline.
        exact = ShapleyValues(half_log_odds).attribute(
            x, baseline, target=1, feature_mask=torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5]]), perturbations_per_eval=8
        )
    explanation = explain(
        network, x, LAYOUTS["flat"], baseline, AttributionOptions("shapley", target=np.array([1]), num_passes=6 * 600)
    )
    np.testing.assert_allclose(explanation.weights[0, :6], exact[0, :6].numpy(), atol=0.03)


def test_another_target_can_be_explained(trained_network: Callable[..., nn.Module]) -> None:
    x = planted("flat").x[:4]
    baseline = make_baseline(x, LAYOUTS["flat"], planted("flat").x)
    first, second = (
        explain(
            trained_network("flat"), x, LAYOUTS["flat"], baseline, AttributionOptions(target=np.full(4, target))
        ).weights
        for target in (0, 1)
    )
    np.testing.assert_allclose(first, -second, atol=1e-5)  # of two classes


def test_an_onnx_file_and_its_network_have_the_same_explanation(trained, exported, splits):
    x, layout, session = splits.test.x[:3], trained.blueprint.layout, create_session(exported)
    baseline = make_baseline(x, layout, x)
    from_session = explain_session(session, x.numpy(), layout, baseline.numpy(), AttributionOptions(num_passes=128))
    from_network = explain(trained.network, x, layout, baseline, AttributionOptions("shapley", num_passes=128))
    np.testing.assert_allclose(from_session.weights, from_network.weights, atol=1e-3)
    np.testing.assert_allclose(from_session.weights.sum((1, 2, 3)), from_session.output_change, atol=1e-3)
    assert (from_session.target == run_session(session, x.numpy()).argmax(1)).all()


def test_integrated_gradients_need_gradients() -> None:
    layout = Layout(kind="flat", shape=(2,), categories=((0, 5),))
    x = torch.tensor([[1.0, 0.3], [2.0, 0.1], [1.0, 0.2]])
    baseline = make_baseline(x, layout, x)
    assert baseline[:, 0].tolist() == [1, 1, 1]  # the most frequent category
    with pytest.raises(RecipeInvalid, match="category indices"):
        explain(nn.Linear(2, 1), x, layout, baseline, AttributionOptions("integrated_gradients"))
    assert explain(nn.Linear(2, 1), x, layout, baseline).weights[0, 0] == 0


def test_only_images_can_be_blurred() -> None:
    x = noise("image", 3)
    blurred = make_baseline(x, LAYOUTS["image"], x, "blur")
    assert blurred.shape == x.shape
    assert blurred.std() < 0.7 * x.std()
    flat = torch.full((1, 3, 8, 12), 2.5)
    baseline = make_baseline(flat, Layout(kind="image", shape=(3, 8, 12)), flat, "blur")
    torch.testing.assert_close(baseline, flat)
    with pytest.raises(RecipeInvalid, match="`blur` does not apply"):
        make_baseline(noise("flat", 2), LAYOUTS["flat"], noise("flat", 2), "blur")
