"""A version made again from what it carries with it, in a state folder of its own.

`python -m bloomery.flows.execution.reproduction ORIGIN OUTCOME` writes one JSON document: every digest on the way, or
why it came to no end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import BloomeryError, DataMissing
from bloomery.data_contracts.records.provenance import Origin, Step, Surroundings, steps
from bloomery.data_contracts.records.records import Bento, Chosen, Options
from bloomery.data_contracts.serving.champion_pointer import replace_text
from bloomery.flows.order import in_order
from bloomery.flows.recipe.recipe import Recipe
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.orchestration.events import StageStarted, watch


class Rebuilt(Document):
    """What came out: all digests, of the bento's content the last."""

    kind: Literal["rebuilt"] = "rebuilt"
    steps: tuple[Step, ...]
    code: dict[str, str]
    surroundings: Surroundings


class Broken(Document):
    """It came to no end, with that error, in that stage."""

    kind: Literal["broken"] = "broken"
    steps: tuple[Step, ...] = ()  # none: what came out before is in the folder
    stage: str
    error: dict[str, Any]


def read_outcome(outcome: Path, log: Path) -> Rebuilt | Broken:
    """What the process has written; the last line of its log where it wrote nothing."""
    try:
        return _OUTCOME.validate_json(outcome.read_bytes())
    except (OSError, ValidationError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return Broken(stage="", error={"found": lines[-1] if lines else "it ended without a word"})


_OUTCOME: TypeAdapter[Rebuilt | Broken] = TypeAdapter(Rebuilt | Broken)


def rebuild(origin: Origin) -> Rebuilt:
    """Every stage from the source to the bento, into this process's state folder.

    Which candidate was chosen depends on times that were measured, so the one that was chosen then is taken again.

    Raises:
        DataMissing: a source is not there any more, or the training began with weights of another version.
    """
    from bloomery.flows.pipeline import PLAIN
    from bloomery.tasks.bentos.environment import codes, surroundings
    from bloomery.tasks.ingest.stage import locate

    recipe = with_bits_of(origin.surroundings, Recipe.model_validate(origin.recipe))
    if origin.chosen.options.trained.start is not None:
        raise DataMissing(
            f"its training began with the weights of {origin.chosen.options.trained.start.name}",
            required="a version that was trained from nothing, whose own data is all that it takes",
            where="the recipe's training.start_from",
            remedy="reproduce that version; what was learnt afterwards has no digest without it",
        )
    others = {"choose": lambda options, _: _as_then(options, origin), "promote": lambda bento, *_: bento}
    stages: Any = SimpleNamespace(**{**vars(PLAIN), **others})
    source = locate(recipe.data, recipe.contract.personal_columns)
    made: Any = in_order(stages, recipe, source, None)
    bento: Bento = made
    return Rebuilt(
        steps=(*steps(bento.chosen), Step(stage="package", what="content of the bento", digest=bento.digest)),
        code=codes(),
        surroundings=surroundings(bento.chosen.options.trained.processor),
    )


def with_bits_of(then: Surroundings, recipe: Recipe) -> Recipe:
    """The recipe, whose named candidates state how many bits a weight had then, whatever this processor is."""
    named = recipe.compression.candidates
    if named is None:
        return recipe
    there = tuple(one.for_processor(then.vector_flags) for one in named)
    return recipe.model_copy(update={"compression": recipe.compression.model_copy(update={"candidates": there})})


def _as_then(options: Options, origin: Origin) -> Chosen:
    then = origin.chosen
    candidate = next((one for one in options.candidates if one.name == then.candidate.name), None)
    if candidate is None:
        raise DataMissing(
            f"the candidate {then.candidate.name} was not made",
            required="the one that was chosen then",
            where="the stage compress",
            remedy="compare the code: what makes candidates has changed",
        )
    digest = digest_of_document([candidate.name, candidate.sha256, options.digest])
    return then.model_copy(update={"candidate": candidate, "options": options, "digest": digest})


def main() -> None:
    require_state_folder()
    origin = Origin.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    begun: list[str] = []
    watch(lambda event: begun.append(event.name) if isinstance(event, StageStarted) else None)
    told: Rebuilt | Broken
    try:
        told = rebuild(origin)
    except BloomeryError as error:
        told = Broken(stage=begun[-1] if begun else "", error=error.as_document())
    replace_text(Path(sys.argv[2]), told.model_dump_json())


if __name__ == "__main__":
    main()
