"""VLANs of a shared bridge in use: tags, multicast, ports that are made again, and kernels that cannot filter."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kvmnet.drivers.linux import links, vlans
from kvmnet.drivers.linux.driver import uid_of
from kvmnet.drivers.linux.wire import parse_links, parse_multicast, parse_vlans
from kvmnet.host import netlink
from kvmnet.host.clock import wait_until
from lib.frames import BROADCAST, IGMP, UDP, arp, ether, icmp, ip, ip4, tag, udp
from lib.netns import batch, inside, named_netns, sh
from lib.settled import lines, settled
from lib.tap import Tap
from lib.world import World, unchanged, world

pytestmark = pytest.mark.lab

VLANS = (100, 200)
GROUP, GROUP_MAC = "239.1.1.1", "01:00:5e:01:01:01"
NETWORKS = ("one: {mode: bridge, uplink: wan, vlan: 100, subnet: 10.100.0.0/24, querier: true}",
            "two: {mode: bridge, uplink: wan, vlan: 200, subnet: 10.200.0.0/24, snooping: false}")
GUESTS = {"a": ("one", 1), "b": ("one", 2), "c": ("one", 3), "d": ("two", 4), "e": ("two", 5)}
TAGS = "t: {nics: [{network: one, ip: 10.100.0.6, mac: '52:54:00:00:01:06', trunk: [200], untagged: false}]}"


def address(vm: str) -> str:
    network, number = GUESTS[vm]
    return f"10.{100 if network == 'one' else 200}.0.{number}"


def hardware(vm: str) -> str:
    return f"52:54:00:00:01:0{GUESTS[vm][1]}"


def document(*networks: str, more: str = "") -> str:
    vms = ", ".join(f"{vm}: {{nics: [{{network: {network}, ip: {address(vm)}, mac: '{hardware(vm)}'}}]}}"
                    for vm, (network, _) in GUESTS.items())
    return (f"version: 1\nuplinks: {{wan: {{device: e0, vlans: [100, 200-299]}}}}\nnetworks: {{{', '.join(networks)}}}\n"
            f"vms: {{{vms}{', ' + more if more else ''}}}\n")


LINKS = (
    "link add vb0 type bridge vlan_filtering 1 vlan_default_pvid 7 mcast_snooping 1 mcast_vlan_snooping 1", "link add vp0 type veth peer name vq0",
    "link add vp1 type veth peer name vq1", "link add vp2 type veth peer name vq2", "link set vp0 master vb0", "link set vp1 master vb0", "link set vp2 master vb0",
    "link add link vq0 name vq0.9 type vlan id 9 egress-qos-map 0:3 2:5 ingress-qos-map 1:4", "link add link vq0 name vq0.8 type vlan protocol 802.1ad id 8")
SPARSE = range(1000, 3000, 2)
VLANS_OF = (
    "vlan add dev vp0 vid 100-300", "vlan add dev vp0 vid 400 untagged", "vlan add dev vp1 vid 9 pvid untagged", "vlan add dev vb0 vid 100-200 self",
    *(f"vlan add dev vp2 vid {number}" for number in SPARSE), "vlan global set dev vb0 vid 100-150 mcast_querier 1", "vlan global set dev vb0 vid 160 mcast_snooping 0")


def test_links_and_vlans_are_those_that_the_tools_show() -> None:
    """As tests/net/test_netlink.py has it, with what only this kernel has: VLAN devices, and bridges that go by VLANs."""
    batch(*LINKS)
    batch(*VLANS_OF, tool="bridge")
    try:
        shown, of_ports, of_bridges = (json.loads(sh(command)) for command in (
            "ip -json -details link", "bridge -json -compressvlans vlan show", "bridge -json vlan global show"))
        told = links.told(netlink.links())
        assert told is not None
        seen = {link.name: link for link in parse_links(told, uid_of)}
        assert seen == {link.name: link for link in parse_links(shown, uid_of)}
        assert seen["vq0.9"].vlan_qos == ("0:3", "2:5") and seen["vq0.8"].vlan_protocol == "802.1ad" and seen["vb0"].mcast_vlan_snooping and seen["vb0"].default_pvid == 7
        ports = [*parse_vlans(vlans.of_ports(netlink.port_vlans()), seen)]
        assert ports == [*parse_vlans(of_ports, seen)] and len(ports) == len(SPARSE) + 4 + 201 + 1 + 1 + 101
        state = {thing.key: thing for thing in (*seen.values(), *ports)}
        multicast = [*parse_multicast(vlans.of_bridges(netlink.bridge_vlans(), {item["ifindex"]: item["ifname"] for item in shown}), state)]
        assert multicast == [*parse_multicast(of_bridges, state)]
        assert sum(bool(vlan.querier) for vlan in multicast) == 51 and sum(not vlan.snooping for vlan in multicast) == 1 and len(multicast) > 51
    finally:
        sh("ip link del vb0; ip link del vp0; ip link del vp1; ip link del vp2")


@pytest.fixture
def host() -> Iterator[World]:
    """A host with one more NIC, e0, to a trunk of a switch; ``tap-out`` is on that trunk."""
    with world() as made, named_netns(f"kvt-sw-{os.getpid()}") as switch:
        sh(f"ip link add e0 type veth peer name f0 netns {switch}; ip link set e0 up; ip -n {switch} link set f0 up")
        with inside(switch):
            outside = Tap("tap-out")
        sh(f"ip -n {switch} link add sw0 type bridge vlan_filtering 1 mcast_snooping 0; ip -n {switch} link set sw0 up;"
           f"ip -n {switch} link set f0 master sw0; ip -n {switch} link set tap-out master sw0 up;"
           f"bridge -n {switch} vlan add dev f0 vid 100-200; bridge -n {switch} vlan add dev tap-out vid 100-200")
        made.outside_tap = outside  # type: ignore[attr-defined]
        yield made
        outside.close()


class Segment:
    """The guests' ends of the taps, and the outside."""

    def __init__(self, host: World, *more: str):
        self.taps = {vm: Tap(f"kvt-{vm}-0") for vm in (*GUESTS, *more)}
        self.taps["outside"] = host.outside_tap  # type: ignore[attr-defined]
        wait_until(lambda: sh("bridge link").count("state forwarding") >= len(self.taps), 20)

    def reached(self, sender: str, frame: bytes, nonce: bytes, seconds: float = 0.4) -> set[str]:
        """Who got the frame of *sender*."""
        for tap in self.taps.values():
            tap.forget()
        self.taps[sender].send(frame)
        others = {n: t for n, t in self.taps.items() if n != sender}
        with suppress(TimeoutError):
            wait_until(lambda: all(t.got(nonce) for t in others.values()), seconds)
        return {n for n, t in others.items() if t.got(nonce)}

    def close(self) -> None:
        for name, tap in self.taps.items():
            if name != "outside":
                tap.close()


