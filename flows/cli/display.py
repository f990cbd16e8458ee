"""Terminal output of the command line: stages while they run, and the table of candidates at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bloomery.data_contracts.records.records import Choice, Release
from bloomery.data_contracts.records.score_format import class_noun, degradation_name, format_number, format_score_value
from bloomery.data_contracts.records.tensor_layout import predicts_row_classes
from bloomery.tasks.evaluation.baseline_text import baseline_rows, explain_loss
from bloomery.tasks.evaluation.candidate_table import describe_other_scores, explain_baseline, format_weakest_class
from bloomery.tasks.evaluation.output_scores import describe_class_output, describe_output
from bloomery.tasks.orchestration import events

_LINE_INTERVAL_S = 2.0
_LINE_INTERVAL_SHARE = 0.02  # of the time that the stage has run
_NAME_WIDTH = 12  # of a class in the table of candidates
_SYMBOLS = {"computed": "[green]✓[/]", "found": "[cyan]=[/]", "ready": "[green]✓[/]"}
_SYMBOLS |= {"decided": "[yellow]?[/]", "failed": "[red]✗[/]"}


@contextlib.contextmanager
def engine_output_to_log(log: Path) -> Iterator[tuple[Console, Console]]:
    """Sends the output of this process and its children to `log`. Yields consoles for the real output and errors.

    Java, BentoML and others write to the file descriptors directly, which redirection in Python does not catch.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    real_out, real_err = os.dup(1), os.dup(2)
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        with (
            _open_stream(real_out, sys.stdout, real_err) as out,
            _open_stream(real_err, sys.stderr, real_err) as err,
        ):
            yield LineConsole(file=out), LineConsole(file=err, stderr=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(real_out, 1)
        os.dup2(real_err, 2)
        os.close(real_out)
        os.close(real_err)


@contextlib.contextmanager
def _open_stream(descriptor: int, stream: TextIO, err: int) -> Iterator[TextIO]:
    """Opens the descriptor in the encoding of `stream`. A letter that it lacks is written as `?`.

    What cannot be stored at the end, such as on a full disk, is reported to the descriptor `err`, with exit code 1.
    """
    opened = open(descriptor, "w", closefd=False, encoding=stream.encoding, errors="replace")  # noqa: SIM115
    try:
        yield opened
    except BaseException:
        with contextlib.suppress(OSError):
            opened.close()
        raise
    try:
        opened.close()
    except BrokenPipeError:  # its reader has ended, and wants no more
        pass
    except OSError as failure:
        text = f"\n✗ the command has ended, but its output cannot be written: {failure.strerror}\n"
        with contextlib.suppress(OSError):
            os.write(err, text.encode())
        raise SystemExit(1) from None


class LineConsole(Console):
    """A console that never wraps a line of text, so that commands and paths in it can be copied.

    Tables and trees still fit its width. `:bug:` and the like in a text stay as they are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Writes no more. A reader that has ended, such as `head`, must not end a run."""
        self.quiet = True
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, self.file.fileno())
        os.close(null_device)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        is_text = all(isinstance(item, str | Text) for item in objects)
        super().print(*objects, soft_wrap=is_text if soft_wrap is None else soft_wrap, **options)


class ProgressDisplay:
    """Shows a line per stage, with its progress: updated live in a terminal, otherwise as plain lines.

    Plain lines of progress are at least `_LINE_INTERVAL_S` apart, and more in a stage that runs for long.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._stage_start = self._last_line = clock()
        self._ended: list[events.StageEnded] = []
        self._running: str | None = None
        self._latest: events.Progress | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)

    def __enter__(self) -> ProgressDisplay:
        self._unsubscribe = events.subscribe(self._on_event)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()
        self._running = None
        if self._console.is_terminal:
            self._live.stop()

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.StageStarted():
                self._running, self._latest = event.name, None
                self._stage_start = self._last_line = self._clock()
            case events.Progress():
                self._latest = event
                if not self._console.is_terminal:
                    self._print_progress(event)
            case events.Waiting():
                self._console.print(event.text, markup=False, highlight=False)
            case events.StageEnded():
                self._running = None
                self._ended.append(event)
                if not self._console.is_terminal:
                    self._console.print(_line(event))
                    self._console.file.flush()

    def _print_progress(self, event: events.Progress) -> None:
        now = self._clock()
        seconds = now - self._stage_start
        if now - self._last_line < max(_LINE_INTERVAL_S, _LINE_INTERVAL_SHARE * seconds):
            return
        self._last_line = now
        text = f"  {event.name:<9} {event.done}/{event.total}, {event.note}{self._time_left(event, seconds)}"
        self._console.print(text, markup=False, highlight=False)
        self._console.file.flush()  # a file or a pipe would keep it for long

    @staticmethod
    def _time_left(event: events.Progress, seconds: float) -> str:
        """Returns the time left by the steps so far, unless the event's note has it."""
        if not 0 < event.done < event.total or event.note.endswith(" left"):
            return ""
        return f", about {events.format_duration(seconds / event.done * (event.total - event.done))} left"

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = [_line(event) for event in self._ended]
        if self._running is not None:
            lines.append(self._current(self._running))
        return Group(*lines)

    def _current(self, name: str) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        if self._latest is None:
            row.add_row(Spinner("dots"), f"{name}…")
        else:
            bar = ProgressBar(total=self._latest.total, completed=self._latest.done, width=24)
            steps = f"{self._latest.done}/{self._latest.total}"
            row.add_row(Spinner("dots"), f"{name:<9}", bar, steps, Text(self._latest.note, style="dim"))
        return row


