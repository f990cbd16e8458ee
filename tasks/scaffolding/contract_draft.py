"""A contract drafted from what was seen of a source, as a commented file that its own data keeps."""

from __future__ import annotations

import math
from typing import Any

from bloomery.tasks.scaffolding.draft_planning import DraftPlan
from bloomery.tasks.scaffolding.input_planning import sounds_personal
from bloomery.tasks.scaffolding.profiler import ColumnProfile
from bloomery.tasks.scaffolding.yaml_writer import comment, entry, scalar

_MOST_VALID = 30  # values of a text column that are listed one by one
_FEWEST_PER_VALUE = 20  # rows per listed value, or the list is an accident of the sample
_LARGEST = 2**53  # a contract takes no larger limit
_MARGIN = 0.1  # of the range that was seen, on both sides

Lines = list[str]


def draft_contract(name: str, plan: DraftPlan, names: dict[str, str], source: str) -> str:
    """The text of the contract file. `names` are the contract's names of the source's columns."""
    profile = plan.profile
    lines = [
        *comment(
            f"Drafted by `bloomery init` from {profile.num_rows:,} rows of {source}. Every limit below is a guess from "
            "those rows: read it, correct it, and set `version: 1.0.0` and `status: active`."
        ),
        "apiVersion: v3.1.0",
        "kind: DataContract",
        *entry("id", f"bloomery-{name}"),
        *entry("name", name),
        "version: 0.1.0",
        "status: draft",
        "description:",
        *entry("purpose", f"Tell the {names[plan.label.name]} of a row.", 2),
        "schema:",
        f"  - name: {scalar(name)}",
        "    quality:",
        "      - metric: rowCount",
        f"        mustBeGreaterOrEqualTo: {max(plan.num_rows // 2, 1)}  # half of what was there",
        "    customProperties:",
        *_about_quarantine(plan),
        f"      - {{property: quarantineLimit, value: {scalar(quarantine_limit(plan))}}}",
        "    properties:",
    ]
    if plan.key.is_added:
        lines += _added_key(plan.key.name)
    for column in profile.columns:
        lines += _column(column, plan, names[column.name])
    return "\n".join(lines) + "\n"


def quarantine_limit(plan: DraftPlan) -> float:
    """A little more than the share of rows that the draft sets aside."""
    return min(math.ceil(plan.share_aside * 100 + 1) / 100, 1.0)


def _about_quarantine(plan: DraftPlan) -> Lines:
    label, profile = plan.label, plan.profile
    reasons = {
        "lines that are no rows": profile.num_malformed,
        "values that are not of their column's type": sum(column.num_unfit for column in profile.columns),
        "rows without a label": label.num_missing,
        "rows of a class that is too rare to learn": label.num_rare,
    }
    told = ", ".join(f"{num:,} {what}" for what, num in reasons.items() if num) or "none"
    first = f" Of lines that are no rows {profile.malformed}." if profile.malformed else ""
    return comment(f"The share of rows that may be set aside before a run stops. Of these rows: {told}.{first}", 6)


def _added_key(name: str) -> Lines:
    return [
        *comment("No column has a value in every row that no other row has, so rows are numbered as they come.", 6),
        *comment("If the order of the rows changes, so do the numbers: a key of the data's own is better.", 6),
        f"      - name: {name}",
        "        logicalType: integer",
        "        primaryKey: true",
        "        logicalTypeOptions: {minimum: 0}",
    ]


def _column(column: ColumnProfile, plan: DraftPlan, name: str) -> Lines:
    is_label, is_key = column.name == plan.label.name, column.name == plan.key.name
    kind = plan.label.kind if is_label else column.kind
    lines = comment(_told(column), 6)
    if name != column.name:
        lines += comment(f"In the source: {column.name!r}.", 6)
    if column.name in plan.inputs.left_out and not (is_label or is_key):
        lines += comment(f"Not read by the network: {plan.inputs.left_out[column.name]}.", 6)
    lines += [f"      - name: {scalar(name)}", f"        logicalType: {kind}"]
    if is_key:
        lines.append("        primaryKey: true")
    elif is_label or (not column.num_missing and column.num_present):
        lines.append("        required: true")
    if sounds_personal(column.name):
        lines += comment("Personal? Then drop, hash or encrypt it:", 8)
        lines += comment("customProperties: [{property: personal, value: drop}]", 8)
    if is_label and plan.label.task == "classification":
        return [*lines, *_about_label(plan)]
    if kind == "array":
        return [*lines, *_array(column)]
    return [*lines, *_limits(column, is_key=is_key)]


