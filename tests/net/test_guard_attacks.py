"""What an attacker's guest can send, frame by frame: nothing of it arrives, and all of it does without the guard.

Each attack goes to another guest, to the host and to the outside, by unicast to each, or once by
multicast where the protocol wants that. A nonce behind the frame's own end tells them apart.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from lib.frames import (
    BROADCAST,
    ICMP,
    ICMP6,
    IGMP,
    ROUTER_ALERT,
    TCP,
    UDP,
    arp,
    dhcp,
    ether,
    extension,
    fragment,
    icmp,
    icmp6,
    ip,
    ip4,
    ip6,
    llc,
    mac,
    multicast_mac,
    option,
    snap,
    solicited_node,
    tag,
    tcp,
    udp,
)
from lib.guardlab import ATTACKER as A
from lib.guardlab import HOST, OUTSIDE, PORTS, End, Lab, MacvtapLab, lab
from lib.guardlab import VICTIM as V
from lib.netns import new_netns

pytestmark = pytest.mark.net
Attack = Callable[[End], list[bytes]]
IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
TARGETS = {"guest": V, "host": HOST, "outside": OUTSIDE}
ALL_NODES = "ff02::1"


def v4(t: End, proto: int, payload: bytes, src: str = A.ip4, **more: int | bytes) -> bytes:
    return ether(t.mac, A.mac, IP4, ip4(src, t.ip4, proto, payload, **more))  # type: ignore[arg-type]


def v6(t: End, proto: int, payload: bytes, src: str = A.ip6, dst: str = "") -> bytes:
    return ether(t.mac, A.mac, IP6, ip6(src, dst or t.ip6, proto, payload))


def nd(kind: int, rest: bytes, src: str, dst: str, via: str = "", source: str = A.mac) -> bytes:
    """An ND message to a multicast group or, ``via`` a MAC, to one host."""
    return ether(via or multicast_mac(dst), source, IP6, ip6(src, dst, ICMP6, icmp6(src, dst, kind, rest)))


def other(t: End) -> End:
    """Whom to impersonate before *t*: the victim, or the host before the victim."""
    return HOST if t is V else V


def na(target: str, *options: bytes) -> bytes:
    return b"\x20\0\0\0" + ip(target) + b"".join(options)


def ns(target: str, *options: bytes) -> bytes:
    return bytes(4) + ip(target) + b"".join(options)


NONCE = option(14, b"\1\2\3\4\5\6")
RA = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option(1, mac(A.mac))
REDIRECT6 = bytes(4) + ip(A.local) + ip("fd00:1::1")
REDIRECT4 = ip(A.ip4) + ip4(V.ip4, "192.0.2.1", UDP, bytes(8))
LL = option(1, mac(A.mac))
TLL = option(2, mac(A.mac))


def ping6(src: str, dst: str) -> bytes:
    return icmp6(src, dst, 128, b"\0\1\0\1abcdefgh")


def complaint(t: End, kind: int) -> bytes:
    """An ICMP error about a packet that the receiver would have sent to somebody else."""
    return icmp(kind, 1, bytes(4) + ip4(t.ip4, other(t).ip4, UDP, udp(t.ip4, other(t).ip4, 9, 9)))


def complaint6(t: End, kind: int) -> bytes:
    return icmp6(A.ip6, t.ip6, kind, bytes(4) + ip6(t.ip6, other(t).ip6, UDP, udp(t.ip6, other(t).ip6, 9, 9)))


def both(t: End, kind: int, rest: bytes, src: str) -> list[bytes]:
    """An ND message to all nodes, and the same to one host alone."""
    return [nd(kind, rest, src, ALL_NODES), nd(kind, rest, src, t.ip6, t.mac)]


ATTACKS: dict[str, Attack] = {
    # addresses
    "spoofed MAC": lambda t: [ether(t.mac, other(t).mac, IP4, ip4(A.ip4, t.ip4, UDP, udp(A.ip4, t.ip4, 9, 9)))],
    "unknown MAC": lambda t: [ether(t.mac, "02:de:ad:00:00:01", IP4, ip4(A.ip4, t.ip4, ICMP, icmp(8, 0, bytes(4))))],
    "group source MAC": lambda t: [ether(t.mac, "03:00:00:00:00:0a", IP4, ip4(A.ip4, t.ip4, UDP, bytes(8)))],
    "spoofed IPv4": lambda t: [v4(t, UDP, udp(other(t).ip4, t.ip4, 9, 9), other(t).ip4)],
    "spoofed IPv4 TCP": lambda t: [v4(t, TCP, tcp(other(t).ip4, t.ip4, 9, 9), other(t).ip4)],
    "spoofed IPv4 fragment": lambda t: [v4(t, UDP, bytes(16), other(t).ip4, frag=0x0010)],
    "spoofed IPv4 with options": lambda t: [v4(t, UDP, bytes(8), other(t).ip4, options=b"\x94\4\0\0")],
    "IPv4 from 0.0.0.0": lambda t: [v4(t, UDP, udp("0.0.0.0", t.ip4, 9, 9), "0.0.0.0")],
    "IPv4 from broadcast": lambda t: [v4(t, UDP, bytes(8), "255.255.255.255")],
    "IPv4 source route": lambda t: [v4(t, ICMP, icmp(8, 0, bytes(4)), options=b"\x83\7\4" + ip("192.0.2.1") + b"\0")],
    "IPv4 options": lambda t: [v4(t, ICMP, icmp(8, 0, bytes(4)), options=o) for o in (
        b"\7\7\4\0\0\0\0\0", b"\x44\4\5\0", b"\1\1\1\x83\7\4\0\0\0\0\0\0", b"\x89\7\4\0\0\0\0\x6c")],
    "IPv4 of version 5": lambda t: [v4(t, UDP, bytes(8), version=5)],
    "IPv4 cut short": lambda t: [ether(t.mac, A.mac, IP4, ip4(A.ip4, t.ip4, UDP, udp(A.ip4, t.ip4, 67, 68))[:12])],
    "spoofed IPv6": lambda t: [v6(t, UDP, udp(other(t).ip6, t.ip6, 9, 9), other(t).ip6)],
    "spoofed IPv6 ping": lambda t: [v6(t, ICMP6, ping6(other(t).ip6, t.ip6), other(t).ip6)],
    "spoofed link-local": lambda t: [v6(t, UDP, bytes(8), other(t).local)],
    "IPv6 from ::": lambda t: [v6(t, UDP, bytes(8), "::")],
    "IPv6 from multicast": lambda t: [v6(t, UDP, bytes(8), "ff02::5")],
    "IPv6 of version 4": lambda t: [ether(t.mac, A.mac, IP6, ip6(A.ip6, t.ip6, UDP, bytes(8), version=4))],
    "IPv4 behind the IPv6 type": lambda t: [ether(t.mac, A.mac, IP6, ip4(V.ip4, t.ip4, UDP, bytes(40)))],
    # ARP
    "ARP reply for another": lambda t: [ether(t.mac, A.mac, ARP, arp(2, (A.mac, other(t).ip4), (t.mac, t.ip4)))],
    "gratuitous ARP": lambda t: [ether(BROADCAST, A.mac, ARP, arp(o, (A.mac, other(t).ip4), (BROADCAST, other(t).ip4)))
                                 for o in (1, 2)],
    "ARP with a foreign sender MAC": lambda t: [ether(t.mac, A.mac, ARP, arp(2, (OUTSIDE.mac, A.ip4), (t.mac, t.ip4)))],
    "ARP probe for another's address": lambda t: [
        ether(BROADCAST, A.mac, ARP, arp(1, (A.mac, "0.0.0.0"), ("00:00:00:00:00:00", other(t).ip4)))],
    "ARP reply from 0.0.0.0": lambda t: [ether(t.mac, A.mac, ARP, arp(2, (A.mac, "0.0.0.0"), (t.mac, A.ip4)))],
    "inverse ARP": lambda t: [ether(t.mac, A.mac, ARP, arp(o, (A.mac, A.ip4), (t.mac, t.ip4))) for o in (3, 4, 8, 9)],
    "ARP of odd hardware": lambda t: [
        ether(t.mac, A.mac, ARP, arp(2, (A.mac, other(t).ip4), (t.mac, t.ip4), b"\0\6\x08\0\6\4"))],
    "ARP cut short": lambda t: [ether(t.mac, A.mac, ARP, b"\0\1\x08\0\6\4\0\2")],
    "RARP for another": lambda t: [
        ether(BROADCAST, A.mac, 0x8035, arp(3, (t.mac, "0.0.0.0"), (t.mac, "0.0.0.0"))),
        ether(BROADCAST, A.mac, 0x8035, arp(4, (A.mac, A.ip4), (A.mac, other(t).ip4)))],
    # neighbour discovery
    "NA for another": lambda t: [
        *both(t, 136, na(other(t).ip6, TLL), A.ip6), *both(t, 136, na(other(t).local, TLL), A.local),
        *both(t, 136, na(other(t).ip6), A.local)],
    "NA with another's source": lambda t: both(t, 136, na(other(t).ip6, TLL), other(t).ip6),
    "NA with a foreign MAC": lambda t: both(t, 136, na(A.ip6, option(2, mac(OUTSIDE.mac))), A.ip6),
    "NA, nonce first": lambda t: [*both(t, 136, na(A.ip6, NONCE, option(2, mac(OUTSIDE.mac))), A.ip6),
                                  *both(t, 136, na(other(t).ip6, NONCE, TLL), A.ip6)],
    "NA, options twice": lambda t: both(t, 136, na(A.ip6, TLL, option(2, mac(OUTSIDE.mac))), A.ip6),
    "NA from a router on the way": lambda t: [ether(t.mac, A.mac, IP6, ip6(
        A.ip6, t.ip6, ICMP6, icmp6(A.ip6, t.ip6, 136, na(A.ip6, TLL)), hops=64))],
    "NS with a foreign MAC": lambda t: both(t, 135, ns(t.ip6, option(1, mac(OUTSIDE.mac))), A.ip6),
    "NS with another's source": lambda t: both(t, 135, ns(t.ip6, LL), other(t).ip6),
    "NS, nonce first": lambda t: both(t, 135, ns(t.ip6, NONCE, option(1, mac(OUTSIDE.mac))), A.ip6),
    "DAD for another's address": lambda t: [
        nd(135, ns(a, *o), "::", solicited_node(a)) for a in (other(t).ip6, other(t).local) for o in ((), (NONCE,))],
    "DAD that names a MAC": lambda t: [nd(135, ns(A.ip6, LL), "::", solicited_node(A.ip6))],
    "RS with a foreign MAC": lambda t: [nd(133, bytes(4) + option(1, mac(V.mac)), A.local, "ff02::2")],
    "inverse ND, node information, renumbering": lambda t: [
        f for k in (138, 139, 140, 141, 142, 148, 149, 160) for f in both(t, k, bytes(12), A.local)],
    # roles
    "router advertisement": lambda t: [*both(t, 134, RA, A.local), *both(t, 134, RA, A.ip6)],
    "router advertisement as the host": lambda t: both(t, 134, RA, HOST.local),
    "router advertisement, fragmented": lambda t: [
        v6(t, 44, fragment(ICMP6, icmp6(A.local, ALL_NODES, 134, RA)[:16]), A.local, ALL_NODES),
        v6(t, 44, fragment(ICMP6, icmp6(A.local, ALL_NODES, 134, RA), more=False), A.local, ALL_NODES)],
    "router advertisement behind an extension header": lambda t: [
        v6(t, kind, extension(ICMP6) + icmp6(A.local, ALL_NODES, 134, RA), A.local, ALL_NODES)
        for kind in (0, 43, 60, 135, 139, 140, 253, 254)],
    "router advertisement behind an authentication header": lambda t: [
        v6(t, 51, bytes([ICMP6, 4]) + bytes(22) + icmp6(A.local, ALL_NODES, 134, RA), A.local, ALL_NODES)],
    "NA, fragmented": lambda t: [
        v6(t, 44, fragment(ICMP6, icmp6(A.local, t.ip6, 136, na(other(t).ip6, TLL))[:24]), A.local)],
    "NA, hidden behind fragments": lambda t: [
        v6(t, 44, fragment(60, extension(ICMP6)), A.local),
        v6(t, 44, fragment(44, fragment(ICMP6, icmp6(A.local, t.ip6, 136, na(other(t).ip6)), more=False)), A.local)],
    "first fragment without a port": lambda t: [v6(t, 44, fragment(k, b"")) for k in (UDP, TCP, ICMP6)],
    "IPv6 redirect": lambda t: [nd(137, REDIRECT6, A.local, t.ip6, t.mac)],
    "IPv4 redirect": lambda t: [v4(t, ICMP, icmp(5, 1, REDIRECT4))],
    "ICMP error about another's packet": lambda t: [v4(t, ICMP, complaint(t, k)) for k in (3, 4, 11, 12)] + [
        v4(t, ICMP, complaint(t, 3)[:8], frag=0x2000), v4(t, ICMP, complaint(t, 3), options=b"\x94\4\0\0")],
    "ICMPv6 error about another's packet": lambda t: [v6(t, ICMP6, complaint6(t, k)) for k in (1, 2, 3, 4)] + [
        v6(t, 44, fragment(ICMP6, complaint6(t, 2) + bytes(64))), v6(t, 44, fragment(ICMP6, complaint6(t, 2)[:16]))],
    "IPv4 router advertisement": lambda t: [v4(t, ICMP, icmp(9, 0, b"\1\2\0\x0a" + ip(A.ip4) + bytes(4)))],
    "DHCP server": lambda t: [
        v4(t, UDP, udp(A.ip4, t.ip4, sport, 68, dhcp(2, 2, t.mac))) for sport in (67, 4011)] + [
        ether(BROADCAST, A.mac, IP4, ip4(A.ip4, "255.255.255.255", UDP,
                                         udp(A.ip4, "255.255.255.255", 67, 68, dhcp(2, 5, t.mac))))],
    "DHCP server as another": lambda t: [v4(t, UDP, udp(HOST.ip4, t.ip4, 67, 68, dhcp(2, 2, t.mac)), HOST.ip4)],
    "DHCP request in another's name": lambda t: [
        ether(BROADCAST, A.mac, IP4, ip4("0.0.0.0", "255.255.255.255", UDP,
                                         udp("0.0.0.0", "255.255.255.255", 68, 67, dhcp(1, 1, V.mac)))),
        v4(t, UDP, udp(A.ip4, t.ip4, 68, 67, dhcp(1, 7, V.mac)))],
    "DHCPv6 server": lambda t: [v6(t, UDP, udp(A.local, t.local, 547, 546, b"\2\0\0\1"), A.local, t.local),
                                v6(t, UDP, udp(A.local, t.local, 9, 546, b"\7\0\0\1"), A.local, t.local)],
    "IGMP query": lambda t: [ether("01:00:5e:00:00:01", A.mac, IP4, ip4(A.ip4, "224.0.0.1", IGMP, icmp(0x11, 1, bytes(4)),
                                                                       ttl=1, options=b"\x94\4\0\0"))],
    "IGMP router discovery, PIM": lambda t: [v4(t, IGMP, icmp(0x30, 1, bytes(4))), v4(t, 103, b"\x20\0" + bytes(6))],
    "MLD query": lambda t: [v6(t, 0, extension(ICMP6, ROUTER_ALERT) + icmp6(A.local, ALL_NODES, k, bytes(20)), A.local,
                               ALL_NODES) for k in (130, 151)],
    "MLD without its header": lambda t: [v6(t, ICMP6, icmp6(A.local, ALL_NODES, k, bytes(20)), A.local, ALL_NODES)
                                         for k in (130, 131)],
    # frames
    "tagged": lambda t: [tag(100, v4(t, UDP, bytes(8))), tag(100, v4(t, UDP, bytes(8), V.ip4))],
    "double-tagged": lambda t: [tag(1, tag(100, v4(t, UDP, bytes(8)))), tag(1, tag(100, v4(t, UDP, bytes(8))), 0x88A8)],
    "service tag": lambda t: [tag(100, v4(t, UDP, bytes(8)), 0x88A8)],
    "VLAN 0": lambda t: [tag(0, v4(t, UDP, bytes(8))), tag(0x6000, v4(t, UDP, bytes(8), V.ip4)),
                         tag(0, ether(t.mac, A.mac, ARP, arp(2, (A.mac, V.ip4), (t.mac, t.ip4))))],
    "VLAN 0 twice": lambda t: [tag(0, tag(0, v4(t, UDP, bytes(8))))],
    "LLC/SNAP": lambda t: [llc(t.mac, A.mac, snap(IP4, ip4(V.ip4, t.ip4, UDP, bytes(8)))),
                           llc(t.mac, A.mac, snap(ARP, arp(2, (A.mac, other(t).ip4), (t.mac, t.ip4))))],
    "VLAN 0 and SNAP": lambda t: [tag(0, llc(t.mac, A.mac, snap(IP4, ip4(V.ip4, t.ip4, UDP, bytes(8))))),
                                  tag(0, tag(0, llc(t.mac, A.mac, snap(IP6, ip6(V.ip6, t.ip6, UDP, bytes(8))))))],
    "BPDU": lambda t: [llc("01:80:c2:00:00:00", A.mac, b"\x42\x42\3" + bytes(35)),
                       llc("01:00:0c:cc:cc:cd", A.mac, snap(0x010B, bytes(35)))],
    "unknown types": lambda t: [ether(t.mac, A.mac, k, bytes(46)) for k in (
        0x88CC, 0x888E, 0x8847, 0x8863, 0x8864, 0x88E5, 0x9000, 0x8100 + 1, 0x6558, 0x0600, 0xFFFF)],
    "routing header": lambda t: [v6(t, 43, extension(UDP, b"\0\0" + bytes(4)) + udp(A.ip6, t.ip6, 9, 9)),
                                 v6(t, 43, extension(UDP, b"\4\1\0\0\0\0" + ip(V.ip6)) + udp(A.ip6, t.ip6, 9, 9))],
    "destination options": lambda t: [v6(t, 60, extension(UDP) + udp(A.ip6, t.ip6, 9, 9)),
                                      v6(t, 60, extension(ICMP6) + ping6(A.ip6, t.ip6))],
    "hop-by-hop before UDP": lambda t: [v6(t, 0, extension(UDP) + udp(A.ip6, t.ip6, 9, 9))],
    "unknown IPv6 protocol": lambda t: [v6(t, k, bytes(8)) for k in (61, 142, 200, 255)],
}


@pytest.fixture(scope="module", params=PORTS)
def wired(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with new_netns(), lab(request.param) as made:
        yield made


def without_guard(wired: Lab, name: str) -> dict[str, int]:
    """How many frames of an attack arrive where it is aimed at."""
    wired.open()
    return {where: wired.leaked(ATTACKS[name](end))[where] for where, end in TARGETS.items()}


def with_guard(wired: Lab, name: str) -> list[str]:
    """The frames of an attack that arrive anywhere, in hex."""
    wired.guard()
    return [frame.hex() for end in TARGETS.values() for frame in ATTACKS[name](end)
            if any(wired.leaked([frame]).values())]


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_leaks_that_passes_without_the_guard(wired: Lab, name: str) -> None:
    sent = {where: len(ATTACKS[name](end)) for where, end in TARGETS.items()}
    assert without_guard(wired, name) == (dict.fromkeys(sent, 0) if name in wired.never else sent)
    assert with_guard(wired, name) == []


def test_nothing_leaks_when_all_rules_are_flushed() -> None:
    """The gates of macvtaps: what bears no mark of a guard is stopped, be the rules there or not."""
    with new_netns(), lab("macvtap") as wired:
        assert isinstance(wired, MacvtapLab)
        plain = v4(V, UDP, udp(A.ip4, V.ip4, 9, 9))
        wired.open()
        assert wired.leaked([plain])["guest"] == 1
        wired.gate()
        assert wired.leaked([plain, *(f for name in ATTACKS for f in ATTACKS[name](V))]) == dict.fromkeys(TARGETS, 0)
        wired.guard()
        assert wired.leaked([plain])["guest"] == 1


def test_nothing_leaks_where_frames_pass_the_ip_hooks_too() -> None:
    """With bridge-nf-call-iptables=1, as hosts with Docker or Kubernetes have it; malformed ones never pass there."""
    with new_netns(call_iptables=1), lab() as wired:
        passed = [name for name in ATTACKS if all(without_guard(wired, name).values())]
        assert len(passed) > 0.8 * len(ATTACKS)
        assert {name: leaks for name in ATTACKS if (leaks := with_guard(wired, name))} == {}
