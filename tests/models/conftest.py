"""Fixtures that are built once: scikit-learn's digits, their splits, a network and its ONNX files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.pruning.unstructured import compute_masks, fixed_masks
from bloomery.models.compression.quantization.post_training import quantize
from bloomery.models.compression.weight_clustering import cluster_weights, shared_weights
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, encode_labels, fit, partial_statistics
from bloomery.models.features.input_config import ImageInput
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn
from bloomery.models.profiling.cpu_features import cpu_flags, needs_reduced_range
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import train


class Splits(NamedTuple):
    train: Examples
    val: Examples
    test: Examples


class Trained(NamedTuple):
    network: nn.Module
    blueprint: Blueprint


@pytest.fixture(scope="session", autouse=True)
def _set_deterministic() -> None:
    set_deterministic(seed=0, num_threads=1)


@pytest.fixture(scope="session")
def reduce_range() -> bool:
    """Whether weights need 7 bits on this processor, so that quantized outputs are close to the float ones."""
    return needs_reduced_range(cpu_flags())


@pytest.fixture(scope="session")
def digits() -> pa.Table:
    """Raw rows in the types of the digits' contract."""
    bunch = load_digits()
    return pa.table(
        {
            "id": pa.array(range(len(bunch.target)), pa.int64()),
            "image": pa.array(list(bunch.data.astype("uint8")), pa.list_(pa.uint8())),
            "label": pa.array(bunch.target, pa.int64()),
        }
    )


@pytest.fixture(scope="session")
def features() -> Features:
    return Features(key="id", label="label", inputs=(ImageInput(kind="image", column="image", shape=(1, 8, 8)),))


@pytest.fixture(scope="session")
def encoder(digits: pa.Table, features: Features) -> Encoder:
    return fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, digits.to_batches())]
    )


@pytest.fixture(scope="session")
def splits(digits: pa.Table, encoder: Encoder) -> Splits:
    x = torch.from_numpy(encode(encoder, digits))
    y = torch.from_numpy(encode_labels(encoder, digits["label"]).to_numpy().copy())
    key = digits["id"].to_numpy()
    return Splits(
        *(Examples(x[rows], y[rows], key[rows]) for rows in (slice(1000), slice(1000, 1200), slice(1200, None)))
    )


@pytest.fixture(scope="session")
def trained(splits: Splits) -> Trained:
    """A small network that classifies most digits correctly. Copy it before you change it."""
    set_deterministic(seed=0, num_threads=1)
    blueprint = Blueprint(
        config=Cnn(kind="cnn", channels=(8, 16), hidden=32, dropout=0.1),
        layout=Layout(kind="image", shape=(1, 8, 8)),
        num_outputs=10,
    )
    network = build_network(blueprint)
    train(network, TrainingData(splits.train, splits.val), Loop(epochs=8))
    return Trained(network, blueprint)


@pytest.fixture(scope="session")
def exported(trained: Trained, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "float.onnx"
    export_onnx(trained.network, splits.test.x, path)
    return path


@pytest.fixture(scope="session")
def quantized(exported: Path, splits: Splits) -> Path:
    path = exported.with_name("int8.onnx")
    quantize(exported, path, splits.train.x[:200].numpy())
    return path


@pytest.fixture(scope="session")
def few_valued(trained: Trained, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with a tenth of its weights, in 8 values. Without fine-tuning, most predictions are wrong."""
    network = copy.deepcopy(trained.network)
    with fixed_masks(network, compute_masks(network, 0.1)), shared_weights(network, cluster_weights(network, 8)):
        pass
    path = tmp_path_factory.mktemp("few") / "few.onnx"
    export_onnx(network, splits.test.x, path)
    return path
