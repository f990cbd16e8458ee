"""Builds the reference profile of a version for its bento; monitoring compares later requests with it."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.monitoring import Measure, ReferenceProfile, VersionReference
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.records import Choice, Dataset, Interval
from bloomery.data_contracts.records.scores import default_score
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import read_encoder
from bloomery.models.features.input_config import CategoryInput
from bloomery.models.features.statistics.arrow_arrays import list_offsets
from bloomery.tasks.evaluation.held_out import ground_truth, predicted_values, read_measured_predictions
from bloomery.tasks.evaluation.scoring import score_rows
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import column_alias

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MAX_VALUES = 50  # that have a bin each
_NUM_BINS, _NUM_COARSE_BINS = 100, 10  # of numbers: quantiles, as many rows in each
_MAX_FINE_COLUMNS = 64  # with more columns the bins are coarse, so that the file stays small


class _ProfiledColumn(NamedTuple):
    """A column with the measure that is profiled; `is_category` columns have a bin for each frequent value."""

    column: Column
    measure: Measure
    is_category: bool


def build_reference(choice: Choice) -> VersionReference:
    """Profiles the columns that the model reads, and its predictions for held-out rows.

    Personal columns and dates are left out. The columns are profiled on the training split; after private training on
    the test split, because counts of training rows would disclose more than was promised.
    """
    trained = choice.candidates.trained
    dataset = trained.dataset
    features = read_encoder(settings().path(dataset.encoder_uri)).features
    split: Literal["train", "test"] = "test" if trained.privacy is not None else "train"
    profiled_columns = list(_profiled_columns(dataset, features))
    columns = {}
    if profiled_columns:
        rows = _read_rows(dataset, split, [item.column.name for item in profiled_columns])
        with duckdb_session.open_session() as engine:
            engine.register("batches", rows)
            engine.execute("create table rows as select * from batches")
            num_bins = _NUM_BINS if len(profiled_columns) <= _MAX_FINE_COLUMNS else _NUM_COARSE_BINS
            for item in profiled_columns:
                profile = _profile_column(engine, item, num_bins)
                if profile is not None:
                    columns[item.column.name] = profile
    answers, confidences = _profile_predictions(choice, dataset)
    return VersionReference(
        split=split,
        columns=columns,
        predictions=answers,
        confidence=confidences,
        task=dataset.task,
        label=dataset.label,
        outputs=dataset.outputs,
        class_outputs=dataset.class_outputs,
        output_profiles=_profile_outputs(choice, dataset),
        score=_held_out_score(choice),
    )


def _held_out_score(choice: Choice) -> Interval:
    """Returns the default score of the test split, which monitoring compares, whatever the recipe's score is."""
    dataset = choice.candidates.trained.dataset
    if choice.candidates.trained.score == default_score(dataset.task):
        return choice.candidate.score
    table = read_measured_predictions(choice)
    return score_rows(dataset.task, ground_truth(dataset, table), predicted_values(dataset, table))


def summarize_values(values: pa.Array, measure: Measure) -> pa.Array:
    """Returns one value for each row."""
    match measure:
        case "value":
            return values
        case "length":
            return pc.utf8_length(values)
        case "mean":
            return _means(values)
        case "last":
            return _last_elements(values)


def _means(values: pa.ListArray) -> pa.Array:
    """Returns the mean of each array's non-null elements; null if there is none."""
    elements = values.flatten().cast(pa.float64(), safe=False)
    owners = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
    is_valid = np.asarray(elements.is_valid())
    filled_elements = np.where(is_valid, elements.fill_null(0.0).to_numpy(zero_copy_only=False), 0.0)
    sums, counts = (np.bincount(owners, weights, minlength=len(values)) for weights in (filled_elements, is_valid))
    return pa.array(sums / np.maximum(counts, 1), mask=counts == 0)


def _last_elements(values: pa.ListArray) -> pa.Array:
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths) - 1  # indices into the flattened elements
    return values.flatten().take(pa.array(ends, mask=lengths == 0))


def _profiled_columns(dataset: Dataset, features: Features) -> Iterator[_ProfiledColumn]:
    categories = {name for config in features.inputs if isinstance(config, CategoryInput) for name in config.columns}
    for name in dataset.inputs:
        column = dataset.valid_rows.contract.column(name)
        if column is None or column.personal is not None or column.logical_type in ("date", "timestamp"):
            continue
        if column.logical_type == "array":
            items = column.items
            if items is not None and items.logical_type in ("integer", "number"):
                yield _ProfiledColumn(column, "mean", is_category=False)
        else:
            yield _ProfiledColumn(column, "last" if name in features.window_lengths else "value", name in categories)


def _read_rows(dataset: Dataset, split: str, names: Sequence[str]) -> pa.RecordBatchReader:
    """Reads the columns `names` of a split's raw rows, under their aliases; of an array, the mean of its elements."""
    key = key_column(dataset.key)
    keys = pq.read_table(settings().path(getattr(dataset, split).uri), columns=[key])[key]

    def read_split() -> Iterator[pa.RecordBatch]:
        for batch in read_batches(settings().path(dataset.valid_rows.uri), list(dict.fromkeys([dataset.key, *names]))):
            rows = batch.filter(pc.is_in(batch[dataset.key], keys.cast(batch[dataset.key].type)))
            arrays = [_means(rows[name]) if pa.types.is_list(rows[name].type) else rows[name] for name in names]
            yield pa.RecordBatch.from_arrays(arrays, names=list(map(column_alias, names)))

    batches = read_split()
    first = next(batches)
    return pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))


