"""MLflow's database, which several processes may create at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from bloomery.tasks.tracking import mlflow_runs; print('EXPERIMENT', mlflow_runs.ensure_experiment('one'))"


@pytest.mark.slow
def test_processes_that_start_at_once_create_one_database(home: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({stdout.rpartition("EXPERIMENT")[2].strip() for stdout, _ in outputs}) == 1
