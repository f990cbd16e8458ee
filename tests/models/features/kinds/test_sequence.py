"""Sequences within one row: scaling, truncation, padding, and equal encoding of single rows and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import (
    ENCODED_INPUT,
    ENCODED_LABEL,
    STATISTICS,
    Encoder,
    encode,
    encode_batches,
    encode_rows,
    fit,
    partial_statistics,
)
from tests.examples import examples

STEPS = [["x1", "y1"], ["x2", "y2"], ["x3", "y3"]]
NAMES = [name for step in STEPS for name in step]
WIDE = st.lists(st.lists(st.integers(-50, 50), min_size=6, max_size=6), min_size=2, max_size=8)
LENGTH, WIDTH = 3, 2
POINTS = st.lists(
    st.lists(st.lists(st.integers(-50, 50), min_size=WIDTH, max_size=WIDTH), max_size=5), min_size=2, max_size=8
).filter(lambda rows: any(rows))
SCALES = st.sampled_from(["standard", "min_max", "none"])
ARRAYS = [pa.list_(pa.int64()), pa.list_(pa.int8()), pa.large_list(pa.float32()), pa.list_(pa.float64())]


def fit_encoder(source: dict[str, Any], columns: dict[str, Any], size: int = 10**6) -> tuple[Encoder, pa.Table]:
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [{"kind": "sequence", **source}]})
    num_rows = len(next(iter(columns.values())))
    table = pa.table({"id": range(num_rows), "label": [row % 2 for row in range(num_rows)], **columns})
    batches = table.to_batches(max_chunksize=size)
    return fit(features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, batches)]), table


def fit_points(
    rows: list[Any], arrow_type: pa.DataType = ARRAYS[0], size: int = 10**6, **options: Any
) -> tuple[Encoder, pa.Table]:
    flat = [[value for step in row for value in step] for row in rows]
    source = {"column": "points", "length": LENGTH, "width": WIDTH, **options}
    return fit_encoder(source, {"points": pa.array(flat, arrow_type)}, size)


def scale_steps(values: np.ndarray, scale: str) -> np.ndarray:
    """The steps (S, F), scaled by numpy."""
    low, spread = values.mean(axis=0), values.std(axis=0)
    if scale == "min_max":
        low, spread = values.min(axis=0), np.ptp(values, axis=0)
    return (values - low) / np.where(spread == 0, 1, spread) if scale != "none" else values.astype(float)


def encode_one_by_one(encoder: Encoder, table: pa.Table) -> bytes:
    return b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(table.num_rows))


@settings(deadline=None, max_examples=examples(40))
@given(rows=WIDE, scale=SCALES)
def test_steps_in_wide_columns_are_scaled_per_position(rows, scale):
    columns = {name: [row[position] for row in rows] for position, name in enumerate(NAMES)}
    encoder, table = fit_encoder({"columns": STEPS, "scale": scale}, columns)
    x = encode(encoder, table)
    assert encoder.layout == Layout(kind="sequence", shape=(3, 2))
    assert x.reshape(-1, 2) == pytest.approx(scale_steps(np.array(rows).reshape(-1, 2), scale), abs=1e-5)
    assert encode_one_by_one(encoder, table) == x.tobytes()
    assert fit_encoder({"columns": STEPS, "scale": scale}, columns, size=1)[0] == encoder
    assert Encoder.model_validate_json(encoder.model_dump_json()) == encoder


@settings(deadline=None, max_examples=examples(60))
@given(rows=POINTS, kind=st.sampled_from(ARRAYS), scale=SCALES)
def test_arrays_are_truncated_or_padded_and_mark_real_steps(rows, kind, scale):
    encoder, table = fit_points(rows, kind, scale=scale)
    x = encode(encoder, table)
    assert encoder.layout == Layout(kind="sequence", shape=(LENGTH, WIDTH + 1), is_padded=True)
    is_valid = np.array([[step < len(row) for step in range(LENGTH)] for row in rows])
    assert (x[..., -1] == is_valid).all()
    assert (x[~is_valid] == 0).all()
    values = np.array([step for row in rows for step in row[:LENGTH]])
    assert x[is_valid][:, :WIDTH] == pytest.approx(scale_steps(values, scale), abs=1e-5)
    assert encode_one_by_one(encoder, table) == x.tobytes()
    assert fit_points(rows[::-1], ARRAYS[0], size=1, scale=scale)[0] == encoder


def test_the_encoding_of_a_row_does_not_depend_on_longer_rows():
    encoder, table = fit_points([[[1, 2]], [[3, 4]] * 9, []])
    assert encode(encoder, table.take(pa.array([0])))[0].tobytes() == encode(encoder, table)[0].tobytes()
    assert encode(encoder, table)[1].tobytes() == encode(encoder, fit_points([[[3, 4]] * 3, []])[1])[0].tobytes()


def test_an_array_with_an_incomplete_step_is_refused():
    encoder, _ = fit_points([[[1, 2]], [[3, 5]]])
    with pytest.raises(DataUnfit, match="column points has an array of 3 values"):
        encode(encoder, pa.table({"points": [[1, 2, 3]]}))


def test_a_missing_value_is_refused():
    columns = {name: [1, 2] for name in NAMES}
    encoder, table = fit_encoder({"columns": STEPS}, columns)
    with pytest.raises(DataUnfit, match="column y2 has a missing value"):
        encode(encoder, table.set_column(table.schema.get_field_index("y2"), "y2", pa.array([1, None])))


def test_a_column_without_steps_is_refused():
    with pytest.raises(DataUnfit, match="column points has no value"):
        fit_points([[], []])


def test_a_request_is_encoded_like_the_training_row(contract_of_points: Contract):
    encoder, table = fit_points([[[1, 2], [3, 4]], [[5, 6]] * 5, []])
    rows = table.select(["points"]).to_pylist()
    assert (
        encode(encoder, JsonRowParser(contract_of_points, encoder.columns).parse_table(rows)).tobytes()
        == encode(encoder, table).tobytes()
    )


@pytest.fixture
def contract_of_points() -> Contract:
    numbers = {"name": "points", "logicalType": "array", "required": True, "items": {"logicalType": "number"}}
    return Contract.model_validate(
        {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": "pen",
            "name": "pen",
            "version": "1.0.0",
            "status": "draft",
            "schema": [{"name": "pen", "properties": [numbers]}],
        }
    )


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
@pytest.mark.parametrize("in_array", [True, False])
def test_spark_gives_the_same_statistics_and_encoding(home: Path, in_array: bool):
    from bloomery.tasks.infrastructure import spark_session

    random = np.random.default_rng(0)
    if in_array:
        encoder, table = fit_points(
            [random.normal(size=(length, WIDTH)).tolist() for length in random.integers(0, 6, 200)],
            pa.list_(pa.float32()),
        )
    else:
        encoder, table = fit_encoder({"columns": STEPS}, {name: random.integers(0, 100, 200) for name in NAMES})
    frame = spark_session.get_session().createDataFrame(table).repartition(3)
    features = encoder.features
    summaries = frame.mapInArrow(
        lambda batches: partial_statistics(features, batches), f"{STATISTICS} string"
    ).collect()
    assert fit(features, [row[STATISTICS] for row in summaries]) == encoder
    encoded = frame.mapInArrow(
        lambda batches: encode_batches(encoder, batches),
        f"id bigint, {ENCODED_LABEL} bigint, {ENCODED_INPUT} array<float>",
    ).toArrow()
    assert encoded.sort_by("id").combine_chunks().to_pylist() == encode_rows(encoder, table).to_pylist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "set either the columns of each step, or one array column"),
        (
            {"columns": STEPS, "column": "points", "length": 3},
            "set either the columns of each step, or one array column",
        ),
        ({"column": "points"}, "an array column needs length"),
        (
            {"columns": STEPS, "length": 3},
            "an array column needs length, its maximum number of steps; columns take none",
        ),
        ({"columns": STEPS, "width": 2}, "only an array column takes width"),
        ({"columns": [["x1", "y1"], ["x2"]]}, "as many columns as the first"),
        ({"columns": [["x1", "y1"], ["x2", "x1"]]}, "column named twice in one input: x1"),
        ({"columns": [["x1", "label"]]}, "column 'label' is the label"),
    ],
    ids=str,
)
def test_invalid_sequence_inputs_are_refused(source, message):
    with pytest.raises(ValidationError, match=message):
        Features.model_validate({"key": "id", "label": "label", "inputs": [{"kind": "sequence", **source}]})
