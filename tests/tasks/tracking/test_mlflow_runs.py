"""MLflow's database, which several runs may begin with at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from bloomery.tasks.tracking import mlflow_runs; print('EXPERIMENT', mlflow_runs.ensure_experiment('one'))"


@pytest.mark.slow
def test_runs_that_begin_at_once_make_one_database(home: Path) -> None:
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [run.communicate() for run in begun]
    assert [run.returncode for run in begun] == [0, 0], told
    assert len({printed.rpartition("EXPERIMENT")[2].strip() for printed, _ in told}) == 1
