"""ONNX files in the manners of Keras and PyTorch, made to answer as our own networks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.inference.runtime import INPUT, OUTPUT, create_session, run_session, softmax
from bloomery.models.onnx_import.graph import choose_quantization, count_weights, read_onnx
from bloomery.models.onnx_import.importer import SessionModule, import_network

FLAT = Layout(kind="flat", shape=(4,))
IMAGE = Layout(kind="image", shape=(3, 4, 5))
GREY = Layout(kind="image", shape=(1, 4, 5))
SEQUENCE = Layout(kind="sequence", shape=(6, 2))
TOKENS = Layout(kind="tokens", shape=(6,), num_tokens=9)
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
Node = tuple[str, list[str], list[str], dict[str, Any]]


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def made(
    path: Path,
    shape: list[Any],
    nodes: list[Node],
    weights: dict[str, np.ndarray],
    *,
    dtype: int = FLOAT,
    answers: int = FLOAT,
    width: list[Any] | None = None,
    opset: int = 15,
) -> Path:
    """A file whose input is called `keras_tensor`, as Keras calls it, and whose last node gives `Identity:0`."""
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, outputs, **more) for operator, inputs, outputs, more in nodes],
        "network",
        [helper.make_tensor_value_info("keras_tensor", dtype, shape)],
        [helper.make_tensor_value_info("Identity:0", answers, width or ["unk__1", None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def dense(
    path: Path, *ends: Node, shape: list[Any] | None = None, outputs: int = 3, inputs: int = 4, **more: Any
) -> Path:
    """x W + b, called `h`, and then `ends`."""
    nodes: list[Node] = [("MatMul", ["keras_tensor", "W"], ["x"], {}), ("Add", ["x", "b"], ["h"], {})]
    weights = {"W": weight(inputs, outputs), "b": weight(outputs)} | more.pop("weights", {})
    return made(path, shape or ["unk__0", inputs], [*nodes, *ends], weights, **more)


def end(operator: str, **more: Any) -> Node:
    return (operator, ["h"], ["Identity:0"], more)


def rows_of(layout: Layout, num: int = 40) -> np.ndarray:
    drawn = np.random.default_rng(1)
    if layout.num_tokens is not None:
        return drawn.integers(0, layout.num_tokens, (num, *layout.shape)).astype(np.float32)
    return drawn.normal(size=(num, *layout.shape)).astype(np.float32)


def asked(path: Path, x: np.ndarray) -> np.ndarray:
    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return runtime.run(None, {runtime.get_inputs()[0].name: x})[0]


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run_session(create_session(model.SerializeToString()), x)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# What comes out


def test_a_softmax_at_the_end_is_cut_off(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Softmax")), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    assert "Softmax" not in operators(found.model)
    assert found.changes == ["Softmax cut off"]
    # Tensors within the file that were called as our input and output are not mistaken for them.
    assert logits(found.model, x) == pytest.approx(x @ weight(4, 3) + weight(3), abs=1e-5)
    assert softmax(logits(found.model, x)) == pytest.approx(asked(path, x), abs=1e-6)
    assert found.error < 1e-6


def test_the_file_has_our_names_and_types_and_a_free_batch(tmp_path: Path) -> None:
    model = import_network(dense(tmp_path / "n.onnx", end("Softmax")), FLAT, "classification", 3, rows_of(FLAT)).model
    (given,), (answered,) = model.graph.input, model.graph.output
    assert (given.name, answered.name) == (INPUT, OUTPUT)
    sizes = [[one.dim_param or one.dim_value for one in v.type.tensor_type.shape.dim] for v in (given, answered)]
    assert sizes == [["batch", 4], ["batch", 3]]
    assert logits(model, rows_of(FLAT, 77)).shape == (77, 3)
    onnx.checker.check_model(model, full_check=True)


def test_a_softmax_that_others_read_is_left_where_it_is(tmp_path: Path) -> None:
    ends: list[Node] = [("Softmax", ["h"], ["s"], {}), ("MatMul", ["s", "V"], ["Identity:0"], {})]
    path, x = dense(tmp_path / "n.onnx", *ends, weights={"V": weight(3, 3) * 9}), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    assert found.changes == []
    assert logits(found.model, x) == pytest.approx(asked(path, x), abs=1e-6)


def test_of_probabilities_without_a_softmax_the_logarithm_is_taken(tmp_path: Path) -> None:
    total: list[Node] = [
        ("Exp", ["h"], ["e"], {}),
        ("ReduceSum", ["e", "axis"], ["t"], {}),
        ("Div", ["e", "t"], ["Identity:0"], {}),
    ]
    path, x = dense(tmp_path / "n.onnx", *total, weights={"axis": np.array([1], np.int64)}), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    assert found.changes == ["logarithm of the probabilities"]
    assert softmax(logits(found.model, x)) == pytest.approx(asked(path, x), abs=1e-6)


def test_a_probability_of_0_has_a_finite_logarithm(tmp_path: Path) -> None:
    ends: list[Node] = [
        ("ArgMax", ["h"], ["a"], {"axis": 1, "keepdims": 0}),
        ("OneHot", ["a", "depth", "values"], ["Identity:0"], {}),
    ]
    told = {"depth": np.array(3, np.int64), "values": np.array([0, 1], np.float32)}
    path, x = dense(tmp_path / "n.onnx", *ends, weights=told), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    assert np.isfinite(logits(found.model, x)).all()
    assert softmax(logits(found.model, x)) == pytest.approx(asked(path, x), abs=1e-6)


def test_sigmoids_of_several_classes_become_shares(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Sigmoid")), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    each = asked(path, x)
    assert softmax(logits(found.model, x)) == pytest.approx(each / each.sum(axis=1, keepdims=True), abs=1e-6)


@pytest.mark.parametrize("shape", [[-1, 1], [-1]], ids=["column", "vector"])
def test_one_sigmoid_becomes_logits_of_two_classes(tmp_path: Path, shape: list[int]) -> None:
    ends: list[Node] = [("Sigmoid", ["h"], ["s"], {}), ("Reshape", ["s", "shape"], ["Identity:0"], {})]
    told = {"shape": np.array(shape, np.int64)}
    path, x = (
        dense(tmp_path / "n.onnx", *ends, outputs=1, weights=told, width=["unk__1", 1][: len(shape)]),
        rows_of(FLAT),
    )
    plain = dense(tmp_path / "plain.onnx", end("Sigmoid"), outputs=1)
    for source in (path, plain):
        found = import_network(source, FLAT, "classification", 2, x)
        share = asked(source, x).reshape(-1)
        assert softmax(logits(found.model, x)) == pytest.approx(np.stack([1 - share, share], axis=1), abs=1e-5)
        assert (logits(found.model, x)[:, 0] == 0).all()
    assert "Sigmoid" not in operators(import_network(plain, FLAT, "classification", 2, x).model)


def test_one_logit_is_that_of_the_second_class(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Identity"), outputs=1), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 2, x)
    expected = 1 / (1 + np.exp(-asked(path, x)[:, 0].astype(np.float64)))
    assert softmax(logits(found.model, x))[:, 1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ending", ["Identity", "Sigmoid"])
def test_the_figures_of_a_regression_stay_as_they_are(tmp_path: Path, ending: str) -> None:
    path, x = dense(tmp_path / "n.onnx", end(ending), outputs=1), rows_of(FLAT)
    found = import_network(path, FLAT, "regression", 1, x)
    assert logits(found.model, x) == pytest.approx(asked(path, x), abs=1e-6)


def test_answers_of_half_precision_become_float32(tmp_path: Path) -> None:
    ends: list[Node] = [("Softmax", ["h"], ["s"], {}), ("Cast", ["s"], ["Identity:0"], {"to": TensorProto.FLOAT16})]
    path, x = dense(tmp_path / "n.onnx", *ends, answers=TensorProto.FLOAT16), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    assert found.changes == ["logarithm of the probabilities"]  # rounding to 16 bits is part of the network
    assert logits(found.model, x).dtype == np.float32
    figures: list[Node] = [("Cast", ["h"], ["Identity:0"], {"to": TensorProto.FLOAT16})]
    kept = dense(tmp_path / "m.onnx", *figures, outputs=1, answers=TensorProto.FLOAT16)
    assert logits(import_network(kept, FLAT, "regression", 1, x).model, x).dtype == np.float32


# What goes in


def convolution(path: Path, shape: list[Any], *, is_last: bool) -> Path:
    """A convolution and a mean over the image, in either order of the channels."""
    source = "t" if is_last else "keras_tensor"
    moved: list[Node] = [("Transpose", ["keras_tensor"], ["t"], {"perm": [0, 3, 1, 2]})] if is_last else []
    nodes: list[Node] = [
        *moved,
        ("Conv", [source, "K"], ["c"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("GlobalAveragePool", ["r"], ["g"], {}),
        ("Flatten", ["g"], ["h"], {}),
        end("Softmax"),
    ]
    return made(path, shape, nodes, {"K": weight(3, 1 if 1 in shape else 3, 2, 3)})


def test_channels_move_behind_where_the_file_has_them_there(tmp_path: Path) -> None:
    x = rows_of(IMAGE)
    last = convolution(tmp_path / "last.onnx", ["unk__0", 4, 5, 3], is_last=True)
    first = convolution(tmp_path / "first.onnx", ["unk__0", 3, 4, 5], is_last=False)
    moved, plain = (import_network(path, IMAGE, "classification", 3, x) for path in (last, first))
    assert (moved.changes, plain.changes) == (["channels moved behind", "Softmax cut off"], ["Softmax cut off"])
    assert logits(moved.model, x) == pytest.approx(logits(plain.model, x), abs=1e-6)
    assert softmax(logits(moved.model, x)) == pytest.approx(asked(last, x.transpose(0, 2, 3, 1)), abs=1e-6)


def test_where_channels_may_lie_both_ways_the_recipe_says_it(tmp_path: Path) -> None:
    cube, x = Layout(kind="image", shape=(3, 3, 3)), rows_of(Layout(kind="image", shape=(3, 3, 3)))
    path = convolution(tmp_path / "n.onnx", [None, 3, 3, 3], is_last=True)
    with pytest.raises(RecipeInvalid, match="channels first or last") as refused:
        import_network(path, cube, "classification", 3, x)
    assert "channels: last" in refused.value.remedy
    found = import_network(path, cube, "classification", 3, x, channels="last")
    assert softmax(logits(found.model, x)) == pytest.approx(asked(path, x.transpose(0, 2, 3, 1)), abs=1e-6)
    other = import_network(path, cube, "classification", 3, x, channels="first")
    assert softmax(logits(other.model, x)) == pytest.approx(asked(path, x), abs=1e-6)


@pytest.mark.parametrize("shape", [[4, 5, 1], [4, 5], [1, 4, 5], [20], [None, 5]], ids=str)
def test_one_channel_may_stand_anywhere_or_nowhere(tmp_path: Path, shape: list[Any]) -> None:
    nodes: list[Node] = [("Reshape", ["keras_tensor", "to"], ["f"], {}), ("MatMul", ["f", "W"], ["Identity:0"], {})]
    told = {"to": np.array([-1, 20], np.int64), "W": weight(20, 3)}
    path, x = made(tmp_path / "n.onnx", ["unk__0", *shape], nodes, told), rows_of(GREY)
    found = import_network(path, GREY, "classification", 3, x)
    assert logits(found.model, x) == pytest.approx(x.reshape(-1, 20) @ weight(20, 3), abs=1e-4)


def test_a_sequence_goes_in_as_it_is_or_as_one_vector(tmp_path: Path) -> None:
    x = rows_of(SEQUENCE)
    flat = dense(tmp_path / "flat.onnx", end("Identity"), inputs=12)
    assert import_network(flat, SEQUENCE, "classification", 3, x).changes == ["rows as [12]"]
    steps: list[Node] = [
        ("Transpose", ["keras_tensor"], ["t"], {"perm": [1, 0, 2]}),
        ("LSTM", ["t", "W", "R"], ["", "l"], {"hidden_size": 3}),
        ("Squeeze", ["l", "axis"], ["Identity:0"], {}),
    ]
    told = {"W": weight(1, 12, 2), "R": weight(1, 12, 3), "axis": np.array([0], np.int64)}
    path = made(tmp_path / "lstm.onnx", ["unk__0", None, 2], steps, told)
    found = import_network(path, SEQUENCE, "classification", 3, x)
    assert found.changes == []
    assert logits(found.model, x) == pytest.approx(asked(path, x), abs=1e-6)


def embedded(path: Path, num_tokens: int, dtype: int = INT32) -> Path:
    """The mean of an embedding's vectors."""
    source: list[Node] = [] if dtype == INT32 else [("Cast", ["keras_tensor"], ["i"], {"to": INT32})]
    nodes: list[Node] = [
        *source,
        ("Gather", ["E", "i" if source else "keras_tensor"], ["g"], {}),
        ("ReduceMean", ["g"], ["Identity:0"], {"axes": [1], "keepdims": 0}),
    ]
    return made(path, ["unk__0", 6], nodes, {"E": weight(num_tokens, 3)}, dtype=dtype)


