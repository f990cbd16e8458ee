"""Streams of text: bytes of any encoding in UTF-8, and chunks that an iterator yields."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from bloomery.tasks.ingest.locations import BUFFER_BYTES


def transcode_to_utf8(raw: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """Returns the text in UTF-8 without a byte order mark. Bytes that are invalid in `encoding` stay invalid."""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
        if codecs.lookup(encoding).name == "ascii":
            return to_stream(_transcode(raw, encoding))
        if raw.peek(3)[:3] == codecs.BOM_UTF8:
            raw.read(3)
        return raw
    return to_stream(_transcode(raw, encoding))


def _transcode(raw: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    while chunk := raw.read(BUFFER_BYTES):
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def end_lines_with_feeds(stream: io.BufferedReader) -> io.BufferedReader:
    """Returns the text with line feeds in place of carriage returns, if its lines end with these alone."""
    start = stream.peek(BUFFER_BYTES)
    if b"\r" not in start or b"\n" in start:
        return stream
    return to_stream(chunk.replace(b"\r", b"\n") for chunk in iter(lambda: stream.read(BUFFER_BYTES), b""))


def join_chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the same bytes in larger chunks."""
    chunk, size = [], 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece)
        if size >= BUFFER_BYTES:
            yield b"".join(chunk)
            chunk, size = [], 0
    yield b"".join(chunk)


def to_stream(chunks: Iterator[bytes]) -> io.BufferedReader:
    """Returns a stream of the bytes that `chunks` yields."""
    return io.BufferedReader(_ChunkStream(chunks), BUFFER_BYTES)


class _ChunkStream(io.RawIOBase):
    """A byte stream over chunks that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
