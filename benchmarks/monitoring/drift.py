"""Measures the drift of each month of taxi trips, and the rate of false alerts on unchanged data.

    BLOOMERY_DATA=… python benchmarks/monitoring/drift.py [--rows 10000] [--halves 200]

Run `bloomery run nyc-taxi` in BLOOMERY_HOME first; its champion is trained on January and February 2019. The trips of
each month are sent to `bloomery serve nyc-taxi` over HTTP, one by one, as the meters reported them, including those
that the endpoint rejects. Each month is monitored as one window, before and after its labels arrive.

To measure false alerts each month is split into random halves, one as reference and one as window: any alert is then
due to chance. Pairs of normal months show how often seasonal changes count as drift.
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
NORMAL = ("2018-01", "2018-07", "2019-01", "2019-02", "2019-07", "2020-01", "2020-02")
MONTHS = (*NORMAL, "2020-03", "2020-04", "2020-05", "2020-06", "2020-12")
CONNECTIONS = 8


def read_trips(folder: Path, month: str, num_rows: int) -> pa.Table:
    """Reads the trips of a month, cast to the contract's types."""
    table = pcsv.read_csv(folder / f"yellow_tripdata_sample_{month}.csv")
    for name in ("rate_code_id", "pickup_location_id", "dropoff_location_id"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    for name in ("trip_distance", "fare_amount"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.float64()))
    return table.slice(0, num_rows)


