"""The provenance of a version: what a bento carries so that the version can be reproduced without a registry."""

from __future__ import annotations

from typing import Any

from bloomery.data_contracts.documents.documents import Document, NotPartOfKey
from bloomery.data_contracts.records.records import Candidates, Choice

PROVENANCE_FILE = "provenance.json"  # in a bento, beside the model


class RecipeDocument(NotPartOfKey):
    """The recipe of a run as it was read. It is stored with the version; each stage's key covers its own sections."""

    recipe: dict[str, Any]


class Environment(Document):
    """The hardware and software that the bytes of a version depend on, besides recipe, data and code."""

    python: str
    packages: dict[str, str]  # that the stages import, by distribution name
    lock_sha256: str | None  # of requirements.lock; None if Bloomery was installed without it
    processor: str  # the threads and instruction set of the training
    machine: str
    vector_flags: tuple[str, ...]  # of the processor


class Provenance(Document):
    """The inputs and the environment of a version. Times and run ids in the records are those of its own run."""

    tag: str
    digest: str  # of the bento's content and name
    recipe: dict[str, Any]
    choice: Choice
    code: dict[str, str]  # the code version of each stage up to the choice
    environment: Environment


class StageDigest(Document):
    """One digest of the chain from the source to the bento."""

    stage: str
    content: str
    digest: str


def digest_chain(choice: Choice) -> list[StageDigest]:
    """The digests that a reproduction must repeat, in order from the source to the candidates."""
    trained = choice.candidates.trained
    dataset = trained.dataset
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test, "unlabelled": dataset.unlabelled}
    return [
        StageDigest(stage="ingest", content="rows from the source", digest=dataset.valid_rows.raw_rows.digest),
        StageDigest(stage="validate", content="rows that keep the contract", digest=dataset.valid_rows.digest),
        *(
            StageDigest(stage="prepare", content=f"encoded rows, {name}", digest=part.sha256)
            for name, part in parts.items()
            if part is not None
        ),
        StageDigest(stage="prepare", content="parts and encoder", digest=dataset.digest),
        StageDigest(stage="train", content="weights", digest=trained.digest),
        *candidate_digests(choice.candidates),
    ]


def candidate_digests(candidates: Candidates) -> list[StageDigest]:
    return [
        StageDigest(stage="compress", content=f"ONNX of {candidate.name}", digest=candidate.sha256)
        for candidate in candidates.candidates
    ]
