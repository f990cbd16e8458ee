"""Infers how a delimited text is written: encoding, separators, lines in front of the header, and the header.

A dialect is tried by reading the start of the text with it: the right one has the label in its header, and rows as wide
as the header. Without the label, DuckDB's sniffer finds delimiter and quote. Decision 12 has the reasons.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.text_files.csv_lexer import Lexer, QuoteRepair
from bloomery.tasks.scaffolding.source_options.csv_header import (
    MAX_HEADER_ROW,
    NUMBER_OR_DATE,
    CsvHeader,
    Row,
    find_header,
    fit_header,
    locate_label,
)
from bloomery.tasks.scaffolding.source_options.text_encoding import infer_encoding, not_csv_error, read_sample

_DELIMITERS = (",", ";", "\t", "|", ":", " ", "^", "~", "\x01")
_MAX_ROWS = 500  # with which a dialect is tried
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # the first line of files for Excel
_FURTHER_DELIMITER = re.compile(r"[,;\t|]")
_COMMENT_SIGNS = "#%!;"


class CsvDialect(NamedTuple):
    """The names of the columns, and the options of `data` that read them; `notes` give the reason of an option."""

    names: tuple[str, ...]
    options: dict[str, object]
    notes: dict[str, str]


class Separators(NamedTuple):
    """The characters between and around cells, and why they were chosen."""

    delimiter: str
    quote: str = '"'
    escape: str = ""
    skip_space: bool = False
    reason: str = ""


def infer_dialect(
    locations: Sequence[FileLocation], label: str, requested: Mapping[str, Any] | None = None
) -> CsvDialect:
    """Returns the dialect of files that are written alike. A row that contains `label` is the header.

    `requested` are options of `data` that are known.

    Raises:
        DataMissing: a file is empty or no text, or its rows do not have the requested columns.
    """
    requested = requested or {}
    if "encoding" in requested:
        encoding, encoding_reason = str(requested["encoding"]), "as requested"
    else:
        encoding, encoding_reason = infer_encoding(locations, label)
    sample = read_sample(locations[0], encoding)
    num_skipped = int(requested.get("skip_lines", 0))
    sample = "".join(_split_lines(sample)[num_skipped:])
    separator_line = _SEPARATOR_LINE.fullmatch(sample.split("\n", 1)[0])
    known = dict(requested)
    if separator_line is not None and "skip_lines" not in requested:
        known["delimiter"] = requested.get("delimiter", separator_line[1])
        num_skipped, sample = 1, sample.split("\n", 1)[1]
    separators = _infer_separators(sample, label, known)
    rows = _drop_comments(parse_rows(sample, separators), sample, requested)
    if not rows:
        raise not_csv_error(locations[0], "it has no rows")
    header = find_header(rows, label, known)
    options, notes = _separator_options(separators, requested)
    options = {"encoding": encoding, **options}
    notes["encoding"] = encoding_reason
    fitted = fit_header(header, known, locations[0])
    preamble, preamble_notes = _preamble_options(sample, header, separators, num_skipped, known)
    if separator_line is not None and num_skipped:
        notes["delimiter"] = "the first line of the file says so"
    first_lines = {"skip_lines": num_skipped + fitted.last_line} if fitted.replaces_header else preamble
    options |= {**fitted.options, **first_lines}
    notes |= {**preamble_notes, **fitted.notes}
    return CsvDialect(fitted.names, options, {name: note for name, note in notes.items() if note})


def parse_rows(sample: str, separators: Separators) -> list[Row]:
    """Returns the sample's rows without blank ones."""
    return list(_iterate_rows(sample, separators))


def _iterate_rows(sample: str, separators: Separators) -> Iterator[Row]:
    lines = _clean_lines(sample, separators)
    reader = csv.reader(
        lines,
        delimiter=separators.delimiter,
        quotechar=separators.quote or None,
        quoting=csv.QUOTE_MINIMAL if separators.quote else csv.QUOTE_NONE,
        escapechar=separators.escape or None,
        skipinitialspace=separators.skip_space,
    )
    first_line = 1
    with contextlib.suppress(csv.Error):  # a cell that is too long for Python's reader: the rows before it suffice
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped) or len(stripped) > 1:
                yield Row(stripped, first_line, reader.line_num)
            first_line = reader.line_num + 1


