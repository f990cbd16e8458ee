"""Gates: a version must reach its score and be no worse than the champion, also on recent data."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.records.records import Baseline, BaselineComparison, Bento, Interval, Release
from bloomery.data_contracts.records.score_format import degradation_name
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.evaluation.gates import Gates, RecentData
from bloomery.models.evaluation.score_intervals import degradation_interval
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode, fit, partial_statistics
from bloomery.models.inference import tagged_words
from bloomery.models.inference.outputs import compute_outputs, predictions_from
from bloomery.models.inference.runtime import create_session
from bloomery.models.inference.tagged_words import TaggedWords
from bloomery.tasks.evaluation.held_out import read_held_out_rows
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.promote import gates as gates_module
from bloomery.tasks.promote.gates import (
    align_classes,
    compare_aligned,
    compare_with_champion,
    require_better_than_baselines,
    require_not_worse,
    require_score,
)
from bloomery.tasks.promote.recent_data_gate import require_not_worse_on_recent_data

NUM_ROWS = 300
X = np.random.default_rng(0).normal(size=NUM_ROWS)
NUMBERS = 100 + 5 * X
CLASSES = np.where(X > 0, "up", "down")


def rows_for(task: Task) -> pa.Table:
    return pa.table({"id": np.arange(NUM_ROWS), "x": X, "y": NUMBERS if task == "regression" else CLASSES})


def encoder_for(task: Task) -> Encoder:
    number = {"kind": "number", "columns": ["x"], "scale": "none"}
    features = Features.model_validate({"key": "id", "label": "y", "task": task, "inputs": [number]})
    summary = next(iter(partial_statistics(features, rows_for(task).to_batches())))
    return fit(features, summary["statistics"].to_pylist())


def network(path: Path, task: Task, shift: float) -> None:
    """Writes an ONNX file that is exact at a `shift` of 0; its error grows with `shift`."""
    weights, biases = ([[1.0]], [shift]) if task == "regression" else ([[-1.0, 1.0]], [0.0, shift])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(biases)])],
        [
            onnx.numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in (("w", weights), ("b", biases))
        ],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.fixture
def make_bento(home: Path, release: Release, contract_of: Any) -> Any:
    """Makes a bento in the store with a network that is wrong by `shift`, and the records of its predictions."""

    def make(tag: str, task: Task, shift: float) -> Bento:
        encoder = encoder_for(task)
        folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / tag.replace(":", "/") / "src" / "artifacts"
        folder.mkdir(parents=True)
        (folder / "encoder.json").write_text(encoder.model_dump_json())
        (folder / "manifest.json").write_text(json.dumps({"is_row_by_row": False}))
        kind = "number" if task == "regression" else "string"
        contract = contract_of(
            {"name": "x", "logicalType": "number"}, {"name": "y", "logicalType": kind, "required": True}
        )
        (folder / "contract.json").write_text(contract.model_dump_json(by_alias=True, exclude_defaults=True))
        network(folder / "model.onnx", task, shift)
        rows = rows_for(task)
        predictions = predictions_from(
            encoder, compute_outputs(create_session(folder / "model.onnx"), encode(encoder, rows), is_row_by_row=False)
        )
        predicted = (
            predictions if task == "regression" else np.array(encoder.classes, dtype=object)[predictions.argmax(axis=1)]
        )
        stage_folder = settings().home / "stages" / tag.replace(":", "-")
        stage_folder.mkdir(parents=True)
        table = pa.table({"id": rows["id"], "truth": rows["y"], "prediction": pa.array(predicted)})
        if task == "classification":
            table = table.append_column("probabilities", pa.array(list(predictions)))
        pq.write_table(table, stage_folder / "a.parquet")
        pq.write_table(rows, stage_folder / "rows.parquet")
        (stage_folder / "encoder.json").write_text(encoder.model_dump_json())
        folder_uri = str(stage_folder.relative_to(settings().home))
        return make_record(release, tag, task, folder_uri, encoder)

    return make


def make_record(release: Release, tag: str, task: Task, folder_uri: str, encoder: Encoder) -> Bento:
    choice = release.bento.choice
    dataset = choice.candidates.trained.dataset.model_copy(
        update={
            "task": task,
            "label": "y",
            "inputs": ("x",),
            "classes": encoder.classes,
            "encoder_uri": f"{folder_uri}/encoder.json",
            "test_rows_uri": f"{folder_uri}/rows.parquet",
        }
    )
    trained = choice.candidates.trained.model_copy(update={"dataset": dataset})
    candidate = choice.candidate.model_copy(update={"predictions_uri": f"{folder_uri}/a.parquet"})
    candidates = choice.candidates.model_copy(update={"trained": trained, "candidates": (candidate,)})
    return release.bento.model_copy(
        update={"tag": tag, "choice": choice.model_copy(update={"candidate": candidate, "candidates": candidates})}
    )


def version_of(bento: Bento) -> Any:
    return SimpleNamespace(tags={"bento": bento.tag})


def check_not_worse(bento: Bento, gates: Gates, champion: Any) -> None:
    require_not_worse(bento, gates, champion, compare_with_champion(bento, champion))


def test_held_out_rows_have_the_order_of_the_predictions(make_bento: Any) -> None:
    rows = read_held_out_rows(make_bento("m:one", "regression", 0.0).choice)
    assert (rows.column_names, rows["x"].to_pylist()) == (["id", "x"], X.tolist())


@pytest.mark.parametrize(("task", "gate"), [("classification", "champion_drop"), ("regression", "champion_rise")])
def test_a_version_that_is_worse_than_the_champion_is_refused(task: Task, gate: str, make_bento: Any) -> None:
    good, equal, bad = (make_bento(f"m:{name}", task, shift) for name, shift in (("a", 0.1), ("b", 0.1), ("c", 0.6)))
    check_not_worse(equal, Gates(champion_drop=0.05), version_of(good))
    check_not_worse(good, Gates(champion_drop=0.05), version_of(bad))
    check_not_worse(bad, Gates(), None)
    check_not_worse(bad, Gates(), version_of(bad))
    with pytest.raises(ReleaseRefused, match="against champion m:a") as refused:
        check_not_worse(bad, Gates(champion_drop=0.05), version_of(good))
    assert gate in refused.value.where
    check_not_worse(bad, Gates(champion_drop=1.0, champion_rise=99.0), version_of(good))


def with_score(bento: Bento, name: str) -> Bento:
    """The same version by another score."""
    choice = bento.choice
    trained = choice.candidates.trained.model_copy(update={"stated_score": Score.model_validate({"name": name})})
    candidates = choice.candidates.model_copy(update={"trained": trained})
    return bento.model_copy(update={"choice": choice.model_copy(update={"candidates": candidates})})


@pytest.mark.parametrize(
    ("task", "name"), [("classification", "log_loss"), ("classification", "macro_f1"), ("regression", "r2")]
)
def test_versions_are_compared_by_the_score_of_the_recipe(task: Task, name: str, make_bento: Any) -> None:
    good, bad = make_bento("m:a", task, 0.0), make_bento("m:c", task, 2.0)
    score = Score.model_validate({"name": name})
    with pytest.raises(ReleaseRefused, match=f"against champion m:a {score.title} has a") as refused:
        check_not_worse(with_score(bad, name), Gates(), version_of(good))
    assert ("champion_rise" if score.is_error else "champion_drop") in refused.value.where
    check_not_worse(with_score(good, name), Gates(), version_of(bad))


@pytest.mark.parametrize("name", ["auc", "average_precision", "macro_f1", "log_loss"])
def test_a_column_for_the_classes_of_the_champion_alone_changes_no_score(name: str) -> None:
    random = np.random.default_rng(2)
    truth = (random.random(500) < 0.1).astype(int)
    score = Score.model_validate({"name": name})
    versions = []
    for noise in (1.0, 1.5):
        share = 1 / (1 + np.exp(-(3 * truth - 2 + noise * random.normal(size=500))))
        versions.append(np.stack([1 - share, share], axis=1))
    aligned = [align_classes(encoder_for("classification"), shares, ["down", "up"]) for shares in versions]
    assert [shares.shape for shares in aligned] == [(500, 3)] * 2
    assert compare_aligned(score, truth, *aligned) == degradation_interval(score, truth, *versions)


def test_each_gate_limits_its_own_score(release: Release, home: Path) -> None:
    bento = with_score(make_record(release, "m:x", "classification", "nowhere", encoder_for("classification")), "auc")
    update = {"score": Interval(value=0.8, low=0.7, high=0.9), "metrics": {"accuracy": 0.6, "auc": 0.8}}
    candidate = bento.choice.candidate.model_copy(update=update)
    bento = bento.model_copy(update={"choice": bento.choice.model_copy(update={"candidate": candidate})})
    require_score(bento, Gates(min_accuracy=0.5, min_score=0.75))
    with pytest.raises(ReleaseRefused, match=r"AUC is 80\.00%"):
        require_score(bento, Gates(min_score=0.85))
    with pytest.raises(ReleaseRefused, match=r"accuracy is 60\.00%"):
        require_score(bento, Gates(min_accuracy=0.7))


@pytest.mark.parametrize(
    ("degradations", "problem"),
    [
        ({"majority class": (-0.3, -0.4, -0.2), "boosted trees": (0.02, 0.005, 0.03)}, None),
        ({"majority class": (-0.3, -0.4, -0.2), "boosted trees": (0.04, 0.02, 0.06)}, "boosted trees has 50.00%"),
        ({"majority class": (-0.01, -0.05, 0.03)}, "majority class has 50.00%"),
        ({}, "no baseline was fitted"),
    ],
)
def test_a_version_must_beat_the_baselines_if_the_recipe_says_so(
    degradations: dict[str, tuple[float, float, float]], problem: str | None, release: Release
) -> None:
    comparisons = tuple(
        BaselineComparison(
            name=name,
            score=Interval(value=0.5, low=0.4, high=0.6),
            degradation=Interval(value=value, low=low, high=high),
            is_constant=name == "majority class",
        )
        for name, (value, low, high) in degradations.items()
    )
    bento = release.bento.model_copy(
        update={"choice": release.bento.choice.model_copy(update={"comparisons": comparisons})}
    )
    require_better_than_baselines(bento, Gates())
    if problem is None:
        require_better_than_baselines(bento, Gates(beats="baseline"))
        return
    with pytest.raises(ReleaseRefused, match=problem) as refused:
        require_better_than_baselines(bento, Gates(beats="baseline"))
    assert "gates.beats" in refused.value.where


def test_a_gate_names_the_baselines_that_are_missing(release: Release) -> None:
    failed = Baseline(name="majority class", reason="it failed with MemoryError: 80 GiB")
    trees = BaselineComparison(
        name="boosted trees",
        score=Interval(value=0.5, low=0.4, high=0.6),
        degradation=Interval(value=-0.1, low=-0.2, high=-0.05),
    )
    choice = release.bento.choice
    trained = choice.candidates.trained.model_copy(update={"baselines": (failed,)})
    candidates = choice.candidates.model_copy(update={"trained": trained})
    changed = choice.model_copy(update={"candidates": candidates, "comparisons": (trees,)})
    bento = release.bento.model_copy(update={"choice": changed})
    with pytest.raises(ReleaseRefused, match="majority class was not computed: it failed with MemoryError") as refused:
        require_better_than_baselines(bento, Gates(beats="baseline"))
    assert "mend what the reason names" in refused.value.remedy


def test_a_champion_with_another_task_is_not_replaced(make_bento: Any) -> None:
    regression, classification = make_bento("m:f", "regression", 0.0), make_bento("m:c", "classification", 0.0)
    with pytest.raises(ReleaseRefused, match="champion m:c is a classification, and this version is a regression"):
        check_not_worse(regression, Gates(), version_of(classification))


def test_a_champion_that_cannot_be_read_does_not_block_its_successor(make_bento: Any) -> None:
    good, broken = make_bento("m:a", "regression", 1.0), make_bento("m:b", "regression", 0.0)
    folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / "m" / "b" / "src" / "artifacts"
    (folder / "model.onnx").write_bytes(b"no network")
    check_not_worse(good, Gates(), version_of(broken))
    (folder / "encoder.json").write_text("{}")
    check_not_worse(good, Gates(), version_of(broken))


@pytest.mark.parametrize(
    ("task", "score", "gates", "message"),
    [
        ("classification", 0.8, Gates(min_accuracy=0.9), "accuracy is 80.00%"),
        ("classification", 0.9, Gates(min_accuracy=0.9), None),
        ("regression", 21.5, Gates(max_error=21.3), "RMSE is 21.5"),
        ("regression", 21.3, Gates(max_error=21.3), None),
        ("regression", 1e9, Gates(), None),
    ],
)
def test_the_score_must_reach_the_gate(
    task: Task, score: float, gates: Gates, message: str | None, release: Release, home: Path
) -> None:
    bento = make_record(release, "m:x", task, "nowhere", encoder_for(task))
    candidate = bento.choice.candidate.model_copy(update={"score": Interval(value=score, low=score, high=score)})
    bento = bento.model_copy(update={"choice": bento.choice.model_copy(update={"candidate": candidate})})
    if message is None:
        require_score(bento, gates)
    else:
        with pytest.raises(ReleaseRefused, match=message):
            require_score(bento, gates)


def log_requests(home: Path, x: np.ndarray, days_ago: float = 1, role: str = "champion") -> list[str]:
    """Writes rows to the prediction log and returns the ids of their requests."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    requests = [f"{role}-{days_ago}-{position}" for position in range(len(x))]
    folder = home / "predictions" / "m" / f"day={at:%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "at": pa.array([at] * len(x), pa.timestamp("us", "UTC")),
            "request": requests,
            "row": pa.array([0] * len(x), pa.int32()),
            "role": [role] * len(x),
            "columns": [{"x": float(value)} for value in x],
        }
    )
    pq.write_table(table, folder / f"{role}.parquet")
    return requests


