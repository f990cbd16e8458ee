"""What a command does about the process that it was started in, before anything else."""

from __future__ import annotations

import io
import os
import sys
import warnings

from bloomery.data_contracts.errors import SettingInvalid

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare_process() -> None:
    """Opens closed streams, lets unknown letters pass, and makes warnings of engines no errors.

    Raises:
        SettingInvalid: Python runs with an option that engines do not work with.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal has the letters of tables
    if any(option.startswith("error") for option in sys.warnoptions):
        # As PYTHONWARNINGS says for tests of the user's own code. Engines warn of what their next versions change.
        warnings.simplefilter("default")
        sys.warnoptions[:] = [option for option in sys.warnoptions if not option.startswith("error")]  # for children
        os.environ.pop("PYTHONWARNINGS", None)
    if sys.flags.optimize > 1:
        raise SettingInvalid(
            "Python runs without docstrings, which Prefect, MLflow and others read",
            required="Python without the option -OO",
            where="the variable PYTHONOPTIMIZE, or the options of python",
            remedy="unset PYTHONOPTIMIZE, or set it to 1",
        )


def _open_closed_streams() -> None:
    """Opens the null device in place of each standard stream that the caller has closed, as some service managers do.

    Otherwise the next file or socket would get its number, and Python has no stream that could be flushed.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False, encoding="utf-8"))  # noqa: SIM115
