"""Knowledge distillation: its loss, and learning from soft targets only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression, Distillation, Pruning, Student
from bloomery.models.compression.distillation import (
    add_unlabelled,
    create_distiller,
    set_target_loss,
    soft_target_loss,
)
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.blueprint import num_parameters
from bloomery.models.networks.config import Cnn, Mlp
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import Placement, evaluate, predict, train


def logits(seed: int, classes: int = 4) -> torch.Tensor:
    return torch.randn(5, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_at_the_temperature_and_zero_for_equal_outputs(temperature):
    student_BK, teacher_BK = logits(0), logits(1)
    shares = (teacher_BK / temperature).softmax(1)
    expected = temperature**2 * (shares * (shares.log() - (student_BK / temperature).log_softmax(1))).sum()
    torch.testing.assert_close(soft_target_loss(student_BK, teacher_BK, temperature), expected)
    torch.testing.assert_close(
        soft_target_loss(student_BK, student_BK, temperature), torch.tensor(0.0), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        soft_target_loss(student_BK, student_BK + 3, temperature), torch.tensor(0.0), atol=1e-4, rtol=0
    )


def test_the_loss_of_a_regression_is_the_squared_difference():
    student_BK, teacher_BK = logits(0, 1), logits(1, 1)
    torch.testing.assert_close(soft_target_loss(student_BK, teacher_BK, 4.0), (student_BK - teacher_BK).square().sum())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weight_divides_the_gradient_between_labels_and_soft_targets(weight):
    teacher, student = nn.Linear(3, 4), nn.Linear(3, 4)
    x, y = torch.randn(6, 3), torch.arange(6) % 4
    learn = create_distiller(teacher, Distillation(weight=weight, temperature=2.0))(student, Loop(epochs=1))
    learn(x, lambda outputs, rows: F.cross_entropy(outputs, y[rows], reduction="sum"), 6.0)
    gradient = student.weight.grad.clone()
    student.zero_grad()
    outputs = student(x)
    loss = (1 - weight) * F.cross_entropy(outputs, y, reduction="sum")
    loss = loss + weight * soft_target_loss(outputs, teacher(x).detach(), 2.0)
    (loss / 6).backward()
    torch.testing.assert_close(gradient, student.weight.grad)
    assert teacher.weight.grad is None


def test_unlabelled_rows_teach_by_the_teachers_outputs(trained, splits):
    """A student with few labels makes fewer errors with the teacher's outputs for unlabelled rows."""
    labelled = Examples(splits.train.x[:60], splits.train.y[:60], splits.train.key[:60])
    loop = Loop(epochs=12, batch_size=32, learning_rate=3e-3)
    blueprint = trained.blueprint.model_copy(update={"config": Mlp(kind="mlp", hidden=(32,))})
    errors = []
    for rows, weight in ((labelled, 0.0), (add_unlabelled(labelled, splits.train.x[60:]), 0.9)):
        set_deterministic(seed=0, num_threads=1)
        spec = CandidateSpec(name="student", student=Student(model=blueprint.config, training=loop))
        compression = Compression(distill=Distillation(weight=weight))
        student = compress_network(
            trained.network, blueprint, spec, FineTuning(rows, splits.val, trained.network, compression)
        )
        errors.append(1 - evaluate(student, splits.test)[1])
    assert errors[1] < errors[0] / 2


def test_unlabelled_rows_need_a_classification():
    rows = Examples(torch.zeros(2, 3), torch.zeros(2), np.arange(2))
    with pytest.raises(ValueError, match="need a classification"):
        add_unlabelled(rows, torch.zeros(1, 3))


