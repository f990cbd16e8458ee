"""Where a version comes from, whole: what it carries with it, so that it can be made again without a registry."""

from __future__ import annotations

from typing import Any

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.recipe_sections.engine import Means
from bloomery.data_contracts.records.records import Chosen, Options

ORIGIN = "origin.json"  # in a bento, beside the model


class Stated(Means):
    """The recipe of a run, as it was read. A version remembers it; what of it decides is in the stages' own slices."""

    recipe: dict[str, Any]


class Surroundings(Document):
    """What the bits depend on beside recipe, data and code."""

    python: str
    packages: dict[str, str]  # those that the stages import, by distribution name
    lock_sha256: str | None  # of requirements.lock; None where Bloomery was installed without it
    processor: str  # threads and instruction set of the training
    machine: str
    vector_flags: tuple[str, ...]  # of the processor


class Origin(Document):
    """All that a version was made from and with. Times and run ids of the records are those of its own run."""

    tag: str
    digest: str  # of the bento's content and name
    recipe: dict[str, Any]
    chosen: Chosen
    code: dict[str, str]  # the code version of each stage up to the choice
    surroundings: Surroundings


class Step(Document):
    """A digest on the way from the source to the bento."""

    stage: str
    what: str
    digest: str


def steps(chosen: Chosen) -> list[Step]:
    """The digests that a run must repeat, from the source up to the candidates, in their order."""
    trained = chosen.options.trained
    dataset = trained.dataset
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test, "unlabelled": dataset.unlabelled}
    return [
        Step(stage="ingest", what="rows from the source", digest=dataset.checked.rows.digest),
        Step(stage="validate", what="rows that keep the contract", digest=dataset.checked.digest),
        *(
            Step(stage="prepare", what=f"encoded rows, {name}", digest=part.sha256)
            for name, part in parts.items()
            if part is not None
        ),
        Step(stage="prepare", what="parts and encoder", digest=dataset.digest),
        Step(stage="train", what="weights", digest=trained.digest),
        *candidates(chosen.options),
    ]


def candidates(options: Options) -> list[Step]:
    return [Step(stage="compress", what=f"ONNX of {one.name}", digest=one.sha256) for one in options.candidates]
