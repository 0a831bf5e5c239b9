"""What a second look at the host tried: forged senders from outside, ways through and around the host, the marks, the taps.

Every attempt succeeds once our rules are gone, which the last test shows.
"""
from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from kvmnet.host.clock import wait_until
from kvmnet.host.process import Process
from lib.frames import ICMP, UDP, ether, icmp, ip4, ip6, udp
from lib.netns import inside, named_netns, sh
from lib.world import HOST, HOST6, NEVER, OUTSIDE, SOON, Guest, Place, World, world

pytestmark = pytest.mark.net
IP4, IP6 = 0x0800, 0x86DD
INNER, INNER6 = "172.30.0.9", "fd30::9"
"""A machine on another network of the host's own, which has nothing to do with guests."""

DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64", forwards: [{port: 8080, to: web, to_port: 80}]}
  dmz: {mode: nat, uplink: wan, subnet: 192.168.101.0/24}
  pub: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64"}
  lab: {mode: isolated, subnet: 10.10.0.0/24}
vms:
  web: {nics: [{network: lan, ip: 192.168.100.10, ip6: "fd00:100::10"}]}
  mail: {nics: [{network: dmz, ip: 192.168.101.10}]}
  srv: {nics: [{network: pub, ip: 198.51.100.3, ip6: "2001:db8:100::3"}]}
  srw: {nics: [{network: pub, ip: 198.51.100.4, ip6: "2001:db8:100::4"}]}
  bench: {nics: [{network: lab, ip: 10.10.0.10}]}
