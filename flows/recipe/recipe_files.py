"""Finds recipe files by a name or a path, and the model that a name or a path stands for.

A name means, in this order: the file `NAME.yaml` in the current folder, a bundled recipe, another recipe in the current
folder with that `name`, and a recipe of that name that has run in this state folder.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from bloomery.data_contracts.documents.documents import describe_yaml_error
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.documents.similar_names import suggest_names
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid, SettingInvalid
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.registry.model_registry import without_scheme

RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
SUFFIXES = (".yaml", ".yml")
_KNOWN = "recipes.json"  # in the state folder: the path of each recipe that has run, by name
_RECIPE_KEYS = frozenset({"name", "data", "contract"})  # required in every recipe, and together in no other document
_MAX_BYTES = 1_000_000
_MAX_FILES = 200
_VERSION = re.compile(r"(?P<name>.+?)(?P<version>[@:][^@:/]+)")
_Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def bundled_recipes() -> list[str]:
    """Returns the names of the recipes that come with Bloomery."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(reference: str) -> Path:
    """Returns the file of the recipe that `reference`, a name or a path, stands for.

    Raises:
        DataMissing: there is no such recipe. The message names similar ones.
        SettingInvalid: several recipes have this name, or `reference` names a version.
    """
    path = Path(reference).expanduser()
    if path.suffix in SUFFIXES and path.is_file():
        return path.resolve()
    if path.name == reference:
        match = _find_by_file_name(reference) if path.suffix in SUFFIXES else _find_by_name(reference)
    else:
        match = _with_suffix(path)
    if match is None and path.is_file():
        match = path
    if match is not None:
        return match.resolve()
    version = _VERSION.fullmatch(without_scheme(reference))
    if version is not None and not path.is_dir():
        raise SettingInvalid(
            f"{reference} names a version, and this command takes a recipe",
            required="the name or the path of a recipe, without a version",
            where="the command line",
            remedy=f"leave {version['version']} out: {version['name']}",
        )
    raise _missing_error(reference, path)


def reference_of(path: Path) -> str:
    """Returns what names the recipe of this file in any folder: the name of a bundled one, or its absolute path."""
    return path.stem if path.parent == RECIPES else str(path.resolve())


def resolve_model(reference: str) -> str:
    """Returns `NAME`, `NAME:3` or `NAME@ALIAS` for a reference whose name may be the path of a recipe.

    MLflow's `models:/NAME/3` and `models:/NAME@ALIAS` are references, too.

    Raises:
        DataMissing: the path does not exist.
        RecipeInvalid: the file is not YAML, or has no name.
    """
    reference = without_scheme(reference)
    match = _VERSION.fullmatch(reference)
    name, version = (match["name"], match["version"]) if match is not None else (reference, "")
    path = Path(name).expanduser()
    if path.suffix not in SUFFIXES and path.name == name:
        return reference
    try:
        return read_name(find_recipe(name)) + version
    except DataMissing:
        if path.name != name:
            raise
        return path.stem + version  # its recipe is elsewhere, and the registry may have its versions


def resolve_model_name(reference: str) -> str:
    """As `resolve_model`, for commands about all versions of a model: returns the name alone.

    Raises:
        SettingInvalid: the reference names a version other than the champion.
    """
    model = resolve_model(reference)
    name, separator, version = model.partition("@" if "@" in model else ":")
    if separator and version != "champion":
        raise SettingInvalid(
            f"{reference} names one version, and this command takes a model",
            required="the name of a model, or the path of its recipe",
            where="the command line",
            remedy=f"leave {separator}{version} out: {name}",
        )
    return name


def read_name(path: Path) -> str:
    """Returns the `name` in a recipe file. Raises RecipeInvalid if it has none, or is not YAML."""
    try:
        document = _parse(path, tolerant=False)
    except yaml.YAMLError as failure:
        problem, line = describe_yaml_error(failure)
        raise RecipeInvalid(
            f"{path.name} is not YAML: {problem}",
            required="a recipe, whose `name` is that of its model",
            where=f"{path}:{line or 1}",
            remedy="correct the syntax on that line, or give the name of the model",
        ) from failure
    name = document.get("name") if isinstance(document, dict) else None
    if not isinstance(name, str) or not name:
        raise RecipeInvalid(
            f"{path.name} has no `name`",
            required="a recipe, whose `name` is that of its model",
            where=str(path),
            remedy="give the path of a recipe, or the name of the model",
        )
    return name


def remember_recipe(name: str, path: Path) -> None:
    """Records the file of a recipe in the state folder, unless it is bundled."""
    if path.parent == RECIPES or _known().get(name) == str(path):
        return
    file = settings().home / _KNOWN
    with contextlib.suppress(OSError), FileLock(f"{file}.lock"):
        write_text(file, json.dumps({**_known(), name: str(path)}, indent=1), mode=0o600)


