"""`/rerank` orders documents by the score of a model that reads pairs of texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import torch

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import encode, fit, partial_statistics
from bloomery.tasks.prepare.checkpoint_tokenizers import read_tokenizers
from tests.deployments.artifacts import write_artifacts

pytest.importorskip("transformers")

DOCUMENTS = ["play music", "the balance of my card", "book a flight", "my card"]


class CountsRepeats(torch.nn.Module):
    """The number of tokens, as one value or as the second of two or three logits."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = (x > 0).float().sum(1, keepdim=True) / 10
        return count if self.num_outputs == 1 else torch.cat([-count, count, 0 * count], dim=1)[:, : self.num_outputs]


@pytest.fixture(scope="module")
def load(
    tmp_path_factory: pytest.TempPathFactory, contract_of: Callable[..., Contract], tiny_bert: Path
) -> Callable[..., LoadedVersion]:
    checkpoint = Checkpoint(
        reference="tiny",
        folder=str(tiny_bert),
        files={name: digest_of_file(tiny_bert / name) for name in ("tokenizer.json", "tokenizer_config.json")},
    )
    text = {"kind": "text", "column": "query", "pair": "passage", "length": 16, "tokenizer": "checkpoint"}

    def make(task: str, labels: Sequence[object] = (0, 1)) -> LoadedVersion:
        features = Features.model_validate(
            {"key": "id", "label": "label", "task": task, "inputs": [{**text, "checkpoint": checkpoint}]}
        )
        kind = "string" if isinstance(labels[0], str) else "integer" if task == "classification" else "number"
        contract = contract_of(
            {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True},
            {"name": "query", "logicalType": "string", "required": True},
            {"name": "passage", "logicalType": "string", "required": True, "logicalTypeOptions": {"maxLength": 40}},
            {"name": "label", "logicalType": kind, "required": True},
        )
        values = pa.array(labels, pa.float64() if task == "regression" else None)
        texts = list(map(str, range(len(values))))
        rows = pa.RecordBatch.from_pydict({"id": range(len(values)), "query": texts, "passage": texts, "label": values})
        statistics = next(partial_statistics(features, [rows])).column(0).to_pylist()
        encoder = fit(read_tokenizers(features), statistics)
        folder = tmp_path_factory.mktemp(task)
        network = CountsRepeats(1 if task == "regression" else len(values))
        export_onnx(network, torch.from_numpy(encode(encoder, rows)), folder / "model.onnx")
        write_artifacts(folder, "judge:one", ("query", "passage"), contract, encoder, {})
        return LoadedVersion(folder)

    return make


@pytest.fixture(scope="module", params=["regression", "classification"])
def application(request, load, metrics) -> Application:
    application = Application(Limits(rows=5), metrics)
    application.use_version(load(request.param))
    return application


def ask(application: Application, body: Any, method: str = "POST", path: str = "/rerank") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.request(method, path, content=content, headers={"content-type": "application/json"})

    return asyncio.run(call())


def test_the_most_relevant_document_comes_first(application):
    document = ask(application, {"query": "card", "documents": DOCUMENTS, "model": "any"}).json()
    assert document["model"] == "judge:one"
    assert [result["index"] for result in document["results"]] == [1, 2, 0, 3]
    scores = [result["relevance_score"] for result in document["results"]]
    assert scores == sorted(scores, reverse=True)
    assert "document" not in document["results"][0]
    rows = [{"query": "card", "passage": text} for text in DOCUMENTS]
    predictions = ask(application, {"rows": rows}, path="/predict").json()["predictions"]
    for result in document["results"]:
        prediction = predictions[result["index"]]
        expected = prediction["value"] if "value" in prediction else prediction["probabilities"]["1"]
        assert result["relevance_score"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "relevant", "expected"),
    [
        (("entailment", "not_entailment"), "entailment", [0, 3, 2, 1]),
        (("entailment", "not_entailment"), "not_entailment", [1, 2, 0, 3]),
        (("no", "yes"), None, [1, 2, 0, 3]),
        (("false", "true"), None, [1, 2, 0, 3]),
        ((0, 1), 0, [0, 3, 2, 1]),
        ((0, 1, 2), 1, [1, 2, 0, 3]),
    ],
)
def test_the_score_is_the_probability_of_the_class_of_relevant_documents(load, metrics, labels, relevant, expected):
    application = Application(Limits(), metrics)
    application.use_version(load("classification", labels))
    named = {} if relevant is None else {"relevant_class": relevant}
    response = ask(application, {"query": "card", "documents": DOCUMENTS, **named})
    assert [result["index"] for result in response.json()["results"]] == expected


