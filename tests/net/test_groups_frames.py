"""Groups frame by frame: replies, resets, zones, fragments, a member that leaves. Few processes, so that the lab can run it too.

The frames are those of guests: written to their taps. ``tests/lab/test_groups.py`` runs the same on bridge conntrack.
"""
from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.host.clock import wait_until
from kvmnet.modes.model import NicOnNetwork
from kvmnet.spec.names import tap_name
from lib.frames import TCP, UDP, ether, ip4, ip6, tcp, udp
from lib.netns import sh
from lib.tap import Tap
from lib.world import World, world

pytestmark = pytest.mark.net
IP4, IP6 = 0x0800, 0x86DD

DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.1.0.0/24, subnet6: "fd01::/64", dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"}
  one: {mode: isolated, subnet: 10.0.0.0/24, address: none}
  two: {mode: isolated, subnet: 10.0.0.0/24, address: none}
vms:
  a: {nics: [{network: lan, groups: [ask, base]}]}
  b: {nics: [{network: lan, groups: [answer]}]}
  e: {nics: [{network: lan, groups: [ask, narrow]}]}
  c1: {nics: [{network: one, ip: 10.0.0.1}]}
  d1: {nics: [{network: one, ip: 10.0.0.2, groups: [base]}]}
  c2: {nics: [{network: two, ip: 10.0.0.1}]}
  d2: {nics: [{network: two, ip: 10.0.0.2, groups: [base]}]}
groups:
  base: {}
  ask: {egress: [{udp: 53}, {tcp: 80, to: group:answer}]}
  narrow: {egress: [{tcp: 81}], refuse: reject}
  answer: {ingress: [{tcp: 80, udp: 53, from: group:ask}], refuse: reject}
