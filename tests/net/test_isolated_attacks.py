"""Ways from one isolated guest to another of its network: beside the router, by it, by a forwarded port, by what floods a bridge. None
gets through, and each does once the guests are not isolated and nothing of the host's own stands in the way.

``tests/lab/test_isolated.py`` runs the same on bridge conntrack.
"""
from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from kvmnet.host.clock import wait_until
from kvmnet.modes.model import NicOnNetwork
from lib.frames import TCP, UDP, arp, ether, ip4, ip6, multicast_mac, udp
from lib.netns import sh
from lib.tap import Tap
from lib.verdicts import segment
from lib.world import World, world

pytestmark = pytest.mark.net
IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806
NOBODY, EVERYBODY = "02:00:00:00:00:77", "ff:ff:ff:ff:ff:ff"

OWN = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd01::/64", isolated_ports: true, peers: [pub],
        forwards: [{port: 8080, to: two, to_port: 80}], dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"}
  pub: {mode: routed, uplink: wan, subnet: 10.2.0.0/24, subnet6: "fd02::/64", dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"}
vms:
  one: {nics: [{network: lan}]}
  two: {nics: [{network: lan}]}
  three: {nics: [{network: pub}]}
"""
JUDGED = OWN + "tenants: {all: {networks: [lan, pub]}}\n"
"""With rules of tenants, which know who is isolated; they allow everything here."""
ADOPTED = """
version: 1
networks:
  office: {mode: bridge, bridge: br0, subnet: 10.1.0.0/24, subnet6: "fd01::/64"}
vms:
  one: {nics: [{network: office, ip: 10.1.0.2, ip6: "fd01::2", isolated: true}]}
  two: {nics: [{network: office, ip: 10.1.0.3, ip6: "fd01::3", isolated: true}]}
"""


@dataclass
class Ground:
    world: World
    bridge: str
    taps: dict[str, Tap]
    nics: dict[str, NicOnNetwork]
    router: str
    """MAC of the bridge."""

    def arrives(self, frame: bytes, nonce: bytes, source: str = "one", target: str = "two") -> bool:
        """Whether it comes; a question of the host's behind it, by another way, tells when it would have."""
        self.taps[target].forget()
        self.taps[source].send(frame)
        mark, to = os.urandom(12), self.nics[target]
        host = ether(EVERYBODY, self.router, ARP, arp(1, (self.router, "10.1.0.1"), (NOBODY, to.ip)) + mark)
        send_by(f"kvb-{'pub' if target == 'three' else 'lan'}" if self.bridge != "br0" else "br0", host)
        self.taps[target].wait(mark, 20)
        return bool(self.taps[target].got(nonce))


def send_by(device: str, frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((device, 0))
        out.send(frame)


@contextmanager
def ground(document: str, bridge: str) -> Iterator[Ground]:
    with world() as made, ExitStack() as stack:
        if bridge == "br0":
            sh("ip link add br0 address 02:00:00:00:00:99 type bridge mcast_snooping 0; ip addr add 10.1.0.1/24 dev br0; "
               "ip addr add fd01::1/64 dev br0 nodad; ip link set br0 up")
            sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        planned = made.plan(document)
        made.host.apply(planned)
        assert planned.compiled
        nics = {nic.vm: nic for s in planned.compiled.segments.values() for nic in s.nics}
        taps = {vm: stack.enter_context(Tap(nic.tap)) for vm, nic in nics.items()}
        wait_until(lambda: sh("bridge link").count("state forwarding") >= len(taps), 20)
        for nic in nics.values():
            on = "kvb-pub" if nic.vm == "three" else bridge
            sh(f"ip neigh replace {nic.ip} lladdr {nic.mac} dev {on} nud permanent; ip neigh replace {nic.ip6} lladdr {nic.mac} dev {on} nud permanent")
        yield Ground(made, bridge, taps, nics, json.loads(sh(f"ip -j link show {bridge}"))[0]["address"])


Way = Callable[[Ground, bytes], bytes]


def datagram(to_mac: str, to: str = "two") -> Way:
    """By IPv4 to a MAC; '' for the receiver's, ``router`` for the host's."""
    def made(here: Ground, nonce: bytes) -> bytes:
        a, b = here.nics["one"], here.nics[to]
        mac = here.router if to_mac == "router" else to_mac or b.mac
        return ether(mac, a.mac, IP4, ip4(a.ip, b.ip, UDP, udp(a.ip, b.ip, 5, 777, nonce)))
    return made


def datagram6(to_mac: str) -> Way:
    def made(here: Ground, nonce: bytes) -> bytes:
        a, b = here.nics["one"], here.nics["two"]
        return ether(here.router if to_mac == "router" else b.mac, a.mac, IP6, ip6(a.ip6, b.ip6, UDP, udp(a.ip6, b.ip6, 5, 777, nonce), hops=64))
    return made


def to_all(here: Ground, nonce: bytes) -> bytes:
    a = here.nics["one"]
    return ether(EVERYBODY, a.mac, IP4, ip4(a.ip, "10.1.0.255", UDP, udp(a.ip, "10.1.0.255", 5, 777, nonce)))


def to_group(here: Ground, nonce: bytes) -> bytes:
    a = here.nics["one"]
    return ether(multicast_mac("224.0.0.251"), a.mac, IP4, ip4(a.ip, "224.0.0.251", UDP, udp(a.ip, "224.0.0.251", 5, 777, nonce)))


def question(here: Ground, nonce: bytes) -> bytes:
    a, b = here.nics["one"], here.nics["two"]
    return ether(EVERYBODY, a.mac, ARP, arp(1, (a.mac, a.ip), ("00:00:00:00:00:00", b.ip)) + nonce)


def hairpin(here: Ground, nonce: bytes) -> bytes:
    """To the port of the host's uplink that is handed to the other."""
    a = here.nics["one"]
    return ether(here.router, a.mac, IP4, ip4(a.ip, "192.0.2.2", TCP, segment(a.ip, "192.0.2.2", 7000 + nonce[0], 8080, 2, nonce)))


BESIDE: dict[str, Way] = {
    "to its MAC": datagram(""), "to its MAC, IPv6": datagram6(""), "broadcast": to_all, "multicast": to_group,
    "an unknown MAC": datagram(NOBODY), "an ARP question": question}
ROUTED: dict[str, Way] = {"by the router": datagram("router"), "by the router, IPv6": datagram6("router")}
HANDED: dict[str, Way] = {"by a forwarded port": hairpin}


def through(here: Ground, ways: dict[str, Way]) -> set[str]:
    return {name for name, way in ways.items() if (nonce := os.urandom(12)) and here.arrives(way(here, nonce), nonce)}


def open_host() -> None:
    """The host's own table lets guests go everywhere, as another hand might."""
    sh("nft 'flush chain inet kvmnet guests; add rule inet kvmnet guests goto pass'")


def answered_for(here: Ground, address: str) -> bool:
    """Whether somebody tells ``one`` a MAC for *address*."""
    a = here.nics["one"]
    here.taps["one"].forget()
    here.taps["one"].send(ether(EVERYBODY, a.mac, ARP, arp(1, (a.mac, a.ip), ("00:00:00:00:00:00", address))))
    last = ether(EVERYBODY, a.mac, ARP, arp(1, (a.mac, a.ip), ("00:00:00:00:00:00", "10.1.0.1")))
    here.taps["one"].send(last)
    said = b"\0\2" + bytes.fromhex(here.router.replace(":", ""))
    here.taps["one"].wait(said + bytes((10, 1, 0, 1)), 20)
    return any(f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2" and f[28:32] == bytes(map(int, address.split("."))) for f in here.taps["one"].drain())


def test_on_a_bridge_of_ours() -> None:
    with ground(JUDGED, "kvb-lan") as here:
        ways = BESIDE | ROUTED | HANDED
        assert through(here, ways) == set()
        assert not answered_for(here, here.nics["two"].ip) and answered_for(here, "10.1.0.1")
        nonce = os.urandom(12)
        assert here.arrives(datagram("router", "three")(here, nonce), nonce, target="three"), "another network is no business of it"
        open_host()
        assert through(here, ways) == set(), "the bridge alone keeps them apart"
        here.world.apply(OWN)
        assert through(here, ways) == set(), "without rules of groups or tenants as well"
        here.world.apply(JUDGED.replace("isolated_ports: true, ", ""))
        open_host()
        assert through(here, ways) == set(ways)


def test_on_a_bridge_of_the_hosts() -> None:
    with ground(ADOPTED, "br0") as here:
        assert through(here, BESIDE | ROUTED) == set()
        here.world.apply(ADOPTED.replace(", isolated: true", ""))
        assert through(here, BESIDE | ROUTED) == set(BESIDE | ROUTED)
