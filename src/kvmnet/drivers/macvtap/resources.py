"""What stands at a macvtap beside the link itself: its gate, that it is up, its device file. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.policy.marks import GUEST
from kvmnet.records import dataclass

SHOT, UNSPEC = 2, 0xFFFF_FFFF
"""TC_ACT_SHOT drops, TC_ACT_UNSPEC asks the next classifier (linux/pkt_cls.h)."""
MARK = 0xFFFF_F014
"""Where classic BPF finds the packet's mark: SKF_AD_OFF + SKF_AD_MARK (linux/filter.h)."""
PROGRAM = ",".join((f"32 0 0 {MARK}", f"84 0 0 {GUEST}", "21 0 1 0", f"6 0 0 {SHOT}", f"6 0 0 {UNSPEC}"))
"""ld mark; and GUEST; if 0: drop; else: go on. As ``tc`` is told, without the number of instructions."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Gate(Resource):
    """A classifier on a macvtap that drops what its guard has not judged; named by the device.

    It goes with the device and with nothing else, so the port stays closed when all rules are flushed.
    """

    kind: ClassVar[str] = "gate"
    dev: str | None = option(doc="the macvtap", ref="link", on_delete="cascade", recreate=True)
    program: str | None = option(doc="instructions of classic BPF, as tc writes them")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OpenPort(Resource):
    """That a macvtap is up; named by the device. It goes up after its gate and its guard's hook, and down before."""

    kind: ClassVar[str] = "open-port"
    gate: str | None = option(doc="gate that must stand", ref="gate", on_delete="delete")
    hook: str | None = option(doc="hook of its guard that must stand", ref="guard-hook", on_delete="delete")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TapNode(Resource):
    """The device file by which another program opens a macvtap; named by the device."""

    kind: ClassVar[str] = "tap-node"
    dev: str | None = option(doc="the macvtap", ref="link", on_delete="delete", recreate=True)
    user: int | None = option(doc="uid that may open it", recreate=True)
    fits: bool | None = option(doc="it is the file of the macvtap of this name, with mode 0600", recreate=True)