@pytest.mark.parametrize("dtype", [INT32, TensorProto.FLOAT], ids=["int32", "float32"])
def test_tokens_become_whole_numbers_where_the_file_reads_those(tmp_path: Path, dtype: int) -> None:
    path, x = embedded(tmp_path / "n.onnx", 9, dtype), rows_of(TOKENS)
    found = import_network(path, TOKENS, "classification", 3, x)
    assert found.changes == (["rows as int32"] if dtype == INT32 else [])
    assert logits(found.model, x) == pytest.approx(weight(9, 3)[x.astype(int)].mean(axis=1), abs=1e-5)


def test_an_embedding_that_lacks_a_token_is_refused_though_no_row_shows_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="no answer") as refused:
        import_network(embedded(tmp_path / "n.onnx", 8), TOKENS, "classification", 3, np.minimum(rows_of(TOKENS), 7))
    assert "tokens below 9" in refused.value.required


def test_a_row_of_padding_needs_a_finite_answer(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Gather", ["E", "keras_tensor"], ["g"], {}),
        ("ReduceSum", ["g", "axis"], ["s"], {"keepdims": 0}),
        ("Cast", ["keras_tensor"], ["f"], {"to": FLOAT}),
        ("ReduceMax", ["f"], ["there"], {"axes": [1], "keepdims": 1}),
        ("Div", ["s", "there"], ["Identity:0"], {}),
    ]
    told = {"E": np.abs(weight(9, 3)), "axis": np.array([1], np.int64)}
    path = made(tmp_path / "n.onnx", ["unk__0", 6], nodes, told, dtype=INT32)
    with pytest.raises(RecipeInvalid, match="is not finite"):
        import_network(path, TOKENS, "classification", 3, rows_of(TOKENS))


