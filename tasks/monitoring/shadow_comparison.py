"""Compares a shadow's predictions in the log with the champion's, and with labels that arrived later."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.score_format import DEGRADATION_NAMES, SCORE_NAMES, format_degradation
from bloomery.data_contracts.records.scores import MEAN_ACCURACY, MEAN_RMSE
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.data_contracts.serving.prediction_log import SHADOW, read_log
from bloomery.models.features.encoder import Encoder, read_encoder
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.delayed_labels import (
    ROW_ID,
    as_plain_labels,
    drop_unknown_labels,
    keep_last,
    parse_classes,
    parse_outputs,
    read_bento_contract,
    read_labels,
    read_output_labels,
    read_set_separator,
)


class Comparison(Document):
    """`agreement` is the share of rows with the same label; a regression has `rms_difference` instead.

    The scores are accuracies, or RMSEs for a regression, of the labelled rows; `degradation` is how much worse the
    challenger is on them, paired. Seconds are medians of the network's run.
    """

    champion: str
    challenger: str
    num_rows: int
    agreement: float | None
    rms_difference: float | None  # of several outputs in deviations of their labels
    task: Task | None = None  # only of several outputs
    champion_seconds: float
    challenger_seconds: float
    num_labelled: int = 0
    champion_score: float | None = None
    challenger_score: float | None = None
    degradation: Interval | None = None


def compare_versions(name: str, champion: str, challenger: str | None, labels: Path | None = None) -> Comparison:
    """Compares two bentos on the rows that both have predicted, the challenger as shadow.

    `challenger` None means the latest shadow.

    Raises:
        DataMissing: there are no such rows, or no labels for them.
    """
    log, field = _read_predictions(name)
    if field == "tags" and labels is not None:
        raise DataMissing(
            f"{name} predicts tags of words, and tags that arrive later are not read",
            required="predictions of one label, of sets of labels, or of numbers",
            where="--labels",
            remedy="omit it, and compare their scores on the test split: bloomery show",
        )
    shadows = log.filter(pc.equal(log["role"], SHADOW))
    if challenger is None and shadows.num_rows:
        challenger = pc.take(shadows["version"], [shadows.num_rows - 1])[0].as_py()
    challenger_rows = keep_last(shadows.filter(pc.equal(shadows["version"], challenger or "")))
    is_champion = pc.and_(pc.not_equal(log["role"], SHADOW), pc.equal(log["version"], champion))
    champion_rows = keep_last(log.filter(is_champion))
    pairs = champion_rows.join(challenger_rows, ROW_ID, join_type="inner", right_suffix="_challenger")
    if not pairs.num_rows:
        raise _no_rows_error(name, champion, challenger)
    pairs = pairs.sort_by("at")
    champion_predictions, challenger_predictions = (
        _to_numpy(pairs["prediction"]),
        _to_numpy(pairs["prediction_challenger"]),
    )
    encoder = _read_encoder(champion, str(challenger)) if field in ("values", "classes") else None
    outputs = () if encoder is None else encoder.outputs
    if outputs:
        champion_predictions, challenger_predictions = (
            parse_outputs(values, outputs) for values in (champion_predictions, challenger_predictions)
        )
    is_regression = champion_predictions.dtype.kind == "f"
    seconds = [float(np.median(pairs[column].to_numpy())) for column in ("run_seconds", "run_seconds_challenger")]
    comparison = Comparison(
        champion=champion,
        challenger=str(challenger),
        num_rows=pairs.num_rows,
        agreement=None if is_regression else float((champion_predictions == challenger_predictions).mean()),
        rms_difference=float(np.sqrt(((champion_predictions - challenger_predictions) ** 2).mean()))
        if is_regression
        else None,
        champion_seconds=seconds[0],
        challenger_seconds=seconds[1],
        task=None if encoder is None else encoder.features.task,
    )
    if labels is None:
        return comparison
    if encoder is not None:
        names = list(encoder.features.label_columns)
        arrived, _ = read_output_labels(labels, read_bento_contract(champion), names)
    elif field == "labels":
        arrived = _read_known_sets(labels, champion, comparison.challenger)
    else:
        arrived = read_labels(labels)
    predictions = (champion_predictions, challenger_predictions)
    return _add_scores(comparison, pairs.select(ROW_ID), predictions, arrived, labels, encoder)


def _read_known_sets(path: Path, champion: str, challenger: str) -> pa.Table:
    """Reads sets of labels in the form of the versions' recipes, without the labels that neither version knows."""
    encoders = {}
    for tag in (champion, challenger):
        with contextlib.suppress(OSError, ValueError):  # the bento is in another store, or of another Bloomery
            encoders[tag] = read_encoder(artifacts_folder(tag) / "encoder.json")
    separators = (read_set_separator(tag, encoder.features.label) for tag, encoder in encoders.items())
    sets = read_labels(path, is_multilabel=True, separator=next(filter(None, separators), None))
    names = {str(name) for encoder in encoders.values() for name in encoder.classes}
    return drop_unknown_labels(sets, names)[0] if names else sets


