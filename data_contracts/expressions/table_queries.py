"""Queries over the whole table: each gives one number that is compared with a limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.expressions.parser import parse_sql

TABLE_PLACEHOLDER = "{object}"  # stands for the table in a query


def normalize_placeholder(query: str) -> str:
    """`query` with the table written as `{object}`."""
    return re.sub(r"\$?\{object\}", TABLE_PLACEHOLDER, query).strip()


def require_scalar_query(query: str, columns: Sequence[str]) -> None:
    """That `query` is one SELECT of one number, and reads nothing but `columns` of the table `{object}`.

    Raises:
        ValueError: it is not.
    """
    from sqlglot import exp

    left = re.search(r"\$?\{\w*\}", query.replace(TABLE_PLACEHOLDER, ""))
    if left is not None:
        raise ValueError(
            f"{left[0]} stands for nothing here; {TABLE_PLACEHOLDER} is the table, {{property}} the column"
        )
    if TABLE_PLACEHOLDER not in query:
        raise ValueError(f"the query does not read {TABLE_PLACEHOLDER}, the table")
    table = "the_object"
    tree = parse_sql(query.replace(TABLE_PLACEHOLDER, table))
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or isinstance(tree.expressions[0], exp.Star):
        raise ValueError("a query is one SELECT of one number, such as SELECT count(*) FROM {object} WHERE …")
    named = {str(one.alias_or_name).lower() for one in tree.find_all(exp.CTE)}
    for source in tree.find_all(exp.Table):
        if not isinstance(source.this, exp.Identifier) or source.db:
            raise ValueError(f"the query reads {source.sql()}; it can read {TABLE_PLACEHOLDER} alone")
        if source.name.lower() not in {table, *named}:
            raise ValueError(f"the query reads {source.name}; it can read {TABLE_PLACEHOLDER} alone")
    known = {name.lower() for name in columns} | _aliases(tree)
    for column in tree.find_all(exp.Column):
        if not isinstance(column.this, exp.Star) and column.name.lower() not in known:
            raise ValueError(f"the query reads {column.name}, which is no column; there are {', '.join(columns)}")
        alike = [name for name in columns if name.lower() == column.name.lower()]
        if len(alike) > 1:
            raise ValueError(f"the query reads {column.name}, and DuckDB takes {' and '.join(alike)} for one name")


def _aliases(tree: Any) -> set[str]:
    from sqlglot import exp

    named = {str(one.alias).lower() for one in tree.find_all(exp.Alias, exp.TableAlias, exp.Subquery, exp.CTE)}
    inner = {str(name.name).lower() for one in tree.find_all(exp.TableAlias) for name in one.args.get("columns") or ()}
    return named | inner
