"""Networks by kind: built from a config, written to disk and read back."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from data_contracts.digests import digest_of_file
from data_contracts.documents import Document
from models.cnn import ConvNet
from models.config import Cnn, Model
from models.mlp import Perceptron


class Blueprint(Document):
    """All that is needed to build a network again, without its weights."""

    config: Model
    input_shape: tuple[int, ...]
    num_classes: int


def build(blueprint: Blueprint) -> nn.Module:
    """A network with freshly drawn weights, on the processor, in training mode."""
    if isinstance(blueprint.config, Cnn):
        return ConvNet(blueprint.config, blueprint.input_shape, blueprint.num_classes)
    return Perceptron(blueprint.config, blueprint.input_shape, blueprint.num_classes)


def write_network(network: nn.Module, blueprint: Blueprint, weights: Path, blueprint_path: Path) -> str:
    """Write weights (safetensors, whose bytes depend on nothing but names and values) and blueprint.

    Returns:
        The sha256 of the weights' file.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    weights.write_bytes(save(state))
    blueprint_path.write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    return digest_of_file(weights)


def read_network(weights: Path, blueprint_path: Path) -> tuple[nn.Module, Blueprint]:
    """The network as written, in evaluation mode."""
    blueprint = Blueprint.model_validate_json(blueprint_path.read_text(encoding="utf-8"))
    network = build(blueprint)
    network.load_state_dict(load(weights.read_bytes()))
    return network.eval(), blueprint


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def fix_randomness(seed: int, num_threads: int) -> str:
    """Make what follows in this process repeat bit for bit on a processor of the same kind.

    Returns:
        What else the bits depend on: threads and instruction set, to be recorded with the weights.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    return f"{num_threads} thread(s), {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
