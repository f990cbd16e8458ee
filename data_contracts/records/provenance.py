"""Where a version comes from, whole: what it carries with it, so that it can be made again without a registry."""

from __future__ import annotations

from typing import Any

from bloomery.data_contracts.documents.documents import Document, NotPartOfKey
from bloomery.data_contracts.records.records import Candidates, Choice

PROVENANCE_FILE = "provenance.json"  # in a bento, beside the model


class StatedRecipe(NotPartOfKey):
    """The recipe of a run, as it was read. A version remembers it; what of it decides is in the stages' own slices."""

    recipe: dict[str, Any]


class Environment(Document):
    """What the bits depend on beside recipe, data and code."""

    python: str
    packages: dict[str, str]  # those that the stages import, by distribution name
    lock_sha256: str | None  # of requirements.lock; None where Bloomery was installed without it
    processor: str  # threads and instruction set of the training
    machine: str
    vector_flags: tuple[str, ...]  # of the processor


class Provenance(Document):
    """All that a version was made from and with. Times and run ids of the records are those of its own run."""

    tag: str
    digest: str  # of the bento's content and name
    recipe: dict[str, Any]
    choice: Choice
    code: dict[str, str]  # the code version of each stage up to the choice
    environment: Environment


class StageDigest(Document):
    """A digest on the way from the source to the bento."""

    stage: str
    content: str
    digest: str


def digest_chain(chosen: Choice) -> list[StageDigest]:
    """The digests that a run must repeat, from the source up to the candidates, in their order."""
    trained = chosen.candidates.trained
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
        *candidate_digests(chosen.candidates),
    ]


def candidate_digests(options: Candidates) -> list[StageDigest]:
    return [
        StageDigest(stage="compress", content=f"ONNX of {one.name}", digest=one.sha256) for one in options.candidates
    ]
