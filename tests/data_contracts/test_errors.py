"""The error tree: what each error carries, and where it can go."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from bloomery.data_contracts import errors
from bloomery.data_contracts.errors import BloomeryError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BloomeryError)]


def made(kind: type[BloomeryError]) -> BloomeryError:
    return kind("3 rows", required="4 rows", where="rows.parquet", remedy="bring a row")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_what_was_found_and_required_and_where_and_what_to_do(kind):
    assert str(made(kind)).splitlines() == [
        "3 rows",
        "  required: 4 rows",
        "  where:    rows.parquet",
        "  do:       bring a row",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_a_trip_to_another_process(kind):
    again = pickle.loads(pickle.dumps(made(kind)))
    assert type(again) is kind
    assert again.as_document() == made(kind).as_document()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_can_be_said_in_json(kind):
    assert made(kind).as_document() == {
        "error": kind.__name__,
        "found": "3 rows",
        "required": "4 rows",
        "where": "rows.parquet",
        "remedy": "bring a row",
        "exit_code": kind.exit_code,
    }


def test_the_tree_is_the_one_at_the_top_of_the_file():
    lines = (errors.__doc__ or "").splitlines()[2:]
    stated = [re.match(r"[│├└─ ]*(\w+)(?: +(?:exit code )?(\d))?", line) for line in lines]
    names = {line[1]: line[2] for line in stated if line}
    assert names.keys() == {kind.__name__ for kind in KINDS}
    # A kind without a code of its own has that of the kind above it.
    assert all(code is None or int(code) == getattr(errors, name).exit_code for name, code in names.items())
