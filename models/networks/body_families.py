"""Where the families of `transformers` have their layers, and the linear maps within a layer.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class LayerNames(NamedTuple):
    """Where a family has its list of layers, and the linear maps within a layer."""

    layers: str
    query: str
    key: str
    value: str
    out: str
    up: str
    down: str
    has_shared_bias: bool = False  # whether the heads of all layers share a bias, so that none can be removed


_BERT = LayerNames(
    "encoder.layer",
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)
_VIT = LayerNames(
    "layers",
    *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    *("mlp.fc1", "mlp.fc2"),
)
FAMILIES: Mapping[str, LayerNames] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": LayerNames(
        "transformer.layer",
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        *("ffn.lin1", "ffn.lin2"),
    ),
    "mpnet": LayerNames(
        "encoder.layer",
        *("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        *("intermediate.dense", "output.dense"),
        has_shared_bias=True,
    ),
    **dict.fromkeys(("vit", "deit"), _VIT),
}
