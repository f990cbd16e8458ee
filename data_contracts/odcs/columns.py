"""The columns of a contract: their types and limits, and the rules that follow from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from bloomery.data_contracts.documents.documents import Location
from bloomery.data_contracts.expressions.parser import referenced_columns
from bloomery.data_contracts.expressions.table_queries import normalize_placeholder
from bloomery.data_contracts.odcs.base import (
    CamelModel,
    Element,
    LogicalType,
    PlainValue,
    Problem,
    find_custom_property_problems,
    raise_problems,
)
from bloomery.data_contracts.odcs.consistency import (
    find_contradictions,
    find_misuses,
    require_exact_bounds,
    require_regular_expression,
)
from bloomery.data_contracts.odcs.date_formats import parse_format
from bloomery.data_contracts.odcs.quality import Distribution, LengthLimits, Quality, RowCondition, ValueLimits
from bloomery.data_contracts.odcs.rules import Bound, Rule, integer_limits, tighter_bound

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
_NUMERIC = frozenset({"minimum", "maximum", "exclusive_minimum", "exclusive_maximum"})
_OPTIONS_OF: dict[LogicalType, frozenset[str]] = {
    "integer": _NUMERIC,
    "number": _NUMERIC,
    "string": frozenset({"min_length", "max_length", "pattern"}),
    "boolean": frozenset(),
    "date": frozenset({"format"}),
    "timestamp": frozenset({"format"}),
    "array": frozenset({"min_items", "max_items"}),
}


class TypeOptions(CamelModel):
    """`logicalTypeOptions`: the limits of one value."""

    minimum: Bound | None = None
    maximum: Bound | None = None
    exclusive_minimum: Bound | None = None
    exclusive_maximum: Bound | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None
    max_length: Annotated[int, Field(ge=0)] | None = None
    pattern: str | None = None
    min_items: Annotated[int, Field(ge=0)] | None = None
    max_items: Annotated[int, Field(ge=0)] | None = None
    format: Annotated[str, Field(min_length=1)] | None = None  # of dates and times that are written as text


class TypedElement(Element):
    """The type and limits that a column's values, or the elements of an array, share."""

    logical_type: LogicalType
    physical_type: str | None = None
    logical_type_options: TypeOptions = TypeOptions()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        physical_types = PHYSICAL_TYPES[self.logical_type]
        if self.physical_type is not None and self.physical_type not in physical_types:
            choices = ", ".join(physical_types)
            raise ValueError(
                f"physicalType {self.physical_type!r} does not fit {self.logical_type}; use one of {choices}"
            )
        options = self.logical_type_options
        allowed = _OPTIONS_OF[self.logical_type]
        for name in TypeOptions.model_fields:
            if name not in allowed and getattr(options, name) is not None:
                raise ValueError(f"{to_camel(name)} has no meaning for {self.logical_type}")
        if options.pattern is not None:
            require_regular_expression(options.pattern)
        if options.format is not None:
            parse_format(options.format)
        require_exact_bounds(options.minimum, options.maximum, options.exclusive_minimum, options.exclusive_maximum)
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
        """The smallest and the largest value that the limits and an integer type allow, both inclusive."""
        options = self.logical_type_options
        low, strict_low = tighter_bound(options.minimum, options.exclusive_minimum, largest=True)
        high, strict_high = tighter_bound(options.maximum, options.exclusive_maximum, largest=False)
        if self.logical_type != "integer":
            if low is not None and low == high and (strict_low or strict_high):
                return math.inf, -math.inf
            return low, high
        limits = Rule(target="", kind="between", low=low, high=high, strict_low=strict_low, strict_high=strict_high)
        return integer_limits((limits,), self.arrow_type)

    @property
    def arrow_type(self) -> str:
        """The name of the Arrow type that values of this item have on disk."""
        return self.physical_type or PHYSICAL_TYPES[self.logical_type][0]


class ArrayItem(TypedElement):
    """The type and limits of an array's elements."""

    required: bool = True


