"""The columns that Bloomery reads: their types and limits, and the rules that follow from them.

They are derived from the properties of a contract file (`elements/properties.py`). What cannot be read or checked is
reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, Self

from bloomery.data_contracts.documents.documents import Location
from bloomery.data_contracts.expressions.parser import referenced_columns
from bloomery.data_contracts.expressions.sql import quote_name
from bloomery.data_contracts.expressions.table_queries import normalize_placeholder
from bloomery.data_contracts.odcs.base import LogicalType, Problem, Unsupported, find_ineffective_custom_properties
from bloomery.data_contracts.odcs.columns.consistency import (
    find_contradictions,
    find_misuses,
)
from bloomery.data_contracts.odcs.columns.option_rules import find_unchecked_options, limit_rules, option_conditions
from bloomery.data_contracts.odcs.columns.typed_elements import ArrayItem, TypedElement, resolve_type
from bloomery.data_contracts.odcs.elements.properties import SchemaProperty
from bloomery.data_contracts.odcs.elements.quality import Distribution, LengthLimits, Quality, RowCondition, ValueLimits
from bloomery.data_contracts.odcs.rules import Rule


class Column(TypedElement):
    """A column of the data set."""

    name: str
    items: ArrayItem | None = None  # type: ignore[assignment]  # items with a type that can be read

    @classmethod
    def from_property(cls, source: SchemaProperty, *, has_arrow_types: bool) -> Self:
        """The column of a property. `has_arrow_types` says that the physical types of its table are Arrow's.

        Raises:
            Unsupported: values of its type cannot be read.
        """
        if not source.name:
            raise Unsupported("its name is empty; rename the column")
        values = {**resolve_type(source, has_arrow_types=has_arrow_types), "items": None}
        if values["logical_type"] == "array":
            if source.items is None:
                raise Unsupported("items is missing, so the type of its elements is not known")
            items = resolve_type(source.items, has_arrow_types=has_arrow_types)
            if items["logical_type"] == "array":
                raise Unsupported("an array of arrays is not supported; flatten it, and give the shape in the recipe")
            values["items"] = ArrayItem.model_construct(source.items.model_fields_set, **items)
        return cls.model_construct(source.model_fields_set, **values)

    def find_problems(self) -> Iterator[Problem]:
        """Contradictions, and invalid checks and custom properties that only Bloomery acts on."""
        yield from self.find_crossed_limits()
        for problem in () if self.items is None else self.items.find_crossed_limits():
            yield Problem(problem.sentence, "items", *problem.place)
        for position, check in enumerate(self.quality):
            for sentence in find_misuses(self.name, self.logical_type, check) if check.is_own else ():
                yield Problem(sentence, "quality", position)
        yield from self._invalid_custom_properties()
        located_rules = self.located_rules(is_key=self.primary_key)
        rules = tuple(rule for rule, _ in located_rules if rule.severity == "error")
        contradictions = find_contradictions(self.name, self.logical_type, self.arrow_type, rules)
        yield from map(Problem, contradictions)

    def _invalid_custom_properties(self) -> Iterator[Problem]:
        """Values that Bloomery cannot act on, where ignoring them would keep personal data or unknown categories."""
        allowed = {"personal": (True, False, "drop", "hash", "encrypt"), "unknownCategory": ("refuse", "other")}
        for position, entry in enumerate(self.custom_properties):
            place = ("customProperties", position, "value")
            choices = allowed.get(entry.property, (entry.value,))
            if not any(entry.value == choice and type(entry.value) is type(choice) for choice in choices):
                choices_text = ", ".join(str(choice).lower() for choice in choices)
                yield Problem(f"{entry.property} must be one of {choices_text}, not {entry.value!r}", *place)

    def find_unchecked(self) -> Iterator[str]:
        """What the contract requires of the column and Bloomery does not check."""
        yield from find_ineffective_custom_properties(self, "a column")
        if "unit" in {entry.property for entry in self.custom_properties} and self.unit is None:
            yield f"unit must be a text such as km, not {self.custom_property('unit')!r}"
        if self.custom_property("unknownCategory") and self.logical_type not in ("string", "integer", "boolean"):
            yield f"unknownCategory has no meaning for {self.logical_type}"
        if self.logical_type == "array" and (self.unique or self.primary_key):
            yield "an array cannot be a key: unique and primaryKey apply to single values"
        yield from find_unchecked_options(self)
        if self.items is not None:
            yield from (f"items: {sentence}" for sentence in find_unchecked_options(self.items))
            yield from (f"items: {check.title}: checks of items are not supported" for check in self.items.quality)
        for check in self.quality:
            outcome = self.assess(check)
            if isinstance(outcome, str):
                yield f"{check.title}: {outcome}"
        for relationship in self.relationships:
            yield f"foreign key to {relationship.target}: other tables are not read"

    def assess(self, check: Quality) -> Rule | str:
        """The rule of a quality check of the column, or why it cannot be checked."""
        limitation = check.limitation
        if limitation is None:
            limitation = next(find_misuses(self.name, self.logical_type, check), None)
        return limitation if limitation is not None else _rule_of(self, check)

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
        unit = self.custom_property("unit")
        return unit if isinstance(unit, str) and unit else None

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
        if (self.unique or is_key) and self.logical_type != "array":
            rules.append((Rule(target=self.name, kind="unique"), ("unique",)))
        rules.extend((rule, ("logicalTypeOptions",)) for rule in limit_rules(self.name, self))
        conditions = (condition for condition, _ in option_conditions(self) if condition is not None)
        for condition in conditions:
            rule = Rule(target=self.name, kind="expression", expression=condition, columns=(self.name,))
            rules.append((rule, ("logicalTypeOptions",)))
        for position, check in enumerate(self.quality):
            outcome = self.assess(check)
            if isinstance(outcome, Rule):
                rules.append((outcome, ("quality", position)))
        if self.items is not None:
            if self.items.required:
                rules.append((Rule(target=f"{self.name}[]", kind="required", is_of_items=True), ("items",)))
            rules.extend((rule, ("items", "logicalTypeOptions")) for rule in limit_rules(f"{self.name}[]", self.items))
        return rules


def can_be_encrypted(name: str) -> bool:
    """Whether Parquet can encrypt a column of this name. Arrow puts these signs between the names of columns."""
    return name == name.strip() and not re.search("[,:;]", name)


def _rule_of(column: Column, check: Quality) -> Rule:
    """The rule of a column's quality check, which can be checked."""
    fields: dict[str, Any] = {"target": column.name, "severity": check.rule_severity}
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
            values = tuple(value for value in arguments.valid_values if value is not None)
            return Rule(kind="in_set", values=values, **fields)
        case "missingValues" if arguments is not None and arguments.missing_values is not None:
            return _presence(column, arguments.missing_values, fields)
        case "sql":
            name = quote_name(column.name)
            query = re.sub(r"\$?\{(?:property|column)\}", lambda _: name, check.query or "")
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
    raise RuntimeError(f"{check.check_name} is a check of a column, but has no rule")


def _presence(column: Column, missing: tuple[Any, ...], fields: dict[str, Any]) -> Rule:
    """The rule that a value is present: not null, if null counts as missing, and not one of the missing values."""
    values = [value for value in missing if value is not None]
    if not values:
        return Rule(kind="required", **fields)
    name = quote_name(column.name)
    absent = f"{name} NOT IN ({', '.join(_literal(value, column.logical_type) for value in values)})"
    present = f"{name} IS NOT NULL AND {absent}" if None in missing else absent
    return Rule(kind="expression", expression=present, columns=(column.name,), **fields)


def _literal(value: Any, logical_type: LogicalType) -> str:
    if isinstance(value, str):
        quoted = "'" + value.replace("'", "''") + "'"
        return f"DATE {quoted}" if logical_type == "date" else quoted
    return str(value).upper() if isinstance(value, bool) else repr(value)
