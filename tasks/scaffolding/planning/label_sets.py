"""Finds sets of labels in the profiled rows: an array, a text with a separator, or several columns of 0 and 1.

The rows in the scratch folder then have one column of lists of texts, as `data.lists` of the recipe will make it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.list_column import ListColumn
from bloomery.tasks.infrastructure.list_texts import parse_list, split_text
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.ingest.list_columns import make_lists
from bloomery.tasks.ingest.readers.base import RowStream
from bloomery.tasks.scaffolding.profiling.column_names import unused_name
from bloomery.tasks.scaffolding.profiling.number_inference import InferredNumbers
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE

MIN_ROWS_PER_LABEL = 10  # with fewer, a split might have none
_MAX_LABELS = 1_000
_SEPARATORS = (";", "|", ",")
_MIN_SHARE = 0.2  # of the texts with a separator, where nobody has said that they are sets
_MIN_MEAN_ROWS = 10  # of each label, in this case
_MAX_LENGTH = 40  # characters of a label, in this case
_MAX_INVALID_SHARE = 0.05  # of the rows
_EMPTY = frozenset({"", "[]"})


class LabelSets(NamedTuple):
    """A column of sets of labels, by the source's names, and how it is read.

    `counts` are the labels to learn with their numbers of rows, in order; `rare` are the others. `reason` is a clause.
    """

    column: str
    options: ListColumn
    counts: tuple[tuple[str, int], ...]
    rare: tuple[str, ...]
    num_empty: int
    reason: str

    def recipe_option(self, names: dict[str, str]) -> dict[str, ListColumn]:
        """Returns `data.lists` by the contract's names, with the labels to learn."""
        columns = self.options.columns and tuple(names[name] for name in self.options.columns)
        values = tuple(names.get(label, label) if columns else label for label, _ in self.counts)
        return {names[self.column]: ListColumn(separator=self.options.separator, columns=columns, values=values)}

    def reading_options(self, names: dict[str, str]) -> InferredNumbers:
        """Returns the option that reads the sets, and the reason for it. `names` are the contract's."""
        return InferredNumbers({"lists": self.recipe_option(names)}, {"lists": f"sets of labels: {self.reason}"})

    def describe(self) -> str:
        """Returns how many labels are learnt, which are not, and how many rows have none."""
        parts = [f"{len(self.counts)} labels"]
        if self.rare:
            listing = ", ".join(self.rare[:5]) + (", …" if len(self.rare) > 5 else "")
            parts.append(f"without {len(self.rare)} that fewer than {MIN_ROWS_PER_LABEL} rows have ({listing})")
        parts.append(f"{self.num_empty:,} rows have none")
        return ", ".join(parts)


class CollectedSets(NamedTuple):
    """The sets, and the profile of the rows with them."""

    sets: LabelSets
    profile: SourceProfile


def collect_label_sets(
    profile: SourceProfile,
    data: DataSource,
    scratch: Path,
    labels: Sequence[str],
    separator: str | None = None,
    *,
    is_requested: bool,
) -> CollectedSets | None:
    """Returns the sets of labels in the columns `labels`, by the source's names; None if they are no sets.

    Afterwards the rows in `scratch` have them as lists.

    Raises:
        DataUnfit: sets are requested, and there are none; or too few labels have enough rows.
    """
    split_column = profile.columns[-1].name if data.sources is not None else None
    form = _find_form(profile, scratch, labels, separator, is_requested=is_requested)
    if form is None:
        return None
    name, options, reason = form
    _rewrite_rows(scratch, data, name, options, labels)
    counts, train_counts, num_empty, num_null = _count_labels(scratch, name, split_column)
    is_converted = options.columns is not None or options.separator is not None
    if is_converted and num_null > _MAX_INVALID_SHARE * profile.num_rows:
        found = "columns that are not 0 or 1 in them" if options.columns else "arrays in brackets that cannot be read"
        raise _sets_error(f"{num_null:,} of {profile.num_rows:,} rows have {found}", labels)
    common = sorted(label for label, num in train_counts.items() if num >= MIN_ROWS_PER_LABEL)
    if not 2 <= len(common) <= _MAX_LABELS:
        raise _sets_error(
            f"it has {len(counts):,} labels, {len(common):,} of them in at least {MIN_ROWS_PER_LABEL} rows", labels
        )
    sets = LabelSets(
        column=name,
        options=options,
        counts=tuple((label, counts[label]) for label in common),
        rare=tuple(sorted(label for label in counts if label not in set(common))),
        num_empty=num_empty,
        reason=reason,
    )
    column = ColumnProfile(
        name=name,
        logical_type="array",
        element_type="string",
        num_rows=profile.num_rows,
        num_missing=num_null,
        min_length=0,
        max_length=len(counts),
        num_distinct=len(counts),
    )
    columns = [
        column if other.name == labels[0] else other for other in profile.columns if other.name not in labels[1:]
    ]
    return CollectedSets(sets, profile.model_copy(update={"columns": tuple(columns)}))


