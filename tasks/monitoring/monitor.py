"""Compares a window of a version's requests with the version's reference profile."""

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
    REFERENCE_FILE,
    Drift,
    LabelledScore,
    Measure,
    Monitor,
    MonitoringReport,
    ReferenceProfile,
    RequestStats,
    VersionReference,
)
from bloomery.data_contracts.odcs.distributions import Bins, Histogram, count_into_bins
from bloomery.data_contracts.records.scores import MEAN_ACCURACY, MEAN_RMSE
from bloomery.data_contracts.serving.prediction_log import SHADOW, read_log, read_outcomes
from bloomery.models.evaluation.class_output_scores import one_hot
from bloomery.models.evaluation.drift_tests import holm_correction, measure_divergence, poststratified_accuracy
from bloomery.models.evaluation.metrics import accuracy, proportion, rmse
from bloomery.models.evaluation.output_scores import has_labels, output_score_interval
from bloomery.models.evaluation.score_intervals import score_interval
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.alerts import find_alerts
from bloomery.tasks.monitoring.delayed_labels import (
    ROW_ID,
    as_plain_labels,
    drop_unknown_labels,
    filter_valid_labels,
    keep_last,
    locate_labels,
    parse_classes,
    parse_outputs,
    read_bento_contract,
    read_labels,
    read_output_labels,
    read_set_separator,
)
from bloomery.tasks.monitoring.reference_profile import (
    confidence,
    known_tags,
    mean_confidence,
    single_labels,
    summarize_values,
    summarize_vectors,
)
from bloomery.tasks.registry.model_registry import require_bento_tag

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion

_PREDICTION, _CONFIDENCE = "prediction", "confidence"
_MAX_RULES = 20


class _Window(NamedTuple):
    """The requests of a version in a span of time; `folder` has the prediction log."""

    folder: Path
    tag: str
    since: datetime
    until: datetime


class _WindowStats(NamedTuple):
    """Statistics of the window's rows: counts over the reference's bins, and a few values of each row."""

    num_rows: int
    counts: dict[str, Histogram]
    seconds: np.ndarray  # of each request with predictions
    predictions: pa.Table  # request, row, prediction; empty where there are no labels to compare with


def monitor_window(version: ModelVersion, monitor: Monitor, since: datetime, until: datetime) -> MonitoringReport:
    """Monitors the rows in the prediction log that `version` served from `since` until before `until`.

    Raises:
        DataMissing: the version's bento has no reference profile, nothing was logged, the recipe names a column that
            has no reference, or its labels cannot be read.
    """
    tag = require_bento_tag(version)
    reference = read_reference(tag)
    folder = settings().home / "predictions" / version.name
    if not folder.is_dir():
        raise DataMissing(
            f"no request was logged for {version.name}",
            required="the prediction log",
            where=str(folder),
            remedy=f"serve it: bloomery serve {version.name}",
        )
    _require_profiled(monitor.columns, reference, tag)
    window = _Window(folder, tag, since, until)
    notes: list[str] = []
    labels = locate_labels(version.name, monitor.labels)
    stats = _summarize_window(window, reference, keep_predictions=labels is not None)
    drifts: tuple[Drift, ...] = ()
    if stats.num_rows < monitor.min_rows:
        notes.append(f"{stats.num_rows:,} rows are too few to measure drift; {monitor.min_rows:,} are needed")
    else:
        drifts = _measure_drifts(reference, stats.counts, monitor)
    if reference.split == "test":
        notes.append("training was private, so the reference profile is of held-out rows")
    labelled_score = _score_labelled(tag, labels, monitor, reference, stats, notes)
    requests = _summarize_requests(window, stats.seconds, monitor)
    return MonitoringReport(
        name=version.name,
        version=int(version.version),
        bento=tag,
        task=reference.task,
        since=since,
        until=until,
        num_rows=stats.num_rows,
        split=reference.split,
        drifts=drifts,
        requests=requests,
        labelled=labelled_score,
        notes=tuple(notes),
        alerts=tuple(find_alerts(monitor, reference.task, drifts, requests, labelled_score)),
    )


