"""The contract: what every row of a data set must be, in the Open Data Contract Standard v3.1.

A contract file is the one source. The Great Expectations suite (`expectations.py`), the Arrow and Spark schemas
(`schemas.py`) and the endpoint's request check (`requests.py`) are all translations of the columns here and the rules
(`rules.py`) that they state.
"""

from __future__ import annotations

import math
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from data_contracts.documents import Document, read_document
from data_contracts.errors import ContractInvalid
from data_contracts.rules import Bound, Rule, tighter

LogicalType = Literal["integer", "number", "string", "boolean", "date", "timestamp", "array"]

# physicalType is free text in the standard; here it is the name of an Arrow type.
PHYSICAL_TYPES: dict[LogicalType, tuple[str, ...]] = {
    "integer": ("int64", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    "number": ("float64", "float32"),
    "string": ("string",),
    "boolean": ("bool",),
    "date": ("date32",),
    "timestamp": ("timestamp[us, UTC]",),
    "array": ("list",),
}


class _Element(Document):
    """A part of an ODCS file: keys are in camel case there, and descriptive keys are kept but not acted on."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, alias_generator=to_camel, populate_by_name=True
    )

    id: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    authoritative_definitions: tuple[dict[str, Any], ...] = ()
    custom_properties: tuple[dict[str, Any], ...] = ()


def as_plain(value: Any) -> Any:
    """YAML reads a date as a date and JSON as text: text it is, in both."""
    return value.isoformat() if isinstance(value, date) else value


class TypeOptions(Document):
    """`logicalTypeOptions`: the limits of one value."""

    model_config = _Element.model_config

    minimum: Bound | None = None
    maximum: Bound | None = None
    exclusive_minimum: Bound | None = None
    exclusive_maximum: Bound | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None
    max_length: Annotated[int, Field(ge=0)] | None = None
    pattern: str | None = None
    min_items: Annotated[int, Field(ge=0)] | None = None
    max_items: Annotated[int, Field(ge=0)] | None = None


class Arguments(Document):
    """The arguments of an `invalidValues` check."""

    model_config = _Element.model_config

    valid_values: Annotated[tuple[Annotated[Any, BeforeValidator(as_plain)], ...], Field(min_length=1)]


class Quality(_Element):
    """A quality check from the standard's library of metrics."""

    type: Literal["library"] = "library"
    metric: Literal["rowCount", "invalidValues"]
    arguments: Arguments | None = None
    must_be: Bound | None = None
    must_be_greater_than: Bound | None = None
    must_be_greater_or_equal_to: Bound | None = None
    must_be_less_than: Bound | None = None
    must_be_less_or_equal_to: Bound | None = None
    must_be_between: tuple[Bound, Bound] | None = None
    unit: Literal["rows", "percent"] = "rows"
    dimension: str | None = None
    severity: Literal["error"] = "error"
    business_impact: str | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.metric == "invalidValues" and (self.arguments is None or self.must_be != 0):
            raise ValueError("invalidValues needs arguments.validValues and mustBe: 0")
        if self.metric == "rowCount" and self.unit != "rows":
            raise ValueError("rowCount counts rows, not percent")
        fewest, most = self.row_count_limits()
        if self.metric == "rowCount" and fewest is None and most is None:
            raise ValueError("rowCount needs one of the mustBe… keys")
        if self.metric == "rowCount" and most is not None and (fewest or 0) > most:
            raise ValueError(f"no table has at least {fewest or 0} and at most {most} rows")
        return self

    def row_count_limits(self) -> tuple[int | None, int | None]:
        """The fewest and the most rows allowed, both included; None where there is no limit."""
        if self.must_be is not None:
            return math.ceil(self.must_be), math.floor(self.must_be)
        if self.must_be_between is not None:
            return math.ceil(self.must_be_between[0]), math.floor(self.must_be_between[1])
        fewest: int | None = None
        most: int | None = None
        if self.must_be_greater_or_equal_to is not None:
            fewest = math.ceil(self.must_be_greater_or_equal_to)
        if self.must_be_greater_than is not None:
            fewest = max(fewest or 0, math.floor(self.must_be_greater_than) + 1)
        if self.must_be_less_or_equal_to is not None:
            most = math.floor(self.must_be_less_or_equal_to)
        if self.must_be_less_than is not None:
            below = math.ceil(self.must_be_less_than) - 1
            most = below if most is None else min(most, below)
        return fewest, most


class Item(_Element):
    """The type and limits that a column's values, or the elements of an array, share."""

    logical_type: LogicalType
    physical_type: str | None = None
    logical_type_options: TypeOptions = TypeOptions()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        known = PHYSICAL_TYPES[self.logical_type]
        if self.physical_type is not None and self.physical_type not in known:
            raise ValueError(
                f"physicalType {self.physical_type!r} does not fit {self.logical_type}: one of {', '.join(known)}"
            )
        options = self.logical_type_options
        allowed = _OPTIONS_OF[self.logical_type]
        for name in TypeOptions.model_fields:
            if name not in allowed and getattr(options, name) is not None:
                raise ValueError(f"{to_camel(name)} has no meaning for {self.logical_type}")
        if options.pattern is not None:
            try:
                re.compile(options.pattern)
            except re.error as failure:
                raise ValueError(f"pattern {options.pattern!r} is no regular expression: {failure}") from failure
        bounds = (options.minimum, options.maximum, options.exclusive_minimum, options.exclusive_maximum)
        if any(bound is not None and abs(bound) >= 2**53 for bound in bounds):
            raise ValueError("a limit of 2**53 or more cannot be compared to the last digit; use a smaller one")
        low_limit, high_limit = self.value_range()
        for low, high in (
            (low_limit, high_limit),
            (options.min_length, options.max_length),
            (options.min_items, options.max_items),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(f"no value can be at least {low} and at most {high}")
        return self

    def value_range(self) -> tuple[Bound | None, Bound | None]:
        """The least and the largest value that the limits and, for whole numbers, the type leave, both included."""
        options = self.logical_type_options
        low, strict_low = tighter(options.minimum, options.exclusive_minimum, largest=True)
        high, strict_high = tighter(options.maximum, options.exclusive_maximum, largest=False)
        if self.logical_type != "integer":
            if low is not None and low == high and (strict_low or strict_high):
                return math.inf, -math.inf
            return low, high
        width = re.fullmatch(r"(u?)int(\d+)", self.arrow_type)
        bits = int(width[2]) if width else 64
        least, most = (0, 2**bits - 1) if width and width[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if low is not None:
            least = max(least, math.floor(low) + 1 if strict_low else math.ceil(low))
        if high is not None:
            most = min(most, math.ceil(high) - 1 if strict_high else math.floor(high))
        return least, most

    @property
    def arrow_type(self) -> str:
        """The name of the Arrow type that values of this item have on disk."""
        return self.physical_type or PHYSICAL_TYPES[self.logical_type][0]


_NUMERIC = frozenset({"minimum", "maximum", "exclusive_minimum", "exclusive_maximum"})
_OPTIONS_OF: dict[LogicalType, frozenset[str]] = {
    "integer": _NUMERIC,
    "number": _NUMERIC,
    "string": frozenset({"min_length", "max_length", "pattern"}),
    "boolean": frozenset(),
    "date": frozenset(),
    "timestamp": frozenset(),
    "array": frozenset({"min_items", "max_items"}),
}


class Column(Item):
    """One property of the schema: a column of the data set."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    business_name: str | None = None
    required: bool = False
    unique: bool = False
    primary_key: bool = False
    primary_key_position: int | None = None
    classification: str | None = None
    examples: tuple[Annotated[Any, BeforeValidator(as_plain)], ...] = ()
    items: Item | None = None
    quality: tuple[Quality, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.logical_type == "array") != (self.items is not None):
            raise ValueError("items is for arrays, and every array needs it")
        if self.items is not None and self.items.logical_type == "array":
            raise ValueError("an array of arrays is not supported; flatten it, and give the shape in the recipe")
        if self.quality and self.logical_type in ("timestamp", "array"):
            raise ValueError(f"invalidValues is for single values, not for {self.logical_type}")
        if any(check.metric != "invalidValues" for check in self.quality):
            raise ValueError("a column's quality can be invalidValues; rowCount belongs to the schema object")
        return self


class Table(_Element):
    """One schema object: the data set's table."""

    name: str
    logical_type: Literal["object"] = "object"
    physical_type: str | None = None
    physical_name: str | None = None
    business_name: str | None = None
    data_granularity_description: str | None = None
    properties: Annotated[tuple[Column, ...], Field(min_length=1)]
    quality: tuple[Quality, ...] = ()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        names = [column.name for column in self.properties]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column named twice: {', '.join(twice)}")
        if any(check.metric != "rowCount" for check in self.quality):
            raise ValueError("a table's quality can be rowCount; invalidValues belongs to a column")
        return self


class Contract(_Element):
    """A contract file, read and checked. One table, at least one rule."""

    api_version: Literal["v3.0.0", "v3.0.1", "v3.0.2", "v3.1.0"]
    kind: Literal["DataContract"]
    id: str
    name: str
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    status: Literal["proposed", "draft", "active", "deprecated", "retired"]
    description: dict[str, Any] = Field(default_factory=dict)  # type: ignore[assignment]  # text elsewhere
    domain: str | None = None
    data_product: str | None = None
    tenant: str | None = None
    schema_: Annotated[tuple[Table, ...], Field(alias="schema", min_length=1, max_length=1)]
    team: Any = None
    roles: Any = None
    support: Any = None
    servers: Any = None
    price: Any = None
    sla_properties: Any = None
    contract_created_ts: Any = None

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if not self.rules():
            raise ValueError("the contract has no rule, so it would pass anything; add a limit or a required column")
        limit = self.quarantine_limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
            raise ValueError(f"quarantineLimit is a share of the rows from 0 to 1, not {limit!r}")
        return self

    @property
    def table(self) -> Table:
        return self.schema_[0]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.table.properties

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    @property
    def quarantine_limit(self) -> float:
        """The largest share of rows that may be quarantined before the contract counts as broken (default 0)."""
        for entry in self.table.custom_properties:
            if entry.get("property") == "quarantineLimit":
                return entry.get("value", 0.0)  # checked in _has_rules
        return 0.0

    def rules(self) -> tuple[Rule, ...]:
        """Every rule of the contract, in the order in which the file states them."""
        found: list[Rule] = []
        for check in self.table.quality:
            low, high = check.row_count_limits()
            found.append(Rule(target="", kind="num_rows", low=low, high=high))
        for column in self.columns:
            if column.required or column.primary_key:
                found.append(Rule(target=column.name, kind="required"))
            if column.unique or column.primary_key:
                found.append(Rule(target=column.name, kind="unique"))
            found.extend(_limits(column.name, column))
            found.extend(
                Rule(target=column.name, kind="in_set", values=check.arguments.valid_values)
                for check in column.quality
                if check.arguments is not None
            )
            if column.items is not None:
                found.append(Rule(target=f"{column.name}[]", kind="required"))
                found.extend(_limits(f"{column.name}[]", column.items))
        return tuple(found)


def _limits(target: str, item: Item) -> list[Rule]:
    options = item.logical_type_options
    found = []
    low, strict_low = tighter(options.minimum, options.exclusive_minimum, largest=True)
    high, strict_high = tighter(options.maximum, options.exclusive_maximum, largest=False)
    if low is not None or high is not None:
        found.append(
            Rule(
                target=target,
                kind="between",
                low=low,
                high=high,
                strict_low=strict_low,
                strict_high=strict_high,
            )
        )
    if options.min_length is not None or options.max_length is not None:
        found.append(Rule(target=target, kind="length", low=options.min_length, high=options.max_length))
    if options.pattern is not None:
        found.append(Rule(target=target, kind="pattern", pattern=options.pattern))
    if options.min_items is not None or options.max_items is not None:
        found.append(Rule(target=target, kind="num_items", low=options.min_items, high=options.max_items))
    return found


def read_contract(path: Path) -> Contract:
    """The contract in the file at `path`.

    Raises:
        DataMissing: there is no such file.
        ContractInvalid: an unknown key, an impossible rule or no rule at all; the message has file and line.
    """
    return read_document(path, Contract, ContractInvalid)
