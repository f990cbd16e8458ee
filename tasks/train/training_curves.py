"""What is told of a training under way: a line for the display, and the curves of its run in MLflow."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import psutil

from bloomery.data_contracts.records.score_format import SCORE_NAMES, format_score_value
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.models.training.loop import EpochResult, StepProgress

_MOST_POINTS = 200  # of one figure
_SENT_EVERY_S = 5.0
_SAMPLED_EVERY_S = 2.0  # figures of the machine, at first; less often as the training lasts


class TrainingCurves:
    """Hears of each step and epoch of one training; sends figures together, seldom, and at most so many of each.

    A score of a regression is told in the label's units, of which `unit` makes one standard unit.
    """

    def __init__(
        self, run_id: str, task: Task, unit: float, num_epochs: int, steps_of_epoch: int, num_rows: int
    ) -> None:
        self.unit = unit
        self._run_id, self._task = run_id, task
        self._num_epochs, self._steps_of_epoch, self._num_rows = num_epochs, max(steps_of_epoch, 1), num_rows
        self._waiting: list[tuple[int, dict[str, float]]] = []
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._started = self._sent = self._sampled = self._epoch_began = time.monotonic()
        self._paces: list[float] = []  # rows a second, of each epoch
        self._first_step: int | None = None  # where a training that goes on was
        self._next_point = self._latest_step = 0
        self._score = ""

    def on_step(self, step: StepProgress) -> None:
        if step.number >= self._next_point:
            self._next_point = step.number + -(-step.num_steps // _MOST_POINTS)
            figures = {"step_loss": step.loss, "step_learning_rate": step.learning_rate}
            self._add(step.number, figures, step.number)
        self._tell(step.number, step.epoch, step.loss, step.learning_rate)

    @property
    def rows_per_second(self) -> float:
        """Of the middle epoch, with its validation. The first may have begun in the middle, where one was killed."""
        return statistics.median(self._paces[1:] or self._paces or [0.0])

    def on_epoch(self, epoch: EpochResult) -> None:
        began, self._epoch_began = self._epoch_began, time.monotonic()
        self._paces.append(self._num_rows / max(self._epoch_began - began, 1e-9))
        step = epoch.number * self._steps_of_epoch
        name = f"val_{SCORE_NAMES[self._task].lower()}"
        score = epoch.val_score * self.unit
        figures = {
            "train_loss": epoch.train_loss,
            "val_loss": epoch.val_loss,
            name: score,
            "learning_rate": epoch.learning_rate,
            "rows_per_second": self._paces[-1],
        }
        self._score = f", validation {SCORE_NAMES[self._task]} {format_score_value(self._task, score)}"
        self._add(epoch.number, figures, step)
        self._tell(step, epoch.number, epoch.train_loss, epoch.learning_rate)

    def close(self) -> None:
        """Send what is left."""
        self._sample(self._latest_step)
        self._send()

    def _add(self, at: int, figures: dict[str, float], step: int) -> None:
        self._waiting.append((at, figures))
        self._latest_step = step
        now = time.monotonic()
        if now - self._sampled >= max(_SAMPLED_EVERY_S, (now - self._started) / _MOST_POINTS):
            self._sample(step)
        if now - self._sent >= _SENT_EVERY_S:
            self._send()

    def _sample(self, at: int) -> None:
        """Figures of the machine, so of all processes on it that train, under the names by which MLflow knows them."""
        self._sampled = time.monotonic()
        memory = psutil.virtual_memory()
        figures = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        }
        self._waiting.append((at, figures | _of_gpu()))

    def _send(self) -> None:
        self._sent = time.monotonic()
        mlflow_runs.log_metric_steps(self._run_id, self._waiting)
        self._waiting = []

    def _tell(self, step: int, epoch: int, loss: float, rate: float) -> None:
        num_steps = self._num_epochs * self._steps_of_epoch
        if self._first_step is None:
            # The time of what was done before a kill is not known.
            self._first_step = max(step - self._steps_of_epoch, 0)
        pace = (time.monotonic() - self._started) / max(step - self._first_step, 1)
        left = _in_words(pace * max(num_steps - step, 0))
        note = f"epoch {epoch}/{self._num_epochs}, loss {loss:.4f}, rate {rate:.2g}{self._score}, {left} left"
        emit(Progress("train", step, num_steps, note))


def _of_gpu() -> dict[str, float]:
    import torch

    figures: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        figures[f"system/gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
        figures[f"system/gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
    return figures


def _in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
