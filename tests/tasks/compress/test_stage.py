"""The compress stage: candidates of every sort, and the search for more of them."""

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
from bloomery.models.networks.config import Imported, Mlp
from bloomery.models.training.config import Loop, Training
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.stage import train
from tests.conftest import copy_state

pytestmark = pytest.mark.slow

NAMED_PYTHON = os.environ.get(PYTHON_VARIABLE)  # a state folder of a test's own takes the variable away
LOOP = Loop(epochs=6, learning_rate=1e-2)
FAST = {"fine_tune": LOOP, "latency_rounds": 20}


@pytest.fixture
def dataset(checked_rows_of, home: Path) -> Dataset:
    """Points of a plane, which are inside a ring or not."""
    points = np.random.default_rng(0).normal(size=(1200, 2))
    inside = np.abs(np.linalg.norm(points, axis=1) - 1.2) < 0.5
    columns = {name: pa.array(points[:, at]) for at, name in enumerate(("left", "right"))}
    checked = checked_rows_of(pa.table({"id": pa.array(range(1200)), **columns, "label": pa.array(inside.astype(int))}))
    (home / "report.html").write_text("a report")
    features = Features(key="id", label="label", inputs=(NumberInput(kind="number", columns=("left", "right")),))
    return prepare(checked.model_copy(update={"report_uri": "report.html"}), features, Engine(kind="local"))


def test_rows_without_a_label_teach_students_and_nothing_else(checked_rows_of, home: Path) -> None:
    points = np.random.default_rng(0).normal(size=(1500, 2))
    inside = (np.abs(np.linalg.norm(points, axis=1) - 1.2) < 0.5).astype(int)
    part = np.array(["train", "val", "test"])[np.searchsorted([900, 1100], np.arange(1500), side="right")]
    has_none = (part == "train") & (np.arange(1500) >= 100)
    columns = {name: pa.array(points[:, at]) for at, name in enumerate(("left", "right"))}
    labelled = {"label": pa.array(inside, mask=has_none), "part": pa.array(part)}
    rows = pa.table({"id": pa.array(range(1500)), **columns, **labelled})
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
        stated = Features.model_validate({**features, "unlabelled": unlabelled})
        checked = checked_rows_of(table).model_copy(update={"report_uri": "report.html"})
        dataset = prepare(checked, stated, Engine(kind="local"))
        model = Mlp(kind="mlp", hidden=(64, 64), norm="none", dropout=0.0)
        came = train(dataset, model, Training(epochs=60, batch_size=16, learning_rate=1e-2, explain=None))
        assert came.dataset.train.num_rows == 100
        scores.append([candidate.score.value for candidate in compress(came, compression).candidates])
    (teacher, taught), (same_teacher, untaught) = scores
    assert teacher == same_teacher
    assert taught > untaught + 0.1


