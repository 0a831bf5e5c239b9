"""Faults between two machines, of which each by itself looks right: made for real, shown to break something, found, mended by what is said."""
from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from kvmnet.doctor.explain.match import explain
from kvmnet.doctor.finding import Finding
from kvmnet.doctor.rules.table import RULES
from kvmnet.doctor.view import View
from kvmnet.facts.capture import capture
from kvmnet.facts.later import later
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.frames import UDP, checksum, pseudo
from lib.netns import inside, named_netns, new_netns, sh
from lib.qemu import Held

pytestmark = pytest.mark.net

GUEST, OTHER, UP = (f"kvb-{os.getpid()}-{n}" for n in ("g", "o", "u"))
FAR = "10.77.0.1"
WORLD = f"""
ip link add br0 address 02:00:00:00:00:b0 type bridge; ip link set br0 up; ip addr add 10.66.0.1/24 dev br0
for n in 1:{GUEST} 2:{OTHER}; do i=${{n%%:*}}; ns=${{n#*:}}; ip link add p$i type veth peer name e netns $ns; ip link set p$i master br0 up; ip -n $ns link set e up; ip -n $ns addr add 10.66.0.1$i/24 dev e; done
ip link add u1 type veth peer name u0 netns {UP}; ip link set u1 up; ip addr add 10.77.0.2/24 dev u1; ip -n {UP} link set u0 up; ip -n {UP} addr add {FAR}/24 dev u0; ip route add default via {FAR}
ip link add d0 netns {GUEST} type veth peer name d1 netns {UP}; ip -n {GUEST} link set d0 up; ip -n {UP} link set d1 up
ip -n {GUEST} route add {FAR}/32 dev d0 src 10.66.0.11; ip -n {UP} route add 10.66.0.0/24 via 10.77.0.2
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0; for ns in {GUEST} {UP}; do ip netns exec $ns sysctl -qw net.ipv4.conf.all.rp_filter=0; for d in e d0 u0 d1; do ip netns exec $ns sysctl -qw net.ipv4.conf.$d.rp_filter=0 2>/dev/null; done; done; true
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """A guest with a second way to the far end, beside the host; another guest; the far end."""
    folder = tmp_path_factory.mktemp("between")
    with new_netns(), ExitStack() as stack:
        for name in (GUEST, OTHER, UP):
            stack.enter_context(named_netns(name))
        sh(WORLD)
        yield Paths(folder / "state", folder / "run")


def found(facts: dict[str, object], code: str) -> list[Finding]:
    return list(RULES[code](View(facts)))


def refused(timeout: float) -> bool:
    """Whether the far end answers the guest's SYN (with a reset: nobody listens there)."""
    with inside(GUEST), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asks:
        asks.settimeout(timeout)
        try:
            asks.connect((FAR, 81))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def knock(times: int) -> None:
    with inside(GUEST):
        for _ in range(times):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asks:
                asks.setblocking(False)
                with suppress(BlockingIOError):
                    asks.connect((FAR, 81))


def test_answers_of_flows_that_began_elsewhere(world: Paths) -> None:
    """The guest asks by its second NIC, the answer comes by the host, which has not seen the question."""
    wait_until(lambda: refused(1), 20)
    sh("nft 'table inet strict { chain f { type filter hook forward priority 0; ct state invalid drop; }; }'")
    assert not refused(0.4)
    facts = capture(world)
    assert found(facts | {"later": later(facts, 0.01)}, "flows-half-seen") == []    # the control: none comes between these looks
    knock(20)
    one, = found(facts | {"later": later(facts, 0.01)}, "flows-half-seen")
    assert one.where == "br0" and any("invalid" in e for e in one.evidence) and one.fix
    for command in one.fix:
        sh(command)
    wait_until(lambda: refused(1), 20)
    facts = capture(world)
    knock(20)
    assert found(facts | {"later": later(facts, 0.01)}, "flows-half-seen") == []
    sh("nft delete table inet strict")


def shout(times: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaks:
        speaks.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(times):
            speaks.sendto(b"hear", ("10.90.0.255", 9))


def test_tunnels_of_different_ids(world: Paths) -> None:
    def tunnel(number: int) -> None:
        sh(f"ip -n {UP} link del vx1 2>/dev/null; ip -n {UP} link add vx1 type vxlan id {number} dstport 4789 local {FAR} remote 10.77.0.2; ip -n {UP} addr add 10.90.0.2/24 dev vx1; ip -n {UP} link set vx1 up")

    def reaches() -> bool:
        return subprocess.run(["ping", "-n", "-c", "1", "-W", "0.4", "10.90.0.2"], capture_output=True, check=False).returncode == 0
    tunnel(8)
    sh("ip link add vx0 type vxlan id 7 dstport 4789 local 10.77.0.2 remote 10.77.0.1; ip addr add 10.90.0.1/24 dev vx0; ip link set vx0 up")
    assert not reaches()
    shout(30)
    facts = capture(world)
    shout(1)
    one, = found(facts | {"later": later(facts, 0.01)}, "tunnel-unanswered")
    assert one.where == "vx0" and any("id 7" in e for e in one.evidence)
    tunnel(7)
    wait_until(reaches, 20)
    facts = capture(world)
    shout(1)
    assert found(facts | {"later": later(facts, 0.01)}, "tunnel-unanswered") == []
    sh("ip link del vx0")


PINGS = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
"""What slirp opens for a guest that pings, as the user that QEMU runs as."""


def test_pings_of_a_guest_on_slirp(world: Paths) -> None:
    def opens() -> bool:
        return subprocess.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", PINGS], capture_output=True, check=False).returncode == 0
    with Held("t9", "-name", "web1", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"):
        assert not opens()
        one, = found(capture(world), "user-backend")
        assert "no ping" in one.what and any("1\t0" in e for e in one.evidence)
        sh(one.fix[0].partition("; or ")[2].removesuffix(" for ping"))
        one, = found(capture(world), "user-backend")
        assert opens() and "no ping" not in one.what


def test_a_checksum_that_nobody_has_filled_in(world: Paths) -> None:
    """What a DHCP client that reads raw frames sees of a server on the same host; ``explain`` says what to do."""
    def right() -> bool:
        with inside(GUEST):
            hears = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            hears.bind(("e", 0x0800))
        with inside(OTHER):
            speaks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            speaks.sendto(b"offer", ("10.66.0.11", 68))
        hears.settimeout(20)
        while (packet := hears.recv(2000))[9] != UDP or packet[28:] != b"offer":
            pass
        hears.close()
        speaks.close()
        data = packet[20:]
        return checksum(pseudo("10.66.0.12", "10.66.0.11", UDP, len(data)) + data) == 0
    assert not right()
    answer = explain("5 bad udp checksums in 5 packets", View(capture(world)))
    assert answer
    cure = next(c for cause in answer.causes for c in cause.cure if "DEVICE_OF_THE_SERVER" in c)
    sh(f"ip netns exec {OTHER} {cure.replace('DEVICE_OF_THE_SERVER', 'e')}")
    assert right()