"""
GATEWAYS = {"web": ("192.168.100.1/24", "fd00:100::1"), "mail": ("192.168.101.1/24", ""),
            "srv": ("198.51.100.1/28", "2001:db8:100::1"), "srw": ("198.51.100.1/28", "2001:db8:100::1"),
            "bench": ("10.10.0.1/24", "")}


@dataclass
class Ground:
    """The host, and the machine on its other network."""

    world: World
    inner: Place

    def guest(self, name: str) -> Guest:
        return self.world.guest(name)

    def heard(self, place: Place, address: str, port: int, send: Callable[[bytes], object]) -> bool:
        """Whether a datagram that *send* makes with a nonce comes to *address* at *place*."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        nonce = os.urandom(12)
        with place.socket(family, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((address, port))
            s.settimeout(NEVER)
            send(nonce)
            with suppress(TimeoutError):
                return nonce in s.recv(100)
        return False


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with ExitStack() as stack:
        made = stack.enter_context(world())
        inner = stack.enter_context(named_netns(f"kvt-in-{os.getpid()}-{uuid4().hex[:4]}"))
        up = made.outside.netns
        sh(f"ip link add mgmt0 type veth peer name eth0 netns {inner}; ip addr add 172.30.0.1/24 dev mgmt0; "
           f"ip addr add fd30::1/64 dev mgmt0 nodad; ip link set mgmt0 up; ip -n {inner} addr add {INNER}/24 dev eth0; "
           f"ip -n {inner} addr add {INNER6}/64 dev eth0 nodad; ip -n {inner} link set eth0 up; "
           f"ip -n {inner} route add default via 172.30.0.1; ip -n {inner} -6 route add default via fd30::1")
        for prefix in ("172.30.0.0/24", "fd30::/64", "198.51.100.0/28", "2001:db8:100::/64"):
            sh(f"ip -n {up} route add {prefix} via {HOST6 if ':' in prefix else HOST}")
        sh("sysctl -qw net.ipv4.conf.all.route_localnet=1")  # as Kubernetes does; else the kernel refuses by itself
        found = Ground(made, Place(inner))
        assert not found.heard(found.inner, INNER, 999, lambda n: datagram(made.outside, INNER, 999, n))
        made.apply(DOCUMENT)
        for name, (gateway, gateway6) in GATEWAYS.items():
            guest = made.guest(name)
            via, _, length = gateway.partition("/")
            guest.use(f"{guest.ip}/{length}", via=via)
            if gateway6:
                guest.use(f"{guest.ip6}/64", via6=gateway6)
        made.service(made.outside, "outside", 80)
        made.service(made.here, "host", 22)
        made.service(made.guest("web"), "web", 80)
        yield found


def datagram(place: Place, address: str, port: int, data: bytes) -> None:
    with place.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s, suppress(OSError):
        s.sendto(data, (address, port))


def mac_of(device: str, netns: str = "") -> str:
    return str(json.loads(sh(f"ip {f'-n {netns} ' if netns else ''}-j link show {device}"))[0]["address"])


def forged(ground: Ground, source: str, place: Place, address: str) -> bool:
    """A datagram from outside with the address of a guest."""
    up = ground.world.outside.netns
    head = mac_of("eth0"), mac_of("segment", up)

    def send(nonce: bytes) -> None:
        with inside(up), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.bind(("segment", 0))
            body = udp(source, address, 5, 999, nonce)
            s.send(ether(*head, IP6, ip6(source, address, UDP, body)) if ":" in address
                   else ether(*head, IP4, ip4(source, address, UDP, body)))

    return ground.heard(place, address, 999, send)


def forged_error(ground: Ground) -> bool:
    """A guest of another network tells a guest that its packets are too big, about a flow that is open."""
    srv, mail = ground.guest("srv"), ground.guest("mail")
    nonce, router = os.urandom(8), mac_of("kvb-dmz")
    with srv.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow, inside(srv.netns), \
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
        flow.bind((srv.ip, 5555))
        flow.settimeout(SOON)
        flow.connect((OUTSIDE, 80))
        flow.send(b"?")
        assert flow.recv(100) == f"outside {srv.ip}".encode()
        seen.bind(("eth0", 0))
        seen.settimeout(NEVER)
        about = ip4(srv.ip, OUTSIDE, UDP, udp(srv.ip, OUTSIDE, 5555, 80, nonce))
        mail.outer.send(ether(router, mail.mac, IP4, ip4(
            mail.ip, srv.ip, ICMP, icmp(3, 4, struct.pack("!HH", 0, 600) + about))))
        with suppress(TimeoutError):
            while True:
                if nonce in (frame := seen.recv(2000)) and frame[23] == ICMP:
                    return True
    return False


def opens(place: Place, address: str, port: int, timeout: float = NEVER) -> bool:
    with place.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(timeout)
        return s.connect_ex((address, port)) == 0


def overwritten(ground: Ground) -> bool:
    """A foreign rule sets the packet's mark, as for policy routing; the host's own SSH then answers a guest."""
    sh("nft -f - <<'E'\ntable inet foreign {\nchain marks { type filter hook prerouting priority mangle; "
       "meta mark set ct mark; }\n}\nE")
    try:
        return bool(ground.guest("web").tcp("192.168.100.1", 22, NEVER))
    finally:
        sh("nft delete table inet foreign")


ATTEMPTS: dict[str, Callable[[Ground], bool]] = {
    "a guest's address from outside, to a guest": lambda g: forged(g, "198.51.100.3", g.guest("srw"), "198.51.100.4"),
    "a guest's address from outside, to the host": lambda g: forged(g, "198.51.100.3", g.world.here, HOST),
    "an address behind NAT from outside, to the host": lambda g: forged(g, "192.168.100.10", g.world.here, HOST),
    "a guest's IPv6 address from outside, to a guest": lambda g: forged(
        g, "2001:db8:100::3", g.guest("srw"), "2001:db8:100::4"),
    "a guest's IPv6 address from outside, to the host": lambda g: forged(g, "2001:db8:100::3", g.world.here, HOST6),
    "through the host to its other network": lambda g: g.heard(
        g.inner, INNER, 999, lambda n: datagram(g.world.outside, INNER, 999, n)),
    "through the host to its other network, IPv6": lambda g: g.heard(
        g.inner, INNER6, 999, lambda n: datagram(g.world.outside, INNER6, 999, n)),
    "a guest to the host's other network": lambda g: g.heard(
        g.inner, INNER, 999, lambda n: datagram(g.guest("web"), INNER, 999, n)),
    "an ICMP error from another network": forged_error,
    "a resolver of the host on its outer address": lambda g: g.heard(
        g.world.here, HOST, 53, lambda n: datagram(g.guest("bench"), HOST, 53, n)),
    "the DNS server of another network": lambda g: opens(g.guest("bench"), "192.168.100.1", 53),
    "a mark that another rule overwrites": overwritten,
    "a packet to the loopback network": lambda g: g.heard(
        g.world.here, "127.0.0.1", 999, lambda n: g.guest("web").outer.send(to_host(g, "web", "127.0.0.1", n))),
}


def to_host(ground: Ground, guest: str, address: str, nonce: bytes) -> bytes:
    """A frame to the bridge's own MAC, whatever the address."""
    sender = ground.guest(guest)
    return ether(mac_of("kvb-lan"), sender.mac, IP4, ip4(sender.ip, address, UDP, udp(sender.ip, address, 5, 999, nonce)))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_refused(ground: Ground, name: str) -> None:
    assert not ATTEMPTS[name](ground)


def test_what_is_declared_still_works(ground: Ground) -> None:
    web = ground.guest("web")
    assert web.tcp(OUTSIDE, 80) == f"outside {HOST}"
    assert ground.world.outside.tcp(HOST, 8080).startswith("web ")
    assert ground.guest("srv").udp(OUTSIDE, 80) == "outside 198.51.100.3"
    assert web.name("web.lan", "192.168.100.1") == "192.168.100.10" and opens(web, "192.168.100.1", 53, SOON)
    assert ground.world.drift() == []


def test_nobody_but_root_opens_a_tap(ground: Ground, tmp_path: Path) -> None:
    """A guest's QEMU that was taken over, as nobody, with a device file that everybody may open (the usual)."""
    node = Path(f"/tmp/kvt-tun-{os.getpid()}-{uuid4().hex[:4]}")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 200))
    node.chmod(0o666)
    sh("ip tuntap add free0 mode tap multi_queue; ip tuntap add kvt-x mode tap multi_queue user 0")
    try:
        assert attached(node, "free0", 0x1102), "one without an owner is everybody's"
        assert not attached(node, "kvt-x", 0x1102)
        for tap in (guest.tap for guest in ground.world.guests.values()):
            assert '"user":"root"' in sh(f"ip -d -j link show {tap}"), tap
    finally:
        node.unlink()
        sh("ip link del free0; ip link del kvt-x")


