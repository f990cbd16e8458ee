"""The data contract: the tables and rules of a data set, in the Open Data Contract Standard v3.0 or v3.1.

A contract file is the only definition of the data, and reading and writing it loses nothing. Arrow and Spark schemas
(`columns/arrow_schema.py`), the Great Expectations suite (`validation/`), the endpoint's check of requests
(`requests/`) and the HTML page (`html_page.py`) are derived from its columns (`columns/column.py`) and its rules
(`rules.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Location, TimesAsText, read_document
from bloomery.data_contracts.errors import ContractInvalid
from bloomery.data_contracts.odcs.base import (
    Element,
    PlainText,
    PlainValue,
    Problem,
    Unchecked,
    find_custom_property_problems,
    find_ineffective_custom_properties,
    raise_problems,
)
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.distributions import Reference, require_reference
from bloomery.data_contracts.odcs.elements.descriptions import (
    Price,
    Role,
    SupportItem,
    Team,
    TeamOrMembers,
    require_description,
)
from bloomery.data_contracts.odcs.elements.quality import Quality
from bloomery.data_contracts.odcs.elements.servers import Server
from bloomery.data_contracts.odcs.elements.service_levels import ServiceLevel
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.odcs.table import Table

Versions = Literal["v3.1.0", "v3.0.2", "v3.0.1", "v3.0.0", "v2.2.2", "v2.2.1", "v2.2.0"]


class Contract(Element):
    """A contract file. A recipe uses one of its tables; rules and columns are those of that table."""

    api_version: Versions
    kind: Literal["DataContract"]
    id: str
    name_: Annotated[str | None, Field(alias="name")] = None
    version: str
    status: str
    description: Annotated[dict[str, PlainValue], AfterValidator(require_description)] = Field(  # type: ignore[assignment]
        default_factory=dict
    )
    domain: str | None = None
    data_product: str | None = None
    tenant: str | None = None
    schema_: Annotated[tuple[Table, ...], Field(alias="schema")] = ()
    team: TeamOrMembers | None = None
    roles: tuple[Role, ...] | None = None
    support: tuple[SupportItem, ...] | None = None
    servers: tuple[Server, ...] | None = None
    price: Price | None = None
    sla_default_element: str | None = None
    sla_properties: tuple[ServiceLevel, ...] = ()
    contract_created_ts: PlainText | None = None
    references: dict[str, Reference] = Field(default_factory=dict)  # not in the standard: read from files beside it

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        raise_problems(
            [*find_custom_property_problems(self, "the contract"), *self._keys_of_earlier_versions()], self.name
        )
        names = [table.name for table in self.schema_]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"table defined twice: {', '.join(repeated)}")
        for table in self.schema_:
            limit = table.custom_property("quarantineLimit", 0.0)
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
                raise ValueError(f"quarantineLimit must be a share of the rows from 0 to 1, not {limit!r}")
            columns = {column.name: column for column in table.columns}
            for rule, _ in table.located_rules():
                reference = self.references.get(rule.reference or "")
                if reference is not None and rule.target in columns:
                    require_reference(reference, rule.reference or "", columns[rule.target])
        return self

    def _keys_of_earlier_versions(self) -> Iterator[Problem]:
        """The keys of a contract in v3.1 that only earlier versions know."""
        if self.api_version != "v3.1.0":
            return
        for position, level in enumerate(self.sla_properties):
            if level.column is not None:
                yield Problem("unknown key; did you mean 'element'?", "slaProperties", position, "column")
        members = self.team.members if isinstance(self.team, Team) else self.team or ()
        place = ("team", "members") if isinstance(self.team, Team) else ("team",)
        for position, member in enumerate(members):
            if member.comment is not None:
                yield Problem("unknown key; did you mean 'description'?", *place, position, "comment")
        for at, table in enumerate(self.schema_):
            owners: list[tuple[Location, tuple[Quality, ...]]] = [((), table.quality)]
            owners += [(("properties", index), column.quality) for index, column in enumerate(table.properties)]
            for owner, checks in owners:
                for position, check in enumerate(checks):
                    if check.rule is not None and check.metric is None:
                        where = ("schema", at, *owner, "quality", position, "rule")
                        yield Problem("deprecated since v3.1; use metric", *where)

    @property
    def name(self) -> str:
        """The name, or the id of a contract without one."""
        return self.name_ or self.id

    @property
    def table(self) -> Table:
        """The only table.

        Raises:
            ContractInvalid: there are several tables, or none.
        """
        if len(self.schema_) != 1:
            raise self._not_one_table()
        return self.schema_[0]

    def select_table(self, name: str | None) -> Contract:
        """The contract with only the table `name`, or with its only table.

        Raises:
            ContractInvalid: there is no such table, or several and no name.
        """
        tables = [table for table in self.schema_ if name in (None, table.name)]
        if len(tables) != 1:
            raise self._not_one_table(name)
        if len(self.schema_) == 1:
            return self
        fields = {field: getattr(self, field) for field in self.model_fields_set}
        other_names = [table.name for table in self.schema_ if table.name != tables[0].name]
        levels = tuple(level for level in self.sla_properties if not level.concerns_only(other_names))
        return type(self)(**{**fields, "schema_": tuple(tables), "sla_properties": levels})

    def _not_one_table(self, name: str | None = None) -> ContractInvalid:
        names = ", ".join(table.name for table in self.schema_)
        if name is None:
            found = f"{len(self.schema_)} tables: {names}" if names else "no table (its schema is empty)"
        else:
            close = difflib.get_close_matches(name, [table.name for table in self.schema_], n=1)
            found = f"no table {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        return ContractInvalid(
            f"contract {self.name} has {found}",
            required=f"the name of one table: {names}" if names else "a schema with a table that has columns",
            where=f"contract {self.name} {self.version}",
            remedy="name one, in a recipe with `contract: {file: FILE, table: NAME}`, on the command line with --table"
            if names
            else "add the table and its columns under `schema`, or use another contract",
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table that can be read."""
        return self.table.columns

    def column(self, name: str) -> Column | None:
        return self._columns_by_name.get(name)

    @cached_property
    def _columns_by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @property
    def personal_columns(self) -> frozenset[str]:
        """The names of the columns with personal data, read or not."""
        return frozenset(
            column.name
            for column in self.table.properties
            if column.custom_property("personal", False) not in (False, None)
        )

    @cached_property
    def date_formats(self) -> dict[str, str]:
        """By column of dates or times, how they are written as text, where a format is set."""
        formats = {column.name: column.date_format for column in self.columns}
        return {name: date_format for name, date_format in formats.items() if date_format is not None}

    @property
    def quarantine_limit(self) -> float:
        """The largest share of rows that may be quarantined before the contract counts as broken (default 0)."""
        limit: float = self.table.custom_property("quarantineLimit", 0.0)
        return limit

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the contract in the order of the file: table, columns, service levels."""
        table_rules = tuple(rule for rule, _ in self.table.located_rules())
        oldest: dict[str, Rule] = {}
        for outcome in self._service_levels():
            if isinstance(outcome, Rule):
                oldest[outcome.target] = min(
                    oldest.get(outcome.target, outcome), outcome, key=lambda rule: rule.high or 0
                )
        return (*table_rules, *oldest.values())

    def _service_levels(self) -> Iterator[Rule | str]:
        types = {column.name: str(column.logical_type) for column in self.columns}
        for level in self.sla_properties:
            yield from level.assess(self.table.name, types)

    @property
    def unchecked(self) -> tuple[Unchecked, ...]:
        """What the contract requires of the table and Bloomery does not check."""
        sentences = [
            *find_ineffective_custom_properties(self, "the contract"),
            *(outcome for outcome in self._service_levels() if isinstance(outcome, str)),
        ]
        if not self.rules():
            sentences.append("there is no rule, so all rows pass whose values fit the columns' types")
        return (*self.table.unchecked, *(Unchecked(where="", sentence=sentence) for sentence in sentences))

    def document(self) -> dict[str, Any]:
        """The contract as in its file: every key and value, in the order of the standard."""
        return self.model_dump(mode="json", by_alias=True, exclude={"references"})


def contract_yaml(contract: Contract) -> str:
    """The contract as the text of a contract file."""
    return yaml.safe_dump(contract.document(), sort_keys=False, allow_unicode=True, width=120)


def read_contract(path: Path) -> Contract:
    """Reads the contract at `path`, and the references of its rules from the files beside it.

    Raises:
        DataMissing: the file, or the `NAME.reference.json` beside it of a reference, does not exist.
        ContractInvalid: an unknown key or an impossible rule; the message has file and line.
    """
    contract = read_document(path, Contract, ContractInvalid, TimesAsText)
    references = dict(contract.references)
    columns = {(table.name, column.name): column for table in contract.schema_ for column in table.columns}
    rules = [(table.name, rule) for table in contract.schema_ for rule, _ in table.located_rules()]
    for table, rule in rules:
        column = columns.get((table, rule.target))
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
    return contract.model_copy(update={"references": references}) if references else contract
