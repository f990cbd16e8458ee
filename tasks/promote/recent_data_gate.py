"""What speaks for a version on the rows of late: those that were logged, and whose labels have come since."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.monitoring import span
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.score_format import DEGRADATION_NAMES, SCORE_NAMES, format_degradation
from bloomery.data_contracts.serving.prediction_log import SHADOW, read_log
from bloomery.models.evaluation.gates import Gates
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.delayed_labels import (
    ROW_ID,
    filter_valid_labels,
    keep_last,
    locate_labels,
    read_bento_contract,
    read_labels,
)
from bloomery.tasks.promote.gates import predict_with_bento, read_bento_encoder

_MOST_ROWS = 20_000  # the newest


def require_not_worse_on_recent_data(name: str, tag: str, champion: str | None, gates: Gates) -> str:
    """Ask the bento `tag` and the champion's the rows of late that have a label. Returns in words what came of it.

    Where there is no champion, or too few such rows, nothing is required, and the words say so.

    Raises:
        ReleaseRefused: the bento may be worse on them by more than the gates allow.
        DataMissing: what the recipe names as labels is none.
    """
    if champion is None or champion == tag:
        return "there was no other champion to compare it with on rows of late"
    place = locate_labels(name, gates.recent.labels)
    if place is None:
        return "no label of a row of late has arrived, so it was not compared on them"
    ours, theirs = (read_bento_encoder(one) for one in (tag, champion))
    if ours is None:
        return "not compared on rows of late: the bento cannot be read"
    labels, _ = filter_valid_labels(read_bento_contract(tag), ours.features.label, read_labels(place))
    rows, truth = _labelled(name, labels, datetime.now(UTC) - span(gates.recent.window))
    if len(truth) < gates.recent.min_rows:
        return f"{len(truth):,} rows of late have a label, fewer than {gates.recent.min_rows:,}: not compared on them"
    given = [
        None if one is None else predict_with_bento(bento, one, rows)
        for bento, one in ((tag, ours), (champion, theirs))
    ]
    if given[0] is None or given[1] is None:
        return "not compared on rows of late: the log has not all columns that both versions read"
    task = ours.features.task
    worse, limit = (
        (_drop(truth, given[1], given[0]), gates.champion_drop)
        if task == "classification"
        else (_rise(truth, given[1], given[0]), gates.champion_rise)
    )
    value, low, high = (format_degradation(task, one) for one in (worse.value, worse.low, worse.high))
    told = (
        f"{DEGRADATION_NAMES[task]} of {SCORE_NAMES[task]} against {champion} is {value} (95% interval {low} to {high})"
    )
    if worse.high > limit:
        raise ReleaseRefused(
            f"on {len(truth):,} rows of late that have a label the {told}",
            required=f"an interval that ends below {format_degradation(task, limit)}",
            where=f"the log of the last {gates.recent.window}, and the labels in {place}; the recipe's gates",
            remedy="train on rows of late too; or wait for more labels, where the interval is wide",
        )
    return f"on {len(truth):,} rows of late that have a label the {told}"


def _labelled(name: str, labels: pa.Table, since: datetime) -> tuple[pa.Table, pa.ChunkedArray]:
    """The rows as they were asked, oldest first, and their labels."""
    tables = []
    for table in read_log(settings().home / "predictions" / name, ["at", *ROW_ID, "role", "columns"], since.date()):
        at = table["at"]
        is_kept = pc.and_(pc.greater_equal(at, pa.scalar(since, at.type)), pc.not_equal(table["role"], SHADOW))
        found = table.filter(is_kept)
        # Only what has a label stays in memory.
        wanted = found.filter(pc.is_in(found["request"], labels["request"]))
        if wanted.num_rows:
            tables.append(wanted)
    if not tables:
        return pa.table({}), pa.chunked_array([], labels["label"].type)
    logged = keep_last(pa.concat_tables(tables, promote_options="permissive"))
    numbered = logged.select([*ROW_ID, "at"]).append_column("place", pa.array(np.arange(logged.num_rows)))
    found = numbered.join(labels, ROW_ID, join_type="inner").sort_by([("at", "ascending"), ("place", "ascending")])
    found = found.slice(max(found.num_rows - _MOST_ROWS, 0))
    rows = logged["columns"].take(found["place"]).combine_chunks()
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)]), found["label"]


def _drop(truth: pa.ChunkedArray, before: np.ndarray, after: np.ndarray) -> Interval:
    from bloomery.models.evaluation.metrics import accuracy_drop

    # As text, since a label of 3 may have come as a number or as its name.
    labels = np.array(truth.cast(pa.string()).to_pylist(), dtype=object)
    return accuracy_drop(before.astype(str) == labels.astype(str), after.astype(str) == labels.astype(str))


def _rise(truth: pa.ChunkedArray, before: np.ndarray, after: np.ndarray) -> Interval:
    from bloomery.models.evaluation.metrics import rmse_rise

    return rmse_rise(truth.cast(pa.float64()).to_numpy(), before, after)
