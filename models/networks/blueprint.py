"""Networks by kind: built from a config, written to disk and read back."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load, save
from torch import nn

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.models.networks.config import (
    Auto,
    Cnn,
    Custom,
    FtTransformer,
    Gpt,
    HuggingFace,
    Imported,
    LeNet,
    Mlp,
    Model,
    ResNet,
    Rnn,
    Transformer,
)


class Blueprint(Document):
    """All that is needed to build a network again, without its weights."""

    config: Model
    layout: Layout
    task: Task = "classification"
    num_outputs: int  # a logit per class, or the one figure of a regression, in standard units


def build_network(blueprint: Blueprint) -> nn.Module:
    """A network with freshly drawn weights, on the processor, in training mode: x float32 (B, ...) -> (B, outputs)."""
    from bloomery.models.networks.architectures import (
        cnn,
        custom,
        ft_transformer,
        gpt,
        huggingface,
        lenet,
        mlp,
        resnet,
        rnn,
        transformer,
    )

    config, layout, num_outputs = blueprint.config, blueprint.layout, blueprint.num_outputs
    match config:
        case Cnn():
            return cnn.build(config, layout, num_outputs)
        case LeNet():
            return lenet.build(config, layout, num_outputs)
        case ResNet():
            return resnet.build(config, layout, num_outputs)
        case Mlp():
            return mlp.build(config, layout, num_outputs)
        case FtTransformer():
            return ft_transformer.build(config, layout, num_outputs)
        case Rnn():
            return rnn.build(config, layout, num_outputs)
        case Transformer():
            return transformer.build(config, layout, num_outputs)
        case Gpt():
            return gpt.build(config, layout, num_outputs)
        case Custom():
            return custom.build(config, layout, num_outputs)
        case HuggingFace():
            return huggingface.build(config, layout, num_outputs)
        case Auto() | Imported():
            raise TypeError(f"a network of kind {config.kind} is never built")


def rebuild_network(blueprint: Blueprint, network: nn.Module) -> nn.Module:
    """A network as `blueprint` says with the weights of `network`, in evaluation mode, and with nothing else of it."""
    fresh = build_network(blueprint)
    fresh.load_state_dict(network.state_dict())
    return fresh.eval()


def write_network(network: nn.Module, blueprint: Blueprint, weights: Path, blueprint_path: Path) -> str:
    """Write weights (safetensors, whose bytes depend on nothing but names and values) and blueprint.

    Returns:
        The sha256 of the weights' file.
    """
    from bloomery.models.networks.architectures.huggingface import without_checkpoint

    if isinstance(blueprint.config, HuggingFace):
        blueprint = blueprint.model_copy(update={"config": without_checkpoint(blueprint.config)})
    # Copies, since safetensors takes no two names for one tensor.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    weights.write_bytes(save(state))
    blueprint_path.write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    return digest_of_file(weights)


def read_blueprint(path: Path) -> Blueprint:
    return Blueprint.model_validate_json(path.read_text(encoding="utf-8"))


def read_network(weights: Path, blueprint_path: Path) -> tuple[nn.Module, Blueprint]:
    """The network as written, in evaluation mode."""
    blueprint = read_blueprint(blueprint_path)
    network = build_network(blueprint)
    network.load_state_dict(load(weights.read_bytes()))
    return network.eval(), blueprint


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
