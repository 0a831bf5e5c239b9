"""The guard over time: forwarding entries, link-local claims, open flows, reloads, other bridges."""
from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.engine.plan import plan
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import CLAIMS_PER_HOUR, REASONS, guard_table, nic_guard
from lib.frames import (
    BROADCAST,
    ICMP6,
    UDP,
    ether,
    icmp6,
    ip,
    ip4,
    ip6,
    llc,
    mac,
    multicast_mac,
    option,
    solicited_node,
    tag,
    udp,
)
from lib.guardlab import ATTACKER, BRIDGE, HOST, OUTSIDE, VICTIM, Lab, guard_script, lab, plain_guard
from lib.netns import new_netns, sh
from lib.tap import Tap

pytestmark = pytest.mark.net
IP4, IP6 = 0x0800, 0x86DD
STABLE = "fe80::8d3f:1a2b:3c4d:5e6f"


@pytest.fixture
def wired() -> Iterator[Lab]:
    with new_netns(), lab() as made:
        yield made


def where(mac: str) -> list[str]:
    """Ports that the bridge believes *mac* to be behind."""
    return [e["ifname"] for e in json.loads(sh(f"bridge -j fdb show br {BRIDGE}")) if e["mac"] == mac]


STEALING = {
    "a spoofed frame": ether(BROADCAST, VICTIM.mac, IP4, ip4(VICTIM.ip4, "255.255.255.255", UDP, bytes(8))),
    "a BPDU": llc("01:80:c2:00:00:00", VICTIM.mac, b"\x42\x42\3" + bytes(35)),
    "LLDP": ether("01:80:c2:00:00:0e", VICTIM.mac, 0x88CC, bytes(46)),
    "an IPv4 packet to a link control address": ether("01:80:c2:00:00:03", VICTIM.mac, IP4,
                                                      ip4(VICTIM.ip4, HOST.ip4, UDP, bytes(8))),
    "a tagged frame": tag(5, ether(BROADCAST, VICTIM.mac, IP4, bytes(46))),
}


@pytest.mark.parametrize("name", STEALING)
def test_no_frame_moves_another_ones_forwarding_entry(wired: Lab, name: str) -> None:
    sh(f"bridge fdb del {VICTIM.mac} dev {wired.victim.name} master")
    hello = ether(BROADCAST, VICTIM.mac, IP4, ip4(VICTIM.ip4, "255.255.255.255", UDP, bytes(8)))

    def owner_after_the_attack() -> list[str]:
        wired.victim.send(hello)
        wait_until(lambda: where(VICTIM.mac) == [wired.victim.name], 20)
        wired.leaked([STEALING[name]])
        return where(VICTIM.mac)

    wired.open()
    assert owner_after_the_attack() == [wired.attacker.name]
    wired.guard()
    assert owner_after_the_attack() == [wired.victim.name]


def test_frames_to_link_control_addresses_do_not_reach_the_host(wired: Lab) -> None:
    """They pass no bridge prerouting, and the host takes them on the port itself."""
    def reached() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((HOST.ip4, 7000))
            for last in range(16):
                data = udp(VICTIM.ip4, HOST.ip4, 7, 7000, b"x")
                wired.leaked([ether(f"01:80:c2:00:00:{last:02x}", ATTACKER.mac, IP4,
                                    ip4(VICTIM.ip4, HOST.ip4, UDP, data))])
            wired.leaked([ether(HOST.mac, ATTACKER.mac, IP4, ip4(ATTACKER.ip4, HOST.ip4, UDP,
                                                                udp(ATTACKER.ip4, HOST.ip4, 7, 7000, b"end")))])
            count = 0
            server.settimeout(5)
            while server.recv(100) != b"end":
                count += 1
            return count

    sh(f"sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{wired.attacker.name}.rp_filter=0")
    wired.open()
    assert reached() > 0
    wired.guard()
    assert reached() == 0


