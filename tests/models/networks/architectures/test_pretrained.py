"""Networks with a pretrained body: equal to `transformers`, rebuilt without the checkpoint, refused with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.pretrained import PretrainedText, build, layer_groups
from bloomery.models.networks.blueprint import Blueprint, build_network, read_network, write_network
from bloomery.models.networks.config import Model
from bloomery.models.networks.pretrained_config import Pretrained
from tests.models.networks.architectures.pretrained_networks import config_of, save_checkpoint

transformers = pytest.importorskip("transformers")

_NUM_TOKENS = 60
LAYOUT = Layout(kind="tokens", shape=(12,), num_tokens=_NUM_TOKENS + 1)
_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_LOCAL = {"local_attention": 8, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "mpnet"), _SIZES),
    "electra": {**_SIZES, "embedding_size": 16},
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {**_SIZES, **_LOCAL, "pad_token_id": 0, "num_hidden_layers": 4},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "eos_token_id": 0},
    "llama": {**_SIZES, "num_key_value_heads": 2},
    # Decoders with a window of fewer steps than the rows have.
    "mistral": {**_SIZES, "num_key_value_heads": 2, "sliding_window": 4},
    "gemma3_text": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "pad_token_id": 0},
    "modernbert-decoder": {**_SIZES, **_LOCAL, "local_attention": 4, "pad_token_id": 0, "num_hidden_layers": 4},
    # Attention with a soft cap, with sinks, and with a class of its own.
    "gemma2": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": 1.0, "pad_token_id": 0},
    "gpt_oss": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "falcon": {**_SIZES, "num_kv_heads": 4},
}
OTHERS: dict[str, dict[str, Any]] = {
    "dpr": _SIZES,
    "canine": {name: size for name, size in _SIZES.items() if name != "vocab_size"},
}
EAGER = ("mpnet", "gemma2", "gpt_oss", "falcon")


def rows(num_rows: int, length: int = 12) -> torch.Tensor:
    """Rows of different lengths, each with a token."""
    random = torch.Generator().manual_seed(num_rows)
    x = torch.randint(1, _NUM_TOKENS + 1, (num_rows, length), generator=random).float()
    return x * (torch.arange(length) < torch.randint(1, length + 1, (num_rows, 1), generator=random))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return save_checkpoint(tmp_path_factory.mktemp("bert"), "bert", _SIZES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_of_transformers(family: str, tmp_path: Path):
    network = build(save_checkpoint(tmp_path, family, FAMILIES[family]), LAYOUT, 3).eval()
    assert (network.body.config._attn_implementation == "eager") == (family in EAGER)
    x = rows(6)
    original = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = (x.long() - 1).where(x > 0, torch.tensor(original.config.pad_token_id or 0))
    with torch.no_grad():
        expected = original(input_ids=ids, attention_mask=(x > 0).long()).last_hidden_state
        states, mask = network.states(x)
        longer = network(torch.nn.functional.pad(x, (0, 7)))
        torch.testing.assert_close(longer, network(x), atol=1e-5, rtol=1e-4)
    assert torch.equal(mask, x > 0)
    torch.testing.assert_close(states[x > 0], expected[x > 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES if name not in ("bert", "gpt_oss"))],
)
def test_the_file_has_one_operator_per_layer_for_attention(family: str, tmp_path: Path):
    network = build(save_checkpoint(tmp_path, family, FAMILIES[family]), LAYOUT, 3)
    assert export_onnx(network, rows(33), tmp_path / "network.onnx") <= TOLERANCE
    operators = [node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node]
    num_layers = network.body.config.num_hidden_layers
    assert operators.count("MultiHeadAttention") == (0 if family in EAGER else num_layers)
    if family == "bert":
        assert_padding_is_left_out(tmp_path / "network.onnx")
        assert fuse_attention(tmp_path / "network.onnx", tmp_path / "fused.onnx")
        operators = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
        assert operators.count("Attention") == num_layers
        assert not {"Transpose", "Reshape"} & set(operators)


class Recorder:
    """Records the shapes of the rows that a session gets."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.get_inputs = session.get_inputs
        self.shapes: list[Any] = []

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.shapes.append(inputs["x"].shape)
        return [inputs["x"][:, :1]]


