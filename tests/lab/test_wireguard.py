"""A tunnel to another host on a kernel that has WireGuard: made, used, proved, changed, spoilt, given back.

The other host is a namespace that ip(8) and wg(8) set up by themselves; what the two share is a wire that is listened to.
"""
from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.errors import ApplyFailed
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture
from kvmnet.spec.load import loads
from kvmnet.status import tunnel_statuses
from lib.documents import quiet
from lib.netns import sh
from lib.settled import lines, settled
from lib.world import HOST, ROUTER, World, same, unchanged, world

pytestmark = pytest.mark.lab

DEV = "kvu-tunnel"
MARK = b"\x5a\xc3\x5a\xc3" * 4
GUEST = "10.50.0.11"


class Far:
    """The other host: behind the router's end of the wire, 10.99.0.2 in the tunnel, 10.98.0.1 beyond, 10.50.0.9 on the segment."""

    def __init__(self, near: World, place: Path):
        self.near, self.netns, self.place = near, near.outside.netns, place
        sh(f"umask 077; wg genkey > {place}/far; wg genkey > {place}/other; wg genkey > {place}/stray; wg genpsk > {place}/shared")
        self.key, self.other = (sh(f"wg pubkey < {place}/{name}").strip() for name in ("far", "other"))
        self.run(f"ip link add wg0 mtu 1440 type wireguard; ip addr add 10.99.0.2/24 dev wg0; ip addr add 10.98.0.1/32 dev wg0;"
                 f"wg set wg0 listen-port 51820 private-key {place}/far; ip link set wg0 up;"
                 "ip link add vx mtu 1390 type vxlan id 5000 local 10.99.0.2 remote 10.99.0.1 dstport 4789 dev wg0;"
                 "ip addr add 10.50.0.9/24 dev vx; ip link set vx up")

    def run(self, script: str) -> str:
        return sh(f"ip netns exec {self.netns} sh -ec '{script}'")

    def knows(self, key: str, more: str = "") -> None:
        self.run(f"wg set wg0 peer {key} endpoint {HOST}:51821 allowed-ips 10.99.0.1/32,10.60.0.0/24 {more}")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    with world() as near:
        yield Far(near, tmp_path_factory.mktemp("keys"))


def document(far: Far, peer: str = "", tunnel: str = "", peers: str = "", more: str = "", port: int = 51821) -> str:
    return (f"version: 1\nuplinks:\n  wan: {{device: eth0}}\n  tunnel:\n    on: wan\n    addresses: [10.99.0.1/24]\n"
            f"    routes: [{{to: 10.98.0.0/16}}]\n    wireguard:\n      port: {port}\n{tunnel}      peers:\n"
            f"        far: {{key: {far.key}, endpoint: '{ROUTER}:51820', allowed: [10.99.0.2, 10.98.0.0/16]{peer}}}\n{peers}{more}")


SEGMENT = ("networks: {blue: {mode: vxlan, uplink: tunnel, subnet: 10.50.0.0/24, vxlan: {vni: 5000, peers: [10.99.0.2]}}}\n"
           f"vms: {{a: {{nics: [{{network: blue, ip: {GUEST}}}]}}}}\n")


def public() -> str:
    return sh(f"wg show {DEV} public-key").strip()


