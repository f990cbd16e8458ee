"""The gate on recent data: logged requests whose labels have arrived since."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.documents.durations import format_duration
from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.records.output_units import restore_units, standardise_outputs
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.score_format import degradation_name, format_degradation
from bloomery.data_contracts.records.scores import ACCURACY, Score, default_score
from bloomery.data_contracts.serving.prediction_log import SHADOW, read_log
from bloomery.models.evaluation.gates import Gates
from bloomery.models.evaluation.metrics import accuracy_drop
from bloomery.models.evaluation.output_scores import is_known
from bloomery.models.evaluation.score_intervals import degradation_interval
from bloomery.models.evaluation.scores import UndefinedScore
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.delayed_labels import (
    ROW_ID,
    filter_valid_labels,
    keep_last,
    locate_labels,
    parse_classes,
    parse_outputs,
    parse_set,
    read_bento_contract,
    read_labels,
    read_output_labels,
    read_set_separator,
)
from bloomery.tasks.promote.gates import (
    align_class_outputs,
    align_classes,
    align_labels,
    compare_aligned,
    predicted_labels,
    read_bento_encoder,
    run_bento,
)

_MAX_ROWS = 20_000  # the newest


class _Version(NamedTuple):
    """A version's encoder, and its probabilities (N, K) or numbers (N,) for the recent rows."""

    encoder: Encoder
    predictions: np.ndarray


def require_not_worse_on_recent_data(
    name: str, tag: str, champion: str | None, gates: Gates, score: Score | None = None
) -> str:
    """Compares the bento `tag` with the champion's bento on recent labelled rows, and describes the result.

    Without a champion, or with too few recent labelled rows, nothing is required and the result says why. They are
    compared by `score`, or by accuracy or RMSE where it is None or does not exist for these rows.

    Raises:
        ReleaseRefused: the bento may be worse on these rows by more than the gates allow.
        DataMissing: the labels that the recipe names cannot be read.
    """
    if champion is None or champion == tag:
        return "not compared on recent data: there is no other champion"
    label_path = locate_labels(name, gates.recent.labels)
    if label_path is None:
        return "not compared on recent data: no label has arrived"
    candidate_encoder, champion_encoder = (read_bento_encoder(bento) for bento in (tag, champion))
    if candidate_encoder is None:
        return "not compared on recent data: the bento cannot be read"
    features = candidate_encoder.features
    if features.task == "embedding":
        return "not compared on recent data: no label arrives for a vector"
    if features.task == "tagging":
        return "not compared on recent data: tags of logged sentences are not read"
    if features.labels is not None:
        names = features.labels
        if champion_encoder is not None and champion_encoder.features.labels != names:
            return "not compared on recent data: the champion has other outputs"
        labels, _ = read_output_labels(label_path, read_bento_contract(tag), names)
    else:
        labels = _read_labels(tag, features, label_path)
    rows, truth = _read_labelled_rows(name, labels, datetime.now(UTC) - gates.recent.window)
    if len(truth) < gates.recent.min_rows:
        return f"not compared on recent data: {len(truth):,} labelled rows, fewer than {gates.recent.min_rows:,}"
    after = run_bento(tag, candidate_encoder, rows)
    before = None if champion_encoder is None else run_bento(champion, champion_encoder, rows)
    if champion_encoder is None or before is None or after is None:
        return "not compared on recent data: the log lacks columns that one of the versions reads"
    default = default_score(candidate_encoder.features.task)
    versions = (_Version(champion_encoder, before), _Version(candidate_encoder, after))
    try:
        score = score or default
        degradation = _measure_degradation(score, truth, *versions)
    except UndefinedScore:
        score = default
        degradation = _measure_degradation(score, truth, *versions)
    limit = gates.champion_limit(score)
    result = _describe_result(score, champion, degradation)
    if degradation.high > limit:
        raise ReleaseRefused(
            f"on {len(truth):,} recent labelled rows the {result}",
            required=f"an interval that ends below {format_degradation(score, limit)}",
            where=f"the log of the last {format_duration(gates.recent.window)}, and the labels in {label_path}; "
            "the recipe's gates",
            remedy="train on recent rows too; or wait for more labels, where the interval is wide",
        )
    return f"on {len(truth):,} recent labelled rows the {result}"


def _read_labels(tag: str, features: Features, label_path: Path) -> pa.Table:
    is_multilabel = features.task == "multilabel"
    separator = read_set_separator(tag, features.label) if is_multilabel else None
    arrived = read_labels(label_path, is_multilabel=is_multilabel, separator=separator)
    return filter_valid_labels(read_bento_contract(tag), features.label, arrived)[0]


