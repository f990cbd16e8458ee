"""A recipe's `data`: its sources and the options to read them. Nothing is inferred from the content."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.data_contracts.recipe_sections.list_column import ListColumn
from bloomery.data_contracts.recipe_sections.periods import PERIOD_PLACEHOLDER, fill_period
from bloomery.data_contracts.recipe_sections.source_options import OF_ONE_SOURCE, OF_TEXT_CELLS, OPTIONS
from bloomery.data_contracts.recipe_sections.source_paths import absolute_source, format_of_source, path_variable
from bloomery.data_contracts.records.records import Record

# fmt: off
FileFormat = Literal[
    "parquet", "csv", "jsonl", "json", "orc", "arrow", "text", "images", "audio", "idx", "xlsx", "sqlite", "arff",
    "numpy", "huggingface", "stata",
]
# fmt: on
SplitName = Literal["train", "val", "test"]
Name = Annotated[str, Field(min_length=1)]
Character = Annotated[str, Field(pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x7f]$")]


class SourceFile(Document):
    """One of several sources that are read one after the other, and the split of its rows."""

    source: Name
    files: Annotated[
        Name | None, Field(description="a regular expression: only files, also in a zip, in whose path it is found")
    ] = None
    records: Annotated[Name | None, Field(description="for `json`: the path of the list of rows, such as a.b")] = None
    labels: Annotated[Name | None, Field(description="for `idx` and .npy: the file of the labels")] = None
    arrays: Annotated[
        dict[Name, Name] | None, Field(description="for .npz: the arrays to read, each by the name of its column")
    ] = None
    part: Annotated[SplitName | None, Field(description="the value of the column `part` for these rows")] = None
    values: Annotated[
        dict[Name, str] | None, Field(description="text columns to add, with their constant value for these rows")
    ] = None

    @field_validator("files")
    @classmethod
    def _files_are_a_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else _compile(pattern).pattern


class DataSource(Document):
    """A recipe's `data`: one `source`, or several `sources` with a split each.

    A missing option has the format's default; an option that does not apply to the format is an error.
    """

    source: Annotated[
        Name | None,
        Field(
            description="a file, folder or pattern such as `rows-*.csv`, here, in `s3://` or `hdfs://`, or below the "
            "folder that an environment variable names, such as `${DATA}/rows.csv`; `{period:%Y-%m}` stands for the "
            "period of a dated recipe; or "
            "`sklearn:NAME`, `delta:PATH`, `iceberg:CATALOG.TABLE`, `sql:DRIVER`, `hive:DATABASE.TABLE`"
        ),
    ] = None
    sources: Annotated[tuple[SourceFile, ...] | None, Field(min_length=1, description="files with their parts")] = None
    format: Annotated[
        FileFormat | None,
        Field(description="of the files; left out, their suffix says it, and a folder holds Parquet"),
    ] = None

    obtain: Annotated[
        Name | None, Field(description="for people: origin and licence of the data; shown if the data is missing")
    ] = None

    files: Annotated[
        Name | None, Field(description="a regular expression: only files, also in a zip, in whose path it is found")
    ] = None
    path_pattern: Annotated[
        Name | None,
        Field(description="a regular expression found in each file's path; its named groups become columns"),
    ] = None
    row_id: Annotated[Name | None, Field(description="a column to add in front: the row's number, from 0")] = None
    drop: Annotated[
        tuple[str, ...] | None, Field(min_length=1, description="columns to leave out, by name in the source")
    ] = None
    flatten: Annotated[
        dict[Name, tuple[Annotated[int, Field(ge=1)], ...]] | None,
        Field(
            min_length=1,
            description="columns of arrays of arrays, by name in the source, which become one array each; with the "
            "required lengths of the inner arrays, from the outside in: [3] for steps of 3 values",
        ),
    ] = None
    rename: Annotated[dict[str, Name] | None, Field(description="new column names, by name in the source")] = None
    normalize: Annotated[
        tuple[Name, ...] | None,
        Field(
            min_length=1,
            description="text columns, after `rename`, without invisible characters: composed Unicode (NFC), one plain "
            "space for each run of white space, none at either end",
        ),
    ] = None
    replace: Annotated[
        dict[Name, dict[str, str]] | None,
        Field(description="by column, after `rename`: complete texts and their replacements"),
    ] = None
    lists: Annotated[
        dict[Name, ListColumn] | None,
        Field(min_length=1, description="by column, after `replace`: what becomes lists of texts, such as labels"),
    ] = None
    media: Annotated[
        dict[Name, FileColumn] | None,
        Field(min_length=1, description="columns with names or URLs of files of images and recordings, after `lists`"),
    ] = None

    encoding: Annotated[Name | None, Field(description="of text, by its name in Python (default utf-8)")] = None
    delimiter: Annotated[Character | None, Field(description="between cells (default a comma)")] = None
    quote: Annotated[Character | Literal[""] | None, Field(description='around cells (default "); empty for none')] = (
        None
    )
    escape: Annotated[Character | None, Field(description="escape character (default none)")] = None
    header: Annotated[bool | None, Field(description="whether the first row has the column names (default true)")] = (
        None
    )
    columns: Annotated[
        tuple[Name, ...] | None,
        Field(min_length=1, description="column names, without a header; `json`: if rows are arrays"),
    ] = None
    records: Annotated[Name | None, Field(description="for `json`: the path of the list of rows, such as a.b")] = None
    missing: Annotated[
        tuple[str, ...] | dict[Name, tuple[str, ...]] | None,
        Field(
            description='texts that mean null: for all columns of a CSV file (default [""]); or, for any format, by '
            "column, after `rename` and `normalize`; of numbers also NaN"
        ),
    ] = None
    unquoted_missing: Annotated[
        tuple[str, ...] | None,
        Field(
            min_length=1,
            description="texts that mean null where they stand without quotes, in every column, as R writes NA",
        ),
    ] = None
    strip: Annotated[bool | None, Field(description="whether to strip spaces and tabs from cells")] = None
    comment: Annotated[Character | None, Field(description="start of a comment line")] = None
    skip_lines: Annotated[int | None, Field(ge=0, description="lines to skip before the header or first row")] = None
    skip_initial_space: Annotated[
        bool | None, Field(description="whether to skip spaces between a delimiter and an opening quote")
    ] = None
    trailing_delimiter: Annotated[
        bool | None, Field(description="whether a delimiter ends each row; the header may lack it")
    ] = None
    decimal: Annotated[Character | None, Field(description="in numbers (default a point)")] = None
    thousands: Annotated[
        Annotated[str, Field(min_length=1, max_length=1)] | None,
        Field(description="between groups of digits (default none)"),
    ] = None
    units: Annotated[
        tuple[Name, ...] | None,
        Field(min_length=1, description="texts before or behind a number to omit, such as $ and %"),
    ] = None
    numbers: Annotated[
        tuple[Name, ...] | None,
        Field(
            min_length=1,
            description="names in the source of the columns with such numbers; left out, every cell that is such a "
            "number as a whole is rewritten, in any column; `json`: columns of numbers that are written as texts",
        ),
    ] = None
    unit: Annotated[
        Literal["line", "file"] | None,
        Field(description="what a row of text is; `file` of CSV and .npy: each file is a row with a sequence"),
    ] = None
    sheet: Annotated[Name | None, Field(description="of a workbook; left out, it has one sheet with cells")] = None
    table: Annotated[Name | None, Field(description="of a database; left out, it has one table")] = None

    mode: Annotated[Literal["L", "RGB"] | None, Field(description="of images: grey (L) or colour (RGB)")] = None
    size: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
        Field(description="height and width that images are resized to; left out, all must have one size"),
    ] = None
    sample_rate: Annotated[
        int | None, Field(ge=1, description="sample rate in Hz; left out, all recordings must have one")
    ] = None
    resample: Annotated[
        bool | None, Field(description="whether to convert recordings of other sample rates; else they are malformed")
    ] = None
    mono: Annotated[bool | None, Field(description="whether to average the channels of recordings into one")] = None
    labels: Annotated[Name | None, Field(description="for `idx` and .npy: the file of the labels")] = None
    arrays: Annotated[
        dict[Name, Name] | None,
        Field(min_length=1, description="for .npz: the arrays to read, each by the name of its column"),
    ] = None

    version: Annotated[int | None, Field(ge=0, description="of a Delta table, or the id of an Iceberg snapshot")] = None
    query: Annotated[Name | None, Field(description="SQL, with an ORDER BY, since rows have no order of their own")] = (
        None
    )
    uri_variable: Annotated[Name | None, Field(description="the environment variable with the database's URI")] = None

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                "".encode(encoding)
            except LookupError as failure:
                raise ValueError("Python must know the encoding, such as utf-8, latin-1 or cp1252") from failure
        return encoding

    @field_validator("files")
    @classmethod
    def _files_are_a_pattern(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else _compile(pattern).pattern

    @field_validator("path_pattern")
    @classmethod
    def _pattern_names_columns(cls, pattern: str | None) -> str | None:
        if pattern is not None and not _compile(pattern).groupindex:
            raise ValueError("there must be a named group such as (?P<label>[a-z]+), which becomes a column")
        return pattern

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.source is None) == (self.sources is None):
            raise ValueError("there must be either `source` or `sources`")
        for path in (path for origin in self.source_files for path in (origin.source, origin.labels or "")):
            if "${" in path[1 if path_variable(path) else 0 :]:
                raise ValueError(
                    f"a variable is written ${{NAME}} and must be the first folder of a path, not as in {path!r}"
                )
        for text in self._dated_texts:
            malformed = re.search(r"\{period[^{}]*\}?", PERIOD_PLACEHOLDER.sub("", text))
            if malformed:
                raise ValueError(f"a period must be written as in {{period:%Y-%m}}, not {malformed[0]!r}")
        kinds = {format_of_source(origin.source, self.format) for origin in self.source_files}
        if len(kinds) > 1:
            raise ValueError(f"all sources must be of one format, but these are {', '.join(sorted(kinds))}")
        if self.sources is not None and any(origin.part is None for origin in self.sources):
            raise ValueError("each of several sources needs its `part`: train, val or test")
        if len({tuple(sorted(origin.values or ())) for origin in self.source_files}) > 1:
            raise ValueError("values: all sources must have the same columns in it")
        self._require_supported_options()
        self._require_consistent_options()
        return self

    def _require_supported_options(self) -> None:
        general = {"source", "sources", "format", "obtain"}
        options = [name for name in type(self).model_fields if name not in general and getattr(self, name) is not None]
        supported = OPTIONS[self.kind]
        unsupported = [name for name in options if name not in supported]
        if unsupported:
            supported_text = f"its options are {', '.join(supported)}"
            raise ValueError(
                f"{', '.join(unsupported)}: no meaning for a source of format {self.kind}; {supported_text}"
            )
        for option in OF_ONE_SOURCE:
            if option not in supported and any(getattr(origin, option) for origin in self.sources or ()):
                raise ValueError(f"{option}: no meaning for a source of format {self.kind}")
        for option in OF_ONE_SOURCE:
            if getattr(self, option) is not None and self.sources is not None:
                raise ValueError(f"{option}: set it for each of the `sources`")

    def _require_consistent_options(self) -> None:
        if self.columns is not None and self.header:
            raise ValueError("columns: the header has the names already; use `rename`, or set `header: false`")
        if isinstance(self.missing, tuple) and self.kind not in OF_TEXT_CELLS:
            raise ValueError(
                f"missing: for a source of format {self.kind}, name the column: `missing: {{column: [text]}}`"
            )
        for name in set(self.drop or ()) & set(self.rename or ()):
            raise ValueError(f"rename: column {name} is left out by `drop`")
        if self.kind == "numpy" and self.unit != "file" and (self.files or self.path_pattern):
            raise ValueError("files and path_pattern: set `unit: file`; else there is one file of arrays")
        if self.kind == "sqlite" and self.table is not None and self.query is not None:
            raise ValueError("set either `table` or `query`")
        if self.header is False and self.columns is None:
            raise ValueError("columns: without a header, the names of the columns are required")
        for names, what in ((self.columns or (), "columns"), (tuple((self.rename or {}).values()), "rename")):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what}: two columns have the name {', '.join(repeated)}")
        special = [character for character in (self.delimiter or ",", self.quote or '"', self.escape) if character]
        if len(set(special)) < len(special) and self.kind == "csv":
            raise ValueError("delimiter, quote and escape must be different characters")
        self._require_consistent_numbers()
        if self.kind == "images" and self.mode is None:
            raise ValueError("mode: images need `L` (grey) or `RGB` (colour)")
        if self.resample and self.sample_rate is None:
            raise ValueError("resample: needs the `sample_rate` that recordings are converted to")
        if self.kind == "sql" and (self.query is None or self.uri_variable is None):
            raise ValueError("a source of format sql needs `query` and `uri_variable`")
        if self.query is not None and not re.search(r"\border\s+by\b", self.query, re.IGNORECASE):
            raise ValueError("query: needs an ORDER BY, since a database returns rows in any order")

    def _require_consistent_numbers(self) -> None:
        if (self.decimal or ".") == self.thousands:
            raise ValueError("decimal and thousands must be different characters")
        is_plain = not (self.decimal or self.thousands or self.units)
        if self.numbers is not None and is_plain and self.kind not in ("json", "jsonl"):
            raise ValueError("numbers: say how they are written by decimal, thousands or units")

    @property
    def source_files(self) -> tuple[SourceFile, ...]:
        """The sources in reading order."""
        options: dict[str, Any] = {name: getattr(self, name) for name in OF_ONE_SOURCE}
        return self.sources or (SourceFile(source=self.source or "", **options),)

    @property
    def kind(self) -> str:
        """The format of the files, or the kind of table: a key of the readers."""
        return format_of_source(self.source_files[0].source, self.format)

    @property
    def is_text(self) -> bool:
        """Whether the source has no types, so that every column is text."""
        return self.has_text_cells or self.kind == "text"

    @property
    def has_media(self) -> bool:
        """Whether the source is a data set from Hugging Face that has images or recordings."""
        return self.kind == "huggingface" and (self.mode is not None or self.mono is not None)

    @property
    def has_text_cells(self) -> bool:
        """Whether the reader returns all cells as text, also those with numbers."""
        return self.kind in OF_TEXT_CELLS and self.unit != "file"

    @property
    def missing_texts(self) -> tuple[str, ...]:
        """The texts that mean null in every column of text cells."""
        return self.missing if isinstance(self.missing, tuple) else ("",)

    @property
    def missing_by_column(self) -> dict[str, tuple[str, ...]]:
        """The further texts that mean null, by column."""
        return self.missing if isinstance(self.missing, dict) else {}

    @property
    def description(self) -> str:
        """The sources on one line."""
        return ", ".join(dict.fromkeys(origin.source for origin in self.source_files))

    @property
    def is_dated(self) -> bool:
        """Whether the source differs from period to period."""
        return any(PERIOD_PLACEHOLDER.search(text) for text in self._dated_texts)

    @property
    def _dated_texts(self) -> list[str]:
        origins = [text for origin in self.source_files for text in (origin.source, origin.labels or "")]
        return [*origins, self.query or "", *(column.folder or "" for column in (self.media or {}).values())]

    def for_period(self, period: str) -> DataSource:
        """The data source of one period."""
        query = None if self.query is None else fill_period(self.query, period)
        return self.map_paths(lambda path: fill_period(path, period)).model_copy(update={"query": query})

    def with_absolute_paths(self, folder: Path) -> DataSource:
        """The data source with absolute local paths; relative ones start at `folder`.

        A path that begins with a variable is kept: it does not depend on the recipe's folder.
        """
        return self.map_paths(lambda path: path if path_variable(path) else absolute_source(path, folder))

    def map_paths(self, change: Callable[[str], str]) -> DataSource:
        """Applies `change` to each source, label file and folder of media."""

        def changed(section: DataSource | SourceFile | FileColumn, *names: str) -> dict[str, str | None]:
            paths = {name: getattr(section, name) for name in names}
            return {name: None if path is None else change(path) for name, path in paths.items()}

        of_source = ("source", "labels")
        sources = self.sources and tuple(
            origin.model_copy(update=changed(origin, *of_source)) for origin in self.sources
        )
        media = self.media and {
            name: column.model_copy(update=changed(column, "folder")) for name, column in self.media.items()
        }
        return self.model_copy(update={**changed(self, *of_source), "sources": sources, "media": media})


class LocatedSource(Record):
    """Data that exists. `digest` changes when its content or the options to read it change."""

    source: str
    data: DataSource
    personal: tuple[str, ...] = ()  # columns with personal data, which are protected


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as failure:
        raise ValueError(f"not a valid regular expression: {failure}") from failure
