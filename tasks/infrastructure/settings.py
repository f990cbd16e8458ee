"""Where everything lies. The environment is read here, once, and the engines' own variables are set from it."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bloomery.data_contracts.errors import SettingInvalid, ShareLost, StateUnwritable
from bloomery.models.profiling.cpu_features import cpu_flags
from bloomery.tasks.infrastructure.service_status import read_standing

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
    home = Path(os.environ.get("BLOOMERY_HOME", ".bloomery")).expanduser().absolute()
    signing_key = os.environ.get("BLOOMERY_SIGNING_KEY")
    standing = read_standing(home)
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI")
    is_server = tracking_uri is not None and tracking_uri.startswith("http")
    return Settings(
        home=home,
        # A server that `up` has started reads the same file, and to write to it directly is quicker.
        tracking_uri=tracking_uri or f"sqlite:///{home}/mlflow/mlflow.db",
        prefect_api_url=os.environ.get("PREFECT_API_URL") or (standing.prefect_api_url if standing else None),
        mlflow_url=tracking_uri if is_server else standing.mlflow_url if standing else None,
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


def enter(*, with_room: bool = True) -> Settings:
    """Call at every door, before an engine is imported: the state folder exists, and each engine keeps to it.

    A variable that the user has set stays. `with_room=False` asks for no room on the disk.

    Raises:
        StateUnwritable: the state folder cannot be made or written.
    """
    chosen = settings()
    _require_writable(chosen.home, with_room=with_room)
    _folder_at_start(chosen.home)
    ours = {
        "BLOOMERY_HOME": str(chosen.home),
        "PREFECT_HOME": str(chosen.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "MLFLOW_TRACKING_URI": chosen.tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "BENTOML_HOME": str(chosen.home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "GX_ANALYTICS_ENABLED": "False",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(chosen.home / "matplotlib"),
    }
    if chosen.prefect_api_url is not None:
        ours["PREFECT_API_URL"] = chosen.prefect_api_url
    for name, value in (ours | instruction_set()).items():
        os.environ.setdefault(name, value)
    return chosen


def instruction_set() -> dict[str, str]:
    """Variables under which weights repeat bit for bit on most machines, if set before the first arithmetic."""
    if not has_avx2():
        return {}
    # Bits depend on the instruction set: take one that nearly every x86 machine has.
    return {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def has_avx2() -> bool:
    """Whether this is an x86 processor with AVX2, as far as Linux tells."""
    return platform.machine() in ("x86_64", "AMD64") and "avx2" in cpu_flags()


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


def no_room(failure: BaseException, doing: str) -> StateUnwritable | None:
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


def share_lost(failure: BaseException) -> ShareLost | None:
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