def assert_padding_is_left_out(path: Path) -> None:
    session = create_session(path)
    recorder = Recorder(session)
    x = np.zeros((2, 12), np.float32)
    x[0, :5], x[1, :3] = 4, 7
    run_session(recorder, x)
    run_session(recorder, np.zeros((2, 12), np.float32))
    assert recorder.shapes == [(2, 5), (2, 1)]
    np.testing.assert_allclose(run_session(session, x), session.run(None, {"x": x})[0], atol=TOLERANCE)
    many = rows(150).numpy()
    np.testing.assert_allclose(run_session(session, many), session.run(None, {"x": many})[0], atol=TOLERANCE)
    recorder.shapes.clear()
    run_session(recorder, many)
    assert [shape[0] for shape in recorder.shapes] == [50, 50, 50]
    assert recorder.shapes[0][1] < recorder.shapes[-1][1] == 12


@pytest.mark.parametrize(
    ("family", "pooling", "expected"),
    [("bert", "auto", "mean"), ("gpt2", "auto", "last"), ("bert", "cls", "first"), ("bert", "last", "last")],
)
def test_the_pooled_vector_is_that_of_the_recipe(family, pooling, expected, tmp_path: Path):
    config = save_checkpoint(tmp_path, family, FAMILIES[family]).model_copy(update={"pooling": pooling})
    network = build(config, LAYOUT, 3).eval()
    x = rows(5)
    lengths = (x > 0).sum(1)
    with torch.no_grad():
        states, _ = network.states(x)
        vectors = network.embed(x)
    for row, length in enumerate(lengths):
        mine = {"mean": states[row, :length].mean(0), "first": states[row, 0], "last": states[row, length - 1]}
        torch.testing.assert_close(vectors[row], mine[expected], atol=1e-5, rtol=1e-4)


def test_a_row_of_padding_has_a_finite_output(bert: Pretrained):
    with torch.no_grad():
        assert torch.isfinite(build(bert, LAYOUT, 3).eval()(torch.zeros(2, 12))).all()


def test_a_trained_network_is_rebuilt_without_the_checkpoint(tmp_path: Path):
    config = save_checkpoint(tmp_path / "checkpoint", "bert", _SIZES)
    blueprint = Blueprint(config=config, layout=LAYOUT, num_outputs=3)
    network = build_network(blueprint).eval()
    write_network(network, blueprint, tmp_path / "weights", tmp_path / "network.json")
    shutil.rmtree(tmp_path / "checkpoint")
    assert str(tmp_path) not in (tmp_path / "network.json").read_text()
    restored, _ = read_network(tmp_path / "weights", tmp_path / "network.json")
    with torch.no_grad():
        assert torch.equal(restored(rows(4)), network(rows(4)))


def test_the_weights_of_a_task_are_left_out_and_the_heads_are_new(tmp_path: Path):
    torch.manual_seed(0)
    configuration = transformers.AutoConfig.for_model("bert", **_SIZES)
    classifier = transformers.AutoModelForSequenceClassification.from_config(configuration)
    classifier.save_pretrained(tmp_path)
    network = build(config_of(tmp_path), LAYOUT, 3)
    embeddings = classifier.bert.embeddings.word_embeddings.weight
    assert torch.equal(network.body.embeddings.word_embeddings.weight, embeddings)
    assert network.head.weight.shape == (3, 32)
    assert {name.split(".")[0] for name in network.state_dict()} == {"body", "head"}
    assert not any("pooler" in name for name in network.state_dict())


def test_layers_are_grouped_from_the_embeddings_to_the_head(bert: Pretrained):
    network = build(bert, LAYOUT, 3)
    groups = layer_groups(network)
    assert [name for group in groups for name in group] == [name for name, _ in network.named_parameters()]
    assert all(name.startswith("body.embeddings.") for name in groups[0])
    assert all(name.startswith("body.encoder.layer.1.") for name in groups[2])
    assert groups[3] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("is_mismatched", [False, True], ids=["missing", "of another shape"])
def test_incomplete_weights_are_refused(is_mismatched: bool, tmp_path: Path):
    config = save_checkpoint(tmp_path, "bert", _SIZES)
    weights = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    weights[name] = weights[name][:, :8].contiguous()
    if not is_mismatched:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    problem = "have other shapes than config.json states" if is_mismatched else "are not in the checkpoint"
    with pytest.raises(RecipeInvalid, match=f"1 weights of bert {problem}: {name}"):
        build(config, LAYOUT, 3)


def test_a_damaged_file_is_refused(tmp_path: Path):
    config = save_checkpoint(tmp_path, "bert", _SIZES)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RecipeInvalid, match="bert cannot be built"):
        build(config, LAYOUT, 3)


