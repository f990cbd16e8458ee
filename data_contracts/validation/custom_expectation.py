"""The expectation for rules that Great Expectations has no expectation for.

Imported inside functions only: the base class needs Great Expectations, which is slow to import.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from great_expectations.expectations.expectation import BatchExpectation  # noqa: TID253
from great_expectations.validator.metric_configuration import MetricConfiguration  # noqa: TID253
from great_expectations.validator.validator import ValidationDependencies  # noqa: TID253

ROW = "row in the source"
_METRICS = ("unexpected_count", "unexpected_values", "unexpected_index_list", "filtered_row_count", "observed")


class ExpectRuleToHold(BatchExpectation):
    """Expects that no more rows break a rule than it tolerates. `rule` is its description."""

    rule: str
    column: str
    mostly: float = 1.0

    metric_dependencies: ClassVar[tuple[str, ...]] = ("table.row_count",)
    domain_keys: ClassVar[tuple[str, ...]] = ("batch_id", "column")
    success_keys: ClassVar[tuple[str, ...]] = ("rule", "mostly")

    def get_validation_dependencies(
        self, execution_engine: Any = None, runtime_configuration: dict[str, Any] | None = None
    ) -> ValidationDependencies:
        dependencies = super().get_validation_dependencies(
            execution_engine=execution_engine, runtime_configuration=runtime_configuration
        )
        for aspect in _METRICS:
            name = f"rule.{aspect}"
            metric = MetricConfiguration(
                name, metric_domain_kwargs={"column": self.column}, metric_value_kwargs={"rule": self.rule}
            )
            dependencies.set_metric_configuration(name, metric)
        return dependencies

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any] | None = None,
        execution_engine: Any = None,
    ) -> dict[str, Any]:
        num_breaking, num_checked = metrics["rule.unexpected_count"], metrics["rule.filtered_row_count"]
        if metrics["rule.observed"] is not None:
            return {"success": num_breaking == 0, "result": {"observed_value": metrics["rule.observed"]}}
        num_rows, values = metrics["table.row_count"], metrics["rule.unexpected_values"]
        share = num_breaking / num_checked if num_checked else 0.0
        return {
            "success": num_checked == 0 or (num_checked - num_breaking) / num_checked >= self.mostly,
            "result": {
                "element_count": num_rows,
                "unexpected_count": num_breaking,
                "unexpected_percent": 100 * share,
                "missing_count": num_rows - num_checked,
                "partial_unexpected_list": values,
                "partial_unexpected_counts": [
                    {"value": value, "count": count} for value, count in Counter(values).most_common()
                ],
                "unexpected_list": values,
                "unexpected_index_list": metrics["rule.unexpected_index_list"],
                "unexpected_index_column_names": [ROW],
            },
        }
