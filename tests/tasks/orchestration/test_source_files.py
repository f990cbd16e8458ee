"""Parsed source files are remembered by their content, so no change is missed."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import source_files
from bloomery.tasks.orchestration.source_files import complete_code_digest, read_source, remember_sources

CODE = 'import json\nfrom pathlib import Path\n\ndef name(path: Path) -> str:\n    """Returns it."""\n    return "a"\n'


@pytest.fixture
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Forgets what this process has parsed, and uses an empty state folder."""
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    def forget() -> None:
        for cached in (settings, source_files._known, source_files._read_source):
            cached.cache_clear()  # type: ignore[attr-defined]
        source_files._added.sources.clear()
        source_files._added.complete_codes.clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("parsed again")

    return lambda: monkeypatch.setattr(ast, "parse", refuse)


def test_a_file_is_parsed_once_for_all_processes(
    tmp_path: Path, new_process: Callable[[], None], no_parser: Callable[[], None]
) -> None:
    path, copy = tmp_path / "a.py", tmp_path / "copy.py"
    path.write_text(CODE)
    source, complete = read_source(path), complete_code_digest(path)
    assert source.imports == ("json", "pathlib", "pathlib.Path")
    remember_sources()
    new_process()
    no_parser()
    copy.write_text(CODE)
    assert (read_source(path), complete_code_digest(path)) == (source, complete)
    assert read_source(copy) == source  # its name does not count
    assert (tmp_path / "home" / "sources.json").stat().st_mode & 0o777 == 0o600


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path, new_process: Callable[[], None]) -> None:
    path = tmp_path / "a.py"
    path.write_text(CODE)
    state = path.stat()
    before, complete = read_source(path).code, complete_code_digest(path)
    remember_sources()
    new_process()
    path.write_text(CODE.replace('"a"', '"b"'))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert path.stat().st_size == state.st_size
    assert read_source(path).code != before
    assert complete_code_digest(path) != complete


@pytest.mark.parametrize("damage", ["other parser", "cut off", "other content", "wrong entries", "missing"])
def test_a_damaged_memory_is_ignored(tmp_path: Path, new_process: Callable[[], None], damage: str) -> None:
    path, memory = tmp_path / "a.py", tmp_path / "home" / "sources.json"
    path.write_text(CODE)
    source = read_source(path)
    remember_sources()
    document = json.loads(memory.read_text())
    (key,) = document["sources"]
    document["sources"][key][1] = "wrong"
    new_process()
    match damage:
        case "other parser":
            memory.write_text(json.dumps({**document, "parser": "older"}))
        case "cut off":
            memory.write_bytes(memory.read_bytes()[:-5])
        case "other content":
            memory.write_text("[1]")
        case "wrong entries":
            memory.write_text(json.dumps({**document, "sources": {key: 1}}))
        case "missing":
            memory.unlink()
    assert read_source(path) == source


def test_nothing_is_written_without_a_state_folder(tmp_path: Path, new_process: Callable[[], None]) -> None:
    (tmp_path / "home").rmdir()
    (tmp_path / "a.py").write_text(CODE)
    read_source(tmp_path / "a.py")
    remember_sources()
    assert not (tmp_path / "home").exists()
    new_process()


def test_imports_for_type_checkers_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import json\n")
    assert read_source(path).imports == ("typing", "typing.TYPE_CHECKING", "json")
