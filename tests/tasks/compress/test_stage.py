"""The compress stage: candidates of every kind, and the search for further ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from torch import nn

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Candidate, Dataset, TrainedNetwork
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSearch, CandidateSpec, Compression, Student
from bloomery.models.export.litert_exporter import PYTHON_VARIABLE
from bloomery.models.export.onnx_exporter import TOLERANCE
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import NumberInput
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint
from bloomery.models.networks.config import BoostedTrees, Imported, Mlp
from bloomery.models.training.config import Loop, Training
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.stage import train
from tests.conftest import copy_state

pytestmark = pytest.mark.slow

NAMED_PYTHON = os.environ.get(PYTHON_VARIABLE)  # the fixture `home` unsets the variable
LOOP = Loop(epochs=6, learning_rate=1e-2)
FAST = {"fine_tune": LOOP, "latency_rounds": 20}


@pytest.fixture
def dataset(checked_rows_of, home: Path) -> Dataset:
    """Points of a plane, labelled by whether they lie in a ring."""
    points = np.random.default_rng(0).normal(size=(1200, 2))
    is_in_ring = np.abs(np.linalg.norm(points, axis=1) - 1.2) < 0.5
    columns = {name: pa.array(points[:, column]) for column, name in enumerate(("left", "right"))}
    checked = checked_rows_of(
        pa.table({"id": pa.array(range(1200)), **columns, "label": pa.array(is_in_ring.astype(int))})
    )
    (home / "report.html").write_text("a report")
    features = Features(key="id", label="label", inputs=(NumberInput(kind="number", columns=("left", "right")),))
    return prepare(checked.model_copy(update={"report_uri": "report.html"}), features, Engine(kind="local"))


def test_unlabelled_rows_improve_students_and_leave_the_teacher_unchanged(checked_rows_of, home: Path) -> None:
    points = np.random.default_rng(0).normal(size=(1500, 2))
    is_in_ring = (np.abs(np.linalg.norm(points, axis=1) - 1.2) < 0.5).astype(int)
    split = np.array(["train", "val", "test"])[np.searchsorted([900, 1100], np.arange(1500), side="right")]
    is_unlabelled = (split == "train") & (np.arange(1500) >= 100)
    columns = {name: pa.array(points[:, column]) for column, name in enumerate(("left", "right"))}
    label_columns = {"label": pa.array(is_in_ring, mask=is_unlabelled), "part": pa.array(split)}
    rows = pa.table({"id": pa.array(range(1500)), **columns, **label_columns})
    (home / "report.html").write_text("a report")
    features = {
        "key": "id",
        "label": "label",
        "inputs": [{"kind": "number", "columns": ["left", "right"]}],
        "split": {"by": "given", "column": "part"},
    }
    student = {"model": {"kind": "mlp", "hidden": [32], "norm": "none", "dropout": 0.0}}
    compression = Compression.model_validate(
        {
            "candidates": [{"name": "fp32"}, {"name": "student", "student": student}],
            "fine_tune": {"epochs": 20, "batch_size": 16, "learning_rate": 1e-2},
            "distill": {"weight": 0.9},
            "latency_rounds": 20,
        }
    )
    scores = []
    for table, unlabelled in ((rows, "teach"), (rows.filter(pc.is_valid(rows["label"])), "refuse")):
        config = Features.model_validate({**features, "unlabelled": unlabelled})
        checked = checked_rows_of(table).model_copy(update={"report_uri": "report.html"})
        dataset = prepare(checked, config, Engine(kind="local"))
        model = Mlp(kind="mlp", hidden=(64, 64), norm="none", dropout=0.0)
        trained = train(dataset, model, Training(epochs=60, batch_size=16, learning_rate=1e-2, explain=None))
        assert trained.dataset.train.num_rows == 100
        scores.append([candidate.score.value for candidate in compress(trained, compression).candidates])
    (teacher_score, student_score), (same_teacher_score, score_without_unlabelled) = scores
    assert teacher_score == same_teacher_score
    assert student_score > score_without_unlabelled + 0.1


@pytest.fixture(scope="module")
def trained_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder with the trained network; the first test that needs it creates it."""
    return tmp_path_factory.mktemp("trained") / "home"


@pytest.fixture
def trained(dataset: Dataset, trained_state: Path, home: Path) -> TrainedNetwork:
    model = Mlp(kind="mlp", hidden=(64, 64), norm="none", dropout=0.0)
    is_first = not trained_state.exists()
    if not is_first:
        copy_state(trained_state, home)  # contains the output of the stage
    network = train(dataset, model, Training(epochs=12, learning_rate=1e-2, explain=None))
    if is_first:
        copy_state(home, trained_state)
    return network


