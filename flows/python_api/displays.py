"""Objects that a notebook shows: the model card, the candidates with their Pareto front, and the confusion matrix.

Shapes: K classes.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomery.data_contracts.errors import DataMissing

if TYPE_CHECKING:
    import pandas as pd

_CARD_HEIGHT_PX = 640
_MAX_CLASSES = 40  # of a confusion matrix; with more, the most frequent confusions are listed
_MAX_CONFUSIONS = 20
# Of the table of candidates: what is not shown, since it is in `to_pandas`, and the column that needs the most room.
_HIDDEN = ("rank", "zstd", "coded", "parameters", "multiplications", "in integers", "p99")
_LAST = "reason"
_CELL = "padding:2px 8px;text-align:{align}"


def html_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """A table in HTML. All texts are escaped."""
    cell = _CELL.format(align="left")
    head = "".join(f'<th style="{cell}">{html.escape(heading)}</th>' for heading in headings)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{html.escape(str(value))}</td>' for value in row) + "</tr>"
        for row in rows
    )
    footer = f'<div style="opacity:0.7">{html.escape(note)}</div>' if note else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><b>{html.escape(title)}</b></div>{table}{footer}"


@dataclass(frozen=True)
class Card:
    """The model card of a version, as a page and as Markdown."""

    page: str
    markdown: str

    @classmethod
    def read(cls, folder: Path, page: str, markdown: str) -> Card:
        """Reads the card's two files. Raises DataMissing where there is none."""
        if not (folder / page).is_file():
            raise missing_file("the model card", folder / page)
        return cls((folder / page).read_text(encoding="utf-8"), (folder / markdown).read_text(encoding="utf-8"))

    def __str__(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown.strip().partition("\n")[0].lstrip("# ")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # In a frame, so that the styles of the page and of the notebook do not mix.
        frame = (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox style="width:100%;height:{_CARD_HEIGHT_PX}px;'
            'border:1px solid #ccc"></iframe>'
        )
        return {"text/html": frame, "text/markdown": self.markdown, "text/plain": repr(self)}


@dataclass(frozen=True)
class ParetoFront:
    """The candidates of a run, best first, with their scores, sizes and latencies, and the plot of the Pareto front."""

    title: str
    rows: tuple[dict[str, str], ...]  # as text
    columns: dict[str, list[Any]]  # as numbers
    picture: bytes | None  # PNG

    def to_pandas(self) -> pd.DataFrame:
        """A row for each candidate, with numbers."""
        import pandas as pd

        return pd.DataFrame(self.columns)

    def __str__(self) -> str:
        lines = [[*self.rows[0]], *([*row.values()] for row in self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = ("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([self.title, *(text.rstrip() for text in texts)])

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        names = dict.fromkeys(name for row in self.rows for name in row if name not in _HIDDEN)
        shown = [*(name for name in names if name != _LAST), *(name for name in names if name == _LAST)]
        table = html_table(self.title, shown, [[row.get(name, "") for name in shown] for row in self.rows])
        bundle: dict[str, Any] = {"text/html": table, "text/plain": str(self)}
        if self.picture is not None:
            content = base64.b64encode(self.picture).decode()
            bundle["text/html"] += (
                f'<img alt="{html.escape(self.title)}" style="max-width:100%" src="data:image/png;base64,{content}">'
            )
            bundle["image/png"] = content
        return bundle


@dataclass(frozen=True)
class ConfusionMatrix:
    """How many held-out rows of each class were predicted as each class: `counts` int64 (K, K), rows are the truth."""

    label: str
    classes: tuple[object, ...]
    counts: np.ndarray

    @property
    def recalls(self) -> np.ndarray:
        """The share of each class's rows that are predicted correctly, float64 (K,); NaN without rows."""
        totals = self.counts.sum(axis=1)
        return np.where(totals > 0, np.diagonal(self.counts) / np.maximum(totals, 1), np.nan)

    def to_pandas(self) -> pd.DataFrame:
        """The counts, with the true classes as index and the predicted ones as columns."""
        import pandas as pd

        names = list(self.classes)
        index, columns = pd.Index(names, name=f"true {self.label}"), pd.Index(names, name="predicted")
        return pd.DataFrame(self.counts, index=index, columns=columns)

    def __str__(self) -> str:
        return self.to_pandas().to_string(max_rows=_MAX_CLASSES, max_cols=_MAX_CLASSES)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = f"true {self.label} in rows, predicted in columns: {int(self.counts.sum()):,} held-out rows"
        if len(self.classes) > _MAX_CLASSES:
            return html_table(title, ("true", "predicted", "rows"), self._confusions(), "the most frequent confusions")
        cell = _CELL.format(align="right")
        names = [html.escape(str(name)) for name in self.classes]
        head = "".join(f'<th style="{cell}">{name}</th>' for name in ("", *names, "recall"))
        body = ""
        for name, counts, recall in zip(names, self.counts, self.recalls, strict=True):
            shares = counts / max(counts.sum(), 1)
            cells = "".join(
                f'<td style="{cell};background:rgba(31,119,180,{0.65 * share:.2f})">{count:,}</td>'
                for count, share in zip(counts.tolist(), shares.tolist(), strict=True)
            )
            share_text = "" if np.isnan(recall) else f"{recall:.1%}"
            body += f'<tr><th style="{cell}">{name}</th>{cells}<td style="{cell}">{share_text}</td></tr>'
        return (
            f"<div><b>{html.escape(title)}</b></div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _confusions(self) -> list[tuple[object, object, int]]:
        errors = self.counts - np.diag(np.diagonal(self.counts))
        order = np.argsort(-errors, axis=None, kind="stable")[:_MAX_CONFUSIONS]
        pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
        return [(self.classes[row], self.classes[column], int(errors[row, column])) for row, column in pairs]


def missing_file(what: str, path: Path) -> DataMissing:
    return DataMissing(
        f"{what} of this version is not here",
        required="the outputs of its run",
        where=str(path),
        remedy="run the recipe again, which writes what `bloomery gc` has removed; or use the machine that ran it",
    )
