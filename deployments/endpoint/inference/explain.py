"""`/explain`: SHAP values of each raw column, one request at a time, within limits of work and time.

One request at a time, because shap uses numpy's global random state, and so that predictions stay fast.
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

from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.explainability.raw_columns import group_row, locate_groups, sum_by_column
from bloomery.models.explainability.shapley import compute_shap_values, load_shap, select_background
from bloomery.models.features.encoder import encode

LABEL_PARAMETER = "label"
_MAX_GROUPS = 1_024  # of a row; the masks of all orders lie in memory
_MAX_LISTED_CLASSES = 20
_MAX_SHOWN_LETTERS = 80


class Explainer:
    """Explains rows with any version. It keeps no state of a version."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running = threading.Lock()  # held by the explaining thread, even if its client has disconnected

    async def explain(self, version: LoadedVersion, rows: pa.RecordBatch, query: bytes) -> list[dict[str, Any]]:
        """Returns an explanation for each validated row, in order.

        Raises:
            HTTPError: the query is not valid for the version, another explanation is running, this one takes too long,
                or shap is not installed.
            DataUnfit: the encoder rejects a value.
        """
        if version.is_embedding:
            raise HTTPError(
                HTTPStatus.NOT_IMPLEMENTED, "the values of a vector have no meaning of their own to explain"
            )
        if version.is_tagging:
            raise HTTPError(
                HTTPStatus.NOT_IMPLEMENTED, "a sentence has a tag for each word, and no single output to explain"
            )
        class_index = requested_class(version, query)
        if self._running.locked():
            raise _busy()
        return await asyncio.to_thread(self._explain_rows, version, rows, class_index)

    def _explain_rows(
        self, version: LoadedVersion, rows: pa.RecordBatch, class_index: int | None
    ) -> list[dict[str, Any]]:
        if not self._running.acquire(blocking=False):
            raise _busy()
        try:
            _require_shap()
            deadline = _Deadline(self._limits.explain_seconds, rows.num_rows)
            x = encode(version.encoder, rows)
            outputs = version.predict_encoded(x)
            explanations = []
            for row, output in zip(x, outputs, strict=True):
                explanations.append(self._explain_row(version, row, output, class_index, deadline))
                deadline.num_done += 1
            return explanations
        finally:
            self._running.release()

    def _explain_row(
        self,
        version: LoadedVersion,
        x: np.ndarray,
        output: np.ndarray,
        class_index: int | None,
        deadline: _Deadline,
    ) -> dict[str, Any]:
        predicted = None if version.is_regression else int(output.argmax())
        if version.output_names:
            predicted = 0
        target = predicted if class_index is None else class_index  # None for a regression

        def predict_target(rows: np.ndarray) -> np.ndarray:
            deadline.check()
            outputs = version.predict_encoded(rows)
            if version.encoder.class_outputs:  # the class that is predicted for this row
                return outputs[:, target, output[target].argmax()]
            return outputs if target is None else outputs[:, target]

        encoder, max_rows = version.encoder, self._limits.explain_evaluations
        groups = group_row(encoder, x)
        num_groups = int(groups.group_of.max()) + 1
        if num_groups > _MAX_GROUPS:
            raise HTTPError(
                HTTPStatus.NOT_IMPLEMENTED,
                f"a row has {num_groups:,} groups of features to weigh; at most {_MAX_GROUPS:,} can be explained",
            )
        background = select_background(
            encoder.layout, x, version.background, num_groups=num_groups, max_evaluations=max_rows
        )
        shap_values = compute_shap_values(predict_target, x, background, groups.group_of, max_evaluations=max_rows)
        regions = locate_groups(encoder, groups, shap_values.values, x)
        return {
            **({} if target is None else {"label": (version.output_names or encoder.classes)[target]}),
            "output": shap_values.output,
            "base_value": shap_values.base,
            "contributions": sum_by_column(encoder, groups, shap_values.values, x),
            **({"regions": regions} if regions else {}),
            "is_exact": shap_values.is_exact,
        }


class _Deadline:
    """The time limit of a request, and the number of its explained rows."""

    def __init__(self, seconds: float, num_rows: int) -> None:
        self._seconds, self._num_rows = seconds, num_rows
        self._end = time.monotonic() + seconds
        self.num_done = 0

    def check(self) -> None:
        """Raises HTTPError past the deadline."""
        if time.monotonic() > self._end:
            remedy = (
                "send fewer rows at once"
                if self.num_done
                else "the server's BLOOMERY_SERVE_EXPLAIN_EVALUATIONS lowers the work for a row, and "
                "BLOOMERY_SERVE_EXPLAIN_SECONDS raises the limit; a busy server may be fast enough later"
            )
            raise HTTPError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.num_done} of {self._num_rows} rows were explained within the limit of {self._seconds:g} s; "
                f"{remedy}",
            )


def requested_class(version: LoadedVersion, query: bytes) -> int | None:
    """Returns the index of the class whose probability is explained; None for the most probable class of each row.

    Raises:
        HTTPError: the query has more than one `label` or another parameter, or the version has no such class.
    """
    parameters = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    unknown = [name for name, _ in parameters if name != LABEL_PARAMETER]
    if unknown:
        raise _invalid_query(unknown[0], f"the only parameter is {LABEL_PARAMETER}")
    if not parameters:
        return None
    label = parameters[0][1]
    if len(parameters) > 1:
        raise _invalid_query(f"{len(parameters)} times {LABEL_PARAMETER}", "one class is explained at a time")
    if version.is_regression:
        raise _invalid_query(label, "a regression has no label")
    classes = version.output_names or [str(name) for name in version.encoder.classes]
    if label not in classes:
        listed = classes[:_MAX_LISTED_CLASSES]
        if len(classes) > _MAX_LISTED_CLASSES:
            listed.append(f"... ({len(classes):,} in all)")
        raise _invalid_query(label, f"must be one of {', '.join(listed)}")
    return classes.index(label)


def _invalid_query(value: str, rule: str) -> HTTPError:
    excerpt = value if len(value) <= _MAX_SHOWN_LETTERS else f"{value[: _MAX_SHOWN_LETTERS - 3]}..."
    problem = {"row": "", "column": "", "found": repr(excerpt), "rule": rule}
    return HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, f"the query has {excerpt!r}, but {rule}", [problem])


def _require_shap() -> None:
    try:
        load_shap()
    except ImportError as failure:
        message = f"explanations need the package shap, which cannot be imported: {failure}"
        raise HTTPError(HTTPStatus.NOT_IMPLEMENTED, f"{message}; install the bento's requirements") from failure


def _busy() -> HTTPError:
    return HTTPError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "another explanation is running, and one runs at a time; try again",
        headers={"retry-after": "1"},
    )
