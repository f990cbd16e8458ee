"""The endpoint answers a tag for each word of sentences of several lengths, also of those that are cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import encode, fit, partial_statistics
from tests.deployments.artifacts import write_artifacts
from tests.deployments.endpoint.asgi.test_application import ask, stream_of

TAGS = ("B-PER", "I-PER", "O")
SENTENCE = ["Ada", "Lovelace", "wrote"]


@pytest.fixture
def application(tmp_path: Path, contract_of: Callable[..., Contract], metrics: Metrics) -> Application:
    """A version that reads three words, and gives those of `SENTENCE` the tags of `TAGS`."""
    source = {"kind": "text", "column": "words", "tokenizer": "words", "length": 3, "vocabulary_size": 20}
    features = Features.model_validate({"key": "id", "label": "tags", "task": "tagging", "inputs": [source]})
    array = {"logicalType": "array", "required": True, "items": {"logicalType": "string", "required": True}}
    rule = {"rule": "expression", "expression": "LENGTH(words) = LENGTH(tags)"}  # of which a request has one
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True},
        {"name": "words", **array},
        {"name": "tags", **array},
        quality=[{"type": "custom", "engine": "bloomery", "implementation": rule}],
    )
    rows = pa.RecordBatch.from_pydict({"id": [1], "words": [SENTENCE], "tags": [TAGS]})
    encoder = fit(features, next(partial_statistics(features, [rows])).column(0).to_pylist())
    weights = np.zeros((encoder.layout.num_tokens or 0, 3), np.float32)
    weights[encode(encoder, rows)[0].astype(int)] = 9 * np.eye(3)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["x"], ["tokens_of_rows"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Gather", ["weights", "tokens_of_rows"], ["logits"]),
        ],
        "tags",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "tokens"])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "tokens", 3])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx")
    write_artifacts(tmp_path, "names:one", ("words",), contract, encoder, {})
    application = Application(Limits(), metrics)
    application.use_version(LoadedVersion(tmp_path))
    return application


@pytest.mark.parametrize("num_rows", [1, 40])  # of more than 64 sentences, those of similar length run together
def test_each_sentence_has_its_own_tags_and_words_that_are_cut_off_have_none(application, num_rows):
    sentences = [[*SENTENCE, "Ada", "it"], [], ["Lovelace"], ["wrote", "Ada"]] * num_rows
    rows = [{"words": words} for words in sentences]
    response = ask(application, {"rows": rows})
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert predictions[4:] == predictions[:4] * (num_rows - 1)
    assert [prediction["tags"] for prediction in predictions[:4]] == [
        [*TAGS, None, None],
        [],
        ["I-PER"],
        ["O", "B-PER"],
    ]
    assert [prediction["unread_words"] for prediction in predictions[:4]] == [2, 0, 0, 0]
    cut_off = predictions[0]
    assert cut_off["probabilities"][3:] == [None, None]
    assert min(cut_off["probabilities"][:3]) > 0.99
    assert cut_off["entities"] == [{"text": "Ada Lovelace", "type": "PER", "start": 0, "end": 2}]
    assert predictions[2]["entities"] == [{"text": "Lovelace", "type": "PER", "start": 0, "end": 1}]
    table = pa.table({"words": pa.array(sentences, pa.list_(pa.string()))})
    assert ask(application, stream_of(table), content_type=ARROW).json()["predictions"] == predictions
