"""Smoke test of a packaged version: the served bento gives the predictions that were measured before packaging."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.errors import EngineMissing, ReleaseRefused
from bloomery.data_contracts.serving.predictions import Prediction, format_prediction, max_difference
from bloomery.models.features.encoder import Encoder, read_encoder
from bloomery.models.inference.outputs import TOLERANCE, output_deviations, score_unit
from bloomery.tasks.bentos.bento_server import post_rows, serve_bento
from bloomery.tasks.bentos.bento_store import artifacts_folder

if TYPE_CHECKING:
    import httpx


def run_smoke_test(tag: str) -> int:
    """Serves the bento on a free port and requests predictions for its example rows. Returns their number.

    Raises:
        ReleaseRefused: it does not start, or a prediction differs.
    """
    artifacts = artifacts_folder(tag)
    try:
        examples: list[dict[str, Any]] = json.loads((artifacts / "examples.json").read_text(encoding="utf-8"))
        encoder = read_encoder(artifacts / "encoder.json")
        with serve_bento(tag) as client:
            predictions = parse_predictions(post_rows(client, [example["row"] for example in examples]), tag)
    except (OSError, ValueError, EngineMissing) as failure:
        raise ReleaseRefused(
            f"the bento does not serve: {getattr(failure, 'found', failure)}",
            required="a complete bento, which starts and predicts",
            where=str(artifacts),
            remedy="package the version again by running its recipe; the champion stays",
        ) from failure
    for index, (prediction, example) in enumerate(zip(predictions, examples, strict=True)):
        require_same_prediction(prediction, example["prediction"], encoder, f"row {index} of its examples", tag)
    return len(examples)


def parse_predictions(response: httpx.Response, tag: str) -> list[Prediction]:
    """Raises ReleaseRefused where the response has no predictions."""
    if not response.is_success:
        raise ReleaseRefused(
            f"the bento responded {response.status_code}: {response.text[:500]}",
            required="200 for rows that satisfy the contract",
            where=f"bento {tag}",
            remedy="read the log of the bento in the state folder: the packaged service has failed",
        )
    return list(response.json()["predictions"])


def require_same_prediction(prediction: Prediction, expected: Prediction, encoder: Encoder, row: str, tag: str) -> None:
    """Raises ReleaseRefused where the prediction for `row` differs from the measured one by more than the tolerance."""
    limit = TOLERANCE * score_unit(encoder)
    difference = max_difference(prediction, expected, output_deviations(encoder))
    if difference > limit:
        raise ReleaseRefused(
            f"for {row} the bento predicts {format_prediction(prediction)}; the difference is {difference:.2g}",
            required=f"{format_prediction(expected)}, as measured, within {limit:g}",
            where=f"bento {tag}",
            remedy="report this difference between serving and training as a bug; the champion stays",
        )
