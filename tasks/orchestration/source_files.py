"""Source files: the names that they import, and digests of the code that determines what it does.

Parsing all files takes more than a second, so the results are kept in the state folder, by the sha256 of the file.
Every process reads and hashes each file, so no change is missed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.documents.files import write_text
from bloomery.tasks.infrastructure.settings import settings

PACKAGE = "bloomery"
_FILE = "sources.json"  # in the state folder
_MAX_SOURCES = 5_000  # about ten versions of all files
_LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


class Source(NamedTuple):
    """The names that a file imports, and the digest of its syntax tree without docstrings and messages."""

    imports: tuple[str, ...]
    code: str


class _Results(NamedTuple):
    """What was computed before, by the sha256 of the file."""

    sources: dict[str, Source]
    complete_codes: dict[str, str]


_added = _Results({}, {})  # by this process


def read_source(path: Path) -> Source:
    """Returns the imports and the code of a Python file."""
    state = path.stat()
    return _read_source(path, state.st_mtime_ns, state.st_size)


# Most stages reach most files.
@functools.cache
def _read_source(path: Path, mtime_ns: int, size_bytes: int) -> Source:
    content = path.read_bytes()
    key = hashlib.sha256(content).hexdigest()
    source = _known().sources.get(key)
    if source is None:
        nodes = list(ast.walk(tree := ast.parse(content)))  # once, because walking takes longer than parsing
        _remove_docstrings(nodes)
        _blank_messages(nodes)
        source = Source(tuple(dict.fromkeys(_imports(nodes))), _digest_of(tree))
        _added.sources[key] = source
    return source


def complete_code_digest(path: Path) -> str:
    """Returns the digest of a file's syntax tree with its messages, which only bundled code needs."""
    content = path.read_bytes()
    key = hashlib.sha256(content).hexdigest()
    digest = _known().complete_codes.get(key)
    if digest is None:
        tree = ast.parse(content)
        _remove_docstrings(ast.walk(tree))
        digest = _digest_of(tree)
        _added.complete_codes[key] = digest
    return digest


def remember_sources() -> None:
    """Writes what this process has parsed to the state folder, if that exists."""
    known = _known()
    path = settings().home / _FILE
    if not (_added.sources or _added.complete_codes) or not path.parent.is_dir():
        return
    known.sources.update(_added.sources)
    known.complete_codes.update(_added.complete_codes)
    _added.sources.clear()
    _added.complete_codes.clear()
    document = {
        "parser": _parser_version(),
        "sources": dict(list(known.sources.items())[-_MAX_SOURCES:]),
        "complete_codes": dict(list(known.complete_codes.items())[-_MAX_SOURCES:]),
    }
    with contextlib.suppress(OSError):  # a full disk; the results are correct all the same
        write_text(path, json.dumps(document, separators=(",", ":")), mode=0o600)


@functools.cache
def _known() -> _Results:
    """Returns what earlier processes have parsed with this version of Python and of this module."""
    try:
        document = json.loads((settings().home / _FILE).read_text(encoding="utf-8"))
        if document["parser"] != _parser_version():
            return _Results({}, {})
        sources = {key: Source(tuple(imports), code) for key, (imports, code) in document["sources"].items()}
        return _Results(sources, dict(document["complete_codes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Results({}, {})


@functools.cache
def _parser_version() -> str:
    return hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()


def _digest_of(tree: ast.AST) -> str:
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _imports(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Yields the imported names, without those of `if TYPE_CHECKING:`, since these imports never run."""
    never_run = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in nodes:
        if id(node) in never_run:
            continue
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
