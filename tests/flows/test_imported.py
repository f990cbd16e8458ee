"""An imported ONNX network becomes a champion that predicts over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from bloomery.flows.recipe.recipe_files import RECIPES
from bloomery.models.networks.blueprint import read_network

pytestmark = pytest.mark.slow

Bloomery = Callable[..., subprocess.CompletedProcess[str]]
FinishedRun = tuple[Path, dict[str, Any]]


class KerasStyleNetwork(nn.Module):
    """A network with channels last and a softmax at the end, as Keras exports it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        return self.network(x_BHWC.permute(0, 3, 1, 2)).softmax(dim=1)


@pytest.fixture(scope="module")
def recipe(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe `digits` with its own trained network, imported as an ONNX file."""
    home, release = finished_run
    trained = release["bento"]["choice"]["candidates"]["trained"]
    network, _ = read_network(home / trained["uri"], home / trained["network_uri"])
    folder = tmp_path_factory.mktemp("imported")
    torch.onnx.export(
        KerasStyleNetwork(network).eval(),
        (torch.zeros(2, 8, 8, 1),),
        folder / "network.onnx",
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    document = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    del document["training"], document["compression"]
    document["name"] = "foreign"
    document["model"] = {"kind": "imported", "path": "network.onnx"}
    document["budget"] = {"accuracy_drop": 0.02}
    path = folder / "foreign.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def imported_release(recipe: Path, forked_bloomery: Bloomery) -> dict[str, Any]:
    """The release of its run."""
    run = forked_bloomery(recipe.parent / "home", "run", str(recipe), "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    release: dict[str, Any] = json.loads(run.stdout)
    return release


def test_its_predictions_over_http_equal_those_of_the_original_network(
    imported_release: dict[str, Any], finished_run: FinishedRun
) -> None:
    candidates, original_candidates = (
        release["bento"]["choice"]["candidates"]["candidates"] for release in (imported_release, finished_run[1])
    )
    assert [candidate["name"] for candidate in candidates] == ["fp32", "int8"]
    assert candidates[0]["score"] == original_candidates[0]["score"]  # the conversion loses no accuracy
    assert candidates[0]["parity_error"] < 1e-5
    assert (imported_release["alias"], imported_release["num_smoke_test_rows"]) == ("champion", 100)


def test_convolutions_are_quantized_in_fixed_ranges_and_nothing_is_trained(imported_release: dict[str, Any]) -> None:
    options = imported_release["bento"]["choice"]["candidates"]
    fp32, int8 = options["candidates"]
    assert int8["size_bytes"] < 0.5 * fp32["size_bytes"]
    assert not int8.get("is_row_by_row", False)
    assert options["trained"]["epochs"] == 0
    assert options["trained"]["uri"].endswith("network.onnx")


def test_its_run_has_metrics_plots_and_explanations(imported_release: dict[str, Any], recipe: Path) -> None:
    home, trained = recipe.parent / "home", imported_release["bento"]["choice"]["candidates"]["trained"]
    (artifacts,) = (home / "mlflow").glob(f"**/{trained['run_id']}/artifacts")
    names = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*")}
    assert {"val_confusion.png", "val_per_class.json", "network/network.onnx", "explanations/rows.png"} <= names
    weights = json.loads((artifacts / "explanations" / "weights.json").read_text())
    assert weights["method"] == "shapley"
    assert trained["val_score"] > 0.9
