"""Feature groups: patches, steps and columns that are explained as one, and their importance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.feature_groups import FeatureGroups, column_names, group_features, sum_by_group
from bloomery.models.explainability.feature_importance import group_importance, token_importance
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, fit, partial_statistics
from bloomery.models.features.input_config import (
    BooleanInput,
    CategoryInput,
    DateInput,
    Input,
    NumberInput,
    SequenceInput,
    SeriesInput,
)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
def test_every_pixel_belongs_to_one_of_at_most_64_patches(channels: int, height: int, width: int) -> None:
    groups = group_features(Layout(kind="image", shape=(channels, height, width)))
    num_groups = int(np.prod(groups.grid))
    assert num_groups <= 64
    assert np.array_equal(np.unique(groups.group_of), np.arange(num_groups))
    weights = np.random.default_rng(0).normal(size=(2, channels, height, width))
    np.testing.assert_allclose(sum_by_group(weights, groups).sum((1, 2)), weights.sum((1, 2, 3)))


@given(st.integers(1, 300), st.integers(1, 12), st.booleans())
def test_many_steps_are_grouped(steps: int, values: int, is_padded: bool) -> None:
    groups = group_features(Layout(kind="sequence", shape=(steps, values + is_padded), is_padded=is_padded))
    assert int(np.prod(groups.grid)) <= 128 + values
    assert np.array_equal(np.unique(groups.group_of), np.arange(int(np.prod(groups.grid))))
    assert groups.group_of[0, :values].tolist() == list(range(values))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "id": list(range(40)),
            "age": random.normal(size=40),
            "pay": [None if row % 5 == 0 else float(row) for row in range(40)],
            "job": random.choice(["cook", "smith", "clerk"], 40).tolist(),
            "town": random.choice(["Ulm", "Bonn", "Kiel", "Hof"], 40).tolist(),
            "born": pa.array(random.integers(0, 9000, 40).astype("int32")).cast(pa.date32()),
            "is_old": (random.random(40) > 0.5).tolist(),
            "label": (random.random(40) > 0.5).astype(int).tolist(),
        }
    )


@pytest.fixture(scope="module")
def fitted(table: pa.Table) -> Encoder:
    features = Features(
        key="id",
        label="label",
        inputs=(
            NumberInput(kind="number", columns=("age", "pay"), missing="mean", indicator=True),
            CategoryInput(kind="category", columns=("job", "town")),
            DateInput(kind="date", columns=("born",), parts=("month", "day_of_week"), elapsed=True),
            BooleanInput(kind="boolean", columns=("is_old",)),
        ),
    )
    return fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, table.to_batches())]
    )


def test_a_column_owns_exactly_the_positions_that_change_with_it(table: pa.Table, fitted: Encoder) -> None:
    names = np.array(column_names(fitted))
    x = encode(fitted, table)
    assert len(names) == x.shape[1]
    for column in fitted.columns:
        shuffled = table.set_column(
            table.schema.get_field_index(column), column, table[column].take(list(range(39, -1, -1)))
        )
        changed = (encode(fitted, shuffled) != x).any(axis=0)
        assert set(names[changed]) == {column}
    groups = group_features(fitted.layout, column_names(fitted))
    assert groups.columns == fitted.columns
    assert sum_by_group(x, groups).shape == (40, 6)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (SeriesInput(kind="series", columns=("warmth", "wind"), time="at", length=3), ("warmth", "wind")),
        (
            SeriesInput(kind="series", columns=("a", "b"), time="at", length=3, missing="mean", indicator=True),
            ("a", "b", "a", "b"),
        ),
        (SequenceInput(kind="sequence", steps=(("x1", "y1"), ("x2", "y2"))), ("x", "y")),
        (SequenceInput(kind="sequence", steps=(("up", "on"), ("to", "in"))), ("value 0", "value 1")),
        (SequenceInput(kind="sequence", column="points", length=3, width=2), ("value 0", "value 1")),
    ],
)
def test_values_of_a_step_have_the_names_of_their_columns(source: Input, names: tuple[str, ...]) -> None:
    random = np.random.default_rng(0).normal(size=(4, 6))
    table = pa.table(
        {"id": range(4), "at": range(4), "label": [0, 1, 0, 1], "points": random.tolist()}
        | {name: random[:, :3].tolist() for name in ("warmth", "wind", "a", "b")}
        | dict.fromkeys(("x1", "y1", "x2", "y2", "up", "on", "to", "in"), random[:, 0])
    )
    features = Features(key="id", label="label", inputs=(source,))
    encoder = fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, table.to_batches())]
    )
    assert column_names(encoder) == names
    groups = group_features(encoder.layout, names)
    assert groups.grid == (encoder.layout.shape[0], 2)
    assert groups.group_of.shape == encoder.layout.shape


def test_importance_is_the_mean_absolute_weight_of_a_group() -> None:
    groups = FeatureGroups(np.array([0, 0, 1]), (2,), ("a", "b"))
    np.testing.assert_allclose(group_importance(np.array([[1.0, -1, 2], [1, 2, -4]]), groups), [1.5, 3])


def test_tokens_are_sorted_by_importance_without_padding() -> None:
    tokens = np.array([[5, 6, 0], [6, 7, 0]], np.float32)
    importances = token_importance(tokens, np.array([[1.0, -2, 9], [4, 1, 9]]))
    assert [(token.token, token.num_occurrences, token.importance) for token in importances] == [
        (6, 2, 3),
        (5, 1, 1),
        (7, 1, 1),
    ]
    assert [token.token for token in token_importance(tokens, np.ones((2, 3)), min_count=2)] == [6]