def test_with_stp_a_guest_never_becomes_the_root(wired: Lab) -> None:
    """The bridge takes BPDUs past every hook then; the port's BPDU guard, which taps get there, shuts the port."""
    bridge_id = struct.pack("!H", 0) + mac(ATTACKER.mac)
    bpdu = llc("01:80:c2:00:00:00", ATTACKER.mac, b"\x42\x42\3" + bytes(5) + bridge_id + bytes(4) + bridge_id
               + struct.pack("!HHHHH", 0x8001, 0, 20 << 8, 2 << 8, 15 << 8) + bytes(8))

    def root_port() -> int:
        """0: the bridge itself is the root (root_id is shown wrongly by iproute2 6.1)."""
        return int(json.loads(sh(f"ip -j -d link show {BRIDGE}"))[0]["linkinfo"]["info_data"]["root_port"])

    sh(f"ip link set {BRIDGE} type bridge stp_state 1 forward_delay 200")
    wired.guard()
    sh(f"bridge link set dev {wired.attacker.name} guard on")
    wired.attacker.send(bpdu)
    assert root_port() == 0
    assert "state disabled" in sh(f"bridge link show dev {wired.attacker.name}")
    sh(f"bridge link set dev {wired.attacker.name} guard off; ip link set {wired.attacker.name} nomaster; "
       f"ip link set {wired.attacker.name} master {BRIDGE}")
    wait_until(lambda: wired.attacker.send(bpdu) or root_port() != 0, 20)


def dad(end_mac: str, address: str) -> bytes:
    group = solicited_node(address)
    return ether(multicast_mac(group), end_mac, IP6, ip6("::", group, ICMP6, icmp6(
        "::", group, 135, bytes(4) + ip(address) + option(14, b"\1\2\3\4\5\6"))))


def use(address: str) -> bytes:
    return ether(BROADCAST, ATTACKER.mac, IP6, ip6(address, "ff02::1", UDP, udp(address, "ff02::1", 9, 9)))


def test_a_link_local_belongs_to_the_nic_that_was_first(wired: Lab) -> None:
    wired.guard()
    nonce = os.urandom(12)
    wired.victim.send(dad(VICTIM.mac, STABLE) + nonce)
    wired.outside.wait(nonce)
    taken = [use(STABLE), dad(ATTACKER.mac, STABLE)]
    assert [wired.leaked([frame])["outside"] for frame in taken] == [0, 0]
    own = STABLE.replace("5e6f", "1111")
    assert [wired.leaked([frame])["outside"] for frame in (dad(ATTACKER.mac, own), use(own))] == [1, 1]
    wired.open()
    assert [wired.leaked([frame])["outside"] for frame in taken] == [1, 1]


def test_nobody_claims_an_address_of_the_host_or_of_a_declared_mac(wired: Lab) -> None:
    host = "fe80::1"
    wired.guard(nic_guard("kvt-attacker", "full", [ATTACKER.mac], [ATTACKER.ip4, ATTACKER.ip6], bridge=BRIDGE,
                          protected=[HOST.ip4, host]))
    tries = [f for address in (host, HOST.local, VICTIM.local, OUTSIDE.local)
             for f in (use(address), dad(ATTACKER.mac, address))]
    assert [wired.leaked([frame])["outside"] for frame in tries] == [0] * 8
    wired.open()
    assert [wired.leaked([frame])["outside"] for frame in tries] == [1] * 8


def test_claims_are_few_per_nic_and_kept_apart_by_network(wired: Lab) -> None:
    wired.guard()
    passed = [wired.leaked([use(f"fe80::a:{n:x}")])["outside"] for n in range(1, 2 * CLAIMS_PER_HOUR)]
    assert sum(passed) == CLAIMS_PER_HOUR and passed[:CLAIMS_PER_HOUR] == [1] * CLAIMS_PER_HOUR
    wired.guard(nic_guard("kvt-victim", "full", [VICTIM.mac], [], bridge="kvb-other"))
    nonce = os.urandom(12)
    wired.attacker.send(use("fe80::a:1"))
    wired.victim.send(dad(VICTIM.mac, "fe80::a:1") + nonce)
    wired.outside.wait(nonce)


def test_an_open_flow_is_no_way_in(wired: Lab) -> None:
    sh("nft 'table inet host { chain input { type filter hook input priority 0; ct state established accept; }; }'")
    rules = sh("nft list ruleset")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST.ip4, 6000))
        server.settimeout(5)
        for guarded, arrives in ((False, b"spoofed"), (True, b"second")):
            sh(f"nft -f - <<'E'\nflush ruleset\n{rules}\n{guard_script(wired.guards) if guarded else ''}E")
            sh(f"ip neigh replace {VICTIM.ip4} lladdr {VICTIM.mac} dev {BRIDGE}")

            def datagram(text: bytes) -> bytes:
                return ip4(VICTIM.ip4, HOST.ip4, UDP, udp(VICTIM.ip4, HOST.ip4, 5000, 6000, text))

            wired.victim.send(ether(HOST.mac, VICTIM.mac, IP4, datagram(b"first")))
            assert server.recv(100) == b"first"
            server.sendto(b"answer", (VICTIM.ip4, 5000))
            wired.victim.wait(b"answer")
            for source in (ATTACKER.mac, VICTIM.mac):
                wired.attacker.send(ether(HOST.mac, source, IP4, datagram(b"spoofed")))
            wired.victim.send(ether(HOST.mac, VICTIM.mac, IP4, datagram(b"second")))
            assert server.recv(100) == arrives
            if not guarded:
                assert [server.recv(100), server.recv(100)] == [b"spoofed", b"second"]


