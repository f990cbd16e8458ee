"""Windows over time: equal encoding of every type and batch, missing values, and incomplete windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, fit, partial_statistics, read_encoder
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Mlp
from tests.examples import examples

LENGTH = 3
KINDS = [pa.list_(pa.int64()), pa.list_(pa.int16()), pa.large_list(pa.float64()), pa.list_(pa.int8(), LENGTH)]
WINDOWS = st.lists(st.lists(st.integers(-100, 100), min_size=LENGTH, max_size=LENGTH), min_size=2, max_size=6)
SERIES: dict[str, Any] = {"kind": "series", "columns": ["a", "b"], "time": "t", "length": LENGTH}


def fit_encoder(a: pa.Array, b: pa.Array, size: int = 10**6, **options: Any) -> tuple[Encoder, pa.Table]:
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [{**SERIES, **options}]})
    table = pa.table({"id": range(len(a)), "y": [row % 2 for row in range(len(a))], "a": a, "b": b})
    batches = table.to_batches(max_chunksize=size)
    return fit(features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, batches)]), table


@settings(deadline=None, max_examples=examples(40))
@given(rows=WINDOWS, kind=st.sampled_from(KINDS), scale=st.sampled_from(["standard", "none"]))
def test_windows_are_scaled_per_column_for_every_type_and_batch(rows, kind, scale):
    second_column = pa.array([[value / 3 for value in row] for row in rows], pa.list_(pa.float64()))
    encoder, table = fit_encoder(pa.array(rows, kind), second_column, scale=scale)
    x = encode(encoder, table)
    assert x.shape == (len(rows), LENGTH, 2)
    for column, values in enumerate((np.array(rows, np.float64), np.array(rows) / 3)):
        spread = values.std() if np.ptp(values) else 1.0
        expected = (values - values.mean()) / spread if scale == "standard" else values
        assert x[:, :, column] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(len(rows))) == x.tobytes()
    shuffled = fit_encoder(
        pa.array(rows[::-1], KINDS[0]), second_column.take(pa.array(range(len(rows)))[::-1]), 1, scale=scale
    )[0]
    assert shuffled == encoder


GAPS = st.lists(
    st.lists(st.none() | st.integers(-20, 20), min_size=LENGTH, max_size=LENGTH), min_size=2, max_size=6
).filter(lambda rows: any(value is not None for row in rows for value in row))


def fill_window(row: list[int | None], method: str, mean: float) -> list[float]:
    """The window, filled by a loop over its values."""
    values: list[float] = []
    for value in row:
        fill = values[-1] if values and method == "previous" else 0.0 if method == "zero" else mean
        values.append(fill if value is None else value)
    return values


@settings(deadline=None, max_examples=examples(60))
@given(
    rows=GAPS,
    missing=st.sampled_from(["previous", "mean", "zero"]),
    indicator=st.booleans(),
    scale=st.sampled_from(["standard", "none"]),
    kind=st.sampled_from(KINDS[:3]),
)
def test_missing_values_are_filled_within_their_window(rows, missing, indicator, scale, kind):
    complete_column = pa.array([[1.0, 2.0, 4.0]] * len(rows))
    options = {"missing": missing, "indicator": indicator, "scale": scale}
    encoder, table = fit_encoder(pa.array(rows, kind), complete_column, **options)
    present = np.array([value for row in rows for value in row if value is not None], np.float64)
    expected = np.array([fill_window(row, missing, present.mean()) for row in rows])
    if scale == "standard":
        expected = (expected - present.mean()) / (present.std() or 1.0)
    x = encode(encoder, table)
    assert encoder.layout.shape == x.shape[1:] == (LENGTH, 4 if indicator else 2)
    assert x[:, :, 0] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    if indicator:
        assert x[:, :, 2].tolist() == [[float(value is None) for value in row] for row in rows]
        assert not x[:, :, 3].any()
    assert b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(len(rows))) == x.tobytes()
    order = pa.array(range(len(rows))[::-1])
    assert fit_encoder(pa.array(rows[::-1], KINDS[0]), complete_column.take(order), 1, **options)[0] == encoder


def test_a_column_of_only_missing_values_is_refused():
    missing_windows = pa.array([[None] * LENGTH] * 2, KINDS[0])
    with pytest.raises(DataUnfit, match="column a has no value in the training split"):
        fit_encoder(missing_windows, pa.array([[1, 2, 3]] * 2), missing="previous")


def test_values_beyond_float32_are_clamped():
    encoder, table = fit_encoder(pa.array([[1e300, -1e300, 0]] * 2), pa.array([[1.0, 2, 3]] * 2), scale="none")
    assert np.isfinite(encode(encoder, table)).all()


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([[1, 2, 3], [1, 2]], "of 2 values"),
        ([[1, 2, 3], None], "of 0 values"),
        ([[1, 2, 3], [1, None, 3]], "with a missing value"),
        ([[1, 2, 3, 4], [1, 2]], "of 2, 4 values"),
    ],
    ids=str,
)
def test_incomplete_windows_are_refused(windows, message):
    encoder, table = fit_encoder(pa.array([[1, 2, 3]] * 2), pa.array([[1, 2, 3]] * 2))
    with pytest.raises(DataUnfit, match=f"column a has windows {message}"):
        encode(encoder, table.set_column(2, "a", pa.array(windows)))


def test_a_fitted_series_round_trips_through_its_file(tmp_path: Path):
    encoder, table = fit_encoder(pa.array([[1, 2, 3], [7, 2, 1]]), pa.array([[0.1, 2, 3]] * 2), spacing=0.5, group="g")
    (tmp_path / "encoder.json").write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
    restored = read_encoder(tmp_path / "encoder.json")
    assert restored == encoder
    assert encode(restored, table).tobytes() == encode(encoder, table).tobytes()
    assert restored.features.window_lengths == {"a": LENGTH, "b": LENGTH}


@pytest.mark.parametrize(
    ("series", "features", "message"),
    [
        ({"columns": ["a", "t"]}, {}, "is the series' time"),
        ({"group": "a"}, {}, "is the series' group"),
        ({"group": "t"}, {}, "both time and group"),
        ({"group": "id"}, {}, "every row would be a series of its own"),
        ({"length": 1}, {}, "greater than or equal to 2"),
        ({"spacing": 0}, {}, "greater than 0"),
        ({"horizon": -1}, {}, "greater than or equal to 0"),
        ({"columns": ["a", "y"]}, {}, "column 'y' is the label"),
        ({"indicator": True}, {}, "`indicator` needs a `missing` other than refuse"),
        ({}, {"split": {"by": "time", "column": "a"}}, "the split cannot use it"),
        ({}, {"split": {"by": "time", "column": "t", "apart": ["b"]}}, "the split cannot use it"),
        ({"time": "id"}, {"deduplicate": True}, "no two rows share a time"),
    ],
    ids=str,
)
def test_invalid_series_inputs_are_refused(series, features, message):
    with pytest.raises(ValidationError, match=message):
        Features.model_validate({"key": "id", "label": "y", "inputs": [{**SERIES, **series}], **features})


def test_a_forecast_may_read_its_own_label_column():
    source = {**SERIES, "columns": ["a", "y"], "horizon": 2}
    features = Features.model_validate({"key": "id", "label": "y", "task": "regression", "inputs": [source]})
    assert features.is_forecast
    assert features.label_column not in ("y", "a")


def test_an_mlp_reads_windows_as_one_vector_and_can_be_pruned_and_exported(tmp_path: Path):
    blueprint = Blueprint(
        config=Mlp(kind="mlp", hidden=(16, 8)), layout=Layout(kind="sequence", shape=(LENGTH, 2)), num_outputs=2
    )
    smaller, pruned = prune_network(build_network(blueprint).eval(), blueprint, Pruning(ratio=0.5))
    assert pruned.config.hidden == (8, 4)
    x = torch.randn(40, LENGTH, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smaller(x), smaller(x.flatten(1)))
    assert export_onnx(smaller, x, tmp_path / "float.onnx") <= TOLERANCE
