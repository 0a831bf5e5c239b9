"""What guests need to send: every frame arrives through the guard, and what only a role allows needs the role."""
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.policy.guard import nic_guard
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
    mac,
    multicast_mac,
    option,
    solicited_node,
    tag,
    tcp,
    udp,
)
from lib.guardlab import ATTACKER as G
from lib.guardlab import BRIDGE, HOST, PORTS, Lab, lab, plain_guard
from lib.guardlab import VICTIM as V
from lib.netns import new_netns

pytestmark = pytest.mark.net
IP4, IP6, ARP, RARP = 0x0800, 0x86DD, 0x0806, 0x8035
TAP = "kvt-attacker"
PLAIN = plain_guard(TAP, G)
NOTHING = "00:00:00:00:00:00"
RA = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option(1, mac(G.mac))
STABLE = "fe80::8d3f:1a2b:3c4d:5e6f"
VRRP_MAC, VRRP_IP = "00:00:5e:00:01:07", "10.0.0.7"


def m4(dst: str, proto: int, payload: bytes, src: str = G.ip4, via: str = "", source: str = G.mac,
       **more: int | bytes) -> bytes:
    """IPv4 to the victim, to the broadcast address, or to a group."""
    to = via or (V.mac if dst == V.ip4 else BROADCAST if dst == "255.255.255.255" else multicast_mac(dst))
    return ether(to, source, IP4, ip4(src, dst, proto, payload, **more))  # type: ignore[arg-type]


def m6(dst: str, proto: int, payload: bytes, src: str = G.ip6, hops: int = 64) -> bytes:
    return ether(multicast_mac(dst) if dst.startswith("ff") else V.mac, G.mac, IP6,
                 ip6(src, dst, proto, payload, hops=hops))


def nd(kind: int, rest: bytes, src: str, dst: str) -> bytes:
    return m6(dst, ICMP6, icmp6(src, dst, kind, rest), src, 255)


def dad(address: str, *options: bytes) -> bytes:
    return nd(135, bytes(4) + ip(address) + b"".join(options), "::", solicited_node(address))


def mld(kind: int, src: str, dst: str, rest: bytes) -> bytes:
    return m6(dst, 0, extension(ICMP6, ROUTER_ALERT) + icmp6(src, dst, kind, rest), src, 1)


REPORT1 = bytes(4) + ip(solicited_node(G.ip6))
REPORT2 = struct.pack("!HHBBH", 0, 1, 4, 0, 0) + ip(solicited_node(G.ip6))
LL = option(1, mac(G.mac))
TLL = option(2, mac(G.mac))
DISCOVER = udp("0.0.0.0", "255.255.255.255", 68, 67, dhcp(1, 1, G.mac))
BIG = bytes(1400)

