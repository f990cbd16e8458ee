"""A contract as one HTML page for people. The page loads nothing from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from bloomery.data_contracts.odcs.base import Element
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule

_TEMPLATE = "html_page.html.jinja"
# Keys of the standard that Bloomery keeps and does not act on.
_DESCRIPTIVE = {
    "data_product",
    "tenant",
    "sla_properties",
    "team",
    "roles",
    "support",
    "servers",
    "price",
    "tags",
    "custom_properties",
}


def render_contract_page(contract: Contract) -> str:
    """The contract's columns, rules, references and descriptions. All text of the contract is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        contract=contract,
        tables=[(table, contract.select_table(table.name)) for table in contract.schema_],
        facts=_facts(contract),
        description=[(name.capitalize(), text) for name, text in contract.description.items() if isinstance(text, str)],
        definitions=list(_definitions(contract)),
        references=list(_references(contract)),
        more=_descriptive_keys(contract),
        describe_type=describe_type,
        format_tolerance=format_tolerance,
    )


def describe_type(column: Column) -> str:
    """The type of the column's values, whether a value is required, and whether the column is a key."""
    kind = f"array of {column.items.arrow_type}" if column.items is not None else column.arrow_type
    attributes = ["required" if column.is_required else "optional"]
    if column.primary_key:
        attributes.append("key")
    return f"{kind}, {', '.join(attributes)}"


def format_tolerance(rule: Rule) -> str:
    """The share of rows that may break the rule, such as `5% of the rows`; empty without a tolerance."""
    return "" if rule.tolerance is None else f"{100 * rule.tolerance:.4g}% of the rows"


def _facts(contract: Contract) -> list[str]:
    facts = [contract.status, f"id {contract.id}", contract.domain]
    if len(contract.schema_) == 1:
        facts[2:2] = [f"table {contract.table.name}"]
        facts.append(contract.table.data_granularity_description)
    return [fact for fact in facts if fact]


class _Definition(NamedTuple):
    """Where the definition of the contract, its table or a column comes from."""

    owner: str
    type: str
    url: str
    description: str

    @property
    def is_link(self) -> bool:
        """Whether the address is one of the web: another scheme could run a script."""
        return self.url.startswith(("https://", "http://"))


def _definitions(contract: Contract) -> Iterator[_Definition]:
    owners: list[tuple[str, Element]] = [("contract", contract)]
    for table in contract.schema_:
        prefix = "" if len(contract.schema_) == 1 else f"{table.name}."
        owners.append(("table" if not prefix else f"table {table.name}", table))
        owners += [(f"{prefix}{column.name}", column) for column in table.properties]
    for name, owner in owners:
        for entry in owner.authoritative_definitions:
            yield _Definition(name, entry.type, entry.url, entry.description or "")


def _references(contract: Contract) -> Iterator[tuple[str, list[tuple[str, list[tuple[str, str]]]]]]:
    """For each reference its columns, and for each column its bins with their shares."""
    for name, reference in contract.references.items():
        columns = []
        for column, shares in reference.columns.items():
            bins = shares.values if shares.values is not None else _intervals(shares.edges or ())
            pairs = zip((*bins, "other", "null"), shares.all_shares, strict=True)
            columns.append((column, [(str(bin_), f"{100 * share:.3g}%") for bin_, share in pairs]))
        yield name, columns


def _intervals(edges: tuple[float, ...]) -> tuple[str, ...]:
    inner = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)]
    return (f"below {edges[0]:g}", *inner, f"{edges[-1]:g} or more")


def _descriptive_keys(contract: Contract) -> str:
    """The keys that Bloomery does not act on, as YAML."""
    keys = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=_DESCRIPTIVE)
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True) if keys else ""
