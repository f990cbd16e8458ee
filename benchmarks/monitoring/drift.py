"""Monitoring of each month of taxi trips, and the rate of false alerts where nothing has changed.

    BLOOMERY_DATA=… python benchmarks/monitoring/drift.py [--rows 10000] [--halves 200]

Run `bloomery run nyc-taxi` in BLOOMERY_HOME first; its champion is trained on January and February 2019. The trips of
each month are sent to `bloomery serve nyc-taxi` over HTTP, one by one, as the meters reported them, including those
that the endpoint rejects. Each month is monitored as one window, before and after its labels arrive.

To measure false alerts the months are split into random halves, one as reference and the other as window: any alert is
due to chance. Pairs of normal months show how often a season counts as drift.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from bloomery.data_contracts.monitoring import Drift, Monitor, MonitoringReport, VersionReference
from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.models.evaluation.drift_tests import holm_correction, measure_divergence
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server
from bloomery.tasks.monitoring.monitor import monitor_window, read_reference
from bloomery.tasks.registry import model_registry

NAME = "nyc-taxi"
MONTHS = ("2018-01", "2018-07", "2019-01", "2019-02", "2019-07", "2020-01")
MONTHS += ("2020-02", "2020-03", "2020-04", "2020-05", "2020-06", "2020-12")
NORMAL = MONTHS[:7]
CONNECTIONS = 8


def trips_of(folder: Path, month: str, num_rows: int) -> pa.Table:
    """A month's trips, in the contract's types."""
    table = pcsv.read_csv(folder / f"yellow_tripdata_sample_{month}.csv")
    for name in ("rate_code_id", "pickup_location_id", "dropoff_location_id"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    for name in ("trip_distance", "fare_amount"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.float64()))
    return table.slice(0, num_rows)


def to_json_rows(trips: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    rows = trips.select(columns).to_pylist()
    for row in rows:
        row["pickup_datetime"] = row["pickup_datetime"].replace(tzinfo=UTC).isoformat()
    return rows


async def send_rows(port: int, month: str, rows: list[dict[str, Any]]) -> None:
    """Send each trip in a request of its own, with month and index as request id."""
    places = iter(range(len(rows)))

    async def send_next() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for place in places:
            body = json.dumps({"rows": [rows[place]]}).encode()
            head = (
                f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: {month}.{place}"
            )
            writer.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(send_next() for _ in range(CONNECTIONS)))


def send_months(folder: Path, num_rows: int) -> dict[str, tuple[datetime, datetime]]:
    """Send every month to an endpoint. Returns start and end of each."""
    columns = list(json.loads(manifest_of_champion())["columns"])
    port = find_free_port()
    command = [sys.executable, "-m", "bloomery.flows.cli", "serve", NAME, "--port", str(port)]
    url = f"http://127.0.0.1:{port}/readyz"

    def is_ready() -> bool:
        try:
            return httpx.get(url, timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    windows = {}
    with tethered_server(command, is_ready=is_ready, log=settings().logs / "drift-endpoint.log") as wait_until_ready:
        wait_until_ready()
        for month in MONTHS:
            start = datetime.now(UTC)
            asyncio.run(send_rows(port, month, to_json_rows(trips_of(folder, month, num_rows), columns)))
            asyncio.run(asyncio.sleep(7))  # outcomes are written every five seconds
            windows[month] = (start, datetime.now(UTC))
    return windows


def manifest_of_champion() -> str:
    from bloomery.tasks.bentos.bento_store import artifacts_folder

    tag = model_registry.find_version(f"{NAME}@{model_registry.CHAMPION}").tags[model_registry.BENTO]
    return (artifacts_folder(tag) / "manifest.json").read_text(encoding="utf-8")


def write_labels(folder: Path, num_rows: int) -> None:
    """Write the fares of all trips as labels."""
    place = settings().home / "labels" / NAME
    place.mkdir(parents=True, exist_ok=True)
    for month in MONTHS:
        trips = trips_of(folder, month, num_rows)
        requests = [f"{month}.{at}" for at in range(trips.num_rows)]
        pq.write_table(pa.table({"request": requests, "label": trips["fare_amount"]}), place / f"{month}.parquet")


def print_table(found: dict[str, MonitoringReport]) -> None:
    names = [drift.name for drift in next(iter(found.values())).drifts]
    names = sorted(names, key=lambda name: -max(_of(one, name).psi for one in found.values()))
    print("| month | rows |", " | ".join(names), "| rejected | alerts |")
    print("| --- | ---: |", " | ".join(["---:"] * len(names)), "| ---: | --- |")
    for month, one in found.items():
        drifts = [_of(one, name) for name in names]
        cells = [f"**{drift.psi:.3f}**" if drift.is_drifted else f"{drift.psi:.3f}" for drift in drifts]
        refused = "" if one.requests.refused is None else f"{one.requests.refused.value:.1%}"
        kinds = Counter(alarm.kind for alarm in one.alerts)
        counts = ", ".join(f"{kind} {num}" for kind, num in kinds.items()) or "none"
        print(f"| {month} | {one.num_rows:,} |", " | ".join(cells), f"| {refused} | {counts} |")


def _of(one: MonitoringReport, name: str) -> Drift:
    return next(drift for drift in one.drifts if drift.name == name)


def reference_bins(usual: VersionReference, trips: pa.Table) -> dict[str, Bins]:
    """The reference's bins of each column."""
    shares = {name: one.shares for name, one in usual.columns.items() if name in trips.column_names}
    return {name: Bins(edges=one.edges, values=one.values) for name, one in shares.items()}


