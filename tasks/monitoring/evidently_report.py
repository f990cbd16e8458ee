"""Drift as Evidently's page. It runs in a process of its own, since Evidently changes parts of numpy when it is loaded.

What the page is given is drawn from the counts over cells, on both sides alike: rows of training lie in no bento, and
a page would keep rows of requests. So its columns stand each for itself.
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

from bloomery.data_contracts.monitoring import Findings
from bloomery.data_contracts.odcs.distributions import Cells, reference_of

if TYPE_CHECKING:
    import pandas as pd

PAGE = "report.html"
_NUM_ROWS = 4_000  # that each column is drawn in
_TIMEOUT_S = 600


def can_draw() -> bool:
    """Whether Evidently is installed, which is the extra `monitoring`."""
    return importlib.util.find_spec("evidently") is not None


def draw_page(findings: Findings, limit: float, path: Path) -> bool:
    """Afterwards `path` is Evidently's page, which needs no network. False, and a line in the log, where it failed."""
    given = path.with_suffix(".json")
    given.write_text(findings.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", __name__, str(given), f"{limit:g}", str(path)]
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        told = "" if ended.returncode == 0 and path.is_file() else ended.stderr[-2000:] or "it wrote nothing"
    except subprocess.TimeoutExpired:
        told = f"it took longer than {_TIMEOUT_S} s"
    finally:
        given.unlink(missing_ok=True)
    if told:
        logging.getLogger(__name__).warning("Evidently could not draw the page: %s", told)
    return not told


def drawn(cells: Cells, shares: tuple[float, ...], num_rows: int) -> list[float | str | None]:
    """`num_rows` values that fall into the cells as `shares` says, as evenly as whole rows can; then other, then null.

    Numbers lie evenly between the edges of their cell; beyond the outer edges as far as the next cell is wide. Names
    are texts, also those of other values and of null.
    """
    ends = np.rint(np.cumsum(shares) * num_rows).astype(int)
    counts = np.diff(ends, prepend=0)
    found: list[float | str | None] = []
    if cells.edges is None:
        # What is missing is a name of its own: Evidently leaves nulls out of a comparison.
        names = [*map(str, cells.values or ()), "(other)", "(missing)"]
        for name, count in zip(names, counts.tolist(), strict=True):
            found += [name] * count
        return found
    edges = np.array(cells.edges)
    widths = (edges[1] - edges[0], edges[-1] - edges[-2]) if len(edges) > 1 else (1.0, 1.0)
    bounds = [edges[0] - widths[0], *edges, edges[-1] + widths[1]]
    for place, count in enumerate(counts[:-2].tolist()):
        found += np.linspace(bounds[place], bounds[place + 1], count, endpoint=False).tolist()
    return found + [None] * int(counts[-2:].sum())


def _frame(columns: dict[str, list[float | str | None]]) -> pd.DataFrame:
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(columns)
    # Mixed, or the page would show rows in the order of their cells.
    return frame.apply(lambda column: column.to_numpy()[rng.permutation(len(column))])


def _write_page(findings: Findings, limit: float, path: Path) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    named = {drift.name.strip("()"): drift for drift in findings.drifts}
    usual = _frame({name: drawn(one.usual, one.usual.all_shares, _NUM_ROWS) for name, one in named.items()})
    found = _frame(
        {name: drawn(one.usual, reference_of(one.found).all_shares, _NUM_ROWS) for name, one in named.items()}
    )
    definition = DataDefinition(
        numerical_columns=[name for name, one in named.items() if one.usual.edges is not None],
        categorical_columns=[name for name, one in named.items() if one.usual.edges is None],
    )
    preset = DataDriftPreset(num_method="psi", cat_method="psi", num_threshold=limit, cat_threshold=limit)
    report = Report([preset]).run(Dataset.from_pandas(found, definition), Dataset.from_pandas(usual, definition))
    beside = path.with_suffix(".tmp.html")
    report.save_html(str(beside))
    beside.replace(path)


if __name__ == "__main__":
    _write_page(Findings.model_validate_json(Path(sys.argv[1]).read_bytes()), float(sys.argv[2]), Path(sys.argv[3]))
