"""Queries over the table: each gives one number that is compared with a limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.expressions.sql import parse_sql

TABLE_PLACEHOLDER = "{object}"  # stands for the table in a query


def normalize_placeholder(query: str) -> str:
    """`query` with the table written as `{object}`."""
    return re.sub(r"\$?\{object\}", TABLE_PLACEHOLDER, query).strip()


def require_scalar_query(query: str, columns: Sequence[str]) -> None:
    """Raises ValueError unless `query` is one SELECT of one number that reads only `columns` of `{object}`."""
    from sqlglot import exp

    unknown = re.search(r"\$?\{\w*\}", query.replace(TABLE_PLACEHOLDER, ""))
    if unknown is not None:
        raise ValueError(
            f"{unknown[0]} is not a known placeholder; {TABLE_PLACEHOLDER} is the table, {{property}} the column"
        )
    if TABLE_PLACEHOLDER not in query:
        raise ValueError(f"the query does not read the table {TABLE_PLACEHOLDER}")
    table = "the_object"
    tree = parse_sql(query.replace(TABLE_PLACEHOLDER, table))
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or isinstance(tree.expressions[0], exp.Star):
        raise ValueError("a query must be one SELECT of one number, such as SELECT count(*) FROM {object} WHERE …")
    cte_names = {str(cte.alias_or_name).lower() for cte in tree.find_all(exp.CTE)}
    for source in tree.find_all(exp.Table):
        if not isinstance(source.this, exp.Identifier) or source.db:
            raise ValueError(f"the query reads {source.sql()}; it can only read {TABLE_PLACEHOLDER}")
        if source.name.lower() not in {table, *cte_names}:
            raise ValueError(f"the query reads {source.name}; it can only read {TABLE_PLACEHOLDER}")
    known_names = {name.lower() for name in columns} | _aliases(tree)
    for column in tree.find_all(exp.Column):
        if not isinstance(column.this, exp.Star) and column.name.lower() not in known_names:
            raise ValueError(f"the query reads {column.name}, which is not a column; there are {', '.join(columns)}")
        matches = [name for name in columns if name.lower() == column.name.lower()]
        if len(matches) > 1:
            raise ValueError(f"the query reads {column.name}, which in DuckDB may be {' or '.join(matches)}")


def _aliases(tree: Any) -> set[str]:
    from sqlglot import exp

    aliases = {str(node.alias).lower() for node in tree.find_all(exp.Alias, exp.TableAlias, exp.Subquery, exp.CTE)}
    table_aliases = tree.find_all(exp.TableAlias)
    columns = {str(name.name).lower() for node in table_aliases for name in node.args.get("columns") or ()}
    return aliases | columns