def read_reference(tag: str) -> VersionReference:
    """Reads the reference profile of a bento. Raises DataMissing if it has none, or is not in the store."""
    path = artifacts_folder(tag) / REFERENCE_FILE
    try:
        return VersionReference.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as failure:
        raise DataMissing(
            f"bento {tag} has no readable reference profile: {failure}",
            required=f"{REFERENCE_FILE}, which the stage `package` writes",
            where=str(path),
            remedy="run its recipe again, which packages it with its reference profile",
        ) from failure


def _profiles_by_name(reference: VersionReference) -> dict[str, ReferenceProfile]:
    """Returns the profiles of the columns, of the predictions and of their confidence, whose names are in brackets."""
    profiles = _prediction_profiles(reference)
    return {**reference.columns, **{_bracket(name, reference): profile for name, profile in profiles.items()}}


def _prediction_profiles(reference: VersionReference) -> dict[str, ReferenceProfile]:
    """Returns the profiles of the predictions and of their confidence, or of each output by its name."""
    if reference.output_profiles is not None:
        return dict(reference.output_profiles)
    profiles = {_PREDICTION: reference.predictions}
    return profiles if reference.confidence is None else {**profiles, _CONFIDENCE: reference.confidence}


def _bracket(name: str, reference: VersionReference) -> str:
    """Returns the name in brackets, in as many as distinguish it from the columns."""
    name = f"({name})"
    return _bracket(name, reference) if name in reference.columns else name


def _require_profiled(columns: Sequence[str] | None, reference: VersionReference, tag: str) -> None:
    unknown = [name for name in columns or () if name not in reference.columns]
    if unknown:
        profiled = ", ".join(reference.columns) or "none at all"
        raise DataMissing(
            f"bento {tag} has no reference profile of {', '.join(unknown)}",
            required=f"columns that have a reference profile: {profiled}",
            where="the recipe's monitor.columns",
            remedy="choose other columns; personal columns and dates have no profile",
        )


def _summarize_window(window: _Window, reference: VersionReference, *, keep_predictions: bool) -> _WindowStats:
    profiles = _profiles_by_name(reference)
    counts = {name: _empty_counts(_cells_of(profile)) for name, profile in profiles.items()}
    predicted = {_bracket(name, reference): name for name in _prediction_profiles(reference)}
    seconds, predictions, num_rows = [np.empty(0)], [], 0
    for rows in _read_rows(window):
        num_rows += rows.num_rows
        for name, profile in profiles.items():
            if name in predicted:
                values: pa.Array | None = _extract_predictions(rows, predicted[name], reference)
            else:
                values = _extract_column(rows, name, profile.measure)
            if values is not None:
                counts[name] += count_into_bins(_cells_of(profile), values)
        seconds.append(rows.filter(pc.equal(rows["row"], 0))["seconds"].to_numpy())
        if keep_predictions:
            is_ordered = reference.output_profiles is not None
            answers = as_plain_labels(pc.struct_field(rows["prediction"], 0), is_ordered=is_ordered)
            predictions.append(rows.select(ROW_ID).append_column("prediction", answers))
    empty_table = pa.table(
        {"request": pa.array([], pa.string()), "row": pa.array([], pa.int32()), "prediction": pa.array([])}
    )
    last_predictions = (
        keep_last(pa.concat_tables(predictions, promote_options="permissive")) if predictions else empty_table
    )
    return _WindowStats(num_rows, counts, np.concatenate(seconds), last_predictions)


def _read_rows(window: _Window) -> Iterator[pa.Table]:
    """Yields the logged rows that clients received from the version in the window, file by file."""
    columns = ["at", *ROW_ID, "version", "role", "seconds", "columns", "prediction"]
    for table in read_log(window.folder, columns, window.since.date()):
        at = table["at"]
        since, until = (pa.scalar(moment, at.type) for moment in (window.since, window.until))
        is_inside = pc.and_(pc.greater_equal(at, since), pc.less(at, until))
        is_of_version = pc.and_(pc.equal(table["version"], window.tag), pc.not_equal(table["role"], SHADOW))
        rows = table.filter(pc.and_(is_inside, is_of_version))
        if rows.num_rows:
            yield rows.combine_chunks()


