"""A packaged version shows, served as it will be, that it answers as was measured when it was packaged."""

from __future__ import annotations

import json
from typing import Any

import httpx

from bloomery.data_contracts.errors import EngineMissing, ReleaseRefused
from bloomery.data_contracts.serving.predictions import Prediction, furthest, in_words
from bloomery.models.features.encoder import read_encoder
from bloomery.models.inference.outputs import TOLERANCE, score_unit
from bloomery.tasks.bentos.bento_server import ask, served_bento
from bloomery.tasks.bentos.bento_store import artifacts_folder


def rehearse(tag: str) -> int:
    """Serve the bento on a free port and ask it the rows that it carries. Returns how many.

    Raises:
        ReleaseRefused: it does not start, or answers otherwise.
    """
    artifacts = artifacts_folder(tag)
    try:
        shown: list[dict[str, Any]] = json.loads((artifacts / "examples.json").read_text(encoding="utf-8"))
        limit = TOLERANCE * score_unit(read_encoder(artifacts / "encoder.json"))
        with served_bento(tag) as client:
            answers = predictions_of(ask(client, [one["row"] for one in shown]), tag)
    except (OSError, ValueError, EngineMissing) as failure:
        raise ReleaseRefused(
            f"the bento does not serve: {getattr(failure, 'found', failure)}",
            required="a whole bento, which starts and answers",
            where=str(artifacts),
            remedy="package the version again by running its recipe; the champion stands",
        ) from failure
    for position, (answered, one) in enumerate(zip(answers, shown, strict=True)):
        require_same(answered, one["prediction"], limit, f"row {position} of its examples", tag)
    return len(shown)


def predictions_of(response: httpx.Response, tag: str) -> list[Prediction]:
    """Raises ReleaseRefused where the bento gave no predictions."""
    if not response.is_success:
        raise ReleaseRefused(
            f"the bento answered {response.status_code}: {response.text[:500]}",
            required="200 for rows that keep the contract",
            where=f"bento {tag}",
            remedy="the packaged service is at fault: look into its log in the state folder",
        )
    return list(response.json()["predictions"])


def require_same(answered: Prediction, measured: Prediction, limit: float, what: str, tag: str) -> None:
    """Raises ReleaseRefused where the answer is another, or further than `limit` from what was measured."""
    apart = furthest(answered, measured)
    if apart > limit:
        raise ReleaseRefused(
            f"for {what} the bento answers {in_words(answered)}, {apart:.2g} off",
            required=f"{in_words(measured)}, as was measured, within {limit:g}",
            where=f"bento {tag}",
            remedy="serving and training disagree: report it; the champion stands",
        )
