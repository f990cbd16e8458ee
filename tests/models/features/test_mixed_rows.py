"""Rows with inputs of different kinds: one flat vector, whose parts are those of the inputs by themselves."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.models.features.encoder import Encoder, encode
from tests.examples import examples
from tests.mixed_rows import CITY, NUMBER, PATH, PHOTO, SOUND, TEXT, fit_encoder, make_features, make_table


def test_flat_inputs_are_one_part_and_each_shaped_input_is_another():
    table = make_table(9)
    encoder = fit_encoder(make_features(NUMBER, TEXT, CITY, PHOTO), table)
    layout = encoder.layout
    assert [(part.name, part.layout.kind, part.layout.shape) for part in layout.parts] == [
        ("table", "flat", (2,)),
        ("note", "tokens", (4,)),
        ("photo", "image", (1, 2, 2)),
    ]
    assert layout.parts[0].layout.categories == ((1, 4),)
    assert (layout.kind, layout.shape, encode(encoder, table).shape) == ("mixed", (10,), (9, 10))


@pytest.mark.parametrize("source", [TEXT, PHOTO, SOUND, PATH], ids=lambda source: source["kind"])
def test_a_part_has_the_values_of_its_input_alone(source):
    table = make_table(40)
    alone = fit_encoder(make_features(source), table)
    encoder = fit_encoder(make_features(NUMBER, source, CITY), table)
    _, (part, start, stop) = encoder.layout.part_slices
    x = encode(encoder, table)
    assert part.layout == alone.layout
    assert np.array_equal(x[:, start:stop].reshape(40, *alone.input_shape), encode(alone, table))
    table_alone = fit_encoder(make_features(NUMBER, CITY), table)
    assert np.array_equal(x[:, :2], encode(table_alone, table))


COLUMNS = {"note": TEXT, "photo": PHOTO, "sound": SOUND, "path": PATH}


@settings(deadline=None, max_examples=examples(25))
@given(missing=st.frozensets(st.tuples(st.sampled_from(sorted(COLUMNS)), st.integers(0, 6)), max_size=12))
def test_a_missing_part_is_zero_and_says_so_in_any_batch(missing):
    table = make_table(7, missing)
    optional = [{**source, "missing": "absent"} for source in COLUMNS.values()]
    features = make_features(NUMBER, *optional)
    assume(all(table[name].null_count < 6 for name in COLUMNS))  # at least two rows to fit
    encoder = fit_encoder(features, table)
    assert encoder == fit_encoder(features, table, size=1)
    x = encode(encoder, table)
    assert np.isfinite(x).all()
    for part, start, stop in encoder.layout.part_slices[1:]:
        is_there = np.array([value is not None for value in table[part.name].to_pylist()])
        assert part.is_optional
        assert np.array_equal(x[:, stop], is_there.astype(np.float32))
        assert not x[~is_there, start:stop].any()
        source = make_features({**COLUMNS[part.name], "missing": "refuse"})
        present = table.filter(pa.array(is_there))
        alone = encode(fit_encoder(source, present), present)
        assert np.array_equal(x[is_there, start:stop], alone.reshape(len(present), -1))
    rows = [encode(encoder, table.slice(row, 1)) for row in range(7)]
    assert np.concatenate(rows).tobytes() == x.tobytes()


def test_an_encoder_reads_back_with_its_parts():
    encoder = fit_encoder(make_features(NUMBER, {**PHOTO, "missing": "absent"}), make_table(5))
    assert Encoder.model_validate_json(encoder.model_dump_json()).layout == encoder.layout


def test_single_inputs_have_no_new_fields():
    encoder = fit_encoder(make_features(PHOTO), make_table(5))
    assert "parts" not in encoder.layout.model_dump_json()
    assert "missing" not in json.dumps(encoder.model_dump(mode="json"))


def test_names_of_parts_are_told_apart():
    wide = {"kind": "sequence", "columns": [["a1"], ["a2"]]}
    inputs = [{**TEXT, "column": "table"}, NUMBER, {**TEXT, "column": "sequence"}, wide, {**TEXT, "column": "table"}]
    assert make_features(*inputs).part_inputs == {
        "table": (0,),
        "table__": (1,),
        "sequence": (2,),
        "sequence_": (3,),
        "table_": (4,),
    }


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([{**PHOTO, "missing": "absent"}], "needs other inputs, from which a row without 'photo' is predicted"),
        ([{"kind": "series", "columns": ["size"], "time": "t", "length": 2}, TEXT], "must be the only input"),
        (
            [{"kind": "sequence", "columns": [["a1"], ["a2"]], "missing": "absent"}, TEXT],
            "only an array column takes `missing`",
        ),
    ],
)
def test_inputs_that_cannot_be_parts_are_refused(inputs, reason):
    with pytest.raises(ValidationError, match=reason):
        make_features(*inputs)
