"""Keeps pandas out of a serving process: the requirements of a bento do not include it."""

from __future__ import annotations

import sys

import pyarrow as pa


def prevent_pandas_import() -> None:
    """Makes Arrow work without pandas, as it does in the bento's container.

    Where pandas is installed, Arrow imports it at its first conversion from Python, to recognise pandas' types. That
    takes a quarter of a second and 40 MB in each process. Arrow looks for pandas only once in a process: here.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _PandasBlocker)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(_PandasBlocker)


class _PandasBlocker:
    """An import finder for which pandas is not installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