class Column(TypedElement):
    """One property of the schema: a column of the data set."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    business_name: str | None = None
    required: bool = False
    unique: bool = False
    primary_key: bool = False
    primary_key_position: int | None = None
    classification: str | None = None
    examples: tuple[PlainValue, ...] = ()
    items: ArrayItem | None = None
    quality: tuple[Quality, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.logical_type == "array") != (self.items is not None):
            raise ValueError("items is required for arrays, and allowed only for them")
        if self.items is not None and self.items.logical_type == "array":
            raise ValueError("an array of arrays is not supported; flatten it, and give the shape in the recipe")
        if self.logical_type == "array" and (self.unique or self.primary_key):
            raise ValueError("an array cannot be a key: unique and primaryKey apply to single values")
        raise_problems(
            [
                *find_custom_property_problems(self, "a column"),
                *(
                    Problem(sentence, "quality", position)
                    for position, check in enumerate(self.quality)
                    for sentence in find_misuses(self.name, self.logical_type, check)
                ),
                *self._invalid_custom_properties(),
            ],
            self.name,
        )
        rules = tuple(rule for rule, _ in self.located_rules(is_key=self.primary_key) if rule.severity == "error")
        raise_problems(
            [
                Problem(sentence)
                for sentence in find_contradictions(self.name, self.logical_type, self.arrow_type, rules)
            ],
            self.name,
        )
        return self

    def _invalid_custom_properties(self) -> Iterator[Problem]:
        """Invalid values of Bloomery's custom properties."""
        allowed = {"personal": (True, False, "drop", "hash", "encrypt"), "unknownCategory": ("refuse", "other")}
        for position, entry in enumerate(self.custom_properties):
            place = ("customProperties", position, "value")
            choices = allowed.get(entry.property, (entry.value,))
            if not any(entry.value == choice and type(entry.value) is type(choice) for choice in choices):
                choices_text = ", ".join(str(choice).lower() for choice in choices)
                yield Problem(f"{entry.property} must be one of {choices_text}, not {entry.value!r}", *place)
            if entry.property == "unit" and not (isinstance(entry.value, str) and entry.value):
                yield Problem(f"unit must be a text such as km, not {entry.value!r}", *place)
            if entry.property == "unknownCategory" and self.logical_type not in ("string", "integer", "boolean"):
                yield Problem(f"unknownCategory has no meaning for {self.logical_type}", *place)

    @property
    def is_required(self) -> bool:
        """True if a rule of severity error forbids nulls."""
        return any(
            rule.kind == "required" and rule.severity == "error" and rule.target == self.name
            for rule, _ in self.located_rules(is_key=False)
        )

    @property
    def unit(self) -> str | None:
        """The unit of the values, such as km."""
        unit: str | None = self.custom_property("unit")
        return unit

    @property
    def personal(self) -> Literal["drop", "hash", "encrypt"] | None:
        """The treatment of a column with personal data; None for other columns. `true` means drop."""
        treatment = self.custom_property("personal", False)
        return "drop" if treatment is True else treatment or None

    @property
    def unknown_category(self) -> Literal["refuse", "other"]:
        """The treatment of a category that the training split does not have."""
        treatment: Literal["refuse", "other"] = self.custom_property("unknownCategory", "refuse")
        return treatment

    def located_rules(self, *, is_key: bool) -> list[tuple[Rule, Location]]:
        """The column's rules in the order of the file, each with its location in the column.

        `is_key` means that the column alone is the primary key.
        """
        rules: list[tuple[Rule, Location]] = []
        if self.required or self.primary_key:
            rules.append((Rule(target=self.name, kind="required"), ("required",)))
        if self.unique or is_key:
            rules.append((Rule(target=self.name, kind="unique"), ("unique",)))
        rules.extend((rule, ("logicalTypeOptions",)) for rule in _limits(self.name, self))
        for position, check in enumerate(self.quality):
            rule = _rule_of(self, check)
            if rule is not None:
                rules.append((rule, ("quality", position)))
        if self.items is not None:
            if self.items.required:
                rules.append((Rule(target=f"{self.name}[]", kind="required"), ("items",)))
            rules.extend((rule, ("items", "logicalTypeOptions")) for rule in _limits(f"{self.name}[]", self.items))
        return rules


def _limits(target: str, item: TypedElement) -> list[Rule]:
    options = item.logical_type_options
    rules = []
    low, strict_low = tighter_bound(options.minimum, options.exclusive_minimum, largest=True)
    high, strict_high = tighter_bound(options.maximum, options.exclusive_maximum, largest=False)
    if low is not None or high is not None:
        rules.append(
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
        rules.append(Rule(target=target, kind="length", low=options.min_length, high=options.max_length))
    if options.pattern is not None:
        rules.append(Rule(target=target, kind="pattern", pattern=options.pattern))
    if options.min_items is not None or options.max_items is not None:
        rules.append(Rule(target=target, kind="num_items", low=options.min_items, high=options.max_items))
    return rules


def _rule_of(column: Column, check: Quality) -> Rule | None:
    """The rule of a column's quality check; None for a check of type text."""
    fields: dict[str, Any] = {"target": column.name, "severity": check.severity}
    if check.measures == "share":
        fields["tolerance"] = check.tolerance()
    arguments, implementation = check.arguments, check.implementation
    match check.check_name:
        case "nullValues":
            return Rule(kind="required", **fields)
        case "duplicateValues":
            return Rule(kind="unique", **fields)
        case "invalidValues" if arguments is not None and arguments.pattern is not None:
            return Rule(kind="pattern", pattern=arguments.pattern, **fields)
        case "invalidValues" if arguments is not None and arguments.valid_values is not None:
            return Rule(kind="in_set", values=arguments.valid_values, **fields)
        case "missingValues" if arguments is not None and arguments.missing_values is not None:
            return _presence(column, arguments.missing_values, fields)
        case "sql":
            query = re.sub(r"\$?\{property\}", f'"{column.name}"', check.query or "")
            return Rule(kind="query", expression=normalize_placeholder(query), **check.number_limits(), **fields)
    match implementation:
        case RowCondition():
            return Rule(
                kind="expression",
                expression=implementation.expression,
                columns=referenced_columns(implementation.expression),
                **fields,
            )
        case ValueLimits():
            return Rule(kind="between", **implementation.limits(), **fields)
        case LengthLimits():
            return Rule(kind="length", low=implementation.min_length, high=implementation.max_length, **fields)
        case Distribution():
            limits = check.number_limits()
            return Rule(
                kind="distribution",
                reference=implementation.reference,
                divergence=implementation.divergence,
                **limits,
                **fields,
            )
    return None


def _presence(column: Column, missing: tuple[Any, ...], fields: dict[str, Any]) -> Rule:
    """The rule that a value is present: not null, if null counts as missing, and not one of the missing values."""
    values = [value for value in missing if value is not None]
    if not values:
        return Rule(kind="required", **fields)
    name = f'"{column.name}"'
    absent = f"{name} NOT IN ({', '.join(_literal(value, column.logical_type) for value in values)})"
    present = f"{name} IS NOT NULL AND {absent}" if None in missing else absent
    return Rule(kind="expression", expression=present, columns=(column.name,), **fields)


def _literal(value: Any, logical_type: LogicalType) -> str:
    if isinstance(value, str):
        quoted = "'" + value.replace("'", "''") + "'"
        return f"DATE {quoted}" if logical_type == "date" else quoted
    return str(value).upper() if isinstance(value, bool) else repr(value)
