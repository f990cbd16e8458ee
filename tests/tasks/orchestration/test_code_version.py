"""The code version of a stage changes with the code that determines its output, and with no other code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bloomery.tasks.orchestration import code_version
from bloomery.tasks.orchestration.code_version import (
    PLUMBING,
    PRESENTATION,
    determining_modules,
    packages_of,
    reach,
)

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("data_contracts", "models", "tasks", "flows", "deployments")


class Edit(NamedTuple):
    """A change of the code, and the stages that must be computed again after it."""

    path: str
    old: str
    new: str
    affected: frozenset[str]


def edit(path: str, old: str, new: str, *affected: str) -> Edit:
    return Edit(path, old, new, frozenset(affected))


def more_code(path: str, *affected: str) -> Edit:
    return edit(path, "", "\nONE_MORE_NAME = 1\n", *affected)


EDITS = {
    "a class of networks": more_code("models/networks/config.py", "train", "compress"),
    "the budget": more_code("models/compression/budget.py", "choose"),
    "a plot of the training": more_code("tasks/evaluation/plots.py"),
    "the picture of the candidates": more_code("tasks/choose/pareto_plot.py"),
    "the model card": more_code("tasks/model_card/card.py", "package"),
    "the words of an error": edit("tasks/train/import_network.py", 'remedy="', 'remedy="please '),
    "the words of an error of the endpoint": edit(
        "deployments/endpoint/inference/model_version.py", 'remedy="', 'remedy="please ', "package"
    ),
    "a description of a field": edit("models/networks/config.py", 'description="', 'description="here, '),
    "a comment": edit("models/training/loop.py", "    network.eval()\n", "    network.eval()  # a comment\n\n"),
    "a docstring": edit("models/compression/pruning/structured.py", '"""', '"""Again: '),
    "the settings": more_code("tasks/infrastructure/settings.py"),
    "the instruction set": edit(
        "tasks/infrastructure/device.py", '"MKL_CBWR": "AVX2"', '"MKL_CBWR": "SSE4_2"', "train", "compress"
    ),
    "a reader": more_code("tasks/ingest/readers/text_files/text.py", "ingest"),
    "the pruning": more_code("models/compression/pruning/structured.py", "compress"),
    "the encoder": more_code(
        "models/features/encoder.py", "prepare", "train", "compress", "choose", "package", "promote"
    ),
    "the endpoint": more_code("deployments/endpoint/http/errors.py", "package"),
}

DRIVER = """
import json, sys
from pathlib import Path
from bloomery.flows.stages import STAGES
from bloomery.tasks.orchestration.code_version import code_version
def versions():
    code_version.cache_clear()
    return {stage.name: stage.key() for stage in STAGES}
before, changed = versions(), {}
for name, (path, old, new) in json.load(sys.stdin).items():
    file = Path("bloomery") / path
    text = file.read_text() if file.is_file() else ""
    if old not in text or not text:
        changed[name] = ["not applied"]
        continue
    file.write_text(text.replace(old, new, 1) if old else text + new)
    after = versions()
    changed[name] = [stage for stage in before if after[stage] != before[stage]]
    file.write_text(text)
assert versions() == before
print("CHANGED", json.dumps(changed))
"""


def copy_rooms(folder: Path) -> Path:
    """Copies the rooms into `folder`; a process that runs there imports the copy."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / "bloomery" / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "src" / "bloomery" / "__init__.py", folder / "bloomery" / "__init__.py")
    return folder


@pytest.fixture(scope="module")
def stages_by_edit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The stages of which each edit, made alone, changes the key."""
    edits = {name: edit[:3] for name, edit in EDITS.items()}
    process = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=copy_rooms(tmp_path_factory.mktemp("rooms")),
        input=json.dumps(edits),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    stages: dict[str, list[str]] = json.loads(process.stdout.rpartition("CHANGED")[2])
    return stages


@pytest.mark.parametrize("name", EDITS)
def test_a_change_counts_for_the_stages_that_it_affects(name: str, stages_by_edit: dict[str, list[str]]) -> None:
    assert set(stages_by_edit[name]) == EDITS[name].affected


@pytest.mark.slow
def test_stages_that_a_change_does_not_affect_are_found(
    copy_finished_run: Callable[[Path], Path], clean_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    root = copy_rooms(tmp_path / "checkout")
    home = copy_finished_run(tmp_path / "state")

    def list_found_stages() -> list[str]:
        command = [sys.executable, "-m", "bloomery.flows.cli", "check", "digits", "--json"]
        process = subprocess.run(command, cwd=root, env=clean_environment(home), capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return [stage["stage"] for stage in json.loads(process.stdout)["stages"] if stage["digest"] is not None]

    def apply(name: str) -> None:
        path, old, new, _ = EDITS[name]
        file = root / "bloomery" / path
        text = file.read_text()
        file.write_text(text.replace(old, new, 1) if old else text + new)

    for name in ("a plot of the training", "the words of an error", "a description of a field", "the settings"):
        apply(name)
    assert list_found_stages() == ["ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote"]
    apply("a class of networks")
    assert list_found_stages() == ["ingest", "validate", "prepare"]


@pytest.mark.parametrize(
    ("package", "affected"),
    [("torch", {"train", "compress", "choose"}), ("duckdb", {"validate", "prepare", "package"})],
)
def test_another_version_of_a_package_counts(package: str, affected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")

    def versions() -> dict[str, str]:
        code_version.code_version.cache_clear()
        return {stage: code_version.code_version(f"bloomery.tasks.{stage}.stage") for stage in stages}

    before, installed = versions(), code_version._version
    monkeypatch.setattr(code_version, "_version", lambda name: "99" if name == package else installed(name))
    after = versions()
    monkeypatch.undo()
    code_version.code_version.cache_clear()
    assert {stage for stage in stages if after[stage] != before[stage]} == affected


def test_plumbing_and_presentation_name_modules_that_exist() -> None:
    assert [name for name in (*PLUMBING, *PRESENTATION) if not reach(name)] == []


def test_what_only_plumbing_imports_does_not_count() -> None:
    modules = determining_modules("bloomery.tasks.ingest.stage")
    assert "bloomery.tasks.infrastructure.parquet" in modules
    assert "bloomery.tasks.infrastructure.service_status" not in modules
    assert not [name for name in modules if name.startswith("bloomery.tasks.orchestration")]


def test_imports_inside_functions_are_reached() -> None:
    reached = reach("bloomery.tasks.train.stage")
    assert "bloomery.models.training" in reached
    assert "bloomery.models.compression.pruning.structured" not in reached


def test_a_bento_needs_only_pinned_packages() -> None:
    packages = packages_of(reach("bloomery.deployments.service").values())
    assert {
        "annotated-types",
        "bentoml",
        "cryptography",
        "httptools",
        "jinja2",
        "numba",
        "numpy",
        "onnxruntime",
        "orjson",
        "pillow",
        "prometheus-client",
        "psutil",
        "pyarrow",
        "pydantic",
        "pydantic-core",
        "python-multipart",
        "pyyaml",
        "scipy",
        "shap",
        "sqlglot",
        "tokenizers",
        "typing-extensions",
        "uvicorn",
        "uvloop",
    } == set(packages)
    assert "unknown" not in packages.values()