def own_recipes() -> dict[str, Path]:
    """Returns the user's recipes by name: those in the current folder, and others that have run in this state folder.

    Of several with one name in the current folder, it is the one that has run.
    """
    recipes = {name: Path(path) for name, path in _known().items() if _name_in(Path(path)) == name}
    folder = Path.cwd().resolve()
    if folder != RECIPES:
        for path, stated_name in _recipes_in(folder).items():
            name = stated_name or path.stem
            if name not in recipes or recipes[name].parent != folder:
                recipes[name] = path
    return dict(sorted(recipes.items()))


def other_files() -> dict[str, str]:
    """Returns the YAML files of the current folder that are no recipes, by path, each with the reason.

    Contracts are left out: each recipe has one.
    """
    reasons: dict[str, str] = {}
    for path in _yaml_files(Path.cwd().resolve()):
        try:
            document = _parse(path, tolerant=False)
        except yaml.YAMLError as failure:
            problem, line = describe_yaml_error(failure)
            reasons[str(path)] = f"it is not YAML{f' on line {line}' if line else ''}: {problem}"
            continue
        keys = document.keys() if isinstance(document, dict) else set()
        missing = sorted(_RECIPE_KEYS - keys)
        is_contract = path.stem.endswith(".odcs") or "kind" in keys
        if missing and not is_contract:
            reasons[str(path)] = f"it is no recipe: it has no {' and no '.join(f'`{key}`' for key in missing)}"
        elif not missing and not isinstance(document["name"], str):
            reasons[str(path)] = f"its `name` is {document['name']!r}, not text"
    return reasons


def _find_by_name(name: str) -> Path | None:
    """Raises SettingInvalid if several recipes of the current folder have this name, and none as its file name."""
    for path in (Path(f"{name}{suffix}") for suffix in SUFFIXES):
        if _name_in(path) is not None:
            return path
    if name in bundled_recipes():
        return RECIPES / f"{name}.yaml"
    paths = [path for path, path_name in _recipes_in(Path.cwd()).items() if path_name == name]
    if len(paths) > 1:
        raise SettingInvalid(
            f"{len(paths)} recipes are named {name!r}: {', '.join(path.name for path in paths)}",
            required="one recipe of this name",
            where=str(Path.cwd()),
            remedy=f"give the file, such as {paths[0].name}",
        )
    known = Path(_known().get(name, ""))
    return paths[0] if paths else known if _name_in(known) == name else None


def _find_by_file_name(file_name: str) -> Path | None:
    """Returns a bundled recipe or one that has run, of this file name; a file of the current folder comes before."""
    if (RECIPES / file_name).is_file():
        return RECIPES / file_name
    paths = (Path(path) for name, path in _known().items() if _name_in(Path(path)) == name)
    return next((path for path in paths if path.name == file_name), None)


def _with_suffix(path: Path) -> Path | None:
    if not path.name:  # the current folder or the root
        return None
    return next((file for suffix in SUFFIXES if (file := path.with_name(path.name + suffix)).is_file()), None)


def _recipes_in(folder: Path) -> dict[Path, str]:
    """Returns the `name` of each recipe in a folder, by file. Other YAML files, such as contracts, are no recipes."""
    names = ((path, _name_in(path)) for path in _yaml_files(folder))
    return {path: name for path, name in names if name is not None}


def _yaml_files(folder: Path) -> list[Path]:
    """Returns the YAML files of a folder, at most `_MAX_FILES`."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)[:_MAX_FILES]
    except OSError:
        return []


def _name_in(path: Path) -> str | None:
    """Returns the name of the recipe in a file; None if there is no file, or it is no recipe."""
    document = _parse(path)
    if not isinstance(document, dict) or not document.keys() >= _RECIPE_KEYS:
        return None
    return document["name"] if isinstance(document["name"], str) else None


def _parse(path: Path, *, tolerant: bool = True) -> Any:
    """Returns the content of a YAML file, or None if it cannot be read.

    With `tolerant=False` it raises YAMLError for a file that is not YAML.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a safe loader
    except yaml.YAMLError:
        if tolerant:
            return None
        raise
    except (OSError, ValueError, RecursionError):
        return None


def _known() -> dict[str, str]:
    """Returns the path of each recipe that has run in this state folder, by name."""
    try:
        document = json.loads((settings().home / _KNOWN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {name: path for name, path in document.items() if isinstance(path, str)} if isinstance(document, dict) else {}
    )


def _missing_error(reference: str, path: Path) -> DataMissing:
    if path.name == reference and not path.is_dir():
        names = sorted({*bundled_recipes(), *own_recipes()})
        required = f"one of {', '.join(names)}, or the path of a YAML file"
        where = f"{RECIPES} and {Path.cwd()}"
    else:
        folder = path if path.is_dir() else path.parent
        names = [str(folder / file.name) for file in _recipes_in(folder)]
        required = "the path of a recipe" + (f", such as {', '.join(names[:5])}" if names else "; the folder has none")
        where = str(folder.absolute())
    found = f"{reference!r} is a folder" if path.is_dir() else f"there is no recipe {reference!r}"
    return DataMissing(
        found + suggest_names(reference, names),
        required=required,
        where=where,
        remedy="correct the name or the path; or draft a recipe with `bloomery init`",
    )
