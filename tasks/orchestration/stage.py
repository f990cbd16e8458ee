"""What makes a function a stage: its output is kept and found again, it is a Prefect task, it can be watched."""

from __future__ import annotations

import errno
import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from prefect import Task
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.utilities.annotations import opaque, quote

from bloomery.data_contracts.records.records import Record
from bloomery.tasks.orchestration import events, stage_store
from bloomery.tasks.orchestration.code_version import code_version
from bloomery.tasks.orchestration.progress_artifact import report_progress
from bloomery.tasks.orchestration.stage_store import Output

P = ParamSpec("P")
RecordT = TypeVar("RecordT", bound=Record)

_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENETUNREACH, errno.EHOSTUNREACH}


class Stage(Generic[P, RecordT]):
    """A stage in three forms: called in plain Python, looked up without running, and as a Prefect task.

    `lookup` gives the record of an earlier run, or None. `as_task` runs the Prefect task `task`.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Output, P], RecordT],
        *,
        is_whole: Callable[[RecordT], bool],
        present: Callable[[RecordT], None],
        also: tuple[str, ...],
        carried: tuple[str, ...],
    ) -> None:
        functools.update_wrapper(self, function)
        self.name = function.__name__
        self._function: Callable[..., RecordT] = function
        self._kind: type[RecordT] = get_type_hints(function)["return"]
        self._is_whole = is_whole
        self._present = present
        self._modules = (function.__module__, *also)
        self._carried = carried
        self.task: Task[P, RecordT] = _as_task(self)

    def key(self, *arguments: Any) -> str:
        return stage_store.key_of(self.name, code_version(*self._modules, carried=self._carried), arguments)

    def lookup(self, *arguments: P.args, **_: P.kwargs) -> RecordT | None:
        return stage_store.find(self.name, self.key(*arguments), self._kind, self._is_whole)

    def __call__(self, *arguments: P.args, **_: P.kwargs) -> RecordT:
        return self._run(*arguments).record

    def as_task(self, *arguments: P.args, **_: P.kwargs) -> RecordT:
        """Runs as a Prefect task inside a flow and returns its record.

        A record holds the records of all earlier stages, and Prefect would draw an arrow from each of them. `opaque`
        shows it the outermost record only and `quote` no part of the recipe, so the run graph is a line.
        """
        call: Any = self.task
        inputs = (opaque(value) if isinstance(value, Record) else quote(value) for value in arguments)
        returned = call(*inputs)
        # A task that returns a state, to be shown as Found, gives the state to its caller too.
        return returned.result() if isinstance(returned, State) else returned

    def _run(self, *arguments: Any) -> stage_store.Outcome[RecordT]:
        events.emit(events.StageStarted(self.name))
        start = time.perf_counter()
        try:
            outcome = stage_store.find_or_compute(
                self.name,
                self.key(*arguments),
                self._kind,
                lambda out: self._function(out, *arguments),
                self._is_whole,
            )
        except BaseException as failure:
            seconds = time.perf_counter() - start
            events.emit(events.StageEnded(self.name, "failed", seconds, type(failure).__name__))
            raise
        how = "found" if outcome.was_found else "computed"
        events.emit(events.StageEnded(self.name, how, time.perf_counter() - start))
        return outcome


def stage(
    *,
    is_whole: Callable[[Any], bool] = lambda record: True,
    present: Callable[[Any], None] = lambda record: None,
    also: tuple[str, ...] = (),
    carried: tuple[str, ...] = (),
) -> Callable[[Callable[Concatenate[Output, P], RecordT]], Stage[P, RecordT]]:
    """Make a stage of a function that writes into an `Output` and returns a record.

    `is_whole` is asked of a found record about what lies outside the stage's folder. `present` puts what a person would
    look at into the Prefect run. `also` names modules or packages beyond the function's own module that determine the
    output, and `carried` modules whose code becomes part of it.
    """
    return lambda function: Stage(function, is_whole=is_whole, present=present, also=also, carried=carried)


def _as_task(made: Stage[P, RecordT]) -> Task[P, RecordT]:
    @functools.wraps(made._function)
    def run(*arguments: P.args, **_: P.kwargs) -> Any:
        if TaskRunContext.get() is None:
            return made._run(*arguments).record
        with report_progress(made.name):
            outcome = made._run(*arguments)
        made._present(outcome.record)
        return Completed(data=outcome.record, name="Found") if outcome.was_found else outcome.record

    # The signature is the stage's without `out`, which no caller gives.
    run.__signature__ = _signature_without_first(made._function)  # type: ignore[attr-defined]
    return Task(
        fn=run,
        name=made.name,
        task_run_name=made.name,
        retries=2,
        retry_delay_seconds=1,
        retry_condition_fn=_is_passing,
        persist_result=False,
    )


def _signature_without_first(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _is_passing(task: Any, task_run: Any, state: Any) -> bool:
    """Only input and output is tried again: a wrong answer stays wrong."""
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, ConnectionError | TimeoutError):
        return True
    return isinstance(failure, OSError) and failure.errno in _PASSING
