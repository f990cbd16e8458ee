"""The settings of this process: read once, from the environment."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bloomery.data_contracts.errors import SettingInvalid, ShareLost, StateUnwritable
from bloomery.tasks.infrastructure.engine_environment import state_folder, tracking_uri
from bloomery.tasks.infrastructure.service_status import read_service_status

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
_FULL = (
    *("disk is full", "No space left on device"),
    *("iostream error", "] . unexpected pos "),  # of PyTorch's writer, which says no more of a write that failed
)
_LOST = {
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
_AMOUNT = r"\d{1,9}(?:\.\d{1,6})?"
_ROOM_FOR_A_PAGE = 65_536
_ROOM_FOR_A_RUN = 50_000_000  # the two databases take a tenth of it before the first row is read


@dataclass(frozen=True)
class Settings:
    """`home` is the state folder: all that Bloomery and its engines write on this machine."""

    home: Path
    tracking_uri: str
    prefect_api_url: str | None  # the user's own, or that of `bloomery up`
    mlflow_url: str | None  # where a person looks at runs and versions, if a server stands
    spark_master: str
    litert_python: str | None
    signing_key: Path | None  # the user's own; else there is one in the state folder
    grams_per_kwh: float | None  # of CO2 equivalents, where this machine gets its power
    price_of_hour: tuple[float, str] | None  # of this machine: an amount and its currency

    def path(self, uri: str) -> Path:
        """The place of a record's `uri`."""
        return self.home / uri

    @property
    def keys(self) -> Path:
        """The folder of what opens the endpoint and vouches for versions."""
        return self.home / "keys"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def tracking_is_local(self) -> bool:
        return self.tracking_uri.startswith("sqlite:")


@functools.cache
def settings() -> Settings:
    """The settings of this process, from the environment as it is at the first call."""
    home = state_folder()
    signing_key = os.environ.get("BLOOMERY_SIGNING_KEY")
    standing = read_service_status(home)
    tracking = tracking_uri()
    return Settings(
        home=home,
        tracking_uri=tracking,
        prefect_api_url=os.environ.get("PREFECT_API_URL") or (standing.prefect_api_url if standing else None),
        mlflow_url=tracking if tracking.startswith("http") else standing.mlflow_url if standing else None,
        spark_master=os.environ.get("BLOOMERY_SPARK_MASTER", "local[*]"),
        litert_python=os.environ.get("BLOOMERY_LITERT_PYTHON") or None,
        signing_key=Path(signing_key).expanduser().absolute() if signing_key else None,
        grams_per_kwh=_grams(os.environ.get("BLOOMERY_GRAMS_PER_KWH")),
        price_of_hour=_price(os.environ.get("BLOOMERY_PRICE_OF_HOUR")),
    )


def _grams(stated: str | None) -> float | None:
    """Raises SettingInvalid where it is no amount."""
    if not stated:
        return None
    if not re.fullmatch(_AMOUNT, stated.strip()):
        raise SettingInvalid(
            f"BLOOMERY_GRAMS_PER_KWH is {stated!r}",
            required="grams of CO2 equivalents for a kilowatt hour, such as 380",
            where="the environment",
            remedy="mend the variable, or leave it out: then cards say nothing of emissions",
        )
    return float(stated)


def _price(stated: str | None) -> tuple[float, str] | None:
    """Raises SettingInvalid where it is no amount with a currency."""
    if not stated:
        return None
    found = re.fullmatch(rf"({_AMOUNT}) ([A-Z]{{3}})", stated.strip())
    if found is None:
        raise SettingInvalid(
            f"BLOOMERY_PRICE_OF_HOUR is {stated!r}",
            required="what an hour of this machine costs, with a currency, such as `0.35 EUR`",
            where="the environment",
            remedy="mend the variable, or leave it out: then cards say nothing of money",
        )
    return float(found.group(1)), found.group(2)


def require_state_folder(*, with_room: bool = True) -> Settings:
    """Makes the state folder if it is missing, and returns the settings of this process.

    `with_room=False` does not ask for free space on the disk.

    Raises:
        StateUnwritable: the state folder cannot be made or written.
    """
    chosen = settings()
    _require_writable(chosen.home, with_room=with_room)
    _folder_at_start(chosen.home)
    return chosen


def _require_writable(home: Path, *, with_room: bool) -> None:
    probe = home / f".probe-{os.getpid()}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"bloomery" if with_room else b"")
        probe.unlink()
        if with_room and _free_bytes(home) < _ROOM_FOR_A_RUN:
            raise OSError(errno.ENOSPC, f"less than {_ROOM_FOR_A_RUN / 1e6:.0f} MB are free")
    except OSError as failure:
        raise StateUnwritable(
            f"the state folder cannot be written: {failure.strerror or failure}",
            required=f"a folder that this user may write, on a disk with room ({_free(home)})",
            where=str(home),
            remedy="free some space or mend the permissions, or set BLOOMERY_HOME to another folder",
        ) from failure


def disk_full_error(failure: BaseException, doing: str) -> StateUnwritable | None:
    """The error to show if `failure`, or what caused it, is a full disk or a folder that may not be written; else None.

    SQLite, the servers that use it and what is not written in Python report a full disk in words of their own.
    """
    seen: BaseException | None = failure
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in _NO_ROOM) or any(words in str(seen) for words in _FULL):
            break
        seen = seen.__cause__ or seen.__context__
    else:
        if _free_bytes(settings().home) > _ROOM_FOR_A_PAGE:
            return None
        seen = failure
    place = getattr(seen, "filename", None) or settings().home
    return StateUnwritable(
        f"{doing} could not write: {getattr(seen, 'strerror', None) or 'the disk is full'}",
        required="room on the disk and leave to write",
        where=f"{place} ({_free(settings().home)})",
        remedy="free some space or mend the permissions, then run again: finished stages are found",
    )


def share_lost_error(failure: BaseException) -> ShareLost | None:
    """The error to show if `failure`, or what caused it, is a disk or a share that stopped answering; else None.

    A share that is unmounted leaves a folder of the same name, so the state folder is compared with what it was.
    """
    seen: BaseException | None = failure
    while seen is not None:
        is_silent = isinstance(seen, OSError) and seen.errno in _LOST and not isinstance(seen, ConnectionError)
        if is_silent or (isinstance(seen, OSError) and _is_gone(settings().home)):
            place = getattr(seen, "filename", None) or settings().home
            return ShareLost(
                f"{getattr(seen, 'strerror', None) or seen}"
                if is_silent
                else "the state folder is gone, and was there when the run began",
                required="files that stay where they are while a run reads and writes them",
                where=str(place) if is_silent else str(settings().home),
                remedy="bring the disk or the share back, then run again: finished stages are found",
            )
        seen = seen.__cause__ or seen.__context__
    return None


@functools.cache
def _folder_at_start(home: Path) -> tuple[int, int]:
    """What tells the state folder from another one at its place, as it was at the first call."""
    there = home.stat()
    return there.st_dev, there.st_ino


def _is_gone(home: Path) -> bool:
    try:
        there = home.stat()
        return (there.st_dev, there.st_ino) != _folder_at_start(home)
    except OSError:
        return True


def _free_bytes(folder: Path) -> int:
    return next(shutil.disk_usage(place).free for place in (folder, *folder.parents) if place.is_dir())


def _free(folder: Path) -> str:
    return f"{_free_bytes(folder) / 1e6:,.0f} MB free"
