"""Reports a running training: a progress line for the display, and training curves in MLflow."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import psutil

from bloomery.data_contracts.records.score_format import format_score_value
from bloomery.data_contracts.records.scores import Score
from bloomery.tasks.orchestration.events import Progress, emit, format_duration
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.models.training.loop import EpochResult, StepProgress
    from bloomery.models.training.stages import PlannedEpoch

_MAX_POINTS = 200  # of one metric
_SEND_INTERVAL_S = 5.0
_SAMPLE_INTERVAL_S = 2.0  # of system metrics, at first; longer as training goes on


class TrainingCurves:
    """Collects the metrics of each step and epoch, and logs them in batches with at most `_MAX_POINTS` per metric.

    A regression's score is logged in the units of the label: `unit` of them are one standard unit.
    """

    def __init__(self, run_id: str, score: Score, unit: float, epochs: list[PlannedEpoch]) -> None:
        self.unit = unit
        self._run_id, self._recipe_score, self._epochs = run_id, score, epochs
        self._pending: list[tuple[int, dict[str, float]]] = []
        psutil.cpu_percent()  # the first call has no interval to measure
        self._started = self._sent = self._sampled = self._epoch_started = time.monotonic()
        self._throughputs: list[float] = []  # rows per second, by epoch
        self._first_step: int | None = None  # of a resumed training
        self._next_point = self._latest_step = 0
        self._score = ""

    def on_step(self, step: StepProgress) -> None:
        if step.number >= self._next_point:
            self._next_point = step.number + -(-self._epochs[-1].last_step // _MAX_POINTS)
            values = {"step_loss": step.loss, "step_learning_rate": step.learning_rate}
            self._add(step.number, values, step.number)
        self._report_progress(step.number, step.epoch, step.loss, step.learning_rate)

    @property
    def rows_per_second(self) -> float:
        """The median over epochs, including validation; the first is left out, since a resumed run shortens it."""
        return statistics.median(self._throughputs[1:] or self._throughputs or [0.0])

    def on_epoch(self, epoch: EpochResult) -> None:
        started, self._epoch_started = self._epoch_started, time.monotonic()
        planned = self._epochs[epoch.number - 1]
        self._throughputs.append(planned.num_rows / max(self._epoch_started - started, 1e-9))
        if planned.objective != "task":
            losses = {"pretraining_loss": epoch.train_loss, "pretraining_val_loss": epoch.val_loss}
            self._add(epoch.number, {**losses, "learning_rate": epoch.learning_rate}, planned.last_step)
            self._report_progress(planned.last_step, epoch.number, epoch.train_loss, epoch.learning_rate)
            return
        step = planned.last_step
        name = f"val_{self._recipe_score.name}"
        score = epoch.val_score * self.unit
        values = {
            "train_loss": epoch.train_loss,
            "val_loss": epoch.val_loss,
            name: score,
            "learning_rate": epoch.learning_rate,
            "rows_per_second": self._throughputs[-1],
        }
        self._score = f", validation {self._recipe_score.title} {format_score_value(self._recipe_score, score)}"
        self._add(epoch.number, values, step)
        self._report_progress(step, epoch.number, epoch.train_loss, epoch.learning_rate)

    def close(self) -> None:
        """Logs the remaining metrics."""
        self._sample(self._latest_step)
        self._send()

    def _add(self, position: int, values: dict[str, float], step: int) -> None:
        self._pending.append((position, values))
        self._latest_step = step
        now = time.monotonic()
        if now - self._sampled >= max(_SAMPLE_INTERVAL_S, (now - self._started) / _MAX_POINTS):
            self._sample(step)
        if now - self._sent >= _SEND_INTERVAL_S:
            self._send()

    def _sample(self, step: int) -> None:
        """Adds system metrics of the machine, for all its training processes, under MLflow's own names."""
        self._sampled = time.monotonic()
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        }
        self._pending.append((step, values | _gpu_metrics()))

    def _send(self) -> None:
        self._sent = time.monotonic()
        mlflow_runs.log_metric_steps(self._run_id, self._pending)
        self._pending = []

    def _report_progress(self, step: int, epoch: int, loss: float, rate: float) -> None:
        num_steps = self._epochs[-1].last_step
        if self._first_step is None:
            # The duration of steps before a kill is unknown.
            self._first_step = max(step - self._epochs[0].last_step, 0)
        seconds_per_step = (time.monotonic() - self._started) / max(step - self._first_step, 1)
        remaining = format_duration(seconds_per_step * max(num_steps - step, 0))
        note = f"epoch {epoch}/{len(self._epochs)}, loss {loss:.4f}, rate {rate:.2g}{self._score}, {remaining} left"
        emit(Progress("train", step, num_steps, note))


def _gpu_metrics() -> dict[str, float]:
    import torch

    values: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        values[f"system/gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"system/gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
    return values
