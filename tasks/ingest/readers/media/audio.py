"""Recordings in wav files, in folders or in a zip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.models.media.config import AudioDecoding, MediaUnreadable
from bloomery.models.media.recordings import decode_recording
from bloomery.models.media.source_options import audio_decoding
from bloomery.tasks.ingest.option_names import option_names, place_of_options
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.media.media_files import MediaFile, path_fields, path_values, read_media

_ROW_GROUP_SIZE = 256
_BATCH_FILES = 64


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns a row per recording: `path`, `label` (its folder) or the groups of `path_pattern`, `wave`, `sample_rate`.

    `wave` is a list of float32 from -1 to 1, `sample_rate` is in Hz, as `decode_recording` returns them. Files that it
    refuses are malformed.

    Raises:
        DataMissing: there are no recordings, or they have several rates and the recipe has no `sample_rate`.
    """
    schema = pa.schema([*path_fields(data), ("wave", pa.list_(pa.float32())), ("sample_rate", pa.int64())])
    return RowStream(schema, _read_batches(data, origin, schema, malformed), _ROW_GROUP_SIZE)


def _read_batches(
    data: DataSource, origin: SourceFile, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    first: tuple[str, int] | None = None
    decoding, num_malformed = audio_decoding(data), malformed.num_lines
    for file in read_media(data, origin):
        values = path_values(data, file.path)
        recording = _decode(file, decoding)
        if isinstance(recording, str):
            malformed.add(file.path, None, "", recording)
        elif values is None:
            malformed.add(file.path, None, "", f"a path that does not match {data.path_pattern!r}")
        else:
            wave, sample_rate = recording
            first = first or (file.path, sample_rate)
            _require_equal_rates(first, file.path, sample_rate)
            rows.append({**values, "wave": wave, "sample_rate": sample_rate})
        if len(rows) == _BATCH_FILES:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)
            rows = []
    if first is None:
        raise DataMissing(
            f"there are no recordings in {origin.source}{malformed.describe_last(before=num_malformed)}",
            required="wav files" + (f" of {data.sample_rate} Hz" if data.sample_rate and not data.resample else ""),
            where=place_of_options(),
            remedy=f"correct the path, or {option_names('sample_rate', 'resample', 'path_pattern')}",
        )
    yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _decode(file: MediaFile, decoding: AudioDecoding) -> tuple[np.ndarray, int] | str:
    """Returns the samples as float32 and the rate in Hz, or why there are none."""
    try:
        return decode_recording(file.content, decoding)
    except MediaUnreadable as failure:
        return str(failure)


def _require_equal_rates(first: tuple[str, int], path: str, sample_rate: int) -> None:
    if sample_rate != first[1]:
        raise DataMissing(
            f"recordings have the sample rates {first[1]} Hz and {sample_rate} Hz",
            required="one rate, if none is set",
            where=f"{first[0]} and {path}",
            remedy=f"set {option_names('sample_rate')}, and {option_names('resample')} to convert the others",
        )