def _line(event: events.StageEnded) -> Text:
    note = f"  [dim]{escape(event.note)}[/]" if event.note else ""
    text = f"{_SYMBOLS[event.outcome]} {event.name:<9} {event.outcome:<9} {event.seconds:7.2f} s{note}"
    return Text.from_markup(text, emoji=False)


def print_release(console: Console, release: Release, seconds: float, reference: str, period: str | None) -> None:
    """Prints the candidates, the release, an example prediction, and the next commands.

    `reference` and `period` are the arguments of the run: its recipe may be a path, which the release does not contain.
    """
    choice = release.bento.choice
    console.print()
    console.print(_candidates(release))
    loss = degradation_name(choice.candidates.trained.score)
    task = choice.candidates.trained.dataset.task
    weakest = f"weakest: the {class_noun(task)} of lowest recall; " if predicts_row_classes(task) else ""
    console.print(
        f"[dim]{weakest}{loss}: how much worse than fp32 at most, with 95% confidence; time: relative to fp32[/]"
    )
    if scores := describe_other_scores(choice):
        console.print(f"[dim]{escape(scores)}[/]")
    for output in choice.candidate.outputs:
        console.print(escape(describe_output(output)))
    for class_output in choice.candidate.class_outputs:
        console.print(escape(describe_class_output(class_output)))
    if (explanation := explain_baseline(choice)) is not None:
        console.print(escape(explanation))
    for verdict in choice.verdicts:
        if verdict.reasons:
            state = "" if verdict.passed else "rejected: "
            console.print(f"[dim]{escape(verdict.name)} is {state}{escape('; '.join(verdict.reasons))}[/]")
    _print_baselines(console, choice)
    console.print()
    example = json.loads(release.example)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    replaced = "" if release.replaced_version is None else f", replacing version {release.replaced_version}"
    facts.add_row(
        "registered", f"[bold]{escape(release.name)} version {release.version}[/] is {escape(_role(release))}{replaced}"
    )
    facts.add_row("bento", f"[bold]{release.bento.tag}[/]")
    facts.add_row(
        "prediction",
        f"over HTTP, held-out row {escape(str(example['key']))}: {_describe_prediction(example)} "
        f"({release.num_smoke_test_rows} of {release.num_smoke_test_rows} rows equal the measured predictions)",
    )
    trained = choice.candidates.trained
    rows = trained.dataset
    facts.add_row(
        "data",
        f"{rows.train.num_rows} train, {rows.val.num_rows} val, {rows.test.num_rows} held out; "
        f"{rows.valid_rows.num_quarantined} quarantined",
    )
    facts.add_row("time", f"{seconds:.1f} s")
    console.print(facts)
    console.print("\n[dim]next:[/]")
    # After `make run` the command is installed, but not on the PATH.
    installed = Path(sys.executable).parent / "bloomery"
    program = installed.relative_to(Path.cwd()) if installed.is_relative_to(Path.cwd()) else installed
    bloomery = "bloomery" if shutil.which("bloomery") else str(program)
    arguments = shlex.join([reference, *(() if period is None else ("--period", period))])
    for command, purpose in (
        (f"{bloomery} serve {release.name}", "serve it on http://127.0.0.1:3000"),
        (f"{bloomery} show {release.name}@champion", "how good it is"),
        (f"{bloomery} check {arguments}", "what another run would compute"),
    ):
        line = f"  [bold]{escape(command):<{len(bloomery) + 22}}[/] [dim]{purpose}[/]"
        console.print(line, soft_wrap=True)  # a wrapped command could not be copied
    if (explanation := explain_loss(choice)) is not None:
        console.print(f"\n[yellow]{escape(explanation)}[/]")


