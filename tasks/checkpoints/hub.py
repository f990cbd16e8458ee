"""Checkpoints of the Hugging Face hub: local files first, downloaded where they are missing, at a pinned revision."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import (
    CONFIG_FILE,
    MODULES_FILE,
    PREPROCESSOR_FILE,
    PROMPTS_FILE,
    TEXTS_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
)
from bloomery.tasks.infrastructure.settings import settings

HUB_PREFIX = "hf://"
_PINS = "checkpoint-revisions.json"  # in the state folder: name and revision of the recipe -> commit
_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
# Neither code nor pickles; folders with weights in other formats are left out.
_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md"]
_LEFT_OUT = ["onnx/*", "openvino/*", "coreml/*", "*/*.safetensors"]
_NEEDED = (
    *(CONFIG_FILE, WEIGHTS_INDEX, *TOKENIZER_FILES, PREPROCESSOR_FILE),
    *(MODULES_FILE, PROMPTS_FILE, TEXTS_FILE),
)
_SNAPSHOTS = "snapshots"  # the folder in the cache with a folder for each commit of a repository


class Snapshot(NamedTuple):
    """The folder of a commit in the local cache of Hugging Face."""

    folder: Path
    commit: str


def is_hub_name(reference: str) -> bool:
    """Whether a reference looks like `org/name` or `org/name@revision`, which may be in the local cache."""
    return _NAME.fullmatch(reference) is not None


def find_snapshot(reference: str, key: str) -> Snapshot | None:
    """Returns the snapshot of `hf://org/name@revision`, downloaded if it is not in the cache, or of `org/name` there.

    A branch or tag is resolved once: later runs in this state folder take the same commit, also without a network.

    Returns:
        None if the reference has no `hf://` and the cache does not have it.

    Raises:
        DataMissing: there is no such checkpoint, or no network to download it from.
        RecipeInvalid: the reference is not one of the hub.
    """
    name = reference.removeprefix(HUB_PREFIX)
    match = _NAME.fullmatch(name)
    if match is None:
        raise RecipeInvalid(
            f"{reference!r} does not name a checkpoint of the hub",
            required="hf://org/name, or hf://org/name@revision with a branch, a tag or a commit",
            where=f"{key} in the recipe",
            remedy="correct the name",
        )
    repository, revision = match.group(1), match.group(2) or "main"
    pins = _read_pins()
    pinned = pins.get(name, revision)
    cached = _find_cached(repository, pinned)
    if reference == name and cached is None:
        if name in pins:
            raise _lost_commit(name, repository, pinned, key)
        return None
    if cached is not None and (reference == name or find_missing_files(cached) == []):
        folder = cached
    else:
        folder = _download(repository, pinned, reference, key, cached)
    commit = folder.name
    if commit != pins.get(name):
        _write_pins({**pins, name: commit})
    return Snapshot(folder, commit)


def _find_cached(repository: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[CONFIG_FILE])
        )
    except (OSError, HFValidationError):
        return None


def find_missing_files(folder: Path) -> list[str] | None:
    """The files of the repository that its snapshot `folder` lacks.

    None is unknown: without a list of all files in the cache, other programs have downloaded single ones.
    """
    from huggingface_hub.utils import filter_repo_objects

    try:
        listing = json.loads((folder.parent.parent / "trees" / f"{folder.name}.json").read_text(encoding="utf-8"))
        names = list(listing["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    names = list(filter_repo_objects(names, allow_patterns=_PATTERNS, ignore_patterns=_LEFT_OUT))
    return [name for name in names if not (folder / name).is_file()]


def is_partly_known(folder: Path) -> bool:
    """Whether `folder` is a snapshot in the cache that lacks, or may lack, the repository's files on pooling."""
    missing = find_missing_files(folder) if folder.parent.name == _SNAPSHOTS else []
    return missing is None or any(name == MODULES_FILE or name.endswith(f"/{CONFIG_FILE}") for name in missing)


def repository_of(folder: Path) -> str:
    """The name of the repository of a snapshot in the cache."""
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)


def _download(repository: str, revision: str, reference: str, key: str, cached: Path | None) -> Path:
    """Downloads what is missing. Without a network, what the cache has is returned, if it may be complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=_PATTERNS, ignore_patterns=_LEFT_OUT)
        )
    except (OSError, ValueError) as failure:  # errors of the hub are those of reading, too
        is_refused = isinstance(failure, RepositoryNotFoundError | RevisionNotFoundError)
        missing = [] if cached is None else [name for name in find_missing_files(cached) or () if _is_needed(name)]
        if not is_refused and cached is not None and not missing and _has_weights(cached):
            return cached
        problem, remedy = _explain_failure(failure, repository, revision)
        if missing:
            problem = f"lacks {', '.join(missing[:3])} in the local cache, and cannot be downloaded"
        raise DataMissing(
            f"the checkpoint {reference} {problem}",
            required="a checkpoint of the hub, or one in the local cache of Hugging Face",
            where=f"{key} in the recipe",
            remedy=remedy,
        ) from failure


def _is_needed(name: str) -> bool:
    """Whether a checkpoint is not what its author has published without this file."""
    return name in _NEEDED or name.endswith((".safetensors", f"/{CONFIG_FILE}"))


def _lost_commit(name: str, repository: str, commit: str, key: str) -> DataMissing:
    return DataMissing(
        f"the local cache of Hugging Face no longer has the commit {commit} of {name}, which earlier runs have used",
        required="the files of the same commit",
        where=f"{key} in the recipe",
        remedy=f"run `hf download {repository} --revision {commit}` where there is a network; or remove {name!r} from "
        f"{settings().home / _PINS}, to take the commit that the cache has now",
    )


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, WEIGHTS_INDEX))


def _explain_failure(failure: Exception, repository: str, revision: str) -> tuple[str, str]:
    """What is wrong with a checkpoint that cannot be downloaded, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match failure:
        case GatedRepoError():
            return "needs the agreement to its terms", "agree to them on its page, and log in with `hf auth login`"
        case RevisionNotFoundError():
            return f"has no revision {revision}", f"correct the revision{_explain_pin(revision)}"
        case RepositoryNotFoundError():
            return "is not on the hub, or private", "correct the name, or log in with `hf auth login`"
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
    return (
        f"is not in the local cache, and cannot be downloaded: {reason}",
        f"download it where there is a network: `hf download {repository} --revision {revision}`, and copy the folder "
        "of the cache or name its path",
    )


def _explain_pin(revision: str) -> str:
    """What else to do if earlier runs have resolved a branch or a tag to a commit that the hub has no longer."""
    names = [name for name, commit in _read_pins().items() if commit == revision]
    return f", or remove {names[0]!r} from {settings().home / _PINS} to take another commit" if names else ""


def _read_pins() -> dict[str, str]:
    try:
        document = json.loads((settings().home / _PINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_pins(pins: dict[str, str]) -> None:
    """Does nothing without a state folder: a check creates none."""
    if settings().home.is_dir():
        with contextlib.suppress(OSError):
            write_text(settings().home / _PINS, json.dumps(pins, indent=1))
