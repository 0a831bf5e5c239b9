"""Networks that two hosts share: frames from guest to guest, who else gets in, what a change costs, what is proved."""
from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kvmnet.host.clock import wait_until
from lib.frames import BROADCAST, UDP, arp, ether, ip4, udp
from lib.hosts import ATTACKER, ATTACKER6, FIRST, FIRST6, SECOND, SECOND6, Hosts, two_hosts
from lib.netns import inside, sh
from lib.tap import Tap
from lib.world import snapshot, unchanged

pytestmark = pytest.mark.net

NEAR, FAR, ROGUE = ("52:54:00:00:50:01", "10.50.0.11"), ("52:54:00:00:50:02", "10.50.0.12"), ("52:54:00:00:50:66", "10.50.0.66")
WAYS = {
    "static4": "vni: 5000, peers: [{peer}]", "static6": "vni: 5000, peers: ['{peer6}']",
    "group4": "vni: 5000, group: 239.5.0.1", "group6": "vni: 5000, group: 'ff05::5000', peers: ['{peer6}']",
}


def document(who: str, way: str = "static4", more: str = "", extra: str = "", vms: str = "") -> str:
    """The document of the near or the far host."""
    near = who == "near"
    vxlan = WAYS[way].format(peer=SECOND if near else FIRST, peer6=SECOND6 if near else FIRST6)
    mac, ip = NEAR if near else FAR
    return (f"version: 1\nuplinks: {{fabric: {{device: u0}}}}\nnetworks:\n"
            f"  blue: {{mode: vxlan, uplink: fabric, subnet: 10.50.0.0/24{more}, vxlan: {{{vxlan}}}}}\n{extra}"
            f"vms:\n  {who}: {{nics: [{{network: blue, mac: '{mac}', ip: {ip}}}]}}\n{vms}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as made:
        yield made


def asks(sender: tuple[str, str], target: tuple[str, str], nonce: bytes) -> bytes:
    return ether(BROADCAST, sender[0], 0x0806, arp(1, sender, ("00:00:00:00:00:00", target[1])) + nonce)


def says(sender: tuple[str, str], target: tuple[str, str], nonce: bytes, size: int = 0) -> bytes:
    payload = nonce + bytes(max(0, size - 28 - len(nonce)))
    return ether(target[0], sender[0], 0x0800, ip4(sender[1], target[1], UDP, udp(sender[1], target[1], 7, 7, payload)))


def silent(tap: Tap, nonce: bytes) -> bool:
    with suppress(TimeoutError):
        wait_until(lambda: tap.got(nonce), 0.4)
    return tap.got(nonce) == 0


def until_through(sender: Tap, receiver: Tap, frame: bytes, nonce: bytes) -> None:
    """Ports of a bridge forward a moment after they came up."""
    def there() -> bool:
        sender.send(frame)
        return bool(receiver.got(nonce))
    wait_until(there, 20, 0.1)


@pytest.mark.parametrize("way", WAYS)
def test_guests_of_two_hosts_are_neighbours(hosts: Hosts, way: str) -> None:
    before = snapshot()
    hosts.near.apply(document("near", way))
    hosts.far.apply(document("far", way))
    assert hosts.near.drift() == []
    six = "6" in way
    mtu = 1430 if six else 1450
    assert f"mtu {mtu}" in sh("ip link show kvx-blue") and f"mtu {mtu}" in sh("ip link show kvt-near-0")
    with Tap("kvt-near-0") as near, hosts.far.tap("kvt-far-0") as far:
        until_through(near, far, asks(NEAR, FAR, b"who-has-far"), b"who-has-far")
        until_through(far, near, asks(FAR, NEAR, b"who-has-near"), b"who-has-near")
        near.send(says(NEAR, FAR, b"full-size", mtu))
        far.wait(b"full-size")
        near.send(says(NEAR, FAR, b"one-more", mtu + 1))
        near.send(ether(FAR[0], ROGUE[0], 0x0800, says(NEAR, FAR, b"spoofed-mac")[14:]))
        near.send(says((NEAR[0], ROGUE[1]), FAR, b"spoofed-ip"))
        near.send(says(NEAR, FAR, b"after-them"))
        far.wait(b"after-them")
        assert far.got(b"one-more") == far.got(b"spoofed-mac") == far.got(b"spoofed-ip") == 0
    hosts.near.destroy()
    unchanged(before)


def test_one_peer_more_is_a_small_plan_and_what_others_change_is_drift(hosts: Hosts) -> None:
    hosts.near.apply(document("near"))
    sh("ip link add foreign0 type vxlan id 77 local 10.9.0.1 dstport 4789 dev u0 && bridge fdb append 00:00:00:00:00:00 dev foreign0 dst 10.9.0.9")
    before = sh("ip -d link show foreign0; bridge fdb show dev foreign0")
    assert hosts.near.drift() == []
    more = document("near").replace(f"peers: [{SECOND}]", f"peers: [{SECOND}, 10.9.0.3]")
    steps = hosts.near.plan(more).steps
    assert [f"{type(s).__name__} {s.key}" for s in steps] == [
        "Update nft-table inet kvmnet", "Create fdb kvx-blue 00:00:00:00:00:00 10.9.0.3"]
    hosts.near.apply(more)
    assert "10.9.0.3" in sh("bridge fdb show dev kvx-blue") and hosts.near.drift() == []
    hosts.near.apply(document("near"))
    assert "10.9.0.3" not in sh("bridge fdb show dev kvx-blue") and SECOND in sh("bridge fdb show dev kvx-blue")
    sh(f"bridge fdb del 00:00:00:00:00:00 dev kvx-blue dst {SECOND}; bridge fdb append 00:00:00:00:00:00 dev kvx-blue dst {ATTACKER};"
       "ip link set kvx-blue mtu 1300")
    assert sorted(hosts.near.drift()) == [f"create fdb kvx-blue 00:00:00:00:00:00 {SECOND}",
                                          f"delete fdb kvx-blue 00:00:00:00:00:00 {ATTACKER}", "update link kvx-blue"]
    hosts.near.apply(document("near"))
    assert hosts.near.drift() == []
    hosts.near.apply(document("near").replace("vni: 5000", "vni: 5001"))
    assert "id 5001" in sh("ip -d link show kvx-blue") and hosts.near.drift() == []
    sh("ip link del kvx-blue")
    assert f"create fdb kvx-blue 00:00:00:00:00:00 {SECOND}" in hosts.near.drift()
    hosts.near.host.apply(hosts.near.host.plan_revision())
    assert "id 5000" in sh("ip -d link show kvx-blue") and hosts.near.drift() == []
    hosts.near.destroy()
    assert sh("ip -d link show foreign0; bridge fdb show dev foreign0") == before
    sh("ip link del foreign0")


# -- attacks ---------------------------------------------------------------------------------------

def packet(frame: bytes, vni: int = 5000) -> bytes:
    """A frame as VXLAN carries it (RFC 7348, 5)."""
    return struct.pack("!BxxxI", 8, vni << 8) + frame


def send_from(netns: str, target: str, payload: bytes, source: str = "", port: int = 4789) -> None:
    with inside(netns):
        out = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        if target.startswith("ff"):
            out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("sw0"))
    with out:
        if source:
            out.bind((source, 0))
        out.sendto(payload, (target, port))


