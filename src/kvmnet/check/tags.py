"""Priorities in VLAN tags (802.1Q PCP), read where frames leave the host: the port of a guest never has a tag."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing, suppress

from kvmnet.bpf.code import packed
from kvmnet.check.idle import Idle
from kvmnet.check.mirrors import WHOLE
from kvmnet.check.model import Finding, failed, passed, skipped
from kvmnet.check.promises import Place
from kvmnet.check.rates import Target, datagram
from kvmnet.host.clock import wait_until
from kvmnet.host.ring import Ring
from kvmnet.spec.guests import Nic
from kvmnet.spec.networks import Network

PATIENCE = 2.0
BLOCKS = 8


def tagged(place: Place, idle: Idle) -> Finding | None:
    """Priorities of what an idle NIC sends: without a DSCP, and with one of each class that has a priority."""
    network, station = place.segment.network, idle.station
    declared: Nic = idle.nic.declared
    wanted = priorities_of(declared, network)
    if not place.segment.wire or station is None or not any(wanted.values()):
        return None
    if declared.groups or not place.subject.allowed.sends_anything(idle.nic.tap):
        return skipped("its groups limit what it sends")
    if not (station.ip and place.other_ip):
        return skipped("no IPv4 address for the NIC or for somebody outside")
    nobody = Target(place.other_mac, place.other_ip, place.segment.wire)
    marked = {code: os.urandom(12) for code in wanted}
    found = heard(place.segment.wire, station.send, {nonce: datagram(station, nobody, nonce, 100, code) for code, nonce in marked.items()})
    got = {code: found.get(nonce) for code, nonce in marked.items()}
    said = ", ".join(f"DSCP {code} leaves by {place.segment.wire} {'not at all' if pcp is None else f'with priority {pcp}'}" for code, pcp in got.items())
    return passed(said) if got == wanted else failed(f"{said}; wanted " + ", ".join(f"{code} with {pcp}" for code, pcp in wanted.items()))


def priorities_of(nic: Nic, network: Network) -> dict[int, int]:
    """DSCP that a guest gives its packets -> the priority that the document promises for it."""
    codes = [0, *(group.dscp[0] for group in network.classes.values() if group.pcp is not None)]
    return {code: priority_of(marked(nic, code), nic, network) for code in codes}


def marked(nic: Nic, code: int) -> int:
    """The DSCP of a NIC's packet behind its mark."""
    mark = nic.mark
    return code if mark.dscp is None or (mark.trust and code) else mark.dscp


def priority_of(code: int, nic: Nic, network: Network) -> int:
    group = next((group for group in network.classes.values() if code in group.dscp), None)
    return (group.pcp if group else nic.mark.pcp) or 0


def heard(device: str, send: Callable[[bytes], object], frames: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """The priority in the tag of each frame that leaves by *device*. ``frames``: nonce in a frame -> the frame, which *send* sends."""
    found: dict[bytes, int] = {}
    with closing(Ring(device, packed(WHOLE), BLOCKS)) as ring:
        for frame in frames.values():
            send(frame)

        def every() -> bool:
            for seen in ring.drain():
                found.update({nonce: seen.data[14] >> 5 for nonce in frames if seen.outgoing and nonce in seen.data
                              and seen.data[12:14] == b"\x81\0"})
            return len(found) == len(frames)
        with suppress(TimeoutError):    # what has not come is missed by who asks
            wait_until(every, PATIENCE)
    return found
