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
from bloomery.data_contracts.records.records import Candidate, Candidates, Choice, Interval, Release
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
    """What `candidate_of` is to be told of one that answers `wrong` rows (bool) wrongly. Afterwards its ONNX file and
    its table of answers are there."""
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
    answers = np.where(wrong, 1 - TRUTH, TRUTH)
    columns = {"id": np.arange(NUM_ROWS), "truth": classes.take(pa.array(TRUTH))}
    pq.write_table(pa.table({**columns, "answer": classes.take(pa.array(answers))}), home / f"{name}.parquet")
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
def options(home: Path, release: Release, candidate_of: Callable[..., Candidate]) -> Candidates:
    """Three candidates: the network as trained, one that fails in town B, and one that is a little worse everywhere."""
    home.mkdir(exist_ok=True)
    ids = np.arange(NUM_ROWS)
    pq.write_table(pa.table({"id": ids, "town": TOWNS}), home / "checked.parquet")
    x = pa.array(list(np.ones((NUM_ROWS, 64), np.float32)), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "y": TRUTH, ENCODED_INPUT: x}), home / "test.parquet")
    made = release.bento.choice.candidates
    dataset = made.trained.dataset
    checked = dataset.valid_rows.model_copy(update={"uri": "checked.parquet"})
    dataset = dataset.model_copy(update={"valid_rows": checked, "classes": ("down", "up")})
    trained = made.trained.model_copy(update={"dataset": dataset, "slice_columns": ("town",)})
    nothing = np.zeros(NUM_ROWS, dtype=bool)
    figures = (
        candidate(home, "fp32", 900, nothing, 1e-3),
        candidate(home, "local", 100, (TOWNS == "B") & (ids % 10 == 0), 0.4e-3),
        candidate(home, "even", 200, ids % 40 == 0, 0.5e-3),
    )
    candidates = tuple(candidate_of(**one) for one in figures)
    return made.model_copy(update={"candidates": candidates, "trained": trained, "baseline": "fp32"})


