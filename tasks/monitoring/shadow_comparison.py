"""What speaks for a challenger: its answers beside the champion's in the log, and labels that came later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.score_format import LOSSES, SCORES, loss_in_words
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.data_contracts.serving.prediction_log import SHADOW, read_log
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.delayed_labels import PLACE, once, read_labels


class Comparison(Document):
    """`agreement` is the share of rows with one label; for a regression there is the root mean square difference.

    The scores are accuracies, or RMSEs for a regression, of the rows whose label is known; `worse` is how much worse
    the challenger is on them, paired. Seconds are medians of the network's run.
    """

    champion: str
    challenger: str
    num_rows: int
    agreement: float | None
    rms_difference: float | None
    champion_seconds: float
    challenger_seconds: float
    num_labelled: int = 0
    champion_score: float | None = None
    challenger_score: float | None = None
    worse: Interval | None = None


def compare(name: str, champion: str, challenger: str | None, labels: Path | None = None) -> Comparison:
    """The two bentos on the rows that both have answered, one of them as shadow.

    Raises:
        DataMissing: there are no such rows, or no labels where they should be.
    """
    logged = _logged(name)
    shadows = logged.filter(pc.equal(logged["role"], SHADOW))
    if challenger is None and shadows.num_rows:
        challenger = pc.take(shadows["version"], [shadows.num_rows - 1])[0].as_py()
    theirs = once(shadows.filter(pc.equal(shadows["version"], challenger or "")))
    is_ours = pc.and_(pc.not_equal(logged["role"], SHADOW), pc.equal(logged["version"], champion))
    pairs = once(logged.filter(is_ours)).join(theirs, PLACE, join_type="inner", right_suffix="_theirs")
    if not pairs.num_rows:
        raise _nothing(name, champion, challenger)
    pairs = pairs.sort_by("at")
    ours, others = _answers(pairs["answer"]), _answers(pairs["answer_theirs"])
    is_figure = ours.dtype.kind == "f"
    seconds = [float(np.median(pairs[column].to_numpy())) for column in ("run_seconds", "run_seconds_theirs")]
    compared = Comparison(
        champion=champion,
        challenger=str(challenger),
        num_rows=pairs.num_rows,
        agreement=None if is_figure else float((ours == others).mean()),
        rms_difference=float(np.sqrt(((ours - others) ** 2).mean())) if is_figure else None,
        champion_seconds=seconds[0],
        challenger_seconds=seconds[1],
    )
    return compared if labels is None else _judged(compared, pairs.select(PLACE), ours, others, labels)


def require(name: str, champion: str, challenger: str, num_rows: int, agreement: float) -> None:
    """Raises ReleaseRefused where the challenger has not answered so many rows as shadow, or too few of them alike."""
    try:
        compared = compare(name, champion, challenger)
        found = compared.num_rows
    except DataMissing:
        compared, found = None, 0
    if found < num_rows:
        raise ReleaseRefused(
            f"{challenger} has answered {found:,} rows beside {champion}",
            required=f"{num_rows:,} rows",
            where=str(_folder(name)),
            remedy=f"let it run longer: bloomery serve {name} --shadow {name}:VERSION",
        )
    if compared is not None and compared.agreement is not None and compared.agreement < agreement:
        raise ReleaseRefused(
            f"{challenger} and {champion} agree on {compared.agreement:.2%} of {found:,} rows",
            required=f"{agreement:.2%}",
            where=str(_folder(name)),
            remedy="look at the rows where they differ; or ask for less, if the challenger is meant to differ",
        )


def in_words(compared: Comparison) -> list[str]:
    lines = [
        f"{compared.num_rows:,} rows were answered by {compared.champion} and, as shadow, by {compared.challenger}"
    ]
    if compared.agreement is not None:
        lines.append(f"they agree on {compared.agreement:.2%}")
    if compared.rms_difference is not None:
        lines.append(f"they differ by {compared.rms_difference:g} (root mean square)")
    ratio = compared.challenger_seconds / compared.champion_seconds
    lines.append(
        f"a run took {compared.champion_seconds * 1e6:.0f} and {compared.challenger_seconds * 1e6:.0f} µs: {ratio:.2f}x"
    )
    if compared.worse is not None:
        task: Task = "regression" if compared.agreement is None else "classification"
        worse = compared.worse
        low, value, high = (loss_in_words(task, one) for one in (worse.low, worse.value, worse.high))
        lines.append(
            f"of {compared.num_labelled:,} rows with a label: {SCORES[task]} {compared.champion_score:.4g} and "
            f"{compared.challenger_score:.4g}: a {LOSSES[task]} of {value} (95% interval {low} to {high})"
        )
    return lines


def _judged(compared: Comparison, places: pa.Table, ours: np.ndarray, theirs: np.ndarray, labels: Path) -> Comparison:
    from bloomery.models.evaluation.metrics import accuracy_drop, rmse_rise

    known = read_labels(labels)
    numbered = places.append_column("at", pa.array(np.arange(places.num_rows)))
    found = numbered.join(known, PLACE, join_type="inner")
    if not found.num_rows:
        raise DataMissing(
            f"{labels} has a label for none of the {places.num_rows:,} rows that both have answered",
            required="the ids of requests as the endpoint told them in x-request-id",
            where=str(labels),
            remedy="keep the id of each answer, and state it beside the label",
        )
    at, truth = found["at"].to_numpy(), found["label"].to_numpy()
    if compared.agreement is None:
        truth = truth.astype(np.float64)
        worse = rmse_rise(truth, ours[at], theirs[at])
        scores = [float(np.sqrt(((one[at] - truth) ** 2).mean())) for one in (ours, theirs)]
    else:
        # As text, since a label of 3 may have come as a number or as its name.
        right = [one[at].astype(str) == truth.astype(str) for one in (ours, theirs)]
        worse, scores = accuracy_drop(*right), [float(one.mean()) for one in right]
    return compared.model_copy(
        update={
            "num_labelled": found.num_rows,
            "champion_score": scores[0],
            "challenger_score": scores[1],
            "worse": worse,
        }
    )


def _folder(name: str) -> Path:
    return settings().home / "predictions" / name


def _logged(name: str) -> pa.Table:
    """What is logged under a name, without the columns that were asked."""
    tables = list(read_log(_folder(name), ["at", *PLACE, "version", "role", "run_seconds", "answer"]))
    if not tables:
        raise _nothing(name, None, None)
    flat = [table.drop(["answer"]).append_column("answer", pc.struct_field(table["answer"], 0)) for table in tables]
    return pa.concat_tables(flat)


def _nothing(name: str, champion: str | None, challenger: str | None) -> DataMissing:
    return DataMissing(
        f"no request was answered by {champion or 'a champion'} and, as shadow, by {challenger or 'a challenger'}",
        required="rows that both have answered",
        where=str(_folder(name)),
        remedy=f"serve both for a while: bloomery serve {name} --shadow {name}:VERSION",
    )


def _answers(answers: pa.ChunkedArray) -> np.ndarray:
    """Labels, or figures as float64."""
    found = answers.to_numpy()
    return found if pa.types.is_floating(answers.type) else found.astype(object)