# Whole networks


def test_what_torch_exports_comes_in_as_it_is(tmp_path: Path, exported: Path, parts: Any) -> None:
    layout, x = Layout(kind="image", shape=(1, 8, 8)), parts.test.x.numpy()
    found = import_network(exported, layout, "classification", 10, x)
    assert found.changes == []
    assert logits(found.model, x) == pytest.approx(run_session(create_session(exported), x), abs=1e-6)
    assert torch.equal(
        SessionModule(create_session(exported))(parts.test.x),
        torch.from_numpy(run_session(create_session(exported), x)),
    )


def test_the_bytes_depend_on_the_network_alone(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Softmax")), rows_of(FLAT)
    noted = onnx.load(path)
    noted.doc_string = noted.graph.doc_string = noted.graph.node[0].doc_string = "/home/someone/train.py"
    noted.producer_version = "9"
    noted.metadata_props.add(key="when", value="now")
    onnx.save(noted, tmp_path / "m.onnx")
    models = [import_network(one, FLAT, "classification", 3, x).model for one in (path, tmp_path / "m.onnx")]
    assert models[0].SerializeToString() == models[1].SerializeToString()


def test_what_no_output_needs_is_left_out_and_loops_keep_what_they_read(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["held", "logits"], ["sum"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", FLOAT, [None, 3]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, [None, 3]),
        ],
    )
    nodes: list[Node] = [
        ("Identity", ["h"], ["logits"], {}),  # read by the loop alone, under the name that our output will have
        ("MatMul", ["h", "unused"], ["nowhere"], {}),
        ("Loop", ["turns", "", "h"], ["Identity:0"], {"body": body}),
    ]
    told = {"unused": weight(3, 7), "turns": np.array(2, np.int64)}
    path, x = dense(tmp_path / "n.onnx", *nodes, weights=told), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    assert logits(found.model, x) == pytest.approx(3 * (x @ weight(4, 3) + weight(3)), abs=1e-4)
    assert "unused" not in {tensor.name for tensor in found.model.graph.initializer}
    assert count_weights(found.model) == 4 * 3 + 3


def test_erfc_which_only_tensorflow_has_is_said_in_words_of_onnx(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Erfc")), rows_of(FLAT)
    found = import_network(path, FLAT, "classification", 3, x)
    expected = torch.special.erfc(torch.from_numpy(x @ weight(4, 3) + weight(3))).numpy()
    assert logits(found.model, x) == pytest.approx(expected, abs=1e-6)


def test_networks_of_convolutions_are_quantized_in_fixed_ranges(tmp_path: Path, exported: Path) -> None:
    assert choose_quantization(onnx.load(exported)) == "static"
    assert choose_quantization(read_onnx(dense(tmp_path / "n.onnx", end("Identity")))) == "dynamic"
    attending: list[Node] = [
        ("Conv", ["keras_tensor", "K"], ["c"], {}),
        ("Softmax", ["c"], ["s"], {}),
        ("Identity", ["s"], ["Identity:0"], {}),
    ]
    path = made(tmp_path / "m.onnx", [None, 3, 4, 5], attending, {"K": weight(2, 3, 1, 1)}, width=[None] * 4)
    assert choose_quantization(read_onnx(path)) == "dynamic"


# What is refused


@pytest.mark.parametrize(
    ("layout", "outputs", "shape", "dtype", "said"),
    [
        (FLAT, 3, ["unk__0", 5], FLOAT, r"shape \(free, 5\)"),
        (FLAT, 3, [2, 4], FLOAT, r"always 2 row"),
        (FLAT, 3, ["unk__0", 4], TensorProto.INT64, "of int64"),
        (FLAT, 4, ["unk__0", 4], FLOAT, r"answers float32 of shape \[3\]"),
        (FLAT, 2, ["unk__0", 4], FLOAT, r"answers float32 of shape \[3\]"),
        (SEQUENCE, 3, ["unk__0", 4], FLOAT, r"shape \(free, 4\)"),
        (IMAGE, 3, ["unk__0", 60], FLOAT, r"shape \(free, 60\)"),
        (IMAGE, 3, ["unk__0", 4, 3, 5], FLOAT, r"shape \(free, 4, 3, 5\)"),
    ],
    ids=str,
)
def test_a_network_for_other_rows_or_classes_is_refused(
    tmp_path: Path, layout: Layout, outputs: int, shape: list[Any], dtype: int, said: str
) -> None:
    size = shape[-1]
    nodes: list[Node] = [
        ("Cast", ["keras_tensor"], ["c"], {"to": FLOAT}),
        ("MatMul", ["c", "W"], ["Identity:0"], {}),
    ]
    path = made(tmp_path / "n.onnx", shape, nodes, {"W": weight(size, 3)}, dtype=dtype)
    with pytest.raises(RecipeInvalid, match=said) as refused:
        import_network(path, layout, "classification", outputs, rows_of(layout))
    assert refused.value.where == "model.path in the recipe"


def test_a_regression_has_one_output(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"shape \[3\]") as refused:
        import_network(dense(tmp_path / "n.onnx", end("Identity")), FLAT, "regression", 1, rows_of(FLAT))
    assert refused.value.required == "one real number"


def test_a_class_in_place_of_logits_is_refused(tmp_path: Path) -> None:
    path = dense(tmp_path / "n.onnx", end("ArgMax", axis=1, keepdims=0), answers=TensorProto.INT64, width=[None])
    with pytest.raises(RecipeInvalid, match="answers int64"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_a_batch_that_is_fixed_inside_is_refused(tmp_path: Path) -> None:
    ends: list[Node] = [("Reshape", ["h", "one"], ["Identity:0"], {})]
    path = dense(tmp_path / "n.onnx", *ends, weights={"one": np.array([1, 3], np.int64)})
    with pytest.raises(RecipeInvalid, match="answers one row, but not 3"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_rows_that_change_each_others_answers_are_refused(tmp_path: Path) -> None:
    ends: list[Node] = [
        ("ReduceMean", ["h"], ["m"], {"axes": [0], "keepdims": 1}),
        ("Sub", ["h", "m"], ["Identity:0"], {}),
    ]
    path = dense(tmp_path / "n.onnx", *ends, opset=13)
    with pytest.raises(RecipeInvalid, match="depends on the other rows"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_several_inputs_or_outputs_are_refused_by_their_names(tmp_path: Path) -> None:
    path = dense(tmp_path / "n.onnx", end("Identity"))
    for values, name in (("input", "second"), ("output", "h")):
        model = onnx.load(path)
        getattr(model.graph, values).append(helper.make_tensor_value_info(name, FLOAT, [None, 3]))
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(RecipeInvalid, match=rf"has 2 {values}s: .*{name}"):
            read_onnx(tmp_path / "m.onnx")


def test_weights_that_older_files_name_among_the_inputs_are_none(tmp_path: Path) -> None:
    path, x = dense(tmp_path / "n.onnx", end("Identity")), rows_of(FLAT)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("W", FLOAT, [4, 3]))
    onnx.save(model, tmp_path / "m.onnx")
    found = import_network(tmp_path / "m.onnx", FLAT, "classification", 3, x)
    assert logits(found.model, x) == pytest.approx(asked(path, x), abs=1e-6)


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.keras"
    for content in (b"PK\x03\x04 a zip of Keras", b"", b"\x08"):
        path.write_bytes(content)
        with pytest.raises(RecipeInvalid, match=r"network\.keras is no valid ONNX"):
            read_onnx(path)


def test_operators_that_nobody_knows_are_refused_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="StringSplitV2"):
        read_onnx(dense(tmp_path / "n.onnx", end("StringSplitV2")))
    path = dense(tmp_path / "m.onnx", end("Mine", domain="com.example"))
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    with pytest.raises(RecipeInvalid, match=r"ONNX Runtime cannot run it: .*Mine"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_weights_beside_the_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load(dense(tmp_path / "n.onnx", end("Identity")))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(RecipeInvalid, match=r"weights of m\.onnx lie in other files"):
        read_onnx(tmp_path / "m.onnx")


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="of opset 12"):
        read_onnx(dense(tmp_path / "n.onnx", end("Identity"), opset=12))