def require_agreement(name: str, champion: str, challenger: str, num_rows: int, agreement: float) -> None:
    """Raises ReleaseRefused where the challenger has predicted fewer rows as shadow, or agrees on a smaller share."""
    try:
        comparison = compare_versions(name, champion, challenger)
        num_common = comparison.num_rows
    except DataMissing:
        comparison, num_common = None, 0
    if num_common < num_rows:
        raise ReleaseRefused(
            f"{challenger} has predicted {num_common:,} rows as shadow of {champion}",
            required=f"{num_rows:,} rows",
            where=str(_log_folder(name)),
            remedy=f"let it run longer: bloomery serve {name} --shadow {name}:VERSION",
        )
    if comparison is not None and comparison.agreement is not None and comparison.agreement < agreement:
        raise ReleaseRefused(
            f"{challenger} and {champion} agree on {comparison.agreement:.2%} of {num_common:,} rows",
            required=f"{agreement:.2%}",
            where=str(_log_folder(name)),
            remedy="look at the rows where they differ; or lower --min-agreement if the challenger is meant to differ",
        )


def describe_comparison(comparison: Comparison) -> list[str]:
    """Returns one line per fact."""
    lines = [
        f"{comparison.num_rows:,} rows were predicted by {comparison.champion} and, as shadow, by "
        f"{comparison.challenger}"
    ]
    if comparison.agreement is not None:
        lines.append(f"they agree on {comparison.agreement:.2%}")
    if comparison.rms_difference is not None:
        lines.append(f"they differ by {comparison.rms_difference:g} (root mean square)")
    ratio = comparison.challenger_seconds / comparison.champion_seconds
    lines.append(
        f"a run took {comparison.champion_seconds * 1e6:.0f} and {comparison.challenger_seconds * 1e6:.0f} µs: "
        f"{ratio:.2f}x"
    )
    if comparison.degradation is not None:
        task = comparison.task or ("regression" if comparison.agreement is None else "classification")
        interval = comparison.degradation
        low, value, high = (format_degradation(task, bound) for bound in (interval.low, interval.value, interval.high))
        lines.append(
            f"on {comparison.num_labelled:,} labelled rows: {SCORE_NAMES[task]} {comparison.champion_score:.4g} and "
            f"{comparison.challenger_score:.4g}: a {DEGRADATION_NAMES[task]} of {value} (95% interval {low} to {high})"
        )
    return lines


