"""The `features.inputs` of a recipe: which columns a network reads, and how each is encoded.

Inputs are flat or shaped. All flat inputs are concatenated into one vector (F,). Together with shaped inputs they form
mixed rows, in which each shaped input is a part and the flat ones are another.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.features.audio_input import AudioInput
from bloomery.models.features.image_input import Count, ImageInput, MissingPart

Columns = Annotated[tuple[str, ...], Field(min_length=1, description="columns with the same settings")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Quantile = Annotated[float, Field(ge=0, le=1)]
DatePart = Literal["month", "day_of_month", "day_of_year", "day_of_week", "hour", "minute"]


class Clip(Document):
    """Limits that values are clipped to: constants, or quantiles of the training split."""

    low: Finite | None = None
    high: Finite | None = None
    low_quantile: Quantile | None = None
    high_quantile: Quantile | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for side, value, share in (("low", self.low, self.low_quantile), ("high", self.high, self.high_quantile)):
            if value is not None and share is not None:
                raise ValueError(f"set {side} or {side}_quantile, not both")
        if (self.low, self.high, self.low_quantile, self.high_quantile) == (None,) * 4:
            raise ValueError("set at least one limit: low, high, low_quantile or high_quantile")
        for low, high in ((self.low, self.high), (self.low_quantile, self.high_quantile)):
            if low is not None and high is not None and low >= high:
                raise ValueError(f"no value lies above {low:g} and below {high:g}")
        return self

    @property
    def has_quantiles(self) -> bool:
        return self.low_quantile is not None or self.high_quantile is not None


class NumberInput(Document):
    """Columns of numbers: clipped, transformed, missing values filled, scaled, in this order.

    The statistics (mean, median, deviation, minimum, maximum) are those of the non-missing values of the training split
    after clipping and transforming. A constant `missing` is clipped and transformed like any other value.
    """

    kind: Literal["number"]
    columns: Columns
    missing: Literal["refuse", "mean", "median", "zero"] | Finite = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column: 1 if missing")] = False
    clip: Clip | None = None
    transform: Annotated[
        Literal["none", "log", "quantile_uniform", "quantile_normal"],
        Field(description="log: sign(v) * log(1 + |v|); quantile: the fraction of smaller values, or its normal score"),
    ] = "none"
    scale: Literal["standard", "robust", "min_max", "none"] = "standard"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.transform.startswith("quantile") and self.scale != "none":
            raise ValueError(f"transform {self.transform} already scales values; add `scale: none`")
        return self

    @property
    def needs_quantiles(self) -> bool:
        clipped = self.clip is not None and self.clip.has_quantiles
        return clipped or self.missing == "median" or self.scale == "robust" or self.transform.startswith("quantile")


class CategoryInput(Document):
    """Columns of categories: text, integers or booleans.

    Every column has two categories besides those it keeps: the missing value, and `other` for rare or unknown ones.
    """

    kind: Literal["category"]
    columns: Columns
    encoding: Literal["one_hot", "index", "hash", "target"] = "one_hot"
    num_buckets: Annotated[Count | None, Field(description="encoding hash only")] = None
    min_count: Annotated[Count, Field(description="categories with fewer rows become `other`")] = 1
    max_categories: Annotated[Count | None, Field(description="the most frequent ones; the rest become `other`")] = None
    unknown: Literal["other", "refuse"] = "other"
    num_folds: Annotated[int, Field(ge=2, le=100, description="encoding target only")] = 5
    smoothing: Annotated[
        float, Field(gt=0, description="encoding target only: weight of the prior, in rows", allow_inf_nan=False)
    ] = 20.0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.encoding == "hash") != (self.num_buckets is not None):
            raise ValueError("encoding hash needs num_buckets, and no other encoding takes it")
        fields = type(self).model_fields
        configured = {name for name in fields if getattr(self, name) != fields[name].default}
        if self.encoding == "hash" and configured & {"min_count", "max_categories", "unknown"}:
            raise ValueError(
                "encoding hash keeps no list of categories, so it takes no min_count, max_categories or unknown"
            )
        if self.encoding != "target" and configured & {"num_folds", "smoothing"}:
            raise ValueError("only encoding target takes num_folds and smoothing")
        return self


class DateInput(Document):
    """Columns of dates or times (UTC): sine and cosine of each calendar part, and the elapsed days.

    `elapsed` is standardised over the training split. All values of a missing date are 0.
    """

    kind: Literal["date"]
    columns: Columns
    parts: tuple[DatePart, ...] = ()
    elapsed: bool = False
    missing: Literal["refuse", "zero"] = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column: 1 if missing")] = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.parts and not self.elapsed:
            raise ValueError("set parts, elapsed or both")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("a part is named twice")
        return self


class BooleanInput(Document):
    """Columns of booleans, as 1 and 0."""

    kind: Literal["boolean"]
    columns: Columns
    missing: Literal["refuse"] | bool = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column: 1 if missing")] = False


class TextInput(Document):
    """A column of text, as token ids (length,), truncated or padded with 0 at the end.

    `byte_pairs` are learnt from the training split and can represent every text. `words` are words and punctuation
    marks: the most frequent ones of the training split, and id 1 for all others. A missing text is empty, so all 0.

    `checkpoint` is the tokenizer of the checkpoint that the network starts from. Each value is the token's id plus 1,
    with the special tokens of a single text, which a missing text has too. With `pair`, each row is two texts as one,
    by the tokenizer's template for pairs.
    """

    kind: Literal["text"]
    column: str
    pair: Annotated[
        str | None,
        Field(exclude_if=is_unset, description="checkpoint: the column of a second text, such as a document"),
    ] = None
    length: Annotated[Count, Field(description="the most tokens, special ones included")]
    tokenizer: Literal["byte_pairs", "words", "checkpoint"] = "byte_pairs"
    vocabulary_size: Annotated[
        int | None,
        Field(
            ge=3,
            le=2**24,
            description="counts the padding token; also the 256 bytes of byte_pairs, or the unknown word; a checkpoint "
            "has its own",
        ),
    ] = None
    lowercase: Annotated[bool, Field(description="a checkpoint's tokenizer decides itself")] = True
    missing: Annotated[
        Literal["refuse", "empty", "absent"],
        Field(description="empty: no token; absent: the network knows that it is missing, beside other inputs only"),
    ] = "refuse"
    checkpoint: Annotated[
        Checkpoint | None, Field(exclude_if=is_unset, description="set by Bloomery: the tokenizer's files")
    ] = None
    tokenizer_document: Annotated[
        str | None, Field(exclude=True, repr=False, description="set by Bloomery while the encoder is fitted")
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.tokenizer == "checkpoint":
            for name in ("vocabulary_size", "lowercase"):
                if name in self.model_fields_set:
                    raise ValueError(f"tokenizer checkpoint has its own vocabulary and normaliser; leave out `{name}`")
        elif self.pair is not None:
            raise ValueError("`pair` needs the template of a checkpoint's tokenizer: set `tokenizer: checkpoint`")
        elif self.vocabulary_size is None:
            raise ValueError(f"vocabulary_size: missing; tokenizer {self.tokenizer} needs it")
        elif self.checkpoint is not None:
            raise ValueError(f"checkpoint: set by Bloomery, and tokenizer {self.tokenizer} has none")
        if self.tokenizer == "byte_pairs" and self.vocabulary_size is not None and self.vocabulary_size < 257:
            raise ValueError("byte_pairs need a vocabulary_size of at least 257: padding and 256 bytes")
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the options that a checkpoint's tokenizer does not have."""
        document: dict[str, Any] = write(self)
        if self.tokenizer == "checkpoint":
            for name in ("vocabulary_size", "lowercase"):
                document.pop(name, None)
        return document

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.pair is None else (self.column, self.pair)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)


