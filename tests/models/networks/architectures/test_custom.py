"""Custom networks: building, requirements and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bloomery.data_contracts.errors import ParityBroken, RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Custom
from bloomery.models.training.determinism import set_deterministic

TABLE = Layout(kind="flat", shape=(4,), categories=((3, 5),))
CODE = {
    "ownnets/__init__.py": "from .nets import *\n",
    "ownnets/parts/acts.py": "from torch import nn\nclass Act(nn.GELU):\n    pass\n",
    "ownnets/nets.py": """
from torch import nn
from ownnets.parts.acts import Act

def good(layout, num_outputs, width=8):
    return nn.Sequential(nn.Linear(layout.shape[0], width), Act(), nn.Linear(width, num_outputs))

def raising(layout, num_outputs):
    raise LookupError("no such width")

def wide(layout, num_outputs):
    return nn.Linear(layout.shape[0], num_outputs + 1)

def text(layout, num_outputs):
    return "a network"

class Mixing(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))

def mixing(layout, num_outputs):
    return Mixing(layout.shape[0], num_outputs)

class Looping(nn.Linear):
    def forward(self, x):
        for _ in range(int(x.abs().sum().item()) % 3 + 1):
            y = super().forward(x)
        return y

def looping(layout, num_outputs):
    return Looping(layout.shape[0], num_outputs)
""",
}


def blueprint_of(name: str, **options: object) -> Blueprint:
    config = Custom(kind="custom", function=f"ownnets:{name}", options=options, code=CODE)
    return Blueprint(config=config, layout=TABLE, num_outputs=2)


def test_a_package_with_submodules_is_built_from_its_source(tmp_path: Path):
    network = build_network(blueprint_of("good", width=3))
    assert network[0].weight.shape == (3, 4)
    x = torch.cat([torch.randn(32, 3), torch.randint(0, 5, (32, 1)).float()], dim=1)
    assert export_onnx(network, x, tmp_path / "own.onnx") < 1e-4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("raising", {}, "failed: LookupError: 'no such width'|failed: LookupError: no such width"),
        ("wide", {}, r"returned float32 \(2, 3\) for \(2, 4\)"),
        ("text", {}, "returned a str"),
        ("absent", {}, "has no function absent"),
        ("good", {"widht": 3}, "unexpected keyword argument 'widht'"),
        ("mixing", {}, "changes its output for a row"),
    ],
)
def test_networks_that_do_not_fit_the_rows_are_refused_before_training(name, options, message):
    set_deterministic(0, num_threads=1)
    with pytest.raises(RecipeInvalid, match=message) as caught:
        build_network(blueprint_of(name, **options))
    assert "model.function" in caught.value.where


def test_a_network_that_cannot_be_exported_is_refused_with_a_remedy(tmp_path: Path):
    network = build_network(blueprint_of("looping"))
    with pytest.raises(ParityBroken, match="cannot export this network to ONNX") as caught:
        export_onnx(network, torch.randn(32, 4), tmp_path / "own.onnx")
    assert "read no value of a tensor" in caught.value.remedy
