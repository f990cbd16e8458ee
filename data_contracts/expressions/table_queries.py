"""Queries over the table: each gives one number that is compared with a limit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.expressions.sql import parse_sql

TABLE_PLACEHOLDER = "{object}"  # stands for the table in a query
_TABLE = "the_object"  # stands for the table while a query is parsed


def normalize_placeholder(query: str) -> str:
    """`query` with the table written as `{object}`."""
    return re.sub(r"\$?\{object\}", TABLE_PLACEHOLDER, query).strip()


def replace_table(query: str, names: Sequence[str]) -> str:
    """`query` with the table written as `{object}` where it says `{table}`, or one of `names` and no placeholder.

    A query that cannot be parsed is returned as it is.

    Raises:
        ValueError: the query names the table, so it is in the dialect of its source, and calls an unknown function.
    """
    from sqlglot import exp

    if TABLE_PLACEHOLDER not in query:
        query = re.sub(r"\$?\{table\}", TABLE_PLACEHOLDER, query)
    if TABLE_PLACEHOLDER in query:
        return query
    try:
        tree = parse_sql(query)
    except ValueError:
        return query
    known_names = {name.lower() for name in names}
    tables = [table for table in tree.find_all(exp.Table) if table.name.lower() in known_names and not table.db]
    if not tables:
        return query
    functions = sorted({function.name.upper() for function in tree.find_all(exp.Anonymous)})
    if functions:
        raise ValueError(f"the query calls {', '.join(functions)}, which DuckDB may not know")
    for table in tables:
        table.set("this", exp.to_identifier(_TABLE))
    for column in tree.find_all(exp.Column):
        if column.table.lower() in known_names:
            column.set("table", exp.to_identifier(_TABLE))
    return str(tree.sql(dialect="duckdb")).replace(_TABLE, TABLE_PLACEHOLDER)


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
    tree = parse_sql(query.replace(TABLE_PLACEHOLDER, _TABLE))
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or isinstance(tree.expressions[0], exp.Star):
        raise ValueError("a query must be one SELECT of one number, such as SELECT count(*) FROM {object} WHERE …")
    cte_names = {str(cte.alias_or_name).lower() for cte in tree.find_all(exp.CTE)}
    for source in tree.find_all(exp.Table):
        if not isinstance(source.this, exp.Identifier) or source.db:
            raise ValueError(f"the query reads {source.sql()}; it can only read {TABLE_PLACEHOLDER}")
        if source.name.lower() not in {_TABLE, *cte_names}:
            raise ValueError(f"the query reads {source.name}; it can only read {TABLE_PLACEHOLDER}")
    aliases = _aliases(tree)
    known_names = {name.lower() for name in columns} | aliases
    for column in tree.find_all(exp.Column):
        if not isinstance(column.this, exp.Star) and column.name.lower() not in known_names:
            raise ValueError(f"the query reads {column.name}, which is not a column; there are {', '.join(columns)}")
        matches = [name for name in columns if name.lower() == column.name.lower()]
        if len(matches) > 1 and (column.name not in matches or column.name.lower() in aliases):
            raise ValueError(f"the query reads {column.name}, which in DuckDB may be {' or '.join(matches)}")


def query_names(columns: Sequence[str]) -> dict[str, str]:
    """By column, the name under which a query finds it in DuckDB, which does not distinguish names by case.

    Columns that differ from others in case alone have another name there, which `adapt_names` writes into queries.
    """
    counts = Counter(name.lower() for name in columns)
    used_names = set(counts)
    names: dict[str, str] = {}
    for position, column in enumerate(columns):
        name = column
        if counts[column.lower()] > 1:
            name = f"{column} ({position})"
            while name.lower() in used_names:
                name = f"{name}'"
            used_names.add(name.lower())
        names[column] = name
    return names


def adapt_names(query: str, columns: Sequence[str]) -> str:
    """`query` with the columns under their `query_names`."""
    from sqlglot import exp

    renamed = {column: name for column, name in query_names(columns).items() if column != name}
    if not renamed:
        return query
    tree = parse_sql(query.replace(TABLE_PLACEHOLDER, _TABLE))
    for node in tree.find_all(exp.Column):
        if node.name in renamed:
            node.set("this", exp.to_identifier(renamed[node.name], quoted=True))
    return str(tree.sql(dialect="duckdb")).replace(_TABLE, TABLE_PLACEHOLDER)


def _aliases(tree: Any) -> set[str]:
    from sqlglot import exp

    aliases = {str(node.alias).lower() for node in tree.find_all(exp.Alias, exp.TableAlias, exp.Subquery, exp.CTE)}
    table_aliases = tree.find_all(exp.TableAlias)
    columns = {str(name.name).lower() for node in table_aliases for name in node.args.get("columns") or ()}
    return aliases | columns
