"""Signals around a change: an end that is asked for becomes an exception, a rollback is not cut short."""
from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit in the body, as SIGINT raises KeyboardInterrupt."""
    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handled((signal.SIGTERM, signal.SIGHUP), end):
        yield


@contextmanager
def held_off() -> Iterator[None]:
    """No ending signal reaches the body. Handlers, not masks: programs started inside inherit nothing."""
    with handled(ENDING, lambda number, frame: None):
        yield


@contextmanager
def handled(signals: tuple[signal.Signals, ...], how: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Python runs handlers in the main thread only; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [n for n in signals if signal.getsignal(n) is not signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, how) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