def _profile_column(engine: DuckDBPyConnection, item: _ProfiledColumn, num_bins: int) -> ReferenceProfile | None:
    """Returns the profile of a column; None for a column without values."""
    name, measure = column_alias(item.column.name), item.measure
    ((num_rows, num_values),) = engine.execute(f"select count({name}), count(distinct {name}) from rows").fetchall()
    if not num_rows:
        return None
    logical_type = item.column.logical_type
    if logical_type == "string" and num_values > _MAX_VALUES and not item.is_category:
        name, measure = f"length({name})::integer", "length"
    is_number = logical_type in ("number", "array") or measure == "length"
    if not is_number and (num_values <= _MAX_VALUES or item.is_category):
        frequent_values = f"select {name} v from rows where v is not null group by v order by count(*) desc, v"
        values = engine.execute(f"select v from ({frequent_values} limit {_MAX_VALUES}) order by v").fetchall()
        cells = Bins(values=tuple(value for (value,) in values))
    else:
        quantiles = ", ".join(str(index / num_bins) for index in range(1, num_bins))
        ((edges,),) = engine.execute(f"select quantile_disc({name}, [{quantiles}]) from rows").fetchall()
        cells = Bins(edges=tuple(sorted({float(edge) for edge in edges})))
    batches: pa.RecordBatchReader = engine.sql(f"select {name} from rows").to_arrow_reader()
    counts = functools.reduce(operator.add, (count_into_bins(cells, batch.column(0)) for batch in batches))
    return ReferenceProfile(measure=measure, num_rows=counts.num_rows, shares=reference_column(counts))


def _profile_predictions(choice: Choice, dataset: Dataset) -> tuple[ReferenceProfile, ReferenceProfile | None]:
    """Profiles the predicted labels, values or vectors, and the probabilities of the labels."""
    predictions = read_measured_predictions(choice)
    answers = predictions["prediction"]
    if dataset.class_outputs:
        names = tuple(sorted({str(name) for output in dataset.class_outputs for name in output.classes}))
        return _profile_classes(names, answers.combine_chunks().flatten()), None
    if dataset.outputs:  # each has a profile of its own; this one is that of all
        return _profile_numbers(answers.combine_chunks().flatten().to_numpy()), None
    if dataset.task == "regression":
        return _profile_numbers(answers.to_numpy()), None
    if dataset.task == "embedding":
        return _profile_numbers(summarize_vectors(answers.combine_chunks()).to_numpy()), None
    labels = _profile_classes(dataset.classes, single_labels(answers.combine_chunks()))
    if dataset.task == "tagging":
        return labels, _profile_numbers(mean_confidence(predictions["probabilities"]))
    return labels, _profile_numbers(confidence(predictions["probabilities"]))


def _profile_classes(classes: tuple[int | str, ...], predicted: pa.Array) -> ReferenceProfile:
    counts = count_into_bins(Bins(values=classes), predicted)
    return ReferenceProfile(num_rows=counts.num_rows, shares=reference_column(counts))


def _profile_outputs(choice: Choice, dataset: Dataset) -> dict[str, ReferenceProfile] | None:
    """Profiles the predicted values or classes of each of several outputs; None of a single one."""
    if not dataset.outputs and not dataset.class_outputs:
        return None
    answers = read_measured_predictions(choice)["prediction"].combine_chunks()
    if dataset.class_outputs:
        return {
            output.name: _profile_classes(tuple(map(str, output.classes)), pc.list_element(answers, position))
            for position, output in enumerate(dataset.class_outputs)
        }
    return {
        output.name: _profile_numbers(pc.list_element(answers, position).to_numpy())
        for position, output in enumerate(dataset.outputs)
    }


def summarize_vectors(vectors: pa.ListArray) -> pa.Array:
    """Returns the mean of the values of each vector, as a fraction of its length: float64, whatever their scale is."""
    rows, width = len(vectors), len(vectors.flatten()) // max(len(vectors), 1)
    matrix = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(rows, width)
    lengths = np.linalg.norm(matrix, axis=1)
    return pa.array(matrix.mean(axis=1) / np.where(lengths > 0, lengths, 1))


def single_labels(labels: pa.Array) -> pa.Array:
    """Returns the labels of all rows one after the other, where a row has a set of them; other labels unchanged.

    A row without labels has one null, so that it is in a count.
    """
    if not pa.types.is_list(labels.type):
        return labels
    is_empty = pc.equal(pc.list_value_length(labels), 0)
    return pc.list_flatten(pc.if_else(is_empty, pa.scalar([None], labels.type), labels))


def known_tags(tags: pa.ListArray) -> pa.ListArray:
    """Returns the tags of each sentence without those of words that are cut off, which are null.

    The measured predictions, which reference profiles are from, do not have these words either.
    """
    elements = tags.flatten()
    is_known = elements.is_valid()
    owners = pc.list_parent_indices(tags).filter(is_known).to_numpy(zero_copy_only=False)
    return pa.ListArray.from_arrays(list_offsets(np.bincount(owners, minlength=len(tags))), elements.filter(is_known))


def confidence(probabilities: pa.ChunkedArray) -> np.ndarray:
    """Returns the largest probability of each row; all rows have the same number of classes."""
    rows = probabilities.combine_chunks()
    return rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1).max(axis=1)


def mean_confidence(probabilities: pa.ChunkedArray) -> np.ndarray:
    """Returns the mean probability of the tags of each sentence; 0 of one without a word."""
    return np.asarray(_means(probabilities.combine_chunks()).fill_null(0.0))


def _profile_numbers(numbers: np.ndarray) -> ReferenceProfile:
    quantiles = np.arange(1, _NUM_BINS) / _NUM_BINS
    edges = np.unique(np.quantile(numbers, quantiles, method="inverted_cdf"))
    counts = count_into_bins(Bins(edges=tuple(edges.tolist())), pa.array(numbers))
    return ReferenceProfile(num_rows=counts.num_rows, shares=reference_column(counts))
