"""Calls beside this one: threads that start in the network namespace of the caller (clone(2)), so that
a namespace that was entered is theirs too. Lighter to start than concurrent.futures."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """A call under way in a thread of its own."""

    def __init__(self, call: Callable[[], T]):
        self.call = call
        self.values: list[T] = []
        self.error: BaseException | None = None
        self.thread = Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        try:
            self.values.append(self.call())
        except BaseException as error:  # noqa: BLE001  raised where the result is asked for
            self.error = error

    def result(self) -> T:
        """What the call gave, once it has ended. Raises what it raised."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.values[0]


@contextmanager
def begun(call: Callable[[], T]) -> Iterator[Begun[T]]:
    """*call* beside the body; it has ended when the body has."""
    beside = Begun(call)
    try:
        yield beside
    finally:
        beside.thread.join()


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of *calls*, made side by side. Raises what the first that fails raised, after all ended."""
    others = [Begun(call) for call in calls[1:]]
    try:
        first = [call() for call in calls[:1]]
    finally:
        for other in others:
            other.thread.join()
    return first + [other.result() for other in others]
