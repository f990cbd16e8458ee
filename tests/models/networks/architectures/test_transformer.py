"""The Transformer encoder: sizes, padding, positions, pruning."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.inference.runtime import create_session
from bloomery.models.networks.architectures.transformer import build
from bloomery.models.networks.blueprint import Blueprint, num_parameters
from bloomery.models.networks.config import Transformer
from bloomery.models.networks.layers.attention import QueryKeyValue, attend

TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=11)
PADDED = Layout(kind="sequence", shape=(9, 3), is_padded=True)
STEPS = Layout(kind="sequence", shape=(9, 3))
SOUND = Layout(kind="image", shape=(1, 4, 9))
LAYOUTS = {"tokens": TOKENS, "padded": PADDED, "steps": STEPS, "sound": SOUND}


def config_of(**options: object) -> Transformer:
    return Transformer.model_validate({"kind": "transformer", "width": 8, "num_heads": 2, **options})


def rows_of(layout: Layout, num_rows: int) -> torch.Tensor:
    if layout.kind == "tokens":
        return torch.randint(1, 11, (num_rows, *layout.shape)).float()
    x = torch.randn(num_rows, *layout.shape)
    if layout.is_padded:
        x[..., -1] = 1
    return x


def test_the_bert_base_config_has_its_published_number_of_parameters():
    """BERT's encoder without its pooler: BERT has two segments, and this network one more normalisation."""
    with torch.device("meta"):
        config = config_of(width=768, num_layers=12, num_heads=12, max_length=512)
        network = build(config, Layout(kind="tokens", shape=(128,), num_tokens=30522), 2)
    assert num_parameters(network) - num_parameters(network.head) == 109_482_240 - (768 + 1) * 768


