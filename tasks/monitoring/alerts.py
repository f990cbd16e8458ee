"""From where on what was found is an alarm: a limit is passed, and not by chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.monitoring import Alarm, Door, Drift, Judged, Monitor
from bloomery.data_contracts.records.score_format import SCORES, figure_in_words, score_in_words
from bloomery.data_contracts.records.tensor_layout import Task


def alarms(monitor: Monitor, task: Task, drifts: Sequence[Drift], door: Door, judged: Judged | None) -> Iterator[Alarm]:
    for drift in drifts:
        if drift.is_drifted:
            words = f"{drift.name} has drifted: PSI {drift.psi:.3g}, limit {monitor.psi:g}"
            yield Alarm(kind="drift", words=f"{words} (chance {drift.corrected:.1g}, {drift.num_rows:,} rows)")
    if judged is not None:
        yield from _of_score(monitor, task, judged)
    for found, limit, words in (
        (door.refused, monitor.refused_share, "of the requests broke the contract and were refused"),
        (door.failed, monitor.failed_share, "of the requests were answered with 5xx"),
        (door.slow, monitor.slow_share, f"of the requests took longer than {monitor.latency_ms:g} ms"),
    ):
        if found is not None and found.low > limit:
            yield Alarm(kind="service", words=f"{found.value:.2%} {words}, limit {limit:.2%}")


def _of_score(monitor: Monitor, task: Task, judged: Judged) -> Iterator[Alarm]:
    found = judged.score if judged.weighted is None else judged.weighted
    usual = judged.held_out
    if task == "regression":
        is_worse = found.low > usual.high and found.value >= usual.value * (1 + monitor.error_rise)
        limit = f"a rise of {monitor.error_rise:.0%}"
    else:
        is_worse = found.high < usual.low and found.value <= usual.value - monitor.score_drop
        limit = f"a drop of {monitor.score_drop:.1%}"
    if is_worse:
        yield Alarm(
            kind="drift",
            words=f"{SCORES[task]} is {score_in_words(task, found)} on {judged.num_labelled:,} rows with a label, and "
            f"was {figure_in_words(task, usual.value)} on the held-out rows; limit {limit}",
        )
