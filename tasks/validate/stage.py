"""validate: checks rows against the contract; those that break it go to quarantine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.errors import ContractBroken, DataUnfit
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import RawRows, ValidRows
from bloomery.data_contracts.validation.data_docs import render_data_docs
from bloomery.data_contracts.validation.expectation_suite import (
    RuleCount,
    build_suite_result,
    describe_rule,
    rule_successes,
)
from bloomery.data_contracts.validation.row_checks import require_columns
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.infrastructure.personal_data import protect_batch, protected_schema
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import prefect_artifacts
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.validate.quarantine import QuarantineWriter
from bloomery.tasks.validate.row_filter import FilterResult, TableViolation, drop_rows, filter_rows, quarantine_rows
from bloomery.tasks.validate.row_mask import RowMask
from bloomery.tasks.validate.table_checks import TableCheck, check_table_rules, latest_moment


def _is_fresh(record: ValidRows) -> bool:
    """Whether the contract's limits of age still hold: a stored result expires while the data stays the same."""
    return record.fresh_until is None or datetime.now(UTC) <= record.fresh_until


@stage(is_complete=_is_fresh, publish=prefect_artifacts.publish_contract_report)
def validate(out: Output, rows: RawRows, contract: Contract) -> ValidRows:
    """Writes the rows that keep the contract to `rows.parquet`, in its types, and the others to `quarantine.parquet`.

    Personal columns are dropped, hashed or encrypted in the first, and encrypted in the second. `report.html` is Great
    Expectations' page about every rule. Rules about one row are checked first; the rows that pass them are then checked
    against the rules about the table.

    Raises:
        ContractBroken: a column is missing or of another type, a rule about the table is broken, or more rows break the
            contract than it tolerates. The state folder's `quarantine` then holds the rows that break it.
        DataUnfit: there are no rows.
    """
    where = f"{rows.source}, against contract {contract.name} {contract.version}"
    source = settings().path(rows.uri)
    schema = pq.read_schema(source)
    require_columns(_schema_after_casting(schema, contract) if rows.is_text else schema, contract, where)
    if rows.num_rows == 0:
        raise DataUnfit("the data has no rows", required="at least one row", where=where, remedy="check the source")
    valid_path, quarantine_path = out.path("rows.parquet"), out.path("quarantine.parquet")
    with QuarantineWriter(quarantine_path, schema, contract.personal_columns, row_group_size_of(source)) as quarantine:
        filter_result = filter_rows(source, contract, valid_path, quarantine)
        table_checks = list(check_table_rules(valid_path, contract, where))
        table_checks, num_table_violations = _quarantine_table_violations(
            source, valid_path, contract, filter_result, table_checks, quarantine
        )
    counts = _order_counts(contract, rows, filter_result, table_checks)
    result = build_suite_result(contract.name, rows.source, rows.num_rows, counts)
    report = render_data_docs(result, [str(item) for item in contract.unchecked])
    out.path("report.html").write_text(report, encoding="utf-8")
    num_passed = _count_passed(valid_path, quarantine_path, rows)
    failed_counts = [count for count, has_passed in zip(counts, rule_successes(result), strict=True) if not has_passed]
    num_violating = filter_result.num_untolerated + num_table_violations + rows.num_malformed
    _require_contract_kept(contract, failed_counts, num_violating, rows, out, where)
    fresh_until = _fresh_until(valid_path, contract)
    digest_of_rows = _protect_personal_columns(valid_path, contract)
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
        # Includes the contract, since the endpoint enforces it: another contract makes another bento.
        digest=digest_of_document(
            [digest_of_rows, contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)]
        ),
    )


def _schema_after_casting(schema: pa.Schema, contract: Contract) -> pa.Schema:
    """Returns the schema of a source without types after its text is cast. No text is cast to an array."""
    target = arrow_schema(contract.columns)
    return pa.schema(
        [
            target.field(field.name)
            if field.name in target.names and not pa.types.is_nested(target.field(field.name).type)
            else field
            for field in schema
        ]
    )


def _protect_personal_columns(valid_path: Path, contract: Contract) -> str:
    """Drops, hashes or encrypts personal columns in `valid_path` as the contract says, and returns the rows' digest."""
    if not contract.personal_columns:
        return digest_of_file(valid_path)
    temporary = valid_path.with_suffix(".kept")
    encrypted_columns = [column.name for column in contract.columns if column.personal == "encrypt"]
    with RowWriter(temporary, protected_schema(contract), row_group_size_of(valid_path), encrypted_columns) as writer:
        for batch in read_batches(valid_path):
            writer.write(protect_batch(batch, contract))
    digest = writer.digest()
    temporary.replace(valid_path)
    return digest