def to_json_rows(trips: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    """Converts trips to the rows of requests, with times as ISO 8601 in UTC."""
    rows = trips.select(columns).to_pylist()
    for row in rows:
        row["pickup_datetime"] = row["pickup_datetime"].replace(tzinfo=UTC).isoformat()
    return rows


async def send_rows(port: int, month: str, rows: list[dict[str, Any]]) -> None:
    """Sends each trip in a request of its own, with month and index as request id."""
    indices = iter(range(len(rows)))

    async def send_next() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in indices:
            body = json.dumps({"rows": [rows[index]]}).encode()
            headers = f"host: x\r\ncontent-type: application/json\r\nx-request-id: {month}.{index}"
            head = f"POST /predict HTTP/1.1\r\n{headers}\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            response_head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(response_head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(send_next() for _ in range(CONNECTIONS)))


def send_months(folder: Path, num_rows: int) -> dict[str, tuple[datetime, datetime]]:
    """Sends every month to an endpoint. Returns start and end of each."""
    columns = list(json.loads(read_champion_manifest())["columns"])
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
            asyncio.run(send_rows(port, month, to_json_rows(read_trips(folder, month, num_rows), columns)))
            asyncio.run(asyncio.sleep(7))  # outcomes are written every five seconds
            windows[month] = (start, datetime.now(UTC))
    return windows


def read_champion_manifest() -> str:
    from bloomery.tasks.bentos.bento_store import artifacts_folder

    tag = model_registry.find_version(f"{NAME}@{model_registry.CHAMPION}").tags[model_registry.BENTO]
    return (artifacts_folder(tag) / "manifest.json").read_text(encoding="utf-8")


def write_labels(folder: Path, num_rows: int) -> None:
    """Writes the fares of all trips as labels."""
    labels_folder = settings().home / "labels" / NAME
    labels_folder.mkdir(parents=True, exist_ok=True)
    for month in MONTHS:
        trips = read_trips(folder, month, num_rows)
        requests = [f"{month}.{index}" for index in range(trips.num_rows)]
        pq.write_table(
            pa.table({"request": requests, "label": trips["fare_amount"]}), labels_folder / f"{month}.parquet"
        )


def print_table(reports: dict[str, MonitoringReport]) -> None:
    """Prints the PSI of each column by month, with the columns that drift most first."""
    names = [drift.name for drift in next(iter(reports.values())).drifts]
    names = sorted(names, key=lambda name: -max(_find_drift(report, name).psi for report in reports.values()))
    print("| month | rows |", " | ".join(names), "| rejected | alerts |")
    print("| --- | ---: |", " | ".join(["---:"] * len(names)), "| ---: | --- |")
    for month, report in reports.items():
        drifts = [_find_drift(report, name) for name in names]
        cells = [f"**{drift.psi:.3f}**" if drift.is_drifted else f"{drift.psi:.3f}" for drift in drifts]
        rejected = "" if report.requests.rejected is None else f"{report.requests.rejected.value:.1%}"
        kinds = Counter(alert.kind for alert in report.alerts)
        counts = ", ".join(f"{kind} {num}" for kind, num in kinds.items()) or "none"
        print(f"| {month} | {report.num_rows:,} |", " | ".join(cells), f"| {rejected} | {counts} |")


def _find_drift(report: MonitoringReport, name: str) -> Drift:
    return next(drift for drift in report.drifts if drift.name == name)


def reference_bins(reference: VersionReference, trips: pa.Table) -> dict[str, Bins]:
    """Returns the reference's bins of each column of `trips`."""
    shares = {name: column.shares for name, column in reference.columns.items() if name in trips.column_names}
    return {name: Bins(edges=share.edges, values=share.values) for name, share in shares.items()}


def find_alerts(
    bins: dict[str, Bins], before: pa.Table, after: pa.Table, monitor: Monitor
) -> tuple[list[str], list[str]]:
    """Returns the columns of `after` that raise an alert against `before`, and all that differ significantly."""
    divergences = {}
    for name, column_bins in bins.items():
        reference = reference_column(count_into_bins(column_bins, before[name]))
        divergences[name] = measure_divergence(reference, before.num_rows, count_into_bins(column_bins, after[name]))
    p_values = holm_correction([divergence.p_value for divergence in divergences.values()])
    corrected = dict(zip(divergences, p_values, strict=True))
    significant = [name for name in divergences if corrected[name] < monitor.significance]
    excess_psi = {name: divergences[name].psi - divergences[name].noise_psi for name in significant}
    return [name for name in significant if excess_psi[name] >= monitor.psi], significant


def measure_false_alerts(folder: Path, reference: VersionReference, monitor: Monitor, num_halves: int) -> None:
    """Prints how often random halves of a month, and pairs of normal months, raise an alert."""
    rng = np.random.default_rng(0)
    trips = {month: read_trips(folder, month, 10_000) for month in MONTHS}
    bins = reference_bins(reference, next(iter(trips.values())))
    for size in (500, 2_000, 5_000):
        num_alerts = num_significant = 0
        for number in range(num_halves):
            month = trips[MONTHS[number % len(MONTHS)]]
            order = rng.permutation(month.num_rows)
            halves = month.take(order[: month.num_rows // 2]), month.take(order[month.num_rows // 2 :][:size])
            alerts, significant = find_alerts(bins, *halves, monitor)
            num_alerts += bool(alerts)
            num_significant += bool(significant)
        counts = f"{num_alerts} of {num_halves} with an alert, {num_significant} significant"
        print(f"halves, {size:,} rows per window: {counts}")
    pairs = list(itertools.permutations(NORMAL, 2))
    results = {pair: find_alerts(bins, trips[pair[0]], trips[pair[1]], monitor) for pair in pairs}
    alerts_of_pairs = {pair: names for pair, (names, _) in results.items() if names}
    print(
        f"pairs of normal months (2018-01 to 2020-02): {len(alerts_of_pairs)} of {len(pairs)} with an alert "
        f"{alerts_of_pairs or ''}, {sum(bool(names) for _, names in results.values())} significant"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="trips per month")
    parser.add_argument("--halves", type=int, default=200, help="random halves per window size")
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    recipe = read_recipe(NAME)
    assert recipe.data.source is not None
    folder = Path(os.environ["BLOOMERY_DATA"]) / "nyc_taxi"
    champion = model_registry.find_version(f"{NAME}@{model_registry.CHAMPION}")
    reference = read_reference(champion.tags[model_registry.BENTO])
    measure_false_alerts(folder, reference, recipe.monitor, options.halves)
    windows = send_months(folder, options.rows)
    reports = {month: monitor_window(champion, recipe.monitor, *window) for month, window in windows.items()}
    print_table(reports)
    write_labels(folder, options.rows)
    print("\n| month | labels | RMSE (95%) | held out | alert |\n| --- | ---: | --- | --- | --- |")
    for month, window in windows.items():
        labelled = monitor_window(champion, recipe.monitor, *window).labelled
        assert labelled is not None
        score, held_out_score = labelled.score, labelled.held_out_score
        max_score = held_out_score.value * (1 + recipe.monitor.error_rise)
        has_alert = score.low > held_out_score.high and score.value >= max_score
        print(
            f"| {month} | {labelled.num_labelled:,} | {score.value:.2f} ({score.low:.2f}–{score.high:.2f}) | "
            f"{held_out_score.value:.2f} | {'yes' if has_alert else 'no'} |"
        )
    print(f"\nmedian latency of the endpoint by month: {[report.requests.p50_ms for report in reports.values()]} ms")


if __name__ == "__main__":
    main()