@pytest.fixture(scope="module")
def trained_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder in which the network of these tests was trained, once the first of them has done so."""
    return tmp_path_factory.mktemp("trained") / "home"


@pytest.fixture
def trained(dataset: Dataset, trained_state: Path, home: Path) -> TrainedNetwork:
    model = Mlp(kind="mlp", hidden=(64, 64), norm="none", dropout=0.0)
    is_first = not trained_state.exists()
    if not is_first:
        copy_state(trained_state, home)  # in which the stage is found
    network = train(dataset, model, Training(epochs=12, learning_rate=1e-2, explain=None))
    if is_first:
        copy_state(home, trained_state)
    return network


def test_a_search_keeps_what_none_is_better_than_and_tells_of_all_that_it_tried(trained: TrainedNetwork) -> None:
    wanted = Compression(search=CandidateSearch(trials=6, keep=3), **FAST)
    options = compress(trained, wanted)
    names = [candidate.name for candidate in options.candidates]
    assert names[:4] == ["fp32", "int8", "pruned", "pruned-int8"]
    found = options.candidates[4:]
    assert 1 <= len(found) <= 3
    (table,) = [
        one.path for one in mlflow_runs.client().list_artifacts(trained.run_id) if one.path.startswith("explored-")
    ]
    explored = mlflow_runs.client().load_table(
        mlflow_runs.ensure_experiment(trained.dataset.valid_rows.contract.name), table
    )
    assert set(names) == set(explored["candidate"][explored["is_kept"]])
    assert len(explored) > len(names)
    figures = explored[["worse_on_validation", "size_bytes", "num_macs"]].to_numpy()
    for place in np.flatnonzero(explored["is_kept"])[4:]:
        better = (figures <= figures[place]).all(axis=1) & (figures < figures[place]).any(axis=1)
        assert not better.any()
    # What lies in the stage is what is told of, and the same recipe finds the same.
    assert compress.key(trained, wanted) != compress.key(trained, Compression(**FAST))


def test_a_search_has_8_bits_as_the_named_candidates_do(trained: TrainedNetwork) -> None:
    named = (CandidateSpec(name="fp32"), CandidateSpec(name="small", weight_only="int8"))
    wanted = Compression(
        candidates=named, search=CandidateSearch(trials=3, max_drop=0.9), extra_formats=("pt2",), **FAST
    )
    options = compress(trained, wanted)
    runs = [mlflow_runs.client().get_run(candidate.run_id).data.params for candidate in options.candidates]
    found = {run["weight_only"] for run in runs if run["name"].endswith("-int8")}
    assert found == {"int8"}
    in_float = {one.name for one in options.candidates if not one.name.endswith("-int8")} - {"small"}
    folder = settings().path(options.candidates[0].uri).parent
    assert {path.stem for path in folder.glob("*.pt2")} == in_float > {"fp32"}
    assert {run["quantize"] for run in runs} == {"None"}


def test_students_and_thin_matrices_are_candidates_and_are_made_once_for_float_and_8_bits(
    trained: TrainedNetwork,
) -> None:
    student = Student(model=Mlp(kind="mlp", hidden=(16,), norm="none"), training=Loop(epochs=25, learning_rate=2e-2))
    options = compress(
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
    of = {candidate.name: candidate for candidate in options.candidates}
    assert of["student"].num_parameters == of["student-int8"].num_parameters == 2 * 16 + 16 + 16 * 2 + 2
    assert of["thin"].num_parameters < 0.7 * of["fp32"].num_parameters
    assert of["student"].score.value > 0.6
    assert of["thin"].score.value > of["fp32"].score.value - 0.05


def test_a_network_that_came_trained_teaches_a_student(dataset: Dataset, tmp_path: Path) -> None:
    """The file answers by a rule that no label tells: the student has it from the file's answers alone."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "W"], ["answers"])],
        "network",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array([[5, -5], [0, 0]], np.float32), "W")],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
    came = train(
        dataset, Imported(kind="imported", path=str(path), sha256=digest_of_file(path)), Training(explain=None)
    )
    student = Student(model=Mlp(kind="mlp", hidden=(8,), norm="none"), training=LOOP)
    options = compress(
        came,
        Compression.model_validate(
            {
                "candidates": [{"name": "fp32"}, {"name": "student", "student": student.model_dump()}],
                "distill": {"weight": 1.0},
                "latency_rounds": 20,
            }
        ),
    )
    fp32, learnt = options.candidates
    assert abs(learnt.degradation.value) < 0.03
    assert fp32.score.value < 0.7  # the rule is not that of the labels


def test_every_way_to_8_bits_and_fewer_is_a_candidate(trained: TrainedNetwork) -> None:
    stated = [
        {"name": "fp32"},
        {"name": "entropy", "quantize": "static", "calibration_method": "entropy"},
        {"name": "aware", "quantize": "static", "quantization_aware": True},
        {"name": "none-in-int8", "quantize": "static", "float_layers": 0.0, "reduce_range": True},
        {"name": "first-in-float", "quantize": "static", "float_layers": "first"},
        {"name": "aware-first", "quantize": "static", "quantization_aware": True, "float_layers": "first"},
        {"name": "int4", "weight_only": "int4"},
        {"name": "fp16", "weight_only": "fp16"},
    ]
    options = compress(trained, Compression.model_validate({"candidates": stated, **FAST}))
    of = {candidate.name: candidate for candidate in options.candidates}
    assert len({candidate.sha256 for candidate in options.candidates}) == len(stated)
    assert all(abs(candidate.degradation.value) < 0.06 for candidate in options.candidates)
    assert all(of[name].integer_share == 1 for name in ("entropy", "aware", "none-in-int8"))
    weights = 2 * 64, 64 * 64, 64 * 2
    for name in ("first-in-float", "aware-first"):
        assert of[name].integer_share == pytest.approx(1 - weights[0] / sum(weights), abs=0.02)
    assert of["int4"].integer_share == of["fp16"].integer_share == 0
    (macs,) = {candidate.num_macs for candidate in options.candidates}
    assert 2 * 64 + 64 * 64 + 64 * 2 + 2 * 64 + 2 <= macs < 5000  # an addition of a bias counts, and what ReLU does
    tags = {name: mlflow_runs.client().get_run(one.run_id).data.tags for name, one in of.items()}
    assert tags["entropy"]["calibration.sha256"] == tags["aware"]["calibration.sha256"]
    assert "calibration.sha256" not in tags["fp16"]
    assert of["int4"].size_bytes < of["fp16"].size_bytes < of["fp32"].size_bytes


