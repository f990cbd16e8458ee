"""Files of embeddings compute vectors of length 1, shorter ones, or integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from bloomery.models.compression.vector_output import append_vector_output
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import VECTORS, create_session, run_session
from bloomery.models.onnx_storage.encoder import encode
from bloomery.models.onnx_storage.zstd_packing import minify


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    module = torch.nn.Linear(3, 6)
    export_onnx(module, torch.randn(40, 3), path)
    return module, path


@pytest.mark.parametrize("dimensions", [None, 4])
@pytest.mark.parametrize("as_int8", [False, True])
def test_outputs_are_vectors(network, tmp_path, dimensions, as_int8):
    module, source = network
    path = tmp_path / "vectors.onnx"
    path.write_bytes(source.read_bytes())
    append_vector_output(path, dimensions, as_int8=as_int8)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    x = torch.randn(20, 3)
    raw = module(x).detach().numpy()[:, :dimensions]
    session = create_session(path)
    vectors = run_session(session, x.numpy())
    assert vectors.dtype == np.float32
    assert session.get_modelmeta().custom_metadata_map[VECTORS] == ("int8" if as_int8 else "float32")
    if as_int8:
        np.testing.assert_array_equal(vectors, vectors.astype(np.int8))
        assert np.abs(vectors).max(axis=1).tolist() == [127] * 20
        cosines = (raw * vectors).sum(axis=1) / np.linalg.norm(raw, axis=1) / np.linalg.norm(vectors, axis=1)
        assert cosines.min() > 0.9999
    else:
        np.testing.assert_allclose(vectors, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_finite_and_stored_forms_keep_the_type_of_vectors(network, tmp_path):
    path = tmp_path / "zeros.onnx"
    module = torch.nn.Linear(3, 6, bias=False)
    export_onnx(module, torch.randn(40, 3), path)
    append_vector_output(path, None, as_int8=True)
    assert run_session(create_session(path), np.zeros((2, 3), np.float32)).tolist() == [[0] * 6] * 2
    session = create_session(encode(minify(path.read_bytes())))
    assert session.get_modelmeta().custom_metadata_map[VECTORS] == "int8"
