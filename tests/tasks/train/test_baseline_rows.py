"""The training rows that baselines are fitted to, few enough to be held in memory, and baselines that fail."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from bloomery.data_contracts.records.records import Baseline
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.data_contracts.serving.entities import code_tags
from bloomery.models.features.labels import code_tag_lists
from bloomery.models.training.data import batches
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.evaluation.scoring import GroundTruth
from bloomery.tasks.train import baselines
from bloomery.tasks.train.baselines import _num_rows_read, fit_baselines


def test_wide_rows_are_fewer():
    assert _num_rows_read(Layout(kind="flat", shape=(20,))) == 50_000
    layout = Layout(kind="image", shape=(3, 224, 224))
    assert _num_rows_read(layout) * layout.num_values * 4 <= 1 << 30
    assert _num_rows_read(Layout(kind="image", shape=(3, 20_000, 20_000))) == 1


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_failure_keeps_the_training_and_the_baselines_before_it(num_before: int, monkeypatch: pytest.MonkeyPatch):
    def fit(run: object, out: object) -> Iterator[Baseline]:
        yield from [Baseline(name="mean", metrics={"rmse": 2.0})][:num_before]
        raise MemoryError("80 GiB")

    logged: dict[str, float] = {}
    monkeypatch.setattr(baselines, "_fit_and_score", fit)
    monkeypatch.setattr(baselines.mlflow_runs, "log_metrics", lambda run_id, metrics: logged.update(metrics))
    dataset = SimpleNamespace(task="regression")
    run = SimpleNamespace(run_id="1", dataset=dataset, training=SimpleNamespace(baselines=True, privacy=None))
    *before, failed = fit_baselines(run, None)
    assert len(before) == num_before
    assert failed.name == ("other baselines" if num_before else "all baselines")
    assert failed.reason == "it failed with MemoryError: 80 GiB"
    assert logged == ({"baseline_mean_rmse": 2.0} if num_before else {})


def test_baselines_of_tags_are_scored_and_compared_by_the_words_of_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    y = torch.tensor([[0, -100, 2, -100], [2, 2, -100, -100], [-100] * 4], dtype=torch.int16)
    x = torch.tensor([[5, 6, 7, 0], [7, 7, 0, 0], [0, 0, 0, 0]], dtype=torch.float32)
    rows = Examples(x, y, np.arange(3))
    monkeypatch.setattr(batches, "read_examples", lambda *arguments: rows)
    monkeypatch.setattr(batches, "sample_examples", lambda *arguments: rows)
    classes, score = ("B-X", "I-X", "O"), Score(name="entity_f1")
    codes = code_tags(classes, y.numpy())
    truth = GroundTruth(np.arange(3), codes, np.arange(3))
    monkeypatch.setattr(baselines, "build_ground_truth", lambda *arguments: truth)
    monkeypatch.setattr(baselines.mlflow_runs, "log_metrics", lambda *arguments: None)
    split = SimpleNamespace(uri="none")
    dataset = SimpleNamespace(
        task="tagging",
        classes=classes,
        class_outputs=(),
        key="id",
        layout=Layout(kind="tokens", shape=(4,), num_tokens=10),
        train=split,
        test=split,
    )
    encoder = SimpleNamespace(units=None, fitted=[None], features=SimpleNamespace(series=None))
    training = SimpleNamespace(baselines=True, privacy=None)
    run = SimpleNamespace(run_id="1", dataset=dataset, training=training, encoder=encoder, score=score)
    out = SimpleNamespace(path=lambda name: tmp_path / name, uri=str)
    constant, of_tokens = fit_baselines(run, out)
    assert (constant.score.value, of_tokens.score.value) == (0, 1)
    assert constant.metrics["tag_accuracy"] == 0.75
    saved = [np.load(tmp_path / record.predictions_uri) for record in (constant, of_tokens)]
    assert [values.tolist() for values in saved] == [[[0, 0], [0, 0], [-1, -1]], [[1, 0], [0, 0], [-1, -1]]]
    lists = pa.array([["B-X", "O"], ["O", "O"], []], pa.list_(pa.string()))
    assert (code_tag_lists(classes, lists) == saved[1]).all()  # the measured predictions have the same form
