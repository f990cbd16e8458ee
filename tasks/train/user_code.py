"""Bundles the files that a recipe's network refers to: user code, a checkpoint, an ONNX file. Runs before the stages.

The recipe then contains the text of the code and the digest of each file. So equal code and files give the same stage
keys in any folder, and a trained network can be built without the original folder of its code.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import CONFIG_FILE
from bloomery.models.networks.config import Custom, Fused, Imported, Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.networks.transformers_package import require_transformers
from bloomery.tasks.checkpoints.json_files import read_object
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint
from bloomery.tasks.checkpoints.sentence_vectors import read_pooling
from bloomery.tasks.orchestration.code_version import PACKAGE, versions

_RESERVED = frozenset({PACKAGE, *sys.stdlib_module_names})


def bundle_user_code(model: Model, folder: Path) -> Model:
    """Returns `model` with the text of its code, or with absolute paths and digests; paths are relative to `folder`.

    Raises:
        DataMissing: a module, checkpoint or file does not exist.
        EngineMissing: a package with a checkpoint, or `transformers`, is not installed.
        RecipeInvalid: a module hides another one or is not valid Python; a checkpoint cannot be used.
    """
    match model:
        case Custom():
            return _bundle_code(model, folder)
        case Pretrained():
            return _bundle_checkpoint(model, folder)
        case Fused(branches=dict(branches)):
            bundled = {name: bundle_user_code(branch, folder) for name, branch in branches.items()}
            return model.model_copy(update={"branches": bundled})
        case Imported():
            return _bundle_file(model, (folder / Path(model.path).expanduser()).resolve())
    return model


def _bundle_code(model: Custom, folder: Path) -> Custom:
    """Follows imports through the modules in `folder`; all other imported modules must be installed.

    The module that the recipe names may have the name of an installed one. Of the modules that it imports, installed
    ones come first, as if the folder were last on the path: a `torch.py` beside the recipe is not executed.
    """
    folder = folder.resolve()
    top = model.function.partition(":")[0].split(".")[0]
    code: dict[str, str] = {}
    installed: set[str] = set()
    pending = [top]
    while pending:
        name = pending.pop()
        paths = _find_files(folder, name)
        if name in installed or any(str(path.relative_to(folder)) in code for path in paths):
            continue
        if name == top and paths:
            _require_free_name(name, folder, paths)
        elif not paths or _is_importable(name, paths):
            installed.add(name)
            continue
        for path in paths:
            text = _read_text(path)
            code[path.relative_to(folder).as_posix()] = text
            pending += sorted(_find_imports(text, path))
    if top in installed and importlib.util.find_spec(top) is None:
        raise _missing_error(
            folder / f"{top}.py", "a module beside the recipe, or an installed package", "model.function"
        )
    return model.model_copy(update={"code": dict(sorted(code.items())), "packages": versions(installed)})


def _find_files(folder: Path, name: str) -> list[Path]:
    """The files of the module or package `name` in `folder`; empty if it does not exist."""
    if (folder / f"{name}.py").is_file():
        return [folder / f"{name}.py"]
    return sorted((folder / name).rglob("*.py"))


def _find_imports(text: str, path: Path) -> Iterator[str]:
    """The top-level name of each absolute import."""
    try:
        tree = ast.parse(text)
    except SyntaxError as failure:
        raise RecipeInvalid(
            f"{path.name} is not valid Python: {failure.msg}",
            required="a module that can be imported",
            where=f"{path}:{failure.lineno}",
            remedy="correct the line",
        ) from failure
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def _require_free_name(name: str, folder: Path, paths: list[Path]) -> None:
    """Raises RecipeInvalid if the named module could not import Bloomery, or a module of Python itself."""
    if name in _RESERVED:
        raise RecipeInvalid(
            f"{paths[0].relative_to(folder)} has the name of {'Bloomery' if name == PACKAGE else 'a module of Python'}",
            required="another module name",
            where=str(paths[0]),
            remedy="rename the file, and change `model.function` and its imports",
        )


def _is_importable(name: str, paths: list[Path]) -> bool:
    """Whether a module `name` is installed that is not one of `paths`."""
    if name in _RESERVED or name in sys.builtin_module_names:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() not in paths


def _bundle_checkpoint(model: Pretrained, folder: Path) -> Pretrained:
    checkpoint = resolve_checkpoint(model.checkpoint, folder)
    require_transformers("pretrained")
    config = read_object(checkpoint.path(CONFIG_FILE), "model.checkpoint")
    pooling = read_pooling(checkpoint) if model.pooling == "auto" else None
    return model.model_copy(update={"resolved": checkpoint, "config": config, "pooling": pooling or model.pooling})


def _bundle_file(model: Imported, path: Path) -> Imported:
    if not path.is_file():
        raise _missing_error(path, "an ONNX file, as Keras writes with model.export(path, format='onnx')", "model.path")
    return model.model_copy(update={"path": str(path), "sha256": digest_of_file(path)})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise _missing_error(path, "a file in UTF-8", "model") from failure


def _missing_error(path: Path, required: str, key: str) -> DataMissing:
    return DataMissing(
        f"the recipe's network refers to {path}, which does not exist",
        required=required,
        where=f"{key} in the recipe",
        remedy="correct the name; relative paths start at the recipe's folder",
    )