def call(vm: str, nonce: bytes) -> bytes:
    """A broadcast that the guard lets pass."""
    own = (hardware(vm), address(vm))
    return ether(BROADCAST, own[0], 0x0806, arp(1, own, ("00:00:00:00:00:00", own[1])) + nonce)


def stream(vm: str, nonce: bytes) -> bytes:
    return ether(GROUP_MAC, hardware(vm), 0x0800, ip4(address(vm), GROUP, UDP, udp(address(vm), GROUP, 9, 9, nonce)))


def igmp(vm: str, kind: int, group: str) -> bytes:
    """A membership message, to the group itself; a query for all groups to all hosts."""
    to = "224.0.0.1" if kind == 0x11 else group
    return ether("01:00:5e:00:00:01" if kind == 0x11 else GROUP_MAC, hardware(vm), 0x0800, ip4(
        address(vm), to, IGMP, icmp(kind, 0, ip(group)), options=b"\x94\4\0\0", ttl=1))


def queries(tap: Tap) -> int:
    return sum(f[12:14] == b"\x08\0" and f[23] == IGMP and f[14 + 4 * (f[14] & 15)] == 0x11 for f in tap.drain())


def test_tags_multicast_and_ports_made_again(host: World) -> None:
    before = settled()
    lines(host, document(*NETWORKS, more=TAGS))
    on = Segment(host, "t")
    assert on.reached("a", call("a", b"broadcast-of-a"), b"broadcast-of-a") == {"b", "c", "t", "outside"}
    tagless_and_tagged(on)
    multicast(host, on)
    made_again(host, on)
    on.close()
    without_filtering(host)
    host.destroy()
    unchanged(before, settled)


def tagless_and_tagged(on: Segment) -> None:
    """A NIC that sends only tags: nothing untagged of it passes, its network's own VLAN does in a tag."""
    own = ("52:54:00:00:01:06", "10.100.0.6")
    frame = ether(BROADCAST, own[0], 0x0806, arp(1, own, ("00:00:00:00:00:00", own[1])) + b"frame-of-t")
    assert on.reached("t", frame, b"frame-of-t") == set()
    assert on.reached("t", tag(100, frame), b"frame-of-t") == {"a", "b", "c", "outside"}
    assert on.reached("t", tag(200, frame), b"frame-of-t") == {"d", "e", "outside"}
    assert on.reached("t", tag(201, frame), b"frame-of-t") == set()