def test_a_nic_in_no_set_sends_nothing_and_foreign_bridges_everything(wired: Lab) -> None:
    wired.guard()
    sh("ip link add br0 type bridge mcast_snooping 0 forward_delay 0; ip link set br0 up")
    frames = {"plain": ether(BROADCAST, ATTACKER.mac, IP4, bytes(46)), "unknown": ether(BROADCAST, VICTIM.mac, 0x88B6, bytes(46)),
              "bpdu": llc("01:80:c2:00:00:00", VICTIM.mac, bytes(46)), **STEALING}
    frames.pop("LLDP")
    frames.pop("an IPv4 packet to a link control address")

    def through(names: tuple[str, str], bridge: str) -> set[str]:
        with ExitStack() as stack:
            first, second = (stack.enter_context(Tap(name)) for name in names)
            for tap in (first, second):
                sh(f"ip link set {tap.name} master {bridge} up")
            wait_until(lambda: sh(f"bridge link show dev {first.name}").count("state forwarding"), 20)
            nonces = {name: os.urandom(12) for name in frames}
            for name, frame in frames.items():
                first.send(frame + nonces[name])
            return {name for name, nonce in nonces.items() if second.got(nonce)}

    assert through(("fnet0", "fnet1"), "br0") == set(frames)
    assert through(("kvt-lost", "wan1"), BRIDGE) == set()
    wired.open()
    assert through(("kvt-lost", "wan1"), BRIDGE) == set(frames)


def flood(tap: Tap, frame: bytes, ended: threading.Event, sent: list[int]) -> None:
    while not ended.is_set():
        for _ in range(50):
            tap.send(frame)
        sent[0] += 50


def test_no_frame_slips_through_a_hundred_reloads(wired: Lab, paths: Paths) -> None:
    """Of the table's text and of the NIC's own elements, by the driver itself."""
    driver = NftablesDriver(paths)
    for odd in range(2):
        apply(driver, table(odd), *wired.guards)
    nonce = os.urandom(16)
    spoofed = ether(OUTSIDE.mac, VICTIM.mac, IP4, ip4(VICTIM.ip4, OUTSIDE.ip4, UDP, bytes(8))) + nonce
    wired.forget()
    ended, sent = threading.Event(), [0]
    thread = threading.Thread(target=flood, args=(wired.attacker, spoofed, ended, sent))
    thread.start()
    try:
        for turn in range(100):
            if turn % 2:
                wired.guards[0] = plain_guard("kvt-attacker", ATTACKER, prefixes=[f"10.{turn}.0.0/16"])
            apply(driver, table(turn % 4 < 2), *wired.guards)
    finally:
        ended.set()
        thread.join()
    assert sent[0] > 1000
    assert wired.outside.got(nonce) == 0
    wired.open()
    wired.attacker.send(spoofed)
    wired.outside.wait(nonce)


def table(odd: int) -> NftTable:
    return NftTable(name="bridge kvmnet", text=(guard_table().text or "") + f"chain turn{int(odd)} {{ }}\n")


def apply(driver: NftablesDriver, *resources: NftTable | object) -> None:
    wanted = {r.key: r for r in resources}  # type: ignore[attr-defined]
    seen = driver.observe(wanted)
    if steps := plan(seen.state, wanted, seen.ours):
        driver.apply(steps, lambda n: None)


def test_the_drops_are_counted_by_nic_and_reason(wired: Lab, paths: Paths) -> None:
    wired.guard()
    wired.leaked([ether(HOST.mac, VICTIM.mac, IP4, bytes(46))] * 3)
    wired.leaked([ether(HOST.mac, ATTACKER.mac, IP4, ip4(VICTIM.ip4, HOST.ip4, UDP, bytes(8)))] * 2)
    counted = NftablesDriver(paths).dropped()["kvt-attacker"]
    assert {REASONS[number]: frames for number, frames in counted.items()} == {
        "source MAC is not the NIC's own": 3, "IPv4 source address is not the NIC's own": 2}