def without_rules() -> None:
    """The control: what a host without these rules does."""
    for chain in ("overlay_in", "overlay_through"):
        sh(f"nft flush chain inet kvmnet {chain}")


@pytest.mark.parametrize("way", ["static4", "static6", "group6"])
def test_nobody_else_in_the_underlay_gets_a_frame_in(hosts: Hosts, way: str) -> None:
    hosts.near.apply(document("near", way))
    target, source = (FIRST6, ATTACKER6) if "6" in way else (FIRST, ATTACKER)
    places = [target, *(["ff05::5000"] if way == "group6" else [])]
    sh(f"ip link add foreign0 type vxlan id 77 dstport 4789 {'local ' + target} dev u0; ip link set foreign0 up")
    with Tap("kvt-near-0") as near:
        forged = [packet(asks(ROGUE, NEAR, b"forged-known")), packet(asks(ROGUE, NEAR, b"forged-known") + b"\1" * 1200),
                  packet(says(ROGUE, NEAR, b"forged-known"))]
        def attack(nonce: bytes) -> None:
            for place in places:
                for one in forged:
                    send_from(hosts.switch, place, one.replace(b"forged-known", nonce), source)
        peer = SECOND6 if "6" in way else SECOND
        def from_the_peer() -> bool:
            send_from(hosts.far.netns, target, packet(asks(FAR, NEAR, b"from-a-peer!")), peer)
            return bool(near.got(b"from-a-peer!"))
        wait_until(from_the_peer, 20, 0.1)
        near.forget()
        attack(b"attack-guard")
        # A fragment hides nothing: 3 kB in pieces of 1500.
        send_from(hosts.switch, target, packet(asks(ROGUE, NEAR, b"attack-frag!") + b"\1" * 1390) + bytes(1500), source)
        assert silent(near, b"attack-guard") and near.got(b"attack-frag!") == 0
        other = packet(asks(ROGUE, NEAR, b"other-number"), 77)
        send_from(hosts.switch, target, other, source)
        wait_until(lambda: json.loads(sh("ip -s -j link show foreign0"))[0]["stats64"]["rx"]["packets"] > 0, 20)
        assert near.got(b"other-number") == 0, "another number on the same port is somebody else's, and goes on"
        without_rules()
        attack(b"attack-open!")
        near.wait(b"attack-open!")
    sh("ip link del foreign0")
    hosts.near.destroy()


