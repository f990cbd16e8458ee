"""The training rows that baselines are fitted to, few enough to be held in memory, and baselines that fail."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bloomery.data_contracts.records.records import Baseline
from bloomery.data_contracts.records.tensor_layout import Layout
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
