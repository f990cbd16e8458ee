"""The raw rows of the test split, and the predictions of the chosen candidate that were measured on them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.output_units import format_classes, standardise_outputs
from bloomery.data_contracts.records.records import Choice, Dataset
from bloomery.data_contracts.records.tensor_layout import predicts_numbers
from bloomery.models.features.encoder import read_encoder
from bloomery.models.features.labels import code_tag_lists, encode_class_outputs, mark_labels
from bloomery.models.inference.tagged_words import TaggedWords, format_tagged_words
from bloomery.tasks.evaluation.scoring import GroundTruth
from bloomery.tasks.evaluation.slices import bootstrap_order
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.settings import settings

_MAX_BACKGROUND_ROWS = 16
_MAX_BACKGROUND_BYTES = 4_000_000  # fewer rows where they are wide


def read_measured_predictions(choice: Choice) -> pa.Table:
    """Reads key, truth and prediction of each test row; for classes also their probabilities.

    Truth and prediction of a multilabel task are lists of labels, and of a tagging task the tags of the words that were
    read. The prediction of an embedding is a vector, beside the `rank` of the positive.
    """
    return pq.read_table(settings().path(choice.candidate.predictions_uri))


def ground_truth(dataset: Dataset, predictions: pa.Table) -> GroundTruth:
    """The true labels beside measured predictions."""
    keys, truth_N = predictions[key_column(dataset.key)].combine_chunks(), decode_column(dataset, predictions["truth"])
    if not predicts_numbers(dataset.task):
        return GroundTruth(keys, truth_N, np.arange(len(keys)))
    features = read_encoder(settings().path(dataset.encoder_uri)).features
    return GroundTruth(keys, truth_N, bootstrap_order(dataset, features, keys))


def predicted_values(dataset: Dataset, predictions: pa.Table) -> np.ndarray:
    """The measured predictions: probabilities float64 (N, K), numbers (N,), ranks of an embedding, or codes of tags."""
    if dataset.task == "embedding":
        return np.asarray(predictions["rank"].to_numpy())
    if predicts_numbers(dataset.task) or dataset.task == "tagging":
        return decode_column(dataset, predictions["prediction"])
    shares = np.asarray(pc.list_flatten(predictions["probabilities"])).reshape(predictions.num_rows, -1)
    return shares.reshape(len(shares), len(dataset.class_outputs), -1) if dataset.class_outputs else shares


def decode_column(dataset: Dataset, values: pa.ChunkedArray) -> np.ndarray:
    """True or predicted labels as positions of classes int64 (N,), numbers (N,), or sets of labels int8 (N, K).

    Tags become codes (N, words). The truth of an embedding is stored as positions. Several numbers become standard
    units (N, K), nan where missing.
    """
    if dataset.task in ("regression", "embedding"):
        return np.asarray(values.to_numpy())
    if dataset.outputs:
        values_NK = np.asarray(values.combine_chunks().flatten(), np.float64).reshape(-1, len(dataset.outputs))
        return standardise_outputs(dataset.outputs, values_NK)
    if dataset.class_outputs:
        return encode_class_outputs(dataset.class_outputs, values)
    labels = values.combine_chunks()
    if dataset.task == "tagging":
        return code_tag_lists(dataset.classes, labels)
    if dataset.task == "multilabel":
        return mark_labels(dataset.classes, labels)
    positions = pc.index_in(labels, pa.array(list(dataset.classes), labels.type))
    return np.asarray(positions.to_numpy(zero_copy_only=False), np.int64)


def read_held_out_rows(choice: Choice) -> pa.Table:
    """Reads the raw rows of the test split, in the order of the measured predictions."""
    dataset = choice.candidates.trained.dataset
    keys = read_measured_predictions(choice)[key_column(dataset.key)]
    names = list(dict.fromkeys([dataset.key, *dataset.inputs]))
    rows = pa.Table.from_batches(list(read_batches(settings().path(dataset.test_rows_uri), names)))
    return rows.take(pc.index_in(keys.cast(rows.schema.field(dataset.key).type), rows[dataset.key]))


def _tagged_words(
    dataset: Dataset, predicted_rows: list[dict[str, Any]], sentences: list[list[str]]
) -> Iterator[TaggedWords]:
    positions = {tag: number for number, tag in enumerate(dataset.classes)}
    for row, words in zip(predicted_rows, sentences, strict=True):
        tags = np.array([positions[tag] for tag in row["prediction"]], np.int16)
        yield TaggedWords(words, tags, np.array(row["probabilities"], np.float64))


def request_rows(choice: Choice, num_rows: int) -> list[dict[str, Any]]:
    """Returns the first test rows as a client would send them: the model's inputs, as JSON values."""
    rows = read_held_out_rows(choice).slice(0, num_rows).select(list(choice.candidates.trained.dataset.inputs))
    return [_to_json_row(row) for row in rows.to_pylist()]


def background_rows(choice: Choice) -> list[dict[str, Any]]:
    """Returns evenly spaced test rows as a client would send them: the background rows of `/explain`.

    They are test rows, like the examples: a bento holds no training row, so the promise of private training remains.
    """
    rows = read_held_out_rows(choice).select(list(choice.candidates.trained.dataset.inputs))
    max_rows = _MAX_BACKGROUND_BYTES * rows.num_rows // max(rows.nbytes, 1)
    num_rows = min(max(max_rows, 1), _MAX_BACKGROUND_ROWS, rows.num_rows)
    positions = [number * rows.num_rows // num_rows for number in range(num_rows)]
    return [_to_json_row(row) for row in rows.take(positions).to_pylist()]


def _value_with_limits(choice: Choice, value: float) -> dict[str, Any]:
    interval = choice.candidate.interval
    if interval is None:
        return {"value": value}
    return {"value": value, "lower": value - interval.half_width, "upper": value + interval.half_width}


def _to_json_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()}


def example_predictions(choice: Choice, num_rows: int) -> list[dict[str, Any]]:
    """Returns the first test rows as a client would send them, each with its measured prediction."""
    dataset = choice.candidates.trained.dataset
    predicted_rows = read_measured_predictions(choice).slice(0, num_rows).to_pylist()
    if dataset.class_outputs:
        predictions = [
            format_classes(dataset.class_outputs, np.reshape(row["probabilities"], (len(dataset.class_outputs), -1)))
            for row in predicted_rows
        ]
    elif dataset.outputs:
        names = [output.name for output in dataset.outputs]
        predictions = [{"values": dict(zip(names, row["prediction"], strict=True))} for row in predicted_rows]
    elif dataset.task == "regression":
        predictions = [_value_with_limits(choice, row["prediction"]) for row in predicted_rows]
    elif dataset.task == "embedding":
        predictions = [{"embedding": row["prediction"]} for row in predicted_rows]
    elif dataset.task == "tagging":
        (column,) = dataset.inputs
        words = [row[column] for row in request_rows(choice, num_rows)]
        predictions = format_tagged_words(dataset.classes, _tagged_words(dataset, predicted_rows, words))
    else:
        names, field = list(map(str, dataset.classes)), "labels" if dataset.task == "multilabel" else "label"
        predictions = [
            {field: row["prediction"], "probabilities": dict(zip(names, row["probabilities"], strict=True))}
            for row in predicted_rows
        ]
    rows = request_rows(choice, num_rows)
    return [{"row": row, "prediction": prediction} for row, prediction in zip(rows, predictions, strict=True)]