NAT = "  lan: {mode: nat, uplink: fabric, subnet: 192.168.7.0/24}\n"
GUEST = "  bad: {nics: [{network: lan, ip: 192.168.7.9}]}\n"


def test_a_guest_cannot_put_frames_into_another_network(hosts: Hosts) -> None:
    """A guest sends valid VXLAN packets: to its own host, and, behind NAT, to a host that trusts this one."""
    hosts.near.apply(document("near", extra=NAT, vms=GUEST))
    hosts.far.apply(document("far"))
    bad = hosts.near.guest("bad").use("192.168.7.9/24", via="192.168.7.1")
    with Tap("kvt-near-0") as near, hosts.far.tap("kvt-far-0") as far:
        until_through(near, far, asks(NEAR, FAR, b"control-pass"), b"control-pass")

        def attack(nonce: bytes) -> None:
            for target in (FIRST, "192.168.7.1", SECOND):
                for one in (packet(asks(ROGUE, NEAR, nonce)), packet(asks(ROGUE, FAR, nonce)),
                            packet(asks(ROGUE, FAR, nonce) + bytes(2000))):
                    send_from(bad.netns, target, one)

        wait_until(lambda: bad.pings(SECOND), 20)
        attack(b"guest-attack")
        assert silent(near, b"guest-attack") and silent(far, b"guest-attack")
        without_rules()
        attack(b"through-nat!")
        far.wait(b"through-nat!")
        assert near.got(b"through-nat!") == 0, "the input chain holds by itself"
        sh("nft insert rule inet kvmnet input udp dport 4789 goto pass")
        attack(b"to-own-host!")
        near.wait(b"to-own-host!")
    hosts.near.destroy()


# -- services and proof ----------------------------------------------------------------------------

def test_the_host_that_has_an_address_serves_the_segment_and_nothing_of_it_leaks(hosts: Hosts) -> None:
    hosts.near.apply(document("near", more=", address: 10.50.0.1, pool: 10.50.0.100-10.50.0.120", extra=NAT, vms=GUEST))
    hosts.far.apply(document("far"))
    guest = hosts.near.guest("near")
    lease = guest.lease()
    assert (lease["ip"], lease["mtu"], lease.get("router", "")) == (NEAR[1], "1450", "")
    assert hosts.far.cli("status", "--json").stdout.count('"dhcp": "none"') == 1
    wait_until(lambda: guest.pings("10.50.0.1"), 20)
    sh(f"ip -n {guest.netns} route add default via 10.50.0.1 dev eth0; sysctl -qw net.ipv4.ip_forward=1")
    for target in (SECOND, ATTACKER, "192.168.7.9"):
        assert not guest.pings(target, timeout=0.3), target
    with hosts.far.tap("kvt-far-0") as far:
        # The other hosts' guests are strangers here: no lease, and no service of the host beyond the guests' own.
        far.send(says(FAR, NEAR, b"hello"))
        hosts.near.service(hosts.near.here, "host", 2222)
        assert not hosts.near.guest("near").tcp("10.50.0.1", 2222, 0.3)
    hosts.near.destroy()


def test_check_proves_the_way_to_every_peer(hosts: Hosts) -> None:
    hosts.near.apply(document("near"))
    hosts.far.apply(document("far"))
    found = {c.name: c for c in hosts.near.host.check().claims if c.subject == "host"}
    assert found[f"peer {SECOND}"].verdict == "pass" and "1500 bytes in one packet" in found[f"peer {SECOND}"].evidence
    # Devices take a frame that is 4 bytes, a VLAN tag, longer than their MTU (is_skb_forwardable()).
    sh(f"ip -n {hosts.switch} link set p1 mtu 1400; ip -n {hosts.far.netns} link set u0 mtu 1400")
    found = {c.name: c for c in hosts.near.host.check().claims if c.subject == "host"}
    assert found[f"peer {SECOND}"].verdict == "fail" and "write networks.blue.mtu: 1354" in found[f"peer {SECOND}"].evidence
    sh(f"ip -n {hosts.far.netns} link set u0 down")
    found = {c.name: c for c in hosts.near.host.check().claims if c.subject == "host"}
    assert found[f"peer {SECOND}"].evidence == f"{SECOND} does not answer echo"
    sh(f"ip -n {hosts.switch} link set p1 mtu 1500; ip -n {hosts.far.netns} link set u0 mtu 1500 up")
    network = json.loads(hosts.near.cli("status", "--json").stdout)["networks"][0]
    assert network["overlay"] == f"vni 5000 with {SECOND}"
    assert f"vni 5000 with {SECOND}" in hosts.near.cli("status").stdout
    hosts.near.destroy()
