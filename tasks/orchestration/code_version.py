"""The code version of a stage: a digest of the code that decides what the stage writes.

It covers the syntax trees, without comments and docstrings, of every local module that a stage's module reaches
through imports (also those inside functions), and the installed versions of the packages they import. So a change in
`models/compression/pruning/structured.py` makes `compress` run again, but not `train`.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_document

PACKAGE = "bloomery"

# These carry a stage's output but have no say in what is in it.
_PLUMBING = frozenset(
    {
        "bloomery.data_contracts.errors",
        "bloomery.data_contracts.documents.documents",
        "bloomery.tasks.orchestration.prefect_artifacts",
        "bloomery.tasks.orchestration.code_version",
        "bloomery.tasks.orchestration.events",
        "bloomery.tasks.infrastructure.tethered_process",
        "bloomery.tasks.infrastructure.settings",
        "bloomery.tasks.orchestration.stage",
        "bloomery.tasks.orchestration.stage_store",
        "bloomery.tasks.bentos.environment",
    }
)
_NO_SAY = frozenset({"prefect", "rich", "httpx", "filelock", "psutil"})
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "google": "protobuf",
    "prometheus_client": "prometheus-client",
    "_bentoml_sdk": "bentoml",
}


@functools.cache
def code_version(*modules: str) -> str:
    """The digest of all code that `modules` (dotted names) reach."""
    reached = {name: path for name, path in reach(*modules).items() if name not in _PLUMBING}
    sources = {name: _read(path) for name, path in reached.items()}
    packages = {imported.split(".")[0] for source in sources.values() for imported in source.imports}
    code = {name: source.code for name, source in sources.items()}
    return digest_of_document({"code": code, "packages": versions(packages - _NO_SAY)})


class _Source(NamedTuple):
    """What of a file decides: the names that it imports, and its syntax tree in words."""

    imports: tuple[str, ...]
    code: str


def _read(path: Path) -> _Source:
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


# Most stages reach most files: read anew for each of the eight, they took seven of a second run's processor seconds.
@functools.cache
def _parsed(path: Path, mtime_ns: int, size_bytes: int) -> _Source:
    tree = ast.parse(path.read_bytes())
    imports = tuple(_imports(tree))
    return _Source(imports, ast.dump(_without_docstrings(tree)))


def reach(*modules: str) -> dict[str, Path]:
    """The files of `modules` and of every local module that they import, directly or not, by dotted name."""
    reached: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = None if name in reached else _source(name)
        if path is not None:
            reached[name] = path
            waiting += [one for one in _read(path).imports if one.split(".")[0] == PACKAGE]
            waiting += _parents(name)
    return dict(sorted(reached.items()))


def _parents(name: str) -> Iterator[str]:
    """The packages that Python imports before the module `name`."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def packages_of(paths: Iterable[Path]) -> dict[str, str]:
    """The third-party packages that the files import, with the installed version of each, by distribution name."""
    imported = {name.split(".")[0] for path in paths for name in _read(path).imports}
    return versions(imported)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package that is neither ours nor Python's, by distribution name."""
    foreign = sorted(set(packages) - {PACKAGE} - sys.stdlib_module_names)
    return {_DISTRIBUTIONS.get(name, name).replace("_", "-"): _version(name) for name in foreign}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            # `from models import encoder` names a module too
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _source(name: str) -> Path | None:
    """The file of a local module; None where the name is a function or class inside one, or the namespace itself."""
    package, _, rest = name.partition(".")
    room, *inner = rest.split(".")
    spec = importlib.util.find_spec(f"{package}.{room}") if room else None
    if spec is None or not spec.submodule_search_locations:
        return None
    base = Path(next(iter(spec.submodule_search_locations)))
    for candidate in (base.joinpath(*inner).with_suffix(".py"), base.joinpath(*inner, "__init__.py")):
        if candidate.is_file():
            return candidate
    return None


def _version(package: str) -> str:
    for distribution in (_DISTRIBUTIONS.get(package, package), package.replace("_", "-")):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
