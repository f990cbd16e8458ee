"""Where versions come from, read from the bentos that carry it: in the store, in a folder or in an exported file."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from pathlib import Path

from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing, OutputCorrupt
from bloomery.data_contracts.records.provenance import ORIGIN, Origin
from bloomery.tasks.bentos.bento_store import artifacts_folder

_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)  # an archive that is cut off, by what compressed it
_INSIDE = f"src/artifacts/{ORIGIN}"


def read_origin(reference: str) -> Origin:
    """Of a version in the registry (NAME, NAME:VERSION, NAME@ALIAS), or of a bento's folder or `.bento` file.

    Raises:
        DataMissing: there is no such version, or no bento of it.
        OutputCorrupt: the bento carries no origin, or one that cannot be read.
    """
    path = Path(reference)
    if (path / "src").is_dir():  # and no folder that has a version's name by chance
        return _read(path / _INSIDE, str(path))
    if path.is_file():
        return _exported(path)
    from bloomery.tasks.registry.model_registry import BENTO, version_of

    return origin_in(version_of(reference).tags[BENTO])


def origin_in(tag: str) -> Origin:
    """Of a bento in BentoML's store. Raises as `read_origin` does."""
    return _read(artifacts_folder(tag) / ORIGIN, tag)


def _read(path: Path, what: str) -> Origin:
    try:
        return _parsed(path.read_text(encoding="utf-8"), what)
    except (OSError, UnicodeDecodeError) as failure:
        if not path.parent.is_dir():
            raise DataMissing(
                f"there is no bento {what}",
                required="the bento of the version",
                where=str(path.parent),
                remedy="run the recipe again, which packages what is missing",
            ) from failure
        raise _unreadable(what, str(failure), str(path)) from failure


def _exported(path: Path) -> Origin:
    """Of a file that `bentoml export` has written, whatever it is compressed by."""
    try:
        with tarfile.open(path) as archive:
            inside = next(name for name in archive.getnames() if name.removeprefix("./") == _INSIDE)
            found = archive.extractfile(inside)
            assert found is not None
            return _parsed(found.read().decode("utf-8"), path.name)
    except (
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        StopIteration,
        UnicodeDecodeError,
    ) as failure:
        raise _unreadable(path.name, str(failure) or "it has none", str(path)) from failure


def _parsed(text: str, what: str) -> Origin:
    try:
        return Origin.model_validate_json(text)
    except ValidationError as failure:
        raise _unreadable(what, str(failure).splitlines()[0], what) from failure


def _unreadable(what: str, why: str, where: str) -> OutputCorrupt:
    return OutputCorrupt(
        f"{what} carries no origin that can be read: {why}",
        required=f"a bento that Bloomery has packaged with {ORIGIN}",
        where=where,
        remedy="run its recipe again: versions that were packaged before carry none",
    )