def test_a_small_transformer_has_about_a_hundred_thousand_parameters():
    layout = Layout(kind="tokens", shape=(32,), num_tokens=1000)
    network = build(config_of(width=64, num_layers=1, num_heads=4, feed_forward=2.0), layout, 10)
    assert 95_000 < num_parameters(network) < 105_000


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
@pytest.mark.parametrize("layout", [TOKENS, PADDED], ids=["tokens", "padded"])
def test_padding_does_not_affect_outputs(layout, pooling):
    torch.manual_seed(0)
    network = build(config_of(pooling=pooling), layout, 2).eval()
    for num_valid in (1, 4, 8):
        x = rows_of(layout, 3)
        x[:, num_valid:] = 0
        if layout.is_padded:
            x[:, num_valid:, :-1] = torch.randn(3, 9 - num_valid, 2) * 1e3
        torch.testing.assert_close(network(x), network(x[:, :num_valid]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", [TOKENS, PADDED], ids=["tokens", "padded"])
@pytest.mark.parametrize("is_training", [True, False])
def test_rows_of_only_padding_have_finite_outputs_and_gradients(layout, is_training):
    network = build(config_of(), layout, 2).train(is_training)
    outputs = network(torch.zeros(2, *layout.shape))
    outputs.sum().backward()
    assert torch.isfinite(outputs).all()
    assert all(weight.grad is None or torch.isfinite(weight.grad).all() for weight in network.parameters())


@pytest.mark.parametrize("layout", [TOKENS, PADDED], ids=["tokens", "padded"])
def test_trimming_common_padding_does_not_change_the_output(layout):
    torch.manual_seed(0)
    network = build(config_of(dropout=0.0), layout, 2)
    x = rows_of(layout, 3)
    x[0, 2:], x[1, 5:], x[2, 1:] = 0, 0, 0
    lengths = []
    network.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    torch.testing.assert_close(network.train()(x), network.eval()(x), atol=1e-6, rtol=1e-5)
    assert lengths == [5, 9]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_order_of_steps_matters(layout):
    torch.manual_seed(0)
    network = build(config_of(), layout, 2).eval()
    x = rows_of(layout, 3)
    assert not torch.allclose(network(x), network(x.flip(-1 if layout.kind in ("tokens", "image") else 1)))


def test_without_positions_the_mean_ignores_the_order():
    network = build(config_of(), TOKENS, 2).eval()
    torch.nn.init.zeros_(network.positions.places.weight)
    x = rows_of(TOKENS, 3)
    torch.testing.assert_close(network(x), network(x.flip(1)), atol=1e-6, rtol=1e-5)


def test_a_row_longer_than_the_positions_is_an_error():
    network = build(config_of(max_length=12), TOKENS, 2).eval()
    assert network(torch.ones(1, 12)).shape == (1, 2)
    with pytest.raises(IndexError):
        network(torch.ones(1, 13))


def test_rows_that_are_not_sequences_are_refused():
    with pytest.raises(RecipeInvalid, match="are not sequences"):
        build(config_of(), Layout(kind="flat", shape=(5,)), 2)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_per_row_gradients_can_be_computed():
    """Private training needs them: the gradient of a row equals that of the row alone."""
    from opacus import GradSampleModule

    torch.manual_seed(0)
    network = build(config_of(dropout=0.0, num_layers=1), TOKENS, 2)
    x = rows_of(TOKENS, 3)
    gradients_of_rows = []
    for row in x.split(1):
        network.zero_grad()
        network(row).sum().backward()
        gradients_of_rows.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    network.zero_grad()
    wrapped = GradSampleModule(network, loss_reduction="sum")
    wrapped(x).sum().backward()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad_sample, torch.stack([row[name] for row in gradients_of_rows]), msg=name)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pruning_zero_hidden_units_does_not_change_the_outputs(layout):
    torch.manual_seed(0)
    config = config_of(feed_forward=1.5)
    network = build(config, layout, 3).eval()
    with torch.no_grad():
        for block in network.blocks:
            block.up.weight[[0, 3, 4, 7, 8, 11]] = 0
            block.up.bias[[0, 3, 4, 7, 8, 11]] = 0
            block.down.weight[:, [0, 3, 4, 7, 8, 11]] = 0
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    smaller, blueprint = prune_network(
        network, Blueprint(config=config, layout=layout, num_outputs=3), Pruning(ratio=0.5)
    )
    x = rows_of(layout, 4)
    torch.testing.assert_close(smaller(x), network(x), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    rebuilt = build(blueprint.config, layout, 3).eval()
    rebuilt.load_state_dict(smaller.state_dict())
    assert torch.equal(rebuilt(x), smaller(x))
    assert num_parameters(rebuilt) < num_parameters(network)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_pruning_any_share_keeps_a_unit_and_updates_the_config(share):
    config = config_of(feed_forward=3.0)
    blueprint = Blueprint(config=config, layout=TOKENS, num_outputs=2)
    pruned_network = prune_network(build(config, TOKENS, 2), blueprint, Pruning(ratio=share))
    network, pruned = prune_network(*pruned_network, Pruning(ratio=share))
    assert 1 <= network.blocks[0].up.out_features < 24
    build(pruned.config, TOKENS, 2).load_state_dict(network.state_dict())


def test_the_wide_part_is_the_sum_of_token_weights_and_initially_zero():
    torch.manual_seed(0)
    narrow, wide = (build(config_of(wide=is_wide, dropout=0.0), TOKENS, 2).eval() for is_wide in (False, True))
    wide.load_state_dict(narrow.state_dict(), strict=False)
    x = torch.tensor([[3.0, 5, 5, 0]])
    assert torch.equal(wide(x), narrow(x))
    with torch.no_grad():
        wide.wide.weights.weight[3], wide.wide.weights.weight[5] = torch.tensor([1.0, 2]), torch.tensor([0.5, 0])
    torch.testing.assert_close(wide(x) - narrow(x), torch.tensor([[2.0, 2]]) / 3**0.5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_convolution_reads_neighbouring_steps_and_no_padding(layout):
    torch.manual_seed(0)
    network = build(config_of(convolution=3), layout, 2).eval()
    x = rows_of(layout, 2)
    before = network(x)
    with torch.no_grad():
        network.neighbours.convolution.weight.zero_()
        network.neighbours.convolution.bias.zero_()
    torch.testing.assert_close(network(x), build_without_convolution(network, layout)(x))
    assert not torch.allclose(network(x), before)


def build_without_convolution(network, layout):
    network_without_convolution = build(config_of(), layout, 2).eval()
    network_without_convolution.load_state_dict(network.state_dict(), strict=False)
    return network_without_convolution


def test_invalid_options_are_refused():
    with pytest.raises(RecipeInvalid, match="`wide` needs tokens"):
        build(config_of(wide=True), STEPS, 2)
    with pytest.raises(ValidationError, match="kernel size must be odd"):
        config_of(convolution=4)


class SelfAttention(nn.Module):
    """Self-attention whose queries, keys and values are the input itself."""

    max_length = 6

    def __init__(self, *, is_causal: bool, is_masked: bool) -> None:
        super().__init__()
        self._is_causal, self._is_masked = is_causal, is_masked

    def forward(self, x_BTW: torch.Tensor) -> torch.Tensor:
        valid_BT = x_BTW[..., 0] > 0 if self._is_masked else None
        return attend(QueryKeyValue(x_BTW, x_BTW, x_BTW), 2, valid_BT, is_causal=self._is_causal).flatten(2).sum(1)


@pytest.mark.parametrize(("is_causal", "is_masked"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_attention_is_one_onnx_operator_and_exact_for_large_values(
    is_causal: bool, is_masked: bool, scale: float, tmp_path: Path
):
    """The products of large values differ by more than 10,000, ONNX Runtime's default mask value."""
    torch.manual_seed(0)
    x_BTW = torch.randn(32, 6, 4) * scale
    x_BTW[..., 0] = torch.where(torch.rand(32, 6) < 0.6, x_BTW[..., 0].abs(), -x_BTW[..., 0].abs())
    x_BTW[:, 0, 0] = x_BTW[:, 0, 0].abs()  # one step of each row is valid
    network = SelfAttention(is_causal=is_causal, is_masked=is_masked).eval()
    program = torch.onnx.export(network, (x_BTW[:2],), dynamo=True, verbose=False, input_names=["x"])
    assert program is not None
    onnx.save(program.model_proto, tmp_path / "attends.onnx")
    operators = Counter(node.op_type for node in program.model_proto.graph.node)
    assert operators["MultiHeadAttention"] == 1
    assert not operators.keys() & {"MatMul", "Softmax", "Transpose"}
    (outputs,) = create_session(tmp_path / "attends.onnx").run(None, {"x": x_BTW[:2].numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), network(x_BTW[:2]), rtol=1e-5, atol=1e-5 * scale)