def multicast(host: World, on: Segment) -> None:
    """The querier asks on its VLAN; what a guest joined reaches it, and no other guest there."""
    shown = json.loads(sh("bridge -j vlan global show dev kvb-~wan"))[0]["vlans"]
    assert {v["vlan"]: (v["mcast_snooping"], v["mcast_querier"]) for v in shown} == {1: (1, 0), 100: (1, 1), 200: (0, 0)}
    for vm in ("a", "d"):
        on.taps[vm].forget()
    sh("bridge vlan global set dev kvb-~wan vid 100 mcast_startup_query_interval 100")
    sh("bridge vlan global set dev kvb-~wan vid 100 mcast_querier 0; bridge vlan global set dev kvb-~wan vid 100 mcast_querier 1")
    wait_until(lambda: queries(on.taps["a"]) > 0, 20)
    assert queries(on.taps["d"]) == 0, "the other VLAN has no querier"
    on.taps["a"].send(igmp("a", 0x16, GROUP))
    wait_until(lambda: f"dev kvb-~wan port kvt-a-0 grp {GROUP}" in sh("bridge mdb show"), 20)
    on.taps["c"].send(igmp("c", 0x11, "0.0.0.0"))
    assert on.reached("d", stream("d", b"all-of-two"), b"all-of-two") >= {"e"}, "without snooping all get it"
    # A querier trusts its own silence only after a query's response time, 10 s (br_multicast_set_querier()).
    wait_until(lambda: on.reached("b", stream("b", b"group-of-a"), b"group-of-a", 0.3) == {"a"}, 20)
    assert "kvt-c-0" not in sh("bridge -d mdb show dev kvb-~wan").partition("router ports")[2], "a forged query is dropped"
    on.taps["c"].send(igmp("c", 0x16, GROUP))
    wait_until(lambda: on.reached("b", stream("b", b"two-listen"), b"two-listen", 0.3) == {"a", "c"}, 20)


def made_again(host: World, on: Segment) -> None:
    """VLANs of a port outlive the guest, and are made again with the tap."""
    on.taps["a"].close()
    on.taps["a"] = Tap("kvt-a-0")
    wait_until(lambda: sh("bridge link show dev kvt-a-0").count("state forwarding") == 1, 20)
    assert "a" in on.reached("b", call("b", b"guest-is-back"), b"guest-is-back")
    on.taps["a"].close()
    vlans = sh("bridge vlan show dev kvt-a-0")
    sh("ip link del kvt-a-0; bridge vlan del dev kvt-c-0 vid 100; bridge vlan add dev kvt-b-0 vid 200")
    assert sorted(host.drift()) == ["create bridge-vlan kvt-a-0 100", "create bridge-vlan kvt-c-0 100",
                                    "create link kvt-a-0", "delete bridge-vlan kvt-b-0 200"]
    lines(host, document(*NETWORKS, more=TAGS))
    on.taps["a"] = Tap("kvt-a-0")
    wait_until(lambda: sh("bridge link show dev kvt-a-0").count("state forwarding") == 1, 20)
    assert sh("bridge vlan show dev kvt-a-0") == vlans
    assert on.reached("b", call("b", b"after-all-that"), b"after-all-that") == {"a", "c", "t", "outside"}


def without_filtering(host: World) -> None:
    """The same document on a kernel that cannot filter VLANs, and one with ARP answered by the bridge."""
    cache = host.paths.run / "features.json"
    known = json.loads(cache.read_text())
    known["features"]["bridge-vlan-filtering"] = "switched off by a test"
    cache.write_text(json.dumps(known))
    plain = document(NETWORKS[0].replace("querier: true", "querier: true, neigh_suppress: true"), NETWORKS[1])
    planned = host.plan(plain)
    assert [n for n in planned.notes if "switched off by a test" in n and "bridge of its own" in n] != []
    host.host.apply(planned)
    assert host.drift() == []
    assert "kvb-~wan" not in sh("ip link") and "id 100" in sh("ip -d link show kvu-~one")
    on = Segment(host)
    assert on.reached("a", call("a", b"own-bridge-of-one"), b"own-bridge-of-one") == {"b", "c", "outside"}
    assert on.reached("d", call("d", b"own-bridge-of-two"), b"own-bridge-of-two") == {"e", "outside"}
    answered_by_the_bridge(on)
    on.close()


def answered_by_the_bridge(on: Segment) -> None:
    """ARP for a known guest is answered, and does not reach it; for another guest it does."""
    outer = ("52:54:00:00:09:09", "10.100.0.99")

    def ask(target: str, nonce: bytes) -> bytes:
        return tag(100, ether(BROADCAST, outer[0], 0x0806, arp(1, outer, ("00:00:00:00:00:00", target)) + nonce))

    on.taps["a"].send(call("a", b"here-is-the-mac"))
    assert on.reached("outside", ask(address("a"), b"who-is-a"), b"who-is-a") == set()
    answers = [f for f in on.taps["outside"].drain() if f[16:18] == b"\x08\x06" and f[24:26] == b"\0\2"]
    assert [f[26:32].hex(":") for f in answers] == [hardware("a")]
    assert on.reached("outside", ask("10.100.0.77", b"who-is-nobody"), b"who-is-nobody") == {"a", "b", "c"}
