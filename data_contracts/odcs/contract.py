"""The data contract: the columns and rules of a data set, in the Open Data Contract Standard v3.1.

A contract file is the only definition of the data. The Arrow and Spark schemas (`arrow_schema.py`), the Great
Expectations suite (`validation/`), the endpoint's check of requests (`requests/`) and the HTML page (`html_page.py`)
are derived from its columns (`columns.py`) and rules (`rules.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Location, read_document
from bloomery.data_contracts.errors import ContractInvalid
from bloomery.data_contracts.expressions.parser import parse_condition, referenced_columns
from bloomery.data_contracts.expressions.table_queries import normalize_placeholder, require_scalar_query
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.base import (
    Element,
    PlainValue,
    Problem,
    find_custom_property_problems,
    raise_problems,
)
from bloomery.data_contracts.odcs.columns import Column
from bloomery.data_contracts.odcs.distributions import Reference, require_reference
from bloomery.data_contracts.odcs.quality import Dependency, Quality, RowCondition
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.odcs.service_levels import ServiceLevel


class Table(Element):
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
    def _is_consistent(self) -> Self:
        names = [column.name for column in self.properties]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"column defined twice: {', '.join(repeated)}")
        problems = [
            Problem(sentence, "quality", position)
            for position, check in enumerate(self.quality)
            for sentence in _misuses(check, names)
        ]
        raise_problems([*find_custom_property_problems(self, "the schema object"), *problems], self.name)
        raise_problems(list(self._rule_problems()), self.name)
        return self

    def _rule_problems(self) -> Iterator[Problem]:
        """Expressions and queries that do not fit the columns, and repeated rules."""
        schema = arrow_schema(self.properties)
        identities: set[Rule] = set()
        for rule, place in self.located_rules():
            try:
                if rule.kind == "expression":
                    parse_condition(rule.expression or "", schema)
                if rule.kind == "query":
                    require_scalar_query(rule.expression or "", schema.names)
            except ValueError as failure:
                yield Problem(str(failure), *place)
            if _identity(rule) in identities:
                yield Problem(f"the rule that {rule.target or self.name} {rule.sentence} is defined twice", *place)
            identities.add(_identity(rule))
        min_rows, max_rows = 0, None
        for check in self.quality:
            if check.measures == "count" and check.severity == "error":
                low, high = check.row_count_limits()
                min_rows = max(min_rows, low or 0)
                max_rows = high if max_rows is None else max_rows if high is None else min(max_rows, high)
        if max_rows is not None and min_rows > max_rows:
            yield Problem(f"no table has at least {min_rows} and at most {max_rows} rows", "quality")

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key, in the order of their positions."""
        key_columns = [column for column in self.properties if column.primary_key]
        return tuple(column.name for column in sorted(key_columns, key=lambda column: column.primary_key_position or 0))

    def located_rules(self) -> list[tuple[Rule, Location]]:
        """The rules of the table and then of its columns, in the order of the file, each with its location."""
        rules: list[tuple[Rule, Location]] = []
        for position, check in enumerate(self.quality):
            rule = _rule_of(check)
            if rule is not None:
                rules.append((rule, ("quality", position)))
        key = self.key
        if len(key) > 1:
            rules.append((Rule(target="", kind="unique", columns=key), ("properties",)))
        for position, column in enumerate(self.properties):
            column_rules = column.located_rules(is_key=key == (column.name,))
            rules.extend((rule, ("properties", position, *place)) for rule, place in column_rules)
        return rules


def _identity(rule: Rule) -> Rule:
    """The rule without severity and tolerance, by which repeated rules are found."""
    update: dict[str, Any] = {"severity": "error", "tolerance": None}
    if rule.kind in ("required", "unique", "determined"):
        update["columns"] = tuple(sorted(rule.columns))
    return rule.model_copy(update=update)


def _rule_of(check: Quality) -> Rule | None:
    """The rule of a table's quality check; None for a check of type text."""
    fields: dict[str, Any] = {"severity": check.severity}
    if check.measures == "share":
        fields["tolerance"] = check.tolerance()
    implementation = check.implementation
    match check.check_name:
        case "rowCount":
            low, high = check.row_count_limits()
            return Rule(target="", kind="num_rows", low=low, high=high, **fields)
        case "duplicateValues" if check.arguments is not None and check.arguments.properties is not None:
            columns = check.arguments.properties
            if len(columns) == 1:
                return Rule(target=columns[0], kind="unique", **fields)
            return Rule(target="", kind="unique", columns=columns, **fields)
        case "sql":
            return Rule(
                target="",
                kind="query",
                expression=normalize_placeholder(check.query or ""),
                **check.number_limits(),
                **fields,
            )
    match implementation:
        case RowCondition():
            columns = referenced_columns(implementation.expression)
            return Rule(target="", kind="expression", expression=implementation.expression, columns=columns, **fields)
        case Dependency():
            return Rule(target=implementation.target, kind="determined", columns=implementation.columns, **fields)
    return None


