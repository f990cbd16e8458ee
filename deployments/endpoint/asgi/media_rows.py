"""The rows of a request with files: images or recordings in a form, or as base64 in JSON.

Files are decoded by the code that decodes training files, and the rows are then checked as if a client had sent the
pixels or samples.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic_core import from_json

from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_type
from bloomery.data_contracts.requests.column_types import moment_parser
from bloomery.data_contracts.requests.columnar_rows import Row
from bloomery.data_contracts.requests.problems import BodyUnreadable, RowsRefused, row_problem, shorten
from bloomery.deployments.endpoint.asgi.multipart import MULTIPART, FormPart, parse_form
from bloomery.deployments.endpoint.http.errors import HTTPError, too_many_rows
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.media.config import ImageDecoding, MediaBudget, MediaColumn, MediaTooLarge, MediaUnreadable
from bloomery.models.media.images import decode_image
from bloomery.models.media.recordings import decode_recording

BASE64 = "base64"  # the key of a file in JSON: {"image": {"base64": "..."}}
ROWS_PART = "rows"  # the part of a form that has the other columns as JSON
MAX_PYTHON_VALUES = 100_000  # pixels or samples of a request that are checked as Python's numbers
_BASE64_KEY = f'"{BASE64}"'.encode()


class _File(NamedTuple):
    """A file as errors name it, and its content."""

    name: str
    content: bytes


_Files: TypeAlias = dict[tuple[int, str], _File]  # by row and column


def has_files(version: LoadedVersion, media_type: str, body: bytes) -> bool:
    """Whether a request may contain files. They are decoded in a thread, so that the event loop is not blocked."""
    return bool(version.media) and (media_type == MULTIPART or _BASE64_KEY in body)


def parse_media_rows(
    version: LoadedVersion, content_type: bytes, body: bytes, limits: Limits
) -> list[Row] | pa.RecordBatch:
    """Returns the checked rows of a form with this content type; without one, of JSON.

    Raises:
        BodyUnreadable: the body is no complete form, or not JSON.
        RowsRefused: a file cannot be decoded, or a row breaks the contract.
        HTTPError: there are too many files, or they have too many pixels or samples.
    """
    media = version.media
    if content_type:
        rows, files = _read_form(media, parse_form(content_type, body, limits.rows * len(media)))
    else:
        rows, files = _read_json(media, body)
    if len(rows) > limits.rows:
        raise too_many_rows(len(rows), limits.rows)
    if not files and not content_type:
        return version.row_check.parse_json(body)  # or it raises what is wrong
    _decode_files(media, rows, files, limits)
    return _check_rows(version, [column.column for column in media], rows)


def _read_form(media: Sequence[MediaColumn], parts: list[FormPart]) -> tuple[list[Any], _Files]:
    """Returns the rows without their files, and the file of each row and column."""
    files: dict[str, list[_File]] = {column.column: [] for column in media}
    rows: list[Any] | None = None
    for part in parts:
        if part.name in files and part.file_name is not None:
            files[part.name].append(_File(f"file {shorten(part.file_name)}", part.content))
        elif part.name == ROWS_PART and rows is None:
            rows = _parse_rows_part(part.content)
        else:
            kind = "text" if part.file_name is None else f"file {shorten(part.file_name)}"
            names = " or ".join(files)
            rule = f"send files in the field {names}, and other columns as a JSON array in the field {ROWS_PART}"
            raise RowsRefused([row_problem("", part.name, kind, rule)])
    if rows is None:
        rows = [{} for _ in range(max(map(len, files.values())))]
    if not rows:
        raise RowsRefused([row_problem("", media[0].column, "no file", "there must be at least one")])
    by_cell: _Files = {}
    for name, column_files in files.items():
        if column_files:  # else the check of rows says whether one is required
            by_cell |= {(row, name): file for row, file in _assign_files(name, column_files, rows).items()}
    return rows, by_cell


def _assign_files(name: str, files: Sequence[_File], rows: Sequence[Any]) -> dict[int, _File]:
    """Returns the file of each row: of all rows, or of those that do not have the column, which may also be null."""
    if len(files) == len(rows):
        return dict(enumerate(files))
    open_rows = [number for number, row in enumerate(rows) if not isinstance(row, dict) or name not in row]
    if len(files) != len(open_rows):
        rule = f"there must be as many as rows in the field {ROWS_PART}: {len(rows):,}"
        if len(open_rows) != len(rows):
            rule += f", or as rows there without {name}: {len(open_rows):,}"
        raise RowsRefused([row_problem("", name, f"{len(files):,} files", rule)])
    return dict(zip(open_rows, files, strict=True))


def _parse_rows_part(content: bytes) -> list[Any]:
    try:
        rows = from_json(content)
    except ValueError as failure:
        raise BodyUnreadable(f"the field {ROWS_PART} is not JSON: {failure}") from None
    if not isinstance(rows, list):
        raise RowsRefused([row_problem("", ROWS_PART, shorten(rows), "must be an array with an object for each file")])
    return rows


def _read_json(media: Sequence[MediaColumn], body: bytes) -> tuple[list[Any], _Files]:
    """Returns the rows, and the files among their cells by row. A body without `{"rows": [...]}` has neither."""
    try:
        document = from_json(body)
    except ValueError:
        return [], {}
    rows = document.get("rows") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(rows, list):
        return [], {}
    files: _Files = {}
    problems = []
    names = [column.column for column in media]
    for position, row in enumerate(rows):
        for name in names if isinstance(row, dict) else ():
            cell = row.get(name)
            if not isinstance(cell, dict):
                continue
            content = _decode_base64(cell)
            if content is None:
                rule = (
                    f'must be an array of numbers, or a file as {{"{BASE64}": "..."}} with its bytes in base64 '
                    "(RFC 4648)"
                )
                problems.append(row_problem(position, name, shorten(cell), rule))
            else:
                files[position, name] = _File(f"a file of {len(content):,} bytes", content)
    if problems:
        raise RowsRefused(problems)
    return rows, files


def _decode_base64(cell: dict[str, Any]) -> bytes | None:
    text = cell.get(BASE64)
    if set(cell) != {BASE64} or not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # also of text that is not ASCII
        return None


def _decode_files(media: Sequence[MediaColumn], rows: list[Any], files: _Files, limits: Limits) -> None:
    """Puts the pixels or samples of each file into its row."""
    columns = {column.column: column for column in media}
    maxima = {"image": limits.image_pixels, "audio": limits.audio_samples}
    budgets, problems = {kind: MediaBudget(maximum) for kind, maximum in maxima.items()}, []
    for (position, name), file in files.items():
        row, column = rows[position], columns[name]
        if not isinstance(row, dict):
            continue  # the check of rows refuses it
        if isinstance(row.get(name), list):
            problems.append(row_problem(position, name, "an array and a file", "must be one of them"))
            continue
        kind = column.decoding.kind
        try:
            rows[position] = {**row, name: _decode(column, file.content, budgets[kind])}
        except MediaTooLarge as failure:
            unit = "pixels" if kind == "image" else "samples"
            rule = f"the files of a request may have {maxima[kind]:,} {unit} together"
            problem = row_problem(position, name, f"{file.name} with {failure}", rule)
            message = f"row {position}, column {name}: found {problem['found']}, but {rule}"
            raise HTTPError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, [problem]) from None
        except MediaUnreadable as failure:
            rule = f"must be {'an image' if kind == 'image' else 'a recording'} as in training: {failure}"
            problems.append(row_problem(position, name, file.name, rule))
    if problems:
        raise RowsRefused(problems)


def _check_rows(version: LoadedVersion, columns: Sequence[str], rows: list[Any]) -> list[Row] | pa.RecordBatch:
    """Returns the checked rows, whose files are decoded. Many values stay in arrays, and Arrow checks them.

    As Python's numbers they would take up to 32 times the memory, and twice during the check.
    """
    cells = [row.get(name) for row in rows if isinstance(row, dict) for name in columns]
    if sum(cell.size for cell in cells if isinstance(cell, np.ndarray)) > MAX_PYTHON_VALUES:
        batch = _check_by_arrow(version, rows)
        if batch is not None:
            return batch
    return version.row_check.parse_rows([_to_lists(row, columns) for row in rows])


def _to_lists(row: Any, columns: Sequence[str]) -> Any:
    """Returns the row with lists in place of arrays."""
    if not isinstance(row, dict):
        return row
    arrays = {name: row[name].tolist() for name in columns if isinstance(row.get(name), np.ndarray)}
    return {**row, **arrays} if arrays else row


def _check_by_arrow(version: LoadedVersion, rows: list[Any]) -> pa.RecordBatch | None:
    """Returns the checked rows; None if Arrow refuses any: the rules for JSON then say which and why."""
    if not all(isinstance(row, dict) for row in rows):
        return None
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        columns = {name: _to_column(version, name, [row.get(name) for row in rows]) for name in names}
        return version.arrow_check.parse_batch(pa.RecordBatch.from_pydict(columns))
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RowsRefused):
        return None


def _to_column(version: LoadedVersion, name: str, cells: list[Any]) -> pa.Array:
    """The cells of a column, with dates and times parsed as in JSON. Raises ValueError if a cell cannot be parsed."""
    column = version.contract.column(name)
    if column is None or column.logical_type not in ("date", "timestamp"):
        return pa.array(cells)
    parse = moment_parser(column)
    if not all(cell is None or isinstance(cell, str) for cell in cells):
        raise ValueError(f"column {name} has values that are no texts")
    return pa.array([None if cell is None else parse(cell) for cell in cells], arrow_type(column))


def _decode(media: MediaColumn, content: bytes, budget: MediaBudget) -> np.ndarray:
    """Returns the values that a client would send in place of the file."""
    if not isinstance(media.decoding, ImageDecoding):
        return decode_recording(content, media.decoding, budget)[0]
    pixels = decode_image(content, media.decoding, budget)
    if media.shape is not None and pixels.shape != media.shape:
        found, required = (f"{shape[1]} x {shape[2]}" for shape in (pixels.shape, media.shape))
        raise MediaUnreadable(f"{found} pixels, where {required} are required (height x width)")
    return pixels.reshape(-1)
