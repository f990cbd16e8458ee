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
# Student, teacher and layout. Widths differ, and kinds too where two kinds have comparable attention.
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


def random_tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_rotation(seed: int, size: int) -> torch.Tensor:
    return torch.linalg.qr(random_tensor(seed, size, size)).Q


def rows_of(layout: Layout) -> torch.Tensor:
    if layout.kind == "tokens":
        x = torch.randint(1, 20, (6, *layout.shape), generator=torch.Generator().manual_seed(0)).float()
        x[:, -2:] = 0  # padding in every row, which a student in training mode drops
        x[0, 3:] = 0
        return x
    x = random_tensor(0, 6, *layout.shape)
    if layout.is_padded:
        x[..., -1] = 1
        x[1, 5:] = 0
    return x


@given(SEEDS, st.integers(2, 9), st.integers(1, 7), st.floats(0.1, 10))
def test_rotated_and_scaled_features_have_no_loss(seed: int, num_rows: int, width: int, scale: float) -> None:
    x_BF = random_tensor(seed, num_rows, width)
    torch.testing.assert_close(similarity_loss(scale * x_BF @ random_rotation(seed, width), x_BF), torch.tensor(0.0))
    wider_BF = torch.cat([x_BF, torch.zeros(num_rows, 3)], dim=1)
    torch.testing.assert_close(similarity_loss(wider_BF, x_BF), torch.tensor(0.0))
    assert 0 <= similarity_loss(x_BF, random_tensor(seed + 1, num_rows, 4)) <= 4 * num_rows


def test_different_similarities_have_a_loss() -> None:
    """The student has equal features for the first two rows, the teacher for the last two."""
    student_BF, teacher_BF = torch.eye(2)[[0, 0, 1]], torch.eye(2)[[0, 1, 1]]
    share = 0.5**0.5
    first, middle = (share - 1) ** 2 + share**2, 2 * share**2
    torch.testing.assert_close(similarity_loss(student_BF, teacher_BF), torch.tensor(2 * first + middle))


@given(SEEDS, st.floats(0.1, 10))
def test_rotated_and_scaled_channels_have_the_same_attention_map(seed: int, scale: float) -> None:
    x_BCHW = random_tensor(seed, 3, 4, 5, 2)
    rotated_BCHW = torch.einsum("bchw,cd->bdhw", scale * x_BCHW, random_rotation(seed, 4))
    torch.testing.assert_close(attention_map_loss(rotated_BCHW, x_BCHW), torch.tensor(0.0))
    assert 0 <= attention_map_loss(x_BCHW, random_tensor(seed + 1, 3, 1, 5, 2)) <= 2 * 3


