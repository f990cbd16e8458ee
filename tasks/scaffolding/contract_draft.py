"""Drafts a contract from a source's profile: a commented file that the profiled rows keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.data_contracts.expressions.sql import quote_name
from bloomery.tasks.scaffolding.planning.draft_planning import DraftPlan
from bloomery.tasks.scaffolding.planning.input_planning import is_code, sounds_personal
from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.planning.label_sets import LabelSets
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile
from bloomery.tasks.scaffolding.yaml_writer import add_comment, add_end_comment, as_sentence, dump_yaml, inline

_MAX_LISTED_VALUES = 30  # values of a text column that are listed one by one
_MIN_ROWS_PER_VALUE = 20  # with fewer rows for each listed value, the list is an accident of the sample
_LIMIT_BOUND = 2**53  # a contract takes no larger limit
_MARGIN = 0.1  # of the observed range, on both sides
_COLUMN_INDENT = 6  # of the columns in the contract file
_ENTRY_INDENT = 8  # of a column's entries

Limits = tuple[float | int | None, float | int | None]


def draft_contract(name: str, plan: DraftPlan, names: dict[str, str], source: str) -> str:
    """Returns the text of the contract file. `names` maps the source's column names to those of the contract."""
    document = CommentedMap(
        apiVersion="v3.1.0",
        kind="DataContract",
        id=f"bloomery-{name}",
        name=name,
        version="0.1.0",
        status="draft",
        description=CommentedMap(purpose=plan.describe_purpose(names)),
        schema=CommentedSeq([_schema(name, plan, names)]),
    )
    add_comment(
        document,
        "apiVersion",
        f"Drafted by `bloomery init` from {plan.profile.num_rows:,} rows of {source}. Every limit below is a guess "
        "from these rows. Review and correct it, then set `version: 1.0.0` and `status: active`.",
    )
    return dump_yaml(document)


def quarantine_limit(plan: DraftPlan) -> float:
    """Returns the share of rows that the draft quarantines, plus one percent, rounded up."""
    return min(math.ceil(plan.quarantined_share * 100 + 1) / 100, 1.0)