def _quarantine_table_violations(
    source: Path,
    valid_path: Path,
    contract: Contract,
    filter_result: FilterResult,
    checks: list[TableCheck],
    quarantine: QuarantineWriter,
) -> tuple[list[TableCheck], int]:
    """Moves the rows that break a rule about the table from `valid_path` to `quarantine`.

    Returns:
        The checks with examples, and how many rows break a rule that has no tolerance of its own.
    """
    violations = [
        TableViolation(check.result.rule, check.rows)
        for check in checks
        if check.rows is not None and check.result.num_violations
    ]
    if not violations:
        return checks, 0
    examples = quarantine_rows(source, contract, filter_result.quarantined, violations, quarantine)
    by_rule = {violation.rule: rule_examples for violation, rule_examples in zip(violations, examples, strict=True)}
    checks = [
        check._replace(result=check.result._replace(examples=by_rule.get(check.result.rule, ()))) for check in checks
    ]
    errors = [violation for violation in violations if violation.rule.severity == "error"]
    untolerated = [violation.rows for violation in errors if violation.rule.tolerance is None]
    num_rows = pq.read_metadata(valid_path).num_rows
    if errors:
        drop_rows(valid_path, _union([violation.rows for violation in errors], num_rows))
    return checks, _union(untolerated, num_rows).num_set


def _union(masks: Sequence[RowMask], num_rows: int) -> RowMask:
    union = RowMask(num_rows)
    for mask in masks:
        union.merge(mask)
    return union


def _order_counts(
    contract: Contract, rows: RawRows, filter_result: FilterResult, checks: list[TableCheck]
) -> list[RuleCount]:
    """Returns the counts of all rules, in the contract's order."""
    counts = {count.rule: count for count in (*filter_result.counts, *(check.result for check in checks))}
    for rule in contract.rules():
        if rule.kind == "num_rows":
            counts[rule] = RuleCount(rule, int(not rule.allows(rows.num_rows)), 1, (), str(rows.num_rows))
    ordered_counts = [counts.pop(rule) for rule in dict.fromkeys(contract.rules())]
    return [*ordered_counts, *counts.values()]


def _count_passed(valid_path: Path, quarantine_path: Path, rows: RawRows) -> int:
    """Returns the number of rows that passed, and checks that the two files together hold all rows."""
    num_passed, num_quarantined = (pq.read_metadata(path).num_rows for path in (valid_path, quarantine_path))
    if num_passed + num_quarantined != rows.num_rows:
        raise RuntimeError(f"{num_passed} rows passed and {num_quarantined} were quarantined, out of {rows.num_rows}")
    return num_passed


def _require_contract_kept(
    contract: Contract, failed_counts: list[RuleCount], num_violating: int, rows: RawRows, out: Output, where: str
) -> None:
    """Raises ContractBroken if a rule about the table is broken, or a tolerance or the quarantine limit is exceeded."""
    errors = [count for count in failed_counts if count.rule.severity == "error"]
    problems = [
        f"{count.rule.target or 'the table'}: found {count.observed}, {count.rule.sentence}"
        for count in errors
        if count.observed is not None
    ]
    intolerable = [count for count in errors if count.observed is None and count.rule.tolerance is not None]
    problems += [
        f"{_format_share(count.num_violations, count.num_checked, 'values')} break {describe_rule(count.rule)}"
        for count in intolerable
    ]
    num_rows = rows.num_rows + rows.num_malformed
    exceeds_limit = num_violating / num_rows > contract.quarantine_limit
    if exceeds_limit:
        problems.append(f"{_format_share(num_violating, num_rows, 'rows')} break the contract")
    if not problems:
        return
    if intolerable or exceeds_limit:
        problems += _describe_most_frequent(errors, rows)
    folder = settings().home / "quarantine" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', contract.name)}-{out.key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("quarantine.parquet", "report.html"):
        out.path(name).rename(folder / name)
    raise ContractBroken(
        "\n".join(problems),
        required=f"every rule of the contract, with at most {contract.quarantine_limit:.1%} of the rows quarantined",
        where=f"{where}; the quarantined rows and the report are in {folder}",
        remedy="correct the data at its source; or, if the rows are right, release a new version of the contract",
    )


def _describe_most_frequent(errors: list[RuleCount], rows: RawRows) -> list[str]:
    """Returns lines about malformed lines and the five rules that most rows break, each with its first example."""
    lines = [f"  {rows.num_malformed} x a malformed line"] if rows.num_malformed else []
    for count in sorted((count for count in errors if count.examples), key=lambda count: -count.num_violations)[:5]:
        first = count.examples[0]
        lines.append(f"  {count.num_violations} x {describe_rule(count.rule)} (row {first.row}: found {first.value})")
    return lines


def _format_share(num: int, num_all: int, what: str) -> str:
    return f"{num} of {num_all} {what} ({num / max(num_all, 1):.1%})"


def _fresh_until(valid_path: Path, contract: Contract) -> datetime | None:
    """Returns when the data exceeds its first limit of age. The rules hold, so each column has a latest moment."""
    limits = [(rule.target, rule.high or 0) for rule in contract.rules() if rule.kind == "fresh"]
    moments = [(latest_moment(valid_path, column), timedelta(seconds=age_s)) for column, age_s in limits]
    return min((moment + age for moment, age in moments if moment is not None), default=None)
