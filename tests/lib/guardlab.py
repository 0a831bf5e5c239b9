"""One bridge with an attacker, a victim and an outside, and the guard that a compiler would make."""
from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from kvmnet.drivers.linux.batch import run_batch
from kvmnet.drivers.macvtap.driver import lines_of
from kvmnet.drivers.nftables.resources import NftTable, NicGuard
from kvmnet.drivers.nftables.wire import change, element_lines, hook_lines, table_lines
from kvmnet.engine.plan import Create
from kvmnet.host.clock import wait_until
from kvmnet.policy.egress import TABLE as EGRESS
from kvmnet.policy.egress import egress_table, guest_port
from kvmnet.policy.guard import guard_table, link_local, nic_guard
from kvmnet.policy.keeper import HELD
from lib.netns import sh
from lib.tap import Tap


@dataclass(frozen=True)
class End:
    """Addresses of one party on the bridge."""

    mac: str
    ip4: str
    ip6: str

    @property
    def local(self) -> str:
        return str(link_local(self.mac))


ATTACKER = End("02:00:00:00:00:0a", "10.0.0.10", "fd00::a")
VICTIM = End("02:00:00:00:00:0b", "10.0.0.11", "fd00::b")
OUTSIDE = End("02:00:00:00:00:0c", "10.0.0.12", "fd00::c")
HOST = End("02:00:00:00:00:fe", "10.0.0.254", "fd00::fe")
BRIDGE = "kvb-lan"


def plain_guard(tap: str, end: End, **more: Iterable[str] | Iterable[int]) -> NicGuard:
    return nic_guard(tap, "full", [end.mac, *map(str, more.pop("macs", ()))],
                     [end.ip4, end.ip6], bridge=BRIDGE, protected=[HOST.ip4, HOST.ip6], **more)  # type: ignore[arg-type]


def guard_script(guards: Iterable[NicGuard]) -> str:
    """The nft script that puts the guard and *guards* in place, and the host's closed door for taps."""
    _, added = change((), guards)
    taps = NftTable(name="inet kvmnet-keeper", text=HELD["inet kvmnet-keeper"].partition("; chain forward")[0] + "\n")
    return "\n".join((*table_lines(guard_table()), *element_lines("add", added), *table_lines(taps))) + "\n"


def egress_script(guards: Iterable[NicGuard]) -> str:
    """The same for macvtaps: every guard with its hook."""
    guards = [replace(g, table=EGRESS) for g in guards]
    hooks = [guest_port(g.name)[1] for g in guards]
    _, added = change((), guards)
    return "\n".join((*table_lines(egress_table()), *element_lines("add", added),
                      *(line for hook in hooks for line in hook_lines(hook)))) + "\n"