LEGITIMATE: dict[str, Callable[[], list[bytes]]] = {
    "ARP request and reply": lambda: [ether(BROADCAST, G.mac, ARP, arp(1, (G.mac, G.ip4), (NOTHING, V.ip4))),
                                      ether(V.mac, G.mac, ARP, arp(2, (G.mac, G.ip4), (V.mac, V.ip4)))],
    "ARP probe": lambda: [ether(BROADCAST, G.mac, ARP, arp(1, (G.mac, "0.0.0.0"), (NOTHING, G.ip4)))],
    "gratuitous ARP": lambda: [ether(BROADCAST, G.mac, ARP, arp(op, (G.mac, G.ip4), (BROADCAST, G.ip4)))
                               for op in (1, 2)],
    "RARP of a migration": lambda: [ether(BROADCAST, G.mac, RARP, arp(3, (G.mac, "0.0.0.0"), (G.mac, "0.0.0.0")))],
    "DHCP client": lambda: [m4("255.255.255.255", UDP, DISCOVER, "0.0.0.0"),
                            m4(V.ip4, UDP, udp(G.ip4, V.ip4, 68, 67, dhcp(1, 3, G.mac)))],
    "DHCPv6 client": lambda: [m6("ff02::1:2", UDP, udp(G.local, "ff02::1:2", 546, 547, b"\1\0\0\1"), G.local)],
    "IGMPv2 and IGMPv3": lambda: [
        m4("224.0.0.251", IGMP, icmp(0x16, 0, ip("224.0.0.251")), options=b"\x94\4\0\0", ttl=1),
        m4("224.0.0.2", IGMP, icmp(0x17, 0, ip("224.0.0.251")), options=b"\x94\4\0\0", ttl=1),
        m4("224.0.0.22", IGMP, icmp(0x22, 0, b"\0\0\0\1\4\0\0\0" + ip("224.0.0.251")), options=b"\x94\4\0\0", ttl=1),
        m4("224.0.0.22", IGMP, icmp(0x22, 0, b"\0\0\0\1\4\0\0\0" + ip("224.0.0.251")), "0.0.0.0",
           options=b"\x94\4\0\0", ttl=1)],
    "MLDv1 and MLDv2": lambda: [mld(131, src, solicited_node(G.ip6), REPORT1) for src in (G.local, "::")] + [
        mld(143, src, "ff02::16", REPORT2) for src in (G.local, "::")] + [mld(132, G.local, "ff02::2", REPORT1)],
    "duplicate address detection": lambda: [dad(G.ip6), dad(G.local)],
    "enhanced duplicate address detection": lambda: [dad(a, option(14, b"\1\2\3\4\5\6")) for a in (G.ip6, G.local)],
    "neighbour solicitation": lambda: [
        nd(135, bytes(4) + ip(V.ip6) + LL, G.ip6, solicited_node(V.ip6)), nd(135, bytes(4) + ip(V.ip6), G.ip6, V.ip6),
        nd(135, bytes(4) + ip(V.local) + LL, G.local, solicited_node(V.local))],
    "neighbour advertisement": lambda: [
        nd(136, b"\x60\0\0\0" + ip(a) + o, a, d) for a in (G.ip6, G.local) for o in (TLL, b"") for d in (V.ip6, "ff02::1")],
    "router solicitation": lambda: [nd(133, bytes(4) + LL, G.local, "ff02::2"), nd(133, bytes(4), "::", "ff02::2")],
    "stable-privacy link-local": lambda: [
        dad(STABLE, option(14, b"\1\2\3\4\5\6")), nd(133, bytes(4) + LL, STABLE, "ff02::2"),
        nd(136, b"\x20\0\0\0" + ip(STABLE) + TLL, STABLE, "ff02::1"), m6(V.ip6, UDP, udp(STABLE, V.ip6, 5, 5), STABLE)],
    "ping": lambda: [m4(V.ip4, ICMP, icmp(8, 0, b"\0\1\0\1" + bytes(56))), m4(V.ip4, ICMP, icmp(0, 0, b"\0\1\0\1")),
                     m6(V.ip6, ICMP6, icmp6(G.ip6, V.ip6, 128, b"\0\1\0\1")),
                     m6(V.ip6, ICMP6, icmp6(G.ip6, V.ip6, 129, b"\0\1\0\1"))],
    "errors": lambda: [m4(V.ip4, ICMP, icmp(3, 4, bytes(4) + ip4(V.ip4, G.ip4, UDP, bytes(8)))),
                       *(m6(V.ip6, ICMP6, icmp6(G.ip6, V.ip6, k, bytes(4) + ip6(V.ip6, G.ip6, UDP, bytes(8))))
                         for k in (1, 2, 3, 4))],
    "TCP and UDP": lambda: [m4(V.ip4, TCP, tcp(G.ip4, V.ip4, 5, 5)), m4(V.ip4, UDP, udp(G.ip4, V.ip4, 5, 5)),
                            m6(V.ip6, TCP, tcp(G.ip6, V.ip6, 5, 5)), m6(V.ip6, UDP, udp(G.ip6, V.ip6, 5, 5))],
    "fragments": lambda: [
        m4(V.ip4, UDP, udp(G.ip4, V.ip4, 5, 5, BIG + BIG)[:1400], frag=0x2000), m4(V.ip4, UDP, BIG, frag=175),
        m4(V.ip4, ICMP, icmp(8, 0, BIG + BIG)[:1400], frag=0x2000), m4(V.ip4, ICMP, BIG, frag=175),
        m4(V.ip4, TCP, tcp(G.ip4, V.ip4, 5, 5) + bytes(4), frag=0x2000),
        m6(V.ip6, 44, fragment(UDP, udp(G.ip6, V.ip6, 5, 5, BIG + BIG)[:1400])),
        m6(V.ip6, 44, fragment(UDP, BIG[:500], offset=1400, more=False)),
        m6(V.ip6, 44, fragment(TCP, tcp(G.ip6, V.ip6, 5, 5) + bytes(4))),
        m6(V.ip6, 44, fragment(ICMP6, icmp6(G.ip6, V.ip6, 128, BIG + BIG)[:1400])),
        m6(V.ip6, 44, fragment(ICMP6, BIG[:500], offset=1400, more=False))],
    "other protocols": lambda: [m4(V.ip4, k, bytes(20)) for k in (4, 41, 47, 50, 51, 89, 112, 132)] + [
        m6(V.ip6, k, bytes(20)) for k in (4, 41, 47, 50, 89, 112, 132)],
    "multicast and broadcast": lambda: [m4("224.0.0.251", UDP, udp(G.ip4, "224.0.0.251", 5353, 5353)),
                                        m6("ff02::fb", UDP, udp(G.ip6, "ff02::fb", 5353, 5353)),
                                        m4("255.255.255.255", UDP, udp(G.ip4, "255.255.255.255", 9, 9))],
}


