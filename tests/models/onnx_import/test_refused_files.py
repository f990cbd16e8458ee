"""ONNX files that the importer refuses, and the reasons that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.onnx_import.graph import read_onnx
from bloomery.models.onnx_import.importer import import_network
from tests.models.onnx_import.onnx_files import (
    FLAT,
    FLOAT,
    IMAGE,
    SEQUENCE,
    Node,
    dense,
    end,
    rows_of,
    weight,
    write_model,
)


@pytest.mark.parametrize(
    ("layout", "outputs", "shape", "dtype", "message"),
    [
        (FLAT, 3, ["unk__0", 5], FLOAT, r"shape \(dynamic, 5\)"),
        (FLAT, 3, [2, 4], FLOAT, r"fixed batch of 2 row"),
        (FLAT, 3, ["unk__0", 4], TensorProto.INT64, "has type int64"),
        (FLAT, 4, ["unk__0", 4], FLOAT, r"output for a row is float32 of shape \[3\]"),
        (FLAT, 2, ["unk__0", 4], FLOAT, r"output for a row is float32 of shape \[3\]"),
        (SEQUENCE, 3, ["unk__0", 4], FLOAT, r"shape \(dynamic, 4\)"),
        (IMAGE, 3, ["unk__0", 60], FLOAT, r"shape \(dynamic, 60\)"),
        (IMAGE, 3, ["unk__0", 4, 3, 5], FLOAT, r"shape \(dynamic, 4, 3, 5\)"),
    ],
    ids=str,
)
def test_a_network_for_other_rows_or_classes_is_refused(
    tmp_path: Path, layout: Layout, outputs: int, shape: list[Any], dtype: int, message: str
) -> None:
    size = shape[-1]
    nodes: list[Node] = [
        ("Cast", ["keras_tensor"], ["c"], {"to": FLOAT}),
        ("MatMul", ["c", "W"], ["Identity:0"], {}),
    ]
    path = write_model(tmp_path / "n.onnx", shape, nodes, {"W": weight(size, 3)}, dtype=dtype)
    with pytest.raises(RecipeInvalid, match=message) as caught:
        import_network(path, layout, "classification", outputs, rows_of(layout))
    assert caught.value.where == "model.path in the recipe"


def test_a_regression_has_one_output(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"shape \[3\]") as caught:
        import_network(dense(tmp_path / "n.onnx", end("Identity")), FLAT, "regression", 1, rows_of(FLAT))
    assert caught.value.required == "one real number"


def test_a_class_index_instead_of_logits_is_refused(tmp_path: Path) -> None:
    path = dense(tmp_path / "n.onnx", end("ArgMax", axis=1, keepdims=0), output_dtype=TensorProto.INT64, width=[None])
    with pytest.raises(RecipeInvalid, match="output for a row is int64"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_a_batch_size_fixed_within_the_graph_is_refused(tmp_path: Path) -> None:
    ends: list[Node] = [("Reshape", ["h", "one"], ["Identity:0"], {})]
    path = dense(tmp_path / "n.onnx", *ends, weights={"one": np.array([1, 3], np.int64)})
    with pytest.raises(RecipeInvalid, match="runs on one row, but not on 3"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_a_network_that_mixes_rows_is_refused(tmp_path: Path) -> None:
    ends: list[Node] = [
        ("ReduceMean", ["h"], ["m"], {"axes": [0], "keepdims": 1}),
        ("Sub", ["h", "m"], ["Identity:0"], {}),
    ]
    path = dense(tmp_path / "n.onnx", *ends, opset=13)
    with pytest.raises(RecipeInvalid, match="depends on the other rows"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_several_inputs_or_outputs_are_refused_with_their_names(tmp_path: Path) -> None:
    path = dense(tmp_path / "n.onnx", end("Identity"))
    for values, name in (("input", "second"), ("output", "h")):
        model = onnx.load(path)
        getattr(model.graph, values).append(helper.make_tensor_value_info(name, FLOAT, [None, 3]))
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(RecipeInvalid, match=rf"has 2 {values}s: .*{name}"):
            read_onnx(tmp_path / "m.onnx")


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.keras"
    for content in (b"PK\x03\x04 a zip of Keras", b"", b"\x08"):
        path.write_bytes(content)
        with pytest.raises(RecipeInvalid, match=r"network\.keras is not valid ONNX"):
            read_onnx(path)


def test_unknown_operators_are_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="StringSplitV2"):
        read_onnx(dense(tmp_path / "n.onnx", end("StringSplitV2")))
    path = dense(tmp_path / "m.onnx", end("Mine", domain="com.example"))
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    with pytest.raises(RecipeInvalid, match=r"ONNX Runtime cannot run the network: .*Mine"):
        import_network(path, FLAT, "classification", 3, rows_of(FLAT))


def test_external_weights_are_refused(tmp_path: Path) -> None:
    model = onnx.load(dense(tmp_path / "n.onnx", end("Identity")))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(RecipeInvalid, match=r"weights of m\.onnx are in other files"):
        read_onnx(tmp_path / "m.onnx")


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="has opset 12"):
        read_onnx(dense(tmp_path / "n.onnx", end("Identity"), opset=12))
