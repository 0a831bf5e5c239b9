"""Queueing disciplines that a document may choose for a device. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.tc.resources import Qdisc, qdisc_name
from kvmnet.spec.uplinks import Uplink

FEATURES = {"fq_codel": "tc-fq-codel", "fq": "tc-fq", "cake": "tc-cake", "noqueue": "tc-noqueue", "mq": "tc-mq"}
"""Discipline -> feature of the host."""
ALL_FLOWS, ALL_PACKETS = 1024, 10240
"""fq_codel of a whole device, as the kernel has it (fq_codel_init() in net/sched/sch_fq_codel.c)."""
NO_LEAF = ("noqueue", "mq")
"""Those that are of a whole device, never inside of another."""


def queued_nics(uplink: Uplink) -> tuple[str, ...]:
    """NICs whose queue ``qdisc`` of an uplink chooses; none for what has no NIC of its own, a VLAN or a tunnel."""
    if uplink.on or uplink.vlan or uplink.wireguard:
        return ()
    return uplink.members or (*((uplink.device,) if uplink.device else ()), *uplink.redundant)


def root_queue(dev: str, discipline: str) -> Qdisc:
    """The whole queue of a device."""
    whole = {"packets": ALL_PACKETS, "flows": ALL_FLOWS} if discipline == "fq_codel" else {}
    return Qdisc(name=qdisc_name(dev), dev=dev, parent="root", below="", of="", discipline=discipline, **whole)


def uplink_queues(uplink: Uplink) -> Iterator[Qdisc]:
    """Those that an uplink chooses for its NICs."""
    if uplink.qdisc:
        yield from (root_queue(device, uplink.qdisc) for device in queued_nics(uplink))
