"""Alerts of a monitoring window: a limit is exceeded, and by more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.monitoring import Alert, Drift, LabelledScore, Monitor, RequestStats
from bloomery.data_contracts.records.score_format import SCORE_NAMES, format_score, format_score_value
from bloomery.data_contracts.records.tensor_layout import Task, predicts_numbers


def find_alerts(
    monitor: Monitor, task: Task, drifts: Sequence[Drift], requests: RequestStats, labelled_score: LabelledScore | None
) -> Iterator[Alert]:
    for drift in drifts:
        if drift.is_drifted:
            message = f"{drift.name} has drifted: PSI {drift.psi:.3g}, limit {monitor.psi:g}"
            yield Alert(
                kind="drift",
                message=f"{message} (corrected p-value {drift.corrected_p_value:.1g}, {drift.num_rows:,} rows)",
            )
    if labelled_score is not None:
        yield from _check_score(monitor, task, labelled_score)
    for share, limit, message in (
        (requests.rejected, monitor.max_rejected_share, "of the requests were rejected for violations of the contract"),
        (requests.failed, monitor.max_failed_share, "of the requests failed with a 5xx status"),
        (requests.slow, monitor.max_slow_share, f"of the requests took longer than {monitor.latency_ms:g} ms"),
    ):
        if share is not None and share.low > limit:
            yield Alert(kind="service", message=f"{share.value:.2%} {message}, limit {limit:.2%}")


def _check_score(monitor: Monitor, task: Task, labelled_score: LabelledScore) -> Iterator[Alert]:
    score = labelled_score.score if labelled_score.weighted_score is None else labelled_score.weighted_score
    reference = labelled_score.held_out_score
    if predicts_numbers(task):
        is_worse = score.low > reference.high and score.value >= reference.value * (1 + monitor.error_rise)
        limit = f"a rise of {monitor.error_rise:.0%}"
    else:
        is_worse = score.high < reference.low and score.value <= reference.value - monitor.score_drop
        limit = f"a drop of {monitor.score_drop:.1%}"
    if is_worse:
        yield Alert(
            kind="drift",
            message=f"{SCORE_NAMES[task]} is {format_score(task, score)} on {labelled_score.num_labelled:,} labelled "
            f"rows, and was {format_score_value(task, reference.value)} on held-out rows; limit {limit}",
        )