def _describe_result(score: Score, champion: str, degradation: Interval) -> str:
    value, low, high = (
        format_degradation(score, number) for number in (degradation.value, degradation.low, degradation.high)
    )
    return f"{degradation_name(score)} of {score.title} against {champion} is {value} (95% interval {low} to {high})"


def _read_labelled_rows(name: str, labels: pa.Table, since: datetime) -> tuple[pa.Table, pa.ChunkedArray]:
    """The logged raw rows that have a label, oldest first, and their labels."""
    tables = []
    for table in read_log(settings().home / "predictions" / name, ["at", *ROW_ID, "role", "columns"], since.date()):
        at = table["at"]
        is_recent = pc.and_(pc.greater_equal(at, pa.scalar(since, at.type)), pc.not_equal(table["role"], SHADOW))
        recent = table.filter(is_recent)
        # Only labelled rows stay in memory.
        labelled = recent.filter(pc.is_in(recent["request"], labels["request"]))
        if labelled.num_rows:
            tables.append(labelled)
    if not tables:
        return pa.table({}), pa.chunked_array([], labels["label"].type)
    logged = keep_last(pa.concat_tables(tables, promote_options="permissive"))
    numbered = logged.select([*ROW_ID, "at"]).append_column("place", pa.array(np.arange(logged.num_rows)))
    joined = numbered.join(labels, ROW_ID, join_type="inner").sort_by([("at", "ascending"), ("place", "ascending")])
    joined = joined.slice(max(joined.num_rows - _MAX_ROWS, 0))
    rows = logged["columns"].take(joined["place"]).combine_chunks()
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)]), joined["label"]


def _measure_degradation(score: Score, truth: pa.ChunkedArray, champion: _Version, candidate: _Version) -> Interval:
    """The degradation from the champion to the candidate; of several outputs, that of those with a label.

    Raises:
        UndefinedScore: the score does not exist for these rows.
    """
    if candidate.encoder.class_outputs:
        outputs = candidate.encoder.class_outputs
        truth_NM = parse_classes(truth.to_pylist(), outputs)
        before, after = (align_class_outputs(*version, outputs) for version in (champion, candidate))
        return _compare_outputs(score, truth_NM, before, after)
    if candidate.encoder.outputs:
        truth_NK = parse_outputs(truth.to_pylist(), candidate.encoder.outputs)
        # Both in the deviations of the candidate's labels.
        before, after = (_to_units_of(candidate.encoder, *version) for version in (champion, candidate))
        return _compare_outputs(score, truth_NK, before, after)
    if candidate.encoder.features.task == "regression":
        numbers = truth.cast(pa.float64()).to_numpy()
        return degradation_interval(score, numbers, champion.predictions, candidate.predictions)
    if candidate.encoder.features.task == "multilabel":
        return _compare_sets(score, truth, champion, candidate)
    # Compared as text: the label 3 may arrive as a number or as its name.
    labels = np.array(truth.cast(pa.string()).to_pylist(), dtype=object).astype(str)
    if score == ACCURACY:
        return accuracy_drop(
            *(predicted_labels(*version).astype(str) == labels for version in (champion, candidate)),
        )
    names = [str(name) for name in candidate.encoder.classes]
    is_known = np.isin(labels, names)
    positions = np.array([names.index(label) for label in labels[is_known]], np.int64)
    before, after = (align_classes(*version, names)[is_known] for version in (champion, candidate))
    return compare_aligned(score, positions, before, after)


def _compare_outputs(score: Score, truth_NK: np.ndarray, before: np.ndarray, after: np.ndarray) -> Interval:
    """The degradation over the outputs with a label in any row: those of some may never arrive."""
    is_labelled_K = is_known(truth_NK).any(axis=0)
    return degradation_interval(score, *(values[:, is_labelled_K] for values in (truth_NK, before, after)))


def _to_units_of(encoder: Encoder, source: Encoder, predictions_NK: np.ndarray) -> np.ndarray:
    """Predictions of `source` in the standard units of `encoder`, which has the same outputs."""
    return standardise_outputs(encoder.outputs, restore_units(source.outputs, predictions_NK))


def _compare_sets(score: Score, truth: pa.ChunkedArray, champion: _Version, candidate: _Version) -> Interval:
    """The degradation for sets of labels, given as texts; labels that the candidate does not know count for nothing."""
    classes = candidate.encoder.classes
    positions = {str(name): number for number, name in enumerate(classes)}
    truth_NK = np.zeros((len(truth), len(classes)), np.int8)
    for row, text in enumerate(truth.to_pylist()):
        truth_NK[row, [positions[label] for label in parse_set(text) if label in positions]] = 1
    before = align_labels(champion.encoder, champion.predictions, classes)
    return degradation_interval(score, truth_NK, before, candidate.predictions)
