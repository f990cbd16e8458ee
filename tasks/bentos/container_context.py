"""Writes the build context of a container from a bento: a folder with a Dockerfile, checked without a Docker engine."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import ContainerUnfit, StateUnwritable
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.container_checks import PORT, ContextReport, check_context, read_dockerfile

_HEALTH_CHECK = (
    "import http.client, sys; "
    f"connection = http.client.HTTPConnection('127.0.0.1', {PORT}, timeout=2); "
    "connection.request('GET', '/readyz'); "
    "sys.exit(connection.getresponse().status != 200)"
)
_DOCKERIGNORE = ("Dockerfile", ".dockerignore")


class BuildContext(NamedTuple):
    """A build context that has passed all checks."""

    folder: Path
    tag: str
    base_image: str
    num_packages: int
    num_files: int
    size_bytes: int


def write_build_context(
    tag: str, folder: Path, *, base_image: str | None = None, max_bytes: int = 1_000_000_000, force: bool = False
) -> BuildContext:
    """Writes the bento and BentoML's Dockerfile for it, with a health check, to `folder`.

    The folder is complete and has passed every check, or does not exist.

    Raises:
        StateUnwritable: the folder exists already, or cannot be written.
        ContainerUnfit: a check has failed; the error lists all problems.
    """
    _require_free(folder, force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _copy_bento(bento_folder(tag), temporary / "context", base_image)
            report = check_context(temporary / "context", max_bytes)
            _require_no_problems(report, tag)
            if folder.exists():
                folder.rename(temporary / "previous")
            (temporary / "context").rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as failure:
        raise StateUnwritable(
            f"the build context cannot be written: {failure.strerror or failure}",
            required="a folder that this user may write, on a disk with free space",
            where=str(failure.filename or folder),
            remedy="free some space or correct the permissions, or give another folder with --output",
        ) from failure
    return BuildContext(folder, tag, report.base_image, report.num_packages, report.num_files, report.size_bytes)


def _require_free(folder: Path, force: bool) -> None:
    is_taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if is_taken and not (force and (folder / "bento.yaml").is_file()):
        raise StateUnwritable(
            f"{folder} exists already" + (", and holds no bento" if force else ""),
            required="a folder that does not exist or is empty",
            where=str(folder.absolute()),
            remedy="give another folder with --output; or --force, to replace a build context",
        )


def _copy_bento(bento: Path, context: Path, base_image: str | None) -> None:
    # Serving from the store leaves __pycache__ folders in a bento.
    shutil.copytree(bento, context, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.move(context / "env" / "docker" / "Dockerfile", context / "Dockerfile")
    dockerfile = read_dockerfile(context)
    if base_image is not None:
        dockerfile.baseimage = base_image
    # The last instruction of each kind counts, so this may come after the entry point.
    dockerfile.add_lines(
        "HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 "
        f'CMD ["python", "-c", "{_HEALTH_CHECK}"]'
    )
    (context / ".dockerignore").write_text("\n".join(_DOCKERIGNORE) + "\n", encoding="utf-8")


def _require_no_problems(report: ContextReport, tag: str) -> None:
    if report.problems:
        raise ContainerUnfit(
            "\n    ".join(report.problems),
            required="a build context without these problems",
            where=f"the build context of {tag}",
            remedy="run the recipe again with this version of Bloomery, which packages it again; nothing was written",
        )
