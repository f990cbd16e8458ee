"""A cluster of Spark that loses an executor writes the same bytes as DuckDB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.prepare.stage import prepare
from tests.tasks.prepare.features import LOCAL, make_features

SCRIPT = """
import sys
from pathlib import Path
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
from bloomery.data_contracts.records.records import ValidRows
from bloomery.models.features.config import Features
from bloomery.tasks.infrastructure import settings, spark_session
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.prepare import spark_engine
from bloomery.tasks.prepare.stage import prepare
apply_engine_environment()
settings.require_state_folder()
spark_engine._BYTES_PER_PARTITION = 40_000
folder = Path(sys.argv[1])
checked = ValidRows.model_validate_json((folder / "checked.json").read_text())
features = Features.model_validate_json((folder / "features.json").read_text())
config = SparkConfig(master=sys.argv[2], settings={"spark.executor.memory": "512m", "spark.executor.cores": "1"})
print("DIGEST", prepare(checked, features, Engine(kind="spark", spark=config)).digest)
spark_session.stop_session()
"""


@pytest.fixture
def cluster(home: Path) -> Iterator[str]:
    """The address of a standalone cluster of one master and two workers on the loopback interface."""
    import pyspark

    from bloomery.tasks.infrastructure.tethered_process import find_free_port

    port = find_free_port()
    master = f"spark://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "JAVA_HOME": str(spark_session.find_java().home),
        "SPARK_LOCAL_DIRS": str(home / "cluster"),
    }
    launch = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), "org.apache.spark.deploy."]
    loopback = ["--host", "127.0.0.1", "--webui-port", "0"]
    workers = [
        ["worker.Worker", *loopback, "-c", "1", "-m", "1g", "-d", str(home / f"w{number}"), master]
        for number in range(2)
    ]
    commands = [["master.Master", *loopback, "--port", str(port)], *workers]
    log = (home / "cluster.log").open("wb")
    servers = [
        subprocess.Popen([launch[0], launch[1] + kind, *options], env=environment, stdout=log, stderr=log)
        for kind, *options in commands
    ]
    try:
        deadline = time.monotonic() + 60
        while (home / "cluster.log").read_text(errors="replace").count("Registering worker") < 2:
            assert time.monotonic() < deadline, (home / "cluster.log").read_text(errors="replace")
            time.sleep(0.2)
        yield master
    finally:
        for server in servers:
            for child in psutil.Process(server.pid).children(recursive=True):
                child.kill()
            server.kill()
            server.wait()
        log.close()


def list_executors() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any("CoarseGrainedExecutorBackend" in part for part in process.info["cmdline"] or ())
    ]


@pytest.mark.slow
@pytest.mark.nightly  # each day Spark writes the same bytes in one process; the rest is Spark's own
def test_a_cluster_that_loses_an_executor_writes_the_same_bytes(
    home: Path, people: pa.Table, checked_rows_of: Any, cluster: str, clean_environment: Any
) -> None:
    copies = pa.concat_tables(
        [
            people.set_column(0, "key", pc.binary_join_element_wise(people["key"], str(number), "-"))
            for number in range(10)
        ]
    )
    checked, features = checked_rows_of(copies), make_features({"duplicates": "allow"}, deduplicate=False)
    (home / "checked.json").write_text(checked.model_dump_json(by_alias=True))
    (home / "features.json").write_text(features.model_dump_json())
    killed_ids: list[int] = []

    def kill_executor() -> None:
        # An executor starts a Python process only when it works on rows.
        deadline = time.monotonic() + 120
        while not killed_ids and time.monotonic() < deadline:
            for executor in list_executors():
                if executor.children():
                    os.kill(executor.pid, signal.SIGKILL)
                    killed_ids.append(executor.pid)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_executor)
    killer.start()
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home), cluster],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    killer.join()
    assert process.returncode == 0, process.stderr[-3000:]
    assert killed_ids
    (home / "stages").rename(home / "by-spark")  # else the stored result would be found
    local_dataset = prepare.task.fn(checked, features, LOCAL)
    assert f"DIGEST {local_dataset.digest}" in process.stdout
