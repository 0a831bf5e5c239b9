"""TCP connections from outside that the host answers in a guest's place: a flood of SYNs under false addresses does not come to the guest,
and a client's connection does, with its options. Each has its control without it.
"""
from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.errors import HostCannot
from kvmnet.facts.features import features
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import device_mac
from lib.frames import checksum, ether, ip4
from lib.known import KEPT
from lib.netns import inside, sh
from lib.world import OUTSIDE, OUTSIDE6, Guest, World, snapshot, unchanged, world

pytestmark = pytest.mark.net

MANY = 400
"""SYNs of a flood."""
TCP = 6
TEXT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64"}
vms:
  a: {nics: [{network: lan%s}]}
%s"""
GROUPS = "groups: {web: {ingress: [{tcp: 80}]}}\n"
BULK = 300_000


def document(nic: str = "", more: str = "") -> str:
    return TEXT % (nic, more)


PROXIED = document(", limits: {receive: {synproxy: [80, 81, 90]}}")


@pytest.fixture(scope="module")
def ground() -> Iterator[World]:
    with world() as made:
        up = made.outside.netns
        sh(f"ip -n {up} route add 198.51.100.0/28 via 192.0.2.2; ip -n {up} route add 2001:db8:100::/64 via 2001:db8:1::2")
        made.apply(document())
        guest = made.guest("a")
        guest.use(f"{guest.ip}/28", f"{guest.ip6}/64", via="198.51.100.1", via6="2001:db8:100::1")
        for port in (80, 81):
            serve(made, guest, port)
        guest.run("nft 'add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; add rule ip deaf in tcp dport 90 drop'")
        yield made


def serve(made: World, guest: Guest, port: int) -> None:
    """Count what comes until its end, then say who asked and send as much back."""
    with inside(guest.netns):
        listening = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=16)

    def answer() -> None:
        while True:
            try:
                taken, asker = listening.accept()
            except OSError:
                return
            with taken, suppress(OSError):
                octets = 0
                while part := taken.recv(1 << 16):
                    octets += len(part)
                taken.sendall(f"{asker[0].removeprefix('::ffff:')} {octets}\n".encode() + bytes(octets))
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()

    def end() -> None:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(20)
        listening.close()
    made.stack.callback(end)


def dialled(made: World, address: str, port: int = 80) -> socket.socket:
    """A connection from the server outside."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = made.outside.socket(family, socket.SOCK_STREAM)
    opened.settimeout(20)
    opened.bind((OUTSIDE6 if ":" in address else OUTSIDE, 0))
    opened.connect((address, port))
    return opened


def talks(client: socket.socket, octets: int = BULK, before: int = 0) -> bytes:
    """What the guest says when it is sent *octets*, *before* that were sent already; as many come back."""
    client.sendall(bytes(octets))
    client.shutdown(socket.SHUT_WR)
    found = b""
    while part := client.recv(1 << 16):
        found += part
    said, _, rest = found.partition(b"\n")
    assert len(rest) == before + octets
    return said


