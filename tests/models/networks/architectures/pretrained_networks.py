"""Checkpoints with random weights, as a recipe refers to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.networks.pretrained_config import Pretrained


def save_checkpoint(folder: Path, model_type: str, options: dict[str, Any]) -> Pretrained:
    """A checkpoint with random weights in `folder`, as a recipe refers to it."""
    import transformers

    torch.manual_seed(0)
    configuration = transformers.AutoConfig.for_model(model_type, **options)
    transformers.AutoModel.from_config(configuration).save_pretrained(folder)
    return config_of(folder)


def config_of(folder: Path, **options: Any) -> Pretrained:
    checkpoint = Checkpoint(reference="tiny", folder=str(folder), files={"model.safetensors": "0" * 64})
    document = json.loads((folder / "config.json").read_text())
    return Pretrained(kind="pretrained", checkpoint="tiny", resolved=checkpoint, config=document, **options)
