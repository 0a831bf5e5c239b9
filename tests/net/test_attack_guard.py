"""What a second look at the guard tried: identities at the edges of the protocols, and link-locals that are declared
for another NIC. Every frame arrives without the guard (a few only where the bridge takes them)."""
from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from kvmnet.compile import compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import advertisers, guard_table, nic_guard
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads
from lib.frames import (
    BROADCAST,
    ICMP,
    ICMP6,
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
    udp,
)
from lib.guardlab import ATTACKER as A
from lib.guardlab import BRIDGE, HOST, OUTSIDE, End, Lab, lab
from lib.guardlab import VICTIM as V
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net
IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
TARGETS = {"guest": V, "host": HOST, "outside": OUTSIDE}
GATEWAY = HOST
VIRTUAL = "fe80::1234:5:7"
"""Link-local of a pair of VRRP routers."""


def v4(t: End, proto: int, payload: bytes, src: str = A.ip4, **more: int | bytes) -> bytes:
    return ether(t.mac, A.mac, IP4, ip4(src, t.ip4, proto, payload, **more))  # type: ignore[arg-type]


def v6(t: End, proto: int, payload: bytes, src: str = A.ip6, dst: str = "") -> bytes:
    return ether(t.mac, A.mac, IP6, ip6(src, dst or t.ip6, proto, payload))


def relayed4(t: End) -> bytes:
    message = bytearray(dhcp(1, 1, A.mac))
    message[24:28] = ip(A.ip4)
    return v4(t, UDP, udp(A.ip4, t.ip4, 68, 67, bytes(message)))


def relayed6(t: End, kind: int) -> bytes:
    inner = b"\1\0\0\1" + struct.pack("!HH", 1, 10) + b"\0\3\0\1" + mac(A.mac)
    message = bytes([kind, 0]) + ip(A.ip6) + ip(A.local) + struct.pack("!HHH", 79, 8, 1) + mac(V.mac) \
        + struct.pack("!HH", 9, len(inner)) + inner
    return v6(t, UDP, udp(A.local, t.ip6, 546, 547, message), A.local)


def other(t: End) -> End:
    return HOST if t is V else V


def na(t: End, target: str, src: str = A.ip6) -> bytes:
    return icmp6(src, t.ip6, 136, b"\x60\0\0\0" + ip(target) + option(2, mac(A.mac)))


def longer(frame: bytes, by: int) -> bytes:
    """An IPv4 frame whose total length says more, or less, than there is."""
    return frame[:16] + struct.pack("!H", int.from_bytes(frame[16:18], "big") + by) + frame[18:]


RA = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option(1, mac(A.mac))
JUMBO = bytes([UDP, 0, 0xC2, 4, 0, 1, 0, 0])
MAPPED = "::ffff:10.0.0.11"

