"""The feature encoder: the only definition of how raw rows become numbers.

Spark, training and the served bento all call `encode`, so serving and training cannot differ. The module is part of
the bento: it needs only numpy and pyarrow (and `tokenizers` for text).

Shapes: B rows, F values of a row.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.output_units import OptionalClassOutputs, OptionalOutputs, standardise_outputs
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features import labels
from bloomery.models.features.config import Classes, Features, is_optional
from bloomery.models.features.input_config import (
    AudioInput,
    BooleanInput,
    CategoryInput,
    DateInput,
    ImageInput,
    Input,
    NumberInput,
    SequenceInput,
    SeriesInput,
    TextInput,
)
from bloomery.models.features.input_kind import InputKind
from bloomery.models.features.kinds import audio, boolean, category, date, image, number, sequence, text, time_series
from bloomery.models.features.kinds.audio import FittedAudio
from bloomery.models.features.kinds.boolean import FittedBooleans
from bloomery.models.features.kinds.category import FittedCategories, fold_hashes
from bloomery.models.features.kinds.date import FittedDates
from bloomery.models.features.kinds.image import FittedImage
from bloomery.models.features.kinds.number import FittedNumbers
from bloomery.models.features.kinds.sequence import FittedSequence
from bloomery.models.features.kinds.text import FittedText
from bloomery.models.features.kinds.time_series import FittedSeries
from bloomery.models.features.labels import StandardUnits
from bloomery.models.features.row_layout import row_layout
from bloomery.models.features.statistics.arrow_arrays import Rows, combine_chunks, list_array, valid_rows
from bloomery.models.features.statistics.column_counts import (
    CategoryCounts,
    ColumnStatistics,
    NumericStatistics,
    parse_statistics,
)
from bloomery.models.features.word_pieces import EncodedWords

# The columns of encoded rows besides the key.
ENCODED_INPUT = "x"  # a flat list of float32
# The class index, int64; a standardised value, float32; 0 and 1 for each label, float32; a text's tokens, int32; or the
# class index of each word at its first token, int16.
ENCODED_LABEL = "y"
STATISTICS = "statistics"  # the column that `partial_statistics` yields
_BLOCK_ROWS = 16_384  # rows per block, so that a block stays in the CPU cache
_BATCH_VALUES = 16_000_000  # of the rows that are encoded at once
_STATISTICS_ROWS = 262_144  # rows per table of statistics; fewer if rows are wide
_STATISTICS_BYTES = 64_000_000

FittedInput = Annotated[
    FittedNumbers
    | FittedCategories
    | FittedDates
    | FittedBooleans
    | FittedImage
    | FittedAudio
    | FittedText
    | FittedSeries
    | FittedSequence,
    Field(discriminator="kind"),
]

# mypy checks each module against its line.
_NUMBER: InputKind[NumberInput, FittedNumbers, NumericStatistics] = number
_CATEGORY: InputKind[CategoryInput, FittedCategories, ColumnStatistics] = category
_DATE: InputKind[DateInput, FittedDates, NumericStatistics] = date
_BOOLEAN: InputKind[BooleanInput, FittedBooleans, NumericStatistics] = boolean
_IMAGE: InputKind[ImageInput, FittedImage, NumericStatistics] = image
_AUDIO: InputKind[AudioInput, FittedAudio, NumericStatistics] = audio
_TEXT: InputKind[TextInput, FittedText, CategoryCounts] = text
_SERIES: InputKind[SeriesInput, FittedSeries, NumericStatistics] = time_series
_SEQUENCE: InputKind[SequenceInput, FittedSequence, NumericStatistics] = sequence

_KINDS: Mapping[str, InputKind[Any, Any, Any]] = {
    "number": _NUMBER,
    "category": _CATEGORY,
    "date": _DATE,
    "boolean": _BOOLEAN,
    "image": _IMAGE,
    "audio": _AUDIO,
    "text": _TEXT,
    "series": _SERIES,
    "sequence": _SEQUENCE,
}


class Encoder(Document):
    """The fitted state: the recipe's features, the statistics of the training split, and the label's meaning.

    A classification and a multilabel task have ordered classes; a regression has the units of its label, or of each
    output; an embedding has neither.
    """

    features: Features
    fitted: tuple[FittedInput, ...]
    classes: Classes
    units: StandardUnits | None = None
    outputs: OptionalOutputs = ()
    class_outputs: OptionalClassOutputs = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that `encode` reads, without duplicates."""
        return tuple(dict.fromkeys(column for source in self.features.inputs for column in source.columns))

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The encoded shape of each input, for one row."""
        pairs = zip(self.features.inputs, self.fitted, strict=True)
        return tuple(_KINDS[source.kind].shape(source, fitted) for source, fitted in pairs)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one encoded row: the shaped input's own, or (F,)."""
        return self.layout.shape

    @cached_property
    def layout(self) -> Layout:
        """How a network has to interpret one encoded row."""
        return row_layout(self.features, self.fitted, self.shapes)

    @cached_property
    def has_folds(self) -> bool:
        """Whether rows of the training split are encoded differently (target encoding)."""
        return any(source.kind == "category" and source.encoding == "target" for source in self.features.inputs)