def _extract_predictions(rows: pa.Table, what: str, reference: VersionReference) -> pa.Array:
    if reference.output_profiles is not None:
        position = list(reference.output_profiles).index(what)
        return pc.list_element(pc.struct_field(rows["prediction"], 0).combine_chunks(), position)
    if reference.task == "embedding":
        return summarize_vectors(pc.struct_field(rows["prediction"], 0).combine_chunks())
    if what == _CONFIDENCE and reference.task == "tagging":
        return pa.array(mean_confidence(pc.struct_field(rows["prediction"], "probabilities")))
    if what == _CONFIDENCE:
        return pa.array(confidence(pc.struct_field(rows["prediction"], "probabilities")))
    if reference.task == "tagging":
        return single_labels(known_tags(pc.struct_field(rows["prediction"], 0).combine_chunks()))
    return single_labels(pc.struct_field(rows["prediction"], 0).combine_chunks())


def _extract_column(rows: pa.Table, name: str, measure: Measure) -> pa.Array | None:
    """Returns the measured values of a column; None if the rows have no such column."""
    position = rows.schema.field("columns").type.get_field_index(name)
    if position < 0:
        return None
    return summarize_values(pc.struct_field(rows["columns"], [position]).combine_chunks(), measure)


def _cells_of(profile: ReferenceProfile) -> Bins:
    return Bins(edges=profile.shares.edges, values=profile.shares.values)


def _empty_counts(cells: Bins) -> Histogram:
    return Histogram(edges=cells.edges, values=cells.values, counts=(0,) * cells.num_bins)


def _measure_drifts(reference: VersionReference, counts: dict[str, Histogram], monitor: Monitor) -> tuple[Drift, ...]:
    """Returns all drifts, the largest PSI first.

    Distributions that raise no alert count in the correction as well, because a person looks at all of them.
    """
    profiles = _profiles_by_name(reference)
    names = [name for name in profiles if counts[name].num_rows]
    divergences = {
        name: measure_divergence(profiles[name].shares, profiles[name].num_rows, counts[name]) for name in names
    }
    corrected_p_values = dict(zip(names, holm_correction([divergences[name].p_value for name in names]), strict=True))
    drifts = []
    for name, divergence in divergences.items():
        can_alert = monitor.columns is None or name in monitor.columns or name not in reference.columns
        is_large = (
            divergence.psi - divergence.noise_psi >= monitor.psi and corrected_p_values[name] < monitor.significance
        )
        drifts.append(
            Drift(
                name=name,
                measure=profiles[name].measure,
                num_rows=counts[name].num_rows,
                **divergence._asdict(),
                corrected_p_value=corrected_p_values[name],
                can_alert=can_alert,
                is_drifted=can_alert and is_large,
                reference=profiles[name].shares,
                observed=counts[name],
            )
        )
    return tuple(sorted(drifts, key=lambda drift: -drift.psi))