def _clean_lines(sample: str, separators: Separators) -> list[str]:
    """Returns the lines as the reader cleans them, with blank ones in place of those whose quote does not close."""
    lexer = Lexer(separators.delimiter.encode(), separators.quote.encode(), separators.escape.encode())
    lines = [line.encode() for line in _split_lines(sample)]
    if separators.skip_space:
        is_open = False
        for index, line in enumerate(lines):
            lines[index], is_open = lexer.strip_initial_spaces(line, is_open)
    repair = QuoteRepair(lexer, 0, len(sample), lambda line, text: None)
    return [line.decode() for line in repair.blank_lines(iter(lines), 1)]


def _split_lines(sample: str) -> list[str]:
    """Returns the lines as a reader counts them, with their ends."""
    return list(io.StringIO(sample, newline=""))


def _drop_comments(rows: list[Row], sample: str, requested: Mapping[str, Any]) -> list[Row]:
    if not requested.get("comment"):
        return rows
    lines = _split_lines(sample)
    return [row for row in rows if not lines[row.first_line - 1].startswith(requested["comment"])]


def _infer_separators(sample: str, label: str, known: Mapping[str, Any]) -> Separators:
    """Returns the separators with which a row has the label, and most rows are as wide as that row."""
    best, best_score = None, (0.0, 0, 0, 0, 0)
    for separators in _candidates(sample, known):
        score = _score(sample, separators, label, known)
        if score[0] and score >= best_score:
            best, best_score = separators, score
    if best is None:
        candidates = [_count_cells(sample, known), *_sniff(sample, known)]
        return max(reversed(candidates), key=lambda separators: _score_cells(sample, separators))
    requested = "delimiter" in known
    width = best_score[-1]
    reason = (
        "as requested" if requested else f"it splits the header, which has {label}, and the rows into {width} cells"
    )
    return best._replace(reason=reason)


def _candidates(sample: str, known: Mapping[str, Any]) -> Iterator[Separators]:
    """Yields the separators that may be meant: an unusual one only where the text shows it. The usual ones come last.

    Of equally good ones, the last is chosen.
    """
    delimiters = [known["delimiter"]] if "delimiter" in known else [sign for sign in _DELIMITERS if sign in sample]
    for delimiter in reversed(delimiters or [","]):
        sign = re.escape(delimiter)
        has_apostrophes = re.search(rf"(?m)(?:^|{sign})\s*'(?:[^'\n]|'')*'\s*(?:{sign}|$)", sample) is not None
        quotes = [known["quote"]] if "quote" in known else ["'", '"'] if has_apostrophes else ['"']
        for quote in quotes:
            mark = re.escape(quote)
            may_escape = bool(quote) and re.search(rf"\\{mark}", sample) is not None
            spaces = r"(?m)[ \t]{2,}|^ " if delimiter == " " else rf"(?:{sign})[ \t]+{mark}"
            may_skip = bool(quote) and re.search(spaces, sample) is not None
            escapes = [known["escape"]] if "escape" in known else ["\\", ""] if may_escape else [""]
            skips = [True, False] if may_skip else [False]
            skips = [bool(known["skip_initial_space"])] if "skip_initial_space" in known else skips
            for escape, skip in product(escapes, skips):
                if escape not in (delimiter, quote) and delimiter != quote:
                    yield Separators(delimiter, quote, escape, skip)


def _score(
    sample: str, separators: Separators, label: str, known: Mapping[str, Any]
) -> tuple[float, int, int, int, int]:
    """Returns how well the separators read the sample; zeros if no row has the label.

    First counts the share of rows of the usual width, then how few rows are in front of the header (a text may have the
    label's name as a word), then whether the header is as wide, then how few quotes are left in cells, then the width.
    """
    rows = parse_rows(sample, separators)[: _MAX_ROWS + MAX_HEADER_ROW]
    columns = known.get("columns")
    if columns is not None or known.get("header") is False:
        start, width = -1, len(columns) if columns is not None else 0
    else:
        index = locate_label(rows, label)
        start, width = (-1, 0) if index is None else (index, len(rows[index].cells))
    if not width:
        return 0.0, 0, 0, 0, 0
    widths = Counter(len(row.cells) for row in rows[start + 1 :])
    usual_width, count = widths.most_common(1)[0] if widths else (width, 1)
    if usual_width not in (width - 1, width, width + 1) or widths.total() < start:
        return 0.001, 0, 0, 0, width
    share = round(count / max(widths.total(), 1), 2)
    leftovers = sum(_has_quotes(cell) for row in rows for cell in row.cells)
    return max(share, 0.01), -max(start, 0), int(usual_width == width), -leftovers, width


def _has_quotes(cell: str) -> bool:
    return (len(cell) > 1 and cell[0] in "\"'" and cell[-1] == cell[0]) or '\\"' in cell or "\\'" in cell


