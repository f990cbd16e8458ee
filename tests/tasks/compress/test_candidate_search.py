"""What a trial of the search suggests depends on what the network can lose."""

from __future__ import annotations

import optuna
import pytest

from bloomery.models.networks.config import Mlp, Model, Transformer
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.compress.candidate_search import suggest_spec

PARAMETERS = {"prune": 50, "importance": "taylor", "parts": "units heads", "factorise": 40}


def _pretrained(model_type: str) -> Pretrained:
    return Pretrained(kind="pretrained", checkpoint="tiny", config={"model_type": model_type})


@pytest.mark.parametrize(
    ("model", "name", "structures"),
    [
        (Transformer(kind="transformer"), "p50-t-h-f40", ("units", "heads")),
        (_pretrained("bert"), "p50-t-h-f40", ("units", "heads")),
        (_pretrained("mpnet"), "p50-t-f40", ("units",)),
        (Mlp(kind="mlp"), "p50-t-f40", ("units",)),
        (_pretrained("gpt2"), "f40", None),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_trial_prunes_what_the_network_can_lose(model: Model, name: str, structures: tuple[str, ...] | None):
    spec = suggest_spec(optuna.trial.FixedTrial(PARAMETERS), model)
    assert spec is not None
    assert spec.name == name
    assert (None if spec.prune is None else spec.prune.structures) == structures
    assert spec.factorize == 0.4


def test_convolutions_of_a_checkpoint_are_not_factorized():
    spec = suggest_spec(optuna.trial.FixedTrial(PARAMETERS), _pretrained("resnet"))
    assert spec is not None
    assert (spec.name, spec.factorize) == ("p50-t", None)


def test_a_trial_that_changes_nothing_is_left_out():
    trial = optuna.trial.FixedTrial({**PARAMETERS, "prune": 0, "factorise": 0})
    assert suggest_spec(trial, Transformer(kind="transformer")) is None
