"""ONNX Runtime sessions and softmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bloomery.models.inference.runtime import create_session, run_session, softmax
from tests.examples import examples

LOGITS = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(-(2.0**120), 2.0**120, width=32) | st.floats(-5, 5, width=32),
)


@settings(deadline=None, max_examples=examples(200))
@given(LOGITS)
def test_probabilities_sum_to_one_for_any_logits(logits_BK):
    shares_BK = softmax(logits_BK)
    assert (shares_BK.dtype, shares_BK.shape) == (np.float64, logits_BK.shape)
    assert ((shares_BK >= 0) & (shares_BK <= 1)).all()
    assert shares_BK.sum(axis=1) == pytest.approx(1, abs=1e-12)


@settings(deadline=None, max_examples=examples(200))
@given(LOGITS)
def test_a_larger_logit_never_has_a_smaller_probability(logits_BK):
    for logits_K, shares_K in zip(logits_BK, softmax(logits_BK), strict=True):
        assert (np.diff(shares_K[np.argsort(logits_K, kind="stable")]) >= 0).all()


def test_equal_logits_have_equal_probabilities_and_a_dominant_one_has_all():
    assert softmax(np.full((1, 4), 3e38, np.float32)).tolist() == [[0.25] * 4]
    assert softmax(np.array([[3e38, -3e38, 0]], np.float32)).tolist() == [[1, 0, 0]]


def test_probabilities_are_proportional_to_exponentials():
    (shares_K,) = softmax(np.array([[0, np.log(2), np.log(5)]], np.float32))
    assert shares_K == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-7)


def test_a_session_has_the_endpoints_settings(exported):
    runtime = create_session(exported)
    assert runtime.get_providers() == ["CPUExecutionProvider"]
    assert runtime.get_session_options().intra_op_num_threads == 1


def test_outputs_are_float32_logits_per_row(exported, splits):
    runtime, x = create_session(exported), splits.test.x[:17].numpy()
    batch = run_session(runtime, x)
    assert (batch.dtype, batch.shape) == (np.float32, (17, 10))
    single_rows = np.concatenate([run_session(runtime, row[None]) for row in x])
    np.testing.assert_allclose(batch, single_rows, atol=1e-5)