class RecordingNetwork(nn.Module):
    """A linear network that appends the inputs and the outputs of each pass to lists, which several networks share."""

    def __init__(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self._inputs, self._outputs = inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs_BK = self.linear(x.flatten(1))
        self._inputs.append(x.detach().clone())
        self._outputs.append(outputs_BK.detach())
        return outputs_BK


def record_passes(rows: Examples, loop: Loop) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs and outputs of all passes of a student and its teacher."""
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    student, teacher = (RecordingNetwork(inputs, outputs) for _ in range(2))
    distiller = create_distiller(teacher, Distillation())
    train(student, TrainingData(rows, rows), loop, placement=Placement(parallelize=distiller))
    return inputs, outputs


def test_student_and_teacher_see_the_same_augmented_rows(splits):
    """Both get the same mixture of two images."""
    rows = Examples(*(column[:64] for column in splits.train))
    inputs, _ = record_passes(rows, Loop(epochs=1, batch_size=64, augment=Augment(shift=2, mixup=0.4)))
    assert torch.equal(inputs[0], inputs[1])
    assert not torch.equal(inputs[0], rows.x)


def test_student_and_teacher_run_in_the_precision_of_the_loop(splits):
    """Regression test: both ran in float32, which halves the speed of processors with AMX."""
    rows = Examples(*(column[:64] for column in splits.train))
    _, outputs = record_passes(rows, Loop(epochs=1, batch_size=64, precision="bf16"))
    dtypes = [outputs_BK.dtype for outputs_BK in outputs]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]  # the last one is the evaluation


def test_a_teacher_is_channels_last_during_distillation_only(trained, splits):
    strides: list[bool] = []
    first = next(
        module for module in trained.network.modules() if isinstance(module, nn.Conv2d) and module.in_channels > 1
    )
    hook = first.register_forward_hook(lambda *_: strides.append(first.weight.is_contiguous()))
    compress(trained, splits, prune=0.5)
    hook.remove()
    assert not strides[-1]
    assert first.weight.is_contiguous()


def compress(trained, splits, **fields) -> nn.Module:
    compression = Compression(fine_tune=Loop(epochs=6, learning_rate=3e-3), **fields.pop("compression", {}))
    spec = CandidateSpec.model_validate({"name": "small", **fields})
    return compress_network(
        trained.network, trained.blueprint, spec, FineTuning(splits.train, splits.val, trained.network, compression)
    )


def test_a_pruned_network_recovers_its_accuracy(trained, splits):
    before_fine_tuning = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5)).network
    pruned = compress(trained, splits, prune=0.5)
    assert num_parameters(pruned) < 0.4 * num_parameters(trained.network)
    assert evaluate(pruned, splits.test)[1] > evaluate(before_fine_tuning, splits.test)[1] + 0.1
    assert not pruned.training


def test_a_candidate_does_not_depend_on_those_built_before_it(trained, splits):
    x = splits.test.x
    outputs = predict(compress(trained, splits, prune=0.5), x)
    torch.rand(7)
    compress(trained, splits, student={"model": {"kind": "mlp", "hidden": [4]}})
    assert torch.equal(predict(compress(trained, splits, prune=0.5), x), outputs)


def test_a_student_replaces_the_network_and_is_pruned_and_factorized(trained, splits):
    student = {"model": {"kind": "mlp", "hidden": [256, 128], "norm": "none"}}
    full = compress(trained, splits, student=student)
    halved = compress(trained, splits, student=student, prune=Pruning(ratio=0.5).model_dump())
    thin = compress(trained, splits, student=student, prune=0.5, factorize=0.5)
    assert num_parameters(thin) < num_parameters(halved) < num_parameters(full)
    assert isinstance(Cnn(kind="cnn"), type(trained.blueprint.config))
    assert all(evaluate(module, splits.test)[1] > 0.75 for module in (full, halved, thin))


def test_the_loss_of_sets_of_labels_is_the_mean_divergence_of_each_label():
    student_BK, teacher_BK = logits(0), logits(1)
    p_BK, q_BK = (teacher_BK / 2).sigmoid(), (student_BK / 2).sigmoid()
    divergence = p_BK * (p_BK / q_BK).log() + (1 - p_BK) * ((1 - p_BK) / (1 - q_BK)).log()
    torch.testing.assert_close(set_target_loss(student_BK, teacher_BK, 2.0), 4 * divergence.mean(dim=1).sum())
    # Unlike classes, labels do not ignore a shift of all logits.
    assert set_target_loss(student_BK, student_BK, 2.0) == 0
    assert set_target_loss(student_BK, student_BK + 3, 2.0) > 0.1


def test_a_student_of_sets_of_labels_learns_from_the_teacher_and_the_labels():
    set_deterministic(0, 1)
    x = torch.randn(64, 4)
    y = (x[:, :3] > 0).float()
    examples = Examples(x, y, np.arange(64))
    teacher, student = (nn.Linear(4, 3) for _ in range(2))
    teacher.weight.data, teacher.bias.data = torch.eye(3, 4) * 5, torch.zeros(3)
    placement = Placement(parallelize=create_distiller(teacher, Distillation(weight=0.5), distance=set_target_loss))
    loop = Loop(epochs=20, batch_size=16, learning_rate=0.05)
    history = train(student, TrainingData(examples, examples), loop, placement=placement)
    assert history[-1].val_score > 0.8  # subset accuracy
    assert history[-1].val_loss < history[0].val_loss