def _schema(name: str, plan: DraftPlan, names: dict[str, str]) -> CommentedMap:
    row_count = CommentedMap(metric="rowCount", mustBeGreaterOrEqualTo=max(plan.num_usable_rows // 2, 1))
    add_end_comment(row_count, "mustBeGreaterOrEqualTo", "half of the rows in the data")
    limit = CommentedSeq([inline({"property": "quarantineLimit", "value": quarantine_limit(plan)})])
    add_comment(limit, 0, _describe_quarantine(plan), 6)
    columns = CommentedSeq()
    if plan.key.is_added:
        _append_added_key(columns, plan.key.name)
    for column in plan.profile.columns:
        _append_column(columns, column, plan, names[column.name])
    quality = CommentedSeq([row_count])
    if plan.label.tags is not None:
        lengths = " = ".join(
            f"LENGTH({quote_name(names[column])})" for column in (plan.label.tags.words, plan.label.name)
        )
        implementation = inline({"rule": "expression", "expression": lengths})
        quality.append(CommentedMap(type="custom", engine="bloomery", implementation=implementation))
        add_comment(quality, 1, "Each word has a tag; other rows are quarantined.", 6)
    return CommentedMap(name=name, quality=quality, customProperties=limit, properties=columns)


def _describe_quarantine(plan: DraftPlan) -> str:
    label, profile = plan.label, plan.profile
    counts = {
        "malformed lines": profile.num_malformed,
        "values of the wrong type": sum(column.num_invalid for column in profile.columns),
        "rows without a label": label.num_missing if plan.series is None and not label.may_be_missing else 0,
        f"rows without {' or '.join(plan.required_columns)}": sum(
            column.num_missing for column in profile.columns if column.name in plan.required_columns
        ),
        "rows of classes that are too rare": label.num_all_rare_rows if label.tags is None else 0,
        "rows with not one tag for each word": 0 if label.tags is None else label.tags.num_unequal,
    }
    reasons = ", ".join(f"{num:,} {what}" for what, num in counts.items() if num) or "none"
    first = f" {as_sentence(profile.first_malformed)}" if profile.first_malformed else ""
    return f"A run stops if a larger share of the rows is quarantined. Quarantined here: {reasons}.{first}"


def _append_added_key(columns: CommentedSeq, name: str) -> None:
    columns.append(
        CommentedMap(name=name, logicalType="integer", primaryKey=True, logicalTypeOptions=inline({"minimum": 0}))
    )
    add_comment(
        columns,
        len(columns) - 1,
        "Each row's number is its key, since no column is an identifier. The numbers change if the order of the rows "
        "changes: a key from the data is better.",
        _COLUMN_INDENT,
    )


def _append_column(columns: CommentedSeq, column: ColumnProfile, plan: DraftPlan, name: str) -> None:
    if column.name == plan.split.column and plan.split.replaced:
        column = _rename_splits(column, dict(plan.split.replaced))
    label = next((label for label in plan.label.all_labels if label.name == column.name), None)
    is_key = column.name == plan.key.name
    logical_type = column.logical_type if label is None else label.logical_type
    entry = CommentedMap(name=name, logicalType=logical_type)
    if is_key:
        entry["primaryKey"] = True
    elif _is_required(column, plan):
        entry["required"] = True
    if column.source_type is not None and column.source_type.startswith(("duration", "time")):
        entry["customProperties"] = CommentedSeq([inline({"property": "unit", "value": "s"})])
    if label is not None and label.sets is not None:
        _add_sets(entry, label.sets)
    elif label is not None and logical_type == "boolean":
        add_comment(entry, "logicalType", "The classes are false and true.", _ENTRY_INDENT)
    elif label is not None and label.task in ("classification", "ordinal"):
        _add_classes(entry, label)
    elif logical_type == "array":
        _add_array(entry, column)
        if plan.label.tags is not None and column.name in (plan.label.name, plan.label.tags.words):
            entry["items"] = inline({"logicalType": column.element_type, "required": True})
    elif column.logical_type != "integer" or not (is_key or is_code(column)):  # the size of a code has no meaning
        _add_limits(entry, column, is_key=is_key)
    columns.append(entry)
    for text in _column_comments(column, plan, name):
        add_comment(columns, len(columns) - 1, text, _COLUMN_INDENT)


def _rename_splits(column: ColumnProfile, replaced: dict[str, str]) -> ColumnProfile:
    """Returns the column with the names of splits that the recipe replaces others by."""
    counts: Counter[str] = Counter()
    for text, num in column.value_counts or ():
        counts[replaced.get(text, text)] += num
    return column.model_copy(update={"value_counts": tuple(counts.items()), "num_distinct": len(counts)})


def _is_required(column: ColumnProfile, plan: DraftPlan) -> bool:
    """Whether a row without a value is quarantined. A forecast drops windows without a label instead."""
    is_label = column.name == plan.label.name and plan.series is None and not plan.label.others
    return is_label or column.name in plan.required_columns or (not column.num_missing and column.num_valid > 0)


def _column_comments(column: ColumnProfile, plan: DraftPlan, name: str) -> list[str]:
    comments = [_describe_column(column), *map(as_sentence, column.date_notes)]
    if name != column.name:
        comments.append(f"Name in the source: {column.name!r}.")
    if column.name == plan.label.name and plan.label.sets is not None:
        return [f"Observed: {plan.label.sets.describe()}."]
    if column.name in plan.inputs.unused and column.name not in (*plan.label_names, plan.key.name):
        comments.append(f"Not used by the model: {plan.inputs.unused[column.name]}.")
    if sounds_personal(column.name):
        comments.append("If this column holds personal data, drop, hash or encrypt it:")
        comments.append("customProperties: [{property: personal, value: drop}]")
    return comments


def _describe_column(column: ColumnProfile) -> str:
    """Returns what the rows hold in a column, as one sentence."""
    if not column.num_valid:
        content = "no values"
    elif column.logical_type == "array":
        content = f"{column.min_length} to {column.max_length} elements"
    elif column.logical_type in ("integer", "number"):
        content = f"{column.minimum} to {column.maximum}"
    else:
        content = f"{column.num_distinct:,} distinct values{'' if column.value_counts is not None else ' or more'}"
    if column.conversion:
        content += f"; {column.conversion}"
    if column.logical_type == "timestamp":
        content += "; times without an offset are read as UTC"
    missing = f"{column.num_missing:,} of {column.num_rows:,} rows have no value" if column.num_missing else ""
    invalid = column.describe_invalid() if column.num_invalid else ""
    return "Observed: " + "; ".join(part for part in (content, missing, invalid) if part) + "."


def _add_sets(entry: CommentedMap, sets: LabelSets) -> None:
    entry["logicalTypeOptions"] = inline({"minItems": 0, "maxItems": len(sets.counts)})
    add_end_comment(entry, "logicalTypeOptions", "a row may have no label")
    entry["items"] = inline({"logicalType": "string", "required": True})


def _add_classes(entry: CommentedMap, label: LabelPlan) -> None:
    _add_valid_values(entry, [value for value, _ in label.classes])
    rare = label.rare_classes
    if rare:
        listing = ", ".join(map(repr, rare[:5])) + (", …" if len(rare) > 5 else "")
        add_comment(entry, "quality", f"Rows of these rare classes are quarantined: {listing}.", _ENTRY_INDENT)


def _add_valid_values(entry: CommentedMap, values: Sequence[object]) -> None:
    arguments = CommentedMap(validValues=inline(values))
    entry["quality"] = CommentedSeq([CommentedMap(metric="invalidValues", arguments=arguments, mustBe=0)])


def _add_limits(entry: CommentedMap, column: ColumnProfile, *, is_key: bool) -> None:
    if column.logical_type in ("integer", "number"):
        _add_range(entry, (column.minimum, column.maximum))
        return
    if column.date_format is not None:
        entry["logicalTypeOptions"] = inline({"format": column.date_format})
        return
    if column.logical_type != "string" or not column.num_valid:
        return
    if column.declared_values and not is_key:
        _add_valid_values(entry, list(column.declared_values))
        add_comment(entry, "quality", "The source declares these values, and others are rejected.", _ENTRY_INDENT)
        return
    values = column.value_counts
    is_listed = values is not None and len(values) <= _MAX_LISTED_VALUES
    if values is not None and is_listed and not is_key and len(values) * _MIN_ROWS_PER_VALUE <= column.num_valid:
        _add_valid_values(entry, sorted(value for value, _ in values))
        add_comment(
            entry, "quality", "Other values are rejected. Delete this check if new values may appear.", _ENTRY_INDENT
        )
        return
    lengths = {"minLength": min(column.min_length or 0, 1), "maxLength": max(2 * (column.max_length or 0), 10)}
    entry["logicalTypeOptions"] = inline(lengths)
    add_end_comment(entry, "logicalTypeOptions", "twice the longest observed value")


def _add_range(entry: CommentedMap, observed: Limits) -> None:
    """Adds integer limits, a margin beyond the observed limits; not below zero unless an observed value is."""
    low, high = observed
    if low is None or high is None or max(abs(low), abs(high)) >= _LIMIT_BOUND:
        return
    margin = max((high - low) * _MARGIN, 1)
    minimum, maximum = math.floor(low - margin), math.ceil(high + margin)
    minimum = max(minimum, 0) if low >= 0 else minimum
    limits = {key: limit for key, limit in (("minimum", minimum), ("maximum", maximum)) if abs(limit) < _LIMIT_BOUND}
    if limits:
        entry["logicalTypeOptions"] = inline(limits)
        add_end_comment(entry, "logicalTypeOptions", f"{_MARGIN:.0%} of the range beyond the observed values")


def _add_array(entry: CommentedMap, column: ColumnProfile) -> None:
    shortest, longest = column.min_length or 0, column.max_length or 0
    if shortest == longest:
        entry["logicalTypeOptions"] = inline({"minItems": shortest, "maxItems": longest})
    else:
        entry["logicalTypeOptions"] = inline({"minItems": min(shortest, 1), "maxItems": 2 * longest})
        add_end_comment(entry, "logicalTypeOptions", "twice the longest observed array")
    items = CommentedMap(logicalType=column.element_type)
    if column.physical_type is not None:
        items["physicalType"] = column.physical_type
    if column.element_type == "number" or column.physical_type is None:
        _add_range(items, (column.minimum, column.maximum))
    entry["items"] = items
