"""The end of a process that trained in a group."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# The object stands for a tensor that a thread of Gloo frees too late.
SCRIPT = """
import os, sys
class Tensor:
    def __del__(self, abort=os.abort):
        abort()
held = Tensor()
sys.stdout.write("written")
if sys.argv[1] == "skips":
    from bloomery.models.training.process_group import exit_without_finalization
    exit_without_finalization()
"""


@pytest.mark.parametrize(("name", "aborts"), [("skips", False), ("finalizes", True)])
def test_a_process_that_skips_finalization_ends_with_0_and_its_output(name: str, aborts: bool) -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT, name], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode != 0) is aborts, process.stderr
    assert process.stdout == "written"