def write_labels(home: Path, requests: list[str], labels: Any) -> Path:
    folder = home / "labels" / "m"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"request": requests, "label": labels}), folder / "labels.parquet")
    return folder


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_version_that_is_worse_on_recent_data_is_refused(task: Task, make_bento: Any, home: Path) -> None:
    """Since the test split was made every row has shifted by one, which only the new version has learned."""
    make_bento("m:old", task, 0.0)
    make_bento("m:new", task, 1.0)
    gates = Gates(champion_drop=0.02, champion_rise=0.02)
    x = np.random.default_rng(1).normal(size=400)
    requests = log_requests(home, x)
    # A shift of one standard unit is five units of the label.
    unit = float(np.std(NUMBERS)) if task == "regression" else 0.0
    labels = NUMBERS.mean() + unit * (x + 1) if task == "regression" else np.where(2 * x + 1 > 0, "up", "down")
    write_labels(home, requests, labels)
    result = require_not_worse_on_recent_data("m", "m:new", "m:old", gates)
    assert result.startswith("on 400 recent labelled rows the ")
    with pytest.raises(ReleaseRefused, match="on 400 recent labelled rows") as refused:
        require_not_worse_on_recent_data("m", "m:old", "m:new", gates)
    assert "labels" in refused.value.where
    score = Score(name="log_loss") if task == "classification" else Score(name="r2")
    with pytest.raises(ReleaseRefused, match=f"{degradation_name(score)} of {score.title} against m:new"):
        require_not_worse_on_recent_data("m", "m:old", "m:new", gates, score)


