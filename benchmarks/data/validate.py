"""Checking the 39 rules of generated.odcs.yaml: one Spark aggregation by hand with the key's uniqueness, and ours.

    python benchmarks/data/validate.py --rows 10000000 --rounds 2

By hand: one aggregation over all rows for every rule about a row, and a grouped one for the uniqueness of the key. It
gives counts alone. Ours writes the rows that pass, the quarantine with reasons and the report besides.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generated import CATEGORIES, NUMBERS, raw_rows, write
from measured import Measured, measure, table

CONTRACT = Path(__file__).with_name("generated.odcs.yaml")


def by_hand(source: Path) -> None:
    from pyspark.sql import functions as f

    from bloomery.data_contracts.recipe_sections.engine import SparkConfig
    from bloomery.tasks.infrastructure import spark_session
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder

    apply_engine_environment()
    require_state_folder()
    engine = spark_session.get_session(SparkConfig(settings={"spark.driver.memory": "1200m"}))
    rows = engine.read.parquet(str(source))
    broken = {
        "id null": "id is null",
        "id low": "id < 0",
        "sum": "n0 + n1 < -1000",
        "more": "n4 + n5 < -2000",
        "either": "not (n2 < 100000 or n3 >= -500)",
        "label null": "label is null",
        "label range": "label < 0 or label > 1",
        "label set": "label not in (0, 1)",
    }
    for name in NUMBERS:
        broken |= {
            f"{name} range": f"{name} < -1000 or {name} > 5000",
            f"{name} null": f"{name} is null",
            f"{name} usual": f"{name} < -50 or {name} > 2000",
        }
    for name, count in CATEGORIES.items():
        broken |= {
            f"{name} length": f"length({name}) <> 7",
            f"{name} pattern": f"not ({name} rlike '^c[0-9]-[0-9]{{4}}$')",
            f"{name} null": f"{name} is null",
        }
        if count <= 50:
            known = ", ".join(f"'{name}-{value:04d}'" for value in range(count))
            broken[f"{name} set"] = f"{name} not in ({known})"
    counts = rows.agg(f.count("*"), *(f.count(f.when(f.expr(rule), 1)) for rule in broken.values())).collect()[0]
    twice = rows.groupBy("id").count().where("count > 1").count()
    print(json.dumps({"rules": len(broken) + 2, "rows": counts[0], "breaking": sum(counts[1:]), "twice": twice}))
    spark_session.stop_session()


def ours(source: Path) -> None:

    from bloomery.data_contracts.odcs.contract import read_contract
    from bloomery.tasks.validate.stage import validate

    raw = raw_rows(source)
    start = time.perf_counter()
    checked = validate(raw, read_contract(CONTRACT))
    seconds = time.perf_counter() - start
    print(json.dumps({"rules": len(checked.violations), "quarantined": checked.num_quarantined, "stage_s": seconds}))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=10_000_000)
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--ways", default="hand,ours")
    asked.add_argument("--source", type=Path)
    asked.add_argument("--only")
    chosen = asked.parse_args()
    if chosen.only:
        (by_hand if chosen.only == "hand" else ours)(chosen.source)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = chosen.source or Path(folder) / "generated.parquet"
        if not source.exists():
            write(source, chosen.rows)
        found: list[tuple[str, Measured]] = []
        for turn in range(chosen.rounds):
            for way in chosen.ways.split(","):
                with tempfile.TemporaryDirectory(dir=folder) as home:
                    one = measure([__file__, "--only", way, "--source", str(source)], Path(home))
                found.append((f"{way}, round {turn + 1}", one))
                print(f"{found[-1][0]}: {one.processor_s:.1f} s of processor, {one.printed.strip()}", file=sys.stderr)
        print(table(found, found[0][0]))


if __name__ == "__main__":
    main()
