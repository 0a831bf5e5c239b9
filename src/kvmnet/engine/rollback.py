"""Bringing a host back to an image: plan from what is there now, apply, look, until nothing is left to do.

It depends on the kernel and the drivers only: not on the database, and on no free disk space.
"""
from __future__ import annotations

from collections.abc import Callable

from kvmnet.engine.borrow import without_holders
from kvmnet.engine.dispatch import Dispatch
from kvmnet.engine.driver import Progress, Seen, StepFailed
from kvmnet.engine.journal import Image
from kvmnet.engine.plan import Step, plan
from kvmnet.engine.resource import Absent, State, Wanted
from kvmnet.errors import KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.host.run import ToolFailed

EXPECTED = (StepFailed, ToolFailed, KvmnetError, OSError)
"""How a step fails that the host refuses. Anything else is a bug of ours."""

ROUNDS = 3
"""How often a rollback looks again and plans anew: a batch that failed half-way shifts the ground."""


class StillOff(Exception):
    """The host did not become as it was. ``detail`` says what is left and why."""

    def __init__(self, detail: str):
        super().__init__(detail)
        self.detail = detail


def restore(dispatch: Dispatch, image: Image, settle: float,
            started: Callable[[int], Progress]) -> None:
    """Make the host as *image* says. Raises StillOff.

    ``settle``: seconds that the last look waits for things to settle. ``started``: told how many
    steps a round has, gives back what to call as they are done.
    """
    trouble = ""
    for last in (False,) * (ROUNDS - 1) + (True,):
        try:
            seen = dispatch.observe(image.wanted)
            steps = steps_back(image, seen)
            if not steps:
                return
            dispatch.apply(steps, started(len(steps)))
            if settled(dispatch, image, settle if last else min(settle, 0.5)):
                return
        except EXPECTED as error:
            trouble = said(error)
    left = steps_back(image, dispatch.observe(image.wanted))
    if left:
        raise StillOff("; ".join(filter(None, (trouble, f"still off: {named(left)}"))))


def steps_back(image: Image, seen: Seen) -> tuple[Step, ...]:
    return plan(seen.state, feasible(image, seen.state), frozenset(), adopt=True)


def feasible(image: Image, seen: State) -> Wanted:
    """*image* without what can no longer be had: settings of things that others removed meanwhile."""
    gone = {k for k in image.partial if k not in seen}
    suspects = {k for k, r in image.wanted.items()
                if k not in seen and k not in gone and not isinstance(r, Absent)}
    if not gone and not suspects:
        return image.wanted
    wanted = {k: r for k, r in image.wanted.items() if k not in gone}
    for key in without_holders(wanted, seen, suspects):
        del wanted[key]
    return wanted


def settled(dispatch: Dispatch, image: Image, timeout: float) -> bool:
    try:
        wait_until(lambda: not steps_back(image, dispatch.observe(image.wanted)), timeout, 0.05)
    except TimeoutError:
        return False
    return True


def said(error: BaseException) -> str:
    """What went wrong, in words for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def named(steps: tuple[Step, ...], most: int = 5) -> str:
    """Steps in words: ``create link kvb-lan, update link eth0 (mtu 1400 -> 1500)``."""
    words = [describe(step) for step in steps[:most]]
    return ", ".join(words) + (f" and {len(steps) - most} more" if len(steps) > most else "")


def describe(step: Step) -> str:
    text = f"{type(step).__name__.lower()} {step.key}"
    changes = getattr(step, "changes", None)
    if not changes:
        return text
    return text + " (" + ", ".join(f"{n} {old} -> {new}" for n, (old, new) in changes.items()) + ")"