def test_a_network_that_reads_the_vector_of_padding_is_refused(tmp_path: Path):
    sizes = {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1}
    config = save_checkpoint(tmp_path, "mobilebert", {**_SIZES, **sizes})
    build(config, LAYOUT, 3)  # whose vector of padding is 0
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0] = 1.0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeInvalid, match="the states of mobilebert depend on the padding of a row"):
        build(config, LAYOUT, 3)


@pytest.mark.parametrize(
    ("model_type", "layout", "problem"),
    [
        ("t5", LAYOUT, "t5 consists of an encoder and a decoder"),
        ("clip", LAYOUT, "clip consists of several networks"),
        ("vit", LAYOUT, "vit reads pixel_values, but the rows are text"),
        ("bert", Layout(kind="flat", shape=(3,)), "the rows are flat"),
        ("bert", LAYOUT.model_copy(update={"num_tokens": 99}), "the tokenizer has 98 tokens, but the network 64"),
        ("bert", LAYOUT.model_copy(update={"shape": (41,)}), "a text has 41 tokens, but bert has 40 positions"),
        ("roberta", LAYOUT.model_copy(update={"shape": (39,)}), "a text has 39 tokens, but roberta has 38 positions"),
        ("nothing", LAYOUT, "transformers cannot read config.json of nothing"),
        ("fnet", LAYOUT, "the states of fnet depend on the padding of a row"),
        ("nystromformer", LAYOUT, "the states of nystromformer depend on the padding of a row"),
        ("canine", LAYOUT, "the configuration of canine has no vocab_size"),
        ("dpr", LAYOUT, "dpr cannot read a row of tokens alone: .*last_hidden_state"),
    ],
)
def test_an_architecture_that_does_not_fit_the_rows_is_refused(model_type, layout, problem):
    options = FAMILIES.get(model_type, OTHERS.get(model_type, {}))
    config = Pretrained(kind="pretrained", checkpoint="x", config={"model_type": model_type, **options})
    with pytest.raises(RecipeInvalid, match=problem):
        build(config, layout, 3)


def test_a_padding_token_beyond_the_vocabulary_is_refused():
    document = {"model_type": "bert", **_SIZES, "pad_token_id": 64}
    with pytest.raises(RecipeInvalid, match=r"bert cannot be built: .*num_embeddings"):
        build(Pretrained(kind="pretrained", checkpoint="x", config=document), LAYOUT, 3)


def test_an_attention_with_unknown_options_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch):
    attention = transformers.models.bert.modeling_bert.BertSelfAttention
    original = attention.forward

    def forward(self: torch.nn.Module, *inputs: Any, **options: Any) -> Any:
        return original(self, *inputs, **options, biases=torch.ones(1))

    monkeypatch.setattr(attention, "forward", forward)
    network = build(Pretrained(kind="pretrained", checkpoint="x", config={"model_type": "bert", **_SIZES}), LAYOUT, 3)
    assert network.body.config._attn_implementation == "eager"


def test_recomputed_layers_have_the_same_gradients(bert: Pretrained):
    gradients = []
    for is_recomputed in (False, True):
        torch.manual_seed(1)
        network = build(bert.model_copy(update={"gradient_checkpointing": is_recomputed}), LAYOUT, 3)
        torch.manual_seed(2)
        network(rows(4)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def test_equal_files_are_one_network_wherever_they_are(bert: Pretrained):
    elsewhere = bert.model_copy(
        update={"checkpoint": "hf://a/b", "resolved": bert.resolved.model_copy(update={"folder": "/elsewhere"})}
    )
    assert bert.identity() == elsewhere.identity()
    other = bert.resolved.model_copy(update={"files": {"model.safetensors": "1" * 64}})
    assert bert.identity() != bert.model_copy(update={"resolved": other}).identity()


def test_a_checkpoint_of_the_kind_huggingface_is_refused_with_the_new_spelling():
    with pytest.raises(ValidationError, match=r"\{kind: pretrained, checkpoint: models/mine\}"):
        TypeAdapter(Model).validate_python({"kind": "huggingface", "checkpoint": "models/mine"})


def test_the_network_declares_its_embedding_and_its_positions(bert: Pretrained):
    network = build(bert, LAYOUT, 3)
    assert isinstance(network, PretrainedText)
    assert network.token_embedding() is network.body.embeddings.word_embeddings
    assert network.max_length == 40
