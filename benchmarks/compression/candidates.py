"""The candidates of each recipe that `goals.py`, `peers.py` and `on_gpu.py` build, and networks for students."""

from __future__ import annotations

from typing import Any

from bloomery.models.profiling.cpu_features import cpu_flags, has_amx

FLOAT = {"name": "fp32"}
STATIC = {"quantize": "static", "amx": has_amx(cpu_flags())}
# Of students on images, which keep improving with more epochs.
LONG_TRAINING = {
    "epochs": 60,
    "batch_size": 128,
    "learning_rate": 0.008,
    "ema": 0.998,
    "best_by": "last",
    "precision": "auto",
    "augment": {"flip": True, "shift": 1},
}


def strided_cnn(channels: list[int], hidden: int) -> dict[str, Any]:
    """Returns the config of a CNN with a first convolution of stride two, which is cheap in float."""
    return {
        "kind": "cnn",
        "channels": channels,
        "convolutions": [1, 1, 2],
        "strided": 1,
        "hidden": hidden,
        "dropout": 0,
    }


CANDIDATES: dict[str, dict[str, Any]] = {
    "pendigits": {
        "candidates": [
            FLOAT,
            {"name": "half-int8", "prune": 0.5, "weight_only": "int8"},
            {"name": "third-int8", "prune": {"ratio": 0.67, "importance": "taylor"}, "weight_only": "int8"},
            {
                "name": "student-gru-int8",
                "student": {
                    "model": {"kind": "rnn", "cell": "gru", "hidden": 48, "pooling": "max", "dropout": 0},
                    "training": {"epochs": 40, "batch_size": 128, "learning_rate": 0.004, "ema": 0.995},
                },
                "weight_only": "int8",
            },
        ],
        "fine_tune": {"epochs": 15, "batch_size": 128, "learning_rate": 0.002, "ema": 0.995},
        "distill": {"weight": 0.9, "temperature": 4},
    },
    "beijing-pm25": {
        "candidates": [
            FLOAT,
            {"name": "int8", "quantize": "dynamic"},
            {"name": "half-int8", "prune": 0.5, "quantize": "dynamic"},
            {
                "name": "student-mlp-coded",
                "student": {
                    "model": {"kind": "mlp", "hidden": [48, 32], "norm": "none", "dropout": 0},
                    "training": {
                        "epochs": 40,
                        "batch_size": 256,
                        "learning_rate": 0.001,
                        "ema": 0.999,
                        "clip_norm": 1.0,
                        "weight_decay": 0.1,
                    },
                },
                "sparsify": {"density": 0.22},
                "num_clusters": 31,
                "storage": "entropy_coded",
            },
        ],
        "fine_tune": {"epochs": 20, "batch_size": 256, "learning_rate": 0.001, "ema": 0.998, "clip_norm": 1.0},
    },
    "clinc150": {
        "candidates": [
            FLOAT,
            {"name": "int8", "quantize": "dynamic"},
            {
                "name": "student-64-int8",
                "student": {
                    "model": {
                        "kind": "transformer",
                        "width": 64,
                        "num_layers": 1,
                        "num_heads": 1,
                        "feed_forward": 1,
                        "dropout": 0.1,
                        "convolution": 3,
                    }
                },
                "weight_only": "int8",
            },
        ],
        "fine_tune": {
            "epochs": 16,
            "batch_size": 64,
            "learning_rate": 0.003,
            "ema": 0.998,
            "best_by": "score",
            "augment": {"drop_tokens": 0.15},
        },
        "distill": {"weight": 0.8, "temperature": 2},
    },
    "fashion-mnist": {
        "candidates": [
            FLOAT,
            {"name": "int8", **STATIC},
            {
                "name": "wide-student-int8",
                "student": {"model": strided_cnn([64, 128, 128], 128), "training": {**LONG_TRAINING, "epochs": 20}},
                **STATIC,
                "float_layers": "first",
            },
            {
                "name": "student-int8",
                "student": {"model": strided_cnn([32, 64, 64], 64)},
                **STATIC,
                "float_layers": "first",
            },
        ],
        "fine_tune": LONG_TRAINING,
        "distill": {"weight": 1.0, "temperature": 2},
    },
}
