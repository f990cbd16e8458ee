"""`/v1/embeddings` answers OpenAI's clients: the same JSON, base64, errors and keys."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.asgi.embeddings import cut_vectors
from bloomery.deployments.endpoint.auth.key_ring import KeyRing
from bloomery.deployments.endpoint.auth.middleware import AuthMiddleware
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.deployments.endpoint.telemetry.prediction_log import to_log_batch
from bloomery.models.compression.vector_output import append_vector_output
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import encode, fit, partial_statistics
from tests.deployments.artifacts import write_artifacts

LENGTH, WIDTH = 6, 4
TEXTS = ["pay my bill", "cancel the order", "find a hotel please"]


class BagOfTokens(torch.nn.Module):
    """The sum of a vector for each token."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.vectors = torch.nn.Embedding(num_tokens, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.vectors(x.long()) * (x > 0).unsqueeze(2)).sum(1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, contract_of: Callable[..., Contract]) -> Callable[..., Path]:
    features = Features.model_validate(
        {
            "key": "id",
            "label": "answer",
            "task": "embedding",
            "inputs": [
                {"kind": "text", "column": "text", "length": LENGTH, "tokenizer": "words", "vocabulary_size": 50}
            ],
        }
    )
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True},
        {"name": "text", "logicalType": "string", "required": True, "logicalTypeOptions": {"maxLength": 40}},
        {"name": "answer", "logicalType": "string", "required": True},
    )
    rows = pa.RecordBatch.from_pydict({"id": [1, 2, 3], "text": TEXTS, "answer": TEXTS})
    encoder = fit(features, next(partial_statistics(features, [rows])).column(0).to_pylist())

    def make(tag: str = "finder:one", *, as_int8: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("finder")
        torch.manual_seed(0)
        network = BagOfTokens(encoder.layout.num_tokens or 0)
        export_onnx(network, torch.from_numpy(encode(encoder, rows)), folder / "model.onnx")
        append_vector_output(folder / "model.onnx", None, as_int8=as_int8)
        write_artifacts(folder, tag, ("text",), contract, encoder, {})
        return folder

    return make


@pytest.fixture(scope="module")
def version(package: Callable[..., Path]) -> LoadedVersion:
    return LoadedVersion(package())


@pytest.fixture(scope="module")
def application(version: LoadedVersion, metrics: Metrics) -> Application:
    application = Application(Limits(rows=5), metrics)
    application.use_version(version)
    return application


def ask(application: Any, body: Any, **headers: str) -> httpx.Response:
    """The response to a request as the official client sends it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint/v1/") as client:
            fields = {"content-type": "application/json", **headers}
            return await client.post("embeddings", content=content, headers=fields)

    return asyncio.run(call())


def test_vectors_are_in_order_as_numbers_or_base64(application, version):
    numbers = ask(application, {"model": "finder", "input": TEXTS}).json()
    assert numbers["object"] == "list"
    assert numbers["model"] == "finder:one"
    assert [item["index"] for item in numbers["data"]] == [0, 1, 2]
    assert {item["object"] for item in numbers["data"]} == {"embedding"}
    vectors = np.array([item["embedding"] for item in numbers["data"]], np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    expected = version.predict(pa.table({"text": TEXTS}))
    np.testing.assert_array_equal(vectors, expected)
    encoded = ask(application, {"model": "finder:one", "input": TEXTS, "encoding_format": "base64", "user": "u"}).json()
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in encoded["data"]]
    np.testing.assert_array_equal(np.stack(decoded), expected)


def test_a_single_text_is_a_list_of_one_and_tokens_are_counted(application):
    document = ask(application, {"model": "finder", "input": TEXTS[2]}).json()
    assert len(document["data"]) == 1
    assert document["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert ask(application, {"model": "finder", "input": TEXTS}).json()["usage"]["total_tokens"] == 3 + 3 + 4


def test_shorter_vectors_have_length_1_again(application, version):
    document = ask(application, {"model": "finder", "input": TEXTS[:1], "dimensions": 2}).json()
    vector = np.array(document["data"][0]["embedding"])
    whole = version.predict(pa.table({"text": TEXTS[:1]}))[0]
    np.testing.assert_allclose(vector, whole[:2] / np.linalg.norm(whole[:2]), rtol=1e-6)
    assert ask(application, {"model": "finder", "input": "a", "dimensions": WIDTH}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"model": "finder"}, 400, "input", "is missing"),
        ({"model": "finder", "input": []}, 400, "input", "with at least one"),
        ({"model": "finder", "input": {"text": "a"}}, 400, "input", "a text or a list of texts"),
        ({"model": "finder", "input": [1, 2, 3]}, 400, "input", "token ids, which belong to the tokenizer of another"),
        ({"model": "finder", "input": [[1, 2], [3]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"model": "finder", "input": ["a", None]}, 400, "input", "None at position 1"),
        ({"model": "finder", "input": ["a"] * 6}, 400, "input", "6 texts; the limit is 5"),
        ({"model": "finder", "input": "a" * 41}, 400, "input", "refused by the model's contract"),
        ({"model": "finder", "input": "a", "encoding_format": "hex"}, 400, "encoding_format", "float or base64"),
        ({"model": "finder", "input": "a", "dimensions": 0}, 400, "dimensions", "from 1 to 4"),
        ({"model": "finder", "input": "a", "dimensions": 5}, 400, "dimensions", "from 1 to 4"),
        ({"model": "finder", "input": "a", "dimensions": True}, 400, "dimensions", "from 1 to 4"),
        ({"model": "finder", "input": "a", "truncate": 1}, 400, "truncate", "is not known"),
        ({"input": "a"}, 400, "model", "is missing; this endpoint serves finder"),
        ({"model": "text-embedding-3-small", "input": "a"}, 404, "model", "does not exist here"),
        (b"{", 400, None, "not JSON"),
        (b"[]", 400, None, "must be an object"),
        (b"", 400, None, "not JSON"),
    ],
)
def test_errors_have_openai_s_form(application, body, status, param, message):
    response = ask(application, body)
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] == ("model_not_found" if status == 404 else None)


def test_another_media_type_is_refused(application):
    response = ask(
        application, {"model": "finder", "input": "a"}, **{"content-type": "application/vnd.apache.arrow.stream"}
    )
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


def test_other_models_have_no_vectors(packaged, metrics):
    application = Application(Limits(), metrics)
    application.use_version(LoadedVersion(packaged()))
    response = ask(application, {"model": "people", "input": "a"})
    assert response.status_code == 404
    assert "computes no vectors; send rows to /predict" in response.json()["error"]["message"]


def test_a_key_is_sent_as_bearer_and_its_errors_have_openai_s_form(application, tmp_path):
    keys = tmp_path / "clients.json"
    keys.write_text('{"keys": []}')
    protected = AuthMiddleware(application, "required", KeyRing(keys, None))
    response = ask(protected, {"model": "finder", "input": "a"}, authorization="Bearer wrong")
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_integers_stay_integers_in_all_forms(package, metrics):
    version = LoadedVersion(package("finder:int8", as_int8=True))
    application = Application(Limits(), metrics)
    batches = []
    application.batch_listeners.append(batches.append)
    application.use_version(version)
    document = ask(application, {"model": "finder", "input": TEXTS, "dimensions": 3}).json()
    assert all(isinstance(value, float | int) and value == int(value) for value in document["data"][0]["embedding"])
    outputs = version.predict(pa.table({"text": TEXTS}))
    assert version.predictions_table(outputs).schema.field("embedding").type == pa.list_(pa.int8())
    log = to_log_batch(batches)
    assert log.num_rows == 3
    assert log["prediction"].type == pa.struct([("embedding", pa.list_(pa.int8()))])


def test_cut_vectors_of_zeros_stay_finite():
    assert cut_vectors(np.zeros((1, 4), np.float32), 2, is_int8=False).tolist() == [[0, 0]]


def test_the_documentation_describes_vectors_and_rows_have_them_too(application, version):
    async def get(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.get(path)

    document = asyncio.run(get("/openapi.json")).json()
    operation = document["paths"]["/v1/embeddings"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["dimensions"]["maximum"] == WIDTH
    assert "/explain" not in document["paths"]
    assert asyncio.run(get("/v1/embeddings")).status_code == 405
    (prediction,) = version.format_predictions(version.predict(pa.table({"text": TEXTS[:1]})))
    assert len(prediction["embedding"]) == WIDTH