def attached(node: Path, tap: str, flags: int) -> bool:
    """Whether a process of user nobody becomes a queue of *tap*."""
    if (child := os.fork()) == 0:
        with suppress(OSError):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            fd = os.open(node, os.O_RDWR)
            fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", tap.encode(), flags))
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_rules_that_are_gone_without_a_word_leave_the_host_closed(ground: Ground) -> None:
    """No table goes, so nothing tells the keeper to restore; its own are closed."""
    web = ground.guest("web")
    sh("nft flush table inet kvmnet")
    try:
        assert web.tcp("192.168.100.1", 22, NEVER) == ""
        assert web.tcp(OUTSIDE, 80, NEVER) == ""
    finally:
        ground.world.apply(DOCUMENT)
    assert web.tcp(OUTSIDE, 80) == f"outside {HOST}"


def test_without_our_rules_every_attempt_succeeds(ground: Ground) -> None:
    keeper = json.loads((ground.world.paths.guard / "keeper.json").read_text())
    Process(keeper["pid"], int(keeper["start"])).terminate()
    wait_until(lambda: "kvmnet-keeper" not in sh("nft list tables"), 20)
    try:
        sh("nft delete table inet kvmnet; conntrack -F 2>/dev/null; true")
        sh(f"nft 'add element bridge kvmnet router {{ \"{ground.guest('mail').tap}\" }}'")  # errors about others' packets are a router's
        failed = [name for name, attempt in ATTEMPTS.items() if not any(attempt(ground) for _ in range(20))]
    finally:
        ground.world.apply(DOCUMENT)
    assert failed == []
