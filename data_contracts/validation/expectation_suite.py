"""A contract as a Great Expectations suite, its results and its page in Great Expectations' Data Docs.

Great Expectations' own engines scan the data once for each rule. Here it receives the metrics that its expectations
need, counted in one pass over the data, and decides and reports from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from bloomery.data_contracts.odcs.rules import Rule

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )
    from great_expectations.expectations import Expectation


class ViolationExample(NamedTuple):
    """One row that breaks a rule: its position in the source from 0, and the value as text."""

    row: int
    value: str


class RuleCount(NamedTuple):
    """The number of rows that break a rule, the number of values that were checked, and examples of such rows.

    `observed` is the number that a rule about the table compares, as text.
    """

    rule: Rule
    num_violations: int
    num_checked: int
    examples: tuple[ViolationExample, ...] = ()
    observed: str | None = None

    @property
    def is_satisfied(self) -> bool:
        """Whether no more rows break the rule than it tolerates, to the last row."""
        return Fraction(self.num_violations) <= Fraction(repr(self.rule.tolerance or 0)) * self.num_checked

    @property
    def mostly(self) -> float:
        """The share of values that must keep the rule, which Great Expectations compares as a rounded float.

        It is one minus the tolerance. Where rounding would contradict `is_satisfied`, it is the share that keeps the
        rule in the worst tolerated case.
        """
        share = 1 - (self.rule.tolerance or 0)
        if (
            self.num_checked == 0
            or ((self.num_checked - self.num_violations) / self.num_checked >= share) == self.is_satisfied
        ):
            return share
        tolerated = math.floor(Fraction(repr(self.rule.tolerance or 0)) * self.num_checked)
        return (self.num_checked - tolerated) / self.num_checked


def build_suite_result(
    name: str, source: str, num_rows: int, counts: Sequence[RuleCount]
) -> ExpectationSuiteValidationResult:
    """The result of the suite `name`, with an expectation for each rule, over the `num_rows` rows of `source`.

    A rule fails if more rows break it than it tolerates.
    """
    import great_expectations as gx
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

    results = [_result(count, num_rows) for count in counts]
    num_successful = sum(bool(result.success) for result in results)
    return ExpectationSuiteValidationResult(
        success=num_successful == len(results),
        results=results,
        suite_name=re.sub(r"[^\w .-]", "_", name),  # it becomes part of a link
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": num_successful,
            "unsuccessful_expectations": len(results) - num_successful,
            "success_percent": 100 * num_successful / len(results) if results else None,
        },
        meta={
            "great_expectations_version": gx.__version__,
            "batch_spec": {"data_asset_name": source},
            "active_batch_definition": {"data_asset_name": source},
        },
    )


def _result(count: RuleCount, num_rows: int) -> ExpectationValidationResult:
    from great_expectations.execution_engine import PandasExecutionEngine

    from bloomery.data_contracts.validation.custom_expectation import ROW

    expectation = build_expectation(count.rule, count.mostly)
    engine = PandasExecutionEngine()  # only names the metrics; it has no data
    configuration: dict[str, Any] = {
        "result_format": {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": [ROW],
            "partial_unexpected_count": max(len(count.examples), 1),
        }
    }
    dependencies = expectation.get_validation_dependencies(execution_engine=engine, runtime_configuration=configuration)
    metrics = {
        metric.id: _metric(metric.metric_name, count, num_rows)
        for metric in dependencies.metric_configurations.values()
    }
    result = expectation.metrics_validate(metrics, runtime_configuration=configuration, execution_engine=engine)
    result.expectation_config = expectation.configuration
    return result


def _metric(name: str, count: RuleCount, num_rows: int) -> Any:
    """The counted metric with Great Expectations' name. Values are escaped, since its page shows them as markup."""
    from bloomery.data_contracts.validation.custom_expectation import ROW

    is_required = count.rule.kind == "required"
    match name.rsplit(".", 1):
        case ["table", "row_count"]:
            return num_rows
        case ["column_values.nonnull", "unexpected_count"]:
            return count.num_violations if is_required else num_rows - count.num_checked
        case [_, "filtered_row_count"]:
            return count.num_checked
        case [_, "unexpected_count"]:
            return count.num_violations
        case [_, "unexpected_values"]:
            return [escape(example.value) for example in count.examples]
        case [_, "unexpected_index_list"]:
            target = count.rule.target or "the table"
            target += " (column)" if target == ROW else ""
            return [{ROW: example.row, target: escape(example.value)} for example in count.examples]
        case [_, "unexpected_index_query"]:
            return None
        case [_, "observed"]:
            return None if count.observed is None else escape(count.observed)
    raise RuntimeError(f"Great Expectations asks for the metric {name}, which is not counted")


def build_expectation(rule: Rule, mostly: float = 1.0) -> Expectation:
    """The expectation that a share `mostly` of the values keeps `rule`.

    Its description is that of error messages and of the quarantine.
    """
    import great_expectations.expectations as gxe

    from bloomery.data_contracts.validation.custom_expectation import ExpectRuleToHold

    low: Any = rule.low
    high: Any = rule.high
    description: dict[str, Any] = {
        "description": escape(describe_rule(rule)),
        "severity": "critical" if rule.severity == "error" else "warning",
    }
    options: dict[str, Any] = {**description, "mostly": mostly}
    match rule.kind:
        case "num_rows":
            return gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high, **description)
        case "required":
            return gxe.ExpectColumnValuesToNotBeNull(column=rule.target, **options)
        case "unique" if rule.columns:
            return gxe.ExpectCompoundColumnsToBeUnique(
                column_list=list(rule.columns), ignore_row_if="any_value_is_missing", **options
            )
        case "unique":
            return gxe.ExpectColumnValuesToBeUnique(column=rule.target, **options)
        case "in_set":
            return gxe.ExpectColumnValuesToBeInSet(column=rule.target, value_set=list(rule.values), **options)
        case "pattern":
            return gxe.ExpectColumnValuesToMatchRegex(column=rule.target, regex=rule.pattern or "", **options)
        case "length":
            return gxe.ExpectColumnValueLengthsToBeBetween(column=rule.target, min_value=low, max_value=high, **options)
        case "between":
            return gxe.ExpectColumnValuesToBeBetween(
                column=rule.target,
                min_value=low,
                max_value=high,
                strict_min=rule.strict_low,
                strict_max=rule.strict_high,
                **options,
            )
    return ExpectRuleToHold(column=rule.target or "the table", rule=rule.sentence, **options)


def describe_rule(rule: Rule) -> str:
    """The rule as text, with its target, its tolerance, and whether it is a warning."""
    tolerated = "" if rule.tolerance is None else f", in at least {100 - 100 * rule.tolerance:.10g}%"
    return f"{rule.target or 'table'}: {rule.sentence}{tolerated}{' (warning)' if rule.severity == 'warning' else ''}"


def rule_successes(result: ExpectationSuiteValidationResult) -> list[bool]:
    """For each count, in order, whether its rule holds."""
    return [bool(rule_result.success) for rule_result in result.results]
