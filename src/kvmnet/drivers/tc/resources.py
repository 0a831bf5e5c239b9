"""Queueing disciplines, their classes, and frames that take a way round by a device that has a queue. Pure.

Ours are known by their handles: the kernel has no other mark on them. ``MAJOR`` is the root of a device (or what hangs
below it, counted up); nobody writes such numbers by hand, and where somebody did, the plan says so.
"""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass

MAJOR = 0x6B76
"""Handle of our root on a device: ``kv``."""
TREES = range(0x6C00, 0x7000)
"""Handles of trees of classes, each of which has one of its own: a packet keeps the class that it had in one when it comes to
another, and is in none of that one's classes."""
LEAVES = range(0x7000, 0x8000)
"""Handles of the queues of classes."""
SORTERS = range(0x6C00, 0x7000)
"""Preferences of what sorts frames into classes of an htb."""
RECEIVERS = 0x7000
"""Preference of what finds the class of a frame by its destination: behind those."""
LAST = LEAVES[-1]
"""Handles from MAJOR to here are ours."""
PREF = 0x6B76
"""Preference of our filter at a device's ingress; a mirror that shall see the frames has a smaller one."""

INGRESS, EGRESS = "ingress", "egress"
"""Sides of a device."""
ALL = "6 0 0 4294967295"
"""Program of classic BPF that takes every frame: ret -1."""
STEP = 4096
"""Bursts are whole multiples, in bytes. The kernel keeps a burst as a time in ticks of 64 ns (PSCHED_SHIFT in
include/net/pkt_sched.h), which at 200 Gbit/s are 1,600 bytes: what is read back is rounded to this."""
TICKS = 15_625_000
"""Ticks in a second."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Qdisc(Resource):
    """A queueing discipline; named ``DEV HANDLE``, e.g. ``kvt-web1-0 6b76:``."""

    kind: ClassVar[str] = "qdisc"
    dev: str | None = option(doc="the link whose outgoing frames wait in it", ref="link", on_delete="cascade", recreate=True)
    parent: str | None = option(doc="root, or the class that it is the queue of", recreate=True)
    below: str | None = option(doc="discipline that it is inside of; '' for a root", ref="qdisc", on_delete="cascade",
                               recreate=True)
    of: str | None = option(doc="class that it is the queue of, where classes are things of their own", ref="tc-class",
                            on_delete="cascade", recreate=True)
    discipline: str | None = option(doc="tbf: one rate; htb: classes; fq_codel: fair among flows, short; bfifo: one line; fq, cake, noqueue, mq: the document's choice", recreate=True)
    rate: int | None = option(doc="tbf: most, kbit/s, in bytes of frames without their checksum", guest="live")
    burst: int | None = option(doc="tbf: bytes that may pass at once", guest="live")
    limit: int | None = option(doc="tbf, bfifo: bytes that may wait", guest="live")
    default: int | None = option(doc="htb: class of frames that are in no other; 0: they do not wait", recreate=True)
    packets: int | None = option(doc="fq_codel: packets that may wait", guest="live")
    flows: int | None = option(doc="fq_codel: queues that flows are hashed to", recreate=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TcClass(Resource):
    """A class of an htb; named ``DEV CLASSID``, e.g. ``eth0 6b76:1a``. Rates in kbit/s."""

    kind: ClassVar[str] = "tc-class"
    qdisc: str | None = option(doc="its htb", ref="qdisc", on_delete="cascade", recreate=True)
    parent: str | None = option(doc="class that it borrows from; '' for none", ref="tc-class", on_delete="delete", recreate=True)
    rate: int | None = option(doc="what it gets in any case, kbit/s", guest="live")
    ceil: int | None = option(doc="most that it gets, kbit/s", guest="live")
    burst: int | None = option(doc="bytes that may pass at once of what it gets in any case", guest="live")
    cburst: int | None = option(doc="bytes that may pass at once of the most", guest="live")
    priority: int | None = option(doc="who borrows first; the smallest does", guest="live")
    quantum: int | None = option(doc="bytes that it borrows in its turn: equal ones share equally; shown of leaves alone", once=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Detour(Resource):
    """Frames of a device go through the queue of another first; what comes in by it, named by
    the device, or what it sends, named ``DEV egress``.

    What comes in comes back as if it had just come in, so that all hooks of nftables see the device that it came by; what is sent
    comes back before the device's own queue.
    """

    kind: ClassVar[str] = "detour"
    dev: str | None = option(doc="the device", ref="link", on_delete="cascade", recreate=True)
    to: str | None = option(doc="the device with the queue (ifb); '' when they go astray", ref="link", on_delete="delete")
    into: str | None = option(doc="class of its queue that they wait in, e.g. 6c01:10; '' when it has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorter(Resource):
    """What leads some frames of an htb to a class of it, where no hook of nftables has seen them yet; named ``DEV PREF``."""

    kind: ClassVar[str] = "sorter"
    qdisc: str | None = option(doc="its htb", ref="qdisc", on_delete="cascade", recreate=True)
    program: str | None = option(doc="which frames: instructions of classic BPF, as tc writes them")
    into: str | None = option(doc="their class", ref="tc-class", on_delete="delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class MacTable(Resource):
    """A hash of MACs in an htb, by the last byte of the destination: one look for each frame, whatever their number. Named by the device."""

    kind: ClassVar[str] = "mac-table"
    qdisc: str | None = option(doc="the htb", ref="qdisc", on_delete="cascade", recreate=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver(Resource):
    """A MAC in such a table; named ``DEV MAC``."""

    kind: ClassVar[str] = "receiver"
    table: str | None = option(doc="the table", ref="mac-table", on_delete="cascade", recreate=True)
    node: str | None = option(doc="its place there: BUCKET:NUMBER", recreate=True)
    into: str | None = option(doc="class of the frames that go to it", ref="tc-class", on_delete="delete")


def qdisc_name(dev: str, major: int = MAJOR) -> str:
    """Name of a Qdisc."""
    return f"{dev} {major:x}:"


def class_name(dev: str, major: int, minor: int) -> str:
    """Name of a TcClass."""
    return f"{dev} {major:x}:{minor:x}"


def detour(dev: str, to: str, side: str = INGRESS, into: str = "") -> Detour:
    """The Detour of what passes *dev* on that side, complete."""
    return Detour(name=dev if side == INGRESS else f"{dev} {side}", dev=dev, to=to, into=into)


def side_of(detour: Detour) -> str:
    """Where its frames pass."""
    return detour.name.partition(" ")[2] or INGRESS


def is_ours(handle: str) -> bool:
    """Whether a qdisc's handle (``6b76:``) is one of ours."""
    major = int(handle.partition(":")[0] or "0", 16)
    return MAJOR <= major <= LAST


def in_steps(octets: float) -> int:
    """*octets* rounded to the next whole STEP, at least one."""
    return max(STEP, round(octets / STEP) * STEP)


def burst_of(rate: int, ticks: int) -> int:
    """Bytes of a burst that the kernel keeps as *ticks*, at *rate* kbit/s."""
    return in_steps(ticks * rate * 125 / TICKS)
