"""Explanations of mixed rows: by part, by column, and within each part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.explainability.attribution import default_method
from bloomery.models.explainability.baselines import make_baseline
from bloomery.models.explainability.feature_groups import group_encoded_row, group_features
from bloomery.models.explainability.raw_columns import group_row, locate_groups, sum_by_column
from bloomery.models.explainability.shapley import compute_shap_values, select_background
from bloomery.models.features.encoder import encode
from bloomery.models.features.part_encoders import part_encoders
from tests.mixed_rows import CITY, NUMBER, PATH, PHOTO, TEXT, fit_encoder, make_features, make_table

MISSING = frozenset({("photo", 1), ("note", 2)})
TABLE = make_table(12, MISSING)
INPUTS = [NUMBER, {**TEXT, "missing": "absent"}, CITY, {**PHOTO, "missing": "absent"}, PATH]
ENCODER = fit_encoder(make_features(*INPUTS), TABLE)
X = encode(ENCODER, TABLE)
WEIGHTS = np.random.default_rng(0).normal(size=X.shape[1])


def predict(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows @ WEIGHTS, np.float64)


def explain_row(row: int):
    groups = group_row(ENCODER, X[row])
    background = select_background(ENCODER.layout, X[row], X, num_groups=groups.num_groups, max_evaluations=20_000)
    return groups, background, compute_shap_values(predict, X[row], background, groups.group_of, max_evaluations=20_000)


def test_encoders_of_parts_encode_what_the_mixed_row_has():
    names = [encoder.columns for encoder in part_encoders(ENCODER)]
    assert names == [("size", "city"), ("note",), ("photo",), ("path",)]
    for encoder, (part, start, stop) in zip(part_encoders(ENCODER), ENCODER.layout.part_slices, strict=True):
        assert encoder.layout == part.layout
        present = TABLE.slice(5, 3)
        assert np.array_equal(encode(encoder, present).reshape(3, -1), X[5:8, start:stop])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_contributions_of_columns_add_up_to_the_output(row):
    groups, background, shap_values = explain_row(row)
    columns = sum_by_column(ENCODER, groups, shap_values.values, X[row])
    assert list(columns) == list(ENCODER.columns)
    assert sum(columns.values()) == pytest.approx(predict(X[row : row + 1])[0] - predict(background).mean(), abs=1e-5)
    expected = sum((X[row, position] - background[:, position].mean()) * WEIGHTS[position] for position in (0,))
    assert columns["size"] == pytest.approx(expected, abs=1e-5)


def test_regions_name_their_part():
    groups, _, shap_values = explain_row(0)
    regions = locate_groups(ENCODER, groups, shap_values.values, X[0])
    by_part = {name: [region for region in regions if region["part"] == name] for name in ("note", "photo", "path")}
    assert "".join(region["text"] for region in by_part["note"]) == f" {TABLE['note'][0].as_py()}"
    assert {"rows", "columns", "contribution", "part"} in [set(region) for region in by_part["photo"]]
    assert {region["value"] for region in by_part["path"]} == {0, 1}
    columns = sum_by_column(ENCODER, groups, shap_values.values, X[0])
    for name, regions_of_part in by_part.items():
        assert sum(region["contribution"] for region in regions_of_part) == pytest.approx(columns[name], abs=1e-6)


def test_a_missing_part_counts_as_missing():
    groups, _, shap_values = explain_row(1)
    regions = locate_groups(ENCODER, groups, shap_values.values, X[1])
    assert {"part": "photo", "present": False} in [
        {key: region[key] for key in ("part", "present")} for region in regions if "present" in region
    ]


def test_rows_of_a_background_have_texts_without_words():
    _, background, _ = explain_row(0)
    (_, _, _), (_, start, stop), *_ = ENCODER.layout.part_slices
    assert not background[:, start:stop].any()
    assert (background[:, stop] == 1).all()


def test_groups_of_a_layout_and_of_an_encoder_have_the_same_positions():
    generic = group_features(ENCODER.layout)
    assert [groups.num_groups for groups in generic.parts] == [2, 4, 4, 6]
    assert generic.num_groups == 18
    assert np.array_equal(generic.group_of, group_encoded_row(ENCODER).group_of)


def test_baselines_are_those_of_the_parts():
    x = torch.from_numpy(X)
    baseline = make_baseline(x, ENCODER.layout, x).numpy()
    _, text, photo, path = ENCODER.layout.part_slices
    assert baseline[:, 0] == pytest.approx(X[:, 0].mean(), abs=1e-6)
    assert not baseline[:, text.start : text.stop].any()
    assert not baseline[:, photo.start : photo.stop].any()
    for place in (text, photo):
        assert np.array_equal(baseline[:, place.stop], X[:, place.stop])
    assert np.array_equal(baseline[:, path.start + 2 : path.stop : 3], X[:, path.start + 2 : path.stop : 3])


def test_blurred_baselines_need_an_image():
    encoder = fit_encoder(make_features(NUMBER, TEXT), TABLE.slice(3))
    x = torch.from_numpy(encode(encoder, TABLE.slice(3)))
    with pytest.raises(RecipeInvalid, match="rows without an image"):
        make_baseline(x, encoder.layout, x, "blur")
    assert make_baseline(torch.from_numpy(X), ENCODER.layout, torch.from_numpy(X), "blur").shape == X.shape


def test_texts_and_categories_of_mixed_rows_have_no_gradients():
    network = torch.nn.Linear(X.shape[1], 1)
    assert default_method(network, ENCODER.layout) == "shapley"
    images = fit_encoder(make_features(NUMBER, PHOTO), make_table(5))
    assert default_method(network, images.layout) == "integrated_gradients"
