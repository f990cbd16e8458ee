"""Entropy-coded storage: the same file is decoded, and corrupt bytes are refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.errors import OutputCorrupt, RecipeInvalid
from bloomery.models.onnx_storage import decoder
from bloomery.models.onnx_storage import encoder as encoder_module
from bloomery.models.onnx_storage.arithmetic_coder import ArithmeticDecoder, ArithmeticEncoder
from bloomery.models.onnx_storage.context_model import code_matrix, count_decisions, describe_matrix
from bloomery.models.onnx_storage.decoder import decode
from bloomery.models.onnx_storage.encoder import encode
from tests.examples import examples

TYPES = st.sampled_from(["float32", "float16", "float64", "int64", "int8", "uint8", "bool"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def model_of(tensors: list[np.ndarray]) -> bytes:
    """A file with the tensors as initializers."""
    initializers = [
        numpy_helper.from_array(np.asarray(tensor), f"t{position}") for position, tensor in enumerate(tensors)
    ]
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.zeros(2, np.float32)))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_model(helper.make_graph([node], "g", [], [output], initializers)).SerializeToString()


def sparse(num_rows: int, num_columns: int, density: float, num_values: int = 4, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(size=num_values).astype(np.float32)
    is_filled = random.random((num_rows, num_columns)) < density
    return np.where(is_filled, random.choice(values, (num_rows, num_columns)), np.float32(0))


@settings(deadline=None)
@given(st.data())
def test_any_tensors_decode_to_the_last_bit(data):
    tensors = data.draw(st.lists(TYPES.flatmap(lambda kind: arrays.arrays(kind, SHAPES)), max_size=4))
    model = model_of(tensors)
    assert decode(encode(model)) == model


@settings(deadline=None, max_examples=examples(50))
@given(
    num_rows=st.integers(1, 20),
    num_columns=st.integers(1, 40),
    density=st.floats(0, 0.6),
    values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    seed=st.integers(0, 99),
)
def test_matrices_of_few_values_decode(num_rows, num_columns, density, values, seed):
    random = np.random.default_rng(seed)
    cells = random.choice(np.array(values, np.uint32), (num_rows, num_columns))  # including NaNs and negative zeros
    filled = np.where(random.random((num_rows, num_columns)) < density, cells, np.uint32(0)).view(np.float32)
    model = model_of([filled, filled.T])
    assert decode(encode(model)) == model


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=examples(50))
def test_a_coded_matrix_decodes(num_rows, num_columns, num_values, density, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(1, num_values + 1, (num_rows, num_columns))
    codes[random.random(codes.shape) >= density] = 0
    encoder, header = ArithmeticEncoder(), describe_matrix(codes, num_values)
    max_decisions = count_decisions(codes, num_values)
    code_matrix(encoder, header, codes, max_decisions)
    assert np.array_equal(code_matrix(ArithmeticDecoder(encoder.finish()), header, None, max_decisions), codes)


def test_a_sparse_tensor_of_few_values_takes_its_entropy_and_its_graph():
    weight = sparse(200, 400, 0.02, num_values=8)
    share = np.count_nonzero(weight) / weight.size
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share) + share * 3
    assert len(encode(model_of([weight]))) < 1.05 * entropy * weight.size / 8 + 120


def test_full_and_empty_rows_and_columns_cost_less():
    uneven = np.where(np.arange(200) % 10 == 0, sparse(100, 200, 0.2), np.float32(0))
    even = sparse(100, 200, 0.02)
    assert len(encode(model_of([uneven]))) < 0.8 * len(encode(model_of([even])))


def test_dense_weights_cost_no_more_than_zstd():
    import pyarrow as pa

    model = model_of([np.random.default_rng(0).normal(size=(50, 50)).astype(np.float32)])
    assert len(encode(model)) < len(pa.Codec("zstd", compression_level=22).compress(model)) + 20


def test_files_of_this_version_stay_readable():
    # A change here needs a new version of the format; this one must stay readable.
    stored = bytes.fromhex(
        "424c590115522ce098026d0a536060743ec0c8c0c2c6c1c2c5c40002f7af5eb3cdd9cf60b7f793b27dbd1bfb3e0e3eab7e26"
        "2e4d21c64a250e585c694971b10203ac34558b8f834980d18b83010a1630b20831a66b9d65e460e3e0106074622a31f03ac0"
        "98c4cfc55829c4c5c501b41e680d07931393800c001839a41c6a016cb17d54"
    )
    assert decode(stored) == model_of([sparse(6, 8, 0.3)])


def test_the_decisions_of_all_tensors_are_limited(monkeypatch):
    weight = sparse(40, 50, 0.1)
    model = model_of([weight, weight, weight])
    all_coded = encode(model)
    for module in (encoder_module, decoder):
        monkeypatch.setattr(module, "MAX_DECISIONS", 5000)  # enough for two of them
    partly_coded = encode(model)
    assert len(partly_coded) > len(all_coded)
    assert decode(partly_coded) == model
    with pytest.raises(OutputCorrupt, match=r"too (many|large)"):
        decode(all_coded)


def test_a_trained_network_keeps_the_bits_of_its_outputs(few_valued, splits):
    from bloomery.models.inference.runtime import create_session, run_session

    model, x = few_valued.read_bytes(), splits.test.x.numpy()
    stored = encode(model)
    assert len(stored) < len(model) / 8
    assert np.array_equal(run_session(create_session(decode(stored)), x), run_session(create_session(few_valued), x))


STORED = encode(model_of([sparse(20, 30, 0.2), np.arange(50.0)]))


@given(st.binary(max_size=200))
def test_bytes_of_another_format_are_refused(content):
    with pytest.raises(OutputCorrupt, match="the stored model"):
        decode(content)


@given(st.binary(max_size=120))
def test_bytes_with_only_a_valid_beginning_are_refused(content):
    with pytest.raises(OutputCorrupt, match="the stored model"):
        decode(STORED[:8] + content)


@settings(deadline=None)
@given(st.integers(0, len(STORED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_detected(position, change):
    changed = bytearray(STORED)
    changed[position] ^= change
    with contextlib.suppress(OutputCorrupt):
        assert decode(bytes(changed)) == decode(STORED)  # as for a byte behind the last bit


@given(st.integers(0, len(STORED) - 1))
@settings(deadline=None)
def test_truncation_is_detected(length):
    with pytest.raises(OutputCorrupt):
        decode(STORED[:length])


def test_another_version_is_refused():
    with pytest.raises(OutputCorrupt, match="of version 9, and this program reads 1"):
        decode(STORED[:3] + b"\x09" + STORED[4:])


def test_a_file_that_is_not_onnx_is_refused():
    with pytest.raises(RecipeInvalid, match="not an ONNX file"):
        encode(b"hello")


def test_external_tensors_are_refused(tmp_path):
    proto = onnx.load_from_string(model_of([np.ones((30, 30), np.float32)]))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    with pytest.raises(RecipeInvalid, match="is stored in another file"):
        encode((tmp_path / "m.onnx").read_bytes())


def test_decoding_needs_neither_torch_nor_onnx():
    code = (
        "import sys, bloomery.models.onnx_storage.decoder as c; c.decode(sys.stdin.buffer.read()); print(*sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], input=STORED, capture_output=True, check=True)
    loaded = set(process.stdout.decode().split())
    assert not loaded & {"torch", "onnx", "onnxruntime"}
