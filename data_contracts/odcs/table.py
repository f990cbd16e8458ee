"""One table of a contract: its columns, the rules about them, and what cannot be checked.

Source: Open Data Contract Standard v3.1, Schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

from pydantic import model_validator

from bloomery.data_contracts.documents.documents import Location
from bloomery.data_contracts.expressions.parser import parse_condition, referenced_columns
from bloomery.data_contracts.expressions.table_queries import normalize_placeholder, replace_table, require_scalar_query
from bloomery.data_contracts.odcs.base import (
    Element,
    Problem,
    Unchecked,
    Unsupported,
    find_custom_property_problems,
    find_ineffective_custom_properties,
    raise_problems,
)
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.elements.descriptions import TableRelationship
from bloomery.data_contracts.odcs.elements.physical_types import is_arrow_name
from bloomery.data_contracts.odcs.elements.properties import Property, SchemaProperty
from bloomery.data_contracts.odcs.elements.quality import Dependency, Quality, RowCondition
from bloomery.data_contracts.odcs.rules import Rule

LocatedRule = tuple[Rule, Location]


class _Columns(NamedTuple):
    """The columns that can be read, by the position of their property, and why the others cannot."""

    by_position: dict[int, Column]
    unchecked: tuple[Unchecked, ...]


class _Rules(NamedTuple):
    """The rules with their locations, what cannot be checked, and what is invalid."""

    located: list[LocatedRule]
    unchecked: list[Unchecked]
    problems: list[Problem]


class Table(Element):
    """One schema object: a table."""

    name: str
    logical_type: Literal["object"] = "object"
    physical_type: str | None = None
    physical_name: str | None = None
    business_name: str | None = None
    data_granularity_description: str | None = None
    properties: tuple[SchemaProperty, ...] = ()
    relationships: tuple[TableRelationship, ...] = ()
    quality: tuple[Quality, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [column.name for column in self.properties]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"column defined twice: {', '.join(repeated)}")
        problems = list(find_custom_property_problems(self, "the schema object"))
        for position, column in self._columns.by_position.items():
            problems += [
                Problem(problem.sentence, "properties", position, *problem.place) for problem in column.find_problems()
            ]
        for position, check in enumerate(self.quality):
            if check.is_own:
                problems += [Problem(sentence, "quality", position) for sentence in _find_misuses(check, self.columns)]
        raise_problems(problems, self.name)
        raise_problems(self._rules.problems, self.name)
        return self

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that Bloomery reads, in the order of the file."""
        return tuple(self._columns.by_position.values())

    @property
    def unread_columns(self) -> dict[str, str]:
        """The columns that Bloomery does not read, and why."""
        return {item.where: item.sentence for item in self._columns.unchecked}

    @cached_property
    def _columns(self) -> _Columns:
        elements = [element for source in self.properties for element in (source, source.items) if element is not None]
        has_arrow_types = all(
            element.physical_type is None or is_arrow_name(element.physical_type, element.logical_type)
            for element in elements
        )
        columns: dict[int, Column] = {}
        unchecked: list[Unchecked] = []
        for position, source in enumerate(self.properties):
            try:
                columns[position] = Column.from_property(source, has_arrow_types=has_arrow_types)
            except Unsupported as failure:
                unchecked.append(Unchecked(where=source.name, sentence=f"not read: {failure}"))
        return _Columns(columns, tuple(unchecked))

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key, in the order of their positions; none if one of them cannot be read."""
        keys = sorted(
            (source for source in self.properties if source.primary_key),
            key=lambda source: source.primary_key_position or 0,
        )
        readable = {column.name for column in self.columns if column.logical_type != "array"}
        names = tuple(source.name for source in keys)
        return names if readable.issuperset(names) else ()

    def located_rules(self) -> list[LocatedRule]:
        """The rules of the table and then of its columns, in the order of the file, each with its location."""
        return list(self._rules.located)

    @property
    def unchecked(self) -> tuple[Unchecked, ...]:
        """What the contract requires of the table and Bloomery does not check, in the order of the file."""
        return tuple(self._rules.unchecked)

    @cached_property
    def _rules(self) -> _Rules:
        rules = _Rules([], list(self._find_unchecked()), [])
        schema = arrow_schema(self.columns)
        identities: dict[Rule, int] = {}
        for rule, place, title in self.candidate_rules():
            try:
                if rule.kind == "expression":
                    parse_condition(rule.expression or "", schema)
                if rule.kind == "query":
                    rule = rule.model_copy(update={"expression": self._query_of(rule.expression or "")})
                    require_scalar_query(rule.expression or "", schema.names)
            except ValueError as failure:
                if title:  # a check of the standard; others are Bloomery's
                    rules.unchecked.append(Unchecked(where=rule.column, sentence=f"{title}: {failure}"))
                else:
                    rules.problems.append(Problem(str(failure), *place))
                continue
            position = identities.setdefault(_identity(rule), len(rules.located))
            if position == len(rules.located):
                rules.located.append((rule, place))
                continue
            first, first_place = rules.located[position]
            rules.located[position] = (min(first, rule, key=_laxity), first_place)
            if _laxity(first) != _laxity(rule):
                sentence = f"required twice: {rule.sentence}; only the stricter requirement is checked"
                rules.unchecked.append(Unchecked(where=rule.column, sentence=sentence))
        rules.problems.extend(self._row_count_problems())
        return rules

    def candidate_rules(self) -> Iterator[tuple[Rule, Location, str]]:
        """All rules, repeated ones too, with their locations, and the titles of the checks of the standard, or ""."""
        for position, check in enumerate(self.quality):
            rule = self.assess(check)
            if isinstance(rule, Rule):
                yield rule, ("quality", position), "" if check.is_own else check.title
        key = self.key
        if len(key) > 1:
            yield Rule(target="", kind="unique", columns=key), ("properties",), ""
        for position, column in self._columns.by_position.items():
            for rule, place in column.located_rules(is_key=key == (column.name,)):
                source = column.quality[int(place[1])] if place[0] == "quality" else None
                title = "logicalTypeOptions" if source is None else "" if source.is_own else source.title
                yield rule, ("properties", position, *place), title

    def _find_unchecked(self) -> Iterator[Unchecked]:
        """What is not checked, apart from queries and conditions that do not fit the columns."""
        sentences = [*find_ineffective_custom_properties(self, "the schema object"), *self._unused_physical_types()]
        for check in self.quality:
            outcome = self.assess(check)
            if isinstance(outcome, str):
                sentences.append(f"{check.title}: {outcome}")
        sentences += [
            f"foreign key to {relationship.target}: other tables are not read" for relationship in self.relationships
        ]
        if not self.properties:
            sentences.append("the table has no columns (properties)")
        if not self.key and any(source.primary_key for source in self.properties):
            sentences.append("primaryKey: not every column of the key can be read as a single value")
        yield from (Unchecked(where="", sentence=sentence) for sentence in sentences)
        yield from self._columns.unchecked
        for column in self.columns:
            yield from (Unchecked(where=column.name, sentence=sentence) for sentence in column.find_unchecked())

    def _unused_physical_types(self) -> Iterator[str]:
        names = {
            source.physical_type: None
            for position, source in enumerate(self.properties)
            if source.physical_type is not None
            and (column := self._columns.by_position.get(position)) is not None
            and column.physical_type != source.physical_type
            and column.logical_type != "array"
        }
        if names:
            yield f"physicalType of the source: {', '.join(names)}; values are checked against the logical types"

    def _query_of(self, query: str) -> str:
        """The query with this table written as a placeholder, also where it names the table."""
        return replace_table(query, [name for name in (self.name, self.physical_name) if name])

    def _row_count_problems(self) -> Iterator[Problem]:
        min_rows, max_rows = 0, None
        for check in self.quality:
            if check.measures == "count" and check.limitation is None and check.rule_severity == "error":
                low, high = check.row_count_limits()
                min_rows = max(min_rows, low or 0)
                max_rows = high if max_rows is None else max_rows if high is None else min(max_rows, high)
        if max_rows is not None and min_rows > max_rows:
            yield Problem(f"no table has at least {min_rows} and at most {max_rows} rows", "quality")

    def assess(self, check: Quality) -> Rule | str:
        """The rule of a quality check of the table, or why it cannot be checked."""
        limitation = check.limitation
        if limitation is None:
            limitation = next(_find_misuses(check, self.columns), None)
        return limitation if limitation is not None else _rule_of(check)


def _identity(rule: Rule) -> Rule:
    """The rule without severity and tolerance, by which repeated rules are found."""
    update: dict[str, Any] = {"severity": "error", "tolerance": None}
    if rule.kind in ("required", "unique", "determined"):
        update["columns"] = tuple(sorted(rule.columns))
    return rule.model_copy(update=update)


def _laxity(rule: Rule) -> tuple[bool, float]:
    """Larger for a rule that tolerates more: a warning, and a larger share of rows."""
    return rule.severity == "warning", -1 if rule.tolerance is None else rule.tolerance


def _rule_of(check: Quality) -> Rule:
    """The rule of a table's quality check, which can be checked."""
    fields: dict[str, Any] = {"severity": check.rule_severity}
    if check.measures == "share":
        fields["tolerance"] = check.tolerance()
    implementation = check.implementation
    match check.check_name:
        case "rowCount":
            low, high = check.row_count_limits()
            return Rule(target="", kind="num_rows", low=low, high=high, **fields)
        case "duplicateValues" if check.arguments is not None and check.arguments.properties is not None:
            columns = tuple(check.arguments.properties)
            if len(columns) == 1:
                return Rule(target=columns[0], kind="unique", **fields)
            return Rule(target="", kind="unique", columns=columns, **fields)
        case "sql":
            expression = normalize_placeholder(check.query or "")
            return Rule(target="", kind="query", expression=expression, **check.number_limits(), **fields)
    match implementation:
        case RowCondition():
            columns = referenced_columns(implementation.expression)
            return Rule(target="", kind="expression", expression=implementation.expression, columns=columns, **fields)
        case Dependency():
            return Rule(target=implementation.target, kind="determined", columns=implementation.columns, **fields)
    raise RuntimeError(f"{check.check_name} is a check of a table, but has no rule")


