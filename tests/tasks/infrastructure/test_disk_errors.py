"""Failures of a disk or a network share that stops answering are recognized."""

import errno
import os
from pathlib import Path

import pytest

from bloomery.tasks.infrastructure import disk_errors
from bloomery.tasks.infrastructure.disk_errors import share_lost_error


def test_a_share_that_stops_answering_is_reported(home: Path) -> None:
    for number in (errno.EIO, errno.ESTALE, errno.EHOSTDOWN):
        try:
            try:
                raise OSError(number, os.strerror(number), "/share/rows.csv")
            except OSError as failure:
                raise RuntimeError("a stage failed") from failure
        except RuntimeError as failure:
            error = share_lost_error(failure, home)
        assert error is not None
        assert (error.found, error.where, error.exit_code) == (os.strerror(number), "/share/rows.csv", 1)
    assert share_lost_error(ValueError("something else"), home) is None


def test_a_state_folder_that_is_gone_is_reported(home: Path) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(home / "stages"))
    assert share_lost_error(missing, home) is None
    home.rename(home.with_name("unmounted"))
    home.mkdir()  # the folder that a share was mounted on
    (home / "checkpoints").mkdir()
    error = share_lost_error(missing, home)
    assert error is not None
    assert error.found == "the state folder is gone, and was there when the run began"
    assert error.where == str(home)


def test_a_full_folder_of_temporary_files_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = home.parent / "temporary"
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(disk_errors, "_free_bytes", lambda folder: 0 if folder == temporary else 10**9)
    error = disk_errors.disk_full_error(RuntimeError("DROP TABLE flow_run"), "an engine", home)
    assert error is not None
    assert error.where.startswith(str(temporary))
    assert "set TMPDIR to another folder" in error.remedy


def test_a_deleted_current_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_errors.deleted_folder_error() is None
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    error = disk_errors.deleted_folder_error()
    monkeypatch.chdir(tmp_path)
    assert error is not None
    assert "cd" in error.remedy
