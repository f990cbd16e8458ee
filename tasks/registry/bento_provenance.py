"""Reads the provenance of a version from its bento: in the store, in a folder or in an exported file."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from pathlib import Path

from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing, OutputCorrupt
from bloomery.data_contracts.records.provenance import PROVENANCE_FILE, Provenance
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.registry.model_registry import find_version, require_bento_tag

_PATH_IN_BENTO = f"src/artifacts/{PROVENANCE_FILE}"


def is_bento(reference: str) -> bool:
    """Whether the reference is the folder of a bento or an exported file, and not the name or recipe of a model."""
    path = Path(reference)
    return (path / "src").is_dir() or (path.is_file() and path.suffix not in (".yaml", ".yml"))


def read_provenance(reference: str) -> Provenance:
    """The provenance of a version in the registry (NAME, NAME:VERSION, NAME@ALIAS), a bento folder or a `.bento` file.

    Raises:
        DataMissing: there is no such version, or no bento of it.
        DataUnfit: another tool has registered the version.
        OutputCorrupt: the bento has no provenance, or one that cannot be read.
    """
    path = Path(reference)
    if (path / "src").is_dir():  # a bento, not another folder with the name of a version
        return _read_file(path / _PATH_IN_BENTO, str(path))
    if is_bento(reference):
        return _read_exported(path)
    return read_bento_provenance(require_bento_tag(find_version(reference)))


def read_bento_provenance(tag: str) -> Provenance:
    """The provenance of a bento in BentoML's store. Raises the same errors as `read_provenance`."""
    return _read_file(artifacts_folder(tag) / PROVENANCE_FILE, tag)


def _read_file(path: Path, bento: str) -> Provenance:
    try:
        return _parse(path.read_text(encoding="utf-8"), bento)
    except (OSError, UnicodeDecodeError) as failure:
        if not path.parent.is_dir():
            raise DataMissing(
                f"there is no bento {bento}",
                required="the bento of the version",
                where=str(path.parent),
                remedy="run the recipe again, which packages what is missing",
            ) from failure
        raise _unreadable(bento, str(failure), str(path)) from failure


def _read_exported(path: Path) -> Provenance:
    """The provenance in a file that `bentoml export` has written, with any compression."""
    try:
        with tarfile.open(path) as archive:
            member = next(name for name in archive.getnames() if name.removeprefix("./") == _PATH_IN_BENTO)
            stream = archive.extractfile(member)
            assert stream is not None
            return _parse(stream.read().decode("utf-8"), path.name)
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


def _parse(text: str, bento: str) -> Provenance:
    try:
        return Provenance.model_validate_json(text)
    except ValidationError as failure:
        raise _unreadable(bento, str(failure).splitlines()[0], bento) from failure


def _unreadable(bento: str, reason: str, where: str) -> OutputCorrupt:
    return OutputCorrupt(
        f"the provenance of {bento} cannot be read: {reason}",
        required=f"a bento that Bloomery has packaged with {PROVENANCE_FILE}",
        where=where,
        remedy="run its recipe again: versions packaged by an older Bloomery have no provenance",
    )
