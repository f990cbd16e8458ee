"""The error tree: the parts of each error, and its serialized forms."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from bloomery.data_contracts import errors
from bloomery.data_contracts.errors import BloomeryError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BloomeryError)]


def create(kind: type[BloomeryError]) -> BloomeryError:
    return kind("3 rows", required="4 rows", where="rows.parquet", remedy="add a row")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_has_four_lines_of_text(kind):
    assert str(create(kind)).splitlines() == [
        "3 rows",
        "  required: 4 rows",
        "  where:    rows.parquet",
        "  do:       add a row",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_can_be_pickled(kind):
    again = pickle.loads(pickle.dumps(create(kind)))
    assert type(again) is kind
    assert again.as_document() == create(kind).as_document()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_has_a_json_document(kind):
    assert create(kind).as_document() == {
        "error": kind.__name__,
        "found": "3 rows",
        "required": "4 rows",
        "where": "rows.parquet",
        "remedy": "add a row",
        "exit_code": kind.exit_code,
    }


def test_the_tree_in_the_docstring_is_complete():
    lines = (errors.__doc__ or "").splitlines()[2:]
    matches = [re.match(r"[│├└─ ]*(\w+)(?: +(?:exit code )?(\d))?", line) for line in lines]
    names = {line[1]: line[2] for line in matches if line}
    assert names.keys() == {kind.__name__ for kind in KINDS}
    # A kind without a code of its own has that of the kind above it.
    assert all(code is None or int(code) == getattr(errors, name).exit_code for name, code in names.items())
