"""Rows that a JSON writer may write, as a strategy of Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

JSON_ROWS = st.lists(
    st.fixed_dictionaries(
        {"n": st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)},
        optional={"t": st.none() | st.text(st.characters(codec="utf-8"), max_size=5), "l": st.lists(st.booleans())},
    ),
    max_size=6,
)