@pytest.fixture(scope="module", params=PORTS)
def wired(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with new_netns(), lab(request.param) as made:
        yield made


def passes(wired: Lab, frames: list[bytes]) -> list[bool]:
    """Which of *frames* reach the victim."""
    return [bool(wired.leaked([frame])["guest"]) for frame in frames]


@pytest.mark.parametrize("level", ["full", "mac", "off"])
@pytest.mark.parametrize("name", LEGITIMATE)
def test_guests_may(wired: Lab, name: str, level: str) -> None:
    wired.guard(nic_guard(TAP, level, [G.mac], [G.ip4, G.ip6], bridge=BRIDGE, protected=[HOST.ip4, HOST.ip6]))
    for frame in LEGITIMATE[name]():
        assert passes(wired, [frame]) == [True], frame.hex()


ROUTER = [nd(134, RA, G.local, "ff02::1"), nd(137, bytes(4) + ip(V.local) + ip("fd00:1::1"), G.local, V.ip6),
          m4(V.ip4, ICMP, icmp(5, 1, ip(V.ip4) + ip4(V.ip4, "192.0.2.1", UDP, bytes(8)))),
          m4("224.0.0.1", ICMP, icmp(9, 0, b"\1\2\0\x0a" + ip(G.ip4) + bytes(4)))]
ON_THE_WAY = [m4(V.ip4, ICMP, icmp(11, 0, bytes(4) + ip4(V.ip4, "192.0.2.1", UDP, bytes(8)))),
              m6(V.ip6, ICMP6, icmp6(G.ip6, V.ip6, 3, bytes(4) + ip6(V.ip6, "fd00:1::1", UDP, bytes(8))))]
"""Errors about packets for somebody else."""
SERVER = [m4("255.255.255.255", UDP, udp(G.ip4, "255.255.255.255", 67, 68, dhcp(2, 2, V.mac))),
          m4(V.ip4, UDP, udp(G.ip4, V.ip4, 67, 67, dhcp(1, 1, V.mac))),
          m6(V.local, UDP, udp(G.local, V.local, 547, 546, b"\2\0\0\1"), G.local)]
QUERIER = [m4("224.0.0.1", IGMP, icmp(0x11, 1, bytes(4)), ttl=1), mld(130, G.local, "ff02::1", bytes(20)),
           m4("224.0.0.13", 103, b"\x20\0" + bytes(6)), m6("ff02::d", 103, b"\x20\0" + bytes(6), G.local)]
VRRP = [ether(BROADCAST, VRRP_MAC, ARP, arp(op, (VRRP_MAC, VRRP_IP), (BROADCAST, VRRP_IP))) for op in (1, 2)] + [
    m4("224.0.0.18", 112, bytes(20), source=VRRP_MAC), m4(V.ip4, TCP, tcp(VRRP_IP, V.ip4, 5, 5), VRRP_IP),
    ether(V.mac, VRRP_MAC, IP4, ip4(VRRP_IP, V.ip4, TCP, tcp(VRRP_IP, V.ip4, 5, 5)))]
NESTED = [ether(V.mac, G.mac, ARP, arp(2, (G.mac, "10.7.0.9"), (V.mac, V.ip4))),
          ether(BROADCAST, G.mac, ARP, arp(1, (G.mac, "0.0.0.0"), (NOTHING, "10.7.0.9"))),
          m4(V.ip4, TCP, tcp("10.7.0.9", V.ip4, 5, 5), "10.7.0.9"),
          m6(V.ip6, TCP, tcp("fd00:7::9", V.ip6, 5, 5), "fd00:7::9"), dad("fd00:7::9"),
          nd(136, b"\x20\0\0\0" + ip("fd00:7::9") + TLL, "fd00:7::9", V.ip6),
          m4(V.ip4, ICMP, icmp(3, 1, bytes(4) + ip4(V.ip4, "10.7.0.9", UDP, bytes(8)))),
          m6(V.ip6, ICMP6, icmp6(G.ip6, V.ip6, 1, bytes(4) + ip6(V.ip6, "fd00:7::9", UDP, bytes(8))))]
TRUNK = [tag(vlan, ether(V.mac, G.mac, kind, payload)) for vlan in (10, 0x6014) for kind, payload in (
    (IP4, ip4("192.0.2.9", "192.0.2.1", UDP, bytes(8))), (IP6, ip6("fe80::9", "ff02::1", UDP, bytes(8))),
    (ARP, arp(1, (G.mac, "192.0.2.9"), (NOTHING, "192.0.2.1"))))]
OWN = ([G.mac], [G.ip4, G.ip6])

ROLES: dict[str, tuple[NicGuard, list[bytes]]] = {
    "router": (plain_guard(TAP, G, roles=["router"]), ROUTER + ON_THE_WAY),
    "dhcp-server": (plain_guard(TAP, G, roles=["dhcp-server"]), SERVER),
    "querier": (plain_guard(TAP, G, roles=["querier"]), QUERIER),
    "a VRRP pair": (nic_guard(TAP, "full", [G.mac, VRRP_MAC], [G.ip4, VRRP_IP], bridge=BRIDGE), VRRP),
    "nested guests": (plain_guard(TAP, G, prefixes=["10.7.0.0/24", "fd00:7::/64"]), NESTED),
    "a trunk": (plain_guard(TAP, G, vlans=[10, 20]), TRUNK),
}


@pytest.mark.parametrize("role", ROLES)
def test_what_is_declared_passes_and_needs_to_be_declared(wired: Lab, role: str) -> None:
    guard, frames = ROLES[role]
    wired.guard()
    assert passes(wired, frames) == [False] * len(frames)
    wired.guard(guard)
    assert passes(wired, frames) == [True] * len(frames)


def test_a_trunk_tags_only_its_vlans_and_never_stacks(wired: Lab) -> None:
    frame = TRUNK[0][:12] + TRUNK[0][16:]
    other = ether(V.mac, V.mac, IP4, ip4("192.0.2.9", "192.0.2.1", UDP, bytes(8)))
    refused = [tag(11, frame), tag(0, frame), tag(10, tag(20, frame)), tag(10, frame, 0x88A8), tag(10, other),
               tag(10, ether(V.mac, G.mac, 0x88CC, bytes(46)))]
    wired.open()
    assert passes(wired, refused) == [True] * len(refused)
    wired.guard(ROLES["a trunk"][0])
    assert passes(wired, refused) == [False] * len(refused)


def test_the_level_mac_binds_the_mac_and_protects_the_host(wired: Lab) -> None:
    wired.guard(nic_guard(TAP, "mac", [G.mac], [G.ip4], bridge=BRIDGE, protected=[HOST.ip4, HOST.ip6]))
    foreign = [m4(V.ip4, UDP, bytes(8), "198.51.100.7"), m6(V.ip6, UDP, bytes(8), "2001:db8::7"),
               ether(V.mac, G.mac, ARP, arp(2, (G.mac, "198.51.100.7"), (V.mac, V.ip4))),
               nd(136, b"\x20\0\0\0" + ip("2001:db8::7") + TLL, "2001:db8::7", V.ip6)]
    assert passes(wired, foreign) == [True] * 4
    refused = [m4(V.ip4, UDP, bytes(8), HOST.ip4), m6(V.ip6, UDP, bytes(8), HOST.ip6),
               m6(V.ip6, UDP, bytes(8), HOST.local), m4(V.ip4, UDP, bytes(8), "127.0.0.1"),
               ether(V.mac, G.mac, ARP, arp(2, (G.mac, HOST.ip4), (V.mac, V.ip4))),
               nd(136, b"\x20\0\0\0" + ip(HOST.ip6) + TLL, G.local, V.ip6),
               m4(V.ip4, UDP, bytes(8), source="02:00:00:00:00:77"), *ROUTER, *SERVER, *QUERIER]
    assert passes(wired, refused) == [False] * len(refused)
    wired.open()
    assert passes(wired, refused) == [True] * len(refused)
