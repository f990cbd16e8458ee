"""The stage `choose`: what it reads from the candidates' files, and what it logs and writes."""

from __future__ import annotations

import functools
import json
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import EngineMissing, NoCandidate
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Baseline, Candidate, Candidates, Choice, Interval, Release
from bloomery.models.compression.budget import Budget
from bloomery.models.features.encoder import ENCODED_INPUT
from bloomery.models.profiling import rapl
from bloomery.models.profiling.latency import summarise
from bloomery.tasks.choose import ranking
from bloomery.tasks.choose.stage import choose
from bloomery.tasks.evaluation import candidate_table
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking import mlflow_runs

pytestmark = pytest.mark.slow

NUM_ROWS = 400
TOWNS = np.where(np.arange(NUM_ROWS) < 100, "B", "A")
TRUTH = np.arange(NUM_ROWS) % 2


def candidate(home: Path, name: str, size: int, wrong: np.ndarray, seconds: float) -> dict[str, Any]:
    """Writes the ONNX file and the predictions of a candidate that is wrong on the rows `wrong` (bool).

    Returns the arguments of `candidate_of` for it.
    """
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["x"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.ones((64, 2), np.float32), "w")],
    )
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), home / f"{name}.onnx")
    classes = pa.array(["down", "up"])
    predictions = np.where(wrong, 1 - TRUTH, TRUTH)
    columns = {"id": np.arange(NUM_ROWS), "truth": classes.take(pa.array(TRUTH))}
    columns["prediction"] = classes.take(pa.array(predictions))
    columns["probabilities"] = pa.array(list(0.1 + 0.8 * np.eye(2)[predictions]))
    pq.write_table(pa.table(columns), home / f"{name}.parquet")
    times = seconds * np.ones(9), 1e-3 * np.ones(9)
    return {
        "name": name,
        "size_bytes": size,
        "num_nonzero": 128,
        "score": Interval(value=1 - wrong.mean(), low=0.0, high=1.0),
        "degradation": Interval(value=wrong.mean(), low=0.0, high=wrong.mean() + 0.01 * (name != "fp32")),
        "latencies": (summarise(*times, 1), summarise(*times, 32)),
    }


@pytest.fixture
def candidates(home: Path, release: Release, candidate_of: Callable[..., Candidate]) -> Candidates:
    """Three candidates: the network as trained, one that fails in town B, and one that is a little worse everywhere."""
    home.mkdir(exist_ok=True)
    ids = np.arange(NUM_ROWS)
    pq.write_table(pa.table({"id": ids, "town": TOWNS}), home / "checked.parquet")
    x = pa.array(list(np.ones((NUM_ROWS, 64), np.float32)), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "y": TRUTH, ENCODED_INPUT: x}), home / "test.parquet")
    record = release.bento.choice.candidates
    dataset = record.trained.dataset
    checked = dataset.valid_rows.model_copy(update={"uri": "checked.parquet"})
    dataset = dataset.model_copy(update={"valid_rows": checked, "classes": ("down", "up")})
    trained = record.trained.model_copy(update={"dataset": dataset, "slice_columns": ("town",)})
    no_error = np.zeros(NUM_ROWS, dtype=bool)
    arguments = (
        candidate(home, "fp32", 900, no_error, 1e-3),
        candidate(home, "local", 100, (TOWNS == "B") & (ids % 10 == 0), 0.4e-3),
        candidate(home, "even", 200, ids % 40 == 0, 0.5e-3),
    )
    candidates = tuple(candidate_of(**fields) for fields in arguments)
    return record.model_copy(update={"candidates": candidates, "trained": trained, "baseline": "fp32"})