class SeriesInput(Document):
    """Columns of numbers over time: for each row, the window of its group's last `length` rows, itself included.

    Windows (length, columns) stay inside one group and one split, ordered by `time` and then the key. Rows with too few
    predecessors are dropped; with `spacing`, so are windows with two neighbours that are not exactly that far apart.
    `standard` standardises each column over the windows of the training split.

    With `horizon`, the label is that of the row `horizon` rows after the window, and with `spacing` exactly `horizon`
    spacings after it. Windows without such a row, or with a null label there, are dropped.
    """

    kind: Literal["series"]
    columns: Columns
    time: Annotated[str, Field(description="the column that orders the rows")]
    group: Annotated[
        str | Columns | None, Field(description="the column that identifies the series, or several columns that do")
    ] = None
    length: Annotated[int, Field(ge=2, description="rows in a window")]
    spacing: Annotated[
        int | Finite | None,
        Field(gt=0, description="between two rows: seconds of a timestamp, days of a date, units of an integer"),
    ] = None
    horizon: Annotated[int, Field(ge=0, description="rows from the window's last row to the row of the label")] = 0
    missing: Annotated[
        Literal["refuse", "previous", "mean", "zero"],
        Field(description="previous: the last value before it in the window, or else the mean"),
    ] = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column and step: 1 if missing")] = False
    scale: Literal["standard", "none"] = "standard"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for role, name in (("time", self.time), *(("group", group) for group in self.groups)):
            if name in self.columns:
                raise ValueError(f"column {name!r} is the series' {role}, so it cannot be one of its columns")
        if self.time in self.groups:
            raise ValueError(f"column {self.time!r} cannot be both time and group")
        if self.indicator and self.missing == "refuse":
            raise ValueError("`indicator` needs a `missing` other than refuse")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length, len(self.columns) * (2 if self.indicator else 1))

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns that identify the series; none if all rows are one series."""
        return (self.group,) if isinstance(self.group, str) else self.group or ()


class SequenceInput(Document):
    """A sequence within one row: steps in wide columns, or an array column with `width` values per step.

    `columns` names the columns of each step: [[x1, y1], [x2, y2]] are two steps of two values. An array may have any
    number of complete steps: it is truncated, or padded with 0 at the end, to `length`, and an additional value of each
    step is 1 for real steps. Statistics are those of each position within a step, over all steps of the training split.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["sequence"]
    steps: Annotated[
        tuple[Columns, ...], Field(alias="columns", description="the columns of each step, in order; or `column`")
    ] = ()
    column: Annotated[str | None, Field(description="an array of numbers, one step after another")] = None
    length: Annotated[Count | None, Field(description="maximum number of steps of an array")] = None
    width: Annotated[Count, Field(description="values per step of an array")] = 1
    scale: Literal["standard", "min_max", "none"] = "standard"
    missing: MissingPart = "refuse"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if bool(self.steps) == (self.column is not None):
            raise ValueError("set either the columns of each step, or one array column")
        if self.column is None and self.missing != "refuse":
            raise ValueError("only an array column takes `missing`; with columns, every step has values")
        if (self.column is None) != (self.length is None):
            raise ValueError("an array column needs length, its maximum number of steps; columns take none")
        if self.steps and self.width != 1:
            raise ValueError("only an array column takes width; with columns, each step lists its own")
        if len({len(step) for step in self.steps}) > 1:
            raise ValueError("every step must have as many columns as the first")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for step in self.steps for name in step) if self.column is None else (self.column,)

    @property
    def is_padded(self) -> bool:
        return self.column is not None

    @property
    def num_values(self) -> int:
        """Values per step, without the padding indicator."""
        return len(self.steps[0]) if self.steps else self.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length or len(self.steps), self.num_values + self.is_padded)


FlatInput = NumberInput | CategoryInput | DateInput | BooleanInput
ShapedInput = ImageInput | AudioInput | TextInput | SeriesInput | SequenceInput
Input = Annotated[FlatInput | ShapedInput, Field(discriminator="kind")]