def test_a_segment_through_a_tunnel_from_nothing_to_nothing(far: Far) -> None:
    near, before = far.near, settled()
    text = document(far, more=SEGMENT)
    lines(near, text)
    far.knows(public())
    assert "mtu 1440 " in sh(f"ip link show {DEV}") and "mtu 1390 " in sh("ip link show kvt-a-0")
    guest = near.guest("a").use(f"{GUEST}/24")
    guest.run("ip link set eth0 mtu 1390")
    wait_until(lambda: guest.pings("10.50.0.9"), 20)
    with Capture("eth0") as wire, Capture(DEV) as inside:
        guest.run(f"ping -n -c 3 -W 5 -M do -s {1390 - 28} -p {MARK.hex()} 10.50.0.9")
        on_wire, in_tunnel = (list(iter(capture.receive, None)) for capture in (wire, inside))
    assert sum(MARK in f for f in in_tunnel) == 6    # as long as the tunnel carries, and each in one piece
    assert not [f for f in on_wire if MARK in f] and sum(len(f) == 1514 for f in on_wire) == 6
    claims = {c.name: c for c in near.host.check().claims if c.network == "tunnel"}
    assert {n: c.verdict.value for n, c in claims.items()} == {"peer far": "pass", "encrypted far": "pass"}
    assert "1440 bytes" in claims["peer far"].evidence
    (shown,) = tunnel_statuses(loads(text).spec)
    assert shown.key == public() and shown.peers[0].handshake is not None and shown.peers[0].received > 1000
    quiet(near.paths, loads(text).spec.networks)
    secret = sh(f"wg show {DEV} private-key").strip().encode()
    holding = [p for root in (near.paths.state, near.paths.run) for p in root.rglob("*") if p.is_file() and secret in p.read_bytes()]
    assert [(p.name, p.stat().st_mode & 0o777) for p in holding] == [(f"{DEV}.key", 0o600)]
    near.destroy()
    unchanged(before, settled)
    lines(near, document(far))
    assert public() == shown.key    # the other hosts need not be told again


def test_what_is_drift_what_is_not_and_what_a_failure_leaves(far: Far) -> None:
    near = far.near
    lines(near, document(far))
    far.knows(public())
    assert near.here.pings("10.98.0.1", timeout=10)
    far.run("wg set wg0 listen-port 51999")
    assert near.drift() == []
    wait_until(lambda: "51999" in far.run("ping -n -c 1 -W 1 10.99.0.1") + sh(f"wg show {DEV} endpoints"), 20)
    assert near.drift() == []    # it roams
    sh(f"wg set {DEV} private-key {far.place}/stray peer {far.key} allowed-ips 10.99.0.2/32; wg set {DEV} peer {far.other} allowed-ips 10.99.0.7/32")
    assert sorted(near.drift()) == [f"delete wireguard-peer {DEV} {far.other}", f"update wireguard {DEV}", f"update wireguard-peer {DEV} {far.key}"]
    shared = f", preshared_key_file: {far.place}/shared"
    more = document(far, shared, peers=f"        new: {{key: {far.other}, allowed: [10.99.0.7]}}\n")
    lines(near, more)
    assert not near.here.pings("10.98.0.1", timeout=3)    # the other end does not know the shared key
    far.knows(public(), f"preshared-key {far.place}/shared")
    wait_until(lambda: near.here.pings("10.98.0.1"), 30)
    assert [f"{type(s).__name__} {s.key}" for s in near.plan(document(far, shared)).steps] == [f"Delete wireguard-peer {DEV} {far.other}"]
    was = sh("wg show all dump")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51830))
        with pytest.raises(ApplyFailed, match=r"(?s)in use"):
            near.apply(document(far, port=51830))
    same({"wg": [w.split("\t")[:5] for w in was.splitlines()]}, {"wg": [w.split("\t")[:5] for w in sh("wg show all dump").splitlines()]})
    assert near.drift() == []


def test_only_the_uplink_brings_packets_to_the_port(far: Far) -> None:
    lines(far.near, document(far))
    sh(f"ip link add other0 type veth peer name other1 netns {far.netns}; ip addr add 172.30.0.1/24 dev other0; ip link set other0 up")
    far.run("ip addr add 172.30.0.2/24 dev other1; ip link set other1 up")
    for address, dropped in (("172.30.0.1", 1), (HOST, 1)):
        with far.near.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(bytes(148), (address, 51821))
        wait_until(lambda n=dropped: f"packets {n} " in sh("nft list chain inet kvmnet tunnel_in"), 20)  # type: ignore[misc]
    sh("ip link del other0")