def test_a_search_keeps_candidates_on_the_pareto_front_and_logs_every_trial(trained: TrainedNetwork) -> None:
    compression = Compression(search=CandidateSearch(trials=6, keep=3), **FAST)
    result = compress(trained, compression)
    names = [candidate.name for candidate in result.candidates]
    assert names[:4] == ["fp32", "int8", "pruned", "pruned-int8"]
    additions = result.candidates[4:]
    assert 1 <= len(additions) <= 3
    (table,) = [
        artifact.path
        for artifact in mlflow_runs.client().list_artifacts(trained.run_id)
        if artifact.path.startswith("candidate-search-")
    ]
    trials = mlflow_runs.client().load_table(
        mlflow_runs.ensure_experiment(trained.dataset.valid_rows.contract.name), table
    )
    assert set(names) == set(trials["candidate"][trials["is_kept"]])
    assert len(trials) > len(names)
    costs = trials[["validation_degradation", "size_bytes", "num_macs"]].to_numpy()
    for position in np.flatnonzero(trials["is_kept"])[4:]:
        dominates = (costs <= costs[position]).all(axis=1) & (costs < costs[position]).any(axis=1)
        assert not dominates.any()
    # The search is part of the stage's key.
    assert compress.key(trained, compression) != compress.key(trained, Compression(**FAST))


def test_a_search_quantizes_like_the_named_candidates(trained: TrainedNetwork) -> None:
    specs = (CandidateSpec(name="fp32"), CandidateSpec(name="small", weight_only="int8"))
    compression = Compression(
        candidates=specs, search=CandidateSearch(trials=3, max_drop=0.9), extra_formats=("pt2",), **FAST
    )
    result = compress(trained, compression)
    params = [mlflow_runs.client().get_run(candidate.run_id).data.params for candidate in result.candidates]
    formats = {param["weight_only"] for param in params if param["name"].endswith("-int8")}
    assert formats == {"int8"}
    float_names = {candidate.name for candidate in result.candidates if not candidate.name.endswith("-int8")} - {
        "small"
    }
    folder = settings().path(result.candidates[0].uri).parent
    assert {path.stem for path in folder.glob("*.pt2")} == float_names > {"fp32"}
    assert {param["quantize"] for param in params} == {"None"}


def test_students_and_factorized_networks_are_candidates_in_float_and_8_bits(
    trained: TrainedNetwork,
) -> None:
    student = Student(model=Mlp(kind="mlp", hidden=(16,), norm="none"), training=Loop(epochs=25, learning_rate=2e-2))
    result = compress(
        trained,
        Compression(
            candidates=(
                CandidateSpec(name="fp32"),
                CandidateSpec(name="student", student=student),
                CandidateSpec(name="student-int8", student=student, quantize="static"),
                CandidateSpec(name="thin", factorize=0.5),
            ),
            **FAST,
        ),
    )
    by_name = {candidate.name: candidate for candidate in result.candidates}
    assert by_name["student"].num_parameters == by_name["student-int8"].num_parameters == 2 * 16 + 16 + 16 * 2 + 2
    assert by_name["thin"].num_parameters < 0.7 * by_name["fp32"].num_parameters
    assert by_name["student"].score.value > 0.6
    assert by_name["thin"].score.value > by_name["fp32"].score.value - 0.05


def test_boosted_trees_lose_trees_and_teach_a_student(dataset: Dataset) -> None:
    model = BoostedTrees(kind="boosted_trees", max_rounds=40, learning_rate=0.2, max_leaves=8)
    trees = train(dataset, model, Training(epochs=1, explain=None, baselines=False))
    student = Student(model=Mlp(kind="mlp", hidden=(16,), norm="none"), training=Loop(epochs=4, learning_rate=2e-2))
    few, packed = ({"name": name, "prune": 0.5} for name in ("few", "packed"))
    specs = [{"name": "fp32"}, few, packed | {"storage": "zstd"}, {"name": "student", "student": student.model_dump()}]
    result = compress(trees, Compression.model_validate({"candidates": specs} | FAST))
    by_name = {candidate.name: candidate for candidate in result.candidates}
    assert list(by_name) == ["fp32", "few", "packed", "student"]
    assert by_name["few"].size_bytes < 0.7 * by_name["fp32"].size_bytes
    assert by_name["packed"].size_bytes < by_name["few"].size_bytes
    assert by_name["few"].num_parameters < 0.7 * by_name["fp32"].num_parameters
    assert sum(disagreement.num_changed or 0 for disagreement in by_name["few"].disagreements) < 40
    assert by_name["few"].score == by_name["packed"].score
    assert by_name["student"].num_parameters == 2 * 16 + 16 + 16 * 2 + 2


