"""A contract as one HTML page for people, with nothing to load from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import yaml

from bloomery.data_contracts.odcs.columns import Column
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.facts { color: #56606e; margin-top: .25rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #dfe3e8; }
th { color: #56606e; font-weight: 600; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: #f5f6f8; padding: 1rem; overflow-x: auto; }
.warning { color: #8a5a00; } .error { color: #9b1c1c; }
"""


def render_contract_page(contract: Contract) -> str:
    """The contract's columns, rules and words. All text of the contract is escaped."""
    body = [
        f"<h1>{escape(contract.name)} {escape(contract.version)}</h1>",
        f'<p class="facts">{_facts(contract)}</p>',
        *_description(contract),
        "<h2>Columns</h2>",
        _table(("column", "type", "unit", "what it is", "personal", "examples"), map(_column_row, contract.columns)),
        "<h2>Rules</h2>",
        "<p>A row that breaks an error is set aside, and a request with it refused; a warning is reported. At most "
        f"{100 * contract.quarantine_limit:g}% of the rows may be set aside before a run stops.</p>",
        _table(("where", "rule", "severity", "tolerated"), map(_rule_row, contract.rules())),
        *_definitions(contract),
        *_references(contract),
        *_more(contract),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(contract.name)} {escape(contract.version)}: data contract</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def describe_type(column: Column) -> str:
    """The column's type in words: that of its values, and whether there is always one."""
    kind = f"array of {column.items.arrow_type}" if column.items is not None else column.arrow_type
    marks = ["required" if column.is_required else "optional"]
    if column.primary_key:
        marks.append("key")
    return f"{kind}, {', '.join(marks)}"


def format_tolerance(rule: Rule) -> str:
    """The share of rows that may break the rule, in words."""
    return "" if rule.tolerance is None else f"{100 * rule.tolerance:.4g}% of the rows"


def _facts(contract: Contract) -> str:
    granularity = contract.table.data_granularity_description
    parts = [contract.status, f"id {contract.id}", f"table {contract.table.name}", contract.domain, granularity]
    return escape(" · ".join(part for part in parts if part))


def _description(contract: Contract) -> Iterable[str]:
    for name, words in contract.description.items():
        if isinstance(words, str):
            yield f"<p><strong>{escape(name.capitalize())}.</strong> {escape(words)}</p>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _column_row(column: Column) -> Sequence[str]:
    words = " ".join(part for part in (column.business_name, column.description) if part)
    examples = ", ".join(str(example) for example in column.examples)
    return (
        f"<code>{escape(column.name)}</code>",
        escape(describe_type(column)),
        escape(column.unit or ""),
        escape(words),
        escape(column.personal or column.classification or ""),
        escape(examples),
    )


def _rule_row(rule: Rule) -> Sequence[str]:
    where = f"<code>{escape(rule.target)}</code>" if rule.target else "table"
    severity = f'<span class="{rule.severity}">{rule.severity}</span>'
    return where, escape(rule.sentence), severity, escape(format_tolerance(rule))


def _definitions(contract: Contract) -> Iterable[str]:
    """Where the definition comes from, of the contract, its table and its columns."""
    parts = [("contract", contract), ("table", contract.table), *((one.name, one) for one in contract.columns)]
    rows = [
        (escape(name), escape(str(entry.get("type", ""))), _link(entry), escape(str(entry.get("description", ""))))
        for name, part in parts
        for entry in part.authoritative_definitions
    ]
    if rows:
        yield "<h2>Where the definitions come from</h2>"
        yield _table(("of", "type", "source", "what it is"), rows)


def _link(entry: dict[str, Any]) -> str:
    """A link, where the address is one of the web: another scheme could run a script."""
    address = str(entry.get("url", ""))
    if address.startswith(("https://", "http://")):
        return f'<a href="{escape(address)}" rel="noreferrer">{escape(address)}</a>'
    return escape(address)


def _references(contract: Contract) -> Iterable[str]:
    for name, reference in contract.references.items():
        yield f"<h2>Reference {escape(name)}</h2>"
        for column, stated in reference.columns.items():
            cells = stated.values if stated.values is not None else _between(stated.edges or ())
            shares = zip((*cells, "other", "null"), stated.all_shares, strict=True)
            rows = [(escape(str(cell)), f"{100 * share:.3g}%") for cell, share in shares]
            yield f"<p><code>{escape(column)}</code></p>"
            yield _table(("value", "share"), rows)


def _between(edges: tuple[float, ...]) -> tuple[str, ...]:
    inner = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)]
    return (f"below {edges[0]:g}", *inner, f"{edges[-1]:g} or more")


def _more(contract: Contract) -> Iterable[str]:
    """What the standard knows and Bloomery only keeps."""
    names = {"sla_properties", "team", "roles", "support", "servers", "price", "tags", "custom_properties"}
    kept = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=names)
    if kept:
        yield "<h2>More</h2>"
        yield f"<pre>{escape(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))}</pre>"