def partial_statistics(features: Features, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields one row with the column `statistics`: everything that `fit` needs from the batches, as JSON.

    The statistics of a partition have a bounded size and can be added to those of other partitions.
    """
    total: list[tuple[ColumnStatistics, ...]] = []
    for rows in _group_batches(batches):
        statistics = [_partial_fit(features, source, rows) for source in features.inputs]
        total = _add_statistics(total, [labels.partial_fit(features, rows), *statistics])
    documents = [[column_statistics.as_dict() for column_statistics in statistics] for statistics in total]
    yield pa.RecordBatch.from_arrays([pa.array([json.dumps(documents)], pa.string())], names=[STATISTICS])


def _partial_fit(features: Features, source: Any, rows: pa.Table) -> tuple[ColumnStatistics, ...]:
    """The statistics of an input; of an embedding also those of the texts in the label's column."""
    present, _ = _rows_with(source, rows)
    statistics: tuple[ColumnStatistics, ...] = _KINDS[source.kind].partial_fit(source, features, present)
    if features.task != "embedding":
        return statistics
    label_texts = pa.table({source.column: rows[features.label_column]})
    of_labels = _KINDS[source.kind].partial_fit(source, features, label_texts)
    return tuple(left + right for left, right in zip(statistics, of_labels, strict=True))


def _group_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yields tables of about `_STATISTICS_ROWS` or `_STATISTICS_BYTES`, since each table has a fixed cost."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        num_rows = sum(part.num_rows for part in pending)
        num_bytes = sum(part.nbytes for part in pending)
        if num_rows >= _STATISTICS_ROWS or num_bytes >= _STATISTICS_BYTES:
            yield pa.Table.from_batches(pending)
            pending = []
    if any(batch.num_rows for batch in pending):
        yield pa.Table.from_batches(pending)


def _add_statistics(
    total: list[tuple[ColumnStatistics, ...]], addend: list[tuple[Any, ...]]
) -> list[tuple[ColumnStatistics, ...]]:
    if not total or not addend:
        return total or addend
    return [
        tuple(left + right for left, right in zip(left_of, right_of, strict=True))
        for left_of, right_of in zip(total, addend, strict=True)
    ]


def fit(features: Features, documents: Iterable[str], integer_columns: Collection[str] = ()) -> Encoder:
    """Fits the encoder on the results of `partial_statistics` for the training split, in any order.

    The classes of several labels are integers in `integer_columns`, and texts in others.

    Raises:
        DataUnfit: there are fewer than two classes or label values, or a column has no value or too many categories.
    """
    total: list[tuple[ColumnStatistics, ...]] = []
    for document in documents:
        total = _add_statistics(
            total, [tuple(map(parse_statistics, statistics)) for statistics in json.loads(document)]
        )
    label_statistics, *input_statistics = total or [()]
    label_counts = next(iter(label_statistics), None)
    classes, units = labels.fit_classes(features, label_counts), labels.fit_units(features, label_counts)
    fitted = tuple(
        _KINDS[source.kind].fit(source, statistics, classes)
        for source, statistics in zip(features.inputs, input_statistics, strict=True)
    )
    outputs = labels.fit_outputs(features, label_statistics)
    return Encoder(
        features=features.without_checkpoints(),
        fitted=fitted,
        classes=classes,
        units=units,
        outputs=outputs,
        class_outputs=labels.fit_class_outputs(features, label_statistics, integer_columns),
    )


def encode(encoder: Encoder, rows: Rows, *, is_training: bool = False) -> np.ndarray:
    """Encodes raw `rows` as float32 (B, *input_shape), all finite.

    Args:
        is_training: the rows are those of the fit. Target encoding then uses out-of-fold statistics, so that a row's
            own label does not leak into it; for this it reads the key. Nothing else differs.

    Raises:
        DataUnfit: a value is missing or unknown, and the recipe refuses that.
    """
    x = np.zeros((rows.num_rows, *encoder.input_shape), np.float32)
    for start in range(0, rows.num_rows, _BLOCK_ROWS):
        block = rows if rows.num_rows <= _BLOCK_ROWS else rows.slice(start, _BLOCK_ROWS)
        folds = fold_hashes(block[encoder.features.key]) if is_training and encoder.has_folds else None
        _encode_block(encoder, block, x[start : start + _BLOCK_ROWS], folds)
    return x


def _encode_block(encoder: Encoder, rows: Rows, x: np.ndarray, folds: np.ndarray | None) -> None:
    """Fills `x`, which is all 0 before."""
    if not encoder.features.is_mixed:
        _encode_inputs(encoder, range(len(encoder.fitted)), rows, x, folds)
        return
    for part, start, stop in encoder.layout.part_slices:
        numbers = encoder.features.part_inputs[part.name]
        values = x[:, start:stop].reshape(len(x), *part.layout.shape, copy=False)
        present, mask_B = _rows_with(encoder.features.inputs[numbers[0]], rows)
        if mask_B is None:
            _encode_inputs(encoder, numbers, present, values, folds)
        else:
            encoded = np.zeros((present.num_rows, *part.layout.shape), np.float32)
            _encode_inputs(encoder, numbers, present, encoded, folds)
            values[mask_B] = encoded
        if part.is_optional:
            x[:, stop] = 1.0 if mask_B is None else mask_B


def _encode_inputs(
    encoder: Encoder, numbers: Sequence[int], rows: Rows, x: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `x`, all 0 before, with one shaped input, or with flat inputs side by side."""
    start = 0
    for index in numbers:
        source, fitted, shape = encoder.features.inputs[index], encoder.fitted[index], encoder.shapes[index]
        columns_out = x if len(numbers) == 1 else x[:, start : start + shape[0]]
        _KINDS[source.kind].transform_into(source, fitted, rows, columns_out, folds)
        start += shape[0]


def _rows_with(source: Input, rows: Rows) -> tuple[Rows, np.ndarray | None]:
    """The rows that have an optional input, and their mask, bool (B,); all rows and None if none lacks it."""
    return valid_rows(rows, source.columns) if is_optional(source) else (rows, None)


def encode_sentences(encoder: Encoder, rows: Rows) -> EncodedWords:
    """The tokens of a tagging task, and where its words begin."""
    (source,), (fitted,) = encoder.features.inputs, encoder.fitted
    assert source.kind == "text"
    assert fitted.kind == "text"
    return text.encode_sentences(source, fitted, rows)


def encode_rows(encoder: Encoder, rows: Rows, *, is_training: bool = False) -> pa.RecordBatch:
    """Key, label and encoded input of labelled raw rows, as the columns that training reads.

    Raises:
        ValueError: the rows have more encoded values than one Arrow array can; `encode_batches` divides them.
    """
    width = math.prod(encoder.input_shape)
    key, label = encoder.features.key, encoder.features.label_column
    if encoder.features.task == "tagging":
        words = encode_sentences(encoder, rows)
        x_BF, y = words.x, labels.encode_tags(encoder.classes, label, rows[label], words)
    else:
        x_BF = encode(encoder, rows, is_training=is_training).reshape(rows.num_rows, width)
        y = encode_labels(encoder, rows[label])
    return pa.RecordBatch.from_arrays(
        [combine_chunks(rows[key]), y, list_array(x_BF)],
        names=[key_column(key), ENCODED_LABEL, ENCODED_INPUT],
    )


def encode_batches(
    encoder: Encoder, batches: Iterable[pa.RecordBatch], *, is_training: bool = False
) -> Iterator[pa.RecordBatch]:
    """`encode_rows` over many batches. Those of wide rows are divided, so that memory stays bounded."""
    num_rows = max(_BATCH_VALUES // math.prod(encoder.input_shape), 1)
    for batch in batches:
        for start in range(0, batch.num_rows, num_rows):
            yield encode_rows(encoder, batch.slice(start, num_rows), is_training=is_training)


def cut_at_splits(rows: pa.RecordBatch, splits: pa.Array) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields neighbouring rows of one split with its name; `splits` holds the name of each row's split."""
    if not rows.num_rows:
        return
    changes = np.flatnonzero(pc.not_equal(splits[1:], splits[:-1]).to_numpy(zero_copy_only=False)) + 1
    for start, stop in itertools.pairwise([0, *changes.tolist(), rows.num_rows]):
        yield splits[start].as_py(), rows.slice(start, stop - start)


def encoded_schema(encoder: Encoder, key: pa.DataType) -> pa.Schema:
    """The schema of encoded rows with a key of type `key`."""
    label = pa.int64() if encoder.units is None else pa.float32()
    if encoder.features.task == "multilabel":
        label = pa.list_(pa.float32())
    elif encoder.features.task == "embedding":
        label = pa.list_(pa.int32())
    elif encoder.class_outputs:
        label = pa.list_(pa.int64())
    elif encoder.features.task == "tagging":
        label = pa.list_(pa.int16())
    elif encoder.outputs:
        label = pa.list_(pa.float64())
    key_name = key_column(encoder.features.key)
    return pa.schema([(key_name, key), (ENCODED_LABEL, label), (ENCODED_INPUT, pa.list_(pa.float32()))])


def encode_labels(encoder: Encoder, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The network's targets: class indices, int64, standardised values, float32, or lists of 0 and 1, float32.

    Those of an embedding are the tokens of the label's text, int32, as the input encodes it. Tags depend on where the
    words begin: `encode_rows` encodes them.

    With `unlabelled: teach`, a null label becomes `IGNORED_LABEL`. Those of several outputs are lists of standardised
    values, float64, where nan is a missing one.

    Raises:
        DataUnfit: a class is not in the training split, or a value of a regression is missing or not finite.
    """
    label = encoder.features.label
    if encoder.features.task == "multilabel":
        return labels.encode_sets(encoder.classes, label, values)
    if encoder.features.task == "embedding":
        return _encode_texts(encoder, values)
    if encoder.class_outputs:
        positions_BM = labels.encode_class_outputs(encoder.class_outputs, values)
        return list_array(positions_BM)
    if encoder.features.labels is not None:
        values_BK = labels.output_values(encoder.features.labels, values)
        return list_array(standardise_outputs(encoder.outputs, values_BK))
    if encoder.units is None:
        return labels.class_positions(
            encoder.classes, label, values, may_be_null=encoder.features.unlabelled == "teach"
        )
    return pa.array(labels.standardise(encoder.units, labels.regression_targets(label, values)))


def _encode_texts(encoder: Encoder, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    (source,) = encoder.features.inputs
    (column,) = source.columns
    return list_array(encode(encoder, pa.table({column: combine_chunks(values)})).astype(np.int32))


def decode(encoder: Encoder, outputs: np.ndarray) -> np.ndarray:
    """Converts a regression's standardised outputs (B, 1) to the units of the label: float64 (B,).

    Raises:
        ValueError: the task is a classification.
    """
    if encoder.units is None:
        raise ValueError("only the outputs of a regression have units, and this encoder has classes")
    return encoder.units.mean + encoder.units.deviation * outputs[:, 0].astype(np.float64)


def read_encoder(path: Path) -> Encoder:
    return Encoder.model_validate_json(path.read_text(encoding="utf-8"))
