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

import ast
import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file

PACKAGE = "bloomery"

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
    "bloomery.tasks.tracking.mlflow_runs",
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
_LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
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
    sources = {name: _read(path) for name, path in paths.items()}
    packages = {imported.split(".")[0] for source in sources.values() for imported in source.imports}
    code = {name: _read_complete(path) if name in bundled else sources[name].code for name, path in paths.items()}
    templates = {name: digests for name, path in paths.items() if (digests := _templates(path))}
    return digest_of_document(
        {"code": code, "templates": templates, "packages": versions(packages - _IGNORED_PACKAGES)}
    )


class _Source(NamedTuple):
    """The names that a file imports, and its syntax tree without messages."""

    imports: tuple[str, ...]
    code: str


def _read(path: Path) -> _Source:
    state = path.stat()
    return _parse(path, state.st_mtime_ns, state.st_size)


# Most stages reach most files. Parsing them again for each of the eight stages took seven CPU seconds of a second run.
@functools.cache
def _parse(path: Path, mtime_ns: int, size_bytes: int) -> _Source:
    tree = ast.parse(path.read_bytes())
    nodes = list(ast.walk(tree))  # once, because walking takes longer than parsing
    _remove_docstrings(nodes)
    _blank_messages(nodes)
    return _Source(tuple(_imports(nodes)), ast.dump(tree))


def _read_complete(path: Path) -> str:
    """The syntax tree of a file with its messages, which only bundled code needs."""
    tree = ast.parse(path.read_bytes())
    _remove_docstrings(ast.walk(tree))
    return ast.dump(tree)


def _templates(path: Path) -> dict[str, str]:
    """The sha256 of each template of a module, by name: `documentation.html.jinja` belongs to `documentation.py`."""
    return {template.name: digest_of_file(template) for template in templates_of(path)}


def templates_of(path: Path) -> list[Path]:
    """The templates beside a module's file, whose names begin with the module's."""
    return sorted(path.parent.glob(f"{path.stem}*.jinja"))


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
            imported = [module for module in _read(path).imports if module.split(".")[0] == PACKAGE]
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
    imported = {name.split(".")[0] for path in paths for name in _read(path).imports}
    return versions(imported)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each third-party package, by distribution name."""
    third_party = sorted(set(packages) - {PACKAGE} - sys.stdlib_module_names)
    return {_DISTRIBUTIONS.get(name, name).replace("_", "-"): _version(name) for name in third_party}


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            # In `from bloomery.models.features import encoder` the imported name is a module too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _remove_docstrings(nodes: Iterable[ast.AST]) -> None:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]


def _blank_messages(nodes: Sequence[ast.AST]) -> None:
    """Blanks the literal text of Bloomery's errors, of log lines and of the descriptions of fields.

    The words of other exceptions stay: code may store them as a value, such as the reason of a quarantined row.
    """
    errors = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == f"{PACKAGE}.data_contracts.errors"
        for alias in node.names
    }
    for node in nodes:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _name(node.exc.func) in errors:
            _blank([*node.exc.args, *(keyword.value for keyword in node.exc.keywords)])
        elif isinstance(node, ast.Call) and _is_log_call(node):
            _blank(node.args)
        elif isinstance(node, ast.Call) and _name(node.func) == "Field":
            _blank(keyword.value for keyword in node.keywords if keyword.arg == "description")


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_log_call(call: ast.Call) -> bool:
    """True for a call such as `logger.warning(…)`, `log.info(…)` or `logging.getLogger(…).error(…)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _LOG_METHODS:
        return False
    logger = call.func.value
    if isinstance(logger, ast.Call):
        return isinstance(logger.func, ast.Attribute) and logger.func.attr == "getLogger"
    return _name(logger).strip("_").lower() in ("log", "logger", "logging")


def _blank(expressions: Iterable[ast.expr]) -> None:
    """Empties the string literals of the expressions, including those in f-strings."""
    for expression in expressions:
        for node in ast.walk(expression):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""


def _source(name: str) -> Path | None:
    """The file of a local module; None for a function or class in a module, and for the namespace itself."""
    package, _, module = name.partition(".")
    room, *inner = module.split(".")
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