def test_an_imported_network_teaches_a_student(dataset: Dataset, tmp_path: Path) -> None:
    """The imported network does not predict the labels, so the student can learn from its outputs only."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "W"], ["predictions"])],
        "network",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array([[5, -5], [0, 0]], np.float32), "W")],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
    trained = train(
        dataset, Imported(kind="imported", path=str(path), sha256=digest_of_file(path)), Training(explain=None)
    )
    student = Student(model=Mlp(kind="mlp", hidden=(8,), norm="none"), training=LOOP)
    result = compress(
        trained,
        Compression.model_validate(
            {
                "candidates": [{"name": "fp32"}, {"name": "student", "student": student.model_dump()}],
                "distill": {"weight": 1.0},
                "latency_rounds": 20,
            }
        ),
    )
    fp32, student_candidate = result.candidates
    assert abs(student_candidate.degradation.value) < 0.03
    assert fp32.score.value < 0.7  # far from the labels


def test_every_method_of_quantization_gives_a_candidate(trained: TrainedNetwork) -> None:
    specs = [
        {"name": "fp32"},
        {"name": "entropy", "quantize": "static", "calibration_method": "entropy"},
        {"name": "aware", "quantize": "static", "quantization_aware": True},
        {"name": "none-in-int8", "quantize": "static", "float_layers": 0.0, "reduce_range": True},
        {"name": "first-in-float", "quantize": "static", "float_layers": "first"},
        {"name": "aware-first", "quantize": "static", "quantization_aware": True, "float_layers": "first"},
        {"name": "int4", "weight_only": "int4"},
        {"name": "fp16", "weight_only": "fp16"},
    ]
    result = compress(trained, Compression.model_validate({"candidates": specs, **FAST}))
    by_name = {candidate.name: candidate for candidate in result.candidates}
    assert len({candidate.sha256 for candidate in result.candidates}) == len(specs)
    assert all(abs(candidate.degradation.value) < 0.06 for candidate in result.candidates)
    assert all(by_name[name].integer_share == 1 for name in ("entropy", "aware", "none-in-int8"))
    weights = 2 * 64, 64 * 64, 64 * 2
    for name in ("first-in-float", "aware-first"):
        assert by_name[name].integer_share == pytest.approx(1 - weights[0] / sum(weights), abs=0.02)
    assert by_name["int4"].integer_share == by_name["fp16"].integer_share == 0
    (macs,) = {candidate.num_macs for candidate in result.candidates}
    assert 2 * 64 + 64 * 64 + 64 * 2 + 2 * 64 + 2 <= macs < 5000  # bias additions and ReLU count
    tags = {name: mlflow_runs.client().get_run(candidate.run_id).data.tags for name, candidate in by_name.items()}
    assert tags["entropy"]["calibration.sha256"] == tags["aware"]["calibration.sha256"]
    assert "calibration.sha256" not in tags["fp16"]
    assert by_name["int4"].size_bytes < by_name["fp16"].size_bytes < by_name["fp32"].size_bytes


@pytest.mark.parametrize(("flags", "level"), [(("avx2",), 64), (("avx2", "avx512_vnni"), 127)])
def test_weights_have_7_bits_where_8_bits_saturate_and_candidates_share_one_fine_tuning(
    trained: TrainedNetwork, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], level: int
) -> None:
    for module in ("candidate_builder", "candidate_measurement"):
        monkeypatch.setattr(f"bloomery.tasks.compress.{module}.cpu_flags", lambda: flags)
    tuned_names = []

    def count_fine_tuning(
        network: nn.Module, blueprint: Blueprint, spec: CandidateSpec, fine_tuning: FineTuning
    ) -> nn.Module:
        tuned_names.append(spec.name)
        return compress_network(network, blueprint, spec, fine_tuning)

    monkeypatch.setattr("bloomery.models.compression.compressor.compress_network", count_fine_tuning)
    specs = [
        {"name": "fp32"},
        {"name": "half", "prune": 0.5},
        {"name": "half-int8", "prune": 0.5, "quantize": "static"},
        {"name": "all-bits", "prune": 0.5, "quantize": "static", "reduce_range": False},
    ]
    result = compress(trained, Compression.model_validate({"candidates": specs, **FAST}))
    assert tuned_names == ["half"]
    by_name = {candidate.name: candidate for candidate in result.candidates}
    assert largest_weight(by_name["half-int8"]) == level
    assert largest_weight(by_name["all-bits"]) == 127
    reduce_ranges = [
        mlflow_runs.client().get_run(candidate.run_id).data.params["reduce_range"] for candidate in result.candidates
    ]
    assert reduce_ranges == ["None", "None", str(level == 64), "False"]
    # Measured with exact sums of 8 bits; a processor on which sums saturate predicts otherwise.
    is_exact = level == 127
    assert [candidate.needs_vnni for candidate in result.candidates] == [False, False, is_exact, is_exact]


def largest_weight(candidate: Candidate) -> int:
    graph = onnx.load(settings().path(candidate.uri)).graph
    integers = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == TensorProto.INT8]
    return max(int(np.abs(weights.astype(int)).max()) for weights in integers)


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "dynamic", "quantization_aware": True},
        {"calibration_method": "entropy"},
        {"float_layers": 0.1},
        {"float_layers": "first"},
        {"quantize": "static", "float_layers": "last"},
        {"quantize": "static", "float_layers": -0.1},
        {"quantize": "static", "weight_only": "int8"},
    ],
)
def test_contradictory_options_of_quantization_are_refused(options):
    with pytest.raises(ValidationError):
        CandidateSpec.model_validate({"name": "candidate", **options})


def test_float_candidates_are_exported_for_pytorch_with_equal_predictions(trained: TrainedNetwork) -> None:
    specs = [
        {"name": "fp32"},
        {"name": "int8", "quantize": "static"},
        {"name": "pruned", "prune": 0.5},
        {"name": "zipped", "prune": 0.5, "storage": "zstd"},
        {"name": "fp16", "weight_only": "fp16"},
    ]
    result = compress(trained, Compression.model_validate({"candidates": specs, "extra_formats": ["pt2"], **FAST}))
    folder = settings().path(result.candidates[0].uri).parent
    assert {path.name for path in folder.glob("*.pt2")} == {"fp32.pt2", "pruned.pt2", "zipped.pt2"}
    x = torch.randn(5, 2)
    for candidate in result.candidates:
        formats = {artifact.path for artifact in mlflow_runs.client().list_artifacts(candidate.run_id)}
        metrics = mlflow_runs.client().get_run(candidate.run_id).data.metrics
        path = folder / f"{candidate.name}.pt2"
        assert ("pt2" in formats) == ("pt2_parity_error" in metrics) == path.is_file()
        if path.is_file():
            assert metrics["pt2_parity_error"] <= TOLERANCE
            outputs = torch.export.load(path).module()(x).detach().numpy()
            np.testing.assert_allclose(
                outputs, run_session(create_session(folder / Path(candidate.uri).name), x.numpy()), atol=1e-5
            )


@pytest.mark.skipif(NAMED_PYTHON is None, reason=f"{PYTHON_VARIABLE} names no Python that has litert-torch")
def test_float_candidates_are_exported_for_litert(trained: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(NAMED_PYTHON))
    settings.cache_clear()
    specs = [{"name": "fp32"}, {"name": "int8", "quantize": "static"}]
    result = compress(trained, Compression.model_validate({"candidates": specs, "extra_formats": ["litert"], **FAST}))
    fp32 = result.candidates[0]
    assert [path.name for path in settings().path(fp32.uri).parent.glob("*.tflite")] == ["fp32.tflite"]
    metrics = mlflow_runs.client().get_run(fp32.run_id).data.metrics
    assert metrics["litert_parity_error"] <= TOLERANCE
    assert metrics["litert_bytes"] > 0


def test_entropy_coding_and_zstd_shrink_sparse_clustered_weights_without_changing_predictions(
    trained: TrainedNetwork,
) -> None:
    weights = {"sparsify": {"density": 0.2, "rounds": 2}, "num_clusters": 7}
    specs = [
        {"name": "fp32"},
        {"name": "small", **weights},
        {"name": "coded", **weights, "storage": "entropy_coded"},
        {"name": "zipped", **weights, "storage": "zstd"},
    ]
    result = compress(trained, Compression.model_validate({"candidates": specs, **FAST}))
    by_name = {candidate.name: candidate for candidate in result.candidates}
    assert [Path(by_name[name].uri).suffixes for name in ("coded", "zipped")] == [
        [".onnx", ".coded"],
        [".onnx", ".zst"],
    ]
    assert by_name["coded"].size_bytes < by_name["zipped"].size_bytes < by_name["small"].size_bytes / 4
    assert {by_name[name].coded_bytes for name in ("coded", "zipped", "small")} == {by_name["coded"].size_bytes}
    assert by_name["coded"].num_nonzero == by_name["small"].num_nonzero < 0.3 * by_name["fp32"].num_nonzero
    tables = [pq.read_table(settings().path(by_name[name].predictions_uri)) for name in ("small", "coded", "zipped")]
    assert tables[0] == tables[1] == tables[2]
    assert by_name["small"].score.value > by_name["fp32"].score.value - 0.1