class HostEnd:
    """What the bridge hands up to the host, as a sink like a tap."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind((BRIDGE, 0))
        self.seen: list[bytes] = []

    def drain(self) -> list[bytes]:
        while True:
            try:
                data, address = self.socket.recvfrom(70000, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return self.seen
            if address[2] != socket.PACKET_OUTGOING:
                self.seen.append(data)

    def got(self, nonce: bytes) -> int:
        return sum(nonce in frame for frame in self.drain())


class Lab:
    """Taps are open descriptors; ``outside`` stands for the uplink and has no guard.

    The forwarding entries are sticky, so that one attack does not spoil the ground for the next.
    """

    never = frozenset({"group source MAC"})
    """Attacks that the port itself refuses, without any guard."""

    def __init__(self, stack: ExitStack):
        sh(f"ip link add {BRIDGE} address {HOST.mac} type bridge mcast_snooping 0 forward_delay 0")
        sh(f"ip link set {BRIDGE} up; ip addr add {HOST.ip4}/24 dev {BRIDGE}; "
           f"ip addr add {HOST.ip6}/64 dev {BRIDGE} nodad")
        self.attacker = stack.enter_context(Tap("kvt-attacker"))
        self.victim = stack.enter_context(Tap("kvt-victim"))
        self.outside = stack.enter_context(Tap("wan0"))
        for tap in (self.attacker, self.victim, self.outside):
            sh(f"sysctl -qw net.ipv6.conf.{tap.name}.disable_ipv6=1; ip link set {tap.name} master {BRIDGE} up")
        for tap, end in ((self.victim, VICTIM), (self.outside, OUTSIDE)):
            sh(f"bridge fdb add {end.mac} dev {tap.name} master sticky static")
        self.host = HostEnd()
        stack.callback(self.host.socket.close)
        self.sinks: dict[str, Tap | HostEnd] = {"guest": self.victim, "host": self.host, "outside": self.outside}
        self.guards = [plain_guard("kvt-attacker", ATTACKER), plain_guard("kvt-victim", VICTIM)]
        wait_until(lambda: sh(f"bridge link show dev {self.attacker.name}").count("state forwarding"), 20)

    def guard(self, *guards: NicGuard) -> None:
        """The guard with *guards*, those named like the usual ones in their place."""
        named = {g.name: g for g in (*self.guards, *guards)}
        sh(f"nft -f - <<'EOF'\n{guard_script(named.values())}EOF")
        sh(f"ip link set {BRIDGE} type bridge no_linklocal_learn 1")

    def open(self) -> None:
        """No guard at all."""
        sh(f"nft flush ruleset; ip link set {BRIDGE} type bridge no_linklocal_learn 0")

    def forget(self) -> None:
        self.victim.forget()
        self.outside.forget()
        self.attacker.forget()
        self.host.drain()
        self.host.seen.clear()

    def leaked(self, frames: Iterable[bytes]) -> dict[str, int]:
        """Send *frames* as the attacker's guest; how many came out where.

        A frame of the outside follows each lot on the same path, so that nothing is still on its way.
        """
        frames = list(frames)
        self.forget()
        nonce, last = b"N0" + os.urandom(10), b"L0" + os.urandom(10)
        for frame in frames:
            self.attacker.send(frame + nonce)
        self.outside.send(b"\xff" * 6 + b"\x02\0\0\0\0\x0c" + b"\x88\xb5" + bytes(46) + last)
        wait_until(lambda: self.victim.got(last) and self.host.got(last), 20)
        cut = {frame for frame in frames if len(frame) > 20}  # br_netfilter cuts what follows an IP packet
        return {where: sum(nonce in seen or seen in cut for seen in sink.drain())
                for where, sink in self.sinks.items()}


class MacvtapLab(Lab):
    """The same without a bridge: macvtaps on ``wan0``, whose descriptor is the wire, and a macvlan of the host's."""

    never = frozenset()

    def __init__(self, stack: ExitStack):
        self.outside = stack.enter_context(Tap("wan0"))
        sh("sysctl -qw net.ipv6.conf.wan0.disable_ipv6=1; ip link set wan0 up")
        sh(f"ip link add link wan0 name {BRIDGE} address {HOST.mac} type macvlan mode bridge; "
           f"ip link set {BRIDGE} allmulticast on up; ip addr add {HOST.ip4}/24 dev {BRIDGE}; ip addr add {HOST.ip6}/64 dev {BRIDGE} nodad")
        for name, end in (("kvt-attacker", ATTACKER), ("kvt-victim", VICTIM)):
            sh(f"ip link add link wan0 name {name} address {end.mac} type macvtap mode bridge; "
               f"ip link set {name} addrgenmode none allmulticast on arp off up")
        self.attacker, self.victim = (stack.enter_context(Tap.of_macvtap(n)) for n in ("kvt-attacker", "kvt-victim"))
        self.host = HostEnd()
        stack.callback(self.host.socket.close)
        self.sinks = {"guest": self.victim, "host": self.host, "outside": self.outside}
        self.guards = [plain_guard("kvt-attacker", ATTACKER), plain_guard("kvt-victim", VICTIM)]

    def guard(self, *guards: NicGuard) -> None:
        named = {g.name: g for g in (*self.guards, *guards)}
        sh(f"nft -f - <<'EOF'\n{egress_script(named.values())}EOF")

    def open(self) -> None:
        sh("nft flush ruleset")

    def gate(self) -> None:
        """What the compiler puts behind the hook of every guest's macvtap."""
        for name in ("kvt-attacker", "kvt-victim"):
            run_batch(lines_of(Create(guest_port(name)[0])), "tc")


PORTS = {"bridge": Lab, "macvtap": MacvtapLab}
"""Kind of a guest's port -> the place to try it."""


@contextmanager
def lab(port: str = "bridge") -> Iterator[Lab]:
    with ExitStack() as stack:
        yield PORTS[port](stack)
