"""Feature matching: its losses, and the activations that they compare."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression, Distillation
from bloomery.models.compression.distillation import create_distiller
from bloomery.models.compression.feature_matching import (
    _attention_map,
    attention_map_loss,
    relation_loss,
    similarity_loss,
)
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, FtTransformer, Gpt, LeNet, Mlp, Model, ResNet, Rnn, Transformer
from bloomery.models.training.config import Augment, Loop

IMAGE = Layout(kind="image", shape=(1, 16, 16))
FLAT = Layout(kind="flat", shape=(6,))
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
STEPS = Layout(kind="sequence", shape=(9, 4), is_padded=True)
CNN = Cnn(kind="cnn", channels=(4, 6), hidden=8)
LENET = LeNet(kind="lenet", channels=(3, 5), hidden=7)
GPT = Gpt(kind="gpt", width=8, num_heads=2)
ENCODER = Transformer(kind="transformer", width=12, num_layers=1, num_heads=3)
TABLE = FtTransformer(kind="ft_transformer", width=8, num_heads=2, num_layers=2)
# Student, teacher, rows: of different widths, and of different kinds where two kinds have comparable attention.
PAIRS: dict[str, tuple[Model, Model, Layout]] = {
    "cnn": (CNN, CNN.model_copy(update={"channels": (8,), "hidden": 0}), IMAGE),
    "lenet": (LENET, CNN, IMAGE),
    "resnet": (ResNet(kind="resnet", width=2), LENET, IMAGE),
    "gpt": (GPT, ENCODER, TOKENS),
    "transformer": (ENCODER, GPT, TOKENS),
    "padded": (ENCODER, ENCODER.model_copy(update={"width": 6}), STEPS),
    "ft_transformer": (TABLE, TABLE.model_copy(update={"width": 4}), FLAT),
}
SEEDS = st.integers(0, 1000)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turn(seed: int, size: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(seed, size, size)).Q


def rows_of(layout: Layout) -> torch.Tensor:
    if layout.kind == "tokens":
        x = torch.randint(1, 20, (6, *layout.shape), generator=torch.Generator().manual_seed(0)).float()
        x[:, -2:] = 0  # padding in every row, which a student in training mode drops
        x[0, 3:] = 0
        return x
    x = drawn(0, 6, *layout.shape)
    if layout.is_padded:
        x[..., -1] = 1
        x[1, 5:] = 0
    return x


@given(SEEDS, st.integers(2, 9), st.integers(1, 7), st.floats(0.1, 10))
def test_rotated_and_scaled_features_have_no_loss(seed: int, num: int, width: int, stretch: float) -> None:
    x_BF = drawn(seed, num, width)
    torch.testing.assert_close(similarity_loss(stretch * x_BF @ turn(seed, width), x_BF), torch.tensor(0.0))
    wider_BF = torch.cat([x_BF, torch.zeros(num, 3)], dim=1)
    torch.testing.assert_close(similarity_loss(wider_BF, x_BF), torch.tensor(0.0))
    assert 0 <= similarity_loss(x_BF, drawn(seed + 1, num, 4)) <= 4 * num


def test_different_similarities_have_a_loss() -> None:
    """Computed by hand: the first two rows are equal, or the last two."""
    mine_BF, taught_BF = torch.eye(2)[[0, 0, 1]], torch.eye(2)[[0, 1, 1]]
    same = 0.5**0.5
    first, middle = (same - 1) ** 2 + same**2, 2 * same**2
    torch.testing.assert_close(similarity_loss(mine_BF, taught_BF), torch.tensor(2 * first + middle))


@given(SEEDS, st.floats(0.1, 10))
def test_rotated_and_scaled_channels_have_the_same_attention_map(seed: int, stretch: float) -> None:
    x_BCHW = drawn(seed, 3, 4, 5, 2)
    turned_BCHW = torch.einsum("bchw,cd->bdhw", stretch * x_BCHW, turn(seed, 4))
    torch.testing.assert_close(attention_map_loss(turned_BCHW, x_BCHW), torch.tensor(0.0))
    assert 0 <= attention_map_loss(x_BCHW, drawn(seed + 1, 3, 1, 5, 2)) <= 2 * 3


def test_attention_maps_are_compared_at_the_lower_resolution() -> None:
    coarse_BCHW = drawn(0, 2, 3, 2, 2)
    fine_BCHW = coarse_BCHW.repeat_interleave(3, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(attention_map_loss(fine_BCHW, coarse_BCHW), torch.tensor(0.0))
    assert attention_map_loss(fine_BCHW.flip(2), coarse_BCHW) > 0.01


@given(SEEDS)
def test_rotated_steps_have_the_same_relations_and_padding_is_ignored(seed: int) -> None:
    x_BTD, there_BT = drawn(seed, 2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    there_BT[0, 3:] = False
    padded_BTD = x_BTD.clone()
    padded_BTD[0, 3:] = 7
    torch.testing.assert_close(relation_loss(padded_BTD @ turn(seed, 4), x_BTD, there_BT), torch.tensor(0.0))
    other_BTD = drawn(seed + 1, 2, 5, 7)
    apart = relation_loss(other_BTD, x_BTD, there_BT)
    assert apart > 0
    torch.testing.assert_close(relation_loss(other_BTD, padded_BTD, there_BT), apart)


def test_the_relation_loss_is_the_mean_divergence_of_a_step() -> None:
    mine_BTD, taught_BTD = drawn(0, 1, 3, 2), drawn(1, 1, 3, 5)
    mine, taught = ((x[0] @ x[0].T / x.shape[2] ** 0.5).softmax(1) for x in (mine_BTD, taught_BTD))
    expected = (taught * (taught.log() - mine.log())).sum(1).mean()
    torch.testing.assert_close(relation_loss(mine_BTD, taught_BTD, torch.ones(1, 3, dtype=torch.bool)), expected)


def gradients_of(student: nn.Module, teacher: nn.Module, x: torch.Tensor, **weights: float) -> dict[str, torch.Tensor]:
    """The gradients of a copy of `student` after one batch."""
    student = copy.deepcopy(student).train()
    torch.manual_seed(0)  # of dropout
    learn = create_distiller(teacher, Distillation(weight=0.5, **weights))(student, Loop(epochs=1))
    y = torch.zeros(len(x), dtype=torch.int64)
    learn(x, lambda outputs, rows: F.cross_entropy(outputs, y[rows], reduction="sum"), float(len(x)))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in (*student.modules(), *teacher.modules()))
    return {name: weight.grad for name, weight in student.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("weight_name", ["feature_weight", "attention_weight"])
@pytest.mark.parametrize("pair", PAIRS)
def test_feature_matching_changes_gradients_of_the_student_only(pair: str, weight_name: str) -> None:
    config, teacher_config, layout = PAIRS[pair]
    torch.manual_seed(1)
    student, teacher = (
        build_network(Blueprint(config=one, layout=layout, num_outputs=3)) for one in (config, teacher_config)
    )
    x = rows_of(layout)
    without_loss, once, twice = (
        gradients_of(student, teacher, x, **{weight_name: weight}) for weight in (0.0, 1.0, 1.0)
    )
    assert all(torch.isfinite(gradient).all() for gradient in once.values())
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert any(not torch.allclose(once[name], without_loss[name]) for name in once if not name.startswith("head"))
    assert all(torch.equal(once[name], without_loss[name]) for name in once if name.startswith("head"))
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("kind", ["mlp", "rnn"])
def test_networks_without_attention_match_features(kind: str) -> None:
    layout = FLAT if kind == "mlp" else STEPS
    configs = {"mlp": Mlp(kind="mlp", hidden=(5,)), "rnn": Rnn(kind="rnn", hidden=5)}
    student, teacher = (
        build_network(Blueprint(config=one, layout=layout, num_outputs=3))
        for one in (configs[kind], configs[kind].model_copy(update={"hidden": (8,) if kind == "mlp" else 8}))
    )
    x = rows_of(layout)
    assert any(
        not torch.allclose(gradient, without_loss)
        for gradient, without_loss in zip(
            gradients_of(student, teacher, x, feature_weight=1.0).values(),
            gradients_of(student, teacher, x).values(),
            strict=True,
        )
    )


def test_pruned_and_rounded_networks_match_features(trained, parts) -> None:
    """Pruning and rounding replace the head and the maps; hooks of one step do not affect the next."""
    spec = CandidateSpec.model_validate(
        {"name": "small", "prune": 0.5, "factorize": 0.5, "quantize": "static", "quantization_aware": True}
    )
    loop = Loop(epochs=1, batch_size=128, augment=Augment(shift=1))
    compression = Compression(fine_tune=loop, distill=Distillation(feature_weight=1.0, attention_weight=1.0))
    fine_tuning = FineTuning(parts.train, parts.val, trained.network, compression)
    compressed = compress_network(trained.network, trained.blueprint, spec, fine_tuning)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in compressed.modules())


@pytest.mark.parametrize(
    ("student", "weights", "message"),
    [
        (Mlp(kind="mlp"), {"attention_weight": 0.5}, "a network of kind mlp has no known attention"),
        (ENCODER, {"attention_weight": 0.5}, "a transformer attends to steps or columns and a cnn to image positions"),
    ],
)
def test_impossible_attention_transfer_is_refused(trained, parts, student: Model, weights, message: str) -> None:
    spec = CandidateSpec.model_validate({"name": "student", "student": {"model": student.model_dump()}})
    fine_tuning = FineTuning(parts.train, parts.val, trained.network, Compression(distill=Distillation(**weights)))
    with pytest.raises(RecipeInvalid, match=message):
        compress_network(trained.network, trained.blueprint, spec, fine_tuning)


def test_a_map_of_one_position_has_no_attention(trained, parts) -> None:
    config = Cnn(kind="cnn", channels=(4, 4, 4), hidden=0)  # three blocks halve 8 x 8 pixels to one
    spec = CandidateSpec.model_validate({"name": "student", "student": {"model": config.model_dump()}})
    fine_tuning = FineTuning(
        parts.train, parts.val, trained.network, Compression(distill=Distillation(attention_weight=1.0))
    )
    with pytest.raises(RecipeInvalid, match="have a single position"):
        compress_network(trained.network, trained.blueprint, spec, fine_tuning)


@pytest.mark.parametrize(("num", "fewer"), [(5, 5), (7, 3), (8, 4), (9, 2), (4, 1)])
def test_attention_maps_are_pooled_like_adaptive_pooling(num: int, fewer: int) -> None:
    x_BCHW = drawn(0, 3, 2, num, num + 1)
    expected = F.adaptive_avg_pool2d(x_BCHW.square().mean(1), (fewer, fewer)).flatten(1)
    torch.testing.assert_close(_attention_map(x_BCHW, (fewer, fewer)), F.normalize(expected, dim=1))
