"""Builds networks from their config, and writes and reads them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load, save
from torch import nn

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.models.networks.config import (
    Auto,
    BoostedTrees,
    Cnn,
    Custom,
    FtTransformer,
    Fused,
    Gpt,
    HuggingFace,
    Imported,
    LeNet,
    Mlp,
    Model,
    ResNet,
    Rnn,
    TabM,
    TabularEnsemble,
    Transformer,
)
from bloomery.models.networks.pretrained_config import Pretrained, without_checkpoint
from bloomery.models.networks.token_bag_config import TokenBag


class Blueprint(Document):
    """Everything needed to build a network, except its weights."""

    config: Model
    layout: Layout
    task: Task = "classification"
    num_outputs: int  # a logit per class or label, a value in standard units per label of a regression, or a vector's


def build_network(blueprint: Blueprint) -> nn.Module:
    """Builds an untrained network on the CPU, in training mode: x float32 (B, ...) -> float32 (B, outputs).

    A pretrained network has the weights of its checkpoint, if its config names the folder.

    For ordered classes it has one logit less, and a forward hook makes the outputs of them. For tags it has outputs for
    each token, (B, tokens, outputs).
    """
    from bloomery.models.networks.architectures.fused import FusedNetwork
    from bloomery.models.networks.architectures.pretrained import PretrainedText
    from bloomery.models.networks.architectures.rnn import RecurrentNetwork
    from bloomery.models.networks.architectures.transformer import TransformerEncoder
    from bloomery.models.networks.layers.ordinal import convert_outputs

    if blueprint.task == "tagging":
        network = _build(blueprint)
        assert isinstance(network, PretrainedText | RecurrentNetwork | TransformerEncoder)  # others are refused before
        network.predict_each_step()
        return network
    if blueprint.task != "ordinal" or isinstance(blueprint.config, TabM):
        return _build(blueprint)
    network = _build(blueprint.model_copy(update={"num_outputs": blueprint.num_outputs - 1}))
    # A fused network's file is merged from those of its branches and of its join, which has the hook.
    (network.join if isinstance(network, FusedNetwork) else network).register_forward_hook(convert_outputs)
    return network


def _build(blueprint: Blueprint) -> nn.Module:
    from bloomery.models.networks.architectures import (
        cnn,
        custom,
        ft_transformer,
        fused,
        gpt,
        huggingface,
        lenet,
        mlp,
        pretrained,
        resnet,
        rnn,
        tabm,
        token_bag,
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
        case TabM():
            return tabm.build(config, layout, num_outputs, blueprint.task)
        case Rnn():
            return rnn.build(config, layout, num_outputs)
        case Transformer():
            return transformer.build(config, layout, num_outputs)
        case TokenBag():
            return token_bag.build(config, layout, num_outputs)
        case Gpt():
            return gpt.build(config, layout, num_outputs)
        case Custom():
            return custom.build(config, layout, num_outputs)
        case HuggingFace():
            return huggingface.build(config, layout, num_outputs)
        case Pretrained():
            network = pretrained.build(config, layout, num_outputs)
            if blueprint.task == "embedding":
                network.head = nn.Identity()  # the pooled states are the vectors, as the checkpoint was trained
            return network
        case Fused():
            return fused.build(config, layout, num_outputs, _build_branch)
        case Auto() | Imported() | BoostedTrees() | TabularEnsemble():
            raise TypeError(f"a network of kind {config.kind} cannot be built")


def _build_branch(config: Model, layout: Layout, num_features: int) -> nn.Module:
    from bloomery.models.networks.architectures.imported_branch import ImportedBranch

    if isinstance(config, Imported):
        return ImportedBranch(num_features)
    return build_network(Blueprint(config=config, layout=layout, num_outputs=num_features))


def rebuild_network(blueprint: Blueprint, network: nn.Module) -> nn.Module:
    """Builds a network from `blueprint` with the weights of `network`, in evaluation mode, without its hooks."""
    rebuilt = build_network(blueprint)
    rebuilt.load_state_dict(network.state_dict())
    return rebuilt.eval()


def write_network(network: nn.Module, blueprint: Blueprint, weights: Path, blueprint_path: Path) -> str:
    """Writes the blueprint, and the weights as safetensors; their bytes depend on names and values only.

    Returns:
        The sha256 of the weights' file.
    """
    blueprint = blueprint.model_copy(update={"config": _without_checkpoints(blueprint.config)})
    # Copies, because safetensors rejects tensors that share memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    weights.write_bytes(save(state))
    blueprint_path.write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    return digest_of_file(weights)


def _without_checkpoints(config: Model) -> Model:
    """`config` without the paths of checkpoints and files, also of branches."""
    if isinstance(config, Pretrained):
        return without_checkpoint(config)
    if isinstance(config, Imported):
        return config.model_copy(update={"path": Path(config.path).name})
    if isinstance(config, Fused) and config.branches is not None:
        branches = {name: _without_checkpoints(branch) for name, branch in config.branches.items()}
        return config.model_copy(update={"branches": branches})
    return config


def read_blueprint(path: Path) -> Blueprint:
    return Blueprint.model_validate_json(path.read_text(encoding="utf-8"))


def read_network(weights: Path, blueprint_path: Path) -> tuple[nn.Module, Blueprint]:
    """Reads what `write_network` wrote; the network is in evaluation mode."""
    blueprint = read_blueprint(blueprint_path)
    network = build_network(blueprint)
    network.load_state_dict(load(weights.read_bytes()))
    return network.eval(), blueprint


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