def test_classes_whose_names_do_not_tell_which_is_relevant_are_asked_for(load, metrics):
    application = Application(Limits(), metrics)
    application.use_version(load("classification", ("entailment", "not_entailment")))
    for named in ({}, {"relevant_class": "contradiction"}, {"relevant_class": ["entailment"]}):
        response = ask(application, {"query": "card", "documents": DOCUMENTS, **named})
        assert response.status_code == 422
        assert "the class of relevant documents, one of entailment, not_entailment" in response.json()["error"]
    operation = ask(application, b"", "GET", "/openapi.json").json()["paths"]["/rerank"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "relevant_class" in schema["required"]
    assert schema["properties"]["relevant_class"]["enum"] == ["entailment", "not_entailment"]
    application.use_version(load("regression"))
    response = ask(application, {"query": "card", "documents": DOCUMENTS, "relevant_class": "1"})
    assert "the score of this model is a number" in response.json()["error"]


def test_fewer_results_and_their_documents_on_request(application):
    body = {"query": "card", "documents": [{"text": text} for text in DOCUMENTS], "top_n": 2, "return_documents": True}
    results = ask(application, body).json()["results"]
    assert [result["document"]["text"] for result in results] == [DOCUMENTS[1], DOCUMENTS[2]]
    assert len(ask(application, {**body, "top_n": 50}).json()["results"]) == 4


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"documents": ["a"]}, 422, "query: found no value, but it must be a text"),
        ({"query": 3, "documents": ["a"]}, 422, "query: found 3"),
        ({"query": "a"}, 422, "documents: found no value"),
        ({"query": "a", "documents": []}, 422, "a list with at least one text"),
        ({"query": "a", "documents": "b"}, 422, "documents: found 'b'"),
        ({"query": "a", "documents": ["b", 4]}, 422, "documents[1]: found 4"),
        ({"query": "a", "documents": [{"title": "b"}]}, 422, "documents[0]"),
        ({"query": "a", "documents": ["b"] * 6}, 413, "6 documents; the limit is 5"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, 422, "top_n: found 0"),
        ({"query": "a", "documents": ["b"], "top_n": True}, 422, "top_n: found True"),
        ({"query": "a", "documents": ["b"], "return_documents": "yes"}, 422, "return_documents: found 'yes'"),
        ({"query": "a", "documents": ["b"], "k": 1}, 422, "k: found 1, but it must be one of the parameters"),
        ({"query": "a", "documents": ["b" * 41]}, 422, "column passage"),
        (b"{", 400, "cannot be read"),
        (b"3", 400, "must be an object"),
    ],
)
def test_invalid_requests_are_refused_with_what_is_required(application, body, status, message):
    response = ask(application, body)
    assert response.status_code == status
    assert message in response.json()["error"]


def test_other_models_do_not_rerank(packaged, metrics):
    application = Application(Limits(), metrics)
    application.use_version(LoadedVersion(packaged()))
    response = ask(application, {"query": "a", "documents": ["b"]})
    assert response.status_code == 404
    assert "does not score pairs of texts" in response.json()["error"]
    assert "/rerank" not in ask(application, b"", "GET", "/openapi.json").json()["paths"]


def test_the_documentation_describes_the_request(application):
    operation = ask(application, b"", "GET", "/openapi.json").json()["paths"]["/rerank"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["required"] == ["query", "documents"]
