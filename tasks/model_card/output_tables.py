"""Tables of the scores of several labels in a model card."""

from __future__ import annotations

from collections.abc import Sequence

from bloomery.data_contracts.records.output_units import ClassOutputScore, OutputScore
from bloomery.data_contracts.records.score_format import format_score
from bloomery.tasks.model_card.rendering import Table


def output_table(outputs: Sequence[OutputScore]) -> Table:
    headings = ("output", "rows", "RMSE (95% interval)", "MAE", "R²")
    rows = [
        (
            output.name,
            f"{output.num_rows:,}",
            format_score("regression", output.rmse),
            f"{output.mae:,.4g}",
            "–" if output.r2 is None else f"{output.r2:.2%}",
        )
        for output in outputs
    ]
    return Table(headings, rows, frozenset(headings[1:]))


def class_output_table(outputs: Sequence[ClassOutputScore]) -> Table:
    headings = (
        *("label", "rows", "accuracy (95% interval)", "balanced accuracy"),
        *("log loss", "expected calibration error"),
    )
    rows = [
        (
            output.name,
            f"{output.num_rows:,}",
            format_score("classification", output.accuracy),
            f"{output.balanced_accuracy:.2%}",
            f"{output.log_loss:,.3g}",
            f"{output.calibration_error:.2%}",
        )
        for output in outputs
    ]
    return Table(headings, rows, frozenset(headings[1:]))