_TABLE_CHECKS = ("rowCount", "duplicateValues", "text", "sql", "expression", "determines")


def _misuses(check: Quality, names: list[str]) -> Iterator[str]:
    """Why the quality check does not apply to a table with the columns `names`."""
    implementation = check.implementation
    columns: tuple[str, ...] = ()
    if check.check_name not in _TABLE_CHECKS:
        yield f"a table's quality check is one of {', '.join(_TABLE_CHECKS)}; {check.check_name} belongs to a column"
    if check.check_name == "duplicateValues":
        if check.arguments is None or check.arguments.properties is None:
            yield "duplicateValues of a table needs arguments.properties, the columns that must be unique together"
        else:
            columns = check.arguments.properties
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
            yield f"there is no column {name}; there are {', '.join(names)}"
        elif columns.count(name) > 1:
            yield f"column {name} is named twice"


class Contract(Element):
    """A contract file: one table and at least one rule."""

    api_version: Literal["v3.0.0", "v3.0.1", "v3.0.2", "v3.1.0"]
    kind: Literal["DataContract"]
    id: str
    name: str
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    status: Literal["proposed", "draft", "active", "deprecated", "retired"]
    description: dict[str, PlainValue] = Field(default_factory=dict)  # type: ignore[assignment]  # text elsewhere
    domain: str | None = None
    data_product: str | None = None
    tenant: str | None = None
    schema_: Annotated[tuple[Table, ...], Field(alias="schema", min_length=1, max_length=1)]
    team: PlainValue = None
    roles: PlainValue = None
    support: PlainValue = None
    servers: PlainValue = None
    price: PlainValue = None
    sla_properties: tuple[ServiceLevel, ...] = ()
    contract_created_ts: PlainValue = None
    references: dict[str, Reference] = Field(default_factory=dict)  # not in the standard: read from files beside it

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        problems = [
            Problem(sentence, "slaProperties", position)
            for position, level in enumerate(self.sla_properties)
            for sentence in level.find_misuses(
                self.table.name, {column.name: column.logical_type for column in self.columns}
            )
        ]
        raise_problems([*find_custom_property_problems(self, "the contract"), *problems], self.name)
        rules = self.rules()
        if not rules:
            raise ValueError("the contract has no rule, so all data would pass; add a limit or a required column")
        fresh_columns = [rule.target for rule in rules if rule.kind == "fresh"]
        repeated = sorted({target for target in fresh_columns if fresh_columns.count(target) > 1})
        if repeated:
            raise ValueError(f"the freshness of column {', '.join(repeated)} is defined twice")
        limit = self.quarantine_limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
            raise ValueError(f"quarantineLimit must be a share of the rows from 0 to 1, not {limit!r}")
        for rule in rules:
            reference, column = self.references.get(rule.reference or ""), self.column(rule.target)
            if reference is not None and column is not None:
                require_reference(reference, rule.reference or "", column)
        return self

    @property
    def table(self) -> Table:
        return self.schema_[0]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.table.properties

    def column(self, name: str) -> Column | None:
        return self._columns_by_name.get(name)

    @cached_property
    def _columns_by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @property
    def personal_columns(self) -> frozenset[str]:
        """The names of the columns with personal data."""
        return frozenset(column.name for column in self.columns if column.personal is not None)

    @cached_property
    def date_formats(self) -> dict[str, str]:
        """By column of dates or times, how they are written as text, where a format is set."""
        formats = {column.name: column.logical_type_options.format for column in self.columns}
        return {name: date_format for name, date_format in formats.items() if date_format is not None}

    @property
    def quarantine_limit(self) -> float:
        """The largest share of rows that may be quarantined before the contract counts as broken (default 0)."""
        limit: float = self.table.custom_property("quarantineLimit", 0.0)
        return limit

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the contract in the order of the file: table, columns, service levels."""
        table_rules = tuple(rule for rule, _ in self.table.located_rules())
        return (*table_rules, *(rule for level in self.sla_properties for rule in level.rules()))


def read_contract(path: Path) -> Contract:
    """Reads the contract at `path`, and the references of its rules from the files beside it.

    Raises:
        DataMissing: the file, or the `NAME.reference.json` beside it of a reference, does not exist.
        ContractInvalid: an unknown key, an impossible rule or no rule at all; the message has file and line.
    """
    contract = read_document(path, Contract, ContractInvalid)
    references = dict(contract.references)
    for rule in contract.rules():
        column = contract.column(rule.target)
        if rule.reference is None or column is None or rule.reference in contract.references:
            continue
        place = path.parent / f"{rule.reference}.reference.json"
        if rule.reference not in references:
            references[rule.reference] = read_document(place, Reference, ContractInvalid)
        try:
            require_reference(references[rule.reference], rule.reference, column)
        except ValueError as failure:
            raise ContractInvalid(
                f"{place.name}: {failure}",
                required=f"a distribution of column {column.name} of contract {contract.name}",
                where=str(place),
                remedy="create the reference again from valid rows, or correct the contract",
            ) from failure
    return contract.model_copy(update={"references": references})