def test_recent_rows_without_the_score_are_compared_by_the_default(make_bento: Any, home: Path) -> None:
    make_bento("m:old", "classification", 0.0)
    make_bento("m:new", "classification", 0.0)
    write_labels(home, log_requests(home, np.abs(X)), ["up"] * NUM_ROWS)
    gates = Gates(champion_drop=0.1)
    result = require_not_worse_on_recent_data("m", "m:new", "m:old", gates, Score(name="auc"))
    assert "the drop of accuracy" in result


def test_missing_recent_data_refuses_no_version_and_is_described(make_bento: Any, home: Path, tmp_path: Path) -> None:
    make_bento("m:a", "classification", 0.0)
    make_bento("m:b", "classification", 0.0)

    def describe(gates: Gates = Gates(), champion: str | None = "m:a") -> str:  # noqa: B008
        return require_not_worse_on_recent_data("m", "m:b", champion, gates)

    assert "no other champion" in describe(champion=None)
    assert "no other champion" in describe(champion="m:b")
    assert "no label has arrived" in describe()
    requests = log_requests(home, X[:150])
    old_requests, shadow_requests = log_requests(home, X, days_ago=40), log_requests(home, X, role="shadow")
    write_labels(home, [*requests, *old_requests, *shadow_requests], [*CLASSES[:150], *CLASSES, *CLASSES])
    assert "150 labelled rows, fewer than 200" in describe()
    assert describe(Gates(recent=RecentData(min_rows=100), champion_drop=0.05)).startswith(
        "on 150 recent labelled rows"
    )
    assert describe(Gates(recent=RecentData(min_rows=100, window="60d"), champion_drop=0.05)).startswith(
        "on 450 recent labelled rows"
    )
    (Path(os.environ["BENTOML_HOME"]) / "bentos" / "m" / "a" / "src" / "artifacts" / "model.onnx").write_bytes(b"none")
    assert "the log lacks columns that one of the versions reads" in describe(Gates(recent=RecentData(min_rows=100)))
    with pytest.raises(DataMissing, match="cannot be read"):
        describe(Gates(recent=RecentData(labels=str(tmp_path / "none.parquet"))))