_Form = tuple[str, ListColumn, str]


def _find_form(
    profile: SourceProfile, scratch: Path, labels: Sequence[str], separator: str | None, *, is_requested: bool
) -> _Form | None:
    """Returns the name of the column of sets, how it is made, and the reason."""
    if len(labels) > 1:
        name = unused_name("labels", [column.name for column in profile.columns])
        reason = f"{len(labels)} columns are named, and a row has the labels of those with 1"
        return name, ListColumn(columns=tuple(labels)), reason
    column = profile.existing_column(labels[0])
    if column.logical_type == "array":
        if column.element_type not in ("string", "integer") or _are_flags(column):
            found = "0 and 1 in places" if _are_flags(column) else f"{column.element_type} values"
            raise DataUnfit(
                f"column {column.name} cannot be the label: its arrays hold {found}",
                required="arrays with the labels of a row, as texts or whole numbers",
                where="--label",
                remedy="write the names of the labels, or one column of 0 and 1 for each: --label a,b,c",
            )
        return column.name, ListColumn(values=("any",)), f"{column.name} has arrays, so a row may have several labels"
    if column.logical_type == "string" or is_requested:
        return _find_text_form(column, scratch, separator, is_requested=is_requested)
    return None


def _are_flags(column: ColumnProfile) -> bool:
    """Whether arrays of one length hold 0 and 1, a place for each label."""
    is_binary = column.element_type == "integer" and column.minimum == 0 and column.maximum == 1
    return is_binary and column.min_length == column.max_length and (column.max_length or 0) > 2


def _find_text_form(column: ColumnProfile, scratch: Path, separator: str | None, *, is_requested: bool) -> _Form | None:
    if column.logical_type != "string":
        raise _sets_error(f"its type is {column.logical_type}", [column.name])
    texts = _count_texts(scratch, column.name)
    if separator is not None:
        if not any(separator in text for text in texts):
            raise _sets_error(f"none of its texts contains {separator!r}", [column.name])
        return column.name, ListColumn(separator=separator), f"{separator!r} separates the labels, as requested"
    is_sign: Callable[[Counter[str], str], bool] = _occurs if is_requested else _is_clear
    if _are_brackets(texts):
        return column.name, ListColumn(separator=","), f"the texts of {column.name} are arrays in brackets"
    for sign in _SEPARATORS:
        if is_sign(texts, sign):
            other = "; --task classification for whole texts"
            return column.name, ListColumn(separator=sign), f"{sign!r} separates the labels of {column.name}{other}"
    if is_requested:
        listed = " or ".join(map(repr, _SEPARATORS))
        raise _sets_error(f"none of its texts contains {listed}", [column.name])
    return None


def _are_brackets(texts: Counter[str]) -> bool:
    """Whether nearly all texts are arrays, as JSON or Python writes them, of which labels occur in several rows."""
    is_array = Counter({text: num for text, num in texts.items() if text.startswith("[") and text.endswith("]")})
    readable = sum(num for text, num in is_array.items() if parse_list(text) is not None)
    return readable >= (1 - _MAX_INVALID_SHARE) * max(sum(num for text, num in texts.items() if text), 1)


