"""Rules of the architecture that can be tested."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("prefect", "torch", "pyspark", "mlflow", "bentoml", "great_expectations", "onnxruntime", "pandas")


def modules_after(statement: str) -> set[str]:
    """Returns the top-level packages in `sys.modules` after a new interpreter has run `statement`."""
    code = f"import sys\n{statement}\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    return set(completed.stdout.rpartition("LOADED")[2].split())


def test_rooms_import_only_to_their_right() -> None:
    completed = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout


def test_help_imports_nothing_heavy() -> None:
    statement = "from bloomery.flows.cli.main import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    assert not modules_after(statement) & set(HEAVY)


@pytest.mark.parametrize(
    "module",
    [
        "bloomery.data_contracts.odcs.contract",
        "bloomery.flows.recipe.recipe",
        "bloomery.flows.order",
        "bloomery.models.features.config",
    ],
)
def test_modules_that_the_command_line_reads_first_import_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_the_package_and_its_api_import_nothing_heavy() -> None:
    assert not modules_after("import bloomery") & {*HEAVY, "pydantic", "numpy", "pyarrow"}
    assert not modules_after("import bloomery\nbloomery.init, bloomery.run, bloomery.load") & set(HEAVY)


def test_the_service_imports_neither_torch_nor_spark_nor_prefect() -> None:
    loaded = modules_after("import bloomery.deployments.service")
    assert not loaded & {"torch", "pyspark", "prefect", "mlflow", "great_expectations", "onnx"}


def test_arrow_imports_no_pandas_in_a_serving_process() -> None:
    convert = "import pyarrow\npyarrow.array([[1.5], None]).to_numpy(zero_copy_only=False)"
    assert "pandas" in modules_after(convert)
    prevent = "from bloomery.deployments.endpoint.pandas_import import prevent_pandas_import\nprevent_pandas_import()"
    assert "pandas" not in modules_after(f"{prevent}\n{convert}")
    assert "pandas" in modules_after(f"{prevent}\nimport pandas")  # other code can import it


def test_every_stage_of_the_order_is_a_task_and_each_has_a_file() -> None:
    from bloomery.flows.order import Stages
    from bloomery.flows.stages import STAGES

    names = [stage.name for stage in STAGES]
    assert names == list(Stages.__annotations__)
    assert all((ROOT / "tasks" / name / "stage.py").is_file() for name in names)


def test_no_module_is_longer_than_400_lines() -> None:
    rooms = ("data_contracts", "models", "tasks", "flows", "deployments")
    lengths = {path: len(path.read_text().splitlines()) for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert len(lengths) > 300
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 400} == {}


def test_nothing_in_flows_hides_an_installed_package_or_the_standard_library() -> None:
    """Prefect puts the folder of a flow's file first on the path."""
    names = {path.stem for path in (ROOT / "flows").iterdir() if not path.name.startswith("__")}
    assert {"pipeline", "monitor", "watch"} <= names
    assert not names & {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}


def test_a_wheel_has_all_rooms_and_an_editable_install_only_a_path(tmp_path: Path) -> None:
    builder = WheelBuilder(str(ROOT))
    names = {}
    for version in ("standard", "editable"):
        (wheel,) = builder.build(directory=str(tmp_path / version), versions=[version])
        names[version] = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = [f"bloomery/{room}/__init__.py" for room in ("data_contracts", "models", "tasks", "flows", "deployments")]
    assert names["standard"] > {"bloomery/__init__.py", "bloomery/deployments/recipes/digits.yaml", *modules}
    # A `bloomery` in site-packages would come before the one of the checkout, and hide its rooms.
    assert names["editable"] == {"_bloomery.pth"}
