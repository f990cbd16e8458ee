"""Measures validation by the 39 rules of generated.odcs.yaml: hand-written Spark, and the stage `validate`.

    python benchmarks/data/validate.py --rows 10000000 --rounds 2 [--implementations hand stage]

- hand: one Spark aggregation counts the violations of all rules about single rows, and a grouped one checks that the
  key is unique. It returns counts only.
- stage: the stage `validate`, which also writes the valid rows, the quarantine with reasons, and the report.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from generated import CATEGORIES, NUMBERS, link_raw_rows, write_generated_rows
from process_measurement import Measurement, format_table, measure_script

IMPLEMENTATIONS = ("hand", "stage")
CONTRACT = Path(__file__).with_name("generated.odcs.yaml")


def validate_by_hand(source: Path) -> None:
    """Counts violations with Spark, and prints the counts as JSON."""
    from pyspark.sql import functions as f

    from bloomery.data_contracts.recipe_sections.engine import SparkConfig
    from bloomery.tasks.infrastructure import spark_session
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder

    apply_engine_environment()
    require_state_folder()
    spark = spark_session.get_session(SparkConfig(settings={"spark.driver.memory": "1200m"}))
    rows = spark.read.parquet(str(source))
    violations = {
        "id null": "id is null",
        "id low": "id < 0",
        "sum n0 n1": "n0 + n1 < -1000",
        "sum n4 n5": "n4 + n5 < -2000",
        "n2 or n3": "not (n2 < 100000 or n3 >= -500)",
        "label null": "label is null",
        "label range": "label < 0 or label > 1",
        "label set": "label not in (0, 1)",
    }
    for name in NUMBERS:
        violations |= {
            f"{name} range": f"{name} < -1000 or {name} > 5000",
            f"{name} null": f"{name} is null",
            f"{name} usual range": f"{name} < -50 or {name} > 2000",
        }
    for name, count in CATEGORIES.items():
        violations |= {
            f"{name} length": f"length({name}) <> 7",
            f"{name} pattern": f"not ({name} rlike '^c[0-9]-[0-9]{{4}}$')",
            f"{name} null": f"{name} is null",
        }
        if count <= 50:
            valid_values = ", ".join(f"'{name}-{value:04d}'" for value in range(count))
            violations[f"{name} set"] = f"{name} not in ({valid_values})"
    counts = rows.agg(f.count("*"), *(f.count(f.when(f.expr(rule), 1)) for rule in violations.values())).collect()[0]
    num_duplicate_keys = rows.groupBy("id").count().where("count > 1").count()
    num_rows, *num_violations = counts
    result = {"rules": len(violations) + 2, "rows": num_rows, "violations": sum(num_violations)}
    print(json.dumps(result | {"duplicate_keys": num_duplicate_keys}))
    spark_session.stop_session()


def run_stage(source: Path) -> None:
    """Runs the stage `validate`, and prints its counts and its seconds as JSON."""
    from bloomery.data_contracts.odcs.contract import read_contract
    from bloomery.tasks.validate.stage import validate

    raw_rows = link_raw_rows(source)
    start_s = time.perf_counter()
    valid_rows = validate(raw_rows, read_contract(CONTRACT))
    seconds = time.perf_counter() - start_s
    print(
        json.dumps({"rules": len(valid_rows.violations), "quarantined": valid_rows.num_quarantined, "stage_s": seconds})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="number of generated rows")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    parser.add_argument("--source", type=Path, help="Parquet file of generated rows; written if it does not exist")
    parser.add_argument("--only", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        (validate_by_hand if options.only == "hand" else run_stage)(options.source)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or Path(folder) / "generated.parquet"
        if not source.exists():
            write_generated_rows(source, options.rows)
        runs: list[tuple[str, Measurement]] = []
        for number in range(options.rounds):
            for name in options.implementations:
                with tempfile.TemporaryDirectory(dir=folder) as home:
                    run = measure_script([__file__, "--only", name, "--source", str(source)], Path(home))
                runs.append((f"{name}, round {number + 1}", run))
                summary = f"{run.processor_s:.1f} processor seconds, {run.output.strip()}"
                print(f"{runs[-1][0]}: {summary}", file=sys.stderr, flush=True)
        print(format_table(runs, baseline=runs[0][0]))


if __name__ == "__main__":
    main()
