"""validate: which rows keep the contract, and which go to quarantine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.errors import ContractBroken, DataUnfit
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema, require_columns
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import RawRows, ValidRows
from bloomery.data_contracts.validation.data_docs import render_data_docs
from bloomery.data_contracts.validation.expectation_suite import (
    RuleCount,
    build_suite_result,
    describe_rule,
    rule_successes,
)
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.infrastructure.personal_data import protect_batch, protected_schema
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import prefect_artifacts
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.validate.row_filter import (
    FilterResult,
    QuarantineWriter,
    TableViolation,
    drop_rows,
    filter_rows,
    quarantine_rows,
)
from bloomery.tasks.validate.row_mask import RowMask
from bloomery.tasks.validate.table_checks import TableCheck, check_table_rules, latest_moment


def _is_fresh(record: ValidRows) -> bool:
    """A contract that asks for fresh data is asked again once it would be broken: time passes while the data stays."""
    return record.fresh_until is None or datetime.now(UTC) <= record.fresh_until


@stage(is_whole=_is_fresh, present=prefect_artifacts.publish_contract_report)
def validate(out: Output, rows: RawRows, contract: Contract) -> ValidRows:
    """Afterwards `rows.parquet` holds the rows that keep the contract, in its types, and `quarantine.parquet` the rest.

    Columns about people are dropped, hashed or encrypted there; the quarantine has them encrypted.
    `report.html` is Great Expectations' page about every rule. The rules about one row come first; those about the
    table are asked of the rows that keep them.

    Raises:
        ContractBroken: a column is missing or of another type, a rule about the table is broken, or more rows break the
            contract than it tolerates. The breaking rows then lie in the state folder's `quarantine`.
        DataUnfit: there are no rows.
    """
    where = f"{rows.source}, against contract {contract.name} {contract.version}"
    source = settings().path(rows.uri)
    schema = pq.read_schema(source)
    require_columns(_as_the_contract_reads(schema, contract) if rows.is_text else schema, contract, where)
    if rows.num_rows == 0:
        raise DataUnfit("the data has no rows", required="at least one row", where=where, remedy="check the source")
    passed, aside = out.path("rows.parquet"), out.path("quarantine.parquet")
    with QuarantineWriter(aside, schema, contract.personal_columns, row_group_size_of(source)) as quarantine:
        sifted = filter_rows(source, contract, passed, quarantine)
        table = list(check_table_rules(passed, contract, where))
        table, num_more = _set_aside(source, passed, contract, sifted, table, quarantine)
    counts = _in_contract_order(contract, rows, sifted, table)
    result = build_suite_result(contract.name, rows.source, rows.num_rows, counts)
    out.path("report.html").write_text(render_data_docs(result), encoding="utf-8")
    num_passed = _passed(passed, aside, rows)
    failed = [count for count, is_kept in zip(counts, rule_successes(result), strict=True) if not is_kept]
    num_breaking = sifted.num_untolerated + num_more + rows.num_malformed
    _require_unbroken(contract, failed, num_breaking, rows, out, where)
    fresh_until = _fresh_until(passed, contract)
    digest_of_rows = _without_persons(passed, contract)
    return ValidRows(
        uri=out.uri("rows.parquet"),
        quarantine_uri=out.uri("quarantine.parquet"),
        report_uri=out.uri("report.html"),
        num_rows=num_passed,
        num_quarantined=quarantine.num_rows + rows.num_malformed,
        violations=tuple((describe_rule(count.rule), count.num_violations) for count in counts),
        fresh_until=fresh_until,
        contract=contract,
        raw_rows=rows,
        # The contract is part of it: the endpoint enforces it, so another contract makes another bento.
        digest=digest_of_document(
            [digest_of_rows, contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)]
        ),
    )


def _as_the_contract_reads(schema: pa.Schema, contract: Contract) -> pa.Schema:
    """The columns of a source without types as the contract reads them. No text is read as an array."""
    wanted = arrow_schema(contract)
    return pa.schema(
        [
            wanted.field(field.name)
            if field.name in wanted.names and not pa.types.is_nested(wanted.field(field.name).type)
            else field
            for field in schema
        ]
    )


def _without_persons(passed: Path, contract: Contract) -> str:
    """Afterwards columns about people are in `passed` as the contract says they are kept; returns the rows' digest."""
    if not contract.personal_columns:
        return digest_of_file(passed)
    beside = passed.with_suffix(".kept")
    encrypted = [column.name for column in contract.columns if column.personal == "encrypt"]
    with RowWriter(beside, protected_schema(contract), row_group_size_of(passed), encrypted) as writer:
        for batch in read_batches(passed):
            writer.write(protect_batch(batch, contract))
    digest = writer.digest()
    beside.replace(passed)
    return digest


