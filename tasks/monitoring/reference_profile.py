"""What is usual for a version, which goes into its bento: what later requests are compared with."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.monitoring import Measure, Usual, VersionReference
from bloomery.data_contracts.odcs.columns import Column
from bloomery.data_contracts.odcs.distributions import Cells, count_into, reference_of
from bloomery.data_contracts.records.records import Chosen, Dataset
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import read_encoder
from bloomery.models.features.input_config import CategoryInput
from bloomery.tasks.evaluation.held_out import read_measured_predictions
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import quote_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MOST_VALUES = 50  # that have a cell each
_NUM_CELLS, _NUM_COARSE_CELLS = 100, 10  # of numbers: as many rows in each
_MOST_FINE_COLUMNS = 64  # of more columns the cells are coarse, so that the file stays small


class _Watched(NamedTuple):
    """A column whose distribution is kept, as `measure` says, over names where `is_named`."""

    column: Column
    measure: Measure
    is_named: bool


def version_reference(chosen: Chosen) -> VersionReference:
    """How the columns are distributed that the model reads, and how its answers to the held-out rows are.

    Columns about people have none, nor have dates. The rows are those of the training part; where training was private
    they are those of the test part, since counts of training rows would tell more than was promised.
    """
    trained = chosen.options.trained
    dataset = trained.dataset
    features = read_encoder(settings().path(dataset.encoder_uri)).features
    part: Literal["train", "test"] = "test" if trained.privacy is not None else "train"
    watched = list(_watched(dataset, features))
    columns = {}
    if watched:
        rows = _rows(dataset, part, [one.column.name for one in watched])
        with duckdb_session.open_session() as engine:
            engine.register("batches", rows)
            engine.execute("create table rows as select * from batches")
            num_cells = _NUM_CELLS if len(watched) <= _MOST_FINE_COLUMNS else _NUM_COARSE_CELLS
            columns = {one.column.name: usual for one in watched if (usual := _usual(engine, one, num_cells))}
    answers, confidence = _of_answers(chosen, dataset)
    return VersionReference(
        part=part,
        columns=columns,
        answers=answers,
        confidence=confidence,
        task=dataset.task,
        label=dataset.label,
        score=chosen.candidate.score,
    )


def measured(values: pa.Array, measure: Measure) -> pa.Array:
    """One figure, or one value, for each row."""
    match measure:
        case "value":
            return values
        case "length":
            return pc.utf8_length(values)
        case "mean":
            return _means(values)
        case "last":
            return _last(values)


def _means(values: pa.ListArray) -> pa.Array:
    """The mean of each array's elements, without those that are null; null where there is none."""
    elements = values.flatten().cast(pa.float64(), safe=False)
    owners = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
    is_there = np.asarray(elements.is_valid())
    filled = np.where(is_there, elements.fill_null(0.0).to_numpy(zero_copy_only=False), 0.0)
    sums, counts = (np.bincount(owners, weights, minlength=len(values)) for weights in (filled, is_there))
    return pa.array(sums / np.maximum(counts, 1), mask=counts == 0)


def _last(values: pa.ListArray) -> pa.Array:
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths) - 1  # in the elements that belong to rows
    return values.flatten().take(pa.array(ends, mask=lengths == 0))


def _watched(dataset: Dataset, features: Features) -> Iterator[_Watched]:
    named = {name for one in features.inputs if isinstance(one, CategoryInput) for name in one.columns}
    for name in dataset.inputs:
        column = dataset.checked.contract.column(name)
        if column is None or column.personal is not None or column.logical_type in ("date", "timestamp"):
            continue
        if column.logical_type == "array":
            items = column.items
            if items is not None and items.logical_type in ("integer", "number"):
                yield _Watched(column, "mean", is_named=False)
        else:
            yield _Watched(column, "last" if name in features.window_lengths else "value", name in named)


def _rows(dataset: Dataset, part: str, names: Sequence[str]) -> pa.RecordBatchReader:
    """The columns `names` of a part's raw rows, arrays as the mean of each."""
    keys = pq.read_table(settings().path(getattr(dataset, part).uri), columns=[dataset.key])[dataset.key]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in read_batches(settings().path(dataset.checked.uri), list(dict.fromkeys([dataset.key, *names]))):
            kept = batch.filter(pc.is_in(batch[dataset.key], keys.cast(batch[dataset.key].type)))
            arrays = [_means(kept[name]) if pa.types.is_list(kept[name].type) else kept[name] for name in names]
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    found = batches()
    first = next(found)
    return pa.RecordBatchReader.from_batches(first.schema, (batch for part in ([first], found) for batch in part))


def _usual(engine: DuckDBPyConnection, watched: _Watched, num_cells: int) -> Usual | None:
    """None of a column without any value."""
    name, measure = quote_name(watched.column.name), watched.measure
    told = f"select count({name}), count(distinct {name}) from rows"
    ((num_rows, num_values),) = engine.execute(told).fetchall()
    if not num_rows:
        return None
    kind = watched.column.logical_type
    if kind == "string" and num_values > _MOST_VALUES and not watched.is_named:
        name, measure = f"length({name})::integer", "length"
    is_number = kind in ("number", "array") or measure == "length"
    if not is_number and (num_values <= _MOST_VALUES or watched.is_named):
        frequent = f"select {name} v from rows where v is not null group by v order by count(*) desc, v"
        values = engine.execute(f"select v from ({frequent} limit {_MOST_VALUES}) order by v").fetchall()
        cells = Cells(values=tuple(value for (value,) in values))
    else:
        shares = ", ".join(str(place / num_cells) for place in range(1, num_cells))
        ((edges,),) = engine.execute(f"select quantile_disc({name}, [{shares}]) from rows").fetchall()
        cells = Cells(edges=tuple(sorted({float(edge) for edge in edges})))
    batches: pa.RecordBatchReader = engine.sql(f"select {name} from rows").to_arrow_reader()
    counts = functools.reduce(operator.add, (count_into(cells, batch.column(0)) for batch in batches))
    return Usual(measure=measure, num_rows=counts.num_rows, shares=reference_of(counts))


def _of_answers(chosen: Chosen, dataset: Dataset) -> tuple[Usual, Usual | None]:
    given = read_measured_predictions(chosen)
    answers = given["answer"]
    if dataset.task == "regression":
        return _of_figures(answers.to_numpy()), None
    counts = count_into(Cells(values=dataset.classes), answers)
    named = Usual(num_rows=counts.num_rows, shares=reference_of(counts))
    return named, _of_figures(highest(given["probabilities"]))


def highest(probabilities: pa.ChunkedArray) -> np.ndarray:
    """The largest of each row's, which have equal lengths."""
    together = probabilities.combine_chunks()
    return together.flatten().to_numpy(zero_copy_only=False).reshape(len(together), -1).max(axis=1)


def _of_figures(figures: np.ndarray) -> Usual:
    places = np.arange(1, _NUM_CELLS) / _NUM_CELLS
    edges = np.unique(np.quantile(figures, places, method="inverted_cdf"))
    counts = count_into(Cells(edges=tuple(edges.tolist())), pa.array(figures))
    return Usual(num_rows=counts.num_rows, shares=reference_of(counts))
