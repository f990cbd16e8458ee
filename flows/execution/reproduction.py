"""Reproduces a version from the provenance in its bento, in a separate state folder.

`python -m bloomery.flows.execution.reproduction ORIGIN OUTCOME` writes one JSON document: the digest of every output,
or the error that stopped it.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import BloomeryError, DataMissing
from bloomery.data_contracts.recipe_sections.approval import PromotionTerms
from bloomery.data_contracts.records.provenance import Environment, Provenance, StageDigest, digest_chain
from bloomery.data_contracts.records.records import Bento, Candidates, Choice, Release
from bloomery.flows.order import run_stages
from bloomery.flows.recipe.recipe import Recipe
from bloomery.models.compression.budget import Budget
from bloomery.models.evaluation.gates import Gates
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.orchestration.events import StageStarted, subscribe


class Reproduction(Document):
    """The result of a reproduction: all digests, that of the bento's content last."""

    kind: Literal["reproduced"] = "reproduced"
    steps: tuple[StageDigest, ...]
    code: dict[str, str]
    environment: Environment


class FailedReproduction(Document):
    """A reproduction that failed with `error` in `stage`."""

    kind: Literal["failed"] = "failed"
    steps: tuple[StageDigest, ...] = ()  # always empty: the outputs of earlier stages are in the folder
    stage: str
    error: dict[str, Any]


class _Packaged(Exception):
    """Ends the run after the stage package."""

    def __init__(self, bento: Bento) -> None:
        super().__init__(bento.tag)
        self.bento = bento


def read_outcome(outcome: Path, log: Path) -> Reproduction | FailedReproduction:
    """Returns the outcome that the process wrote, or the last line of its log if it wrote none."""
    try:
        return _OUTCOME.validate_json(outcome.read_bytes())
    except (OSError, ValidationError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return FailedReproduction(stage="", error={"found": lines[-1] if lines else "the process ended without output"})


_OUTCOME: TypeAdapter[Reproduction | FailedReproduction] = TypeAdapter(Reproduction | FailedReproduction)


def reproduce_bento(provenance: Provenance) -> Reproduction:
    """Runs every stage from the source to the bento, in this process's state folder.

    The candidate that was chosen originally is chosen again, since the choice depends on measured latencies.

    Raises:
        DataMissing: a source or a checkpoint no longer exists, or the training started from weights of another version.
    """
    from bloomery.flows.stages import PLAIN_STAGES
    from bloomery.tasks.bentos.environment import code_versions, describe_environment
    from bloomery.tasks.checkpoints.relocation import relocate_checkpoints
    from bloomery.tasks.ingest.stage import locate_source

    recipe = pin_weight_bits(provenance.environment, Recipe.model_validate(provenance.recipe))
    features, model = relocate_checkpoints(recipe.features, recipe.model)
    recipe = recipe.model_copy(update={"features": features, "model": model})
    if provenance.choice.candidates.trained.initial_weights is not None:
        raise DataMissing(
            f"its training started from the weights of {provenance.choice.candidates.trained.initial_weights.name}",
            required="a version that was trained from its own data alone",
            where="the recipe's training.start_from",
            remedy="reproduce that version instead",
        )

    def choose_as_before(options: Candidates, _: Budget) -> Choice:
        return _choose_as_before(options, provenance)

    def stop_before_promotion(bento: Bento, _: Gates, __: PromotionTerms) -> Release:
        raise _Packaged(bento)

    stages = dataclasses.replace(PLAIN_STAGES, choose=choose_as_before, promote=stop_before_promotion)
    source = locate_source(recipe.data, recipe.contract.personal_columns)
    try:
        run_stages(stages, recipe, source, None)
    except _Packaged as packaged:
        bento = packaged.bento
    return Reproduction(
        steps=(
            *digest_chain(bento.choice),
            StageDigest(stage="package", content="content of the bento", digest=bento.digest),
        ),
        code=code_versions(),
        environment=describe_environment(bento.choice.candidates.trained.processor),
    )


def pin_weight_bits(original: Environment, recipe: Recipe) -> Recipe:
    """Returns the recipe with named candidates that use the original number of bits per weight on any processor."""
    candidates = recipe.compression.candidates
    if candidates is None:
        return recipe
    pinned = tuple(candidate.resolve_reduce_range(original.vector_flags) for candidate in candidates)
    return recipe.model_copy(update={"compression": recipe.compression.model_copy(update={"candidates": pinned})})


def _choose_as_before(candidates: Candidates, provenance: Provenance) -> Choice:
    original = provenance.choice
    candidate = next((item for item in candidates.candidates if item.name == original.candidate.name), None)
    if candidate is None:
        raise DataMissing(
            f"the candidate {original.candidate.name} was not built",
            required="the candidate that was chosen originally",
            where="the stage compress",
            remedy="compare the versions of the code: the stage that builds candidates has changed",
        )
    digest = digest_of_document([candidate.name, candidate.sha256, candidates.digest])
    return original.model_copy(update={"candidate": candidate, "candidates": candidates, "digest": digest})


def main() -> None:
    require_state_folder()
    provenance = Provenance.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    stages: list[str] = []
    subscribe(lambda event: stages.append(event.name) if isinstance(event, StageStarted) else None)
    outcome: Reproduction | FailedReproduction
    try:
        outcome = reproduce_bento(provenance)
    except BloomeryError as error:
        outcome = FailedReproduction(stage=stages[-1] if stages else "", error=error.as_document())
    write_text(Path(sys.argv[2]), outcome.model_dump_json(), mode=0o600)


if __name__ == "__main__":
    main()
