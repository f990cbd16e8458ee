"""observe: a window of a version's requests beside what is usual for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.monitoring import (
    REFERENCE,
    Door,
    Drift,
    Findings,
    Judged,
    Measure,
    Monitor,
    Usual,
    VersionReference,
)
from bloomery.data_contracts.odcs.distributions import Cells, Counts, count_into
from bloomery.data_contracts.serving.prediction_log import SHADOW, read_log, read_outcomes
from bloomery.models.evaluation.drift_tests import holm_correction, measure_divergence, poststratified_accuracy
from bloomery.models.evaluation.metrics import accuracy, proportion, rmse
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.alerts import alarms
from bloomery.tasks.monitoring.delayed_labels import PLACE, contract_of, kept_by, labels_of, once, read_labels
from bloomery.tasks.monitoring.reference_profile import highest, measured
from bloomery.tasks.registry.model_registry import BENTO

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ANSWER, CONFIDENCE = "(answer)", "(confidence)"  # no column of a contract has such a name


class _Seen(NamedTuple):
    """What is kept of the window's rows: counts over the reference's cells, and a few figures of each row."""

    num_rows: int
    counts: dict[str, Counts]
    seconds: np.ndarray  # of each request that was answered
    answers: pa.Table  # request, row, answer; none where nobody asks for them


def observe(version: ModelVersion, monitor: Monitor, since: datetime, until: datetime) -> Findings:
    """What the log says of the rows that `version` answered from `since` until before `until`.

    Raises:
        DataMissing: the version's bento has no reference, nothing was logged, the recipe names a column that has no
            reference, or what it names as labels is none.
    """
    tag = version.tags[BENTO]
    reference = read_reference(tag)
    watched = _watched(reference)
    folder = settings().home / "predictions" / version.name
    if not folder.is_dir():
        raise DataMissing(
            f"no request was logged for {version.name}",
            required="the log of predictions",
            where=str(folder),
            remedy=f"serve it: bloomery serve {version.name}",
        )
    _require_known(monitor.columns, reference, tag)
    notes: list[str] = []
    labels = labels_of(version.name, monitor.labels)
    seen = _seen(folder, tag, watched, since, until, keep_answers=labels is not None)
    drifts: tuple[Drift, ...] = ()
    if seen.num_rows < monitor.min_rows:
        notes.append(f"{seen.num_rows:,} rows tell nothing of drift: at least {monitor.min_rows:,} are needed")
    else:
        drifts = _drifts(watched, seen.counts, monitor)
    if reference.part == "test":
        notes.append("training was private, so the reference is of held-out rows")
    judged = _judged(tag, labels, monitor, reference, seen, notes)
    door = _door(folder, tag, seen.seconds, monitor, since, until)
    return Findings(
        name=version.name,
        version=int(version.version),
        bento=tag,
        task=reference.task,
        since=since,
        until=until,
        num_rows=seen.num_rows,
        part=reference.part,
        drifts=drifts,
        door=door,
        judged=judged,
        notes=tuple(notes),
        alarms=tuple(alarms(monitor, reference.task, drifts, door, judged)),
    )


def read_reference(tag: str) -> VersionReference:
    """What is usual for a bento. Raises DataMissing where it was packaged without, or is not here."""
    path = artifacts_folder(tag) / REFERENCE
    try:
        return VersionReference.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as failure:
        raise DataMissing(
            f"bento {tag} does not say what is usual for it: {failure}",
            required=f"{REFERENCE}, which `package` has written since versions are monitored",
            where=str(path),
            remedy="run its recipe again, which packages it with its reference",
        ) from failure


def _watched(reference: VersionReference) -> dict[str, Usual]:
    watched = {**reference.columns, ANSWER: reference.answers}
    return watched if reference.confidence is None else {**watched, CONFIDENCE: reference.confidence}


def _require_known(columns: Sequence[str] | None, reference: VersionReference, tag: str) -> None:
    unknown = [name for name in columns or () if name not in reference.columns]
    if unknown:
        known = ", ".join(reference.columns) or "none at all"
        raise DataMissing(
            f"bento {tag} says nothing of {', '.join(unknown)}",
            required=f"columns that have a reference: {known}",
            where="the recipe's monitor.columns",
            remedy="name others; columns about people and dates have none",
        )


def _seen(
    folder: Path, tag: str, watched: dict[str, Usual], since: datetime, until: datetime, *, keep_answers: bool
) -> _Seen:
    counts = {name: _nothing_in(_cells(usual)) for name, usual in watched.items()}
    seconds, answers, num_rows = [np.empty(0)], [], 0
    for rows in _rows(folder, tag, since, until):
        num_rows += rows.num_rows
        for name, usual in watched.items():
            values = _values(rows, name, usual.measure)
            if values is not None:
                counts[name] += count_into(_cells(usual), values)
        seconds.append(rows.filter(pc.equal(rows["row"], 0))["seconds"].to_numpy())
        if keep_answers:
            answers.append(rows.select(PLACE).append_column("answer", pc.struct_field(rows["answer"], 0)))
    empty = pa.table({"request": pa.array([], pa.string()), "row": pa.array([], pa.int32()), "answer": pa.array([])})
    kept = once(pa.concat_tables(answers, promote_options="permissive")) if answers else empty
    return _Seen(num_rows, counts, np.concatenate(seconds), kept)


def _rows(folder: Path, tag: str, since: datetime, until: datetime) -> Iterator[pa.Table]:
    """The rows that a client got from the version in the window, file by file."""
    for table in read_log(folder, ["at", *PLACE, "version", "role", "seconds", "columns", "answer"], since.date()):
        at = table["at"]
        bounds = [pa.scalar(moment, at.type) for moment in (since, until)]
        is_inside = pc.and_(pc.greater_equal(at, bounds[0]), pc.less(at, bounds[1]))
        is_theirs = pc.and_(pc.equal(table["version"], tag), pc.not_equal(table["role"], SHADOW))
        kept = table.filter(pc.and_(is_inside, is_theirs))
        if kept.num_rows:
            yield kept.combine_chunks()


def _values(rows: pa.Table, name: str, measure: Measure) -> pa.Array | None:
    """What is measured of a column, or of the answers; None where the rows have no such column."""
    if name == ANSWER:
        return pc.struct_field(rows["answer"], 0).combine_chunks()
    if name == CONFIDENCE:
        return pa.array(highest(pc.struct_field(rows["answer"], "probabilities")))
    kind = rows.schema.field("columns").type
    if kind.get_field_index(name) < 0:
        return None
    return measured(pc.struct_field(rows["columns"], name).combine_chunks(), measure)


def _cells(usual: Usual) -> Cells:
    return Cells(edges=usual.shares.edges, values=usual.shares.values)


def _nothing_in(cells: Cells) -> Counts:
    return Counts(edges=cells.edges, values=cells.values, counts=(0,) * cells.num_cells)


def _drifts(watched: dict[str, Usual], counts: dict[str, Counts], monitor: Monitor) -> tuple[Drift, ...]:
    """Largest first. Those that do not count in alarms are corrected for as well: a person looks at all of them."""
    names = [name for name in watched if counts[name].num_rows]
    found = {name: measure_divergence(watched[name].shares, watched[name].num_rows, counts[name]) for name in names}
    corrected = dict(zip(names, holm_correction([found[name].p_value for name in names]), strict=True))
    drifts = []
    for name, one in found.items():
        is_asked = monitor.columns is None or name in (*monitor.columns, ANSWER, CONFIDENCE)
        is_far = one.psi - one.noise >= monitor.psi and corrected[name] < monitor.significance
        drifts.append(
            Drift(
                name=name,
                measure=watched[name].measure,
                num_rows=counts[name].num_rows,
                **one._asdict(),
                corrected=corrected[name],
                counts=is_asked,
                is_drifted=is_asked and is_far,
                usual=watched[name].shares,
                found=counts[name],
            )
        )
    return tuple(sorted(drifts, key=lambda drift: -drift.psi))


def _judged(
    tag: str, place: Path | None, monitor: Monitor, reference: VersionReference, seen: _Seen, notes: list[str]
) -> Judged | None:
    if place is None:
        notes.append("no label has arrived, so nothing is known of how right the answers were")
        return None
    numbered = seen.answers.select(PLACE).append_column("at", pa.array(np.arange(seen.answers.num_rows)))
    labels, num_broken = kept_by(contract_of(tag), reference.label, read_labels(place))
    if num_broken:
        notes.append(f"{num_broken:,} labels break the contract, as rows do that are set aside, and do not count")
    found = numbered.join(labels, PLACE, join_type="inner")
    if found.num_rows < monitor.min_labels:
        notes.append(
            f"{found.num_rows:,} of {seen.answers.num_rows:,} rows have a label, which tells nothing of how right the "
            f"answers were: at least {monitor.min_labels:,} are needed"
        )
        return None
    order = np.argsort(found["at"].to_numpy())
    at, label = found["at"].to_numpy()[order], found["label"].take(pa.array(order))
    answers = seen.answers["answer"]
    if reference.task == "regression":
        truth = label.cast(pa.float64()).to_numpy()
        score, weighted, covered = rmse(truth, answers.to_numpy()[at]), None, 1.0
    else:
        # As text, since a label of 3 may have come as a number or as its name.
        given, truth = (np.array(pc.cast(one, pa.string()).to_pylist(), dtype=object) for one in (answers, label))
        is_right = given[at] == truth
        score = accuracy(is_right)
        weighted, covered = poststratified_accuracy(given, given[at], is_right)
    return Judged(num_labelled=len(at), score=score, weighted=weighted, covered=covered, held_out=reference.score)


def _door(folder: Path, tag: str, seconds: np.ndarray, monitor: Monitor, since: datetime, until: datetime) -> Door:
    statuses: Counter[int] = Counter()
    broken: Counter[str] = Counter()
    for outcome in read_outcomes(folder, since.date()):
        if outcome.version == tag and since <= outcome.at < until:
            statuses.update(outcome.statuses)
            broken.update(outcome.broken)
    num_requests = statuses.total()
    num_failed = sum(count for status, count in statuses.items() if status >= 500)
    is_timed = len(seconds) > 0
    return Door(
        num_requests=num_requests,
        refused=proportion(statuses[422], num_requests) if num_requests else None,
        failed=proportion(num_failed, num_requests) if num_requests else None,
        broken=tuple(broken.most_common(20)),
        num_timed=len(seconds),
        p50_ms=float(np.median(seconds)) * 1000 if is_timed else None,
        p99_ms=float(np.quantile(seconds, 0.99)) * 1000 if is_timed else None,
        slow=proportion(int((seconds * 1000 > monitor.latency_ms).sum()), len(seconds)) if is_timed else None,
    )
