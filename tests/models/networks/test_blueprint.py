"""Networks by kind: built, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters, read_network, write_network
from bloomery.models.networks.config import Cnn, TabularEnsemble
from bloomery.models.training.determinism import set_deterministic

BLUEPRINT = Blueprint(
    config=Cnn(kind="cnn", channels=(3, 5), hidden=7), layout=Layout(kind="image", shape=(2, 6, 4)), num_outputs=3
)


def test_reading_a_network_inverts_writing_it(tmp_path: Path, trained, splits):
    write_network(trained.network, trained.blueprint, tmp_path / "w", tmp_path / "b")
    network, blueprint = read_network(tmp_path / "w", tmp_path / "b")
    assert blueprint == trained.blueprint
    assert not network.training
    with torch.no_grad():
        assert torch.equal(network(splits.test.x), trained.network(splits.test.x))


def test_the_digest_is_that_of_the_file_and_depends_only_on_the_weights(tmp_path: Path):
    network = build_network(BLUEPRINT)
    digests = [write_network(network, BLUEPRINT, tmp_path / name, tmp_path / "b") for name in ("one", "other.weights")]
    assert digests == [digest_of_file(tmp_path / "one")] * 2
    with torch.no_grad():
        network.head.bias[0] += 1e-3
    assert write_network(network, BLUEPRINT, tmp_path / "one", tmp_path / "b") not in digests


def test_writing_keeps_batch_normalisation_statistics(tmp_path: Path):
    network = build_network(BLUEPRINT)
    network(torch.randn(4, 2, 6, 4) + 3)
    write_network(network, BLUEPRINT, tmp_path / "w", tmp_path / "b")
    restored, _ = read_network(tmp_path / "w", tmp_path / "b")
    assert {name: value.tolist() for name, value in restored.state_dict().items()} == {
        name: value.tolist() for name, value in network.state_dict().items()
    }


def test_weights_of_another_network_are_refused(tmp_path: Path):
    write_network(
        build_network(BLUEPRINT), BLUEPRINT.model_copy(update={"num_outputs": 4}), tmp_path / "w", tmp_path / "b"
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        read_network(tmp_path / "w", tmp_path / "b")


def test_parameters_are_counted():
    # Two convolutions without bias, two normalisations with two values per channel, hidden layer and head with bias.
    expected = 3 * 2 * 9 + 2 * 3 + 5 * 3 * 9 + 2 * 5 + (5 * 1 * 1 + 1) * 7 + (7 + 1) * 3
    assert num_parameters(build_network(BLUEPRINT)) == expected


def test_a_blueprint_round_trips_through_json_and_is_frozen():
    assert Blueprint.model_validate_json(BLUEPRINT.model_dump_json()) == BLUEPRINT
    with pytest.raises(ValidationError):
        BLUEPRINT.num_outputs = 5


def test_equal_seeds_give_equal_initial_weights():
    def initial_weights(seed: int) -> torch.Tensor:
        set_deterministic(seed, num_threads=1)
        return build_network(BLUEPRINT).head.weight

    assert torch.equal(initial_weights(1), initial_weights(1))
    assert not torch.equal(initial_weights(1), initial_weights(2))


def test_set_deterministic_reports_what_the_bits_depend_on():
    processor = set_deterministic(seed=0, num_threads=1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert processor.startswith("1 thread(s), ")
    assert processor.endswith(f"torch {torch.__version__}")
    assert torch.backends.cpu.get_cpu_capability() in processor


def test_options_of_an_ensemble_count_only_where_they_are_set():
    """The key of a network that was trained before there were these options stays the same."""
    plain = TabularEnsemble(kind="tabular_ensemble")
    assert plain.identity().keys() == {"kind", "trees", "network"}
    assert plain.model_copy(update={"linear": True}).identity()["linear"] is True
    assert plain.model_copy(update={"decisions": "score"}).identity()["decisions"] == "score"
