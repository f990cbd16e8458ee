"""A disk or a network share that stops answering is told as what it is."""

import errno
import os
from pathlib import Path

from bloomery.tasks.infrastructure.settings import share_lost_error


def test_a_source_whose_share_stops_answering_is_told(home: Path) -> None:
    for number in (errno.EIO, errno.ESTALE, errno.EHOSTDOWN):
        try:
            try:
                raise OSError(number, os.strerror(number), "/share/rows.csv")
            except OSError as failure:
                raise RuntimeError("a stage failed") from failure
        except RuntimeError as failure:
            told = share_lost_error(failure)
        assert told is not None
        assert (told.found, told.where, told.exit_code) == (os.strerror(number), "/share/rows.csv", 1)
    assert share_lost_error(ValueError("something else")) is None


def test_a_state_folder_that_is_gone_is_told(home: Path) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(home / "stages"))
    assert share_lost_error(missing) is None
    home.rename(home.with_name("unmounted"))
    home.mkdir()  # the folder that a share was mounted on
    (home / "checkpoints").mkdir()
    told = share_lost_error(missing)
    assert told is not None
    assert told.found == "the state folder is gone, and was there when the run began"
    assert told.where == str(home)
