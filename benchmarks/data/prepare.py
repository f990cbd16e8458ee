"""Preparing rows: dedupe, clip by quantile, index, scale, split, sort and write. DuckDB by hand, this machine, Spark.

    python benchmarks/data/prepare.py --rows 10000000 --rounds 2

Each is a process of its own; they take turns. Ours write the same bytes, and the script ends with an error if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generated import CATEGORIES, NUMBERS, raw_rows, write
from measured import Measured, measure, table

CONTRACT = Path(__file__).with_name("generated.odcs.yaml")
FEATURES: dict[str, Any] = {
    "key": "id",
    "label": "label",
    "deduplicate": True,
    "split": {"salt": "s"},
    "inputs": [
        {
            "kind": "number",
            "columns": NUMBERS,
            "missing": "median",
            "clip": {"low_quantile": 0.01, "high_quantile": 0.99},
            "scale": "standard",
        },
        {"kind": "category", "columns": tuple(CATEGORIES), "encoding": "index"},
    ],
}


def by_hand(source: Path, folder: Path) -> None:
    """The same in DuckDB's SQL, as one who knows it would write it."""
    import duckdb

    engine = duckdb.connect(config={"memory_limit": "1.2GB", "temp_directory": str(folder / "spilled")})
    content = ", ".join((*NUMBERS, *CATEGORIES, "label"))
    hashed = "md5('s:' || id::varchar)"
    engine.execute(
        f"create table rows as select *, case when {hashed} < 'b3333333333333333333333333333333' then 'train' "
        f"when {hashed} < 'cccccccccccccccccccccccccccccccc' then 'val' else 'test' end as part "
        f"from (select min(id) as id, {content} from read_parquet('{source}') group by {content})"
    )
    limits = (
        engine.execute(
            "select "
            + ", ".join(f"approx_quantile({name}, [0.01, 0.5, 0.99])" for name in NUMBERS)
            + " from rows where part = 'train'"
        ).fetchone()
        or ()
    )
    clipped = {
        name: f"least(greatest({name}, {low}), {high})" for name, (low, _, high) in zip(NUMBERS, limits, strict=True)
    }
    moments = (
        engine.execute(
            "select "
            + ", ".join(f"avg({value}), stddev_pop({value})" for value in clipped.values())
            + " from rows where part = 'train'"
        ).fetchone()
        or ()
    )
    for name in CATEGORIES:
        engine.execute(
            f"create table {name}_index as select {name}, (row_number() over (order by {name})) + 1 as number "
            f"from (select distinct {name} from rows where part = 'train' and {name} is not null)"
        )
    scaled = ", ".join(
        f"((coalesce({value}, {limits[position][1]}) - {moments[2 * position]}) / {moments[2 * position + 1]})::float "
        f"as {name}"
        for position, (name, value) in enumerate(clipped.items())
    )
    indexed = ", ".join(f"coalesce({name}_index.number, 0)::float as {name}" for name in CATEGORIES)
    joins = " ".join(f"left join {name}_index on rows.{name} = {name}_index.{name}" for name in CATEGORIES)
    for part in ("train", "val", "test"):
        engine.execute(
            f"copy (select id, label, {scaled}, {indexed} from rows {joins} where part = '{part}' order by id) "
            f"to '{folder / part}.parquet' (format parquet, compression zstd)"
        )


def ours(source: Path, kind: str) -> str:
    """The stage `prepare`; returns the digest of what it wrote."""
    from bloomery.data_contracts.odcs.contract import read_contract
    from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
    from bloomery.data_contracts.records.records import ValidRows
    from bloomery.models.features.config import Features
    from bloomery.tasks.infrastructure import spark_session
    from bloomery.tasks.prepare.stage import prepare

    raw = raw_rows(source)
    checked = ValidRows(
        uri="rows.parquet",
        quarantine_uri="",
        report_uri="",
        num_rows=raw.num_rows,
        num_quarantined=0,
        violations=(),
        fresh_until=None,
        contract=read_contract(CONTRACT),
        raw_rows=raw,
        digest=source.name,
    )
    means = Engine(kind=kind, spark=SparkConfig(settings={"spark.driver.memory": "1200m"}))  # type: ignore[arg-type]
    begin = time.process_time()
    digest = prepare(checked, Features.model_validate(FEATURES), means).digest
    print(json.dumps({"digest": digest, "stage_processor_s": time.process_time() - begin}))
    spark_session.stop_session()
    return digest


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=10_000_000)
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--engines", default="hand,local,spark")
    asked.add_argument("--source", type=Path)
    asked.add_argument("--only")
    asked.add_argument("--folder", type=Path)
    chosen = asked.parse_args()
    if chosen.only == "hand":
        by_hand(chosen.source, chosen.folder)
        return
    if chosen.only:
        ours(chosen.source, chosen.only)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = chosen.source or Path(folder) / "generated.parquet"
        if not source.exists():
            write(source, chosen.rows)
        found: list[tuple[str, Measured]] = []
        digests = set()
        for turn in range(chosen.rounds):
            for engine in chosen.engines.split(","):
                with tempfile.TemporaryDirectory(dir=folder) as home:
                    arguments = [__file__, "--only", engine, "--source", str(source), "--folder", home]
                    one = measure(arguments, Path(home))
                if engine != "hand":
                    digests.add(json.loads(one.printed.strip().splitlines()[-1])["digest"])
                found.append((f"{engine}, round {turn + 1}", one))
                told = f"{one.processor_s:.1f} s of processor {one.printed.strip()}"
                print(f"{found[-1][0]}: {told}", file=sys.stderr, flush=True)
        print(table(found, found[0][0]))
        if len(digests) > 1:
            raise SystemExit(f"the engines wrote different bytes: {digests}")


if __name__ == "__main__":
    main()
