"""Infers the encoding of text files, and reads the start of one."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.ingest.locations import FileLocation

SAMPLE_BYTES = 65_536
_CHUNK_BYTES = 1 << 20
_ZERO_SHARE = 0.9
_BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = ("cp1251", "cp1250", "cp1253", "cp1254", "koi8-r", "cp932", "gb18030", "big5", "euc-kr", "cp866")
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # bytes that cp1252 leaves undefined


def infer_encoding(locations: Sequence[FileLocation], label: str = "") -> tuple[str, str]:
    """Returns UTF-8 where all bytes or nearly all lines are UTF-8, else a guess; and the reason.

    In the right encoding the text has the name `label`, if that is not ASCII.
    """
    for location in locations:
        with location.open_stream() as stream:
            start = stream.peek(4)[:4]
            encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
            if encoding is not None:
                return encoding, "the file's byte order mark says so"
            encoding = _wide_encoding(stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES])
            if encoding is not None:
                return encoding, "every second byte of the file is zero"
            if b"\0" in stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]:
                raise not_csv_error(location, f"it is no text, and begins with the bytes {start.hex(' ')}")
        if not _is_utf8(location):
            encoding, reason = _infer_other_encoding(location)
            if encoding != "utf-8" and not label.isascii() and label not in read_sample(location, encoding):
                others = [name for name in _OTHERS if label in read_sample(location, name)]
                return (others[0], f"the text has {label!r} in it") if others else (encoding, reason)
            return encoding, reason
    return "utf-8", "all bytes are UTF-8"


def _wide_encoding(start: bytes) -> str | None:
    """Returns UTF-16 where nearly every second byte is zero, as in Latin letters of two bytes; else None."""
    num_pairs = len(start) // 2
    if num_pairs and start[1::2].count(0) > _ZERO_SHARE * num_pairs and 0 not in start[::2]:
        return "utf-16-le"
    if num_pairs and start[::2].count(0) > _ZERO_SHARE * num_pairs and 0 not in start[1::2]:
        return "utf-16-be"
    return None


def _is_utf8(location: FileLocation) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with location.open_stream() as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _infer_other_encoding(location: FileLocation) -> tuple[str, str]:
    num_valid = num_invalid = 0
    is_cp1252 = True
    with location.open_stream() as stream:
        for line in stream:
            if line.isascii():
                continue
            is_cp1252 = is_cp1252 and _NOT_CP1252.search(line) is None
            try:
                line.decode("utf-8")
                num_valid += 1
            except UnicodeDecodeError:
                num_invalid += 1
    if num_valid >= num_invalid:
        return "utf-8", f"{num_invalid} lines are not UTF-8 and become malformed lines"
    encoding = "cp1252" if is_cp1252 else "latin-1"
    return encoding, f"{num_invalid} lines are not UTF-8; check letters with accents, and change it if they are wrong"


def read_sample(location: FileLocation, encoding: str) -> str:
    """Returns the text of the first 64 kB, up to the end of its last complete line."""
    with location.open_stream() as stream:
        start = stream.read(SAMPLE_BYTES)
        is_complete = not stream.read(1)
    if not start.strip():
        raise not_csv_error(location, "it is empty")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start, is_complete).removeprefix("\ufeff")
    end = len(text) if is_complete else max(text.rfind("\n") + 1, 0) or len(text)
    return text[:end]


def not_csv_error(location: FileLocation, problem: str) -> DataMissing:
    return DataMissing(
        f"{location.path} cannot be read as CSV: {problem}",
        required="a text with rows of cells",
        where=location.path,
        remedy="choose another file, or set --format",
    )
