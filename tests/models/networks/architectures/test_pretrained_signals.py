"""Networks with a pretrained body for images and audio: equal to `transformers`, exported, refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.networks.architectures.pretrained import build, layer_groups
from tests.models.networks.architectures.pretrained_networks import save_checkpoint

transformers = pytest.importorskip("transformers")

_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_PATCHES = {**_LAYERS, "image_size": 16, "patch_size": 4}
_DEPTHS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
_WAVES = {
    **_LAYERS,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
_WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 12,
    "vocab_size": 20,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
IMAGE = Layout(kind="image", shape=(3, 16, 16))
LARGE = Layout(kind="image", shape=(3, 32, 32))
WAVEFORM = Layout(kind="image", shape=(1, 1, 400))
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
SPECTROGRAM = Layout(kind="image", shape=(1, 16, 24))
FAMILIES: dict[str, tuple[Layout, dict[str, Any]]] = {
    "vit": (IMAGE, _PATCHES),
    "deit": (IMAGE, _PATCHES),
    "dinov2": (IMAGE, {**_LAYERS, "image_size": 32, "patch_size": 4}),
    "dinov2_with_registers": (IMAGE, {**_LAYERS, "image_size": 32, "patch_size": 4}),
    "data2vec-vision": (IMAGE, _PATCHES),  # has attention of its own
    "resnet": (LARGE, {**_DEPTHS, "embedding_size": 8, "layer_type": "basic"}),
    "convnext": (LARGE, _DEPTHS),
    "swin": (
        IMAGE,
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    ),
    "wav2vec2": (WAVEFORM, _WAVES),
    "hubert": (WAVEFORM, _WAVES),
    "wav2vec2-conformer": (WAVEFORM, {**_WAVES, "conv_depthwise_kernel_size": 3}),  # adds biases of positions
    "audio-spectrogram-transformer": (
        SPECTROGRAM,
        {**_LAYERS, "num_mel_bins": 16, "max_length": 24, "patch_size": 8, "time_stride": 8, "frequency_stride": 8},
    ),
    "whisper": (SPECTROGRAM, _WHISPER),
}
OTHERS: dict[str, dict[str, Any]] = {"vit_mae": _PATCHES, "mobilenet_v2": {"depth_multiplier": 0.1}}
_INPUTS = {
    WAVEFORM: lambda x: {"input_values": x[:, 0, 0]},
    SPECTROGRAM: lambda x: {"input_values": x[:, 0].transpose(1, 2)},
}


def rows(layout: Layout, num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, *layout.shape, generator=torch.Generator().manual_seed(num_rows))


def inputs_of(family: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs as `transformers` calls them."""
    if family == "whisper":
        return {"input_features": x[:, 0]}
    layout = FAMILIES[family][0]
    return _INPUTS[layout](x) if layout in _INPUTS else {"pixel_values": x}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vector_is_that_of_transformers(family: str, tmp_path: Path):
    layout, options = FAMILIES[family]
    network = build(save_checkpoint(tmp_path, family, options), layout, 3).eval()
    x = rows(layout, 4)
    original = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    body = original.encoder if family == "whisper" else original
    with torch.no_grad():
        outputs = body(**inputs_of(family, x))
        states, mask = network.states(x)
        vectors = network.embed(x)
        torch.testing.assert_close(network(x), torch.cat([network(row) for row in x.split(1)]), atol=1e-5, rtol=1e-4)
    steps = outputs.last_hidden_state
    steps = steps.flatten(2).transpose(1, 2) if steps.dim() == 4 else steps
    torch.testing.assert_close(states, steps, atol=1e-5, rtol=1e-4)
    assert mask.all()
    if family in ("vit", "deit", "data2vec-vision"):  # their second dense layer is left out
        expected = steps[:, 0]
    else:
        pooled = getattr(outputs, "pooler_output", None)
        expected = steps.mean(1) if pooled is None else pooled.flatten(1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-4)
    groups = layer_groups(network)
    assert sorted(name for group in groups for name in group) == sorted(dict(network.named_parameters()))
    assert groups[-1] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_gets_a_gradient(family: str, tmp_path: Path):
    layout, options = FAMILIES[family]
    network = build(save_checkpoint(tmp_path, family, options), layout, 3)
    network(rows(layout, 4)).square().sum().backward()
    missing = [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    "family", ["vit", *(pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES if name != "vit")]
)
def test_its_file_equals_it(family: str, tmp_path: Path):
    layout, options = FAMILIES[family]
    network = build(save_checkpoint(tmp_path, family, options), layout, 3)
    assert export_onnx(network, rows(layout, 33), tmp_path / "network.onnx") <= TOLERANCE
    if family == "vit":
        assert fuse_attention(tmp_path / "network.onnx", tmp_path / "fused.onnx")
        operators = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
        assert operators.count("Attention") == 2


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_training_depends_on_the_generator_of_torch_alone(family: str, tmp_path: Path):
    layout, options = FAMILIES[family]
    network = build(save_checkpoint(tmp_path, family, options), layout, 3).train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(network(rows(layout, 4)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("family", "layout", "pooling", "problem"),
    [
        ("vit", LARGE, "auto", r"vit cannot read rows of shape \[3, 32, 32\]"),
        ("resnet", SPECTROGRAM, "auto", r"resnet cannot read rows of shape \[1, 16, 24\]"),
        ("whisper", Layout(kind="image", shape=(1, 16, 20)), "auto", "whisper cannot read rows"),
        ("vit", IMAGE, "last", "vit has no last token"),
        ("convnext", LARGE, "cls", "convnext has no first token"),
        ("vit", TOKENS, "auto", "vit reads pixel_values, but the rows are text"),
        ("vit_mae", IMAGE, "auto", "vit_mae leaves out random parts of each row"),
        ("mobilenet_v2", IMAGE, "auto", "the configuration of mobilenet_v2 has no hidden_size"),
    ],
)  # fmt: skip
def test_rows_of_other_shapes_are_refused(family, layout, pooling, problem, tmp_path: Path):
    options = FAMILIES[family][1] if family in FAMILIES else OTHERS[family]
    config = save_checkpoint(tmp_path, family, options).model_copy(update={"pooling": pooling})
    with pytest.raises(RecipeInvalid, match=problem):
        build(config, layout, 3)
