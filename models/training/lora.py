"""Low-rank adapters: small matrices beside frozen linear layers learn, and are merged into their weights afterwards.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from bloomery.data_contracts.errors import EngineMissing, RecipeInvalid
from bloomery.models.training.layer_freezing import layer_groups
from bloomery.models.training.transfer_config import Lora

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

_ADAPTER = "default"  # the name that peft gives an adapter within a network
_BODY = "body."  # before names of a pretrained network's weights, which other tools know without it


@dataclass(frozen=True)
class Adapter:
    """Trained low-rank matrices in peft's format, and the number of layers that they belong to."""

    weights: dict[str, torch.Tensor]
    options: dict[str, Any]
    num_layers: int

    def write(self, folder: Path) -> None:
        """Writes the files that `peft.PeftModel.from_pretrained` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(save(self.weights, {"format": "pt"}))
        text = json.dumps(self.options, indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")


def add_adapters(network: nn.Module, lora: Lora) -> LoraModel:
    """Adds adapters to linear layers of `network`, in place. Only adapters and the head stay trainable.

    Raises:
        EngineMissing: `peft` is not installed.
        RecipeInvalid: a target matches no layer.
    """
    names = find_targets(network, lora)
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as failure:
        raise EngineMissing(
            "the package peft is not installed",
            required="peft, for `training.lora`",
            where=sys.prefix,
            remedy="pip install peft",
        ) from failure
    heads = set(layer_groups(network)[-1])
    options = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by the rank
        lora_dropout=lora.dropout,
        target_modules=names,
        bias="none",
    )
    adapted = LoraModel(network, options, _ADAPTER)
    for name, parameter in network.named_parameters():
        if name in heads:
            parameter.requires_grad_(True)
    return adapted


def find_targets(network: nn.Module, lora: Lora) -> list[str]:
    """The names of the linear layers that get adapters: of all before the head, or those that the recipe names.

    Raises:
        RecipeInvalid: a target matches no layer.
    """
    layer_names = {name.rpartition(".")[0] for group in layer_groups(network)[:-1] for name in group}
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name in layer_names]
    targets = () if lora.targets == "auto" else lora.targets
    matches = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets}
    missing = [target for target in targets if not matches[target]]
    if missing or not layers:
        kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
        raise RecipeInvalid(
            f"{', '.join(map(repr, missing))}: no linear layer before the head has this name"
            if missing
            else "the network has no linear layer before the head",
            required=f"one of {kinds}, or a longer name such as {layers[0]}" if layers else "a linear layer to adapt",
            where="the recipe's training.lora.targets",
            remedy="correct the name, or write `targets: auto`" if layers else "leave `lora` out",
        )
    return sorted({name for names in matches.values() for name in names}, key=layers.index) if targets else layers


def has_trainable_adapter(network: nn.Module, targets: Sequence[str]) -> bool:
    """Whether a layer of `targets`, or its adapter, is trainable."""
    prefixes = tuple(f"{name}." for name in targets)
    return any(weight.requires_grad for name, weight in network.named_parameters() if name.startswith(prefixes))


def frozen_adapters(targets: Sequence[str]) -> RecipeInvalid:
    """The error of a recipe that freezes all layers with adapters in all stages."""
    return RecipeInvalid(
        f"all {len(targets)} adapters are frozen, so that only the head would learn",
        required="an adapter that is not frozen in at least one stage",
        where="the recipe's training.lora",
        remedy="leave `freeze` out, since adapters leave the weights of their layers unchanged; or leave `lora` out",
    )


def merge_adapters(adapted: LoraModel, network: nn.Module) -> Adapter:
    """Adds the adapters to the weights of their layers, so that `network` is as it was built; returns them."""
    weights = {
        _external_name(name): parameter.detach().cpu().clone().contiguous()
        for name, parameter in network.named_parameters()
        if ".lora_" in name
    }
    options = adapted.peft_config[_ADAPTER].to_dict()
    # Of many names, peft keeps the shortest ends; the complete names match no other layer of a checkpoint.
    names = sorted(name.removeprefix(_BODY) for name in adapted.targeted_module_names)
    adapted.merge_and_unload()
    if hasattr(network, "peft_config"):  # peft has left its options on the network
        delattr(network, "peft_config")
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    json_options = {name: _plain(value) for name, value in options.items()}
    return Adapter(weights, json_options | {"target_modules": names, "inference_mode": True}, len(names))


def _external_name(name: str) -> str:
    return f"base_model.model.{name.removeprefix(_BODY).replace(f'.{_ADAPTER}.', '.')}"


def _plain(value: Any) -> Any:
    """A value of peft's options as JSON can hold it."""
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)
