"""A contract as a Great Expectations suite, and the suite's verdict as breaches.

Great Expectations has no rules for the elements of an array column. Each rule is therefore asked of a *measure*: a
flat column that is computed from the data, such as the largest element of each array. `measured` computes all measures
that a contract needs, in one pass over the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_contracts.contract import Contract
from data_contracts.documents import Document
from data_contracts.rules import Rule
from data_contracts.schemas import arrow_schema, largest_exact, range_of

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

ROW = "row number"  # no column of a contract can have this name


class Breach(Document):
    """One row that breaks one rule. `row` counts from 0 in the table that was checked."""

    row: int
    column: str
    rule: str
    value: str


class Verdict(Document):
    """What the suite said of a table: every rule with its count, every breaking row, every broken table rule."""

    checked: tuple[tuple[str, int], ...]
    breaches: tuple[Breach, ...]
    broken: tuple[str, ...]


def judge(table: pa.Table, contract: Contract) -> Verdict:
    """Check every rule of `contract` on `table` with Great Expectations.

    `table` has the contract's columns (see `schemas.require_columns`).
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asked = list(_asked(contract))
    suite = context.suites.add_or_update(
        gx.ExpectationSuite(name=contract.name, expectations=[_expectation(*question) for question in asked])
    )
    batch = (
        context.data_sources.add_or_update_pandas(contract.name)
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": measured(table, contract)})
    )
    verdict = batch.validate(
        suite,
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]},
    )
    # Great Expectations answers in an order of its own; `meta` says which question each result belongs to.
    return _read(sorted(verdict.results, key=lambda result: result.expectation_config.meta["position"]), asked)


def _read(results: list[Any], asked: list[tuple[int, Rule, str]]) -> Verdict:
    counts: dict[str, int] = {}
    breaches: list[Breach] = []
    broken: list[str] = []
    for result, (_, rule, _measure) in zip(results, asked, strict=True):
        _require_checked(result.exception_info or {}, rule)
        name = f"{rule.target or 'table'}: {rule.sentence}"
        if rule.kind == "num_rows":
            counts[name] = 0 if result.success else 1
            if not result.success:
                broken.append(f"number of rows is {result.result['observed_value']}, {rule.sentence}")
            continue
        unexpected = result.result.get("unexpected_index_list") or []
        counts[name] = counts.get(name, 0) + len(unexpected)
        for entry in unexpected:
            is_null = rule.kind == "required"
            value = None if is_null else next(value for key, value in entry.items() if key != ROW)
            breaches.append(Breach(row=int(entry[ROW]), column=rule.target, rule=rule.sentence, value=_shown(value)))
    breaches.sort(key=lambda breach: (breach.row, breach.column, breach.rule))
    return Verdict(checked=tuple(counts.items()), breaches=tuple(breaches), broken=tuple(broken))


def _require_checked(told: dict[str, Any], rule: Rule) -> None:
    """A rule that could not be checked is not kept. What was raised stands at the top or below a metric's name."""
    for failure in (told, *(inner for inner in told.values() if isinstance(inner, dict))):
        if failure.get("raised_exception"):
            raise RuntimeError(f"Great Expectations could not check {rule}: {failure.get('exception_message')}")


def _shown(value: Any) -> str:
    is_missing = value is None or value != value  # a missing value in pandas is not equal to itself
    text = "null" if is_missing else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _asked(contract: Contract) -> Iterator[tuple[int, Rule, str]]:
    """Every question for the suite: its position, the rule behind it and the measure it is asked of."""
    position = 0
    for rule in (*contract.rules(), *_type_rules(contract)):
        column = contract.column(rule.column)
        is_date = column is not None and column.logical_type == "date"
        for measure in _measures_of(rule, is_date=is_date):
            yield position, rule, measure
            position += 1


def _type_rules(contract: Contract) -> Iterator[Rule]:
    """That each value fits its column's type is a rule too, though no line of the contract states it as one."""
    for field in arrow_schema(contract):
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if is_number or pa.types.is_temporal(kind):
            low, high = range_of(kind) if is_number else (None, None)
            target = f"{field.name}[]" if pa.types.is_list(field.type) else field.name
            yield Rule(target=target, kind="fits", low=low, high=high)


def _measures_of(rule: Rule, *, is_date: bool) -> tuple[str, ...]:
    """The measures that a rule is asked of: `COLUMN.ASPECT`, or the column itself."""
    if rule.kind == "num_rows":
        return ("",)
    if rule.kind == "fits":
        return (f"{rule.target}.misfit",)
    if not rule.target.endswith("[]"):
        if rule.kind == "in_set" and is_date:  # Great Expectations compares dates with nothing but dates
            return (f"{rule.target}.text",)
        return (f"{rule.target}.{rule.kind}" if rule.kind in ("length", "num_items") else rule.target,)
    if rule.kind == "required":
        return (f"{rule.target}.nulls",)
    if rule.kind == "pattern":
        return (f"{rule.target}.unmatched {rule.pattern}",)
    least, most = ("shortest", "longest") if rule.kind == "length" else ("min", "max")
    low = (f"{rule.target}.{least}",) if rule.low is not None else ()
    high = (f"{rule.target}.{most}",) if rule.high is not None else ()
    return (*low, *high)


