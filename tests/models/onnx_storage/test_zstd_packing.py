"""Packed ONNX files: ONNX Runtime opens them, and zstd compresses them well."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.onnx_storage.decoder import decompress
from bloomery.models.onnx_storage.zstd_packing import compress_zstd, minify, pack_for_zstd, pack_sparse_tensors
from tests.examples import examples


def model_of(weights: list[np.ndarray], opset: int = 18) -> bytes:
    """A chain of Gemm nodes on x (B, I), each with a bias of ones."""
    nodes, initializers, name = [], [], "x"
    for position, weight in enumerate(weights):
        initializers += [
            numpy_helper.from_array(weight, f"layer.{position}.weight"),
            numpy_helper.from_array(np.ones(weight.shape[1], np.float32), f"layer.{position}.bias"),
        ]
        output = "logits" if position == len(weights) - 1 else f"hidden_{position}"
        nodes.append(
            helper.make_node(
                "Gemm", [name, initializers[-2].name, initializers[-1].name], [output], name=f"n{position}", alpha=1.0
            )
        )
        name = output
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weights[0].shape[0]])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights[-1].shape[1]])]
    graph = helper.make_graph(nodes, "main_graph", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def sparse(num_rows: int, num_columns: int, density: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.choice(random.normal(size=7).astype(np.float32), (num_rows, num_columns))
    return np.where(random.random((num_rows, num_columns)) < density, values, np.float32(0))


@settings(deadline=None, max_examples=examples(30))
@given(
    widths=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    density=st.sampled_from([0.0, 0.003, 0.05, 0.5]),
    seed=st.integers(0, 99),
)
def test_any_sparse_network_keeps_the_bits_of_its_outputs(widths, density, seed):
    weights = [sparse(*pair, density, seed) for pair in itertools.pairwise(widths)]
    model = model_of(weights)
    x = np.random.default_rng(seed).normal(size=(5, widths[0])).astype(np.float32)
    expected = run_session(create_session(model), x)
    for packed in (
        minify(model),
        pack_sparse_tensors(model),
        pack_sparse_tensors(minify(model)),
        minify(pack_sparse_tensors(model)),
    ):
        onnx.checker.check_model(onnx.load_from_string(packed), full_check=True)
        assert np.array_equal(run_session(create_session(packed), x), expected)


def test_a_trained_network_keeps_its_outputs_and_is_far_smaller(few_valued, splits):
    model, x = few_valued.read_bytes(), splits.test.x.numpy()
    for packed in (minify(model), pack_sparse_tensors(minify(model))):
        assert np.array_equal(run_session(create_session(packed), x), run_session(create_session(few_valued), x))
    stored = pack_for_zstd(model)
    assert decompress(stored) in (minify(model), pack_sparse_tensors(minify(model)))
    assert len(stored) < len(compress_zstd(model)) < len(model) / 4


def test_sparse_weights_take_fewer_bytes_than_with_zstd_only():
    model = model_of([sparse(200, 300, 0.02), sparse(300, 100, 0.02)])
    assert pack_for_zstd(model) == compress_zstd(pack_sparse_tensors(minify(model)))
    assert len(pack_for_zstd(model)) < 0.8 * len(compress_zstd(minify(model)))


def test_large_gaps_are_bridged_by_zeros():
    weight = np.zeros((100, 100), np.float32)
    weight[0, 0] = weight[2, 55] = weight[2, 56] = weight[99, 99] = 1.5  # gaps of 255, 1, and many times 255
    model = model_of([weight])
    x = np.eye(100, dtype=np.float32)
    assert np.array_equal(run_session(create_session(pack_sparse_tensors(model)), x), weight + 1)
    assert len(pack_sparse_tensors(model)) < 1500


def test_the_session_folds_the_unpacking(tmp_path):
    """The unpacking nodes run once, when the file is opened, and not for each batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    onnxruntime.InferenceSession(
        pack_sparse_tensors(model_of([sparse(50, 40, 0.1)])), options, providers=["CPUExecutionProvider"]
    )
    assert [node.op_type for node in onnx.load(tmp_path / "opened.onnx").graph.node] == ["Gemm"]


def test_minify_shortens_names_and_drops_defaults_but_keeps_inputs_and_outputs():
    graph = onnx.load_from_string(minify(model_of([sparse(5, 4, 1.0), sparse(4, 3, 1.0)]))).graph
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (["x"], ["logits"])
    assert [(list(node.input), list(node.output), len(node.attribute)) for node in graph.node] == [
        (["x", "a", "b"], ["c"], 0),
        (["c", "d", "e"], ["logits"], 0),
    ]


def test_dense_networks_and_old_opsets_are_not_packed():
    dense = model_of([np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)])
    assert pack_sparse_tensors(dense) == dense
    old_opset = model_of([sparse(30, 20, 0.1)], opset=11)
    assert pack_sparse_tensors(old_opset) == old_opset


def test_the_zstd_program_decompresses_it(tmp_path):
    import shutil
    import subprocess

    program = shutil.which("zstd")
    if program is None:
        pytest.skip("no zstd on this machine")
    packed = pack_sparse_tensors(model_of([sparse(200, 200, 0.1)]))
    path = tmp_path / "model.onnx.zst"
    path.write_bytes(compress_zstd(packed))
    assert subprocess.run([program, "-dc", path], capture_output=True, check=True).stdout == packed
    assert path.stat().st_size < 0.9 * len(packed)
