"""The columns without which a row is quarantined, and how many rows that may be."""

from __future__ import annotations

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan
from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.planning.series_planning import SeriesPlan
from bloomery.tasks.scaffolding.planning.split_planning import SplitPlan
from bloomery.tasks.scaffolding.profiling.profiler import SourceProfile


def required_columns(split: SplitPlan, series: SeriesPlan | None, inputs: InputPlan) -> tuple[str, ...]:
    """The columns without which a row is quarantined; files are among them where a model reads nothing else."""
    kinds = [planned_input.options["kind"] for planned_input in inputs.inputs]
    columns = inputs.columns if kinds in (["image"], ["audio"]) else []
    columns += [split.column] if split.by != "key" and split.column is not None else []
    return tuple(dict.fromkeys([*columns, *(series.groups if series is not None else ())]))


def count_quarantined(
    profile: SourceProfile,
    label: LabelPlan,
    data: DataSource,
    split: SplitPlan,
    series: SeriesPlan | None,
    inputs: InputPlan,
) -> int:
    """Returns the largest possible number of quarantined rows: a row with two faults counts twice."""
    rates = profile.column("sample_rate") if data.kind == "audio" else None
    num_other_rates = sum(num for _, num in (rates.value_counts or ())[1:]) if rates is not None else 0
    num_invalid = sum(column.num_invalid for column in profile.columns)
    required = required_columns(split, series, inputs)
    num_unplaced = sum(profile.existing_column(name).num_missing for name in required)
    num_unlabelled = label.num_missing if series is None and not label.may_be_missing else 0
    return (
        profile.num_malformed + num_invalid + num_unlabelled + label.num_all_rare_rows + num_other_rates + num_unplaced
    )