ATTACKS: dict[str, Callable[[End], list[bytes]]] = {
    "a DHCP relay": lambda t: [relayed4(t)],
    "a DHCPv6 relay": lambda t: [relayed6(t, 12), relayed6(t, 13)],
    "DHCPv6 relay, in a first fragment": lambda t: [
        v6(t, 44, fragment(UDP, udp(A.ip6, t.ip6, 546, 547, b"\x0c" + bytes(39)))),
        v6(t, 44, fragment(UDP, udp(A.ip6, t.ip6, 546, 547, b"\x0c" + bytes(39))[:8]))],
    "DHCP server in a first fragment": lambda t: [
        v4(t, UDP, udp(A.ip4, t.ip4, 67, 68, dhcp(2, 2, t.mac))[:8], frag=0x2000)],
    "DHCP request of another, its MAC in the second fragment": lambda t: [
        v4(t, UDP, udp(A.ip4, t.ip4, 68, 67, dhcp(1, 1, V.mac))[:32], frag=0x2000)],
    "sources that nobody has": lambda t: [v4(t, UDP, udp(s, t.ip4, 9, 9), s) for s in (
        "127.0.0.1", "169.254.1.1", "0.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "10.0.0.255")],
    "IPv6 sources that nobody has": lambda t: [v6(t, UDP, udp(s, t.ip6, 9, 9), s) for s in (
        "::1", MAPPED, "::10.0.0.11", "ff02::1", "ff0e::1", "2002:a00:b::1", "64:ff9b::a00:b", "fec0::b")],
    "an address next to the own one": lambda t: [
        v4(t, ICMP, icmp(8, 0, bytes(4)), str(ip_address(A.ip4) + 256)), v6(t, UDP, bytes(8), "fd00::1:a")],
    "from the MAC of him whom it is for": lambda t: [
        ether(t.mac, t.mac, IP4, ip4(A.ip4, t.ip4, UDP, udp(A.ip4, t.ip4, 9, 9)))],
    "link control addresses": lambda t: [
        ether(f"01:80:c2:00:00:{last}", A.mac, 0x8808, b"\0\1\xff\xff" + bytes(42)) for last in ("20", "10")],
    "SNAP with an IP packet of another": lambda t: [
        llc(t.mac, A.mac, snap(kind, body)) for kind, body in ((IP4, ip4(V.ip4, t.ip4, UDP, bytes(8))),
                                                              (IP6, ip6(V.ip6, t.ip6, UDP, bytes(8))))],
    "an 802.3 length in place of a type": lambda t: [ether(t.mac, A.mac, k, ip4(V.ip4, t.ip4, UDP, bytes(8)))
                                                    for k in (0, 28, 0x5DC, 0x5FF)],
    "priority tags": lambda t: [tag(p << 13, v4(t, UDP, bytes(8), V.ip4)) for p in (1, 7)],
    "a VLAN 0 tag before ARP, twice": lambda t: [
        tag(0, tag(0, ether(t.mac, A.mac, ARP, arp(2, (A.mac, other(t).ip4), (t.mac, t.ip4))), 0x88A8))],
    "an odd service tag": lambda t: [tag(5, v4(t, UDP, bytes(8)), k) for k in (0x9100, 0x9200, 0x88A8)],
    "an IPv4 header of no or too few words": lambda t: [
        f[:14] + bytes([0x40 | n]) + f[15:] for n in (0, 1, 4) for f in (v4(t, UDP, bytes(8), V.ip4),)],
    "an IPv4 length that lies": lambda t: [longer(v4(t, UDP, udp(A.ip4, t.ip4, 67, 68)), by) for by in (-8, -20, 4000)],
    "a tunnel from another": lambda t: [v4(t, p, ip4(A.ip4, t.ip4, UDP, bytes(8)), other(t).ip4) for p in (4, 41, 47)],
    "a jumbo payload": lambda t: [v6(t, 0, JUMBO + bytes(40))],
    "RA in an atomic fragment": lambda t: [
        v6(t, 44, fragment(ICMP6, icmp6(A.local, t.ip6, 134, RA), more=False), A.local)],
    "RA behind a header behind an authentication header": lambda t: [
        v6(t, 51, bytes([60, 4]) + bytes(22) + extension(ICMP6) + icmp6(A.local, t.ip6, 134, RA), A.local)],
    "RA behind padding options": lambda t: [
        v6(t, 0, extension(60) + extension(ICMP6) + icmp6(A.local, t.ip6, 134, RA), A.local)],
    "NA for the gateway, override": lambda t: [
        v6(t, ICMP6, na(t, GATEWAY.ip6)), v6(t, ICMP6, na(t, GATEWAY.local, A.local), A.local),
        v6(t, ICMP6, na(t, GATEWAY.ip6, GATEWAY.ip6), GATEWAY.ip6)],
    "NS that asks in the gateway's name": lambda t: [
        v6(t, ICMP6, icmp6(GATEWAY.local, t.ip6, 135, bytes(4) + ip(t.ip6) + option(1, mac(A.mac))), GATEWAY.local)],
    "a link-local of the bridge's form outside fe80::/64": lambda t: [
        v6(t, UDP, bytes(8), str(ip_address(int(ip_address(HOST.local)) | 1 << 64)))],
    "the virtual router's link-local": lambda t: [
        v6(t, UDP, udp(VIRTUAL, t.ip6, 9, 9), VIRTUAL), v6(t, ICMP6, na(t, VIRTUAL, A.local), A.local),
        ether(multicast_mac(solicited_node(VIRTUAL)), A.mac, IP6, ip6(
            "::", solicited_node(VIRTUAL), ICMP6, icmp6("::", solicited_node(VIRTUAL), 135, bytes(4) + ip(VIRTUAL))))],
    "ARP with a broadcast or group sender": lambda t: [
        ether(BROADCAST, A.mac, ARP, arp(2, (m, A.ip4), (t.mac, t.ip4))) for m in (BROADCAST, "01:00:5e:00:00:01")],
    "ARP from an address of nobody": lambda t: [
        ether(t.mac, A.mac, ARP, arp(1, (A.mac, s), (t.mac, t.ip4))) for s in ("255.255.255.255", "127.0.0.1")],
}


@pytest.fixture(scope="module")
def wired() -> Iterator[Lab]:
    with new_netns(), lab() as made:
        yield made


def vrrp(tap: str, end: End, *extra: str) -> NicGuard:
    return nic_guard(tap, "full", [end.mac], [end.ip4, end.ip6, *extra], bridge=BRIDGE,
                     protected=[HOST.ip4, HOST.ip6, VIRTUAL])


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_leaks_that_passes_without_the_guard(wired: Lab, name: str) -> None:
    wired.open()
    for where, end in TARGETS.items():
        frames = ATTACKS[name](end)
        assert wired.leaked(frames)[where] == len(frames), where
    wired.guard(vrrp("kvt-attacker", A))
    assert [frame.hex() for end in TARGETS.values() for frame in ATTACKS[name](end)
            if any(wired.leaked([frame]).values())] == []


def test_what_is_ordinary_still_passes(wired: Lab) -> None:
    """The DHCPv6 messages of a client, and the link-local for the NIC that it is declared for."""
    wired.guard(vrrp("kvt-attacker", A, VIRTUAL))
    asked = [v6(HOST, UDP, udp(A.local, HOST.ip6, 546, 547, bytes([k]) + bytes(30)), A.local)
             for k in (1, 3, 4, 5, 6, 8, 9, 11)]
    assert wired.leaked(asked)["host"] == len(asked)
    own = ATTACKS["the virtual router's link-local"](OUTSIDE)
    assert wired.leaked(own)["outside"] == len(own)


def test_an_address_that_was_claimed_before_it_was_declared_is_lost(wired: Lab) -> None:
    late = "fe80::77:1"
    use = [v6(OUTSIDE, UDP, udp(late, OUTSIDE.ip6, 9, 9), late)]
    wired.guard()
    assert wired.leaked(use)["outside"] == 1
    sh(f"nft add element bridge kvmnet not6 '{{ \"kvt-attacker\" . {int(ip_address(late)):#x} }}'")
    assert wired.leaked(use)["outside"] == 0


def test_a_claim_stays_behind_when_the_nic_goes_to_another_network(wired: Lab, paths: Paths) -> None:
    """There it may be somebody else's already."""
    name = "fe80::" + os.urandom(2).hex().lstrip("0") + ":9"
    driver = NftablesDriver(paths)

    def on(bridge: str) -> None:
        guards = [nic_guard("kvt-attacker", "full", [A.mac], [A.ip4, A.ip6], bridge=bridge),
                  nic_guard("kvt-victim", "full", [V.mac], [V.ip4, V.ip6], bridge=BRIDGE)]
        wanted = {r.key: r for r in (guard_table(), *guards)}
        seen = driver.observe(wanted)
        driver.apply(plan(seen.state, wanted, seen.ours), lambda n: None)

    def use(end: End) -> bytes:
        return ether(OUTSIDE.mac, end.mac, IP6, ip6(name, OUTSIDE.ip6, UDP, udp(name, OUTSIDE.ip6, 9, 9)))

    wired.open()
    on("kvb-other")
    assert wired.leaked([use(A)])["outside"] == 1
    nonce = os.urandom(12)
    wired.victim.send(use(V) + nonce)
    wired.outside.wait(nonce)
    on(BRIDGE)
    assert wired.leaked([use(A)])["outside"] == 0
    nonce = os.urandom(12)
    wired.victim.send(use(V) + nonce)
    wired.outside.wait(nonce)


def test_the_compiler_protects_declared_link_locals() -> None:
    text = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24, subnet6: "fd00::/64"}
vms:
  gw1: {nics: [{network: lan, extra: {macs: ["00:00:5e:00:02:07"], addresses: ["fe80::1234:5:7"]}}]}
  gw2: {nics: [{network: lan, extra: {macs: ["00:00:5e:00:02:07"], addresses: ["fe80::1234:5:7"]}}]}
  any: {nics: [{network: lan}]}
"""
    spec = loads(text, "test").spec
    wanted = compile_spec(spec, Facts(), allocate(spec, {})).wanted
    forbidden = {vm: getattr(wanted[Key("nic-guard", f"kvt-{vm}-0")], "forbidden", None) for vm in ("gw1", "gw2", "any")}
    assert forbidden == {"gw1": (), "gw2": (), "any": (VIRTUAL,)}
    tap = wanted[Key("link", "kvt-any-0")]
    assert isinstance(tap, Link) and tap.user == 0


def test_a_router_outside_keeps_its_link_local(wired: Lab) -> None:
    """It advertises itself; the guest that used the address before, and every other, may not any more."""
    wired.guard()
    sh(f"nft -f - <<'X'\ntable bridge kvmnet {{\n{advertisers([(wired.outside.name, BRIDGE)])}}}\nX")
    router, free = "fe80::1", "fe80::2"

    def stolen(address: str) -> list[bytes]:
        return [v6(OUTSIDE, UDP, udp(address, OUTSIDE.ip6, 9, 9), address),
                v6(OUTSIDE, ICMP6, na(OUTSIDE, address))]

    assert [wired.leaked([frame])["outside"] for frame in stolen(router)] == [1, 1]
    nonce = os.urandom(12)
    wired.outside.send(ether(multicast_mac("ff02::1"), OUTSIDE.mac, IP6, ip6(
        router, "ff02::1", ICMP6, icmp6(router, "ff02::1", 134, RA))) + nonce)
    wired.victim.wait(nonce)
    assert [wired.leaked([frame])["outside"] for frame in stolen(router)] == [0, 0]
    assert [wired.leaked([frame])["outside"] for frame in stolen(free)] == [1, 1]


def test_the_compiler_names_the_ports_that_lead_outside() -> None:
    text = """
version: 1
uplinks: {wan: {device: eth7}}
networks:
  office: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24}
  prod: {mode: bridge, bridge: vmbr0}
vms: {}
"""
    links = (Link(name="eth7", type="physical", mac="52:54:00:00:00:07", mtu=1500),
             Link(name="eth8", type="physical", master="vmbr0"), Link(name="vmbr0", type="bridge"),
             Link(name="tap9", type="tap", master="vmbr0"))
    wanted = compile_spec(loads(text, "test").spec, Facts(state={link.key: link for link in links}), {}).wanted
    rules = getattr(wanted[Key("nft-table", "bridge kvmnet")], "text", "")
    assert {d for d in ("eth7", "eth8", "tap9") if f'"{d}"' in rules} == {"eth7", "eth8"}