def _add_scores(
    comparison: Comparison,
    row_ids: pa.Table,
    predictions: tuple[np.ndarray, np.ndarray],
    arrived: pa.Table,
    labels: Path,
    encoder: Encoder | None = None,
) -> Comparison:
    """Adds the scores of both versions on the rows whose label has `arrived`, from the file or folder `labels`."""
    from bloomery.models.evaluation.class_output_scores import label_degradation_interval, one_hot, score_labels
    from bloomery.models.evaluation.metrics import accuracy_drop, rmse_rise
    from bloomery.models.evaluation.output_scores import mean_output_score, output_degradation_interval
    from bloomery.models.evaluation.score_intervals import degradation_interval
    from bloomery.models.evaluation.scores import compute_score

    numbered_rows = row_ids.append_column("at", pa.array(np.arange(row_ids.num_rows)))
    labelled_rows = numbered_rows.join(arrived, ROW_ID, join_type="inner")
    if not labelled_rows.num_rows:
        raise DataMissing(
            f"{labels} has no label for any of the {row_ids.num_rows:,} rows that both have predicted",
            required="request ids as the endpoint returns them in x-request-id",
            where=str(labels),
            remedy="store the id of each response, and write it beside the label",
        )
    at, truth = labelled_rows["at"].to_numpy(), labelled_rows["label"].to_numpy()
    if encoder is not None and encoder.class_outputs:
        truth, *positions = (parse_classes(texts, encoder.class_outputs) for texts in (truth, *predictions))
        before, after = (one_hot(classes_NM)[at] for classes_NM in positions)
        degradation = label_degradation_interval(MEAN_ACCURACY.name, truth, before, after, degradation_interval)
        scores = [score_labels(MEAN_ACCURACY.name, truth, shares, compute_score) for shares in (before, after)]
    elif encoder is not None:
        truth = parse_outputs(truth, encoder.outputs)
        degradation = output_degradation_interval(MEAN_RMSE.name, truth, *(values[at] for values in predictions))
        scores = [mean_output_score(MEAN_RMSE.name, truth, values[at]) for values in predictions]
    elif comparison.agreement is None:
        truth = truth.astype(np.float64)
        degradation = rmse_rise(truth, *(values[at] for values in predictions))
        scores = [float(np.sqrt(((values[at] - truth) ** 2).mean())) for values in predictions]
    else:
        # As text, because a label of 3 may arrive as a number or as a string.
        is_correct = [values[at].astype(str) == truth.astype(str) for values in predictions]
        degradation, scores = accuracy_drop(*is_correct), [float(correct.mean()) for correct in is_correct]
    return comparison.model_copy(
        update={
            "num_labelled": labelled_rows.num_rows,
            "champion_score": scores[0],
            "challenger_score": scores[1],
            "degradation": degradation,
        }
    )


def _log_folder(name: str) -> Path:
    return settings().home / "predictions" / name


def _read_encoder(champion: str, challenger: str) -> Encoder:
    """Reads the encoder of the champion, in whose deviations or classes both are compared.

    Raises:
        DataMissing: the bento of a version is not in the store, or the versions have other outputs.
    """
    encoders = [read_encoder(artifacts_folder(tag) / "encoder.json") for tag in (champion, challenger)]
    names = [encoder.features.label_columns for encoder in encoders]
    if names[0] != names[1]:
        raise DataMissing(
            f"{champion} predicts {', '.join(names[0])}, and {challenger} predicts {', '.join(names[1])}",
            required="versions with the same outputs",
            where="their encoders",
            remedy="compare each with a version of its recipe",
        )
    return encoders[0]


def _read_predictions(name: str) -> tuple[pa.Table, str]:
    """Reads the logged predictions of a name, without the input columns, and the name of their field.

    Sets of labels and several values are texts, which are equal where the predictions are.
    """
    tables = list(read_log(_log_folder(name), ["at", *ROW_ID, "version", "role", "run_seconds", "prediction"]))
    if not tables:
        raise _no_rows_error(name, None, None)
    if any(table.schema.field("prediction").type.get_field_index("embedding") >= 0 for table in tables):
        raise DataMissing(
            f"{name} computes vectors, and those of two networks have nothing in common",
            required="predictions of labels or numbers",
            where=str(_log_folder(name)),
            remedy="compare their scores on the test split: bloomery show",
        )
    flat_tables = []
    for table in tables:
        field = str(table.schema.field("prediction").type.field(0).name)
        answers = as_plain_labels(pc.struct_field(table["prediction"], 0), is_ordered=field in ("classes", "tags"))
        flat_tables.append(table.drop(["prediction"]).append_column("prediction", answers))
    return pa.concat_tables(flat_tables), field


def _no_rows_error(name: str, champion: str | None, challenger: str | None) -> DataMissing:
    return DataMissing(
        f"no row was predicted by {champion or 'a champion'} and, as shadow, by {challenger or 'a challenger'}",
        required="rows that both have predicted",
        where=str(_log_folder(name)),
        remedy=f"serve both for a while: bloomery serve {name} --shadow {name}:VERSION",
    )


def _to_numpy(predictions: pa.ChunkedArray) -> np.ndarray:
    """Labels, sets of labels or several values as texts, or float64 values of a regression."""
    values = predictions.to_numpy()
    return values if pa.types.is_floating(predictions.type) else values.astype(object)
