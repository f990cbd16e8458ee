"""Measures data preparation: deduplicate, clip at quantiles, index categories, scale, split, sort and write.

    python benchmarks/data/prepare.py --rows 10000000 --rounds 2 [--engines hand local spark]

It compares three implementations, each in a process of its own, in turns:

- hand: hand-written SQL in DuckDB;
- local: the stage `prepare` with its local engine (DuckDB and Arrow);
- spark: the stage `prepare` with Spark.

Both engines of the stage must write the same bytes; the script ends with an error if they do not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from generated import CATEGORIES, NUMBERS, link_raw_rows, write_generated_rows
from process_measurement import Measurement, format_table, measure_script

ENGINES = ("hand", "local", "spark")
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


def prepare_by_hand(source: Path, folder: Path) -> None:
    """Does the same in DuckDB's SQL, written as a DuckDB expert would write it."""
    import duckdb

    database = duckdb.connect(config={"memory_limit": "1.2GB", "temp_directory": str(folder / "spilled")})
    content = ", ".join((*NUMBERS, *CATEGORIES, "label"))
    hashed = "md5('s:' || id::varchar)"
    database.execute(
        f"create table rows as select *, case when {hashed} < 'b3333333333333333333333333333333' then 'train' "
        f"when {hashed} < 'cccccccccccccccccccccccccccccccc' then 'val' else 'test' end as part "
        f"from (select min(id) as id, {content} from read_parquet('{source}') group by {content})"
    )
    limits = (
        database.execute(
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
        database.execute(
            "select "
            + ", ".join(f"avg({value}), stddev_pop({value})" for value in clipped.values())
            + " from rows where part = 'train'"
        ).fetchone()
        or ()
    )
    for name in CATEGORIES:
        database.execute(
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
        database.execute(
            f"copy (select id, label, {scaled}, {indexed} from rows {joins} where part = '{part}' order by id) "
            f"to '{folder / part}.parquet' (format parquet, compression zstd)"
        )


def run_stage(source: Path, kind: str) -> None:
    """Runs the stage `prepare`, and prints the digest of its files and its processor seconds as JSON."""
    from bloomery.data_contracts.odcs.contract import read_contract
    from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
    from bloomery.data_contracts.records.records import ValidRows
    from bloomery.models.features.config import Features
    from bloomery.tasks.infrastructure import spark_session
    from bloomery.tasks.prepare.stage import prepare

    raw_rows = link_raw_rows(source)
    valid_rows = ValidRows(
        uri="rows.parquet",
        quarantine_uri="",
        report_uri="",
        num_rows=raw_rows.num_rows,
        num_quarantined=0,
        violations=(),
        fresh_until=None,
        contract=read_contract(CONTRACT),
        raw_rows=raw_rows,
        digest=source.name,
    )
    engine = Engine(kind=kind, spark=SparkConfig(settings={"spark.driver.memory": "1200m"}))  # type: ignore[arg-type]
    start_s = time.process_time()
    digest = prepare(valid_rows, Features.model_validate(FEATURES), engine).digest
    print(json.dumps({"digest": digest, "stage_processor_s": time.process_time() - start_s}))
    spark_session.stop_session()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="number of generated rows")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--source", type=Path, help="Parquet file of generated rows; written if it does not exist")
    parser.add_argument("--only", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "hand":
        prepare_by_hand(options.source, options.folder)
        return
    if options.only:
        run_stage(options.source, options.only)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or Path(folder) / "generated.parquet"
        if not source.exists():
            write_generated_rows(source, options.rows)
        runs: list[tuple[str, Measurement]] = []
        digests = set()
        for number in range(options.rounds):
            for engine in options.engines:
                with tempfile.TemporaryDirectory(dir=folder) as home:
                    arguments = [__file__, "--only", engine, "--source", str(source), "--folder", home]
                    run = measure_script(arguments, Path(home))
                if engine != "hand":
                    digests.add(json.loads(run.output.strip().splitlines()[-1])["digest"])
                runs.append((f"{engine}, round {number + 1}", run))
                summary = f"{run.processor_s:.1f} processor seconds {run.output.strip()}"
                print(f"{runs[-1][0]}: {summary}", file=sys.stderr, flush=True)
        print(format_table(runs, baseline=runs[0][0]))
        if len(digests) > 1:
            raise SystemExit(f"the engines wrote different bytes, but must write the same: digests {sorted(digests)}")


if __name__ == "__main__":
    main()
