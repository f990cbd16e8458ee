"""What a recipe's network brings along: own code, a checkpoint. Read before the run, so that it counts.

The code itself goes into the recipe as it was read, and of files their digest. So a stage is found again for equal code
and equal files, wherever they lie, and a trained network can be built without the folder that its code came from.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.models.networks.config import Custom, HuggingFace, Imported, Model
from bloomery.tasks.orchestration.code_version import PACKAGE, versions

_TAKEN = frozenset({PACKAGE, *sys.stdlib_module_names})


def bundle_user_code(model: Model, folder: Path) -> Model:
    """`model` with what it names in `folder`, the recipe's: the text of its code, or absolute paths and digests.

    Raises:
        DataMissing: there is no such module, checkpoint or file.
        RecipeInvalid: a module has the name of another one, or is no Python; a checkpoint cannot be used.
    """
    match model:
        case Custom():
            return _with_code(model, folder)
        case HuggingFace(checkpoint=str(stated)):
            return _with_checkpoint(model, (folder / Path(stated).expanduser()).resolve())
        case Imported():
            return _with_file(model, (folder / Path(model.path).expanduser()).resolve())
    return model


def _with_code(model: Custom, folder: Path) -> Custom:
    """The modules are found in the folder by their import statements; what is not there must be installed."""
    top = model.function.partition(":")[0].split(".")[0]
    code: dict[str, str] = {}
    foreign: set[str] = set()
    waiting = [top]
    while waiting:
        name = waiting.pop()
        paths = _files_of(folder, name)
        if name in foreign or any(str(path.relative_to(folder)) in code for path in paths):
            continue
        if not paths:
            foreign.add(name)
            continue
        _refuse_taken(name, folder, paths)
        for path in paths:
            text = _text(path)
            code[path.relative_to(folder).as_posix()] = text
            waiting += sorted(_imported(text, path))
    if top in foreign and importlib.util.find_spec(top) is None:
        raise _missing(folder / f"{top}.py", "a module beside the recipe, or an installed package", "model.function")
    return model.model_copy(update={"code": dict(sorted(code.items())), "packages": versions(foreign)})


def _files_of(folder: Path, name: str) -> list[Path]:
    """The files of the module or package `name` in `folder`; none if it is not there."""
    if (folder / f"{name}.py").is_file():
        return [folder / f"{name}.py"]
    return sorted((folder / name).rglob("*.py"))


def _imported(text: str, path: Path) -> Iterator[str]:
    """The first part of each name that is imported; imports inside a package stay inside it."""
    try:
        tree = ast.parse(text)
    except SyntaxError as failure:
        raise RecipeInvalid(
            f"{path.name} is not Python: {failure.msg}",
            required="a module that can be imported",
            where=f"{path}:{failure.lineno}",
            remedy="mend the line",
        ) from failure
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def _refuse_taken(name: str, folder: Path, paths: list[Path]) -> None:
    """A module beside the recipe may not hide one that others import."""
    spec = None if name in _TAKEN or name in sys.builtin_module_names else importlib.util.find_spec(name)
    others = spec is not None and spec.origin is not None and Path(spec.origin).resolve() not in paths
    if name in _TAKEN or others:
        raise RecipeInvalid(
            f"{paths[0].relative_to(folder)} has the name of a module that is imported elsewhere",
            required="a name of its own",
            where=str(paths[0]),
            remedy="rename the file, and what imports it",
        )


def _with_checkpoint(model: HuggingFace, folder: Path) -> HuggingFace:
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors"))
    for there, lacking in ((config.is_file(), config), (bool(weights), folder / "model.safetensors")):
        if not there:
            raise _missing(lacking, "a folder with config.json and weights as safetensors", "model.checkpoint")
    try:
        stated: Any = json.loads(_text(config))
    except json.JSONDecodeError:
        stated = None
    if not isinstance(stated, dict) or not isinstance(stated.get("model_type"), str):
        raise RecipeInvalid(
            "config.json names no model_type",
            required="a JSON object as `transformers` writes it with save_pretrained",
            where=str(config),
            remedy="save the checkpoint again",
        )
    index = sorted(folder.glob("*.safetensors.index.json"))
    digest = digest_of_document({path.name: digest_of_file(path) for path in (config, *weights, *index)})
    return HuggingFace(kind="huggingface", checkpoint=str(folder), config=stated, sha256=digest)


def _with_file(model: Imported, path: Path) -> Imported:
    if not path.is_file():
        raise _missing(path, "an ONNX file, as Keras writes with model.export(path, format='onnx')", "model.path")
    return model.model_copy(update={"path": str(path), "sha256": digest_of_file(path)})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise _missing(path, "a file in UTF-8", "model") from failure


def _missing(path: Path, required: str, key: str) -> DataMissing:
    return DataMissing(
        f"of the recipe's network there is no {path}",
        required=required,
        where=f"{key} in the recipe",
        remedy="mend the name; a relative one starts at the recipe's folder",
    )
