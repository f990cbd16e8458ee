"""The changes between two versions of a contract, and the version number that they require.

A change is breaking if a row, a request or a data set may keep the old contract and break the new one, or if readers
lose what they rely on: a column, its type or unit, that it is never null, or that it is unique. Other changes of rules
are compatible: readers may see new values. A note is a change of descriptive keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_type, value_range
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule

ChangeKind = Literal["breaking", "compatible", "note"]


class Change(Document):
    """One change. `where` is a column, or "" for the table or the contract."""

    kind: ChangeKind
    where: str
    sentence: str


def diff_contracts(old: Contract, new: Contract) -> list[Change]:
    """The changes from `old` to `new`: tables, columns in the old order, new columns, rules and descriptive keys.

    Where a contract has several tables, a column is named TABLE.COLUMN.
    """
    old_names, new_names = ([table.name for table in contract.schema_] for contract in (old, new))
    if len(old_names) == len(new_names) == 1:
        return _table_changes(old, new, with_contract=True)
    changes = [
        Change(kind="breaking", where=name, sentence="the table was removed")
        for name in old_names
        if name not in new_names
    ]
    for name in new_names:
        if name not in old_names:
            changes.append(Change(kind="compatible", where=name, sentence="the table is new"))
            continue
        for change in _table_changes(old.select_table(name), new.select_table(name), with_contract=False):
            where = f"{name}.{change.where}" if change.where else name
            changes.append(change.model_copy(update={"where": where}))
    before, after = (_contract_keys(contract) for contract in (old, new))
    names = [key for key in dict.fromkeys((*before, *after)) if before.get(key) != after.get(key)]
    return [*changes, *(Change(kind="note", where="", sentence=f"{name} changed") for name in names)]


def _table_changes(old: Contract, new: Contract, *, with_contract: bool) -> list[Change]:
    """The changes of two contracts of one table, also of the contracts' own keys if `with_contract`."""
    changes = [*_columns(old, new), *_rules(old, new), *_limits(old, new)]
    changed = {change.where.removesuffix("[]") for change in changes}
    return [*changes, *_descriptive_changes(old, new, changed, with_contract=with_contract)]


def _contract_keys(contract: Contract) -> dict[str, object]:
    """The keys of a contract outside of its tables, without version and references."""
    document = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {key: value for key, value in document.items() if key not in ("version", "references", "schema")}


def required_version(old: Contract, changes: Sequence[Change]) -> str | None:
    """The lowest version number that a contract with these changes may have; None if the old one is not x.y.z."""
    numbers = _numbers(old.version)
    if numbers is None:
        return None
    major, minor, patch = numbers
    kinds = {change.kind for change in changes}
    if "breaking" in kinds:
        return f"{major + 1}.0.0"
    if "compatible" in kinds:
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}" if kinds else old.version


def is_high_enough(old: Contract, new: Contract, changes: Sequence[Change]) -> bool:
    """Whether the version of `new` allows the changes. Versions that are not x.y.z must only differ."""
    needed = required_version(old, changes)
    if needed is None or _numbers(new.version) is None:
        return not changes or new.version != old.version
    return is_at_least(new.version, needed)


def is_at_least(version: str, needed: str) -> bool:
    """Whether `version` is `needed` or later. Both are x.y.z."""
    return (_numbers(version) or (0, 0, 0)) >= (_numbers(needed) or (0, 0, 0))