def test_attention_maps_are_compared_at_the_lower_resolution() -> None:
    coarse_BCHW = random_tensor(0, 2, 3, 2, 2)
    fine_BCHW = coarse_BCHW.repeat_interleave(3, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(attention_map_loss(fine_BCHW, coarse_BCHW), torch.tensor(0.0))
    assert attention_map_loss(fine_BCHW.flip(2), coarse_BCHW) > 0.01


@given(SEEDS)
def test_rotated_steps_have_the_same_relations_and_padding_is_ignored(seed: int) -> None:
    x_BTD, valid_BT = random_tensor(seed, 2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    valid_BT[0, 3:] = False
    padded_BTD = x_BTD.clone()
    padded_BTD[0, 3:] = 7
    torch.testing.assert_close(relation_loss(padded_BTD @ random_rotation(seed, 4), x_BTD, valid_BT), torch.tensor(0.0))
    other_BTD = random_tensor(seed + 1, 2, 5, 7)
    divergence = relation_loss(other_BTD, x_BTD, valid_BT)
    assert divergence > 0
    torch.testing.assert_close(relation_loss(other_BTD, padded_BTD, valid_BT), divergence)


def test_the_relation_loss_is_the_mean_divergence_of_a_step() -> None:
    student_BTD, teacher_BTD = random_tensor(0, 1, 3, 2), random_tensor(1, 1, 3, 5)
    student, teacher = ((x[0] @ x[0].T / x.shape[2] ** 0.5).softmax(1) for x in (student_BTD, teacher_BTD))
    expected = (teacher * (teacher.log() - student.log())).sum(1).mean()
    torch.testing.assert_close(relation_loss(student_BTD, teacher_BTD, torch.ones(1, 3, dtype=torch.bool)), expected)


def gradients_of(student: nn.Module, teacher: nn.Module, x: torch.Tensor, **weights: float) -> dict[str, torch.Tensor]:
    """The gradients of a copy of `student` after one batch."""
    student = copy.deepcopy(student).train()
    torch.manual_seed(0)  # of dropout
    learn = create_distiller(teacher, Distillation(weight=0.5, **weights))(student, Loop(epochs=1))
    y = torch.zeros(len(x), dtype=torch.int64)
    learn(x, lambda outputs, rows: F.cross_entropy(outputs, y[rows], reduction="sum"), float(len(x)))
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in (*student.modules(), *teacher.modules())
    )
    return {name: weight.grad for name, weight in student.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("weight_name", ["feature_weight", "attention_weight"])
@pytest.mark.parametrize("pair", PAIRS)
def test_feature_matching_changes_gradients_of_the_student_only(pair: str, weight_name: str) -> None:
    config, teacher_config, layout = PAIRS[pair]
    torch.manual_seed(1)
    student, teacher = (
        build_network(Blueprint(config=network_config, layout=layout, num_outputs=3))
        for network_config in (config, teacher_config)
    )
    x = rows_of(layout)
    without_loss, gradients, repeated = (
        gradients_of(student, teacher, x, **{weight_name: weight}) for weight in (0.0, 1.0, 1.0)
    )
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(torch.equal(gradients[name], repeated[name]) for name in gradients)
    assert any(
        not torch.allclose(gradients[name], without_loss[name]) for name in gradients if not name.startswith("head")
    )
    assert all(torch.equal(gradients[name], without_loss[name]) for name in gradients if name.startswith("head"))
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("kind", ["mlp", "rnn"])
def test_networks_without_attention_match_features(kind: str) -> None:
    layout = FLAT if kind == "mlp" else STEPS
    configs = {"mlp": Mlp(kind="mlp", hidden=(5,)), "rnn": Rnn(kind="rnn", hidden=5)}
    student, teacher = (
        build_network(Blueprint(config=config, layout=layout, num_outputs=3))
        for config in (configs[kind], configs[kind].model_copy(update={"hidden": (8,) if kind == "mlp" else 8}))
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


def test_pruned_and_rounded_networks_match_features(trained, splits) -> None:
    """Pruning and rounding replace the head and the maps; hooks of one step do not affect the next."""
    spec = CandidateSpec.model_validate(
        {"name": "small", "prune": 0.5, "factorize": 0.5, "quantize": "static", "quantization_aware": True}
    )
    loop = Loop(epochs=1, batch_size=128, augment=Augment(shift=1))
    compression = Compression(fine_tune=loop, distill=Distillation(feature_weight=1.0, attention_weight=1.0))
    fine_tuning = FineTuning(splits.train, splits.val, trained.network, compression)
    compressed = compress_network(trained.network, trained.blueprint, spec, fine_tuning)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in compressed.modules())


@pytest.mark.parametrize(
    ("student", "weights", "message"),
    [
        (Mlp(kind="mlp"), {"attention_weight": 0.5}, "a network of kind mlp has no known attention"),
        (ENCODER, {"attention_weight": 0.5}, "a transformer attends to steps or columns and a cnn to image positions"),
    ],
)
def test_impossible_attention_transfer_is_refused(trained, splits, student: Model, weights, message: str) -> None:
    spec = CandidateSpec.model_validate({"name": "student", "student": {"model": student.model_dump()}})
    fine_tuning = FineTuning(splits.train, splits.val, trained.network, Compression(distill=Distillation(**weights)))
    with pytest.raises(RecipeInvalid, match=message):
        compress_network(trained.network, trained.blueprint, spec, fine_tuning)


def test_a_map_of_one_position_has_no_attention(trained, splits) -> None:
    config = Cnn(kind="cnn", channels=(4, 4, 4), hidden=0)  # three blocks halve 8 x 8 pixels to one
    spec = CandidateSpec.model_validate({"name": "student", "student": {"model": config.model_dump()}})
    fine_tuning = FineTuning(
        splits.train, splits.val, trained.network, Compression(distill=Distillation(attention_weight=1.0))
    )
    with pytest.raises(RecipeInvalid, match="have a single position"):
        compress_network(trained.network, trained.blueprint, spec, fine_tuning)


@pytest.mark.parametrize(("size", "pooled_size"), [(5, 5), (7, 3), (8, 4), (9, 2), (4, 1)])
def test_attention_maps_are_pooled_like_adaptive_pooling(size: int, pooled_size: int) -> None:
    x_BCHW = random_tensor(0, 3, 2, size, size + 1)
    expected = F.adaptive_avg_pool2d(x_BCHW.square().mean(1), (pooled_size, pooled_size)).flatten(1)
    torch.testing.assert_close(_attention_map(x_BCHW, (pooled_size, pooled_size)), F.normalize(expected, dim=1))
