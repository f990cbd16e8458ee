"""Finds texts without quotes that mark a missing value in CSV whose other texts are in quotes, as R writes them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.text_files.text_streams import transcode_to_utf8

_BARE_MARKERS = frozenset({"NA", "NULL", "null", "None"})
_MAX_LINES = 200_000


def find_bare_markers(files: Sequence[FileLocation], dialect: Mapping[str, Any]) -> list[str]:
    """Returns the markers that stand without quotes in columns whose other cells are all in quotes.

    There a text `NA` in quotes is a text, and NA without quotes is R's missing value, also of a label.
    """
    quote, delimiter = re.escape(dialect.get("quote", '"')), re.escape(dialect.get("delimiter", ","))
    if not quote or "escape" in dialect:
        return []
    cell = re.compile(rf"(?:^|{delimiter})[ \t]*({quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{delimiter}]*)")
    num_quoted: Counter[int] = Counter()
    bare: defaultdict[int, set[str]] = defaultdict(set)
    num_skipped = int(dialect.get("skip_lines", 0)) + (0 if dialect.get("header") is False else 1)
    for file in files:
        with file.open_stream() as raw:
            stream = transcode_to_utf8(raw, dialect.get("encoding", "utf-8"))
            for line in islice(stream, num_skipped, num_skipped + _MAX_LINES):
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                if text.count(dialect.get("quote", '"')) % 2:
                    continue  # a cell with several lines
                for index, content in enumerate(cell.findall(text)):
                    content = content.strip()
                    if len(content) > 1 and content[0] == content[-1] == dialect.get("quote", '"'):
                        num_quoted[index] += 1
                    elif content and len(bare[index]) <= len(_BARE_MARKERS):
                        bare[index].add(content)
    markers = [bare[index] for index in num_quoted if bare[index]]
    are_all_markers = all(texts <= _BARE_MARKERS for texts in markers)
    return sorted(set().union(*markers)) if markers and are_all_markers else []
