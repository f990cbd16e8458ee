"""A stage's code version changes when, and only when, code that it reaches changes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bloomery.tasks.orchestration.code_version import packages_of, reach

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("data_contracts", "models", "tasks", "flows", "deployments")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / "bloomery" / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def versions(root: Path) -> dict[str, str]:
    code = (
        "from bloomery.tasks.orchestration.code_version import code_version\n"
        "for stage in ('ingest', 'prepare', 'train', 'compress', 'promote'):\n"
        "    print(stage, code_version(f'bloomery.tasks.{stage}.stage'))\n"
        "print('package', code_version('bloomery.tasks.package.stage', 'bloomery.deployments.service'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return dict(line.split() for line in ended.stdout.splitlines())


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def changed(root: Path, before: dict[str, str]) -> set[str]:
    return {stage for stage, version in versions(root).items() if before[stage] != version}


def test_a_change_counts_for_the_stages_that_reach_it_and_for_no_other(copy: Path) -> None:
    before = versions(copy)
    edit(copy / "bloomery" / "models" / "compression" / "pruning" / "structured.py", "p=2", "p=1")
    assert changed(copy, before) == {"compress"}
    edit(copy / "bloomery" / "models" / "features" / "encoder.py", "_BLOCK_ROWS = 16_384", "_BLOCK_ROWS = 16_385")
    assert changed(copy, before) == {"compress", "prepare", "train", "package", "promote"}


def test_comments_docstrings_and_layout_do_not_count(copy: Path) -> None:
    before = versions(copy)
    edit(
        copy / "bloomery" / "models" / "compression" / "pruning" / "structured.py",
        '"""Structured pruning',
        '"""Something else about structured pruning',
    )
    edit(
        copy / "bloomery" / "models" / "training" / "loop.py",
        "    network.eval()\n",
        "    network.eval()  # a comment\n\n",
    )
    assert changed(copy, before) == set()


def test_the_service_counts_for_the_package_that_holds_it(copy: Path) -> None:
    before = versions(copy)
    edit(
        copy / "bloomery" / "deployments" / "endpoint" / "http" / "errors.py",
        "_MOST_PROBLEMS = 20",
        "_MOST_PROBLEMS = 21",
    )
    assert changed(copy, before) == {"package"}


def test_imports_inside_functions_are_reached() -> None:
    reached = reach("bloomery.tasks.train.stage")
    assert "bloomery.models.training" in reached
    assert "bloomery.models.compression.pruning.structured" not in reached


def test_a_bento_needs_no_package_that_is_not_pinned() -> None:
    packages = packages_of(reach("bloomery.deployments.service").values())
    assert {
        "annotated-types",
        "bentoml",
        "cryptography",
        "httptools",
        "numba",
        "numpy",
        "onnxruntime",
        "orjson",
        "prometheus-client",
        "psutil",
        "pyarrow",
        "pydantic",
        "pydantic-core",
        "pyyaml",
        "shap",
        "sqlglot",
        "tokenizers",
        "typing-extensions",
        "uvicorn",
        "uvloop",
    } == set(packages)
    assert "unknown" not in packages.values()
