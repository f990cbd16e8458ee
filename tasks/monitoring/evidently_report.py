"""Evidently's drift report, written in a subprocess because Evidently modifies numpy when it is imported.

The report needs rows, so values are sampled from the counts of both sides: a bento holds no training rows, and a report
must not hold rows of requests. Its columns are therefore independent of each other.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.documents.files import atomic_path
from bloomery.data_contracts.monitoring import MonitoringReport
from bloomery.data_contracts.odcs.distributions import Bins, reference_column
from bloomery.tasks.infrastructure.python_processes import module_command

if TYPE_CHECKING:
    import pandas as pd

REPORT = "report.html"
_NUM_ROWS = 4_000  # sampled for each column
_TIMEOUT_S = 600


def is_installed() -> bool:
    """Whether Evidently is installed, which is the extra `monitoring`."""
    return importlib.util.find_spec("evidently") is not None


def write_report(report: MonitoringReport, limit: float, path: Path) -> bool:
    """Writes Evidently's page, which needs no network, to `path`. Returns False, after a warning, if that fails."""
    input_file = path.with_suffix(".json")
    input_file.write_text(report.model_dump_json(), encoding="utf-8")
    command = module_command(__name__, str(input_file), f"{limit:g}", str(path))
    try:
        process = subprocess.run(
            command,
            env={**os.environ, "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        has_succeeded = process.returncode == 0 and path.is_file()
        problem = "" if has_succeeded else process.stderr[-2000:] or "it wrote no page"
    except subprocess.TimeoutExpired:
        problem = f"it took longer than {_TIMEOUT_S} s"
    finally:
        input_file.unlink(missing_ok=True)
    if problem:
        logging.getLogger(__name__).warning("Evidently could not write its report: %s", problem)
    return not problem


def sample_values(cells: Bins, shares: tuple[float, ...], num_rows: int) -> list[float | str | None]:
    """Returns `num_rows` values with these shares per bin, rounded to whole rows; then other values, then nulls.

    Numbers are spaced evenly between the edges of their bin; an outer bin is as wide as its neighbour. Categories are
    text, as are other and missing values.
    """
    ends = np.rint(np.cumsum(shares) * num_rows).astype(int)
    counts = np.diff(ends, prepend=0)
    values: list[float | str | None] = []
    if cells.edges is None:
        # Missing values are a category: Evidently leaves nulls out of a comparison.
        names = [*map(str, cells.values or ()), "(other)", "(missing)"]
        for name, count in zip(names, counts.tolist(), strict=True):
            values += [name] * count
        return values
    edges = np.array(cells.edges)
    widths = (edges[1] - edges[0], edges[-1] - edges[-2]) if len(edges) > 1 else (1.0, 1.0)
    bounds = [edges[0] - widths[0], *edges, edges[-1] + widths[1]]
    for index, count in enumerate(counts[:-2].tolist()):
        values += np.linspace(bounds[index], bounds[index + 1], count, endpoint=False).tolist()
    return values + [None] * int(counts[-2:].sum())


def _make_frame(columns: dict[str, list[float | str | None]]) -> pd.DataFrame:
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(columns)
    # Shuffled, because the report would show rows in the order of their bins.
    return frame.apply(lambda column: column.to_numpy()[rng.permutation(len(column))])


def _bare_name(name: str) -> str:
    """Returns the name without the brackets of a prediction: `speed (km/h)` of `(speed (km/h))`."""
    return name[1:-1] if name.startswith("(") and name.endswith(")") else name


def _write_page(report: MonitoringReport, limit: float, path: Path) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    columns = {drift.name for drift in report.drifts}
    drifts = {drift.name if (name := _bare_name(drift.name)) in columns else name: drift for drift in report.drifts}
    reference = _make_frame(
        {name: sample_values(drift.reference, drift.reference.all_shares, _NUM_ROWS) for name, drift in drifts.items()}
    )
    current = _make_frame(
        {
            name: sample_values(drift.reference, reference_column(drift.observed).all_shares, _NUM_ROWS)
            for name, drift in drifts.items()
        }
    )
    definition = DataDefinition(
        numerical_columns=[name for name, drift in drifts.items() if drift.reference.edges is not None],
        categorical_columns=[name for name, drift in drifts.items() if drift.reference.edges is None],
    )
    preset = DataDriftPreset(num_method="psi", cat_method="psi", num_threshold=limit, cat_threshold=limit)
    snapshot = Report([preset]).run(
        Dataset.from_pandas(current, definition), Dataset.from_pandas(reference, definition)
    )
    with atomic_path(path) as temporary:
        snapshot.save_html(str(temporary))


if __name__ == "__main__":
    _write_page(
        MonitoringReport.model_validate_json(Path(sys.argv[1]).read_bytes()), float(sys.argv[2]), Path(sys.argv[3])
    )
