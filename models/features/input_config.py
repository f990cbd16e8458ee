"""The vocabulary of `features.inputs`: which columns a network reads, and how each becomes numbers.

Inputs are flat or shaped. Any number of flat ones are put side by side into one vector (F,); a shaped one stands alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from bloomery.data_contracts.documents.documents import Document

Count = Annotated[int, Field(ge=1)]
Columns = Annotated[tuple[str, ...], Field(min_length=1, description="columns that are treated alike")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Quantile = Annotated[float, Field(ge=0, le=1)]
DatePart = Literal["month", "day_of_month", "day_of_year", "day_of_week", "hour", "minute"]


class Clip(Document):
    """Limits that values are moved to: stated ones, or quantiles of the training part."""

    low: Finite | None = None
    high: Finite | None = None
    low_quantile: Quantile | None = None
    high_quantile: Quantile | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for side, value, share in (("low", self.low, self.low_quantile), ("high", self.high, self.high_quantile)):
            if value is not None and share is not None:
                raise ValueError(f"state {side} or {side}_quantile, not both")
        if (self.low, self.high, self.low_quantile, self.high_quantile) == (None,) * 4:
            raise ValueError("state a limit: low, high, low_quantile or high_quantile")
        for low, high in ((self.low, self.high), (self.low_quantile, self.high_quantile)):
            if low is not None and high is not None and low >= high:
                raise ValueError(f"no value lies above {low:g} and below {high:g}")
        return self

    @property
    def has_quantiles(self) -> bool:
        return self.low_quantile is not None or self.high_quantile is not None


class NumberInput(Document):
    """Columns of numbers, in this order: clipped, transformed, missing ones filled, scaled.

    What is learnt (mean, median, spread, least and largest value) is that of the present values of the training part
    after clipping and transforming. A stated `missing` is clipped and transformed like any other value.
    """

    kind: Literal["number"]
    columns: Columns
    missing: Literal["refuse", "mean", "median", "zero"] | Finite = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column: 1 where it is missing")] = False
    clip: Clip | None = None
    transform: Annotated[
        Literal["none", "log", "quantile_uniform", "quantile_normal"],
        Field(description="log: sign(v) * log(1 + |v|); quantile: the share of smaller values, or its normal score"),
    ] = "none"
    scale: Literal["standard", "robust", "min_max", "none"] = "standard"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.transform.startswith("quantile") and self.scale != "none":
            raise ValueError(f"transform {self.transform} gives a scale of its own; add `scale: none`")
        return self

    @property
    def needs_quantiles(self) -> bool:
        clipped = self.clip is not None and self.clip.has_quantiles
        return clipped or self.missing == "median" or self.scale == "robust" or self.transform.startswith("quantile")


class CategoryInput(Document):
    """Columns whose values are names: text, whole numbers or booleans.

    Every column has two categories more than it keeps: the missing value, and `other` for what is rare or unknown.
    """

    kind: Literal["category"]
    columns: Columns
    encoding: Literal["one_hot", "index", "hash", "target"] = "one_hot"
    num_buckets: Annotated[Count | None, Field(description="hash alone")] = None
    min_count: Annotated[Count, Field(description="categories with fewer rows become `other`")] = 1
    max_categories: Annotated[Count | None, Field(description="the most frequent ones; the rest become `other`")] = None
    unknown: Literal["other", "refuse"] = "other"
    num_folds: Annotated[int, Field(ge=2, le=100, description="target alone")] = 5
    smoothing: Annotated[
        float, Field(gt=0, description="target alone: rows that the prior counts for", allow_inf_nan=False)
    ] = 20.0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.encoding == "hash") != (self.num_buckets is not None):
            raise ValueError("num_buckets is for encoding hash, which needs it")
        fields = type(self).model_fields
        stated = {name for name in fields if getattr(self, name) != fields[name].default}
        if self.encoding == "hash" and stated & {"min_count", "max_categories", "unknown"}:
            raise ValueError("a hash knows no categories: min_count, max_categories and unknown have no meaning")
        if self.encoding != "target" and stated & {"num_folds", "smoothing"}:
            raise ValueError("num_folds and smoothing are for encoding target")
        return self


class DateInput(Document):
    """Columns of dates or times (UTC): the sine and cosine of each part of the calendar, and the days elapsed.

    `elapsed` has mean 0 and standard deviation 1 over the training part. Where a date is missing, all are 0.
    """

    kind: Literal["date"]
    columns: Columns
    parts: tuple[DatePart, ...] = ()
    elapsed: bool = False
    missing: Literal["refuse", "zero"] = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column: 1 where it is missing")] = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.parts and not self.elapsed:
            raise ValueError("state parts, elapsed or both")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("a part is named twice")
        return self


class BooleanInput(Document):
    """Columns of true and false, as 1 and 0."""

    kind: Literal["boolean"]
    columns: Columns
    missing: Literal["refuse"] | bool = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column: 1 where it is missing")] = False


class ImageInput(Document):
    """An array column whose values are the pixels of an image, channel after channel, row after row.

    `standard` gives all pixels together mean 0 and standard deviation 1 over the training part, `per_channel` does so
    for each channel, `unit` divides by `brightest`. `resize` comes first.
    """

    kind: Literal["image"]
    column: str
    shape: Annotated[tuple[Count, Count, Count], Field(description="channels, height, width")]
    resize: Annotated[tuple[Count, Count] | None, Field(description="height, width that the network sees")] = None
    normalise: Literal["standard", "per_channel", "unit", "none"] = "standard"
    brightest: Annotated[float, Field(gt=0, allow_inf_nan=False, description="unit alone")] = 255.0

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape if self.resize is None else (self.shape[0], *self.resize)


class AudioInput(Document):
    """An array column of samples, as the logarithm of its mel spectrogram (1, num_mels, frames).

    Each clip is cut, or filled with silence behind, to `duration_s`. `standard` gives all values together mean 0 and
    standard deviation 1 over the training part.
    """

    kind: Literal["audio"]
    column: str
    sample_rate: Annotated[Count, Field(description="samples per second")]
    duration_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.032
    step_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.016
    num_mels: Count = 40
    normalise: Literal["standard", "none"] = "standard"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.window < 2 or self.step < 1 or self.num_samples < self.window:
            raise ValueError("a window needs two samples, a step one, and duration_s at least one window")
        if self.num_mels > self.window // 2:
            raise ValueError(f"a window of {self.window} samples has no {self.num_mels} bands of its own")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def num_samples(self) -> int:
        return round(self.duration_s * self.sample_rate)

    @property
    def window(self) -> int:
        """Samples in one window."""
        return round(self.window_s * self.sample_rate)

    @property
    def step(self) -> int:
        """Samples from the start of one window to the next."""
        return round(self.step_s * self.sample_rate)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.num_mels, 1 + (self.num_samples - self.window) // self.step)


class TextInput(Document):
    """A column of text, as the numbers of its tokens (length,), cut or filled with 0 behind.

    `byte_pairs` are learnt from the training part; every text can be written in them. `words` are words and single
    signs between them, of which the most frequent of the training part are known; 1 stands for all others. A missing
    text is empty, which is all 0.
    """

    kind: Literal["text"]
    column: str
    length: Count
    tokenizer: Literal["byte_pairs", "words"] = "byte_pairs"
    vocabulary_size: Annotated[
        int,
        Field(ge=3, le=2**24, description="with the filling; byte_pairs have 256 bytes, words have the unknown one"),
    ]
    lowercase: bool = True
    missing: Literal["refuse", "empty"] = "refuse"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.tokenizer == "byte_pairs" and self.vocabulary_size < 257:
            raise ValueError("byte_pairs need a vocabulary_size of 257 at least: the filling and 256 bytes")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)


class SeriesInput(Document):
    """Columns of numbers over time: of each row the values of the last `length` rows of its group, the row itself last.

    Windows (length, columns) are taken inside a group and a part of the split, in the order of `time` and then the key.
    Rows with too short a past are dropped, and with `spacing` those in whose window two neighbours are not exactly that
    far apart. `standard` gives each column mean 0 and standard deviation 1 over the training part's windows.

    With `horizon` the label is that of a later row: so many rows after the window's last, and with `spacing` so many
    times that far from it. Rows without such a row, or without a label there, are dropped.
    """

    kind: Literal["series"]
    columns: Columns
    time: Annotated[str, Field(description="the column that orders the rows")]
    group: Annotated[str | None, Field(description="the column that tells one series from another")] = None
    length: Annotated[int, Field(ge=2, description="rows in a window")]
    spacing: Annotated[
        int | Finite | None,
        Field(gt=0, description="from row to row: seconds of a timestamp, days of a date, units of a whole number"),
    ] = None
    horizon: Annotated[int, Field(ge=0, description="rows from the window's last to the one whose label is meant")] = 0
    missing: Annotated[
        Literal["refuse", "previous", "mean", "zero"],
        Field(description="previous: the last value before it in the window, or the mean if there is none"),
    ] = "refuse"
    indicator: Annotated[bool, Field(description="one more value per column and step: 1 where it is missing")] = False
    scale: Literal["standard", "none"] = "standard"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for role, name in (("time", self.time), ("group", self.group)):
            if name in self.columns:
                raise ValueError(f"column {name!r} is the series' {role}, so it cannot be one of its columns")
        if self.time == self.group:
            raise ValueError(f"column {self.time!r} cannot be both time and group")
        if self.indicator and self.missing == "refuse":
            raise ValueError("an indicator has no meaning where missing values are refused")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length, len(self.columns) * (2 if self.indicator else 1))


class SequenceInput(Document):
    """A row that is a sequence: steps in wide columns, or an array column of `width` values for each step.

    `columns` names the columns of each step: [[x1, y1], [x2, y2]] are two steps of two values. An array may have any
    whole number of steps: it is cut, or filled with 0 behind, to `length`, and one more value of each step says with 1
    that it is there. Means, deviations, least and largest values are those of each place within a step, over all steps
    of the training part.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["sequence"]
    steps: Annotated[
        tuple[Columns, ...], Field(alias="columns", description="the columns of each step, in order; or `column`")
    ] = ()
    column: Annotated[str | None, Field(description="an array of numbers, step after step")] = None
    length: Annotated[Count | None, Field(description="steps of an array, at most")] = None
    width: Annotated[Count, Field(description="values of each step of an array")] = 1
    scale: Literal["standard", "min_max", "none"] = "standard"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if bool(self.steps) == (self.column is not None):
            raise ValueError("state the columns of each step, or one array column")
        if (self.column is None) != (self.length is None):
            raise ValueError("length is for an array column, which needs it: how many steps there are at most")
        if self.steps and self.width != 1:
            raise ValueError("width is for an array column; with columns each step says itself how wide it is")
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
        """Values of one step, without the one that says whether it is there."""
        return len(self.steps[0]) if self.steps else self.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length or len(self.steps), self.num_values + self.is_padded)


FlatInput = NumberInput | CategoryInput | DateInput | BooleanInput
ShapedInput = ImageInput | AudioInput | TextInput | SeriesInput | SequenceInput
Input = Annotated[FlatInput | ShapedInput, Field(discriminator="kind")]
