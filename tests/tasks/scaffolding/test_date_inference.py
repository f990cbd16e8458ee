"""Infers how dates are written."""

from __future__ import annotations

import pyarrow as pa
import pytest

from bloomery.tasks.scaffolding.profiling.date_inference import (
    CUT_NOTE,
    DAY_FIRST_NOTE,
    MONTH_FIRST_NOTE,
    NO_DAY_NOTE,
    TWO_DIGITS_NOTE,
    DateShapes,
    FormatCounter,
    choose_format,
)


def infer(texts: list[str], max_others: int = 0) -> tuple[str, tuple[str, ...]] | None:
    shapes = DateShapes(max_others)
    shapes.add(texts, [1] * len(texts))
    counters = [FormatCounter(candidate) for candidate in shapes.candidates()]
    for counter in counters:
        counter.add(pa.array(texts))
    if not counters:
        return None
    inferred = choose_format(counters).inferred
    return inferred.date_format.pattern, (*inferred.ambiguity, *inferred.notes)


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        (["28/03/2021", "01/04/2021"], "dd/MM/yyyy"),
        (["03/28/2021", "04/01/2021"], "MM/dd/yyyy"),
        (["28.3.2021", "1.12.2021"], "d.M.yyyy"),
        (["2021/03/28"], "yyyy/MM/dd"),
        (["Mar 5, 2021", "May 12, 2021"], "MMM d, yyyy"),
        (["March 5, 2021", "May 1, 2021"], "MMMM d, yyyy"),
        (["05-Mar-2021"], "dd-MMM-yyyy"),
        (["2021-03-28 01:30:00 UTC"], "yyyy-MM-dd HH:mm:ss VV"),
        (["2021-03-28T01:30:00.1+0100", "2021-03-28T01:30:00Z"], "yyyy-MM-dd'T'HH:mm:ss[.S]XXX"),
        (["28/03/2021", "28/03/2021 10:00"], "dd/MM/yyyy[ HH:mm]"),
        (["28/03/2021", "2021-04-01", "2021-04-01"], "dd/MM/yyyy"),  # ISO 8601 is accepted besides
        (["28/03/2021 1:05 PM", "28/03/2021 11:05 AM"], "dd/MM/yyyy h:mm a"),
        (["Sun, 28 Mar 2021 10:00:00 GMT"], "EEE, dd MMM yyyy HH:mm:ss VV"),
    ],
)
def test_a_format_is_inferred(texts: list[str], pattern: str) -> None:
    assert infer(texts) == (pattern, ())


def test_what_a_format_assumes_is_noted() -> None:
    assert infer(["28/03/21", "01/04/75"]) == ("dd/MM/yy", (TWO_DIGITS_NOTE,))
    assert infer(["2021-03-28 01:30:00.123456789"]) == ("yyyy-MM-dd HH:mm:ss.SSSSSSSSS", (CUT_NOTE,))
    assert infer(["2021-03", "2021-12"]) == ("yyyy-MM", (NO_DAY_NOTE,))
    assert infer(["1974Q1", "1974Q4"]) == ("yyyyQQQ", (NO_DAY_NOTE,))
    assert infer(["3/2021", "12/2021"]) == ("M/yyyy", (NO_DAY_NOTE,))
    assert infer(["Mar-2021", "May-2021"]) == ("MMM-yyyy", (NO_DAY_NOTE,))
    assert infer(["March 2021", "May 2021"]) == ("MMMM yyyy", (NO_DAY_NOTE,))
    assert infer(["02/01/2021", "01/02/2021"]) == ("dd/MM/yyyy", (DAY_FIRST_NOTE,))
    assert infer(["01/09/2021", "02/05/2021", "03/01/2021"]) == ("MM/dd/yyyy", (MONTH_FIRST_NOTE,))


@pytest.mark.parametrize(
    "texts",
    [
        ["1.2.3", "1.2.10"],
        ["12.5", "3.4"],
        ["555-12-1234"],
        ["28/03/2021", "03/28/2021"],
        ["28/03/2021", "28-03-2021"],
        ["Smith, J 2021"],
        ["10:30:00"],
        ["2010-11", "2012-13"],
        ["1234-05"],
        ["192.168.1.1"],
    ],
)
def test_other_texts_are_no_dates(texts: list[str]) -> None:
    assert infer(texts) is None


def test_few_other_texts_do_not_hide_a_format() -> None:
    texts = ["28/03/2021", "unknown", "99/99/9999", "01/04/2021", "13/04/2021"]
    assert infer(texts, max_others=1) == ("dd/MM/yyyy", ())
    assert infer([*texts, "no date"], max_others=1) is None
    assert infer(texts[3:], max_others=1) == (
        "dd/MM/yyyy",
        (),
    )  # one day above 12 is enough, if the other order fits less
