"""Imports of ONNX files that Keras and PyTorch export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.inference.runtime import INPUT, OUTPUT, create_session, run_session, softmax
from bloomery.models.onnx_import.graph import choose_quantization, count_weights, read_onnx
from bloomery.models.onnx_import.importer import SessionModule, import_network
from tests.models.onnx_import.onnx_files import (
    FLAT,
    FLOAT,
    GREY,
    IMAGE,
    INT32,
    SEQUENCE,
    TOKENS,
    Node,
    dense,
    end,
    logits,
    operators,
    rows_of,
    run_original,
    weight,
    write_model,
)

# Outputs


def test_a_final_softmax_is_removed(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Softmax")), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    assert "Softmax" not in operators(imported.model)
    assert imported.changes == ["Softmax removed"]
    # Tensors of the file with the names of our input and output are not mistaken for them.
    assert logits(imported.model, x) == pytest.approx(x @ weight(4, 3) + weight(3), abs=1e-5)
    assert softmax(logits(imported.model, x)) == pytest.approx(run_original(path, x), abs=1e-6)
    assert imported.error < 1e-6


def test_the_adapted_network_has_our_names_and_types_and_a_dynamic_batch(tmp_path: Path) -> None:
    model = import_network(dense(tmp_path / "n.onnx", end("Softmax")), FLAT, "classification", 3, rows_of(FLAT)).model
    (input_info,), (output_info,) = model.graph.input, model.graph.output
    assert (input_info.name, output_info.name) == (INPUT, OUTPUT)
    sizes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (input_info, output_info)
    ]
    assert sizes == [["batch", 4], ["batch", 3]]
    assert logits(model, rows_of(FLAT, 77)).shape == (77, 3)
    onnx.checker.check_model(model, full_check=True)


def test_a_softmax_with_further_consumers_stays(tmp_path: Path) -> None:
    ends: list[Node] = [("Softmax", ["h"], ["s"], {}), ("MatMul", ["s", "V"], ["Identity:0"], {})]
    path, x = dense(tmp_path / "n.onnx", *ends, weights={"V": weight(3, 3) * 9}), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    assert imported.changes == []
    assert logits(imported.model, x) == pytest.approx(run_original(path, x), abs=1e-6)


def test_probabilities_without_a_softmax_get_a_logarithm(tmp_path: Path) -> None:
    total: list[Node] = [
        ("Exp", ["h"], ["e"], {}),
        ("ReduceSum", ["e", "axis"], ["t"], {}),
        ("Div", ["e", "t"], ["Identity:0"], {}),
    ]
    path, x = dense(tmp_path / "n.onnx", *total, weights={"axis": np.array([1], np.int64)}), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    assert imported.changes == ["logarithm of the probabilities"]
    assert softmax(logits(imported.model, x)) == pytest.approx(run_original(path, x), abs=1e-6)


def test_a_probability_of_0_has_a_finite_logarithm(tmp_path: Path) -> None:
    ends: list[Node] = [
        ("ArgMax", ["h"], ["a"], {"axis": 1, "keepdims": 0}),
        ("OneHot", ["a", "depth", "values"], ["Identity:0"], {}),
    ]
    weights = {"depth": np.array(3, np.int64), "values": np.array([0, 1], np.float32)}
    path, x = dense(tmp_path / "n.onnx", *ends, weights=weights), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    assert np.isfinite(logits(imported.model, x)).all()
    assert softmax(logits(imported.model, x)) == pytest.approx(run_original(path, x), abs=1e-6)


def test_sigmoids_of_several_classes_are_normalised(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Sigmoid")), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    sigmoids = run_original(path, x)
    assert softmax(logits(imported.model, x)) == pytest.approx(sigmoids / sigmoids.sum(axis=1, keepdims=True), abs=1e-6)


@pytest.mark.parametrize("shape", [[-1, 1], [-1]], ids=["column", "vector"])
def test_one_sigmoid_becomes_logits_of_two_classes(tmp_path: Path, shape: list[int]) -> None:
    ends: list[Node] = [("Sigmoid", ["h"], ["s"], {}), ("Reshape", ["s", "shape"], ["Identity:0"], {})]
    weights = {"shape": np.array(shape, np.int64)}
    path, x = (
        dense(tmp_path / "n.onnx", *ends, outputs=1, weights=weights, width=["unk__1", 1][: len(shape)]),
        rows_of(FLAT),
    )
    without_reshape = dense(tmp_path / "plain.onnx", end("Sigmoid"), outputs=1)
    for source in (path, without_reshape):
        imported = import_network(source, FLAT, "classification", 2, x)
        share = run_original(source, x).reshape(-1)
        assert softmax(logits(imported.model, x)) == pytest.approx(np.stack([1 - share, share], axis=1), abs=1e-5)
        assert (logits(imported.model, x)[:, 0] == 0).all()
    assert "Sigmoid" not in operators(import_network(without_reshape, FLAT, "classification", 2, x).model)


def test_a_single_logit_belongs_to_the_second_class(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Identity"), outputs=1), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 2, x)
    expected = 1 / (1 + np.exp(-run_original(path, x)[:, 0].astype(np.float64)))
    assert softmax(logits(imported.model, x))[:, 1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ending", ["Identity", "Sigmoid"])
def test_outputs_of_a_regression_do_not_change(tmp_path: Path, ending: str) -> None:
    path, x = dense(tmp_path / "n.onnx", end(ending), outputs=1), rows_of(FLAT)
    imported = import_network(path, FLAT, "regression", 1, x)
    assert logits(imported.model, x) == pytest.approx(run_original(path, x), abs=1e-6)


def test_half_precision_outputs_become_float32(tmp_path: Path) -> None:
    ends: list[Node] = [("Softmax", ["h"], ["s"], {}), ("Cast", ["s"], ["Identity:0"], {"to": TensorProto.FLOAT16})]
    path, x = dense(tmp_path / "n.onnx", *ends, output_dtype=TensorProto.FLOAT16), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    assert imported.changes == ["logarithm of the probabilities"]  # rounding to 16 bits is part of the network
    assert logits(imported.model, x).dtype == np.float32
    cast: list[Node] = [("Cast", ["h"], ["Identity:0"], {"to": TensorProto.FLOAT16})]
    regression = dense(tmp_path / "m.onnx", *cast, outputs=1, output_dtype=TensorProto.FLOAT16)
    assert logits(import_network(regression, FLAT, "regression", 1, x).model, x).dtype == np.float32


# Inputs


def convolution(path: Path, shape: list[Any], *, is_last: bool) -> Path:
    """A convolution and a global mean, with channels first or last."""
    source = "t" if is_last else "keras_tensor"
    transposition: list[Node] = [("Transpose", ["keras_tensor"], ["t"], {"perm": [0, 3, 1, 2]})] if is_last else []
    nodes: list[Node] = [
        *transposition,
        ("Conv", [source, "K"], ["c"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("GlobalAveragePool", ["r"], ["g"], {}),
        ("Flatten", ["g"], ["h"], {}),
        end("Softmax"),
    ]
    return write_model(path, shape, nodes, {"K": weight(3, 1 if 1 in shape else 3, 2, 3)})


def test_channels_last_inputs_are_transposed(tmp_path: Path) -> None:
    x = rows_of(IMAGE)
    last = convolution(tmp_path / "last.onnx", ["unk__0", 4, 5, 3], is_last=True)
    first = convolution(tmp_path / "first.onnx", ["unk__0", 3, 4, 5], is_last=False)
    last_imported, first_imported = (import_network(path, IMAGE, "classification", 3, x) for path in (last, first))
    assert (last_imported.changes, first_imported.changes) == (
        ["channels moved to the end", "Softmax removed"],
        ["Softmax removed"],
    )
    assert logits(last_imported.model, x) == pytest.approx(logits(first_imported.model, x), abs=1e-6)
    assert softmax(logits(last_imported.model, x)) == pytest.approx(
        run_original(last, x.transpose(0, 2, 3, 1)), abs=1e-6
    )


def test_ambiguous_channels_need_the_recipe(tmp_path: Path) -> None:
    cube, x = Layout(kind="image", shape=(3, 3, 3)), rows_of(Layout(kind="image", shape=(3, 3, 3)))
    path = convolution(tmp_path / "n.onnx", [None, 3, 3, 3], is_last=True)
    with pytest.raises(RecipeInvalid, match="can be first or last") as caught:
        import_network(path, cube, "classification", 3, x)
    assert "channels: last" in caught.value.remedy
    imported = import_network(path, cube, "classification", 3, x, channels="last")
    assert softmax(logits(imported.model, x)) == pytest.approx(run_original(path, x.transpose(0, 2, 3, 1)), abs=1e-6)
    channels_first = import_network(path, cube, "classification", 3, x, channels="first")
    assert softmax(logits(channels_first.model, x)) == pytest.approx(run_original(path, x), abs=1e-6)


@pytest.mark.parametrize("shape", [[4, 5, 1], [4, 5], [1, 4, 5], [20], [None, 5]], ids=str)
def test_a_single_channel_may_have_any_position(tmp_path: Path, shape: list[Any]) -> None:
    nodes: list[Node] = [("Reshape", ["keras_tensor", "to"], ["f"], {}), ("MatMul", ["f", "W"], ["Identity:0"], {})]
    weights = {"to": np.array([-1, 20], np.int64), "W": weight(20, 3)}
    path, x = write_model(tmp_path / "n.onnx", ["unk__0", *shape], nodes, weights), rows_of(GREY)
    imported = import_network(path, GREY, "classification", 3, x)
    assert logits(imported.model, x) == pytest.approx(x.reshape(-1, 20) @ weight(20, 3), abs=1e-4)


def test_a_sequence_is_read_as_steps_or_as_one_vector(tmp_path: Path) -> None:
    x = rows_of(SEQUENCE)
    flat = dense(tmp_path / "flat.onnx", end("Identity"), inputs=12)
    assert import_network(flat, SEQUENCE, "classification", 3, x).changes == ["rows reshaped to [12]"]
    steps: list[Node] = [
        ("Transpose", ["keras_tensor"], ["t"], {"perm": [1, 0, 2]}),
        ("LSTM", ["t", "W", "R"], ["", "l"], {"hidden_size": 3}),
        ("Squeeze", ["l", "axis"], ["Identity:0"], {}),
    ]
    weights = {"W": weight(1, 12, 2), "R": weight(1, 12, 3), "axis": np.array([0], np.int64)}
    path = write_model(tmp_path / "lstm.onnx", ["unk__0", None, 2], steps, weights)
    imported = import_network(path, SEQUENCE, "classification", 3, x)
    assert imported.changes == []
    assert logits(imported.model, x) == pytest.approx(run_original(path, x), abs=1e-6)


def embedding_mean(path: Path, num_tokens: int, dtype: int = INT32) -> Path:
    """The mean of an embedding's vectors."""
    source: list[Node] = [] if dtype == INT32 else [("Cast", ["keras_tensor"], ["i"], {"to": INT32})]
    nodes: list[Node] = [
        *source,
        ("Gather", ["E", "i" if source else "keras_tensor"], ["g"], {}),
        ("ReduceMean", ["g"], ["Identity:0"], {"axes": [1], "keepdims": 0}),
    ]
    return write_model(path, ["unk__0", 6], nodes, {"E": weight(num_tokens, 3)}, dtype=dtype)