def _print_baselines(console: Console, choice: Choice) -> None:
    """Prints the score of each baseline, and whether the chosen candidate is better."""
    rows = baseline_rows(choice)
    if not rows:
        return
    table = Table(title="baselines on the same rows", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in rows[0]:
        table.add_column(
            heading, overflow="fold", justify="right" if heading not in ("baseline", "verdict") else "left"
        )
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console.print(table)


def _role(release: Release) -> str:
    return (
        "champion" if release.alias == "champion" else f"the version for {release.alias}; the champion has newer data"
    )


def _describe_prediction(example: dict[str, Any]) -> str:
    if "dimensions" in example:
        return f"[bold]a vector of {example['dimensions']} values[/]"
    if "value" in example:
        return f"[bold]{format_number(example['value'])}[/]; the true value is {format_number(example['truth'])}"
    if "classes" in example:
        classes = ", ".join(f"{escape(name)} {escape(str(label))}" for name, label in example["classes"].items())
        truth = escape(", ".join("unknown" if label is None else label for label in example["truth"]))
        return f"[bold]{classes}[/]; the true classes are {truth}"
    if "tags" in example:
        tags, truth = (
            " ".join("–" if tag is None else str(tag) for tag in example[name]) for name in ("tags", "truth")
        )
        return f"[bold]{escape(tags)}[/]; the true tags are {escape(truth)}"
    if "values" in example:
        values = ", ".join(f"{escape(name)} {format_number(value)}" for name, value in example["values"].items())
        truth = ", ".join("unknown" if value is None else format_number(value) for value in example["truth"])
        return f"[bold]{values}[/]; the true values are {truth}"
    if "labels" in example:
        labels, truth = (escape(", ".join(map(str, example[name])) or "no label") for name in ("labels", "truth"))
        return f"[bold]{labels}[/]; the true labels are {truth}"
    label, truth = (escape(str(example[name])) for name in ("label", "truth"))  # an unescaped [/] would end a style
    return f"[bold]{label}[/] with probability {example['probability']:.3f}; the true label is {truth}"


def _candidates(release: Release) -> Table:
    choice = release.bento.choice
    score = choice.candidates.trained.score
    verdicts = {verdict.name: verdict for verdict in choice.verdicts}
    table = Table(
        title=f"{escape(release.name)}: candidates on the held-out rows",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # In a narrow terminal long names of candidates wrap, or else those of classes, and no number is cut off.
    has_short_names = all(len(candidate.name) <= _NAME_WIDTH for candidate in choice.candidates.candidates)
    table.add_column("candidate", overflow="fold", no_wrap=has_short_names)
    task = score.facts.task
    weakest = ["weakest"] if predicts_row_classes(task) else []
    title = score.title.replace(" ", "\n", 1)  # narrow, so that the names of candidates need not wrap
    for heading in (title, *weakest, degradation_name(score), "size", "p50", "time", "verdict"):
        is_name = heading == "weakest" and has_short_names
        alignment: Literal["left", "right"] = "left" if heading == "verdict" else "right"
        table.add_column(heading, justify=alignment, no_wrap=not is_name, overflow="fold")
    for candidate in choice.candidates.candidates:
        is_chosen, passed = candidate.name == choice.candidate.name, verdicts[candidate.name].passed
        table.add_row(
            escape(candidate.name),
            format_score_value(score, candidate.score.value),
            *([escape(format_weakest_class(candidate, width=_NAME_WIDTH))] if weakest else []),
            f"≤{candidate.max_degradation * 100:.1f}{'%' if score.is_error else 'pp'}",
            f"{candidate.size_bytes / 1000:.1f} kB",
            f"{candidate.latency.p50_ms * 1000:.0f} µs{candidate.latency.where}",
            f"{candidate.latency.ratio.value:.2f}x",
            "chosen" if is_chosen else "passed" if passed else "rejected",
            style="bold green" if is_chosen else "" if passed else "dim",
        )
    return table
