"""The settings of this process: read once, from the environment."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.tasks.infrastructure.disk_errors import remember_folder, require_writable
from bloomery.tasks.infrastructure.engine_environment import state_folder, tracking_uri
from bloomery.tasks.infrastructure.service_status import read_service_status

_AMOUNT = r"\d{1,9}(?:\.\d{1,6})?"


@dataclass(frozen=True)
class Settings:
    """The settings of a process. `home` is the state folder, where Bloomery and its engines write."""

    home: Path
    tracking_uri: str
    prefect_api_url: str | None  # of the user's own server, or of the one that `bloomery up` runs
    mlflow_url: str | None  # MLflow's web interface, if a server runs
    spark_master: str
    litert_python: str | None
    signing_key: Path | None  # the user's own; None for the one in the state folder
    grams_per_kwh: float | None  # of CO2 equivalents, for this machine's electricity
    price_of_hour: tuple[float, str] | None  # of this machine: amount and currency

    def path(self, uri: str) -> Path:
        """Returns the path of a record's `uri`."""
        return self.home / uri

    @property
    def keys(self) -> Path:
        """The folder of API keys and the signing key."""
        return self.home / "keys"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def tracking_is_local(self) -> bool:
        return self.tracking_uri.startswith("sqlite:")


@functools.cache
def settings() -> Settings:
    """Returns the settings of this process, from the environment at the first call."""
    home = state_folder()
    signing_key = os.environ.get("BLOOMERY_SIGNING_KEY")
    services = read_service_status(home)
    tracking = tracking_uri()
    return Settings(
        home=home,
        tracking_uri=tracking,
        prefect_api_url=os.environ.get("PREFECT_API_URL") or (services.prefect_api_url if services else None),
        mlflow_url=tracking if tracking.startswith("http") else services.mlflow_url if services else None,
        spark_master=os.environ.get("BLOOMERY_SPARK_MASTER", "local[*]"),
        litert_python=os.environ.get("BLOOMERY_LITERT_PYTHON") or None,
        signing_key=Path(signing_key).expanduser().absolute() if signing_key else None,
        grams_per_kwh=_parse_grams(os.environ.get("BLOOMERY_GRAMS_PER_KWH")),
        price_of_hour=_parse_price(os.environ.get("BLOOMERY_PRICE_OF_HOUR")),
    )


def _parse_grams(text: str | None) -> float | None:
    """Raises SettingInvalid unless the text is an amount."""
    if not text:
        return None
    if not re.fullmatch(_AMOUNT, text.strip()):
        raise SettingInvalid(
            f"BLOOMERY_GRAMS_PER_KWH is {text!r}",
            required="grams of CO2 equivalents per kilowatt hour, such as 380",
            where="the environment",
            remedy="correct the variable, or unset it: then model cards do not report emissions",
        )
    return float(text)


def _parse_price(text: str | None) -> tuple[float, str] | None:
    """Raises SettingInvalid unless the text is an amount with a currency."""
    if not text:
        return None
    match = re.fullmatch(rf"({_AMOUNT}) ([A-Z]{{3}})", text.strip())
    if match is None:
        raise SettingInvalid(
            f"BLOOMERY_PRICE_OF_HOUR is {text!r}",
            required="the price of an hour on this machine, with a currency, such as `0.35 EUR`",
            where="the environment",
            remedy="correct the variable, or unset it: then model cards do not report costs",
        )
    return float(match.group(1)), match.group(2)


def require_state_folder(*, with_room: bool = True) -> Settings:
    """Creates the state folder if it is missing, and returns the settings of this process.

    `with_room=False` does not require free space on the disk.

    Raises:
        StateUnwritable: the state folder cannot be created or written.
        SettingInvalid: no database can have its path.
    """
    process_settings = settings()
    if "?" in str(process_settings.home):
        raise SettingInvalid(
            "the path of the state folder has a question mark, which ends the path in an address of a database",
            required="a path without question marks",
            where=str(process_settings.home),
            remedy="set BLOOMERY_HOME to another folder",
        )
    require_writable(process_settings.home, with_room=with_room)
    remember_folder(process_settings.home)
    return process_settings
