"""The notebook in docs/, executed in a Jupyter kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import CreateHome, environment_for

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"

pytestmark = pytest.mark.slow


def execute(notebook: Any, folder: Path, home: Path) -> list[dict[str, Any]]:
    """Executes the notebook in `folder`. Returns the last output of each code cell."""
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment_for(home))
    return [cell.outputs[-1] if cell.outputs else {} for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.nightly
def test_the_notebook_runs_from_a_frame_to_predictions(tmp_path: Path, create_home: CreateHome) -> None:
    home, folder = create_home(tmp_path / "home"), tmp_path / "work"
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = execute(notebook, folder, home)
    frame, draft, model, candidates, matrix, card, predictions, refusal, front, digits_matrix = outputs
    assert "proline" in frame["data"]["text/html"]
    assert "wine: 178 rows" in draft["data"]["text/html"]
    assert (folder / "wine.parquet").is_file()
    assert "wine version 1" in model["data"]["text/html"]
    assert "image/png" in candidates["data"]
    assert "fp32" in candidates["data"]["text/html"]
    counts = re.findall(r">(\d+)</td>", matrix["data"]["text/html"])
    assert len(counts) == 9
    assert sum(map(int, counts)) > 20
    assert "<iframe" in card["data"]["text/html"]
    assert all(name in predictions["data"]["text/html"] for name in ("label", "probabilities", "class_"))
    assert "column alcohol" in refusal["text"]
    assert all(name in front["data"]["text/html"] for name in ("fp32", "int8", "pruned"))
    assert len(re.findall(r">(\d+)</td>", digits_matrix["data"]["text/html"])) == 100
    assert (home / "mlflow").is_dir()
    assert not (folder / ".bloomery").exists()


def test_the_notebook_in_docs_is_valid_and_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code")


def test_cells_run_in_a_kernel(tmp_path: Path, create_home: CreateHome) -> None:
    """The daily part of the test above: a draft from a frame, in the event loop of a kernel."""
    notebook = nbformat.v4.new_notebook()
    source = (
        "import pandas as pd\n"
        "import bloomery\n"
        "sizes = [number % 17 / 4 for number in range(120)]\n"
        "rows = pd.DataFrame({'size': sizes, 'kind': ['small' if size < 2 else 'large' for size in sizes]})\n"
        "bloomery.init(rows, label='kind', name='sizes')"
    )
    notebook.cells = [nbformat.v4.new_code_cell(source)]
    (output,) = execute(notebook, tmp_path, create_home(tmp_path / "home"))
    assert "sizes: 120 rows" in output["data"]["text/html"]
