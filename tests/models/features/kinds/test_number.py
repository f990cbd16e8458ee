"""Numbers, booleans and dates: each setting against values computed by hand."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, fit, partial_statistics

VALUES = [3.0, None, -1.0, 10.0, 0.0, 4.0, None, 100.0]
PRESENT = np.array([value for value in VALUES if value is not None])


def fit_encoder(source: dict[str, Any], values: Any) -> tuple[Encoder, pa.Table]:
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [source]})
    column = values if isinstance(values, pa.Array) else pa.array(values)
    table = pa.table({"id": range(len(column)), "y": [row % 2 for row in range(len(column))], "a": column})
    return fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, table.to_batches())]
    ), table


def encode_values(source: dict[str, Any], values: Any) -> list[list[float]]:
    encoder, table = fit_encoder({"columns": ["a"], **source}, values)
    return encode(encoder, table).tolist()


def number(**settings: Any) -> list[float]:
    return [row[0] for row in encode_values({"kind": "number", **settings}, VALUES)]


def by_hand(values: np.ndarray, fill: float) -> list[float]:
    remaining = iter(values.astype(np.float32).tolist())
    return [float(np.float32(fill)) if value is None else next(remaining) for value in VALUES]


def test_standard_scaling_uses_mean_and_deviation_of_non_missing_values():
    scaled = (PRESENT - PRESENT.mean()) / PRESENT.std()
    assert number(missing="mean") == pytest.approx(by_hand(scaled, 0.0), rel=1e-6)
    median = (3.0 - PRESENT.mean()) / PRESENT.std()
    assert number(missing="median") == pytest.approx(by_hand(scaled, median), rel=1e-6)


@pytest.mark.parametrize(("missing", "fill"), [("zero", 0.0), (7, 7.0), (-2.5, -2.5), ("median", 3.0)])
def test_missing_values_are_filled_as_configured(missing, fill):
    assert number(missing=missing, scale="none") == by_hand(PRESENT, fill)


def test_robust_scaling_uses_median_and_quartiles():
    low, middle, high = np.quantile(PRESENT, [0.25, 0.5, 0.75], method="inverted_cdf")
    assert number(missing="median", scale="robust") == pytest.approx(by_hand((PRESENT - middle) / (high - low), 0.0))


def test_min_max_scaling_is_from_0_to_1_after_clipping():
    clipped = np.clip(PRESENT, 0, 50)
    values = number(missing="zero", scale="min_max", clip={"low": 0, "high": 50})
    assert values == pytest.approx(by_hand(clipped / 50, 0.0))


def test_clipping_at_quantiles_precedes_mean_and_deviation():
    low, high = np.quantile(PRESENT, [0.2, 0.8], method="inverted_cdf")
    clipped = np.clip(PRESENT, low, high)
    values = number(missing="mean", clip={"low_quantile": 0.2, "high_quantile": 0.8})
    assert values == pytest.approx(by_hand((clipped - clipped.mean()) / clipped.std(), 0.0), abs=1e-6)


def test_the_logarithm_keeps_the_sign():
    assert number(missing="zero", transform="log", scale="none") == pytest.approx(
        by_hand(np.sign(PRESENT) * np.log1p(np.abs(PRESENT)), 0.0)
    )


def test_a_quantile_transform_gives_ranks_and_normal_scores():
    ranks = (np.argsort(np.argsort(PRESENT)) + 0.5) / len(PRESENT)
    fill = float(np.interp(0, np.sort(PRESENT), np.sort(ranks)))
    assert number(missing="zero", transform="quantile_uniform", scale="none") == pytest.approx(by_hand(ranks, fill))
    scores = np.array([NormalDist().inv_cdf(rank) for rank in ranks])
    fill = NormalDist().inv_cdf(fill)
    assert number(missing="zero", transform="quantile_normal", scale="none") == pytest.approx(by_hand(scores, fill))


def test_a_quantile_transform_of_many_values_is_uniform():
    values = np.random.default_rng(0).lognormal(size=50_000)
    x = np.array(encode_values({"kind": "number", "transform": "quantile_uniform", "scale": "none"}, values))
    assert np.quantile(x, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=2e-3)


def test_indicators_follow_all_columns():
    rows = encode_values({"kind": "number", "missing": "zero", "scale": "none", "indicator": True}, VALUES)
    assert [row[1] for row in rows] == [float(value is None) for value in VALUES]


@pytest.mark.parametrize("scale", ["standard", "robust", "min_max"])
def test_constant_values_become_zero(scale):
    assert encode_values({"kind": "number", "scale": scale}, [0.1] * 4) == [[0.0]] * 4


def test_values_too_large_for_float32_are_clamped():
    largest = float(np.finfo(np.float32).max)
    assert encode_values({"kind": "number", "scale": "none"}, [1e300, -1e300]) == [[largest], [-largest]]


@pytest.mark.parametrize("kind", ["number", "boolean", "date"])
def test_missing_values_are_refused_by_default(kind):
    column = {"number": [1.0, 2.0, None], "boolean": [True, False, None], "date": [date(2024, 1, 1)] * 2 + [None]}[kind]
    source = {"kind": kind, "columns": ["a"], **({"parts": ["month"]} if kind == "date" else {})}
    encoder, table = fit_encoder(source, column)
    with pytest.raises(DataUnfit, match="column a has a missing value"):
        encode(encoder, table)


def test_a_column_without_values_is_refused():
    with pytest.raises(DataUnfit, match="column a has no value in the training split"):
        fit_encoder({"kind": "number", "columns": ["a"], "missing": "mean"}, pa.array([None, None], pa.float64()))


def test_booleans_are_ones_and_zeros():
    rows = encode_values({"kind": "boolean", "missing": True, "indicator": True}, [True, False, None])
    assert rows == [[1, 0], [0, 0], [1, 1]]


def circle(position: float, num_parts: int) -> list[float]:
    angle = 2 * math.pi * position / num_parts
    return [math.sin(angle), math.cos(angle)]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2024, 2, 29, 23, 59, tzinfo=UTC),
        datetime(1969, 12, 31, 1, 2, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
    ],
    ids=str,
)
def test_calendar_parts_are_points_on_circles(moment):
    source = {"kind": "date", "parts": ["month", "day_of_month", "day_of_year", "day_of_week", "hour", "minute"]}
    expected = [
        *circle(moment.month - 1, 12),
        *circle(moment.day - 1, 31),
        *circle(moment.timetuple().tm_yday - 1, 366),
        *circle(moment.weekday(), 7),
        *circle(moment.hour, 24),
        *circle(moment.minute, 60),
    ]
    rows = encode_values(source, pa.array([moment, moment], pa.timestamp("us", "UTC")))
    assert rows[0] == pytest.approx(expected, abs=1e-6)
    start = moment.replace(hour=0, minute=0)
    (day, _) = encode_values({**source, "parts": source["parts"][:4]}, pa.array([start.date()] * 2))
    assert day == pytest.approx(expected[:8], abs=1e-6)


def test_elapsed_days_have_mean_0_and_deviation_1_and_a_missing_date_is_0():
    days = [date(2024, 1, 1), date(2024, 1, 3), None]
    rows = encode_values({"kind": "date", "elapsed": True, "missing": "zero", "indicator": True}, days)
    assert rows == [[-1, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "number", "columns": []},
        {"kind": "number", "columns": ["a", "a"]},
        {"kind": "number", "columns": ["y"]},
        {"kind": "number", "columns": ["id"]},
        {"kind": "number", "columns": ["a"], "missing": "mode"},
        {"kind": "number", "columns": ["a"], "clip": {}},
        {"kind": "number", "columns": ["a"], "clip": {"low": 2, "high": 1}},
        {"kind": "number", "columns": ["a"], "clip": {"low": 2, "low_quantile": 0.1}},
        {"kind": "number", "columns": ["a"], "transform": "quantile_normal"},
        {"kind": "category", "columns": ["a"], "encoding": "hash"},
        {"kind": "category", "columns": ["a"], "num_buckets": 3},
        {"kind": "category", "columns": ["a"], "smoothing": 3},
        {"kind": "category", "columns": ["a"], "encoding": "hash", "num_buckets": 3, "min_count": 2},
        {"kind": "date", "columns": ["a"]},
        {"kind": "date", "columns": ["a"], "parts": ["month", "month"]},
        {"kind": "audio", "column": "a", "sample_rate": 8000, "duration_s": 0.01},
        {"kind": "text", "column": "a", "length": 4, "vocabulary_size": 100},
    ],
    ids=str,
)
def test_invalid_inputs_are_refused(source):
    with pytest.raises(ValidationError):
        Features.model_validate({"key": "id", "label": "y", "inputs": [source]})


def test_a_series_must_be_the_only_input():
    series = {"kind": "series", "columns": ["i"], "time": "t", "length": 2}
    with pytest.raises(ValidationError, match="must be the only input"):
        Features.model_validate({"key": "k", "label": "y", "inputs": [series, {"kind": "number", "columns": ["a"]}]})