def _score_labelled(
    tag: str, path: Path | None, monitor: Monitor, reference: VersionReference, stats: _WindowStats, notes: list[str]
) -> LabelledScore | None:
    """Returns the score on labelled rows; None, with a note, if there are too few."""
    if path is None:
        notes.append("no labels have arrived, so the score is unknown")
        return None
    if reference.task == "embedding":
        notes.append("labels are not read: which texts belong together is measured on the test split alone")
        return None
    if reference.task == "tagging":
        notes.append("labels are not read: tags of words are scored on the test split alone")
        return None
    num_rows = stats.predictions.num_rows
    numbered_rows = stats.predictions.select(ROW_ID).append_column("at", pa.array(np.arange(num_rows)))
    labels = _read_valid_labels(tag, path, reference, notes)
    matches = numbered_rows.join(labels, ROW_ID, join_type="inner")
    if matches.num_rows < monitor.min_labels:
        notes.append(
            f"{matches.num_rows:,} of {num_rows:,} rows have a label, too few for a score; "
            f"{monitor.min_labels:,} are needed"
        )
        return None
    order = np.argsort(matches["at"].to_numpy())
    at, label = matches["at"].to_numpy()[order], matches["label"].take(pa.array(order))
    answers = stats.predictions["prediction"]
    if reference.outputs:
        truth, predicted = (parse_outputs(texts.to_pylist(), reference.outputs) for texts in (label, answers))
        if not has_labels(truth):
            notes.append("an output has no label in any row, so the mean score over the outputs is unknown")
            return None
        score, weighted_score, coverage = output_score_interval(MEAN_RMSE.name, truth, predicted[at]), None, 1.0
    elif reference.class_outputs:
        truth, predicted = (parse_classes(texts.to_pylist(), reference.class_outputs) for texts in (label, answers))
        if not has_labels(truth):
            notes.append("one of the labels has not arrived for any row, so the mean accuracy is unknown")
            return None
        score, weighted_score, coverage = score_interval(MEAN_ACCURACY, truth, one_hot(predicted[at])), None, 1.0
    elif reference.task == "regression":
        truth = label.cast(pa.float64()).to_numpy()
        score, weighted_score, coverage = rmse(truth, answers.to_numpy()[at]), None, 1.0
    else:
        # As text, because a label of 3 may arrive as a number or as a string.
        names, truth = (np.array(pc.cast(column, pa.string()).to_pylist(), dtype=object) for column in (answers, label))
        is_correct = names[at] == truth
        score = accuracy(is_correct)
        # Most sets are those of few rows, so that strata of sets would hide a drop behind a wide interval.
        weighted_score, coverage = (
            (None, 1.0) if reference.task == "multilabel" else poststratified_accuracy(names, names[at], is_correct)
        )
    return LabelledScore(
        num_labelled=len(at),
        score=score,
        weighted_score=weighted_score,
        coverage=coverage,
        held_out_score=reference.score,
    )


def _read_valid_labels(tag: str, path: Path, reference: VersionReference, notes: list[str]) -> pa.Table:
    """Reads the labels in `path` as they were before training: without invalid ones, and sets without unknown ones."""
    if reference.output_profiles is not None:
        names = list(reference.output_profiles)
        labels, num_invalid = read_output_labels(path, read_bento_contract(tag), names)
        if num_invalid:
            notes.append(f"{num_invalid:,} labels violate the contract and are ignored")
        return labels
    is_multilabel = reference.task == "multilabel"
    separator = read_set_separator(tag, reference.label) if is_multilabel else None
    arrived = read_labels(path, is_multilabel=is_multilabel, separator=separator)
    labels, num_invalid = filter_valid_labels(read_bento_contract(tag), reference.label, arrived)
    if num_invalid:
        notes.append(f"{num_invalid:,} labels violate the contract and are ignored")
    if is_multilabel:
        labels, unknown = drop_unknown_labels(labels, set(map(str, reference.predictions.shares.values or ())))
        if unknown:
            listing = ", ".join(label for label, _ in unknown.most_common(5))
            notes.append(
                f"{unknown.total():,} labels in sets are left out, since the version does not know them: {listing}"
            )
    return labels


def _summarize_requests(window: _Window, seconds: np.ndarray, monitor: Monitor) -> RequestStats:
    """Shares of rejected, failed and slow requests, and latencies."""
    statuses: Counter[int] = Counter()
    violations: Counter[str] = Counter()
    for outcome in read_outcomes(window.folder, window.since.date()):
        if outcome.version == window.tag and window.since <= outcome.at < window.until:
            statuses.update(outcome.statuses)
            violations.update(outcome.violations)
    num_requests = statuses.total()
    num_failed = sum(count for status, count in statuses.items() if status >= 500)
    is_timed = len(seconds) > 0
    return RequestStats(
        num_requests=num_requests,
        rejected=proportion(statuses[422], num_requests) if num_requests else None,
        failed=proportion(num_failed, num_requests) if num_requests else None,
        violations=tuple(violations.most_common(_MAX_RULES)),
        num_timed=len(seconds),
        p50_ms=float(np.median(seconds)) * 1000 if is_timed else None,
        p99_ms=float(np.quantile(seconds, 0.99)) * 1000 if is_timed else None,
        slow=proportion(int((seconds * 1000 > monitor.latency_ms).sum()), len(seconds)) if is_timed else None,
    )
