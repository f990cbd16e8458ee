"""A network of branches for mixed rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.compression.quantization.quantization_aware import add_fake_quantization
from bloomery.models.compression.weight_clustering import straight_through_clusters
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.fused import FusedNetwork, with_branches
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Custom, Fused, Mlp
from bloomery.models.training.layer_freezing import freeze_parameters

TABLE = Part(name="table", layout=Layout(kind="flat", shape=(2,)))
TEXT = Part(name="text", layout=Layout(kind="tokens", shape=(8,), num_tokens=20), is_optional=True)
STEPS = Part(name="steps", layout=Layout(kind="sequence", shape=(5, 3)))
LAYOUT = mixed_layout([TABLE, TEXT])


def build(layout: Layout = LAYOUT, **options) -> FusedNetwork:
    torch.manual_seed(0)
    config = Fused.model_validate({"kind": "fused", "width": 8, **options})
    return build_network(Blueprint(config=config, layout=layout, num_outputs=2))


def rows(num_rows: int) -> torch.Tensor:
    x = torch.randn(num_rows, *LAYOUT.shape)
    x[:, 2:10] = torch.randint(1, 20, (num_rows, 8)).float()
    x[:, 10] = 1
    return x


@pytest.mark.parametrize("join", ["gate", "concat", "attention", "sum"])
def test_the_values_of_a_missing_part_do_not_matter(join):
    network, x = build(join=join).eval(), rows(4)
    for head in network.join.heads or ():
        torch.nn.init.normal_(head.weight)  # they are zero at first
    x[:, 10] = 0
    noise = x.clone()
    noise[:, 2:10] = 7
    with torch.no_grad():
        assert torch.equal(network(x), network(noise))
        x[:, 10] = 1
        assert not torch.allclose(network(x), network(noise))


def test_a_part_that_has_learnt_nothing_changes_no_output_of_a_sum():
    network, x = build(join="sum", branches={"table": {"kind": "mlp"}, "text": {"kind": "rnn"}}), rows(64)
    table = [name for name, _ in network.named_parameters() if name.startswith(("branches.0.", "join.heads.0."))]
    freeze_parameters(network, ("branches.1", "join.heads.1", "join.stand_ins_DW"))
    optimizer = torch.optim.Adam([dict(network.named_parameters())[name] for name in table], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(network(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    network.eval()
    other_texts = x.clone()
    other_texts[:, 2:10] = 7
    with torch.no_grad():
        assert torch.equal(network(x), network(other_texts))
        assert network(x).std() > 0.1


def test_a_sum_computes_while_compression_has_replaced_its_linear_maps():
    network, x = build(join="sum").eval(), rows(4)
    for head in network.join.heads:
        torch.nn.init.normal_(head.weight)
    with torch.no_grad():
        expected = network(x)
        with straight_through_clusters(network, 256):
            torch.testing.assert_close(network(x), expected, atol=0.05, rtol=0)
        rounded = add_fake_quantization(network).train()
        assert rounded(x).shape == (4, 2)
        for number, head in enumerate(network.join.heads):
            network.join.heads[number] = torch.nn.Sequential(torch.nn.Identity(), head)
        assert torch.equal(network(x), expected)


def test_rows_without_a_part_are_predicted_from_the_others():
    """The label is in both parts; with dropped parts, each alone suffices, although no training row lacks one."""
    network = build(dropout=0, modality_dropout=0.3, branches={"table": {"kind": "mlp"}, "text": {"kind": "rnn"}})
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    x = rows(256)
    y = (torch.arange(256) % 2).long()
    x[:, 0] = y * 2 - 1.0
    x[:, 2] = 1 + y.float()
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()
    without_text, without_label = x.clone(), x.clone()
    without_text[:, 2:] = 0
    without_label[:, 0] = 0
    for x_of_case in (x, without_text):
        assert (network(x_of_case).argmax(1) == y).float().mean() > 0.95
    assert (network(without_label).argmax(1) == y).float().mean() > 0.9


def test_required_parts_have_no_stand_in_unless_they_are_dropped():
    layout = mixed_layout([TABLE, STEPS])
    assert build(layout).join.stand_ins_DW is None
    assert build(layout, modality_dropout=0.2).join.stand_ins_DW.shape == (2, 8)
    assert build().join.stand_ins_DW.shape == (1, 8)


def test_a_row_keeps_at_least_one_part():
    join = build(modality_dropout=0.99).join
    kept = join._drop_parts([None, torch.ones(500, 1, dtype=torch.bool)], torch.zeros(500, 8))
    assert torch.cat(kept, dim=1).any(1).all()


def test_default_branches_suit_the_parts():
    parts = [
        TABLE,
        TEXT,
        STEPS,
        Part(name="photo", layout=Layout(kind="image", shape=(3, 8, 8))),
        Part(name="sound", layout=Layout(kind="image", shape=(1, 6, 9))),
    ]
    layout = mixed_layout(parts)
    outputs = build(layout).eval()(torch.ones(3, *layout.shape))
    assert (outputs.shape, bool(torch.isfinite(outputs).all())) == ((3, 2), True)


def test_default_branches_become_a_part_of_the_config():
    config = with_branches(Fused(kind="fused"), LAYOUT)
    assert {name: branch.kind for name, branch in config.branches.items()} == {"table": "mlp", "text": "transformer"}
    named = Fused.model_validate({"kind": "fused", "branches": {"text": {"kind": "gpt"}, "table": {"kind": "mlp"}}})
    assert with_branches(named, LAYOUT) == named


@pytest.mark.parametrize(
    ("branches", "problem"),
    [
        ({"table": {"kind": "mlp"}}, "the branches are table, but a row has the parts table, text"),
        ({"table": {"kind": "mlp"}, "txt": {"kind": "rnn"}}, "the branches are table, txt"),
    ],
)
def test_branches_without_parts_are_refused(branches, problem):
    with pytest.raises(RecipeInvalid, match=problem):
        build(branches=branches)


def test_rows_of_one_kind_have_no_branches():
    with pytest.raises(RecipeInvalid, match="rows of kind flat have no parts"):
        build(TABLE.layout)


def test_the_onnx_file_has_an_input_for_each_part(tmp_path: Path):
    """Names of parts may be those of operators or outputs; a text is as long as the longest of its batch."""
    parts = [Part(name="logits", layout=TABLE.layout), Part(name="relu", layout=TEXT.layout, is_optional=True)]
    layout = mixed_layout(parts)
    network = build(layout, branches={"logits": {"kind": "mlp"}, "relu": {"kind": "gpt", "num_layers": 1}}).eval()
    x = rows(5)
    x[:, 6:10] = 0
    x[1:3, 2:] = 0
    export_onnx(network, x, tmp_path / "fused.onnx")
    session = create_session(tmp_path / "fused.onnx")
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes == {
        "logits_": ["batch", 2],
        "relu": ["batch", "length_1_at_most_8"],
        "relu.present": ["batch", 1],
    }
    expected = network(x).detach().numpy()
    np.testing.assert_allclose(run_session(session, x.numpy()), expected, atol=TOLERANCE)
    short = {"logits_": x[:, :2].numpy(), "relu": x[:, 2:6].numpy(), "relu.present": x[:, 10:].numpy()}
    np.testing.assert_allclose(session.run(None, short)[0], expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"join": "attention", "width": 6}, "width 6 is not divisible by 4 heads"),
        ({"num_heads": 2}, "`num_heads` needs `join: attention`"),
        ({"branches": {"text": {"kind": "boosted_trees"}}}, "boosted_trees"),
        ({"branches": {}}, "at least 1 item"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    with pytest.raises(ValidationError, match=reason):
        Fused.model_validate({"kind": "fused", **options})


def test_a_branch_counts_as_by_itself():
    branch = Custom(kind="custom", function="mine:network")
    config = Fused(kind="fused", branches={"text": branch, "table": Mlp(kind="mlp")})
    assert config.identity()["branches"] == {"text": branch.identity(), "table": Mlp(kind="mlp").identity()}
