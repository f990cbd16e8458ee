"""A CNN, an RNN and a Transformer from Keras files become champions.

TensorFlow needs more than a gigabyte, so it may be installed for another interpreter: `BLOOMERY_TENSORFLOW_PYTHON`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.recipe.recipe_files import RECIPES
from bloomery.models.training.data.batches import read_examples

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("keras_networks.py")


@pytest.fixture(scope="module")
def tensorflow() -> str:
    """An interpreter that has TensorFlow and tf2onnx."""
    interpreter = os.environ.get("BLOOMERY_TENSORFLOW_PYTHON")
    if interpreter is None and not all(importlib.util.find_spec(name) for name in ("tensorflow", "tf2onnx")):
        pytest.skip("TensorFlow is not installed, and BLOOMERY_TENSORFLOW_PYTHON names no Python that has it")
    return interpreter or sys.executable


@pytest.fixture(scope="module")
def folder(
    tensorflow: str,
    finished_run: tuple[Path, dict[str, Any]],
    clean_environment: Callable[..., dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Three networks, trained by Keras on the encoded rows of the recipe `digits`."""
    home, release = finished_run
    dataset = Dataset.model_validate(release["bento"]["choice"]["candidates"]["trained"]["dataset"])
    rows = read_examples(home / dataset.train.uri, dataset.key, dataset.layout)
    folder = tmp_path_factory.mktemp("keras")
    np.savez(folder / "rows.npz", x_train=rows.x.numpy(), y_train=rows.y.numpy())
    environment = clean_environment(folder, CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    environment.pop("PYTHONPATH", None)
    completed = subprocess.run(
        [tensorflow, str(SCRIPT), str(folder / "rows.npz"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return folder


@pytest.mark.parametrize("name", ["cnn", "rnn", "transformer"])
def test_a_keras_network_becomes_a_champion(
    name: str, folder: Path, forked_bloomery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    document = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    del document["training"], document["compression"]
    document["name"] = f"keras-{name}"
    document["model"] = {"kind": "imported", "path": f"{name}.onnx"}
    document |= {"budget": {"accuracy_drop": 0.02}, "gates": {"min_accuracy": 0.85}}
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(document))
    run = forked_bloomery(folder / "home", "run", str(recipe), "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    release = json.loads(run.stdout)
    assert (release["name"], release["alias"], release["num_smoke_test_rows"]) == (f"keras-{name}", "champion", 100)
    fp32, int8 = release["bento"]["choice"]["candidates"]["candidates"]
    assert fp32["parity_error"] < 1e-5
    assert int8["size_bytes"] < 0.8 * fp32["size_bytes"]
