"""What each column has to do with an answer: `/explain`, one request at a time, within a limit of work and of time.

One at a time, since shap draws from numpy's one source of random numbers, and so that predictions are not held up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa

from bloomery.deployments.endpoint.http.errors import Refused
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.models.explainability.raw_columns import group_row, locate_groups, sum_by_column
from bloomery.models.explainability.shapley import compute_shap_values, load_shap, select_background
from bloomery.models.features.encoder import encode

_MOST_UNITS = 1_024  # of a row; the masks of all orders lie in memory
_LABEL = "label"


class Explanations:
    """Explains rows of whichever version it is given, and keeps nothing of it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._under_way = threading.Lock()  # held by the thread that explains, whether or not its client still waits

    async def ask(self, version: Version, rows: pa.RecordBatch, query: bytes) -> list[dict[str, Any]]:
        """An explanation for each checked row, in order.

        Raises:
            Refused: the query asks for what the version does not have, an explanation is under way, it takes too long,
                or shap is not installed.
            DataUnfit: the recipe refuses a value.
        """
        asked = asked_class(version, query)
        if self._under_way.locked():
            raise _busy()
        return await asyncio.to_thread(self._explained, version, rows, asked)

    def _explained(self, version: Version, rows: pa.RecordBatch, asked: int | None) -> list[dict[str, Any]]:
        if not self._under_way.acquire(blocking=False):
            raise _busy()
        try:
            _require_shap()
            deadline = time.monotonic() + self._limits.explain_seconds
            x = encode(version.encoder, rows)
            given = version.answers_to(x)
            return [self._of_row(version, x[row], given[row], asked, deadline, (row, len(x))) for row in range(len(x))]
        finally:
            self._under_way.release()

    def _of_row(
        self,
        version: Version,
        x: np.ndarray,
        given: np.ndarray,
        asked: int | None,
        deadline: float,
        progress: tuple[int, int],
    ) -> dict[str, Any]:
        target = None if version.is_regression else int(given.argmax()) if asked is None else asked

        def answers(rows: np.ndarray) -> np.ndarray:
            if time.monotonic() > deadline:
                raise _too_slow(self._limits.explain_seconds, *progress)
            answered = version.answers_to(rows)
            return answered if target is None else answered[:, target]

        encoder, most_rows = version.encoder, self._limits.explain_evaluations
        units = group_row(encoder, x)
        num_units = int(units.of.max()) + 1
        if num_units > _MOST_UNITS:
            raise Refused(
                HTTPStatus.NOT_IMPLEMENTED,
                f"a row has {num_units:,} columns that are weighed one by one; at most {_MOST_UNITS:,} are explained",
            )
        behind = select_background(encoder.layout, x, version.background, num_units=num_units, most_rows=most_rows)
        found = compute_shap_values(answers, x, behind, units.of, most_rows=most_rows)
        pieces = locate_groups(encoder, units, found.values, x)
        return {
            **({} if target is None else {"label": encoder.classes[target]}),
            "answer": found.answer,
            "base": found.base,
            "contributions": sum_by_column(encoder, units, found.values),
            **({"pieces": pieces} if pieces else {}),
            "is_exact": found.is_exact,
        }


def asked_class(version: Version, query: bytes) -> int | None:
    """The place of the class whose probability is to be explained; None for each row's own answer.

    Raises:
        Refused: the query has something else than `label` once, or the version has no such class.
    """
    parameters = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    unknown = [name for name, _ in parameters if name != _LABEL]
    if unknown:
        raise _no_parameter(unknown[0], f"there is no such parameter; {_LABEL} is one")
    if not parameters:
        return None
    found = parameters[0][1]
    if len(parameters) > 1:
        raise _no_parameter(f"{len(parameters)} times {_LABEL}", "one class is explained at a time")
    if version.is_regression:
        raise _no_parameter(found, "the answer is a value, which has no label")
    known = [str(one) for one in version.encoder.classes]
    if found not in known:
        few = known[:20] + ([f"... ({len(known):,} in all)"] if len(known) > 20 else [])
        raise _no_parameter(found, f"must be one of {', '.join(few)}")
    return known.index(found)


def _no_parameter(found: str, rule: str) -> Refused:
    shown = found if len(found) <= 80 else f"{found[:77]}..."
    problem = {"row": "", "column": "", "found": repr(shown), "rule": rule}
    error = f"the query of the request: found {shown!r}, but {rule}"
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, error, [problem])


def _require_shap() -> None:
    try:
        load_shap()
    except ImportError as failure:
        error = f"explanations need the package shap, which cannot be loaded here: {failure}"
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, f"{error}; install what the bento requires") from failure


def _busy() -> Refused:
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "an explanation is under way, and one is made at a time; try again",
        headers={"retry-after": "1"},
    )


def _too_slow(seconds: float, num_done: int, num_rows: int) -> Refused:
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{num_done} of {num_rows} rows were explained within {seconds:g} s, which is the limit; send fewer at once",
    )


def path_of(version: Version, refused: dict[str, Any], contents: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI is told of `/explain`: `refused` has the responses, `contents` the body, that `/predict` has too."""
    label = {
        "name": _LABEL,
        "in": "query",
        "description": "the class whose probability is explained; left out, the one that is answered",
        "schema": {"enum": [str(one) for one in version.encoder.classes]},
    }
    return {
        "post": {
            "operationId": "explain",
            "summary": "What each column has to do with the answer to each row, in order",
            "description": "Shapley values against held-out rows: base and contributions add up to the answer.",
            **({} if version.is_regression else {"parameters": [label]}),
            "requestBody": {"required": True, "content": contents},
            "responses": {
                "200": {
                    "description": "the explanations",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Explanations"}}},
                },
                **refused,
                "501": {**refused["503"], "description": "rows of this version cannot be explained here"},
            },
        }
    }


def schemas_of(version: Version) -> dict[str, Any]:
    """The schemas that `path_of` names."""
    number = {"type": "number"}
    columns = dict.fromkeys(version.encoder.columns, number)
    required = ["answer", "base", "contributions", "is_exact"]
    label = {} if version.is_regression else {"label": {"enum": list(version.encoder.classes)}}
    explanation = {
        "type": "object",
        "required": [*label, *required],
        "properties": {
            **label,
            "answer": {**number, "description": "what /predict answers: a probability, or a value"},
            "base": {**number, "description": "the answer where nothing is known of the row"},
            "contributions": {"type": "object", "required": list(columns), "properties": columns},
            "pieces": {
                "type": "array",
                "description": "where in a column: rows and columns of pixels, bands and seconds, steps, or text",
                "items": {"type": "object", "required": ["contribution"], "properties": {"contribution": number}},
            },
            "is_exact": {"type": "boolean", "description": "false where orders of the columns were drawn"},
        },
    }
    return {
        "Explanation": explanation,
        "Explanations": {
            "type": "object",
            "required": ["explanations", "model"],
            "properties": {
                "explanations": {"type": "array", "items": {"$ref": "#/components/schemas/Explanation"}},
                "model": {"type": "string"},
            },
        },
    }
