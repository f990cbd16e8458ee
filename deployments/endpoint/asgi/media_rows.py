"""The rows of a request with files: images or recordings in a form, or as base64 in JSON.

Files are decoded by the code that decodes training files, and the rows are then checked as if a client had sent the
pixels or samples.
"""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic_core import from_json

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


def has_files(version: LoadedVersion, media_type: str, body: bytes) -> bool:
    """Whether a request may contain files. They are decoded in a thread, so that the event loop is not blocked."""
    return version.media is not None and (media_type == MULTIPART or _BASE64_KEY in body)


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
    assert media is not None
    if content_type:
        rows, files = _read_form(media, parse_form(content_type, body, limits.rows))
    else:
        rows, files = _read_json(media, body)
    if len(rows) > limits.rows:
        raise too_many_rows(len(rows), limits.rows)
    if not files:
        return version.row_check.parse_json(body)  # or it raises what is wrong
    _decode_files(media, rows, files, limits)
    return _check_rows(version, media.column, rows)


def _read_form(media: MediaColumn, parts: list[FormPart]) -> tuple[list[Any], dict[int, _File]]:
    """Returns the rows without their files, and the file of each row."""
    files: list[_File] = []
    rows: list[Any] | None = None
    for part in parts:
        if part.name == media.column and part.file_name is not None:
            files.append(_File(f"file {shorten(part.file_name)}", part.content))
        elif part.name == ROWS_PART and rows is None:
            rows = _parse_rows_part(part.content)
        else:
            kind = "text" if part.file_name is None else f"file {shorten(part.file_name)}"
            rule = f"send files in the field {media.column}, and other columns as a JSON array in the field {ROWS_PART}"
            raise RowsRefused([row_problem("", part.name, kind, rule)])
    if rows is None:
        rows = [{} for _ in files]
    if len(rows) != len(files):
        rule = f"there must be as many as rows in the field {ROWS_PART}: {len(rows):,}"
        raise RowsRefused([row_problem("", media.column, f"{len(files):,} files", rule)])
    if not rows:
        raise RowsRefused([row_problem("", media.column, "no file", "there must be at least one")])
    return rows, dict(enumerate(files))


def _parse_rows_part(content: bytes) -> list[Any]:
    try:
        rows = from_json(content)
    except ValueError as failure:
        raise BodyUnreadable(f"the field {ROWS_PART} is not JSON: {failure}") from None
    if not isinstance(rows, list):
        raise RowsRefused([row_problem("", ROWS_PART, shorten(rows), "must be an array with an object for each file")])
    return rows


def _read_json(media: MediaColumn, body: bytes) -> tuple[list[Any], dict[int, _File]]:
    """Returns the rows, and the files among their cells by row. A body without `{"rows": [...]}` has neither."""
    try:
        document = from_json(body)
    except ValueError:
        return [], {}
    rows = document.get("rows") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(rows, list):
        return [], {}
    files, problems = {}, []
    for position, row in enumerate(rows):
        cell = row.get(media.column) if isinstance(row, dict) else None
        if not isinstance(cell, dict):
            continue
        content = _decode_base64(cell)
        if content is None:
            rule = (
                f'must be an array of numbers, or a file as {{"{BASE64}": "..."}} with its bytes in base64 (RFC 4648)'
            )
            problems.append(row_problem(position, media.column, shorten(cell), rule))
        else:
            files[position] = _File(f"a file of {len(content):,} bytes", content)
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


def _decode_files(media: MediaColumn, rows: list[Any], files: dict[int, _File], limits: Limits) -> None:
    """Puts the pixels or samples of each file into its row."""
    is_image = isinstance(media.decoding, ImageDecoding)
    limit = limits.image_pixels if is_image else limits.audio_samples
    budget, problems = MediaBudget(limit), []
    for position, file in files.items():
        row = rows[position]
        if not isinstance(row, dict):
            continue  # the check of rows refuses it
        if isinstance(row.get(media.column), list):
            problems.append(row_problem(position, media.column, "an array and a file", "must be one of them"))
            continue
        try:
            rows[position] = {**row, media.column: _decode(media, file.content, budget)}
        except MediaTooLarge as failure:
            rule = f"the files of a request may have {limit:,} {'pixels' if is_image else 'samples'} together"
            problem = row_problem(position, media.column, f"{file.name} with {failure}", rule)
            message = f"row {position}, column {media.column}: found {problem['found']}, but {rule}"
            raise HTTPError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, [problem]) from None
        except MediaUnreadable as failure:
            rule = f"must be {'an image' if is_image else 'a recording'} as in training: {failure}"
            problems.append(row_problem(position, media.column, file.name, rule))
    if problems:
        raise RowsRefused(problems)


def _check_rows(version: LoadedVersion, column: str, rows: list[Any]) -> list[Row] | pa.RecordBatch:
    """Returns the checked rows, whose files are decoded. Many values stay in arrays, and Arrow checks them.

    As Python's numbers they would take up to 32 times the memory, and twice during the check.
    """
    cells = [row.get(column) if isinstance(row, dict) else None for row in rows]
    if sum(cell.size for cell in cells if isinstance(cell, np.ndarray)) > MAX_PYTHON_VALUES:
        batch = _check_by_arrow(version, rows)
        if batch is not None:
            return batch
    listed = [
        {**row, column: cell.tolist()} if isinstance(cell, np.ndarray) else row
        for row, cell in zip(rows, cells, strict=True)
    ]
    return version.row_check.parse_rows(listed)


def _check_by_arrow(version: LoadedVersion, rows: list[Any]) -> pa.RecordBatch | None:
    """Returns the checked rows; None if Arrow refuses any: the rules for JSON then say which and why."""
    if not all(isinstance(row, dict) for row in rows):
        return None
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
        return version.arrow_check.parse_batch(pa.RecordBatch.from_pydict(columns))
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RowsRefused):
        return None


def _decode(media: MediaColumn, content: bytes, budget: MediaBudget) -> np.ndarray:
    """Returns the values that a client would send in place of the file."""
    if not isinstance(media.decoding, ImageDecoding):
        return decode_recording(content, media.decoding, budget)[0]
    pixels = decode_image(content, media.decoding, budget)
    if media.shape is not None and pixels.shape != media.shape:
        found, required = (f"{shape[1]} x {shape[2]}" for shape in (pixels.shape, media.shape))
        raise MediaUnreadable(f"{found} pixels, where {required} are required (height x width)")
    return pixels.reshape(-1)
