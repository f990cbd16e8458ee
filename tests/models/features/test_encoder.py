"""The encoder gives the same bits for single rows, batches, Spark and requests."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import (
    ENCODED_INPUT,
    ENCODED_LABEL,
    STATISTICS,
    Encoder,
    cut_at_splits,
    encode,
    encode_batches,
    encode_labels,
    encode_rows,
    encoded_schema,
    fit,
    partial_statistics,
    read_encoder,
)
from tests.examples import examples

COLUMNS = {
    "id": ("integer", None, True),
    "label": ("string", None, True),
    "number": ("number", "float64", False),
    "short": ("number", "float32", False),
    "whole": ("integer", "int64", False),
    "byte": ("integer", "uint8", True),
    "word": ("string", None, False),
    "code": ("integer", "int32", False),
    "flag": ("boolean", None, False),
    "day": ("date", None, False),
    "time": ("timestamp", None, False),
}
CONTRACT = Contract.model_validate(
    {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "mixed",
        "name": "mixed",
        "version": "1.0.0",
        "status": "draft",
        "schema": [
            {
                "name": "rows",
                "properties": [
                    {
                        "name": name,
                        "logicalType": kind,
                        **({"physicalType": physical} if physical else {}),
                        "required": required,
                        "primaryKey": name == "id",
                    }
                    for name, (kind, physical, required) in COLUMNS.items()
                ],
            }
        ],
    }
)
SCHEMA = arrow_schema(CONTRACT.columns)
NUMBERS = ["number", "short", "whole", "byte"]
INPUTS: list[dict[str, Any]] = [
    {"kind": "number", "columns": NUMBERS, "missing": "mean"},
    {"kind": "number", "columns": NUMBERS, "missing": "median", "scale": "robust", "indicator": True},
    {"kind": "number", "columns": NUMBERS, "missing": -3.5, "scale": "min_max", "clip": {"low": -10, "high": 1e6}},
    {
        "kind": "number",
        "columns": NUMBERS,
        "missing": "zero",
        "transform": "log",
        "clip": {"low_quantile": 0.1, "high_quantile": 0.8},
    },
    {"kind": "number", "columns": NUMBERS, "missing": "mean", "transform": "quantile_uniform", "scale": "none"},
    {"kind": "number", "columns": NUMBERS, "missing": "median", "transform": "quantile_normal", "scale": "none"},
    {"kind": "number", "columns": NUMBERS, "missing": "zero", "scale": "none"},
    {"kind": "category", "columns": ["word", "code", "flag"]},
    {"kind": "category", "columns": ["word", "code"], "encoding": "index", "min_count": 2, "max_categories": 2},
    {"kind": "category", "columns": ["word", "code"], "encoding": "hash", "num_buckets": 7},
    {"kind": "category", "columns": ["word", "flag"], "encoding": "target"},
    {"kind": "boolean", "columns": ["flag"], "missing": True, "indicator": True},
    {
        "kind": "date",
        "columns": ["day", "time"],
        "parts": ["month", "day_of_month", "day_of_year", "day_of_week", "hour", "minute"],
        "elapsed": True,
        "missing": "zero",
        "indicator": True,
    },
]
FEATURES = Features.model_validate({"key": "id", "label": "label", "inputs": INPUTS})

WORDS = st.sampled_from(["a", "b", "ä", "", "a b"]) | st.text(max_size=4)
ROW = st.fixed_dictionaries(
    {
        "label": st.sampled_from("xyz"),
        "number": st.none() | st.floats(-1e3, 1e3) | st.floats(allow_nan=False, allow_infinity=False),
        "short": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "whole": st.none() | st.integers(-50, 50) | st.integers(-(2**63), 2**63 - 1),
        "byte": st.integers(0, 255),
        "word": st.none() | WORDS,
        "code": st.none() | st.integers(-3, 3),
        "flag": st.none() | st.booleans(),
        "day": st.none() | st.dates(),
        "time": st.none() | st.datetimes(timezones=st.just(UTC)),
    }
)
FULL = {
    "label": "x",
    "number": 0.5,
    "short": 1.5,
    "whole": 3,
    "byte": 4,
    "word": "a",
    "code": 1,
    "flag": True,
    "day": date(2024, 2, 29),
    "time": datetime(2024, 2, 29, 12, tzinfo=UTC),
}


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"id": position, **row} for position, row in enumerate(rows)], schema=SCHEMA)


# The first two rows ensure two classes and a value in every column.
TABLES = st.lists(ROW, max_size=12).map(lambda rows: table_of([FULL, {**FULL, "label": "y", "number": 7.0}, *rows]))


def split_into_batches(table: pa.Table, data: st.DataObject) -> list[pa.RecordBatch]:
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, table.num_rows), max_size=4))), table.num_rows]
    return [
        table.slice(start, end - start).combine_chunks().to_batches()[0]
        for start, end in itertools.pairwise(edges)
        if end > start
    ]


def summaries(features: Features, batches: list[pa.RecordBatch]) -> Iterator[str]:
    return (summary[STATISTICS][0].as_py() for summary in partial_statistics(features, batches))


def fit_encoder(table: pa.Table, features: Features = FEATURES) -> Encoder:
    return fit(features, summaries(features, table.to_batches()))


@settings(deadline=None, max_examples=examples(30))
@given(table=TABLES, data=st.data())
def test_the_encoder_is_independent_of_batches_partitions_and_order(table, data):
    batches = data.draw(st.permutations(split_into_batches(table, data)))
    boundary = data.draw(st.integers(0, len(batches)))
    partition_summaries = [*summaries(FEATURES, batches[boundary:]), *summaries(FEATURES, batches[:boundary])]
    assert fit(FEATURES, partition_summaries).model_dump_json() == fit_encoder(table).model_dump_json()


@settings(deadline=None, max_examples=examples(30))
@given(table=TABLES, training_table=TABLES, data=st.data(), is_training=st.booleans())
def test_encoding_is_equal_for_all_rows_batches_and_single_rows(table, training_table, data, is_training):
    encoder = fit_encoder(training_table)
    x = encode(encoder, table, is_training=is_training)
    parts = [encode(encoder, batch, is_training=is_training) for batch in split_into_batches(table, data)]
    single_rows = [encode(encoder, table.slice(row, 1), is_training=is_training) for row in range(table.num_rows)]
    chunked = pa.Table.from_batches(split_into_batches(table, data))
    assert x.tobytes() == np.concatenate(parts).tobytes() == np.concatenate(single_rows).tobytes()
    assert encode(encoder, chunked, is_training=is_training).tobytes() == x.tobytes()


@settings(deadline=None, max_examples=examples(80))
@given(table=TABLES, training_table=TABLES, is_training=st.booleans())
def test_valid_rows_are_encoded_as_finite_numbers(table, training_table, is_training):
    encoder = fit_encoder(training_table)
    x = encode(encoder, table, is_training=is_training)
    assert x.shape == (table.num_rows, *encoder.input_shape)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()


def to_json_value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


@settings(deadline=None, max_examples=examples(30))
@given(table=TABLES, training_table=TABLES)
def test_a_request_is_encoded_like_the_training_row(table, training_table):
    encoder = fit_encoder(training_table)
    parser = JsonRowParser(CONTRACT, encoder.columns)
    rows = [{name: to_json_value(row[name]) for name in encoder.columns} for row in table.to_pylist()]

    def encode_request(rows: list[dict[str, Any]]) -> np.ndarray:
        return encode(encoder, parser.to_columns(parser.parse_json(json.dumps({"rows": rows}).encode())))

    x = encode(encoder, table)
    assert encode(encoder, parser.parse_table(rows)).tobytes() == x.tobytes()
    assert encode_request(rows).tobytes() == x.tobytes()
    for row, expected in zip(rows, x, strict=True):
        present = {name: value for name, value in row.items() if value is not None}
        assert encode_request([present])[0].tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_gives_the_same_statistics_and_encoding(home: Path):
    from bloomery.tasks.infrastructure import spark_session

    random = np.random.default_rng(0)
    number = random.lognormal(size=300)
    rows = [
        {
            **FULL,
            "label": "xyz"[position % 3],
            "number": number[position],
            "word": None if position % 7 == 0 else f"w{position % 11}",
        }
        for position in range(300)
    ]
    table = table_of(rows)
    encoder = fit_encoder(table)
    byte = table.schema.get_field_index("byte")
    widened = table.set_column(byte, "byte", table["byte"].cast(pa.int16()))  # Spark has no unsigned integers
    frame = spark_session.get_session().createDataFrame(widened).repartition(3)
    summary_rows = frame.mapInArrow(
        lambda batches: partial_statistics(FEATURES, batches), f"{STATISTICS} string"
    ).collect()
    assert fit(FEATURES, [row[STATISTICS] for row in summary_rows]) == encoder
    encoded = frame.mapInArrow(
        lambda batches: encode_batches(encoder, batches),
        f"id bigint, {ENCODED_LABEL} bigint, {ENCODED_INPUT} array<float>",
    ).toArrow()
    assert encoded.sort_by("id").combine_chunks().to_pylist() == encode_rows(encoder, table).to_pylist()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_and_the_endpoint_encode_any_rows_to_the_same_bits(home: Path):
    """One Spark job encodes all rows; the endpoint gets each row as a request."""
    from bloomery.tasks.infrastructure import spark_session

    rows: list[dict[str, Any]] = [FULL, {**FULL, "label": "y", "number": 7.0}]

    @settings(max_examples=examples(300), deadline=None, phases=[Phase.generate])
    @given(ROW)
    def draw(row: dict[str, Any]) -> None:
        rows.append(row)

    draw()
    table = table_of(rows)
    encoder = fit_encoder(table)
    byte = table.schema.get_field_index("byte")
    widened = table.set_column(byte, "byte", table["byte"].cast(pa.int16()))  # Spark has no unsigned integers
    frame = spark_session.get_session().createDataFrame(widened).repartition(3)
    encoded = frame.mapInArrow(
        lambda batches: encode_batches(encoder, batches),
        f"id bigint, {ENCODED_LABEL} bigint, {ENCODED_INPUT} array<float>",
    ).toArrow()
    encoded_by_spark = encoded.sort_by("id")[ENCODED_INPUT].to_pylist()
    parser = JsonRowParser(CONTRACT, encoder.columns)
    assert len(encoded_by_spark) == len(rows) >= examples(300)
    for row, spark_values in zip(rows, encoded_by_spark, strict=True):
        body = json.dumps({"rows": [{name: to_json_value(row[name]) for name in encoder.columns}]}).encode()
        x = encode(encoder, parser.to_columns(parser.parse_json(body)))
        assert x.tobytes() == np.array(spark_values, np.float32).tobytes()


def test_splits_in_one_batch_are_encoded_separately():
    rows = [{**FULL, "label": "xy"[position % 2], "word": "abc"[position % 3]} for position in range(12)]
    table = table_of(rows)
    encoder = fit_encoder(table)
    (batch,) = table.to_batches()
    parts = list(cut_at_splits(batch, pa.array(["train"] * 5 + ["val"] * 3 + ["train"] * 4)))
    assert [(name, rows.num_rows) for name, rows in parts] == [("train", 5), ("val", 3), ("train", 4)]
    for (name, rows), start in zip(parts, (0, 5, 8), strict=True):
        encoded = encode_rows(encoder, rows, is_training=name == "train")
        assert encoded.schema == encoded_schema(encoder, pa.int64())
        expected = encode_rows(encoder, table.slice(start, rows.num_rows), is_training=name == "train")
        assert encoded.to_pylist() == expected.to_pylist()
    assert list(cut_at_splits(batch.slice(0, 0), pa.array([], pa.string()))) == []


def test_flat_inputs_are_concatenated_in_the_order_of_the_recipe():
    features = Features.model_validate(
        {
            "key": "id",
            "label": "label",
            "inputs": [
                {"kind": "boolean", "columns": ["flag"]},
                {"kind": "number", "columns": ["byte", "whole"], "scale": "none"},
                {"kind": "category", "columns": ["word"], "encoding": "index"},
            ],
        }
    )
    table = table_of([FULL, {**FULL, "label": "y", "flag": False, "byte": 9, "word": "b"}])
    encoder = fit_encoder(table, features)
    assert encoder.columns == ("flag", "byte", "whole", "word")
    assert encode(encoder, table).tolist() == [[1, 4, 3, 2], [0, 9, 3, 3]]


def test_the_layout_of_flat_rows_has_the_positions_of_category_indices():
    inputs = [
        {"kind": "boolean", "columns": ["flag"], "indicator": True},
        {"kind": "category", "columns": ["word", "code"], "encoding": "index"},
        {"kind": "category", "columns": ["word"], "encoding": "one_hot"},
        {"kind": "number", "columns": ["byte"]},
        {"kind": "category", "columns": ["byte"], "encoding": "index", "max_categories": 1},
    ]
    features = Features.model_validate({"key": "id", "label": "label", "inputs": inputs})
    table = table_of([{**FULL, "word": word, "label": label} for word, label in ("ax", "by", "cx")])
    encoder = fit_encoder(table, features)
    assert encoder.layout == Layout(kind="flat", shape=(11,), categories=((2, 5), (3, 3), (10, 3)))
    codes = encode(encoder, table)[:, [2, 3, 10]]
    assert codes.tolist() == [[2, 2, 2], [3, 2, 2], [4, 2, 2]]


def test_the_layout_of_an_image_is_its_shape(encoder):
    assert encoder.layout == Layout(kind="image", shape=(1, 8, 8))


def test_integers_beyond_2_to_53_are_rounded_to_the_nearest_float():
    features = Features.model_validate(
        {"key": "id", "label": "label", "inputs": [{"kind": "number", "columns": ["whole"], "scale": "none"}]}
    )
    table = table_of([{**FULL, "whole": 2**53 + 1}, {**FULL, "label": "y", "whole": 2**63 - 1}])
    assert encode(fit_encoder(table, features), table).tolist() == [[float(2**53)], [float(2**63)]]


def test_an_empty_table_is_encoded_as_an_empty_array():
    encoder = fit_encoder(table_of([FULL, {**FULL, "label": "y"}]))
    empty = table_of([])
    assert encode(encoder, empty).shape == (0, *encoder.input_shape)
    assert encode_rows(encoder, empty).num_rows == 0
    assert encode_rows(encoder, empty, is_training=True).num_rows == 0


def test_an_encoder_round_trips_through_its_file_exactly(tmp_path: Path):
    encoder = fit_encoder(table_of([FULL, {**FULL, "label": "y", "number": 1 / 3, "word": "1"}]))
    (tmp_path / "encoder.json").write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
    assert read_encoder(tmp_path / "encoder.json") == encoder


@pytest.mark.parametrize(("labels", "classes"), [([3, 1, 2, 1], (1, 2, 3)), (["b", "a", "b"], ("a", "b"))])
def test_classes_are_the_sorted_labels(labels, classes):
    features = Features.model_validate(
        {"key": "id", "label": "label", "inputs": [{"kind": "boolean", "columns": ["flag"]}]}
    )
    table = pa.table({"label": labels, "flag": [True] * len(labels)})
    assert fit_encoder(table, features).classes == classes


@pytest.mark.parametrize(("rows", "message"), [([], r"0 class\(es\): none"), ([FULL, FULL], r"1 class\(es\): x")])
def test_fewer_than_two_classes_are_refused(rows, message):
    with pytest.raises(DataUnfit, match=message):
        fit_encoder(table_of(rows))


def test_an_empty_partition_changes_nothing():
    table = table_of([FULL, {**FULL, "label": "y"}])
    assert fit(FEATURES, [*summaries(FEATURES, []), *summaries(FEATURES, table.to_batches())]) == fit_encoder(table)


LABELLED = fit_encoder(table_of([{**FULL, "label": "no"}, {**FULL, "label": "yes"}]))


def test_a_label_becomes_its_class_index():
    labels = pa.array(["yes", "no", "yes"])
    assert encode_labels(LABELLED, labels) == pa.array([1, 0, 1], pa.int64())
    assert encode_labels(LABELLED, pa.chunked_array([labels[:1], labels[1:]])) == pa.array([1, 0, 1], pa.int64())


@pytest.mark.parametrize("labels", [pa.array(["no", "7", "8"]), pa.chunked_array([["no", "7"], ["8", "7"]])])
def test_a_label_that_is_not_in_the_training_split_is_refused(labels):
    with pytest.raises(DataUnfit, match="labels 7, 8 are in the data, but not in its training split"):
        encode_labels(LABELLED, labels)


def test_a_missing_label_is_refused():
    with pytest.raises(DataUnfit, match="labels None"):
        encode_labels(LABELLED, pa.array(["no", None]))
