"""Finds columns that give the label away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.profiling.leakage import find_leaks
from bloomery.tasks.scaffolding.profiling.profiler import profile_source

CHANCE = np.random.default_rng(0)
A, B, C = (CHANCE.integers(0, 500, 300) for _ in range(3))
Y = CHANCE.normal(100, 30, 300)
KIND = CHANCE.integers(0, 3, 300)


def leaks(folder: Path, columns: dict[str, object], *, is_regression: bool) -> list[str]:
    """Returns the sentences about the label `y`."""
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    profile = profile_source(DataSource(source=str(folder / "rows.parquet")), folder, "y")
    features = [name for name in columns if name != "y"]
    results = find_leaks(profile, folder, features, "y", is_regression=is_regression)
    return [leak.describe({name: name for name in columns}).split(";")[0] for leak in results]


REGRESSIONS: dict[str, tuple[dict[str, object], list[str]]] = {
    "a sum": ({"a": A, "b": B, "c": C, "y": A + B}, ["y is the sum of a and b"]),
    "a weighted sum": (
        {"a": A, "b": B, "y": 2.5 * A - B + 7},
        ["y can be computed from a and b, as a weighted sum of them"],
    ),
    "a rounded sum": ({"a": A / 7, "b": B / 7, "y": np.round(A / 7 + B / 7)}, ["y is the sum of a and b"]),
    "a product": ({"a": A + 1, "b": (B + 1) / 8, "c": C, "y": (A + 1) * (B + 1) / 8}, ["y is the product of a and b"]),
    "a rounded product": (
        {"a": A + 1, "b": B / 100 + 1, "y": np.round((A + 1) * (B / 100 + 1), 2)},
        ["y is the product of a and b"],
    ),
    "a quotient": ({"a": A + 1, "b": B + 1, "y": (A + 1) / (B + 1)}, ["y is a quotient of a and b"]),
    "a rounded quotient": (
        {"a": A + 100, "b": B / 100 + 1, "y": np.round((A + 100) / (B / 100 + 1), 3)},
        ["y is a quotient of a and b"],
    ),
    "a sum beside incomplete columns": (
        {"a": A, "b": B, "c": np.where(C % 4, np.nan, C), "y": A + B},
        ["y is the sum of a and b"],
    ),
    "a copy": ({"a": Y, "b": B, "y": Y}, ["a is equal to y"]),
    "a rounded copy": ({"a": np.round(Y), "b": B, "y": Y}, ["a is y, rounded"]),
    "a logarithm": ({"a": np.log(Y + 500), "y": Y}, ["a has the order of y in every row"]),
    "a reversed copy": ({"a": -(Y**3), "y": Y}, ["a has the reverse order of y in every row"]),
    "a limit": ({"a": (Y > 100).astype(int), "y": Y}, ["a has the order of y in every row"]),
    "a copy with noise": ({"a": Y + CHANCE.normal(0, 0.1, 300), "y": Y}, ["a has nearly the order of y"]),
    "a good predictor": ({"a": Y + CHANCE.normal(0, 5, 300), "b": B, "y": Y}, []),
    "a noisy sum": ({"a": A, "b": B, "y": A + B + CHANCE.normal(0, 20, 300)}, []),
}


@pytest.mark.parametrize("case", REGRESSIONS)
def test_a_number_that_is_given_away_is_reported(case: str, home: Path, tmp_path: Path) -> None:
    columns, expected = REGRESSIONS[case]
    sentences = leaks(tmp_path, columns, is_regression=True)
    assert [sentence.split(" (")[0] for sentence in sentences] == expected


CLASSES: dict[str, tuple[dict[str, object], list[str]]] = {
    "a code": (
        {"a": [f"code {kind}" for kind in KIND], "b": B, "y": KIND},
        ["every class of y has one value of a, and no other"],
    ),
    "a finer code": (
        {"a": KIND * 2 + B % 2, "y": KIND},
        ["every value of a has one class of y, and no other"],
    ),
    "a sum": ({"a": KIND % 2, "b": B % 4, "y": KIND % 2 + B % 4}, ["y is the sum of a and b"]),
    "limits": ({"a": Y, "y": np.digitize(Y, [80, 120])}, ["limits of a alone separate the classes of y"]),
    "values of one class alone": (
        {"a": [f"cause {b % 5}" if kind == 1 else None for kind, b in zip(KIND, B, strict=True)], "y": KIND},
        ["a has a value in every row of some classes of y, and in no row of the others"],
    ),
    "values of one class in most rows": ({"a": np.where((KIND == 1) & (B % 7 > 0), B, np.nan), "y": KIND}, []),
    "a good predictor": ({"a": Y, "b": B, "y": (Y + CHANCE.normal(0, 5, 300) > 100).astype(int)}, []),
    "an identifier": ({"a": [f"row {number}" for number in range(300)], "y": KIND}, []),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_class_that_is_given_away_is_reported(case: str, home: Path, tmp_path: Path) -> None:
    columns, expected = CLASSES[case]
    assert leaks(tmp_path, columns, is_regression=False) == expected
