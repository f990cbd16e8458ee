"""A coroutine that is begun before anybody waits for it."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


class Begun(Generic[_Value]):
    """`coroutine` as far as it goes without waiting: to its end, and then `value` is what it gives, or None.

    To watch the time takes longer than to look whether there is anything to wait for.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, _Value]) -> None:
        self.value: _Value | None = None
        self._rest = coroutine
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration as ended:
            self.value = ended.value

    def __await__(self) -> Generator[Any, Any, _Value]:
        """The rest of a coroutine that has not come to its end."""
        try:
            yield self._waits_for
        except BaseException:
            self._rest.close()
            raise
        return (yield from self._rest.__await__())