class Syns:
    """SYNs that come to a guest."""

    def __init__(self, guest: Guest):
        with inside(guest.netns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            self.socket.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
            self.socket.bind(("eth0", 3))
        self.found: list[tuple[str, int]] = []
        """(source, port)."""

    def heard(self) -> int:
        """How many there were until now, IPv4 only."""
        while True:
            try:
                frame, source = self.socket.recvfrom(2000)
            except BlockingIOError:
                return len(self.found)
            if source[2] != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00" and frame[23] == TCP and frame[47] & 0x12 == 2:
                self.found.append((socket.inet_ntoa(frame[26:30]), int.from_bytes(frame[36:38], "big")))

    def close(self) -> None:
        self.socket.close()


def flood(made: World, guest: Guest, port: int = 90) -> set[tuple[str, int]]:
    """SYNs from addresses that nobody has, out of the outer segment; (address, port) of each. The guest does not answer on that port, nor
    remember who asked."""
    chosen = random.Random(7)
    sources = {f"100.64.{chosen.randrange(256)}.{chosen.randrange(1, 255)}" for _ in range(2 * MANY)}
    sources = set(sorted(sources)[:MANY])
    mac = device_mac("eth0")
    with inside(made.outside.netns):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind(("segment", 0))
    with closing(out):
        for source in sources:
            segment = syn(source, guest.ip, chosen.randrange(1024, 65536), port)
            out.send(ether(mac, "02:00:00:00:00:77", 0x0800, ip4(source, guest.ip, TCP, segment)))
    return {(source, port) for source in sources}


def syn(source: str, target: str, sport: int, port: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", sport, port, random.getrandbits(32), 0, 0x60, 2, 29200, 0, 0) + b"\x02\x04\x05\xb4"
    pseudo = ip_address(source).packed + ip_address(target).packed + struct.pack("!BBH", 0, TCP, len(header))
    return header[:16] + checksum(pseudo + header).to_bytes(2, "big") + header[18:]


def tracked() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def test_a_flood_does_not_come_to_the_guest(ground: World) -> None:
    """Nor into the host's table of flows; a client is served meanwhile."""
    guest = ground.guest("a")
    ground.apply(PROXIED)
    assert ground.drift() == [] and ground.apply(PROXIED).steps == ()
    before = tracked()
    with closing(Syns(guest)) as hears:
        flood(ground, guest)
        with closing(dialled(ground, guest.ip)) as client:
            assert talks(client) == f"{OUTSIDE} {BULK}".encode()
        hears.heard()
        assert set(hears.found) == {(OUTSIDE, 80)}, "what came before it did not come"
    assert tracked() - before < MANY // 4 and answered() > MANY // 2
    ground.apply(document())
    most = [before := tracked()]
    with closing(Syns(guest)) as hears:
        sources = flood(ground, guest)
        wait_until(lambda: most.append(tracked()) or hears.heard() >= MANY, 20)  # type: ignore[func-returns-value]
        assert set(hears.found) == sources, "the control: without it all of them come"
    assert max(*most, tracked()) - before > MANY // 2


def answered() -> int:
    """SYNs that this namespace has answered (/proc/net/stat/synproxy, a line for each CPU)."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/thread-self/net/stat/synproxy").read_text().splitlines()[1:])


@pytest.mark.parametrize("loose", [1, 0])
@pytest.mark.parametrize("six", [False, True])
def test_a_client_gets_its_options(ground: World, six: bool, loose: int) -> None:
    """MSS, time stamps, selective acknowledgements and window scale, whether the host takes up flows in their midst or not."""
    guest = ground.guest("a")
    ground.apply(PROXIED)
    sh(f"sysctl -qw net.netfilter.nf_conntrack_tcp_loose={loose}")
    try:
        before = answered()
        with closing(dialled(ground, guest.ip6 if six else guest.ip)) as client:
            info = client.getsockopt(socket.IPPROTO_TCP, 11, 104)    # TCP_INFO
            assert info[5] & 7 == 7, "time stamps, selective acknowledgements, window scale (TCPI_OPT_*)"
            assert info[6] & 15 == 7, "the window scale of the other end (tcpi_snd_wscale)"
            assert struct.unpack_from("I", info, 16)[0] == 1500 - (60 if six else 40) - 12, "tcpi_snd_mss"
            assert talks(client) == f"{OUTSIDE6 if six else OUTSIDE} {BULK}".encode()
        assert answered() > before
    finally:
        sh("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1")


def test_a_connection_that_is_there_goes_on(ground: World) -> None:
    """One from before, when it is switched on, and one that it has begun, when its ports and those of others change."""
    guest = ground.guest("a")
    ground.apply(document())
    with closing(dialled(ground, guest.ip)) as old:
        old.sendall(b"x" * 10)
        ground.apply(PROXIED)
        with closing(dialled(ground, guest.ip)) as new:
            new.sendall(b"y" * 10)
            assert talks(old, 20, 10) == f"{OUTSIDE} 30".encode()
            ground.apply(document(", limits: {receive: {synproxy: [443]}}"))
            assert talks(new, 20, 10) == f"{OUTSIDE} 30".encode()


def test_groups_still_judge(ground: World) -> None:
    """A port that the guest's group does not open is answered by the host, and the guest hears nothing of it. Refused where bridges track
    flows themselves."""
    guest, text = ground.guest("a"), document(", groups: [web], limits: {receive: {synproxy: any}}", GROUPS)
    if features(KEPT)["bridge-conntrack"] == "":
        with pytest.raises(HostCannot, match=r"test.yaml:\d+:\d+: .*synproxy: .* twice"):
            ground.plan(text)
        return
    ground.apply(text)
    with closing(Syns(guest)) as hears:
        with closing(dialled(ground, guest.ip, 81)) as refused:
            refused.sendall(b"x")
            with closing(dialled(ground, guest.ip, 80)) as client:
                assert talks(client) == f"{OUTSIDE} {BULK}".encode()
        hears.heard()
        assert set(hears.found) == {(OUTSIDE, 80)}
    ground.apply(document(", limits: {receive: {synproxy: any}}"))
    with closing(dialled(ground, guest.ip, 81)) as client:
        assert talks(client) == f"{OUTSIDE} {BULK}".encode(), "the control"


def test_check_proves_it_in_the_name_of_an_idle_nic(ground: World) -> None:
    """And fails when nothing answers, so that the SYN go to the guest."""
    ground.apply(PROXIED.replace("vms:\n", "vms:\n  b: {nics: [{network: lan, limits: {receive: {synproxy: [443]}}}]}\n"))

    def told() -> dict[str, tuple[str, str]]:
        return {c.name: (c.verdict.value, c.evidence) for c in ground.host.check().claims if (c.subject, c.name[:8]) == ("b/nic0", "synproxy")}
    found = told()
    assert {name: verdict for name, (verdict, _) in found.items()} == {"synproxy4": "pass", "synproxy6": "pass"}, found
    sh("nft flush chain inet kvmnet handshakes")
    found = told()
    assert all(verdict == "fail" and "came to the guest before" in why for verdict, why in found.values()) and len(found) == 2, found
    assert not [f for f in flows() if f.port == 443] and "kvt-~po" not in sh("ip link")


def test_it_is_gone_with_the_document() -> None:
    with world() as made:
        before = snapshot()
        made.apply(PROXIED)
        assert "synproxy" in sh("nft list table inet kvmnet")
        made.apply(document())
        assert "synproxy" not in sh("nft list table inet kvmnet") and made.drift() == []
        made.apply(PROXIED)
        made.destroy()
        unchanged(before)