def test_words_that_a_version_has_not_read_are_wrong_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    classes, num_rows = ("B-X", "O"), 50
    measured = pa.table({"id": range(num_rows), "truth": [["B-X"]] * num_rows, "prediction": [["B-X"]] * num_rows})
    rows = pa.table({"words": [["Ada", "met", "Max"]] * num_rows, "tags": [["B-X", "O", "B-X"]] * num_rows})
    champion = SimpleNamespace(classes=classes, columns=("words",))
    monkeypatch.setattr(gates_module, "read_measured_predictions", lambda choice: measured)
    monkeypatch.setattr(gates_module, "read_slice_values", lambda dataset, keys, names: rows.select(names))
    monkeypatch.setattr(gates_module, "_open_network", lambda tag: None)

    def compare(num_read: int) -> Any:
        words = TaggedWords(["Ada", "met", "Max"], np.array([0, 1, 0][:num_read]), np.ones(num_read))
        monkeypatch.setattr(tagged_words, "tag_words", lambda encoder, table, compute: [words] * num_rows)
        dataset = SimpleNamespace(key="id", label="tags", classes=classes)
        trained = SimpleNamespace(dataset=dataset, score=Score(name="tag_accuracy"))
        bento = SimpleNamespace(choice=SimpleNamespace(candidates=SimpleNamespace(trained=trained)))
        return gates_module._compare_tags(bento, "m:one", champion)

    assert compare(3).value == pytest.approx(2 / 3)  # this version reads one word, and the champion three
    assert compare(1).value == 0
