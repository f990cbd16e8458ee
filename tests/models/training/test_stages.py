"""Training in stages: options of each stage, self-supervised objectives, and kills inside any stage."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Gpt, Transformer
from bloomery.models.training.config import Checkpoints, Loop, Training
from bloomery.models.training.data.batches import Examples, TrainingData, join_rows
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import EpochResult, Placement, StepProgress, TrainingHooks, TrainingState
from bloomery.models.training.pretraining import build_objective, repeatable_random
from bloomery.models.training.stage_setup import require_valid_layers, stage_setup
from bloomery.models.training.stages import (
    StageSetup,
    _restore_better_start,
    _Start,
    plan_epochs,
    train_in_stages,
)

IMAGES = Layout(kind="image", shape=(1, 8, 8))
TOKENS = Layout(kind="tokens", shape=(6,), num_tokens=12)
CNN = Cnn(kind="cnn", channels=(4, 8), hidden=16, dropout=0.1)
TRANSFORMER = Transformer(kind="transformer", width=16, num_heads=2, num_layers=2, dropout=0.1)
GPT = Gpt(kind="gpt", width=8, num_heads=2)


def images(num_rows: int, seed: int) -> Examples:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (num_rows,), generator=random)
    return Examples(torch.rand(num_rows, 1, 8, 8, generator=random), y, y.numpy())


def texts(num_rows: int, seed: int) -> Examples:
    """Each text repeats a pair of tokens, so that a masked token follows from the others; the class is the first."""
    random = torch.Generator().manual_seed(seed)
    pair = torch.randint(1, 12, (num_rows, 2), generator=random)
    return Examples(pair.repeat(1, 3).float(), pair[:, 0] % 3, np.arange(num_rows))


class Killed(Exception):
    pass


def run(
    config: Cnn | Transformer, training: Training, folder: Path | None = None, killed_at: int | None = None
) -> tuple[torch.nn.Module, list[tuple[float, ...]], list[StepProgress]]:
    set_deterministic(seed=0, num_threads=1)
    rows, layout = (images, IMAGES) if config.kind == "cnn" else (texts, TOKENS)
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)
    network = build_network(blueprint)
    data = TrainingData(rows(60, 1), rows(20, 2), seed=1)
    num_saved = 0

    def save(state: TrainingState) -> None:
        nonlocal num_saved
        num_saved += 1
        if num_saved == killed_at:
            raise Killed

    steps: list[StepProgress] = []
    hooks = TrainingHooks(on_step=steps.append, save=save, stage_folder=folder)
    set_up = stage_setup(training, blueprint, data, join_rows(data.train, rows(20, 3)))
    history = train_in_stages(network, training, set_up, placement=Placement(), hooks=hooks)
    return network, [tuple(epoch) for epoch in history], steps


HEAD_THEN_ALL = Training(
    batch_size=16,
    checkpoints=Checkpoints(every_steps=2),
    stages=({"epochs": 2, "freeze": "body", "learning_rate": 0.01}, {"epochs": 2, "discount": 0.5, "ema": 0.9}),
)
MASKED = Training(
    batch_size=16,
    checkpoints=Checkpoints(every_steps=2),
    stages=({"epochs": 2, "objective": "masked_tokens"}, {"epochs": 1, "freeze": 1}, {"epochs": 2}),
)
CONTRASTIVE = Training(
    batch_size=16,
    checkpoints=Checkpoints(every_steps=2),
    stages=({"epochs": 2, "objective": "contrastive"}, {"epochs": 2}),
)


@pytest.mark.parametrize(
    ("config", "training"),
    [
        pytest.param(CNN, HEAD_THEN_ALL, id="head-then-all"),
        pytest.param(CNN, CONTRASTIVE, id="contrastive-images"),
        pytest.param(TRANSFORMER, MASKED, id="masked-tokens"),
        pytest.param(TRANSFORMER, CONTRASTIVE, id="contrastive-text", marks=pytest.mark.nightly),
    ],
)
def test_a_training_killed_in_any_stage_ends_with_the_same_bits(config, training, tmp_path: Path):
    expected, expected_history, _ = run(config, training)
    for killed_at in (3, 11, 14, 18):
        folder = tmp_path / str(killed_at)
        with pytest.raises(Killed):
            run(config, training, folder, killed_at)
        network, history, _ = run(config, training, folder)
        assert history == expected_history
        for name, tensor in expected.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor), (killed_at, name)


def test_a_training_killed_after_its_last_stage_trains_nothing_again(tmp_path: Path):
    expected, expected_history, _ = run(CNN, HEAD_THEN_ALL, tmp_path)
    network, history, _ = run(CNN, HEAD_THEN_ALL, tmp_path, killed_at=1)
    assert history == expected_history
    assert not network.training
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def test_each_stage_overrides_options_and_numbers_go_on():
    first, second = HEAD_THEN_ALL.parts
    assert (first.freeze, first.learning_rate, second.learning_rate, second.ema) == (("body",), 0.01, 0.003, 0.9)
    assert (first.stages, HEAD_THEN_ALL.num_epochs, second.batch_size) == ((), 4, 16)
    _, history, _ = run(CNN, HEAD_THEN_ALL)
    assert [epoch[0] for epoch in history] == [1, 2, 3, 4]
    _, history, _ = run(CNN, CONTRASTIVE)
    assert [epoch[0] for epoch in history] == [3, 4]
    plan = plan_epochs(MASKED, texts(120, 1), texts(160, 2))
    assert [epoch.last_step for epoch in plan] == [10, 20, 28, 36, 44]
    assert [epoch.num_rows for epoch in plan] == [160, 160, 120, 120, 120]


def test_steps_go_on_over_stages():
    _, _, steps = run(CNN, Training(batch_size=2, stages=({"epochs": 1}, {"epochs": 2})))
    assert [(step.number, step.epoch, step.num_steps) for step in steps] == [(80, 3, 90)]


def test_a_frozen_stage_trains_the_head_and_the_next_stage_all_again():
    set_deterministic(seed=0, num_threads=1)
    before = build_network(Blueprint(config=CNN, layout=IMAGES, num_outputs=3)).state_dict()
    network, _, _ = run(CNN, HEAD_THEN_ALL.model_copy(update={"stages": HEAD_THEN_ALL.stages[:1]}))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    network, _, _ = run(CNN, HEAD_THEN_ALL)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not torch.equal(network.hidden.weight, before["hidden.weight"])


def test_a_stage_without_a_better_epoch_changes_no_weight():
    stages = HEAD_THEN_ALL.stages[:1], (HEAD_THEN_ALL.stages[0], {"epochs": 2, "learning_rate": 10.0})
    before, history, _ = run(CNN, Training(batch_size=16, stages=stages[0]))
    after, longer, _ = run(CNN, Training(batch_size=16, stages=stages[1]))
    assert min(epoch[2] for epoch in longer[2:]) > min(epoch[2] for epoch in history)
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in after.state_dict().items())
    last, _, _ = run(CNN, Training(batch_size=16, best_by="last", stages=stages[1]))
    assert not torch.equal(last.hidden.weight, before.hidden.weight)


def test_an_epoch_as_good_as_the_start_of_a_stage_is_no_better():
    rows = images(8, 1)
    network = torch.nn.Linear(1, 1)
    started = {name: torch.zeros_like(weight) for name, weight in network.state_dict().items()}
    setup = StageSetup(network, Loop(epochs=1, best_by="score"), TrainingData(rows, rows))
    start = _Start(started, EpochResult(0, math.nan, 0.6, 0.75, 0.0))
    _restore_better_start(network, start, [EpochResult(1, 0.1, 0.5, 0.875, 0.1)], setup)
    assert not torch.equal(network.weight, started["weight"])
    _restore_better_start(network, start, [EpochResult(1, 0.1, 0.5, 0.75, 0.1)], setup)
    assert torch.equal(network.weight, started["weight"])


def test_masked_tokens_are_learnt_and_leave_no_trace_in_the_network():
    training = Training(batch_size=16, stages=({"epochs": 12, "objective": "masked_tokens"}, {"epochs": 1}))
    losses = []
    blueprint = Blueprint(config=TRANSFORMER, layout=TOKENS, num_outputs=3)
    set_deterministic(seed=0, num_threads=1)
    network = build_network(blueprint)
    names = set(network.state_dict())
    data = TrainingData(texts(600, 1), texts(100, 2))
    hooks = TrainingHooks(on_epoch=lambda epoch: losses.append(epoch.val_loss))
    set_up = stage_setup(training, blueprint, data, data.train)
    train_in_stages(network, training, set_up, placement=Placement(), hooks=hooks)
    assert losses[11] < 0.5 * losses[0]
    assert set(network.state_dict()) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_evaluation_of_an_objective_repeats_and_keeps_the_random_state():
    blueprint = Blueprint(config=TRANSFORMER, layout=TOKENS, num_outputs=3)
    data = TrainingData(texts(64, 1), texts(40, 2))
    for training in (MASKED, CONTRASTIVE):
        network = build_network(blueprint)
        module = stage_setup(training, blueprint, data, data.train)(network, 0, training.parts[0]).module.eval()
        state = torch.get_rng_state()
        losses = module(data.val.x)
        assert losses.shape == (40,)
        assert torch.equal(module(data.val.x), losses)
        assert torch.equal(torch.get_rng_state(), state)


def build_contrastive(network: torch.nn.Module, layout: Layout, **options: object) -> torch.nn.Module:
    return build_objective("contrastive", network, layout, Training(**options))


def test_views_of_images_differ_whatever_else_is_augmented():
    network = build_network(Blueprint(config=CNN.model_copy(update={"dropout": 0.0}), layout=IMAGES, num_outputs=3))
    x = images(8, 1).x
    for augment in ({"mixup": 0.3}, {"drop_tokens": 0.3}, {"flip": True}, {}):
        assert not build_contrastive(network, IMAGES, augment=augment).draws_equal_views(x)


@pytest.mark.parametrize("config", [TRANSFORMER, GPT], ids=lambda config: config.kind)
def test_text_without_dropout_has_no_two_views(config: Transformer | Gpt):
    rows, dropout = texts(8, 1), config.model_copy(update={"dropout": 0.1})
    no_dropout = config.model_copy(update={"dropout": 0.0})
    blueprint = Blueprint(config=no_dropout, layout=TOKENS, num_outputs=3)
    with pytest.raises(RecipeInvalid, match="both views of each row are equal") as failure:
        require_valid_layers(CONTRASTIVE, blueprint, rows)
    assert "augment: {drop_tokens: 0.1}" in failure.value.remedy
    require_valid_layers(CONTRASTIVE, Blueprint(config=dropout, layout=TOKENS, num_outputs=3), rows)
    stages = ({"epochs": 1, "objective": "contrastive", "augment": {"drop_tokens": 0.1}}, {"epochs": 1})
    require_valid_layers(Training(stages=stages), blueprint, rows)


def test_evaluation_of_an_objective_leaves_the_random_numbers_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch):
    forked: list[list[torch.device]] = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.append(devices) or nullcontext())
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        with repeatable_random(device):
            pass
    assert forked == [[], [torch.device("cuda", 1)]]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"epochs": 3, "stages": [{"epochs": 1}]}, "leave `epochs` of the training out"),
        ({"stages": [{"epochs": 1, "objective": "contrastive"}]}, "has to learn the task"),
        ({"stages": [{"epochs": 0}]}, "greater than"),
        ({"best_by": "last", "stages": [{"epochs": 1, "patience": 2}]}, "stage 1: `patience` needs a metric"),
        ({"stages": [{"epochs": 1, "objective": "words"}]}, "masked_tokens"),
        ({"stages": [{"epochs": 1, "devices": 2}]}, "devices"),
    ],
)
def test_invalid_stages_are_refused(options, problem):
    with pytest.raises(ValidationError, match=problem):
        Training(**options)


def test_stages_are_part_of_keys_only_if_set():
    assert "stages" not in Training(epochs=1).identity()
    assert Training(**MASKED.model_dump()) == MASKED


@pytest.mark.parametrize(
    ("config", "layout", "stage", "problem"),
    [
        (CNN, IMAGES, {"epochs": 1, "objective": "masked_tokens"}, "rows are of kind image"),
        (
            Gpt(kind="gpt", width=8, num_heads=2),
            TOKENS,
            {"epochs": 1, "objective": "masked_tokens"},
            "no state for each",
        ),
        (CNN, IMAGES, {"epochs": 1, "objective": "contrastive", "freeze": "body"}, "nothing but its temporary layers"),
        (CNN, IMAGES, {"epochs": 1, "freeze": "encoder"}, "no parameter name begins with 'encoder'"),
    ],
)
def test_stages_that_do_not_suit_the_network_are_refused_before_the_training(config, layout, stage, problem):
    rows = images(8, 1) if layout is IMAGES else texts(8, 1)
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)
    with pytest.raises(RecipeInvalid, match=problem):
        require_valid_layers(Training(stages=(stage, {"epochs": 1})), blueprint, rows)
    require_valid_layers(Training(stages=({"epochs": 1},)), blueprint, rows)
