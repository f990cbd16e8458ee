"""Recordings in wav files, in folders or in a zip."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.media import MediaFile, path_fields, path_values, read_media

_GROUP_ROWS = 256
_BATCH_FILES = 64


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """A row per recording: `path`, `label` (its folder's name) or what `path_pattern` tells, `wave`, `sample_rate`.

    `wave` is a list of float32 from -1 to 1, `sample_rate` is in Hz. What is no wav file is put aside, and so is a
    recording of another rate than the stated one, or of several channels unless `mono` is true.

    Raises:
        DataMissing: there is no recording at all.
    """
    schema = pa.schema([*path_fields(data), ("wave", pa.list_(pa.float32())), ("sample_rate", pa.int64())])
    return RowStream(schema, _batches(data, origin, schema, malformed), _GROUP_ROWS)


def _batches(data: Data, origin: Origin, schema: pa.Schema, malformed: MalformedWriter) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    num_rows = 0
    for medium in read_media(data, origin):
        given = path_values(data, medium.path)
        found = _wave(medium, data)
        if isinstance(found, str):
            malformed.add(medium.path, None, "", found)
        elif given is None:
            malformed.add(medium.path, None, "", f"a path that does not fit {data.path_pattern!r}")
        else:
            rows.append({**given, "wave": found[0], "sample_rate": found[1]})
            num_rows += 1
        if len(rows) == _BATCH_FILES:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)
            rows = []
    if not num_rows:
        raise DataMissing(
            f"there is no recording in {origin.source} ({malformed.num} files were no such)",
            required="wav files" + (f" of {data.sample_rate} Hz" if data.sample_rate else ""),
            where="the recipe's `data`",
            remedy="mend the path, `sample_rate` or `path_pattern`",
        )
    yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _wave(medium: MediaFile, data: Data) -> tuple[np.ndarray, int] | str:
    """Samples as float32 and the rate in Hz, or why there are none."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about notes behind the sound
            rate, samples = wavfile.read(io.BytesIO(medium.content))
    except Exception as failure:  # scipy raises whatever its parsing meets
        return f"no wav file: {failure}"
    if data.sample_rate is not None and rate != data.sample_rate:
        return f"{rate} Hz, where {data.sample_rate} is required"
    scaled = _scaled(samples)
    if scaled.ndim == 2:
        if scaled.shape[1] > 1 and not data.mono:
            return f"{scaled.shape[1]} channels, where one is required (`mono: true` averages them)"
        scaled = scaled.mean(axis=1, dtype=np.float64)
    return scaled.astype(np.float32), int(rate)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """From -1 to 1; whole numbers are divided by the largest magnitude of their type, and 8 bits have no sign."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    return samples