@pytest.mark.parametrize("dtype", [INT32, TensorProto.FLOAT], ids=["int32", "float32"])
def test_tokens_are_cast_to_the_integers_of_the_file(tmp_path: Path, dtype: int) -> None:
    path, x = embedding_mean(tmp_path / "n.onnx", 9, dtype), rows_of(TOKENS)
    imported = import_network(path, TOKENS, "classification", 3, x)
    assert imported.changes == (["rows cast to int32"] if dtype == INT32 else [])
    assert logits(imported.model, x) == pytest.approx(weight(9, 3)[x.astype(int)].mean(axis=1), abs=1e-5)


def test_an_embedding_without_the_last_token_is_refused_even_if_no_row_has_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="fails on") as caught:
        import_network(
            embedding_mean(tmp_path / "n.onnx", 8), TOKENS, "classification", 3, np.minimum(rows_of(TOKENS), 7)
        )
    assert "tokens below 9" in caught.value.required


def test_a_row_of_padding_needs_a_finite_output(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Gather", ["E", "keras_tensor"], ["g"], {}),
        ("ReduceSum", ["g", "axis"], ["s"], {"keepdims": 0}),
        ("Cast", ["keras_tensor"], ["f"], {"to": FLOAT}),
        ("ReduceMax", ["f"], ["there"], {"axes": [1], "keepdims": 1}),
        ("Div", ["s", "there"], ["Identity:0"], {}),
    ]
    weights = {"E": np.abs(weight(9, 3)), "axis": np.array([1], np.int64)}
    path = write_model(tmp_path / "n.onnx", ["unk__0", 6], nodes, weights, dtype=INT32)
    with pytest.raises(RecipeInvalid, match="is not finite"):
        import_network(path, TOKENS, "classification", 3, rows_of(TOKENS))


