"""The code version of a stage: a digest of the code that determines the stage's output.

It covers the syntax trees of the local modules that the stage's module imports, directly or indirectly and also inside
functions, the templates beside them, and the installed versions of the packages that they import. A change in
`models/compression/pruning/` makes `compress` run again, but not `train`.

These do not count, since they do not determine an output:

- plumbing, which stores and passes on outputs (`PLUMBING`), and presentation, which shows them (`PRESENTATION`), nor
  modules that only these import;
- comments, docstrings, descriptions of fields, and the words of errors and log lines.

In code that a stage bundles into its output, as `package` bundles the endpoint, all of these except comments and
docstrings do count.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.tasks.orchestration.source_files import PACKAGE, complete_code_digest, read_source, remember_sources

# Modules, and packages with all their modules.
PLUMBING = (
    "bloomery.data_contracts.documents.documents",
    "bloomery.data_contracts.documents.files",
    "bloomery.data_contracts.errors",
    "bloomery.tasks.bentos.environment",
    "bloomery.tasks.infrastructure.disk_errors",
    "bloomery.tasks.infrastructure.engine_environment",
    "bloomery.tasks.infrastructure.python_processes",
    "bloomery.tasks.infrastructure.restarting_server",
    "bloomery.tasks.infrastructure.server_errors",
    "bloomery.tasks.infrastructure.service_status",
    "bloomery.tasks.infrastructure.settings",
    "bloomery.tasks.infrastructure.tethered_process",
    "bloomery.tasks.orchestration",
    "bloomery.tasks.tracking.local_database",
    "bloomery.tasks.tracking.mlflow_runs",
    "bloomery.tasks.tracking.model_versions",
)
PRESENTATION = (
    "bloomery.data_contracts.odcs.html_page",
    "bloomery.data_contracts.records.lineage",
    "bloomery.data_contracts.validation.data_docs",
    "bloomery.tasks.choose.pareto_plot",
    "bloomery.tasks.evaluation.candidate_table",
    "bloomery.tasks.evaluation.plots",
    "bloomery.tasks.model_card",
    "bloomery.tasks.promote.approval_report",
    "bloomery.tasks.promote.release_report",
    "bloomery.tasks.registry.version_description",
    "bloomery.tasks.train.explanation_plots",
    "bloomery.tasks.train.run_logging",
    "bloomery.tasks.train.training_curves",
    "bloomery.tasks.train.validation_report",
)
_IGNORED_PACKAGES = frozenset({"prefect", "rich", "httpx", "filelock", "psutil"})
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "google": "protobuf",
    "prometheus_client": "prometheus-client",
    "_bentoml_sdk": "bentoml",
}


@functools.cache
def code_version(*modules: str, bundled_modules: tuple[str, ...] = ()) -> str:
    """The digest of all code that determines what `modules` (dotted names) write.

    `bundled_modules` names modules whose code becomes part of the output, with all that they import.
    """
    bundled = reach(*bundled_modules)
    paths = determining_modules(*modules) | bundled
    sources = {name: read_source(path) for name, path in paths.items()}
    packages = {imported.split(".")[0] for source in sources.values() for imported in source.imports}
    code = {name: complete_code_digest(path) if name in bundled else sources[name].code for name, path in paths.items()}
    templates = {name: digests for name, path in paths.items() if (digests := _templates(path))}
    remember_sources()
    return digest_of_document(
        {"code": code, "templates": templates, "packages": versions(packages - _IGNORED_PACKAGES)}
    )


def _templates(path: Path) -> dict[str, str]:
    """The sha256 of each template of a module, by name: `documentation.html.jinja` belongs to `documentation.py`."""
    return {template.name: digest_of_file(template) for template in templates_of(path)}


def templates_of(path: Path) -> list[Path]:
    """The templates beside a module's file, whose names begin with the module's."""
    return [path.parent / name for name in _template_names(path.parent) if name.startswith(path.stem)]


@functools.cache
def _template_names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".jinja"))


def reach(*modules: str) -> dict[str, Path]:
    """The files of `modules` and of every local module that they import, directly or indirectly, by dotted name."""
    return _walk(modules, skipped=())


def determining_modules(*modules: str) -> dict[str, Path]:
    """Like `reach`, but without plumbing and presentation, and without modules that only these import.

    A module or package in `modules` counts in any case, a package with all its modules.
    """
    return _walk(modules, skipped=tuple(name for name in (*PLUMBING, *PRESENTATION) if name not in modules))


def _walk(modules: Iterable[str], skipped: tuple[str, ...]) -> dict[str, Path]:
    reached: dict[str, Path] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        path = None if name in reached else _source(name)
        if path is not None:
            reached[name] = path
            imported = [module for module in read_source(path).imports if module.split(".")[0] == PACKAGE]
            pending += [module for module in imported if not _is_within(module, skipped)]
            pending += _parents(name)
    return dict(sorted(reached.items()))


def _is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _parents(name: str) -> Iterator[str]:
    """The packages that Python imports before the module `name`."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def packages_of(paths: Iterable[Path]) -> dict[str, str]:
    """The third-party packages that the files import, with the installed version of each, by distribution name."""
    imported = {name.split(".")[0] for path in paths for name in read_source(path).imports}
    return versions(imported)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each third-party package, by distribution name."""
    third_party = sorted(set(packages) - {PACKAGE} - sys.stdlib_module_names)
    return {_DISTRIBUTIONS.get(name, name).replace("_", "-"): _version(name) for name in third_party}


@functools.cache
def _source(name: str) -> Path | None:
    """The file of a local module; None for a function or class in a module, and for the namespace itself."""
    package, _, module = name.partition(".")
    room, *inner = module.split(".")
    folder = _room_folder(package, room) if room else None
    if folder is None:
        return None
    base = os.path.join(folder, *inner)
    candidates = (f"{base}.py", os.path.join(base, "__init__.py")) if inner else (os.path.join(base, "__init__.py"),)
    return next((Path(file) for file in candidates if os.path.isfile(file)), None)


@functools.cache
def _room_folder(package: str, room: str) -> str | None:
    spec = importlib.util.find_spec(f"{package}.{room}")
    return None if spec is None or not spec.submodule_search_locations else next(iter(spec.submodule_search_locations))


@functools.cache
def _version(package: str) -> str:
    for distribution in (_DISTRIBUTIONS.get(package, package), package.replace("_", "-")):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
