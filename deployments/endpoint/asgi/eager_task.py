"""A coroutine that runs at once up to its first suspension.

`asyncio.eager_task_factory` does the same from Python 3.12 on.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


class EagerTask(Generic[_Value]):
    """Runs `coroutine` up to its first suspension. `value` is its result if it ends before, else None.

    A result that is available at once needs no timeout.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, _Value]) -> None:
        self.value: _Value | None = None
        self._coroutine = coroutine
        try:
            self._awaited = coroutine.send(None)
        except StopIteration as stop:
            self.value = stop.value

    def __await__(self) -> Generator[Any, Any, _Value]:
        """Awaits the rest of a coroutine that has not ended."""
        try:
            yield self._awaited
        except BaseException:
            self._coroutine.close()
            raise
        return (yield from self._coroutine.__await__())
