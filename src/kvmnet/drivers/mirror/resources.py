"""Copies of frames from one device to another, and devices that take nothing in. Pure.

Both are classifiers of ``tc`` on the device itself, and go with it. A copy bears a cookie by which it is known as ours.
"""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass

SIDES = ("ingress", "egress")
SHUT = 1
"""Preference of the classifier that lets nothing in: before all others."""
FIRST, LAST = 16, 4111
"""Preferences of copies: after the gate of a macvtap and before filters that lead frames elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Copy(Resource):
    """One side of a device whose frames are copied; named ``DEV SIDE NUMBER``, the number being the mirror's.

    The copy is handed to the other device as if the host sent it there: it passes no bridge, and no rule of one. When there
    is no room for it, or no carrier, the copy is lost and the frame goes on (tcf_mirred_act() in net/sched/act_mirred.c).
    """

    kind: ClassVar[str] = "copy"
    dev: str | None = option(doc="the link whose frames are copied", ref="link", on_delete="cascade", recreate=True)
    side: str | None = option(doc="ingress: what comes in by it; egress: what leaves", recreate=True)
    receiver: str | None = option(doc="the link that sends the copies; '' when it is gone", ref="link")
    program: str | None = option(doc="which frames: instructions of classic BPF, as tc writes them")
    mirror: str | None = option(doc="mirror that it belongs to", once=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Shut(Resource):
    """A link that takes nothing in, whoever sends; named by it. For devices that copies alone go out by."""

    kind: ClassVar[str] = "shut"
    dev: str | None = option(doc="the link", ref="link", on_delete="cascade", recreate=True)
    whole: bool | None = option(doc="the classifier is as it was made")
    up: bool | None = option(doc="the link is up, where it goes up only when it takes nothing in")


def copy_name(dev: str, side: str, number: int) -> str:
    return f"{dev} {side} {number}"