def table_of(run_id: str) -> list[dict[str, object]]:
    path = mlflow_runs.client().download_artifacts(run_id, ranking.TABLE)
    table = json.loads(Path(path).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_the_choice_is_logged_with_a_ranked_table_and_a_plot_even_if_none_passes(candidates: Candidates) -> None:
    budget = Budget(accuracy_drop=0.1)
    choice = choose(candidates, budget)
    assert choice.candidate.name == "local"
    assert [stage for stage, _, _ in describe_lineage(choice)][:3] == ["choose", "compress", "train"]
    plot = settings().path(choice.plot_uri).read_bytes()
    assert plot.startswith(b"\x89PNG")
    logged_plot = Path(mlflow_runs.client().download_artifacts(choice.run_id, candidate_table.PICTURE))
    assert logged_plot.read_bytes() == plot
    table = table_of(choice.run_id)
    assert [(row["rank"], row["candidate"], row["verdict"]) for row in table] == [
        (1, "local", "chosen"),
        (2, "even", "passed"),
        (3, "fp32", "passed"),
    ]
    assert table[1]["reason"] == "dominated by local: no better in accuracy, size or time"
    assert (table[0]["b1_ratio"], table[0]["size_bytes"], table[0]["num_nonzero"]) == (0.4, 100, 128)
    assert choose.lookup(candidates, budget) == choice
    rows = candidate_table.candidate_rows(choice)
    assert [row["verdict"] for row in rows] == ["chosen", "passed", "passed"]
    assert rows[0]["time / fp32, 32 rows"] == "0.40 (0.40–0.40)"

    with pytest.raises(NoCandidate) as caught:
        choose(candidates, Budget(size_bytes=50))
    assert "relax the budget to `size_bytes: 100`" not in caught.value.remedy  # the drop is over its limit too
    run_id = next(word for word in caught.value.where.split() if len(word.strip(",")) == 32).strip(",")
    run = mlflow_runs.client().get_run(run_id)
    assert (run.info.status, run.data.tags["chosen"]) == ("FAILED", "none")
    assert {row["verdict"] for row in table_of(run_id)} == {"rejected"}
    assert mlflow_runs.client().download_artifacts(run_id, candidate_table.PICTURE)

    mlflow_runs.client().delete_run(choice.run_id)
    assert choose.lookup(candidates, budget) is None  # the MLflow run is part of the output


def test_the_chosen_candidate_is_compared_with_each_baseline(candidates: Candidates, home: Path) -> None:
    baselines = []
    for name, is_wrong in (("majority class", TRUTH == 1), ("boosted trees", np.zeros(NUM_ROWS, dtype=bool))):
        np.save(home / f"{name}.npy", np.eye(2)[np.where(is_wrong, 1 - TRUTH, TRUTH)])
        score = Interval(value=1 - is_wrong.mean(), low=0.0, high=1.0)
        baselines.append(Baseline(name=name, predictions_uri=f"{name}.npy", num_rows=9, score=score))
    baselines.append(Baseline(name="linear regression", reason="too slow"))
    trained = candidates.trained.model_copy(update={"baselines": tuple(baselines)})
    choice = choose(candidates.model_copy(update={"trained": trained}), Budget(accuracy_drop=0.2, objective="size"))
    constant, trees = choice.comparisons
    assert (constant.name, constant.is_constant, trees.is_constant) == ("majority class", True, False)
    assert (choice.candidate.name, constant.degradation.value) == ("local", pytest.approx(-0.5 + 0.025))
    assert (constant.is_beaten, trees.is_beaten, trees.is_better) == (True, False, True)
    metrics = mlflow_runs.client().get_run(choice.run_id).data.metrics
    assert metrics["gain_over_majority_class"] == -constant.degradation.value
    assert metrics["gain_over_boosted_trees_high"] == -trees.degradation.low < 0


def test_energy_is_measured_where_the_objective_weighs_it_and_is_in_the_table(
    candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(accuracy_drop=0.1, objective={"energy": 1, "size": 1}, latency_ms={"batch_size": 32, "value": 9})
    open_without_counter = functools.partial(rapl.open_energy_counter, Path("nowhere"))
    monkeypatch.setattr(rapl, "open_energy_counter", open_without_counter)
    with pytest.raises(EngineMissing, match="energy cannot be measured"):
        choose(candidates, budget)
    counter = types.SimpleNamespace(read=lambda: 10 * time.perf_counter())  # 10 watts, whatever runs
    monkeypatch.setattr(rapl, "open_energy_counter", lambda: counter)
    monkeypatch.setattr("bloomery.models.profiling.energy._MAX_SECONDS", 0)
    choice = choose(candidates, budget)
    fp32_energy = next(candidate for candidate in choice.candidates.candidates if candidate.name == "fp32").energy
    assert fp32_energy is not None
    assert (fp32_energy.batch_size, fp32_energy.ratio.value) == (32, 1)
    assert 0 < fp32_energy.p50_j < 10
    rows = {row["candidate"]: row for row in table_of(choice.run_id)}
    assert (rows["fp32"]["b32_energy_ratio"], rows["fp32"]["b32_p50_j"]) == (1, pytest.approx(fp32_energy.p50_j))
    assert (
        next(row for row in candidate_table.candidate_rows(choice) if row["candidate"] == "fp32")["energy / fp32"]
        == "1.00 (1.00–1.00)"
    )
    assert all(
        candidate.energy is None for candidate in choose(candidates, Budget(accuracy_drop=0.1)).candidates.candidates
    )


def test_slices_classes_and_other_batch_sizes_are_measured_from_the_candidates_files(
    candidates: Candidates,
) -> None:
    def choose_within(**limits: object) -> Choice:
        return choose(candidates, Budget(accuracy_drop=0.2, **limits))

    by_slice = choose_within(slice_drop=0.1)
    assert by_slice.candidate.name == "even"
    (reason,) = by_slice.verdicts[1].reasons
    assert reason.startswith("drop in town=B up to 17.4")
    by_class = choose_within(class_drop=0.06)  # `even` is wrong on 10 of 200 rows of one class
    assert by_class.candidate.name == "fp32"
    assert by_class.verdicts[2].violations[0].message.startswith("drop in class=down up to 8.9")
    test_split = candidates.trained.dataset.test.model_copy(update={"uri": "test.parquet"})
    dataset = candidates.trained.dataset.model_copy(update={"test": test_split})
    candidates = candidates.model_copy(update={"trained": candidates.trained.model_copy(update={"dataset": dataset})})
    choice = choose(candidates, Budget(accuracy_drop=0.2, latency_ms={"batch_size": 4, "percentile": 50, "value": 1e4}))
    assert [latency.batch_size for latency in choice.candidate.latencies] == [1, 32, 4]
    assert choice.candidates.candidates[0].latency_at(4).ratio.value == 1
    assert choice.candidates.digest == candidates.digest  # times do not count


def test_the_digest_of_a_choice_does_not_count_latencies(candidates: Candidates) -> None:
    slower = tuple(
        candidate.model_copy(
            update={"latencies": tuple(summarise(2e-3 * np.ones(9), 4e-3 * np.ones(9), b) for b in (1, 32))}
        )
        for candidate in candidates.candidates
    )
    budget = Budget(accuracy_drop=0.1)
    first = choose(candidates, budget)
    again = choose.task.fn(candidates.model_copy(update={"candidates": slower}), budget)
    assert first.digest == again.digest


def test_the_plot_has_a_url_that_a_browser_can_open(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "candidates.png"
    picture.write_bytes(b"png")
    assert ranking._image_url(picture, "r1") == "data:image/png;base64,cG5n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000/")
    settings.cache_clear()
    assert ranking._image_url(picture, "r1") == ("http://tracking:5000/get-artifact?path=candidates.png&run_uuid=r1")