def _expectation(position: int, rule: Rule, measure: str) -> Expectation:
    import great_expectations.expectations as gxe

    low: Any = rule.low
    high: Any = rule.high
    meta = {"position": position, "rule": rule.sentence}
    if measure.endswith(".nulls"):
        return gxe.ExpectColumnValuesToBeInSet(column=measure, value_set=[0], meta=meta)
    if rule.kind == "fits" or "[].unmatched" in measure:  # the measure is the first value that breaks the rule
        return gxe.ExpectColumnValuesToBeNull(column=measure, meta=meta)
    match rule.kind:
        case "num_rows":
            return gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high, meta=meta)
        case "required":
            return gxe.ExpectColumnValuesToNotBeNull(column=measure, meta=meta)
        case "unique":
            return gxe.ExpectColumnValuesToBeUnique(column=measure, meta=meta)
        case "in_set":
            return gxe.ExpectColumnValuesToBeInSet(column=measure, value_set=list(rule.values), meta=meta)
        case "pattern":
            return gxe.ExpectColumnValuesToMatchRegex(column=measure, regex=rule.pattern or "", meta=meta)
    return gxe.ExpectColumnValuesToBeBetween(
        column=measure,
        min_value=None if measure.endswith(("[].max", "[].longest")) else low,
        max_value=None if measure.endswith(("[].min", "[].shortest")) else high,
        strict_min=rule.strict_low,
        strict_max=rule.strict_high,
        meta=meta,
    )


def measured(table: pa.Table, contract: Contract) -> pd.DataFrame:
    """One row per row of `table`, one column per measure that the contract's rules ask about, and the row's number."""
    measures = dict.fromkeys(measure for _, _, measure in _asked(contract) if measure)
    columns = {ROW: pa.array(range(table.num_rows), pa.int64())}
    for name in measures:
        try:
            columns[name] = _measure(table, name, contract)
        except (pa.ArrowException, TypeError) as failure:
            raise RuntimeError(f"Great Expectations could not check {name}: {failure}") from failure
    # Integers with nulls would turn to floats, and large keys would lose digits: keep them as objects.
    return pa.table(columns).to_pandas(integer_object_nulls=True)


def _measure(table: pa.Table, name: str, contract: Contract) -> pa.Array:
    target, _, aspect = name.partition(".")
    column = target.removesuffix("[]")
    values = table[column].combine_chunks()
    wanted = arrow_schema(contract).field(column).type
    if pa.types.is_null(values.type):  # a column without a single value has the type of none
        values = values.cast(wanted)
    if not target.endswith("[]"):
        match aspect:
            case "":
                return values
            case "text":
                return values.cast(pa.date32(), safe=False).cast(pa.string())
            case "length":
                return pc.utf8_length(values)
            case "num_items":
                return pc.list_value_length(values)
        return pc.if_else(_misfits(values, wanted), values.cast(pa.string()), pa.scalar(None, pa.string()))
    elements = pc.list_flatten(values)
    match aspect.split(" ", 1):
        case ["min" | "max"]:
            return _per_row(values, elements, aspect)
        case ["shortest" | "longest"]:
            return _per_row(values, pc.utf8_length(elements), "min" if aspect == "shortest" else "max")
        case ["nulls"]:
            return _per_row(values, pc.is_null(elements).cast(pa.int64()), "max")
        case ["unmatched", pattern]:
            return _first_per_row(values, elements, _unmatched(elements, pattern))
    return _first_per_row(values, elements, _misfits(elements, wanted.value_type))


def _misfits(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Which values `wanted` cannot hold as they are. A null is no misfit, but a NaN is."""
    if pa.types.is_temporal(wanted):
        back = values.cast(wanted, safe=False).cast(values.type, safe=False)
        return pc.fill_null(pc.not_equal(back, values), False)
    present = values.drop_null().to_numpy(zero_copy_only=False)
    low, high = range_of(wanted)
    if np.issubdtype(present.dtype, np.floating) and isinstance(low, int):
        # Both ends are powers of two, so they are exact as floats; the upper one is the first that does not fit.
        fits = (present >= float(low)) & (present < float(high + 1)) & (np.floor(present) == present)
    elif np.issubdtype(present.dtype, np.floating):
        fits = (present >= low) & (present <= high)
    else:
        low, high = (low, high) if isinstance(low, int) else (-largest_exact(wanted), largest_exact(wanted))
        fits = (present >= low) & (present <= high)
    misfits = np.zeros(len(values), dtype=bool)
    misfits[np.asarray(values.is_valid())] = ~fits
    return pa.array(misfits)


def _unmatched(values: pa.Array, pattern: str) -> pa.Array:
    """Which strings have no match of `pattern`, as the regular expressions of Python and pandas understand it."""
    searched = re.compile(pattern)
    return pa.array([text is not None and searched.search(text) is None for text in values.to_pylist()], pa.bool_())


def _per_row(arrays: pa.Array, elements: pa.Array, aggregate: str) -> pa.Array:
    """`aggregate` of each array's elements; null for a null or empty array."""
    grouped = (
        pa.table({"row": pc.list_parent_indices(arrays), "element": elements})
        .group_by("row", use_threads=False)
        .aggregate([("element", aggregate)])
    )
    rows, found = grouped["row"].combine_chunks(), grouped[f"element_{aggregate}"].combine_chunks()
    return found.take(pc.index_in(pa.array(range(len(arrays)), rows.type), rows))


def _first_per_row(arrays: pa.Array, elements: pa.Array, mask: pa.Array) -> pa.Array:
    """As text, the first of each array's elements for which `mask` is true; null if there is none."""
    rows = pc.list_parent_indices(arrays).filter(mask)
    found = elements.filter(mask).cast(pa.string())
    # `index_in` gives the first place at which a row stands among the masked elements.
    return found.take(pc.index_in(pa.array(range(len(arrays)), rows.type), rows))
