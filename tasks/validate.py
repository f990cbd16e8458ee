"""validate: which rows keep the contract, and which go to quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.contract import Contract
from data_contracts.digests import digest_of_document, digest_of_table
from data_contracts.errors import ContractBroken, DataUnfit
from data_contracts.expectations import Breach, judge
from data_contracts.records import CheckedRows, RawRows
from data_contracts.schemas import arrow_schema, require_columns
from tasks import artifacts
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output


@stage(present=artifacts.contract_report)
def validate(out: Output, rows: RawRows, contract: Contract) -> CheckedRows:
    """Afterwards `rows.parquet` holds the rows that keep the contract, in its types, and `quarantine.parquet` the rest.

    Raises:
        ContractBroken: a column is missing or of another type, a rule about the table is broken, or more rows break the
            contract than its quarantineLimit allows. The breaking rows then lie in the state folder's `quarantine`.
        DataUnfit: there are no rows.
    """
    table = pq.read_table(settings().path(rows.uri))
    where = f"{rows.source}, against contract {contract.name} {contract.version}"
    require_columns(table.schema, contract, where)
    if table.num_rows == 0:
        raise DataUnfit("the data has no rows", required="at least one row", where=where, remedy="check the source")
    verdict = judge(table, contract)
    quarantine = _quarantine(table, verdict.breaches)
    _require_unbroken(contract, verdict.broken, verdict.breaches, table.num_rows, quarantine, where)
    breaking = set(quarantine["_row"].to_pylist())
    kept = table.take(pa.array([row for row in range(table.num_rows) if row not in breaking], pa.int64()))
    passed = kept.select(arrow_schema(contract).names).cast(arrow_schema(contract))
    if passed.num_rows + quarantine.num_rows != rows.num_rows:
        raise RuntimeError(f"{passed.num_rows} + {quarantine.num_rows} rows came out of {rows.num_rows}")
    pq.write_table(passed, out.path("rows.parquet"))
    pq.write_table(quarantine, out.path("quarantine.parquet"))
    return CheckedRows(
        uri=out.uri("rows.parquet"),
        quarantine_uri=out.uri("quarantine.parquet"),
        num_rows=passed.num_rows,
        num_quarantined=quarantine.num_rows,
        checked=verdict.checked,
        contract=contract,
        rows=rows,
        # The contract is part of it: the endpoint enforces it, so another contract makes another bento.
        digest=digest_of_document(
            [digest_of_table(passed), contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)]
        ),
    )


def _quarantine(table: pa.Table, breaches: Sequence[Breach]) -> pa.Table:
    """The breaking rows as they came, with their position in the source and what each breaks."""
    reasons: dict[int, list[dict[str, str]]] = {}
    for breach in breaches:
        reasons.setdefault(breach.row, []).append(breach.model_dump(include={"column", "rule", "value"}))
    kind = pa.list_(pa.struct([("column", pa.string()), ("rule", pa.string()), ("value", pa.string())]))
    positions = pa.array(sorted(reasons), pa.int64())
    return (
        table.take(positions)
        .append_column("_row", positions)
        .append_column("_reasons", pa.array([reasons[row] for row in sorted(reasons)], kind))
    )


def _require_unbroken(
    contract: Contract,
    broken: Sequence[str],
    breaches: Sequence[Breach],
    num_rows: int,
    quarantine: pa.Table,
    where: str,
) -> None:
    share = quarantine.num_rows / num_rows
    if not broken and share <= contract.quarantine_limit:
        return
    found = list(broken)
    if share > contract.quarantine_limit:
        place = settings().home / "quarantine" / f"{contract.name}-{digest_of_table(quarantine)[:12]}.parquet"
        _write_beside(quarantine, place)
        counts = Counter(f"{breach.column} {breach.rule}" for breach in breaches)
        examples = {f"{breach.column} {breach.rule}": breach for breach in reversed(breaches)}
        found.append(f"{quarantine.num_rows} of {num_rows} rows ({share:.1%}) break the contract")
        found += [
            f"  {count} x {rule} (row {examples[rule].row}: found {examples[rule].value})"
            for rule, count in counts.most_common(5)
        ]
        where = f"{where}; the breaking rows are in {place}"
    raise ContractBroken(
        "\n".join(found),
        required=f"every rule of the contract, with at most {contract.quarantine_limit:.1%} of the rows set aside",
        where=where,
        remedy="mend the data at its source; or, if the rows are right, release a new version of the contract",
    )


def _write_beside(table: pa.Table, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".tmp")
    pq.write_table(table, beside)
    beside.rename(place)
