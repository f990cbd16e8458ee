"""Valid and invalid sections of a recipe."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import CandidateSpec, Compression, Sparsification
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import ImageInput
from bloomery.models.features.splits import Split
from bloomery.models.networks.config import Cnn, Mlp
from bloomery.models.training.config import Loop, Training


@pytest.mark.parametrize(
    "document",
    [
        Features(key="k", label="l", inputs=(ImageInput(kind="image", column="x", shape=(3, 5, 7)),)),
        Split(train=0.6, val=0.2, test=0.2, salt="s"),
        Cnn(kind="cnn", channels=(3, 5), kernel_size=5, hidden=7, dropout=0.5),
        Mlp(kind="mlp", hidden=(3, 5), norm="none"),
        Training(epochs=3, seed=5),
        Compression(candidates=(CandidateSpec(name="fp32"), CandidateSpec(name="half", prune=0.5))),
        Sparsification(pattern="2:4"),
        Budget(size_bytes=1, latency_ms=0.5, objective="latency"),
        Gates(min_accuracy=0.9),
        Compression(),
        Budget(error_rise=2.0),
        Gates(max_error=21.3, champion_rise=0.1),
    ],
    ids=lambda document: type(document).__name__,
)
def test_every_section_of_a_recipe_round_trips_through_json(document):
    assert type(document).model_validate(document.model_dump(mode="json")) == document


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1), (0.5, 0.5, 0.5), (0.7, 0.1, 0.2001)])
def test_split_fractions_with_a_sum_other_than_one_are_refused(shares):
    with pytest.raises(ValidationError, match=f"add up to {sum(shares):g}, not to 1"):
        Split(**dict(zip(("train", "val", "test"), shares, strict=True)))


@pytest.mark.parametrize("shares", [(1, 0, 0), (1.2, -0.1, -0.1)])
def test_no_split_may_be_empty(shares):
    with pytest.raises(ValidationError):
        Split(**dict(zip(("train", "val", "test"), shares, strict=True)))


def test_split_fractions_may_sum_to_one_up_to_rounding():
    split = Split(train=0.7, val=0.2, test=0.1)
    assert split.train + split.val + split.test != 1


def test_a_candidate_named_twice_is_refused():
    candidates = (CandidateSpec(name="fp32"), CandidateSpec(name="a", prune=0.1), CandidateSpec(name="a", prune=0.2))
    with pytest.raises(ValidationError, match="duplicate candidate names: a"):
        Compression(candidates=candidates)


@pytest.mark.parametrize(
    "candidates", [(), (CandidateSpec(name="a", prune=0.5), CandidateSpec(name="b", quantize="static"))]
)
def test_candidates_without_a_baseline_are_refused(candidates):
    with pytest.raises(ValidationError):
        Compression(candidates=candidates)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "set either `density`"),
        ({"density": 0.5, "pattern": "2:4"}, "set either `density`"),
        ({"pattern": "4:4"}, "removes nothing"),
        ({"pattern": "0:4"}, "should match pattern"),
        ({"pattern": yaml.safe_load("2:4")}, "in quotes"),
        ({"pattern": "2:4", "criterion": "layer_magnitude"}, "`criterion` needs a `density`"),
    ],
)
def test_an_impossible_sparsification_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Sparsification(**fields)


def test_the_default_candidates_combine_pruning_and_quantization():
    assert {(spec.prune is not None, spec.quantize is not None) for spec in default_candidates("cnn")} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }


@pytest.mark.parametrize("name", ["", "FP32", "a b", "-a", "a/b", "../a", "a" * 32])
def test_the_name_of_a_candidate_can_be_the_name_of_a_file(name):
    with pytest.raises(ValidationError):
        CandidateSpec(name=name)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (CandidateSpec, {"name": "a", "prune": 0}),
        (CandidateSpec, {"name": "a", "prune": 1}),
        (CandidateSpec, {"name": "a", "quantize": "half"}),
        (Cnn, {"kind": "cnn", "channels": []}),
        (Cnn, {"kind": "cnn", "channels": [8, 0]}),
        (Cnn, {"kind": "cnn", "kernel_size": 4}),
        (Cnn, {"kind": "cnn", "dropout": 1}),
        (Cnn, {"kind": "transformer"}),
        (Mlp, {"kind": "mlp", "hidden": []}),
        (Mlp, {"kind": "mlp", "norm": "layer"}),
        (Loop, {"epochs": 0}),
        (Loop, {"epochs": 1, "learning_rate": 0}),
        (Loop, {"epochs": 1, "learning_rate": float("nan")}),
        (Loop, {"epochs": 9, "best_by": "last", "patience": 2}),
        (Training, {"epochs": 1, "seed": -1}),
        (Training, {"epochs": 1, "sed": 1}),
        (Budget, {"accuracy_drop": 0}),
        (Gates, {"min_accuracy": 1.1}),
        (ImageInput, {"kind": "image", "column": "x", "shape": [8, 8]}),
        (ImageInput, {"kind": "image", "column": "x", "shape": [1, 8, 0]}),
        (Features, {"key": "k", "label": "l", "inputs": []}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_invalid_settings_are_refused(section, fields):
    with pytest.raises(ValidationError):
        section.model_validate(fields)


def test_a_seed_too_large_for_torch_is_refused():
    with pytest.raises(ValidationError):
        Training(epochs=1, seed=2**64)


def test_a_batch_of_one_row_is_refused_since_batch_normalisation_needs_two():
    with pytest.raises(ValidationError):
        Loop(epochs=1, batch_size=1)


@pytest.mark.parametrize(
    "module",
    [
        "bloomery.models.evaluation.gates",
        "bloomery.models.features.config",
        "bloomery.models.features.encoder",
        "bloomery.models.inference.runtime",
    ],
)
def test_modules_of_the_command_line_and_the_bento_need_no_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["cnn", "lenet", "resnet", "mlp", "rnn", "transformer", "gpt", "custom", "imported"])
def test_the_candidates_of_every_kind_have_a_baseline(kind):
    specs = default_candidates(kind)
    assert Compression(candidates=specs).candidates == specs
    assert len(specs) >= 2


def test_an_imported_network_is_quantized_in_the_given_mode():
    assert [spec.quantize for spec in default_candidates("imported", "static")] == [None, "static"]
    assert [spec.quantize for spec in default_candidates("imported", "dynamic")] == [None, "dynamic"]


def test_weights_have_7_bits_without_vnni_unless_a_candidate_sets_reduce_range():
    pruned, int8 = CandidateSpec(name="pruned", prune=0.5), CandidateSpec(name="int8", prune=0.5, quantize="dynamic")
    for flags, expected in ((("avx2",), True), (("avx2", "avx512_vnni"), False)):
        assert int8.resolve_reduce_range(flags).reduce_range is expected
        assert pruned.resolve_reduce_range(flags) == pruned
        # Both have the same pruned network, which is fine-tuned once.
        assert int8.resolve_reduce_range(flags).before_quantization == pruned.before_quantization
    configured = CandidateSpec(name="int8", quantize="static", reduce_range=False)
    assert configured.resolve_reduce_range(("avx2",)) == configured


def test_only_static_candidates_use_amx():
    assert [spec.amx for spec in default_candidates("cnn", amx=True)] == [False, True, False, True]
    assert not any(spec.amx for spec in default_candidates("transformer", amx=True))
    with pytest.raises(ValidationError, match=r"`amx` needs `quantize: static`"):
        CandidateSpec(name="int8", quantize="dynamic", amx=True)
    in_8_bits = CandidateSpec(name="int8", quantize="static", amx=True)
    assert in_8_bits.before_quantization == CandidateSpec(name="int8", quantize="static").before_quantization


def test_candidates_with_different_fake_quantization_are_trained_separately():
    def float_spec(**fields: Any) -> CandidateSpec:
        return CandidateSpec(name="int8", quantize="static", **fields).before_quantization

    assert float_spec(float_layers="first") == float_spec(float_layers=0.1) == float_spec()
    assert (
        float_spec(quantization_aware=True, float_layers="first")
        != float_spec(quantization_aware=True)
        == float_spec(quantization_aware=True, float_layers=0.1)
    )
    assert float_spec(quantization_aware=True, reduce_range=True) != float_spec(quantization_aware=True)


def test_networks_without_8_bit_kernels_store_their_weights_in_8_bits():
    specs = default_candidates("rnn", weight_only=True)
    assert [(spec.prune is not None, spec.quantize, spec.weight_only) for spec in specs] == [
        (False, None, None),
        (False, None, "int8"),
        (True, None, None),
        (True, None, "int8"),
    ]
