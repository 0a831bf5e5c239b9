"""A world around one host: an upstream router behind its uplink and guests behind its taps.

The host is the namespace that the test process stands in. The uplink ``eth0`` is a veth to the router, with
a server further outside. A guest is a namespace whose ``eth0`` is a tap: one thread carries frames
between it and the guest's kvt- tap, so that a real IP stack talks through the real guard.

Far ends answer: a ``Service`` says who asked, so that a test sees the source address that arrives.
"""
from __future__ import annotations

import json
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from difflib import unified_diff
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from uuid import uuid4

from kvmnet.api import Host
from kvmnet.drivers.nftables.wire import canonical, read_tables
from kvmnet.engine.transaction import Result
from kvmnet.facts.model import Allocation
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.planned import Planned
from kvmnet.spec.load import loads
from lib.known import lend_features
from lib.netns import batch, inside, named_netns, new_netns, sh
from lib.tap import Tap

UPLINK = "eth0"
MARK = "@@"
"""Between the answers of several commands."""
SETTINGS = ("forwarding", "accept_ra", "proxy_ndp", "proxy_arp")
TENTATIVE = 0x40
"""IFA_F_TENTATIVE."""
HOST, HOST6 = "192.0.2.2", "2001:db8:1::2"
ROUTER, ROUTER6 = "192.0.2.1", "2001:db8:1::1"
OUTSIDE, OUTSIDE6 = "203.0.113.1", "2001:db8:ffff::1"
"""A server behind the router."""
SOON = 20.0
"""Seconds for an answer that must come; a busy machine takes its time."""
NEVER = 0.3
"""Seconds of silence that count as no answer."""

UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip -4 addr flush dev eth0
ip addr add $ip/$mask dev eth0
[ -z "$mtu" ] || ip link set eth0 mtu $mtu
[ -z "$router" ] || ip route replace default via $router
set -- $staticroutes
while [ $# -gt 1 ]; do ip route replace $1 via $2; shift 2; done
printf '%s\\n' "ip=$ip" "mask=$mask" "mtu=$mtu" "router=$router" "dns=$dns" "domain=$domain" "search=$search" \\
    "staticroutes=$staticroutes" "ntpsrv=$ntpsrv" > "$KVMNET_TEST_OUT"
"""


class Loop:
    """One thread that serves file descriptors until the world ends."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.wake_in, self.wake_out = os.pipe()
        self.stopping = False
        self.guard = threading.RLock()
        self.selector.register(self.wake_in, selectors.EVENT_READ, lambda: os.read(self.wake_in, 64))
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            ready = self.selector.select(1)
            with self.guard:
                for key, _ in ready:
                    if key.fd in self.selector.get_map():
                        with suppress(OSError):
                            key.data()

    def watch(self, fd: int, act: Callable[[], Any]) -> None:
        with self.guard:
            self.selector.register(fd, selectors.EVENT_READ, act)
        os.write(self.wake_out, b"x")

    def leave(self, fd: int) -> None:
        with self.guard:
            self.selector.unregister(fd)

    def end(self) -> None:
        self.stopping = True
        os.write(self.wake_out, b"x")
        self.thread.join()
        self.selector.close()
        os.close(self.wake_in)
        os.close(self.wake_out)


@dataclass
class Service:
    """Answers every TCP connection and UDP packet on one port with ``NAME ASKER``."""

    loop: Loop
    name: str
    port: int
    sockets: list[socket.socket] = field(default_factory=list)

    def open(self) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            bound = socket.socket(socket.AF_INET6, kind)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            bound.bind(("::", self.port))
            bound.setblocking(False)
            if kind == socket.SOCK_STREAM:
                bound.listen(32)
            self.sockets.append(bound)
            self.loop.watch(bound.fileno(), partial(self.answer, bound, kind))

    def answer(self, bound: socket.socket, kind: socket.SocketKind) -> None:
        if kind == socket.SOCK_STREAM:
            taken, asker = bound.accept()
            with taken:
                taken.sendall(self.words(asker[0]))
            return
        _data, ancillary, _, asker = bound.recvmsg(2048, 128)
        # Answered from the address that was asked, as a careful server does (IPV6_PKTINFO).
        bound.sendmsg([self.words(asker[0])], [(a, b, c) for a, b, c in ancillary], 0, asker)

    def words(self, asker: str) -> bytes:
        return f"{self.name} {asker.removeprefix('::ffff:')}".encode()

    def close(self) -> None:
        for bound in self.sockets:
            self.loop.leave(bound.fileno())
            bound.close()


class Place:
    """Somewhere with an IP stack: the host itself (netns '') or a named namespace."""

    def __init__(self, netns: str = ""):
        self.netns = netns

    def run(self, command: str, check: bool = True) -> str:
        return sh(f"ip netns exec {self.netns} {command}" if self.netns else command, check)

    def socket(self, family: int, kind: int) -> socket.socket:
        if not self.netns:
            return socket.socket(family, kind)
        with inside(self.netns):
            return socket.socket(family, kind)

    def tcp(self, address: str, port: int, timeout: float = SOON) -> str:
        """What a service there answers; '' for silence or refusal."""
        with self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            try:
                s.connect((address, port))
                return s.recv(200).decode()
            except OSError:
                return ""

    def udp(self, address: str, port: int, timeout: float = SOON) -> str:
        with self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            try:
                s.connect((address, port))
                s.send(b"?")
                return s.recv(200).decode()
            except OSError:
                return ""

    def any(self, address: str, port: int, timeout: float = SOON) -> str:
        """The first answer by TCP or UDP, both asked at once; '' when neither comes."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.socket(family, socket.SOCK_STREAM) as tcp, self.socket(family, socket.SOCK_DGRAM) as udp:
            waiting = []
            for s in (tcp, udp):
                s.setblocking(False)
                with suppress(OSError):
                    s.connect_ex((address, port))
                    waiting.append(s)
            with suppress(OSError):
                udp.send(b"?")
            deadline = monotonic() + timeout
            while waiting and (left := deadline - monotonic()) > 0:
                for s in select.select(waiting, [], [], left)[0]:
                    try:
                        return s.recv(200).decode()
                    except OSError:
                        waiting.remove(s)
        return ""

    def pings(self, address: str, size: int = 56, timeout: float = SOON) -> bool:
        """Whether an echo of *size* bytes of payload is answered, without fragmentation; asked each second."""
        patience = f"-w {timeout:.0f}" if timeout >= 1 else f"-W {timeout:g}"
        out = self.run(f"ping -n -c 1 -M do -s {size} {patience} {address}", check=False)
        return " bytes from " in out

    def name(self, name: str, server: str, timeout: float = SOON) -> str:
        """A DNS answer's A record, '' for none."""
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01"
        with self.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            try:
                s.connect((server, 53))
                s.send(query)
                answer = s.recv(600)
            except OSError:
                return ""
        return socket.inet_ntoa(answer[-4:]) if answer[6:8] != b"\0\0" else ""


class Guest(Place):
    """A namespace behind the kvt- tap of one NIC of the document."""

    def __init__(self, world: World, vm: str, nic: str, netns: str, tap: Tap, got: Allocation):
        super().__init__(netns)
        self.world, self.vm, self.nic, self.tap = world, vm, nic, tap.name
        self.mac, self.ip, self.ip6 = got.mac, got.ip, got.ip6
        self.outer = tap
        with inside(netns):
            self.inner = Tap("eth0")
            Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
            Path("/proc/sys/net/ipv4/conf/all/accept_redirects").write_text("0")
            Path("/proc/sys/net/ipv4/conf/eth0/accept_redirects").write_text("0")
        sh(f"ip -n {netns} link set eth0 address {self.mac} up")
        for a, b in ((self.outer, self.inner), (self.inner, self.outer)):
            world.loop.watch(a.fd, partial(carry, a, b))

    def lease(self, seconds: int = 1) -> dict[str, str]:
        """Ask for an address by DHCP and use it; what the server gave, by udhcpc's names."""
        with TemporaryDirectory() as place:
            script, out = Path(place, "script"), Path(place, "out")
            script.write_text(UDHCPC)
            script.chmod(0o755)
            sh(f"KVMNET_TEST_OUT={out} ip netns exec {self.netns} busybox udhcpc -i eth0 -f -q -n -t 20 -T {seconds}"
               f" -A 0 -s {script} -O mtu -O staticroutes -O ntpsrv -O search 2>&1", check=False)
            return dict(x.split("=", 1) for x in out.read_text().splitlines()) if out.exists() else {}

    def use(self, *cidrs: str, via: str = "", via6: str = "") -> Guest:
        """Static addresses and default routes."""
        for cidr in cidrs:
            sh(f"ip -n {self.netns} addr replace {cidr} dev eth0{' nodad' if ':' in cidr else ''}")
        for gateway in filter(None, (via, via6)):
            sh(f"ip -n {self.netns} route replace default via {gateway} dev eth0")
        return self

    def close(self) -> None:
        for tap in (self.outer, self.inner):
            self.world.loop.leave(tap.fd)
            tap.close()


def carry(a: Tap, b: Tap) -> None:
    os.write(b.fd, os.read(a.fd, 70000))


class World:
    """The host of the test with what is around it."""

    def __init__(self, stack: ExitStack, upstream: str, paths: Paths):
        self.stack, self.paths = stack, paths
        self.host = Host(paths)
        self.here = Place()
        self.outside = Place(upstream)
        self.loop = Loop()
        stack.callback(self.loop.end)
        self.guests: dict[str, Guest] = {}

    def plan(self, text: str, *, adopt: bool = False) -> Planned:
        return self.host.plan_document(loads(text, "test.yaml"), adopt=adopt)

    def apply(self, text: str, *, adopt: bool = False, confirm: float | None = None) -> Result:
        return self.host.apply(self.plan(text, adopt=adopt), adopt=adopt, confirm=confirm)

    def destroy(self) -> Result:
        return self.host.apply(self.host.plan_destroy())

    def drift(self) -> list[str]:
        """What another apply of the document in force would do."""
        document = self.host.current()
        assert document is not None
        return [f"{type(s).__name__.lower()} {s.key}" for s in self.host.plan_document(document).steps]

    def guest(self, vm: str, nic: str = "nic0") -> Guest:
        """The guest's namespace behind its tap, without an address yet."""
        if (name := f"{vm}/{nic}") not in self.guests:
            document = self.host.current()
            assert document is not None
            compiled, got = self.host.compile(document, self.host.facts(self.host.engine.observe({}), document))
            tap, on = next((n.tap, s) for s in compiled.segments.values() for n in s.nics
                           if (n.vm, n.nic) == (vm, nic))
            netns = self.stack.enter_context(named_netns(f"kvt-{os.getpid()}-{uuid4().hex[:6]}"))
            self.guests[name] = Guest(self, vm, nic, netns, Tap.of_macvtap(tap) if on.parent else Tap(tap),
                                       got[vm, nic, on.name])
            self.stack.callback(self.guests[name].close)
        return self.guests[name]

    def service(self, place: Place, name: str, port: int) -> None:
        """A service that tells who asked, on every address of *place*."""
        made = Service(self.loop, name, port)
        if place.netns:
            with inside(place.netns):
                made.open()
        else:
            made.open()
        self.stack.callback(made.close)

    def cli(self, *words: str, path: str | None = None, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command line as a process of its own."""
        environment = {**os.environ, **({"PATH": path} if path is not None else {})}
        return subprocess.run([sys.executable, "-m", "kvmnet.cli.main", *words], capture_output=True, text=True,
                              input=text, env=environment, check=False, timeout=60)

    def write(self, text: str, name: str = "host.yaml") -> str:
        """A document as a file beside the state; its path."""
        self.paths.state.parent.mkdir(parents=True, exist_ok=True)
        file = self.paths.state.parent / name
        file.write_text(text)
        return str(file)


@contextmanager
def world(call_iptables: int = 0) -> Iterator[World]:
    """A host of its own with an uplink, destroyed at the end; the process stands inside."""
    saved = {k: os.environ.get(k) for k in ("KVMNET_STATE_DIR", "KVMNET_RUN_DIR", "KVMNET_ETC_DIR")}
    with TemporaryDirectory(prefix="kvmnet-world-") as place, new_netns(call_iptables), ExitStack() as stack:
        Path(place).chmod(0o755)
        os.environ |= {k: str(Path(place, k[7:-4].lower())) for k in saved}
        stack.callback(restore, saved)
        upstream = stack.enter_context(named_netns(f"kvt-{os.getpid()}-{uuid4().hex[:6]}"))
        connect(upstream)
        made = World(stack, upstream, Paths.from_environment())
        lend_features(made.paths)
        stack.callback(clean_up, made)
        yield made


def restore(saved: dict[str, str | None]) -> None:
    for name, value in saved.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def clean_up(made: World) -> None:
    """Whatever the test left: no process of ours may outlive it."""
    host = Host(made.paths)
    with suppress(Exception):
        host.engine.revert()
    host.stop_guests(list(host.running()), lambda words: None, 0)
    if (left := host.plan_destroy()).steps:
        host.apply(left)


def connect(upstream: str) -> None:
    """The uplink, the router and the server behind it."""
    sh(f"ip link add {UPLINK} type veth peer name segment netns {upstream}")
    Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/accept_dad").write_text("0")
    batch(f"addr add {HOST}/24 dev {UPLINK}", f"addr add {HOST6}/64 dev {UPLINK} nodad", f"link set {UPLINK} up")
    batch(f"addr add {ROUTER}/24 dev segment", f"addr add {ROUTER6}/64 dev segment nodad", f"addr add {OUTSIDE}/32 dev lo",
          f"addr add {OUTSIDE6}/128 dev lo nodad", "link set segment up", netns=upstream)
    batch(f"route add default via {ROUTER} dev {UPLINK}", f"route add default via {ROUTER6} dev {UPLINK}")
    steady()


def snapshot() -> dict[str, Any]:
    """Everything of this namespace that an operator could miss, without what counts or runs down, once carriers are at rest."""
    found: list[str] = []

    def look() -> bool:
        found[:] = looked_at()
        return at_rest(json.loads(found[0]))

    wait_until(look, 20, 0.1)
    listed, routes, rules, neighbours, nft = found
    return {"links": links(listed), "routes": sorted(line for line in routes.splitlines() if not line.startswith("multicast")),
            "rules": rules.splitlines(), "nft": {n: canonical(body).splitlines() for n, body in read_tables(nft).items()},
            "neighbours": neighbours, "forwarding": settings()}


def at_rest(found: list[Any]) -> bool:
    """Whether everybody has been told of every carrier that came or went: the kernel takes up to a second for each device, and then
    for what stands on it (net/core/link_watch.c). LOWER_UP is the carrier, NO-CARRIER what has been told."""
    return all(("LOWER_UP" in link["flags"]) != ("NO-CARRIER" in link["flags"]) for link in found if "UP" in link.get("flags", ()))


def looked_at() -> list[str]:
    listed, routes, rules, neighbours, nft = sh(f"; echo {MARK}; ".join((
        "ip -d -j addr", "ip route show table all; ip -6 route show table all", "ip rule; ip -6 rule",
        "ip neigh show proxy; ip -6 neigh show proxy", "nft -s list ruleset"))).split(f"{MARK}\n")
    return [listed, routes, rules, neighbours, nft]


def settings() -> list[str]:
    """Settings of the devices that decide what is forwarded and answered, each with its path."""
    return sorted(f"{file}: {text.strip()}" for family in ("ipv4", "ipv6") for device in Path(f"/proc/sys/net/{family}/conf").iterdir()
                  for file in device.iterdir() if file.name.endswith(SETTINGS) and (text := read(file)) is not None)


def read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:    # gone, or only to be written
        return None


def links(listed: str) -> list[Any]:
    found = json.loads(listed)
    for link in found:
        for name in ("ifindex", "link_index", "stats64", "group"):
            link.pop(name, None)
        for name in ("hello_timer", "gc_timer", "topology_change_timer", "tcn_timer"):
            link.get("linkinfo", {}).get("info_data", {}).pop(name, None)
    return sorted(found, key=lambda x: str(x["ifname"]))


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Fail with the lines of two snapshots that differ."""
    a, b = (json.dumps(x, indent=1, sort_keys=True).splitlines() for x in (before, after))
    found = [line for line in unified_diff(a, b, lineterm="", n=1) if not line.startswith(("---", "+++", "@@"))]
    assert not found, "\n" + "\n".join(found)


def unchanged(before: dict[str, Any], look: Callable[[], dict[str, Any]] = snapshot) -> None:
    """All is as it was, once it has come to rest: carriers, what follows from them, and sockets of processes that were
    killed go a moment after the command that caused it. Fails with what differs."""
    try:
        wait_until(lambda: look() == before, SOON, 0.2)
    except TimeoutError:
        same(before, look())


def steady() -> None:
    """Wait until the kernel has tried every IPv6 address of this namespace."""
    wait_until(lambda: not any(int(line.split()[4], 16) & TENTATIVE for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines()), 20)
