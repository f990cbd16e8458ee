"""Makes a stage of a function: its output is stored and looked up, it runs as a Prefect task, and it emits events.

Prefect is imported with the first task: a look-up does not need it, and the import takes more than a second.
"""

from __future__ import annotations

import errno
import functools
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from bloomery.data_contracts.records.records import Record
from bloomery.tasks.orchestration import events, stage_store
from bloomery.tasks.orchestration.code_version import code_version
from bloomery.tasks.orchestration.progress_artifact import report_progress
from bloomery.tasks.orchestration.stage_store import Output

if TYPE_CHECKING:
    from prefect import Task

P = ParamSpec("P")
RecordT = TypeVar("RecordT", bound=Record)

_TRANSIENT_ERRNOS = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}


class Stage(Generic[P, RecordT]):
    """A stage, used in three ways: called in plain Python, looked up without running, and run as a Prefect task.

    `lookup` returns the record of an earlier run, or None. `as_task` runs the Prefect task `task`.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Output, P], RecordT],
        *,
        is_complete: Callable[[RecordT], bool],
        publish: Callable[[RecordT], None],
        further_modules: tuple[str, ...],
        bundled_modules: tuple[str, ...],
    ) -> None:
        functools.update_wrapper(self, function)
        self.name = function.__name__
        self._function: Callable[..., RecordT] = function
        self._kind: type[RecordT] = get_type_hints(function)["return"]
        self._is_complete = is_complete
        self._publish = publish
        self._modules = (function.__module__, *further_modules)
        self._bundled_modules = bundled_modules

    @functools.cached_property
    def task(self) -> Task[P, RecordT]:
        return _as_task(self)

    def key(self, *arguments: Any) -> str:
        return stage_store.key_of(
            self.name, code_version(*self._modules, bundled_modules=self._bundled_modules), arguments
        )

    def lookup(self, *arguments: P.args, **_: P.kwargs) -> RecordT | None:
        return stage_store.find(self.name, self.key(*arguments), self._kind, self._is_complete)

    def __call__(self, *arguments: P.args, **_: P.kwargs) -> RecordT:
        return self._run(*arguments).record

    def as_task(self, *arguments: P.args, **_: P.kwargs) -> RecordT:
        """Runs as a Prefect task inside a flow and returns its record.

        A record contains the records of all earlier stages, and Prefect would draw an arrow from each of them. With
        `opaque` it sees only the outermost record, and with `quote` no part of the recipe, so the run graph is a line.
        """
        from prefect.client.schemas.objects import State
        from prefect.utilities.annotations import opaque, quote

        call: Any = self.task
        inputs = (opaque(value) if isinstance(value, Record) else quote(value) for value in arguments)
        result = call(*inputs)
        # A task that returns a state, here the one named Found, returns that state to its caller too.
        return result.result() if isinstance(result, State) else result

    def _run(self, *arguments: Any) -> stage_store.Outcome[RecordT]:
        events.emit(events.StageStarted(self.name))
        start = time.perf_counter()
        try:
            outcome = stage_store.find_or_compute(
                self.name,
                self.key(*arguments),
                self._kind,
                lambda out: self._function(out, *arguments),
                self._is_complete,
            )
        except BaseException as failure:
            seconds = time.perf_counter() - start
            events.emit(events.StageEnded(self.name, "failed", seconds, type(failure).__name__))
            raise
        result = "found" if outcome.was_found else "computed"
        events.emit(events.StageEnded(self.name, result, time.perf_counter() - start))
        return outcome


def stage(
    *,
    is_complete: Callable[[Any], bool] = lambda record: True,
    publish: Callable[[Any], None] = lambda record: None,
    further_modules: tuple[str, ...] = (),
    bundled_modules: tuple[str, ...] = (),
) -> Callable[[Callable[Concatenate[Output, P], RecordT]], Stage[P, RecordT]]:
    """Makes a stage of a function that writes into an `Output` and returns a record.

    Args:
        is_complete: whether the parts of a stored output outside the stage's folder, such as an MLflow run, exist.
        publish: creates the Prefect artifacts of a record.
        further_modules: modules or packages that determine the output, beside the function's own module.
        bundled_modules: modules whose code becomes part of the output.
    """
    return lambda function: Stage(
        function,
        is_complete=is_complete,
        publish=publish,
        further_modules=further_modules,
        bundled_modules=bundled_modules,
    )


def _as_task(definition: Stage[P, RecordT]) -> Task[P, RecordT]:
    from prefect import Task
    from prefect.context import TaskRunContext
    from prefect.states import Completed

    @functools.wraps(definition._function)
    def run(*arguments: P.args, **_: P.kwargs) -> Any:
        if TaskRunContext.get() is None:
            return definition._run(*arguments).record
        with report_progress(definition.name):
            outcome = definition._run(*arguments)
        definition._publish(outcome.record)
        return Completed(data=outcome.record, name="Found") if outcome.was_found else outcome.record

    # The signature of the stage without `out`, which callers do not pass.
    run.__signature__ = _signature_without_first(definition._function)  # type: ignore[attr-defined]
    return Task(
        fn=run,
        name=definition.name,
        task_run_name=definition.name,
        retries=2,
        retry_delay_seconds=1,
        retry_condition_fn=_is_transient,
        persist_result=False,
    )


def _signature_without_first(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _is_transient(task: Any, task_run: Any, state: Any) -> bool:
    """Only failures of input and output are retried: any other failure would repeat."""
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, ConnectionError | TimeoutError):
        return True
    return isinstance(failure, OSError) and failure.errno in _TRANSIENT_ERRNOS