@pytest.mark.parametrize(("flags", "level"), [(("avx2",), 64), (("avx2", "avx512_vnni"), 127)])
def test_weights_have_7_bits_where_sums_of_8_saturate_and_smaller_networks_are_still_taught_once(
    trained: TrainedNetwork, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], level: int
) -> None:
    for module in ("candidate_builder", "candidate_measurement"):
        monkeypatch.setattr(f"bloomery.tasks.compress.{module}.cpu_flags", lambda: flags)
    taught = []

    def counted(network: nn.Module, blueprint: Blueprint, spec: CandidateSpec, lesson: FineTuning) -> nn.Module:
        taught.append(spec.name)
        return compress_network(network, blueprint, spec, lesson)

    monkeypatch.setattr("bloomery.models.compression.compressor.compress_network", counted)
    stated = [
        {"name": "fp32"},
        {"name": "half", "prune": 0.5},
        {"name": "half-int8", "prune": 0.5, "quantize": "static"},
        {"name": "all-bits", "prune": 0.5, "quantize": "static", "reduce_range": False},
    ]
    options = compress(trained, Compression.model_validate({"candidates": stated, **FAST}))
    assert taught == ["half"]
    of = {candidate.name: candidate for candidate in options.candidates}
    assert largest_weight(of["half-int8"]) == level
    assert largest_weight(of["all-bits"]) == 127
    told = [mlflow_runs.client().get_run(one.run_id).data.params["reduce_range"] for one in options.candidates]
    assert told == ["None", "None", str(level == 64), "False"]
    is_exact = level == 127  # as measured; a processor that saturates is told of what was measured on one that does not
    assert [one.needs_vnni for one in options.candidates] == [False, False, is_exact, is_exact]


def largest_weight(candidate: Candidate) -> int:
    graph = onnx.load(settings().path(candidate.uri)).graph
    integers = [numpy_helper.to_array(one) for one in graph.initializer if one.data_type == TensorProto.INT8]
    return max(int(np.abs(weights.astype(int)).max()) for weights in integers)


@pytest.mark.parametrize(
    "stated",
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
def test_what_has_no_meaning_without_8_bits_is_refused(stated):
    with pytest.raises(ValidationError):
        CandidateSpec.model_validate({"name": "one", **stated})


def test_candidates_in_float_are_written_for_pytorch_too_and_answer_alike(trained: TrainedNetwork) -> None:
    stated = [
        {"name": "fp32"},
        {"name": "int8", "quantize": "static"},
        {"name": "pruned", "prune": 0.5},
        {"name": "zipped", "prune": 0.5, "storage": "zstd"},
        {"name": "fp16", "weight_only": "fp16"},
    ]
    options = compress(trained, Compression.model_validate({"candidates": stated, "extra_formats": ["pt2"], **FAST}))
    folder = settings().path(options.candidates[0].uri).parent
    assert {path.name for path in folder.glob("*.pt2")} == {"fp32.pt2", "pruned.pt2", "zipped.pt2"}
    x = torch.randn(5, 2)
    for candidate in options.candidates:
        logged = {one.path for one in mlflow_runs.client().list_artifacts(candidate.run_id)}
        figures = mlflow_runs.client().get_run(candidate.run_id).data.metrics
        path = folder / f"{candidate.name}.pt2"
        assert ("pt2" in logged) == ("pt2_parity_error" in figures) == path.is_file()
        if path.is_file():
            assert figures["pt2_parity_error"] <= TOLERANCE
            answered = torch.export.load(path).module()(x).detach().numpy()
            np.testing.assert_allclose(
                answered, run_session(create_session(folder / Path(candidate.uri).name), x.numpy()), atol=1e-5
            )


@pytest.mark.skipif(NAMED_PYTHON is None, reason=f"{PYTHON_VARIABLE} names no Python that has litert-torch")
def test_candidates_in_float_are_written_for_litert(trained: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(NAMED_PYTHON))
    settings.cache_clear()
    stated = [{"name": "fp32"}, {"name": "int8", "quantize": "static"}]
    options = compress(trained, Compression.model_validate({"candidates": stated, "extra_formats": ["litert"], **FAST}))
    fp32 = options.candidates[0]
    assert [path.name for path in settings().path(fp32.uri).parent.glob("*.tflite")] == ["fp32.tflite"]
    figures = mlflow_runs.client().get_run(fp32.run_id).data.metrics
    assert figures["litert_parity_error"] <= TOLERANCE
    assert figures["litert_bytes"] > 0


def test_sparse_weights_of_few_values_ship_in_few_bytes_and_answer_with_the_same_bits(trained: TrainedNetwork) -> None:
    small = {"sparsify": {"density": 0.2, "rounds": 2}, "num_clusters": 7}
    stated = [
        {"name": "fp32"},
        {"name": "small", **small},
        {"name": "coded", **small, "storage": "entropy_coded"},
        {"name": "zipped", **small, "storage": "zstd"},
    ]
    options = compress(trained, Compression.model_validate({"candidates": stated, **FAST}))
    of = {candidate.name: candidate for candidate in options.candidates}
    assert [Path(of[name].uri).suffixes for name in ("coded", "zipped")] == [[".onnx", ".coded"], [".onnx", ".zst"]]
    assert of["coded"].size_bytes < of["zipped"].size_bytes < of["small"].size_bytes / 4
    assert of["coded"].coded_bytes == of["zipped"].coded_bytes == of["small"].coded_bytes == of["coded"].size_bytes
    assert of["coded"].num_nonzero == of["small"].num_nonzero < 0.3 * of["fp32"].num_nonzero
    answers = [pq.read_table(settings().path(of[name].predictions_uri)) for name in ("small", "coded", "zipped")]
    assert answers[0] == answers[1] == answers[2]
    assert of["small"].score.value > of["fp32"].score.value - 0.1