def _numbers(version: str) -> tuple[int, int, int] | None:
    match = re.fullmatch(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    return None if match is None else (int(match[1]), int(match[2] or 0), int(match[3] or 0))


def _columns(old: Contract, new: Contract) -> Iterator[Change]:
    old_names, new_names = ([column.name for column in contract.table.properties] for contract in (old, new))
    for name in old_names:
        before, after = old.column(name), new.column(name)
        if name not in new_names:
            yield Change(kind="breaking", where=name, sentence="the column was removed")
        elif before is not None and after is not None:
            yield from _types(before, after)
            yield from _meanings(before, after)
        elif before is not None or after is not None:
            change = "can be read now" if after is not None else "cannot be read any more"
            yield Change(kind="breaking", where=name, sentence=f"the type changed: values {change}")
    for name in new_names:
        if name not in old_names:
            added = new.column(name)
            is_required = added is not None and added.is_required
            kind: ChangeKind = "breaking" if is_required else "compatible"
            need = "required" if is_required else "optional"
            yield Change(kind=kind, where=name, sentence=f"the column is new and {need}")
    common = [column.name for column in new.columns if old.column(column.name) is not None]
    if common != [column.name for column in old.columns if new.column(column.name) is not None]:
        yield Change(kind="note", where="", sentence=f"the order of the columns changed: {', '.join(common)}")


def _types(before: Column, after: Column) -> Iterator[Change]:
    old_type, new_type = arrow_type(before), arrow_type(after)
    if before.logical_type == after.logical_type and old_type != new_type and _holds(new_type, old_type):
        yield Change(kind="compatible", where=after.name, sentence=f"the type is wider: {old_type} became {new_type}")
    elif (before.logical_type, old_type) != (after.logical_type, new_type):
        yield Change(kind="breaking", where=after.name, sentence=f"the type changed: {old_type} became {new_type}")


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Whether `wide` holds every value of `narrow`, where both are integers or both are floating-point."""
    if pa.types.is_list(wide) and pa.types.is_list(narrow):
        return _holds(wide.value_type, narrow.value_type)
    families = (pa.types.is_integer, pa.types.is_floating)
    if not any(is_of(wide) and is_of(narrow) for is_of in families):
        return wide == narrow
    return value_range(wide)[0] <= value_range(narrow)[0] and value_range(narrow)[1] <= value_range(wide)[1]


def _meanings(before: Column, after: Column) -> Iterator[Change]:
    if before.unit != after.unit:
        yield Change(kind="breaking", where=after.name, sentence=f"the unit changed: {before.unit} became {after.unit}")
    old_format, new_format = (column.date_format for column in (before, after))
    if old_format != new_format:
        sentence = f"the format changed: {old_format or 'ISO 8601'} became {new_format or 'ISO 8601'}"
        # Every format also takes ISO 8601.
        kind_of_format: ChangeKind = "compatible" if old_format is None else "breaking"
        yield Change(kind=kind_of_format, where=after.name, sentence=sentence)
    if before.personal != after.personal:
        is_lost = after.personal is not None
        sentence = f"the treatment of personal values changed: {before.personal} became {after.personal}"
        yield Change(kind="breaking" if is_lost else "note", where=after.name, sentence=sentence)
    if before.unknown_category != after.unknown_category:
        sentence = f"an unknown category was {_treatment(before)} and is {_treatment(after)}"
        kind: ChangeKind = "breaking" if after.unknown_category == "refuse" else "compatible"
        yield Change(kind=kind, where=after.name, sentence=sentence)


def _treatment(column: Column) -> str:
    return {"refuse": "refused", "other": "counted as other"}[column.unknown_category]


def _key(rule: Rule) -> tuple[object, ...]:
    """The identity of a rule across versions, which does not include its limits."""
    own = (rule.expression, rule.reference, rule.divergence)
    return rule.target, rule.kind, rule.columns if rule.kind in ("unique", "determined") else (), own


def _rules(old: Contract, new: Contract) -> Iterator[Change]:
    common = {column.name for column in old.columns} & {column.name for column in new.columns}
    before = [rule for rule in old.rules() if not rule.target or rule.column in common]
    after = [rule for rule in new.rules() if not rule.target or rule.column in common]
    unchanged = set(before) & set(after)
    before = [rule for rule in before if rule not in unchanged]
    after = [rule for rule in after if rule not in unchanged]
    for rule in before:
        match = next((candidate for candidate in after if _key(candidate) == _key(rule)), None)
        if match is None:
            yield _removed(rule)
        else:
            after.remove(match)
            yield _changed(rule, match)
    for rule in after:
        kind: ChangeKind = "breaking" if rule.severity == "error" else "compatible"
        yield Change(kind=kind, where=rule.target, sentence=f"a new {rule.severity}: {rule.sentence}")


def _removed(rule: Rule) -> Change:
    """Readers may rely on values that are never null and on unique keys."""
    is_relied_on = rule.severity == "error" and rule.kind in ("required", "unique")
    kind: ChangeKind = "breaking" if is_relied_on else "compatible"
    return Change(kind=kind, where=rule.target, sentence=f"no longer required: {rule.sentence}")


def _changed(before: Rule, after: Rule) -> Change:
    parts = []
    if before.sentence != after.sentence:
        parts.append(f"{before.sentence}, and now {after.sentence}")
    if before.severity != after.severity:
        parts.append(f"{after.sentence}: {before.severity} became {after.severity}")
    if before.tolerance != after.tolerance:
        parts.append(f"{after.sentence}: tolerated {_share(before)}, and now {_share(after)}")
    is_relied_on = before.kind in ("required", "unique") and before.severity == "error" and after.severity == "warning"
    is_wider = not is_relied_on and (
        after.severity == "warning" or (_allows(after, before) and _tolerates(after, before))
    )
    return Change(kind="compatible" if is_wider else "breaking", where=after.target, sentence="; ".join(parts))


def _share(rule: Rule) -> str:
    return (
        "only as many rows as quarantineLimit allows" if rule.tolerance is None else f"{rule.tolerance:.4g} of the rows"
    )


def _tolerates(after: Rule, before: Rule) -> bool:
    """Whether the share that may break `after` is at least that of `before`."""
    if before.severity == "warning":
        return False
    if before.tolerance is None or after.tolerance is None:
        return before.tolerance == after.tolerance
    return after.tolerance >= before.tolerance


def _allows(after: Rule, before: Rule) -> bool:
    """Whether every value that satisfies `before` satisfies `after`."""
    if before.kind in ("in_set", "pattern"):
        return before.pattern == after.pattern and all(value in after.values for value in before.values)
    low = after.low is None or (
        before.low is not None
        and (before.low > after.low or (before.low == after.low and before.strict_low >= after.strict_low))
    )
    high = after.high is None or (
        before.high is not None
        and (before.high < after.high or (before.high == after.high and before.strict_high >= after.strict_high))
    )
    return low and high


def _limits(old: Contract, new: Contract) -> Iterator[Change]:
    before, after = old.quarantine_limit, new.quarantine_limit
    if before != after:
        kind: ChangeKind = "breaking" if after < before else "compatible"
        yield Change(kind=kind, where="", sentence=f"quarantineLimit {before:g} became {after:g}")
    for name in sorted(old.references.keys() & new.references.keys()):
        if old.references[name] != new.references[name]:
            yield Change(kind="breaking", where="", sentence=f"the distribution of reference {name} changed")


# Keys whose change is implied by a change that is listed already.
_COMPARED = frozenset(
    {
        "items",
        "logicalType",
        "logicalTypeOptions",
        "physicalType",
        "primaryKey",
        "primaryKeyPosition",
        "quality",
        "required",
        "unique",
        "customProperties",
        "schema.quality",
        "schema.customProperties",
        "slaProperties",
    }
)


def _descriptive_changes(old: Contract, new: Contract, changed: set[str], *, with_contract: bool) -> Iterator[Change]:
    """Changes of descriptive keys. `changed` are the columns with a change that is listed already."""
    before, after = _keys(old), _keys(new)
    names = [{"", *(column.name for column in contract.table.properties)} for contract in (old, new)]
    common = names[0] & names[1]
    for where, name in dict.fromkeys((*before, *after)):
        is_listed = name in _COMPARED and (where in changed or (name == "slaProperties" and bool(changed)))
        is_of_contract = not where and not name.startswith("schema.")
        if where not in common or is_listed or (is_of_contract and not with_contract):
            continue
        if before.get((where, name)) != after.get((where, name)):
            yield Change(kind="note", where=where, sentence=f"{name} changed")


def _keys(contract: Contract) -> dict[tuple[str, str], object]:
    """The keys of a contract without version and references, by column and key."""
    table = contract.table.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    columns = table.pop("properties", [])
    keys: dict[tuple[str, str], object] = {("", key): value for key, value in _contract_keys(contract).items()}
    keys.update({("", f"schema.{key}"): value for key, value in table.items()})
    keys.update({(column["name"], key): value for column in columns for key, value in column.items() if key != "name"})
    return keys