"""
OPEN = re.sub(r", groups: \[[^]]+\]", "", DOCUMENT)
LEFT = DOCUMENT.replace("groups: [ask, base]", "groups: [base]")


@dataclass
class Wire:
    """The taps of all guests, and what the document gave them."""

    made: World
    taps: dict[str, Tap]
    nics: dict[str, NicOnNetwork]

    def packet(self, source: str, target: str, protocol: int, body: Callable[[str, str], bytes], six: bool = False) -> bytes:
        a, b = self.nics[source], self.nics[target]
        ends = (a.ip6, b.ip6) if six else (a.ip, b.ip)
        return ether(b.mac, a.mac, IP6 if six else IP4, (ip6 if six else ip4)(*ends, protocol, body(*ends)))

    def udp(self, source: str, target: str, sport: int, dport: int, nonce: bytes = b"", six: bool = False) -> bytes:
        return self.packet(source, target, UDP, lambda a, b: udp(a, b, sport, dport, nonce), six)

    def arrives(self, source: str, target: str, *frames: bytes, nonce: bytes) -> bool:
        """Whether something with *nonce* comes to *target*; a question by ARP behind it tells when it would have."""
        self.taps[target].forget()
        for frame in frames:
            self.taps[source].send(frame)
        self.settle(source, target)
        return bool(self.taps[target].got(nonce))

    def settle(self, source: str, target: str) -> None:
        a, mark = self.nics[source], os.urandom(8)
        question = b"\0\1\x08\0\6\4\0\1" + bytes.fromhex(a.mac.replace(":", "")) + bytes(map(int, a.ip.split("."))) + bytes(6)
        self.taps[source].send(ether("ff:ff:ff:ff:ff:ff", a.mac, 0x0806, question + bytes(map(int, self.nics[target].ip.split("."))) + mark))
        self.taps[target].wait(mark)

    def use(self, text: str) -> None:
        self.made.apply(text)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with world() as made, ExitStack() as stack:
        planned = made.plan(DOCUMENT)
        made.host.apply(planned)
        assert planned.compiled is not None
        nics = {nic.vm: nic for s in planned.compiled.segments.values() for nic in s.nics}
        taps = {vm: stack.enter_context(Tap(tap_name(vm, "nic0"))) for vm in nics}
        wait_until(lambda: sh("bridge link").count("state forwarding") >= len(taps), 20)
        yield Wire(made, taps, nics)


def asked(wire: Wire, six: bool) -> bool:
    return passes(wire, "a", "b", 1000, 53, six)


def passes(wire: Wire, source: str, target: str, sport: int, dport: int, six: bool = False) -> bool:
    nonce = os.urandom(12)
    return wire.arrives(source, target, wire.udp(source, target, sport, dport, nonce, six), nonce=nonce)


def fragments(wire: Wire, source: str, target: str, dport: int) -> bool:
    """A datagram in two parts, the second first; the nonce is in the part without ports."""
    nonce, a, b = os.urandom(12), wire.nics[source], wire.nics[target]
    whole = udp(a.ip, b.ip, 1001, dport, bytes(64) + nonce + bytes(20))
    parts = [ether(b.mac, a.mac, IP4, ip4(a.ip, b.ip, UDP, whole[64:], frag=8)), ether(b.mac, a.mac, IP4, ip4(a.ip, b.ip, UDP, whole[:64], frag=0x2000))]
    return wire.arrives(source, target, *parts, nonce=nonce)


def blind(wire: Wire, protocol: int) -> bool:
    """c2 and d2 open a flow; the reply of it, with the same addresses, on the other network."""
    if protocol == UDP:
        nonce = os.urandom(12)
        assert wire.arrives("d2", "c2", wire.udp("d2", "c2", 4444, 9, nonce), nonce=nonce)
        return passes(wire, "c1", "d1", 9, 4444)
    for source, target, ports, flags in (("d2", "c2", (5555, 80), 2), ("c2", "d2", (80, 5555), 18), ("d2", "c2", (5555, 80), 16)):
        frame = wire.packet(source, target, TCP, lambda a, b, p=ports, f=flags: tcp(a, b, *p, f))  # type: ignore[misc]
        assert wire.arrives(source, target, frame, nonce=frame[26:])
    frame = wire.packet("c1", "d1", TCP, lambda a, b: tcp(a, b, 80, 5555, 16))
    return wire.arrives("c1", "d1", frame, nonce=frame[26:])


def refusals(wire: Wire) -> dict[str, bool]:
    """What gets through that the groups do not allow."""
    return {
        "another port": passes(wire, "a", "b", 1002, 54), "another port by IPv6": passes(wire, "a", "b", 1002, 54, True),
        "unasked back": passes(wire, "b", "a", 1003, 999), "an empty group": passes(wire, "c1", "d1", 1004, 53),
        "fragments": fragments(wire, "a", "b", 54), "the reply of another network's flow": blind(wire, UDP),
        "the acknowledgement of another network's flow": blind(wire, TCP)}


def test_what_a_rule_allows_passes_and_so_does_its_reply(wire: Wire) -> None:
    for six in (False, True):
        assert asked(wire, six) and passes(wire, "b", "a", 53, 1000, six)
    assert fragments(wire, "a", "b", 53)


def test_nothing_else_does_and_without_groups_all_of_it_does(wire: Wire) -> None:
    assert [name for name, there in refusals(wire).items() if there] == []
    wire.use(OPEN)
    try:
        assert [name for name, there in refusals(wire).items() if not there] == []
    finally:
        wire.use(DOCUMENT)
    assert wire.made.drift() == []


def test_a_refusal_is_answered_in_the_name_of_the_receiver(wire: Wire) -> None:
    """A reset, or an ICMP error: the sender sees it, the receiver nothing."""
    a, b = wire.nics["a"], wire.nics["b"]
    neighbours(wire)
    for tap in wire.taps.values():
        tap.forget()
    wire.taps["a"].send(wire.packet("a", "b", TCP, lambda x, y: tcp(x, y, 1005, 81)))
    wait_until(lambda: any(f[12:14] == b"\x08\0" and f[23] == TCP and f[47] & 4 and f[34:38] == (81).to_bytes(2, "big") + (1005).to_bytes(2, "big")
                           for f in wire.taps["a"].drain()), 20)
    nonce = os.urandom(12)
    wire.taps["a"].send(wire.udp("a", "b", 1006, 82, nonce))
    wait_until(lambda: any(f[12:14] == b"\x08\0" and f[23] == 1 and f[34:36] == b"\x03\x0d" for f in wire.taps["a"].drain()), 20)
    assert not wire.taps["b"].got(nonce) and not wire.taps["b"].got(b"\x03\xed\0\x51")
    assert a.ip != b.ip


def test_what_a_member_may_not_send_is_answered_as_if_by_the_receiver(wire: Wire) -> None:
    """To a guest, to the host, and outside by way of the host: a reset each; without groups none of it."""
    neighbours(wire)
    sh("sysctl -qw net.ipv4.ip_forward=1")  # else an IP stack that is to answer drops what is for others
    assert [name for name, (there, reset) in sendings(wire, 82).items() if there or not reset] == []
    found = sendings(wire, 80)
    assert found["b"] == (True, False) and found["a"] == (False, True)
    wire.use(OPEN)
    try:
        assert [name for name, (_, reset) in sendings(wire, 83).items() if reset] == [] and sendings(wire, 84)["b"][0]
    finally:
        wire.use(DOCUMENT)
        sh("sysctl -qw net.ipv4.ip_forward=0")


def sendings(wire: Wire, port: int) -> dict[str, tuple[bool, bool]]:
    """What became of a TCP packet of ``e`` to each: whether it arrived, and whether a reset came back."""
    e, found = wire.nics["e"], {}
    router = json.loads(sh("ip -j link show kvb-lan"))[0]["address"]
    ends = {"a": (wire.nics["a"].mac, wire.nics["a"].ip), "b": (wire.nics["b"].mac, wire.nics["b"].ip),
            "b by IPv6": (wire.nics["b"].mac, wire.nics["b"].ip6), "the host": (router, "10.1.0.1"), "outside": (router, "203.0.113.1")}
    for number, (name, (mac, address)) in enumerate(ends.items()):
        own, six = (e.ip6, True) if ":" in address else (e.ip, False)
        sport = 2000 + 10 * port + number
        body = tcp(own, address, sport, port)
        frame = ether(mac, e.mac, IP6 if six else IP4, (ip6 if six else ip4)(own, address, TCP, body))
        there, start = wire.arrives("e", name[0] if name[0] in "ab" else "b", frame, nonce=frame[26:]), 54 if six else 34
        wire.settle("a", "e")
        found[name] = there, any(f[12:14] == frame[12:14] and f[start:start + 4] == struct.pack("!HH", port, sport) and f[start + 13] & 4
                                 for f in wire.taps["e"].drain())
    return found


def neighbours(wire: Wire) -> None:
    """The host has no way of asking a tap for its MAC: nobody answers there."""
    for name in ("a", "b", "e"):
        for address in (wire.nics[name].ip, wire.nics[name].ip6):
            sh(f"ip neigh replace {address} lladdr {wire.nics[name].mac} dev kvb-lan")


def test_a_rule_that_goes_takes_its_flows_along_and_no_others(wire: Wire) -> None:
    """In both families; a flow that another rule lets in goes on, and so does one of another network."""
    for six in (False, True):
        assert asked(wire, six) and passes(wire, "b", "a", 53, 1000, six)
    a, b = wire.nics["a"], wire.nics["b"]
    for source, target, ports, flags in (("a", "b", (1080, 80), 2), ("b", "a", (80, 1080), 18), ("a", "b", (1080, 80), 16)):
        frame = wire.packet(source, target, TCP, lambda x, y, p=ports, f=flags: tcp(x, y, *p, f))  # type: ignore[misc]
        assert wire.arrives(source, target, frame, nonce=frame[26:])
    assert passes(wire, "d2", "c2", 4444, 9)
    wire.use(DOCUMENT.replace("{tcp: 80, udp: 53, from: group:ask}", "{tcp: 80, from: group:ask}"))
    try:
        kept = {(f.source, f.target, f.port) for f in flows()}
        assert {(a.ip, b.ip, 80), (wire.nics["d2"].ip, wire.nics["c2"].ip, 9)} <= kept
        assert not {(a.ip, b.ip, 53), (a.ip6, b.ip6, 53)} & kept
        for six in (False, True):
            assert not passes(wire, "b", "a", 53, 1000, six) and not asked(wire, six)
        frame = wire.packet("b", "a", TCP, lambda x, y: tcp(x, y, 80, 1080, 16))
        assert wire.arrives("b", "a", frame, nonce=frame[26:]) and passes(wire, "c2", "d2", 9, 4444)
    finally:
        wire.use(DOCUMENT)
    assert asked(wire, False) and asked(wire, True)


def test_a_group_goes_while_a_network_and_a_guest_come(wire: Wire) -> None:
    """In one change: what led to the group's rules goes in the same transaction as they do."""
    other = DOCUMENT.replace("narrow]}", "tight]}").replace("  narrow: {", "  tight: {").replace(
        "vms:\n", "  more: {mode: isolated, subnet: 10.9.0.0/24}\nvms:\n  z: {nics: [{network: more, groups: [tight]}]}\n")
    wire.use(other)
    try:
        assert wire.made.drift() == []
        assert "in_narrow" not in sh("nft list table bridge kvmnet") and "jump out_tight" in sh("nft list map bridge kvmnet out2")
    finally:
        wire.use(DOCUMENT)
    assert wire.made.drift() == []


def test_a_member_that_leaves_loses_its_flows_and_nobody_else_does(wire: Wire) -> None:
    assert asked(wire, False) and passes(wire, "b", "a", 53, 1000)
    nonce = os.urandom(12)
    assert wire.arrives("d2", "c2", wire.udp("d2", "c2", 4444, 9, nonce), nonce=nonce)
    assert passes(wire, "c2", "d2", 9, 4444)
    planned = wire.made.plan(LEFT)
    assert [str(s.key) for s in planned.steps] == ["nic-groups kvt-a-0"]
    handle = sh("nft -a -t list table bridge kvmnet").splitlines()[0]
    wire.made.host.apply(planned)
    try:
        assert sh("nft -a -t list table bridge kvmnet").splitlines()[0] == handle, "the table was loaded anew"
        ends = {(f.source, f.target, f.port) for f in flows()}
        assert (wire.nics["d2"].ip, wire.nics["c2"].ip, 9) in ends
        assert not [e for e in ends if e[0] == wire.nics["a"].ip and e[2] == 53]
        assert not passes(wire, "b", "a", 53, 1000) and not asked(wire, False)
        assert passes(wire, "c2", "d2", 9, 4444)
    finally:
        wire.use(DOCUMENT)
    assert asked(wire, False)
