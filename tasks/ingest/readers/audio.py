"""Recordings in wav files, in folders or in a zip."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.media import MediaFile, path_fields, path_values, read_media

_ROW_GROUP_SIZE = 256
_BATCH_FILES = 64


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns a row per recording: `path`, `label` (its folder) or the groups of `path_pattern`, `wave`, `sample_rate`.

    `wave` is a list of float32 from -1 to 1, `sample_rate` is in Hz. Malformed are files that are not wav, recordings
    of another rate than the recipe's, and those of several channels unless `mono` is true.

    Raises:
        DataMissing: there are no recordings.
    """
    schema = pa.schema([*path_fields(data), ("wave", pa.list_(pa.float32())), ("sample_rate", pa.int64())])
    return RowStream(schema, _read_batches(data, origin, schema, malformed), _ROW_GROUP_SIZE)


def _read_batches(
    data: DataSource, origin: SourceFile, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    num_rows = 0
    for file in read_media(data, origin):
        values = path_values(data, file.path)
        recording = _decode(file, data)
        if isinstance(recording, str):
            malformed.add(file.path, None, "", recording)
        elif values is None:
            malformed.add(file.path, None, "", f"a path that does not match {data.path_pattern!r}")
        else:
            wave, sample_rate = recording
            rows.append({**values, "wave": wave, "sample_rate": sample_rate})
            num_rows += 1
        if len(rows) == _BATCH_FILES:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)
            rows = []
    if not num_rows:
        raise DataMissing(
            f"there are no recordings in {origin.source} ({malformed.num_lines} files are malformed)",
            required="wav files" + (f" of {data.sample_rate} Hz" if data.sample_rate else ""),
            where="the recipe's `data`",
            remedy="correct the path, `sample_rate` or `path_pattern`",
        )
    yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _decode(file: MediaFile, data: DataSource) -> tuple[np.ndarray, int] | str:
    """Returns the samples as float32 and the rate in Hz, or why there are none."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about metadata after the sound
            rate, samples = wavfile.read(io.BytesIO(file.content))
    except Exception as failure:  # scipy raises errors of many kinds
        return f"no wav file: {failure}"
    if data.sample_rate is not None and rate != data.sample_rate:
        return f"{rate} Hz, where {data.sample_rate} is required"
    scaled = _scale(samples)
    if scaled.ndim == 2:
        if scaled.shape[1] > 1 and not data.mono:
            return f"{scaled.shape[1]} channels, where one is required (`mono: true` averages them)"
        scaled = scaled.mean(axis=1, dtype=np.float64)
    return scaled.astype(np.float32), int(rate)


def _scale(samples: np.ndarray) -> np.ndarray:
    """Scales to the range -1 to 1. Integers are divided by the largest magnitude of their type; 8 bits are unsigned."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    return samples
