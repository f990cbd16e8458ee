"""The one definition of how raw rows become numbers."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contracts.errors import DataUnfit
from models.config import Features, ImageInput
from models.encoder import (
    CLASS,
    ENCODED,
    Encoder,
    Moments,
    encode,
    encode_batches,
    encode_labels,
    encode_rows,
    fit,
    moments,
    read_encoder,
    summarise_batches,
)

SOURCE = ImageInput(kind="image", column="image", shape=(1, 1, 2))
FEATURES = Features(key="id", label="label", inputs=(SOURCE,))
ENCODER = Encoder(features=FEATURES, mean=3.7, scale=1.3, classes=(0, 1))
ARRAYS = [
    pa.list_(pa.uint8()),
    pa.list_(pa.int64()),
    pa.large_list(pa.uint16()),
    pa.list_(pa.uint8(), 2),
    pa.list_(pa.float32()),
    pa.list_(pa.float64()),
]
PIXELS = st.lists(st.lists(st.integers(0, 255), min_size=2, max_size=2), min_size=1, max_size=12)
FRACTIONS = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=2), min_size=1, max_size=12)


def images(rows: list[Any], kind: pa.DataType = ARRAYS[0]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(len(rows)), pa.int64()),
            "image": pa.array(rows, kind),
            "label": pa.array([row % 2 for row in range(len(rows))], pa.int64()),
        }
    )


def by_hand(encoder: Encoder, rows: list[Any]) -> np.ndarray:
    x = np.array(rows, dtype=np.float32).reshape(len(rows), *encoder.input_shape)
    return (x - np.float32(encoder.mean)) / np.float32(encoder.scale)


def edges_of(data: st.DataObject, num_rows: int) -> list[int]:
    return [0, *sorted(data.draw(st.lists(st.integers(0, num_rows), max_size=4))), num_rows]


@settings(deadline=None, max_examples=100)
@given(rows=PIXELS, kind=st.sampled_from(ARRAYS), mean=st.floats(-50, 50), scale=st.floats(0.01, 100))
def test_a_pixel_becomes_its_distance_from_the_mean_in_float32(rows, kind, mean, scale):
    encoder = ENCODER.model_copy(update={"mean": mean, "scale": scale})
    x = encode(encoder, images(rows, kind))
    assert x.dtype == np.float32
    assert np.array_equal(x, by_hand(encoder, rows))


@settings(deadline=None, max_examples=100)
@given(data=st.data(), rows=PIXELS, kind=st.sampled_from(ARRAYS))
def test_a_slice_is_encoded_as_it_would_be_within_the_whole(data, rows, kind):
    start = data.draw(st.integers(0, len(rows)))
    length = data.draw(st.integers(0, len(rows) - start))
    table = images(rows, kind)
    wanted = encode(ENCODER, table)[start : start + length]
    assert np.array_equal(encode(ENCODER, table.slice(start, length)), wanted)
    assert np.array_equal(encode(ENCODER, table.to_batches()[0].slice(start, length)), wanted)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), rows=PIXELS, kind=st.sampled_from(ARRAYS))
def test_chunks_do_not_matter(data, rows, kind):
    table = images(rows, kind)
    edges = edges_of(data, len(rows))
    cut = pa.concat_tables([table.slice(start, end - start) for start, end in itertools.pairwise(edges)])
    assert np.array_equal(encode(ENCODER, cut), encode(ENCODER, table))
    assert moments(cut, SOURCE) == moments(table, SOURCE)


def test_a_row_of_a_request_is_encoded_as_in_training(digits, encoder):
    whole = encode(encoder, digits)
    for row in (0, 1000, 1796):
        (request,) = digits.slice(row, 1).select(["image"]).to_pylist()
        alone = encode(encoder, pa.table({"image": pa.array([request["image"]], pa.list_(pa.uint8()))}))
        assert np.array_equal(alone[0], whole[row])


def test_the_training_part_has_mean_zero_and_spread_one(digits, encoder):
    x = encode(encoder, digits).astype(np.float64)
    assert (x.mean(), x.std()) == pytest.approx((0, 1), abs=1e-5)
    assert x.shape == (1797, 1, 8, 8)


def test_pixels_follow_each_other_channel_after_channel_and_row_after_row():
    features = Features(key="id", label="label", inputs=(SOURCE.model_copy(update={"shape": (2, 2, 3)}),))
    encoder = Encoder(features=features, mean=0.0, scale=1.0, classes=(0, 1))
    x_BCHW = encode(encoder, images([list(range(12))]))
    assert x_BCHW.shape == (1, 2, 2, 3)
    assert [x_BCHW[0, channel, row, column] for channel, row, column in ((0, 0, 2), (0, 1, 0), (1, 0, 0))] == [2, 3, 6]


@settings(deadline=None, max_examples=100)
@given(data=st.data(), rows=PIXELS, kind=st.sampled_from(ARRAYS[:4]))
def test_moments_of_whole_numbers_add_up_exactly_in_any_order_and_partition(data, rows, kind):
    table = images(rows, kind)
    edges = edges_of(data, len(rows))
    pieces = [moments(table.slice(start, end - start), SOURCE) for start, end in itertools.pairwise(edges)]
    pixels = [pixel for row in rows for pixel in row]
    whole = Moments(count=len(pixels), total=sum(pixels), total_of_squares=sum(pixel**2 for pixel in pixels))
    assert sum(data.draw(st.permutations(pieces)), Moments()) == whole == moments(table, SOURCE)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), rows=FRACTIONS)
def test_moments_of_fractions_add_up_in_any_order_and_partition(data, rows):
    table = images(rows, pa.list_(pa.float64()))
    edges = edges_of(data, len(rows))
    pieces = [moments(table.slice(start, end - start), SOURCE) for start, end in itertools.pairwise(edges)]
    assert sum(data.draw(st.permutations(pieces)), Moments()) == moments(table, SOURCE)


def test_the_encoder_does_not_depend_on_how_rows_are_batched():
    table = images([[0.2, 0.6], [0.1, 0.3]], pa.list_(pa.float64()))
    fitted = {
        fit(FEATURES, [moments(piece, SOURCE) for piece in pieces], [0, 1]).model_dump_json()
        for pieces in ([table], [table.slice(0, 1), table.slice(1)])
    }
    assert len(fitted) == 1


@pytest.mark.parametrize(
    ("kind", "pixel"), [(pa.int32(), 2**31 - 1), (pa.uint32(), 2**32 - 1), (pa.int64(), -(2**40))], ids=str
)
def test_moments_of_large_whole_numbers_are_exact(kind, pixel):
    table = images([[pixel, pixel]] * 5, pa.list_(kind))
    assert moments(table, SOURCE) == Moments(count=10, total=10 * pixel, total_of_squares=10 * pixel**2)


@settings(deadline=None, max_examples=100)
@given(offset=st.integers(0, 10**5), rows=PIXELS)
def test_mean_and_scale_are_those_of_the_pixels(offset, rows):
    shifted = [[pixel + offset for pixel in row] for row in rows]
    encoder = fit(FEATURES, [moments(images(shifted, pa.list_(pa.int64())), SOURCE)], [0, 1])
    assert encoder.mean == pytest.approx(np.mean(shifted))
    assert encoder.scale == pytest.approx(np.std(rows) or 1.0, rel=1e-3, abs=1e-3)


def test_a_small_spread_far_from_zero_is_measured_exactly():
    table = images([[10**9, 10**9 + 20]] * 3, pa.list_(pa.int64()))
    assert fit(FEATURES, [moments(table, SOURCE)], [0, 1]).scale == 10.0


@pytest.mark.parametrize("pixel", [0, 7, 10**6 + 1, 0.1, 0.7, 1e9])
def test_pixels_that_are_all_alike_are_not_divided_by_zero(pixel):
    kind = pa.list_(pa.float64() if isinstance(pixel, float) else pa.int64())
    table = images([[pixel, pixel]] * 3, kind)
    encoder = fit(FEATURES, [moments(table, SOURCE)], [0, 1])
    assert encoder.scale == 1
    assert np.abs(encode(encoder, table)).max() < 1e-6


def test_pixels_stay_as_they_are_where_the_recipe_says_so():
    features = Features(key="id", label="label", inputs=(SOURCE.model_copy(update={"normalise": "none"}),))
    encoder = fit(features, [Moments(count=2, total=10, total_of_squares=100)], [0, 1])
    assert encode(encoder, images([[3, 200]])).tolist() == [[[[3, 200]]]]


@pytest.mark.parametrize(("labels", "classes"), [([3, 1, 2, 1], (1, 2, 3)), (["b", "a", "b"], ("a", "b"))])
def test_classes_are_the_labels_in_order(labels, classes):
    assert fit(FEATURES, [Moments(count=1)], labels).classes == classes


@pytest.mark.parametrize(("labels", "found"), [([], r"0 class\(es\): none"), ([5, 5], r"1 class\(es\): 5")])
def test_fewer_than_two_classes_cannot_be_told_apart(labels, found):
    with pytest.raises(DataUnfit, match=found):
        fit(FEATURES, [Moments(count=1)], labels)


def test_no_value_at_all_cannot_be_fitted():
    with pytest.raises(DataUnfit):
        fit(FEATURES, [Moments(), Moments()], [0, 1])


@pytest.mark.parametrize(
    ("classes", "labels"), [((2, 5), pa.array([5, 2, 5], pa.int8())), (("no", "yes"), pa.array(["yes", "no", "yes"]))]
)
def test_a_label_becomes_its_position_among_the_classes(classes, labels):
    encoder = ENCODER.model_copy(update={"classes": classes})
    assert encode_labels(encoder, labels) == pa.array([1, 0, 1], pa.int64())
    assert encode_labels(encoder, pa.chunked_array([labels[:1], labels[1:]])) == pa.array([1, 0, 1], pa.int64())


@pytest.mark.parametrize(
    "labels", [pa.array([0, 7, 8, 7]), pa.chunked_array([[0, 7], [8, 7]])], ids=["array", "chunks"]
)
def test_a_label_that_training_did_not_see_is_refused(labels):
    with pytest.raises(DataUnfit, match="labels 7, 8 are in the data, but not in its training part"):
        encode_labels(ENCODER, labels)


def test_a_missing_label_is_refused():
    with pytest.raises(DataUnfit, match="labels None"):
        encode_labels(ENCODER, pa.array([0, None]))


@settings(deadline=None, max_examples=50)
@given(data=st.data(), rows=PIXELS, kind=st.sampled_from(ARRAYS))
def test_rows_encoded_one_by_one_are_the_rows_encoded_together(data, rows, kind):
    table = images(rows, kind)
    edges = [*range(len(rows)), len(rows)]
    one_by_one = [encode_rows(ENCODER, table.slice(row, 1)) for row in edges[:-1]]
    together = encode_rows(ENCODER, table)
    assert pa.Table.from_batches(one_by_one).combine_chunks() == pa.Table.from_batches([together])
    assert together.schema == pa.schema([("id", pa.int64()), (CLASS, pa.int64()), (ENCODED, pa.list_(pa.float32()))])
    assert np.array_equal(together[ENCODED].flatten().to_numpy(), encode(ENCODER, table).reshape(-1))
    assert together["id"] == table["id"].combine_chunks()


def test_no_rows_are_encoded_as_no_rows():
    none = images([])
    assert encode(ENCODER, none).shape == (0, 1, 1, 2)
    assert encode_rows(ENCODER, none).num_rows == 0


def test_what_spark_adds_up_is_what_the_whole_would_give(digits, features, encoder):
    batches = digits.to_batches(max_chunksize=100)
    (*summaries,) = summarise_batches(features, batches)
    assert len(summaries) == len(batches) == 18
    parts = [Moments.model_validate_json(summary["moments"][0].as_py()) for summary in summaries]
    labels = {label for summary in summaries for label in summary["labels"][0].as_py()}
    assert fit(features, parts, labels) == encoder


def test_what_spark_encodes_is_what_the_whole_would_give(digits, encoder):
    encoded = pa.Table.from_batches(encode_batches(encoder, digits.to_batches(max_chunksize=100)))
    assert encoded.combine_chunks() == pa.Table.from_batches([encode_rows(encoder, digits)])


def test_an_encoder_survives_its_file_to_the_last_bit(tmp_path: Path, digits, encoder):
    odd = encoder.model_copy(update={"mean": math.pi, "scale": 1 / 3, "classes": ("a", "1")})
    for one in (encoder, odd):
        (tmp_path / "encoder.json").write_text(one.model_dump_json(indent=1), encoding="utf-8")
        assert read_encoder(tmp_path / "encoder.json") == one


@pytest.mark.parametrize(
    "sums", [Moments(count=3, total=3, total_of_squares=10**40), Moments(count=1, total=1, unit_bits=1126)]
)
def test_moments_survive_json(sums):
    again = Moments.model_validate_json(sums.model_dump_json())
    assert again == sums
    assert type(again.total) is type(sums.total)


def test_values_too_large_to_be_scaled_are_refused():
    table = images([[1e200, 0.0]], pa.list_(pa.float64()))
    with pytest.raises(DataUnfit, match="too large to be scaled"):
        fit(FEATURES, [moments(table, SOURCE)], [0, 1])