_TABLE_CHECKS = ("rowCount", "duplicateValues", "text", "sql", "expression", "determines")


def _find_misuses(check: Quality, table_columns: Iterable[Property]) -> Iterator[str]:
    """Why the quality check, which has no limitation of its own, does not apply to a table with these columns."""
    names = [column.name for column in table_columns]
    implementation = check.implementation
    columns: tuple[str, ...] = ()
    if check.check_name not in _TABLE_CHECKS:
        yield f"a table's quality check is one of {', '.join(_TABLE_CHECKS)}; {check.check_name} belongs to a column"
    if check.check_name == "duplicateValues":
        if check.arguments is None or check.arguments.properties is None:
            yield "duplicateValues of a table needs arguments.properties, the columns that must be unique together"
        else:
            columns = tuple(check.arguments.properties)
    if isinstance(implementation, Dependency):
        columns = (*implementation.columns, implementation.target)
        if implementation.target in implementation.columns:
            yield f"{implementation.target} cannot be determined by itself"
            return
    if isinstance(implementation, RowCondition):
        try:
            referenced_columns(implementation.expression)
        except ValueError as failure:
            yield str(failure)
    if check.query is not None and "{property}" in check.query:
        yield "{property} is the column of a check, but this check belongs to the table"
    for name in dict.fromkeys(columns):
        if name not in names:
            yield f"there is no column {name}; there are {', '.join(map(str, names))}"
        elif columns.count(name) > 1:
            yield f"column {name} is named twice"
