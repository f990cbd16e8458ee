"""A score that does not exist for the validation or the test split is refused before the training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.scores import Score
from bloomery.models.features.encoder import ENCODED_LABEL
from bloomery.models.training.config import Training
from bloomery.tasks.train.score_checks import require_defined_score


def write_splits(home: Path, val: list[float], test: list[float], kind: pa.DataType) -> SimpleNamespace:
    """The parts of a data set that the check reads."""
    for name, labels in (("val", val), ("test", test)):
        pq.write_table(pa.table({ENCODED_LABEL: pa.array(labels, kind)}), home / f"{name}.parquet")
    return SimpleNamespace(
        task="classification" if kind == pa.int64() else "regression",
        classes=("no", "yes") if kind == pa.int64() else (),
        val=SimpleNamespace(uri="val.parquet"),
        test=SimpleNamespace(uri="test.parquet"),
    )


@pytest.mark.parametrize(
    ("val", "test", "split"), [([0, 1, 0], [1, 1, 1], "test"), ([0, 0], [0, 1], "validation"), ([0, 1], [1, 0], None)]
)
def test_a_split_of_one_class_has_no_auc(val, test, split, home: Path):
    dataset, splits = write_splits(home, val, test, pa.int64()), SimpleNamespace(units=None)
    require_defined_score(dataset, Training(), splits)
    training = Training(score=Score(name="auc"))
    if split is None:
        require_defined_score(dataset, training, splits)
        return
    with pytest.raises(
        DataUnfit, match=f"AUC does not exist for the {split} split: all rows are of one class"
    ) as failure:
        require_defined_score(dataset, training, splits)
    assert "set `score` to accuracy, macro_f1 or log_loss, or change `features.split`" in failure.value.remedy


def test_a_label_of_0_has_no_percentage_error(home: Path):
    dataset = write_splits(home, [0.5, 1.5], [-2.0, 1.0], pa.float32())  # 10 + 5 * -2 is 0
    splits = SimpleNamespace(units=SimpleNamespace(mean=10.0, deviation=5.0))
    with pytest.raises(DataUnfit, match="MAPE does not exist for the test split: 1 labels are 0"):
        require_defined_score(dataset, Training(score=Score(name="mape")), splits)
    require_defined_score(dataset, Training(score=Score(name="r2")), splits)
