"""Atomic writes: the old content or the new one, and the requested mode."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bloomery.data_contracts.documents.files import atomic_path, write_bytes, write_text


def test_a_file_is_replaced_and_no_temporary_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.json"
    write_text(path, "old")
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert [file.name for file in path.parent.iterdir()] == ["note.json"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_replaced_file_has_the_requested_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_bytes(path, b"new", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
