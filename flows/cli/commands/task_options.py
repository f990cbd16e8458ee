"""The options of `bloomery init` that say what a model predicts, and how rows are ordered and split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from bloomery.flows.cli.commands.reading_options import parse_names

Label = Annotated[list[str], typer.Option(help="The column to predict; a,b,c for several labels, or 0 and 1.")]
LabelSeparator = Annotated[str | None, typer.Option(help="Sign between the labels in a text; inferred by default.")]
Task = Annotated[
    str | None,
    typer.Option(help="classification, regression, forecasting, multilabel, ordinal or tagging; inferred by default."),
]
Order = Annotated[str | None, typer.Option(help="ordinal: the classes from lowest to highest, as low,medium,high.")]
Time = Annotated[str | None, typer.Option(help="The column that orders rows in time: later rows are tested.")]
Group = Annotated[
    list[str] | None, typer.Option(help="A column that names entities or series; repeat, or a list: store,item.")
]
Horizon = Annotated[int | None, typer.Option(min=1, help="Rows from the last known to the forecast one; default 1.")]
Lags = Annotated[int | None, typer.Option(min=2, help="The known rows that a forecast reads.")]
Split = Annotated[str | None, typer.Option(help="How rows are split: key, group, time, or a column of names.")]

PretrainedCheckpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", help="Pretrained network for text, images or audio: a folder, or package:NAME."),
]


def parse_groups(groups: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names in an option that is repeated or holds lists, each once."""
    return tuple(dict.fromkeys(name for names in groups or () for name in parse_names(names) or ()))
