"""The architectures with layers that torch-pruning can prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bloomery.models.networks.architecture import PrunableArchitecture
from bloomery.models.networks.architectures import cnn, ft_transformer, lenet, mlp, resnet
from bloomery.models.networks.config import Cnn, FtTransformer, LeNet, Mlp, ResNet

# mypy checks each module against its line.
_CNN: PrunableArchitecture[Cnn, cnn.ConvNet] = cnn
_LENET: PrunableArchitecture[LeNet, lenet.LeNet5] = lenet
_RESNET: PrunableArchitecture[ResNet, resnet.ResidualNetwork] = resnet
_MLP: PrunableArchitecture[Mlp, mlp.Perceptron] = mlp
_FT_TRANSFORMER: PrunableArchitecture[FtTransformer, ft_transformer.TableTransformer] = ft_transformer

ARCHITECTURES: Mapping[str, PrunableArchitecture[Any, Any]] = {
    "cnn": _CNN,
    "lenet": _LENET,
    "resnet": _RESNET,
    "mlp": _MLP,
    "ft_transformer": _FT_TRANSFORMER,
}