def _set_aside(
    source: Path,
    passed: Path,
    contract: Contract,
    sifted: FilterResult,
    table: list[TableCheck],
    quarantine: QuarantineWriter,
) -> tuple[list[TableCheck], int]:
    """Take the rows that break a rule about the table out of `passed`.

    Returns:
        The counts with examples, and how many rows break a rule that has no tolerance of its own.
    """
    broken = [found for found in table if found.rows is not None and found.result.num_violations]
    if not broken:
        return table, 0
    marked = [TableViolation(found.result.rule, found.rows) for found in broken if found.rows is not None]
    examples = quarantine_rows(source, contract, sifted.set_aside, marked, quarantine)
    shown = {found.result.rule: some for found, some in zip(broken, examples, strict=True)}
    table = [found._replace(result=found.result._replace(examples=shown.get(found.result.rule, ()))) for found in table]
    serious = [rows for rule, rows in marked if rule.severity == "error"]
    untolerated = [rows for rule, rows in marked if rule.severity == "error" and rule.tolerance is None]
    num_rows = pq.read_metadata(passed).num_rows
    if serious:
        drop_rows(passed, _any(serious, num_rows))
    return table, _any(untolerated, num_rows).num


def _any(marks: Sequence[RowMask], num_rows: int) -> RowMask:
    whole = RowMask(num_rows)
    for one in marks:
        whole.merge(one)
    return whole


def _in_contract_order(
    contract: Contract, rows: RawRows, sifted: FilterResult, table: list[TableCheck]
) -> list[RuleCount]:
    counted = {count.rule: count for count in (*sifted.counts, *(found.result for found in table))}
    for rule in contract.rules():
        if rule.kind == "num_rows":
            counted[rule] = RuleCount(rule, int(not rule.allows(rows.num_rows)), 1, (), str(rows.num_rows))
    stated = [counted.pop(rule) for rule in dict.fromkeys(contract.rules())]
    return [*stated, *counted.values()]


def _passed(passed: Path, quarantine: Path, rows: RawRows) -> int:
    """The number of rows that passed. What came in has passed or lies in quarantine, by the files themselves."""
    num_passed, num_quarantined = (pq.read_metadata(path).num_rows for path in (passed, quarantine))
    if num_passed + num_quarantined != rows.num_rows:
        raise RuntimeError(f"{num_passed} rows passed and {num_quarantined} quarantined came out of {rows.num_rows}")
    return num_passed


def _require_unbroken(
    contract: Contract, failed: list[RuleCount], num_breaking: int, rows: RawRows, out: Output, where: str
) -> None:
    """A rule about the table must hold, a tolerance must not be passed, nor the contract's limit for all other rows."""
    errors = [count for count in failed if count.rule.severity == "error"]
    found = [
        f"{count.rule.target or 'the table'}: found {count.observed}, {count.rule.sentence}"
        for count in errors
        if count.observed is not None
    ]
    beyond = [count for count in errors if count.observed is None and count.rule.tolerance is not None]
    found += [
        f"{_share(count.num_violations, count.num_checked, 'values')} break {describe_rule(count.rule)}"
        for count in beyond
    ]
    num_rows = rows.num_rows + rows.num_malformed
    is_beyond_limit = num_breaking / num_rows > contract.quarantine_limit
    if is_beyond_limit:
        found.append(f"{_share(num_breaking, num_rows, 'rows')} break the contract")
    if not found:
        return
    if beyond or is_beyond_limit:
        if rows.num_malformed:
            found.append(f"  {rows.num_malformed} x a line that is no row")
        for count in sorted((one for one in errors if one.examples), key=lambda one: -one.num_violations)[:5]:
            first = count.examples[0]
            found.append(
                f"  {count.num_violations} x {describe_rule(count.rule)} (row {first.row}: found {first.value})"
            )
    place = settings().home / "quarantine" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', contract.name)}-{out.key[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("quarantine.parquet", "report.html"):
        out.path(name).rename(place / name)
    raise ContractBroken(
        "\n".join(found),
        required=f"every rule of the contract, with at most {contract.quarantine_limit:.1%} of the rows set aside",
        where=f"{where}; the breaking rows and the report are in {place}",
        remedy="mend the data at its source; or, if the rows are right, release a new version of the contract",
    )


def _share(num: int, num_all: int, what: str) -> str:
    return f"{num} of {num_all} {what} ({num / max(num_all, 1):.1%})"


def _fresh_until(passed: Path, contract: Contract) -> datetime | None:
    """When the first of the limits of age is passed. The rules hold, so that each column has a newest moment."""
    limits = [(rule.target, rule.high or 0) for rule in contract.rules() if rule.kind == "fresh"]
    moments = [(latest_moment(passed, column), timedelta(seconds=age_s)) for column, age_s in limits]
    return min((moment + age for moment, age in moments if moment is not None), default=None)
