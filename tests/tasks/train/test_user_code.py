"""A recipe's own network: its files are found beside the recipe, and hide no other module."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures import custom
from bloomery.models.networks.config import Custom, Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.infrastructure.python_processes import code_command
from bloomery.tasks.train.user_code import bundle_user_code

TABLE = Layout(kind="flat", shape=(4,), categories=())
NETWORK = "from torch import nn\ndef network(layout, num_outputs):\n    return nn.Linear(4, num_outputs)\n"
RAISES = "raise RuntimeError('a file beside the recipe was imported')\n"


def bundle(folder: Path, function: str = "models:network") -> Custom:
    bundled = bundle_user_code(Custom(kind="custom", function=function, options={}, code={}, packages={}), folder)
    assert isinstance(bundled, Custom)
    return bundled


@pytest.mark.parametrize("name", ["models", "tasks", "flows", "sklearn", "tests", "utils"])
def test_a_network_may_have_the_name_of_a_room_or_of_an_installed_package(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(NETWORK)
    before = sys.modules.get(name)
    model = bundle(tmp_path, f"{name}:network")
    assert list(model.code) == [f"{name}.py"]
    assert isinstance(custom.build(model, TABLE, 2), torch.nn.Linear)
    assert sys.modules.get(name) is before  # other code still imports its own


def test_only_what_the_network_imports_and_nothing_installed_has_is_taken_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("from .nets import network\n")
    (tmp_path / "models" / "nets.py").write_text(
        "import json, torch\nimport parts.acts\nimport parts.acts as short\nfrom parts import acts\n"
        "from models.sizes import WIDTH\n"
        "def network(layout, num_outputs):\n"
        "    from parts.acts import Act\n"
        "    assert parts.acts is acts is short and json.dumps(WIDTH) == '3'\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, WIDTH), Act(), torch.nn.Linear(WIDTH, num_outputs))\n"
    )
    (tmp_path / "models" / "sizes.py").write_text("WIDTH = 3\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "acts.py").write_text("from torch import nn\nclass Act(nn.GELU):\n    pass\n")
    for name in ("torch", "json", "tasks", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(RAISES)
    model = bundle(tmp_path)
    assert list(model.code) == ["models/__init__.py", "models/nets.py", "models/sizes.py", "parts/acts.py"]
    assert "torch" in model.packages
    network = custom.build(model, TABLE, 2)
    assert isinstance(network, torch.nn.Sequential)
    assert not {"models", "parts"} & sys.modules.keys()
    torch.export.export(network.eval(), (torch.ones(1, 4),), strict=True)  # reads the modules' builtins


def test_two_versions_of_a_network_exist_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(NETWORK)
    first = bundle(tmp_path)
    (tmp_path / "models.py").write_text(NETWORK.replace("num_outputs)\n", "num_outputs, bias=False)\n"))
    second = bundle(tmp_path)
    biases = [custom.build(model, TABLE, 2).bias is not None for model in (first, second, first)]
    assert biases == [True, False, True]


def test_a_bundled_network_is_built_in_a_folder_whose_modules_raise(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(NETWORK)
    model = bundle(tmp_path)
    (tmp_path / "models.py").write_text(RAISES)
    code = (
        "import sys\n"
        "from bloomery.data_contracts.records.tensor_layout import Layout\n"
        "from bloomery.models.networks.architectures import custom\n"
        "from bloomery.models.networks.config import Custom\n"
        "layout = Layout(kind='flat', shape=(4,), categories=())\n"
        "print(custom.build(Custom.model_validate_json(sys.argv[1]), layout, 2).out_features)\n"
    )
    command = code_command(code, model.model_dump_json())
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "2\n"


@pytest.mark.parametrize(("name", "owner"), [("bloomery", "Bloomery"), ("types", "a module of Python")])
def test_a_name_that_the_network_itself_needs_is_refused(tmp_path: Path, name: str, owner: str) -> None:
    (tmp_path / f"{name}.py").write_text(NETWORK)
    with pytest.raises(RecipeInvalid, match=f"has the name of {owner}") as caught:
        bundle(tmp_path, f"{name}:network")
    assert "rename the file" in caught.value.remedy


def test_a_module_that_exists_nowhere_and_one_with_a_syntax_error_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"nowhere\.py, which does not exist"):
        bundle(tmp_path, "nowhere:network")
    (tmp_path / "models.py").write_text("def network(:\n")
    with pytest.raises(RecipeInvalid, match="not valid Python") as caught:
        bundle(tmp_path)
    assert caught.value.where.endswith("models.py:1")


def bundle_checkpoint(folder: Path, pooling: str = "auto") -> Pretrained:
    model = TypeAdapter(Model).validate_python({"kind": "pretrained", "checkpoint": folder.name, "pooling": pooling})
    bundled = bundle_user_code(model, folder.parent)
    assert isinstance(bundled, Pretrained)
    return bundled


def test_a_pretrained_network_gets_the_configuration_and_the_digests_of_its_checkpoint(tiny_bert: Path) -> None:
    model = bundle_checkpoint(tiny_bert)
    assert model.config is not None
    assert model.config["model_type"] == "bert"
    assert model.resolved is not None
    assert model.resolved.folder == str(tiny_bert)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(model.resolved.files)


@pytest.mark.parametrize(("stated", "expected"), [("auto", "cls"), ("mean", "mean")])
def test_auto_is_the_pooling_that_a_checkpoint_of_sentence_transformers_states(
    tiny_bert: Path, tmp_path: Path, stated: str, expected: str
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "mine")
    (tmp_path / "mine" / "1_Pooling").mkdir()
    options = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "mine" / "1_Pooling" / "config.json").write_text(json.dumps(options))
    assert bundle_checkpoint(tmp_path / "mine", stated).pooling == expected
