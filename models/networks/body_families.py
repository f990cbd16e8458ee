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
    reads_tokens: bool = False  # networks for audio may state a vocabulary, too: that of a head for transcripts


class StageNames(NamedTuple):
    """Where a family with stages of different widths has its blocks, and the maps of a block in their order.

    The units between two maps are written by the first and read by the second alone. Blocks may lack the last maps.
    """

    stages: str
    blocks: str  # of a stage
    maps: tuple[str, ...]
    norm: str | None = None  # of the units behind a map, beside that map


_BERT = LayerNames(
    "encoder.layer",
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
    reads_tokens=True,
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
        reads_tokens=True,
    ),
    "mpnet": LayerNames(
        "encoder.layer",
        *("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        *("intermediate.dense", "output.dense"),
        has_shared_bias=True,
        reads_tokens=True,
    ),
    **dict.fromkeys(("vit", "deit", "vit_msn", "audio-spectrogram-transformer"), _VIT),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _VIT._replace(layers="encoder.layer")),
    **dict.fromkeys(
        ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio"),
        LayerNames(
            "encoder.layers",
            *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
            *("feed_forward.intermediate_dense", "feed_forward.output_dense"),
        ),
    ),
}
STAGED_FAMILIES: Mapping[str, StageNames] = {
    "resnet": StageNames(
        "encoder.stages",
        "layers",
        ("layer.0.convolution", "layer.1.convolution", "layer.2.convolution"),
        norm="normalization",
    ),
    "convnext": StageNames("encoder.stages", "layers", ("pwconv1", "pwconv2")),
    "swin": StageNames("encoder.layers", "blocks", ("mlp.fc1", "mlp.fc2")),
}
# Families whose weights are in convolutions, which have neither a fast dynamic 8-bit kernel nor a lower rank.
CONVOLUTIONAL_FAMILIES = ("resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet")