def find_alerts(
    cells: dict[str, Bins], before: pa.Table, after: pa.Table, monitor: Monitor
) -> tuple[list[str], list[str]]:
    """Columns of `after` that raise an alert against `before`, and those that are merely significant."""
    found = {}
    for name, one in cells.items():
        reference = reference_column(count_into_bins(one, before[name]))
        found[name] = measure_divergence(reference, before.num_rows, count_into_bins(one, after[name]))
    corrected = dict(zip(found, holm_correction([one.p_value for one in found.values()]), strict=True))
    significant = [name for name in found if corrected[name] < monitor.significance]
    return [name for name in significant if found[name].psi - found[name].noise_psi >= monitor.psi], significant


def measure_false_alerts(folder: Path, usual: VersionReference, monitor: Monitor, num_halves: int) -> None:
    rng = np.random.default_rng(0)
    trips = {month: trips_of(folder, month, 10_000) for month in MONTHS}
    cells = reference_bins(usual, next(iter(trips.values())))
    for size in (500, 2_000, 5_000):
        alarms = significant = 0
        for place in range(num_halves):
            month = trips[MONTHS[place % len(MONTHS)]]
            order = rng.permutation(month.num_rows)
            halves = month.take(order[: month.num_rows // 2]), month.take(order[month.num_rows // 2 :][:size])
            is_alarm, is_significant = find_alerts(cells, *halves, monitor)
            alarms += bool(is_alarm)
            significant += bool(is_significant)
        print(f"halves, {size:,} rows per window: {alarms} of {num_halves} with an alert, {significant} significant")
    pairs = list(itertools.permutations(NORMAL, 2))
    found = {pair: find_alerts(cells, trips[pair[0]], trips[pair[1]], monitor) for pair in pairs}
    wrong = {pair: names for pair, (names, _) in found.items() if names}
    print(
        f"pairs of normal months (2018-01 to 2020-02): {len(wrong)} of {len(pairs)} with an alert {wrong or ''}, "
        f"{sum(bool(names) for _, names in found.values())} significant"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--halves", type=int, default=200)
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    recipe = read_recipe(NAME)
    assert recipe.data.source is not None
    folder = Path(os.environ["BLOOMERY_DATA"]) / "nyc_taxi"
    champion = model_registry.find_version(f"{NAME}@{model_registry.CHAMPION}")
    usual = read_reference(champion.tags[model_registry.BENTO])
    measure_false_alerts(folder, usual, recipe.monitor, options.halves)
    windows = send_months(folder, options.rows)
    found = {month: monitor_window(champion, recipe.monitor, *window) for month, window in windows.items()}
    print_table(found)
    write_labels(folder, options.rows)
    print("\n| month | labels | RMSE (95%) | held out | alert |\n| --- | ---: | --- | --- | --- |")
    for month, window in windows.items():
        labelled = monitor_window(champion, recipe.monitor, *window).labelled
        assert labelled is not None
        score, usual_score = labelled.score, labelled.held_out_score
        is_alarm = score.low > usual_score.high and score.value >= usual_score.value * (1 + recipe.monitor.error_rise)
        print(
            f"| {month} | {labelled.num_labelled:,} | {score.value:.2f} ({score.low:.2f}–{score.high:.2f}) | "
            f"{usual_score.value:.2f} | {'yes' if is_alarm else 'no'} |"
        )
    print(f"\nservice: {[one.requests.p50_ms for one in found.values()]} ms p50")


if __name__ == "__main__":
    main()