def test_weights_listed_as_inputs_by_older_files_are_not_inputs(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Identity")), rows_of(FLAT)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("W", FLOAT, [4, 3]))
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_network(tmp_path / "m.onnx", FLAT, "classification", 3, x)
    assert logits(imported.model, x) == pytest.approx(run_original(path, x), abs=1e-6)


# Complete networks


def test_a_pytorch_export_needs_no_changes(tmp_path: Path, exported: Path, splits: Any) -> None:
    layout, x = Layout(kind="image", shape=(1, 8, 8)), splits.test.x.numpy()
    imported = import_network(exported, layout, "classification", 10, x)
    assert imported.changes == []
    assert logits(imported.model, x) == pytest.approx(run_session(create_session(exported), x), abs=1e-6)
    assert torch.equal(
        SessionModule(create_session(exported))(splits.test.x),
        torch.from_numpy(run_session(create_session(exported), x)),
    )


def test_the_bytes_depend_on_the_network_only(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Softmax")), rows_of(FLAT)
    annotated = onnx.load(path)
    annotated.doc_string = annotated.graph.doc_string = annotated.graph.node[0].doc_string = "/home/someone/train.py"
    annotated.producer_version = "9"
    annotated.metadata_props.add(key="when", value="now")
    onnx.save(annotated, tmp_path / "m.onnx")
    models = [import_network(source, FLAT, "classification", 3, x).model for source in (path, tmp_path / "m.onnx")]
    assert models[0].SerializeToString() == models[1].SerializeToString()


def test_unused_nodes_are_removed_but_not_those_that_loops_read(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "logits"], ["sum"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, [None, 3]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, [None, 3]),
        ],
    )
    nodes: list[Node] = [
        ("Identity", ["h"], ["logits"], {}),  # read by the loop only, with the name of our output
        ("MatMul", ["h", "unused"], ["nowhere"], {}),
        ("Loop", ["turns", "", "h"], ["Identity:0"], {"body": body}),
    ]
    weights = {"unused": weight(3, 7), "turns": np.array(2, np.int64)}
    path, x = dense(tmp_path / "n.onnx", *nodes, weights=weights), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    assert logits(imported.model, x) == pytest.approx(3 * (x @ weight(4, 3) + weight(3)), abs=1e-4)
    assert "unused" not in {tensor.name for tensor in imported.model.graph.initializer}
    assert count_weights(imported.model) == 4 * 3 + 3


def test_erfc_of_tensorflow_is_replaced_by_erf(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Erfc")), rows_of(FLAT)
    imported = import_network(path, FLAT, "classification", 3, x)
    expected = torch.special.erfc(torch.from_numpy(x @ weight(4, 3) + weight(3))).numpy()
    assert logits(imported.model, x) == pytest.approx(expected, abs=1e-6)


def test_convolutional_networks_are_quantized_statically(tmp_path: Path, exported: Path) -> None:
    assert choose_quantization(onnx.load(exported)) == "static"
    assert choose_quantization(read_onnx(dense(tmp_path / "n.onnx", end("Identity")))) == "dynamic"
    nodes: list[Node] = [
        ("Conv", ["keras_tensor", "K"], ["c"], {}),
        ("Softmax", ["c"], ["s"], {}),
        ("Identity", ["s"], ["Identity:0"], {}),
    ]
    path = write_model(tmp_path / "m.onnx", [None, 3, 4, 5], nodes, {"K": weight(2, 3, 1, 1)}, width=[None] * 4)
    assert choose_quantization(read_onnx(path)) == "dynamic"