def _sniff(sample: str, known: Mapping[str, Any]) -> list[Separators]:
    """Returns what DuckDB finds; nothing where it finds one column, as with a delimiter that it never tries."""
    import duckdb

    if {"delimiter", "quote", "escape"} & known.keys():
        return []
    with tempfile.TemporaryDirectory(dir=settings().home) as folder, duckdb.connect() as connection:
        path = Path(folder) / "sample.csv"
        path.write_text(sample, encoding="utf-8", newline="")
        query = "select Delimiter, Quote, len(Columns) from sniff_csv(?, all_varchar = true)"
        try:
            delimiter, quote, num_columns = connection.execute(query, [str(path)]).fetchall()[0]
        except duckdb.Error:
            return []
    if num_columns < 2:
        return []
    reason = f"DuckDB's CSV sniffer finds {num_columns} columns with it"
    return [Separators(delimiter, "'" if quote == "'" else '"', reason=reason)]


def _score_cells(sample: str, separators: Separators) -> tuple[float, float, int]:
    """Returns the share of rows of the usual width, the share of cells without further delimiters, and the width."""
    rows = parse_rows(sample, separators)[:_MAX_ROWS]
    widths = Counter(len(row.cells) for row in rows)
    width, count = widths.most_common(1)[0] if widths else (1, 0)
    cells = [cell for row in rows for cell in row.cells]
    num_clean = sum(not _FURTHER_DELIMITER.search(cell) or NUMBER_OR_DATE.fullmatch(cell) is not None for cell in cells)
    return round(count / max(widths.total(), 1), 1), round(num_clean / max(len(cells), 1), 1), width


def _count_cells(sample: str, known: Mapping[str, Any]) -> Separators:
    """Returns the delimiter that splits most rows into the same number of cells, and then into the cleanest cells."""
    best, best_score = None, (0.0, 0.0, 0)
    for separators in list(_candidates(sample, known))[::-1]:
        score = _score_cells(sample, separators)
        is_usual = separators.delimiter not in " :" or best is None
        if score[2] > 1 and score > best_score and is_usual:
            best_score = score
            best = separators._replace(reason=f"it splits {score[0]:.0%} of the first rows into {score[2]} cells")
    requested = Separators(known.get("delimiter", ","), known.get("quote", '"'), known.get("escape", ""))
    return best or requested._replace(reason="no delimiter splits the first rows alike")


def _separator_options(
    separators: Separators, requested: Mapping[str, Any]
) -> tuple[dict[str, object], dict[str, str]]:
    options: dict[str, object] = {"delimiter": separators.delimiter, "strip": True}
    notes = {"delimiter": "as requested" if "delimiter" in requested else separators.reason}
    if separators.quote != '"':
        options["quote"], notes["quote"] = separators.quote, "it is around texts"
    if separators.escape:
        options["escape"], notes["escape"] = separators.escape, "it is in front of quotes inside of texts"
    if separators.skip_space:
        options["skip_initial_space"] = True
        is_aligned = separators.delimiter == " "
        note = "white space aligns the columns" if is_aligned else "there are spaces between a delimiter and a quote"
        notes["skip_initial_space"] = note
    for name in ("quote", "escape", "skip_initial_space"):
        if name in requested and name in notes:
            notes[name] = "as requested"
    return options, notes


def _preamble_options(
    sample: str, header: CsvHeader, separators: Separators, num_skipped: int, known: Mapping[str, Any]
) -> tuple[dict[str, object], dict[str, str]]:
    """Returns the options that skip the lines in front of the header: as comments where they all are."""
    lines = _split_lines(sample)
    preamble = [line for line in lines[: header.first_line - 1] if line.strip()]
    skipped: dict[str, object] = {"skip_lines": num_skipped} if num_skipped else {}
    if "comment" in known:
        return {**skipped, "comment": known["comment"]}, {}
    signs = {line[0] for line in preamble if line[0] in _COMMENT_SIGNS and line[0] != separators.delimiter}
    if len(signs) == 1 and all(line[0] in signs for line in preamble):
        (sign,) = signs
        rows = parse_rows("".join(lines[header.first_line :]), separators)
        is_data = any(row.cells[0].startswith(sign) and len(row.cells) == header.width for row in rows)
        if not is_data:
            reason = f"{len(preamble)} line(s) in front of the header begin with it"
            return {**skipped, "comment": sign}, {"comment": reason}
    if not preamble:
        return skipped, {}
    num_lines = num_skipped + header.first_line - 1
    first = preamble[0].strip()
    return {"skip_lines": num_lines}, {"skip_lines": f"the header is in line {num_lines + 1}, behind {first[:60]!r}"}