def _occurs(texts: Counter[str], sign: str) -> bool:
    return any(sign in text for text in texts)


def _is_clear(texts: Counter[str], sign: str) -> bool:
    """Whether many texts have the sign, and combine fewer labels, which are short and have many rows each."""
    num_rows = sum(num for text, num in texts.items() if text not in _EMPTY)
    num_combined = sum(num for text, num in texts.items() if sign in text)
    if num_combined < _MIN_SHARE * max(num_rows, 1):
        return False
    labels: Counter[str] = Counter()
    for text, num in texts.items():
        labels.update(dict.fromkeys(split_text(text, sign) or (), num))
    if not labels or len(labels) > min(len(texts) / 2, _MAX_LABELS) or max(map(len, labels)) > _MAX_LENGTH:
        return False
    return sum(labels.values()) / len(labels) >= _MIN_MEAN_ROWS


def _count_texts(scratch: Path, name: str) -> Counter[str]:
    texts: Counter[str] = Counter()
    for batch in read_batches(scratch / ROWS_FILE, [name]):
        for pair in batch.column(0).value_counts().to_pylist():
            if pair["values"] is not None:
                texts[pair["values"].strip()] += pair["counts"]
    return texts


def _rewrite_rows(scratch: Path, data: DataSource, name: str, options: ListColumn, labels: Sequence[str]) -> None:
    """Replaces the first of the columns `labels` by the sets, and removes the others."""
    path, temporary = scratch / ROWS_FILE, scratch / "sets.parquet"
    schema = pq.read_schema(path)
    kept = [label for label in schema.names if label == labels[0] or label not in labels]
    order = [name if label == labels[0] else label for label in kept]
    lists = {name: options if options.separator or options.columns else ListColumn(separator=",")}
    rows = RowStream(pa.schema([pa.field(field.name, field.type) for field in schema]), read_batches(path))
    converted = make_lists(rows, data.model_copy(update={"lists": lists}))
    fields = pa.schema([converted.schema.field(column) for column in order])
    with RowWriter(temporary, fields, row_group_size_of(path)) as writer:
        for batch in converted.batches:
            writer.write(pa.RecordBatch.from_arrays([batch[column] for column in order], schema=fields))
    temporary.replace(path)


def _count_labels(scratch: Path, name: str, split_column: str | None) -> tuple[Counter[str], Counter[str], int, int]:
    """Returns the rows of each label, also in the training split; the rows without labels, and those without a list."""
    counts: Counter[str] = Counter()
    train_counts: Counter[str] = Counter()
    num_empty = num_null = 0
    for batch in read_batches(scratch / ROWS_FILE, [name, *filter(None, [split_column])]):
        splits: Iterable[str | None] = (
            ["train"] * batch.num_rows if split_column is None else batch.column(1).to_pylist()
        )
        for labels, split in zip(batch.column(0).to_pylist(), splits, strict=True):
            if labels is None:
                num_null += 1
                continue
            distinct = {label for label in labels if label is not None}
            num_empty += not distinct
            counts.update(distinct)
            if split == "train":
                train_counts.update(distinct)
    return counts, train_counts, num_empty, num_null


def parse_sets(texts: Iterable[str | None]) -> set[str]:
    """Returns the labels in sets that are written as JSON."""
    return {label for text in texts if text is not None for label in json.loads(text)}


def _sets_error(problem: str, labels: Sequence[str]) -> DataUnfit:
    columns: Literal["column", "columns"] = "column" if len(labels) == 1 else "columns"
    return DataUnfit(
        f"{columns} {', '.join(labels)} cannot be sets of labels: {problem}",
        required=f"2 to {_MAX_LABELS:,} labels, each in at least {MIN_ROWS_PER_LABEL} rows: arrays, texts with a "
        "separator, or several columns of 0 and 1",
        where="--label",
        remedy="choose other columns, state --label-separator, or --task classification for one label per row",
    )
