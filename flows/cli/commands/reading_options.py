"""The options of `bloomery init` that say how a source is read. Each is also an option of a recipe's `data`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Annotated

import typer

Format = Annotated[str | None, typer.Option(help="File format; inferred by default.")]
Delimiter = Annotated[str | None, typer.Option(help="Delimiter of CSV files, such as `;` or `tab`.")]
Columns = Annotated[str | None, typer.Option(help="Column names for CSV files without a header: a,b,c.")]
PathPattern = Annotated[
    str | None, typer.Option(help="Regular expression; its named groups turn file paths into columns.")
]
Query = Annotated[str | None, typer.Option(help="For sql:DRIVER, a query with ORDER BY.")]
UriVariable = Annotated[
    str | None, typer.Option(help="For sql:DRIVER, the environment variable with the database URI.")
]
Drop = Annotated[str | None, typer.Option(help="Columns to leave out: a,b,c.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of text, such as cp1252.")]
Quote = Annotated[str | None, typer.Option(help="Quote around the cells of CSV files; empty for none.")]
Escape = Annotated[str | None, typer.Option(help="Escape character of CSV files.")]
Header = Annotated[bool | None, typer.Option("--header/--no-header", help="Whether CSV files have a header.")]
Missing = Annotated[list[str] | None, typer.Option(help="A text that means null; repeat for several.")]
UnquotedMissing = Annotated[list[str] | None, typer.Option(help="A text that means null without quotes; repeatable.")]
Strip = Annotated[bool | None, typer.Option("--strip/--no-strip", help="Whether to strip spaces around cells.")]
Comment = Annotated[str | None, typer.Option(help="Start of comment lines, such as `#`.")]
SkipLines = Annotated[int | None, typer.Option(min=0, help="Lines in front of the header or first row.")]
SkipInitialSpace = Annotated[
    bool | None,
    typer.Option("--skip-initial-space/--no-skip-initial-space", help="Skip spaces in front of an opening quote."),
]
TrailingDelimiter = Annotated[
    bool | None,
    typer.Option("--trailing-delimiter/--no-trailing-delimiter", help="Whether a delimiter ends each row."),
]
Decimal = Annotated[str | None, typer.Option(help="Decimal separator of numbers.")]
Thousands = Annotated[str | None, typer.Option(help="Separator between the thousands of numbers.")]
Units = Annotated[list[str] | None, typer.Option(help="A text around numbers to omit, such as `$`; repeatable.")]
Numbers = Annotated[str | None, typer.Option(help="Columns with such numbers: a,b,c; inferred by default.")]
Records = Annotated[str | None, typer.Option(help="For JSON, the path of the list of rows: a.b.")]
Unit = Annotated[str | None, typer.Option(help="What a row is: a line, or a file (text, CSV).")]
Files = Annotated[str | None, typer.Option(help="Regular expression; only files with it in their path are read.")]
Sheet = Annotated[str | None, typer.Option(help="The sheet of an Excel workbook.")]
Table = Annotated[str | None, typer.Option(help="The table of an SQLite file.")]
Arrays = Annotated[list[str] | None, typer.Option(help="For .npz, an array and its column: image=x_train; repeatable.")]
Mode = Annotated[str | None, typer.Option(help="For images, L (grey) or RGB.")]
Size = Annotated[str | None, typer.Option(help="For images, height and width to resize to: 32,32.")]
SampleRate = Annotated[int | None, typer.Option(min=1, help="For audio, the sample rate in Hz.")]
Resample = Annotated[
    bool | None,
    typer.Option("--resample/--no-resample", help="For audio, whether to convert other sample rates."),
]
Mono = Annotated[bool | None, typer.Option("--mono/--no-mono", help="For audio, whether to average channels.")]
Labels = Annotated[str | None, typer.Option(help="For IDX files, the file of the labels.")]
Version = Annotated[int | None, typer.Option(min=0, help="Version of a Delta table, or Iceberg snapshot.")]


def parse_character(text: str | None) -> str | None:
    """Returns the character that a user writes in letters, as is usual for tabs."""
    return "\t" if text in ("tab", "\\t") else text


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Returns the names in a list with commas; a name with a comma is in double quotes."""
    if text is None:
        return None
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), [""]))


def parse_arrays(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Returns the arrays by column. An array without a column's name keeps its own.

    Raises:
        typer.BadParameter: a name is missing.
    """
    if not texts:
        return None
    pairs = [(column, array) if sign else (column, column) for column, sign, array in (t.partition("=") for t in texts)]
    if not all(column and array for column, array in pairs):
        raise typer.BadParameter("must be COLUMN=ARRAY, such as image=x_train", param_hint="--arrays")
    return dict(pairs)


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """Returns the numbers in a list with commas.

    Raises:
        typer.BadParameter: there are other characters.
    """
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as failure:
        raise typer.BadParameter(
            f"{text!r} is not a height and a width such as 32,32", param_hint="--size"
        ) from failure
