"""The rows of the test part as they came, and what the chosen candidate was measured to answer to them."""

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.records.records import Choice
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.settings import settings

_BACKGROUND_ROWS = 16
_BACKGROUND_BYTES = 4_000_000  # wider rows are fewer


def read_measured_predictions(chosen: Choice) -> pa.Table:
    """Key, truth and answer for each row of the test part, and for classes their probabilities."""
    return pq.read_table(settings().path(chosen.candidate.predictions_uri))


def read_held_out_rows(chosen: Choice) -> pa.Table:
    """The raw rows of the test part, in the order of the measured answers."""
    dataset = chosen.candidates.trained.dataset
    keys = read_measured_predictions(chosen)[dataset.key]
    names = list(dict.fromkeys([dataset.key, *dataset.inputs]))
    rows = pa.Table.from_batches(list(read_batches(settings().path(dataset.test_rows_uri), names)))
    return rows.take(pc.index_in(keys.cast(rows.schema.field(dataset.key).type), rows[dataset.key]))


def request_rows(chosen: Choice, num_rows: int) -> list[dict[str, Any]]:
    """The first rows of the test part as a client would send them: what the model reads, in JSON's types."""
    rows = (
        read_held_out_rows(chosen).slice(0, num_rows).select(list(chosen.candidates.trained.dataset.inputs)).to_pylist()
    )
    return [{name: _as_sent(value) for name, value in row.items()} for row in rows]


def background_rows(chosen: Choice) -> list[dict[str, Any]]:
    """Rows of the test part, spread evenly, as a client would send them: what the endpoint compares a row with.

    Of the test part, as the examples are: no row that was learnt from lies in a bento, so what private training
    promises of each still holds.
    """
    rows = read_held_out_rows(chosen).select(list(chosen.candidates.trained.dataset.inputs))
    num_rows = min(max(_BACKGROUND_BYTES * rows.num_rows // max(rows.nbytes, 1), 1), _BACKGROUND_ROWS, rows.num_rows)
    places = [place * rows.num_rows // num_rows for place in range(num_rows)]
    return [{name: _as_sent(value) for name, value in row.items()} for row in rows.take(places).to_pylist()]


def _as_sent(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def example_predictions(chosen: Choice, num_rows: int) -> list[dict[str, Any]]:
    """Rows as a client would send them, each with the prediction that was measured."""
    dataset = chosen.candidates.trained.dataset
    answers = read_measured_predictions(chosen).slice(0, num_rows).to_pylist()
    if dataset.task == "regression":
        predictions = [{"value": answer["answer"]} for answer in answers]
    else:
        names = list(map(str, dataset.classes))
        predictions = [
            {"label": answer["answer"], "probabilities": dict(zip(names, answer["probabilities"], strict=True))}
            for answer in answers
        ]
    rows = request_rows(chosen, num_rows)
    return [{"row": row, "prediction": given} for row, given in zip(rows, predictions, strict=True)]