def _told(column: ColumnProfile) -> str:
    """What was seen of a column, in a sentence."""
    missing = f"{column.num_missing:,} of {column.num_rows:,} rows without a value" if column.num_missing else ""
    unfit = f"{column.num_unfit:,} values that are no {column.kind}" if column.num_unfit else ""
    if not column.num_present:
        what = "no value at all"
    elif column.kind == "array":
        what = f"{column.min_length} to {column.max_length} elements"
    elif column.kind in ("integer", "number"):
        what = f"{scalar(column.low)} to {scalar(column.high)}"
    else:
        more = "" if column.values is not None else " or more"
        what = f"{column.num_distinct:,} different values{more}"
    if column.kind == "timestamp":
        what += "; a time without an offset is taken for UTC"
    return "Seen: " + "; ".join(part for part in (what, missing, unfit) if part) + "."


def _about_label(plan: DraftPlan) -> Lines:
    label = plan.label
    lines: Lines = []
    if label.rare:
        shown = ", ".join(map(repr, label.rare[:5])) + (", …" if len(label.rare) > 5 else "")
        lines += comment(f"Rows of these rare classes are set aside: {shown}.", 8)
    return [
        *lines,
        "        quality:",
        "          - metric: invalidValues",
        "            arguments:",
        *entry("validValues", [value for value, _ in label.classes], 14),
        "            mustBe: 0",
    ]


def _limits(column: ColumnProfile, *, is_key: bool) -> Lines:
    if column.kind in ("integer", "number"):
        return _range(column.low, column.high, 8, f"{_MARGIN:.0%} of the range beyond what was seen")
    if column.kind != "string" or not column.num_present:
        return []
    values = column.values or ()
    if not is_key and len(values) <= _MOST_VALID and len(values) * _FEWEST_PER_VALUE <= column.num_present:
        return [
            *comment("Another value is refused. If more may come, delete this check.", 8),
            "        quality:",
            "          - metric: invalidValues",
            "            arguments:",
            *entry("validValues", sorted(value for value, _ in values), 14),
            "            mustBe: 0",
        ]
    least = min(column.min_length or 0, 1)
    most = max(2 * (column.max_length or 0), 10)
    return [f"        logicalTypeOptions: {{minLength: {least}, maxLength: {most}}}  # twice the longest that was seen"]


def _range(low: Any, high: Any, indent: int, why: str) -> Lines:
    """Whole limits a margin beyond `low` and `high`; none is below zero where nothing seen was."""
    if low is None or high is None:
        return []
    margin = max((high - low) * _MARGIN, 1) if max(abs(low), abs(high)) < _LARGEST else math.inf
    limits: dict[str, int] = {}
    if math.isfinite(margin):
        least, most = math.floor(low - margin), math.ceil(high + margin)
        least = max(least, 0) if low >= 0 else least
        limits = {key: value for key, value in (("minimum", least), ("maximum", most)) if abs(value) < _LARGEST}
    if not limits:
        return []
    told = ", ".join(f"{key}: {value}" for key, value in limits.items())
    return [f"{' ' * indent}logicalTypeOptions: {{{told}}}  # {why}"]


def _array(column: ColumnProfile) -> Lines:
    lines = [f"        logicalTypeOptions: {{minItems: {column.min_length or 0}, maxItems: {column.max_length or 0}}}"]
    lines += ["        items:", f"          logicalType: {column.element}"]
    if column.physical is not None:
        lines.append(f"          physicalType: {column.physical}")
    if column.element == "number" or column.physical is None:
        return [*lines, *_range(column.low, column.high, 10, f"{_MARGIN:.0%} beyond what was seen")]
    return lines