def table_of(run_id: str) -> list[dict[str, object]]:
    place = mlflow_runs.client().download_artifacts(run_id, ranking.TABLE)
    table = json.loads(Path(place).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_the_choice_is_logged_with_a_ranked_table_and_a_plot_even_if_none_passes(options: Candidates) -> None:
    budget = Budget(accuracy_drop=0.1)
    chosen = choose(options, budget)
    assert chosen.candidate.name == "local"
    assert [stage for stage, _, _ in describe_lineage(chosen)][:3] == ["choose", "compress", "train"]
    picture = settings().path(chosen.plot_uri).read_bytes()
    assert picture.startswith(b"\x89PNG")
    kept = Path(mlflow_runs.client().download_artifacts(chosen.run_id, candidate_table.PICTURE))
    assert kept.read_bytes() == picture
    table = table_of(chosen.run_id)
    assert [(row["rank"], row["candidate"], row["verdict"]) for row in table] == [
        (1, "local", "chosen"),
        (2, "even", "passed"),
        (3, "fp32", "passed"),
    ]
    assert table[1]["why"] == "dominated by local: no better in accuracy, size or time"
    assert (table[0]["b1_ratio"], table[0]["size_bytes"], table[0]["num_nonzero"]) == (0.4, 100, 128)
    assert choose.lookup(options, budget) == chosen
    in_words = candidate_table.candidate_rows(chosen)
    assert [row["verdict"] for row in in_words] == ["chosen", "passed", "passed"]
    assert in_words[0]["time / fp32, 32 rows"] == "0.40 (0.40–0.40)"

    with pytest.raises(NoCandidate) as caught:
        choose(options, Budget(size_bytes=50))
    assert "relax the budget to `size_bytes: 100`" not in caught.value.remedy  # the drop is over its limit too
    run_id = next(word for word in caught.value.where.split() if len(word.strip(",")) == 32).strip(",")
    run = mlflow_runs.client().get_run(run_id)
    assert (run.info.status, run.data.tags["chosen"]) == ("FAILED", "none")
    assert {row["verdict"] for row in table_of(run_id)} == {"over budget"}
    assert mlflow_runs.client().download_artifacts(run_id, candidate_table.PICTURE)

    mlflow_runs.client().delete_run(chosen.run_id)
    assert choose.lookup(options, budget) is None  # what a person would look at is gone


def test_energy_is_measured_where_the_objective_weighs_it_and_is_in_the_table(
    options: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(accuracy_drop=0.1, objective={"energy": 1, "size": 1}, latency_ms={"batch_size": 32, "value": 9})
    nowhere = functools.partial(rapl.open_energy_counter, Path("nowhere"))
    monkeypatch.setattr(rapl, "open_energy_counter", nowhere)
    with pytest.raises(EngineMissing, match="energy cannot be measured"):
        choose(options, budget)
    counter = types.SimpleNamespace(read=lambda: 10 * time.perf_counter())  # 10 watts, whatever runs
    monkeypatch.setattr(rapl, "open_energy_counter", lambda: counter)
    monkeypatch.setattr("bloomery.models.profiling.energy._MAX_SECONDS", 0)
    chosen = choose(options, budget)
    of_fp32 = next(one for one in chosen.candidates.candidates if one.name == "fp32").energy
    assert of_fp32 is not None
    assert (of_fp32.batch_size, of_fp32.ratio.value) == (32, 1)
    assert 0 < of_fp32.p50_j < 10
    rows = {row["candidate"]: row for row in table_of(chosen.run_id)}
    assert (rows["fp32"]["b32_energy_ratio"], rows["fp32"]["b32_p50_j"]) == (1, pytest.approx(of_fp32.p50_j))
    assert (
        next(row for row in candidate_table.candidate_rows(chosen) if row["candidate"] == "fp32")["energy / fp32"]
        == "1.00 (1.00–1.00)"
    )
    assert all(one.energy is None for one in choose(options, Budget(accuracy_drop=0.1)).candidates.candidates)


def test_slices_classes_and_other_batch_sizes_are_measured_from_the_candidates_files(
    options: Candidates,
) -> None:
    def chosen(**limits: object) -> Choice:
        return choose(options, Budget(accuracy_drop=0.2, **limits))

    by_slice = chosen(slice_drop=0.1)
    assert by_slice.candidate.name == "even"
    (reason,) = by_slice.verdicts[1].reasons
    assert reason.startswith("drop in town=B up to 17.4")
    by_class = chosen(class_drop=0.06)  # the even one loses 10 of 200 rows of one class, and none of the other
    assert by_class.candidate.name == "fp32"
    assert by_class.verdicts[2].violations[0].message.startswith("drop in class=down up to 8.9")
    first = options.trained.dataset.test.model_copy(update={"uri": "test.parquet"})
    dataset = options.trained.dataset.model_copy(update={"test": first})
    options = options.model_copy(update={"trained": options.trained.model_copy(update={"dataset": dataset})})
    timed = choose(options, Budget(accuracy_drop=0.2, latency_ms={"batch_size": 4, "percentile": 50, "value": 1e4}))
    assert [one.batch_size for one in timed.candidate.latencies] == [1, 32, 4]
    assert timed.candidates.candidates[0].latency_at(4).ratio.value == 1
    assert timed.candidates.digest == options.digest  # times do not count


def test_the_digest_of_a_choice_does_not_count_latencies(options: Candidates) -> None:
    slower = tuple(
        one.model_copy(update={"latencies": tuple(summarise(2e-3 * np.ones(9), 4e-3 * np.ones(9), b) for b in (1, 32))})
        for one in options.candidates
    )
    budget = Budget(accuracy_drop=0.1)
    first = choose(options, budget)
    again = choose.task.fn(options.model_copy(update={"candidates": slower}), budget)
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
