"""A bento as what a container is built from: a folder with a Dockerfile, made and checked without a Docker engine."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import ContainerUnfit, StateUnwritable
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.container_checks import PORT, Checked, faults, read_dockerfile

_HEALTH = (
    "import http.client, sys; "
    f"asked = http.client.HTTPConnection('127.0.0.1', {PORT}, timeout=2); "
    "asked.request('GET', '/readyz'); "
    "sys.exit(asked.getresponse().status != 200)"
)
_LEFT_OUT = ("Dockerfile", ".dockerignore")  # of the image: they are for the engine


class Context(NamedTuple):
    """A build context that has passed its checks."""

    folder: Path
    tag: str
    base_image: str
    num_packages: int
    num_files: int
    size_bytes: int


def write_context(
    tag: str, folder: Path, *, base_image: str | None = None, most_bytes: int = 1_000_000_000, force: bool = False
) -> Context:
    """Afterwards `folder` holds the bento and the Dockerfile that BentoML wrote for it, with a health check.

    It is there whole, and has passed every check, or not at all.

    Raises:
        StateUnwritable: the folder is there already, or cannot be written.
        ContainerUnfit: a check has failed; the error names each.
    """
    _require_free(folder, force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _lay_out(bento_folder(tag), beside / "context", base_image)
            checked = faults(beside / "context", most_bytes)
            _require_none(checked, tag)
            if folder.exists():
                folder.rename(beside / "before")
            (beside / "context").rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as failure:
        raise StateUnwritable(
            f"the build context cannot be written: {failure.strerror or failure}",
            required="a folder that this user may write, on a disk with room",
            where=str(failure.filename or folder),
            remedy="free some space or mend the permissions, or give another folder with --to",
        ) from failure
    return Context(folder, tag, checked.base_image, checked.num_packages, checked.num_files, checked.size_bytes)


def _require_free(folder: Path, force: bool) -> None:
    is_taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if is_taken and not (force and (folder / "bento.yaml").is_file()):
        raise StateUnwritable(
            f"{folder} is there already" + (", and holds no bento" if force else ""),
            required="a folder that is not there yet, or is empty",
            where=str(folder.absolute()),
            remedy="give another folder with --to; or --force, to replace a build context",
        )


def _lay_out(bento: Path, context: Path, base_image: str | None) -> None:
    # What a bento that was served from the store has left in it is no part of it.
    shutil.copytree(bento, context, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.move(context / "env" / "docker" / "Dockerfile", context / "Dockerfile")
    dockerfile = read_dockerfile(context)
    if base_image is not None:
        dockerfile.baseimage = base_image
    # The last word of each kind counts, so this may stand behind the entry point.
    dockerfile.add_lines(
        f'HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "{_HEALTH}"]'
    )
    (context / ".dockerignore").write_text("\n".join(_LEFT_OUT) + "\n", encoding="utf-8")


def _require_none(checked: Checked, tag: str) -> None:
    if checked.faults:
        raise ContainerUnfit(
            "\n    ".join(checked.faults),
            required="a build context in which none of this is so",
            where=f"what a container of {tag} would be built from",
            remedy="run the recipe again with this version of Bloomery, which packages it anew; nothing was written",
        )
