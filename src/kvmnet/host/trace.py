"""Marked packets on a live system: put in where a guest's would come in, and followed through the rules.

A frame is put in by a pair of veth whose far end hands everything on to a port, as if it had been received there (tc-mirred(8), ingress
redirect): the descriptor of a tap belongs to the guest. Rules are followed by ``nft monitor trace``; tables of our own, at
the first priority, say which packets. All of it is gone when the block ends.
"""
from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture
from kvmnet.host.run import SEARCH_PATH, ToolFailed, find, run
from kvmnet.records import dataclass

TABLE = "why-probe"
FIRST = -2000000
TRACED = re.compile(r"^trace id (?P<id>\S+) (?P<family>\S+) (?P<table>\S+) (?P<chain>\S+) (?:rule (?P<rule>.*) \(verdict (?P<verdict>\w+)[^)]*\)|policy (?P<policy>\w+))\s*$")


def inner_end() -> str:
    """The device by which what is sent at an ``entrance`` comes in."""
    return f"kvp-{os.getpid() % 100000}b"


@contextmanager
def entrance(port: str) -> Iterator[Capture]:
    """What is sent on it is received by *port*. Raises ToolFailed, HostCannot."""
    near, far = f"kvp-{os.getpid() % 100000}a", inner_end()
    run(("ip", "link", "add", near, "type", "veth", "peer", "name", far))
    try:
        run(("ip", "-batch", "-"), stdin="".join(f"link set {dev} addrgenmode none\nlink set {dev} arp off up\n" for dev in (near, far)))
        run(("tc", "-batch", "-"), stdin=f"qdisc add dev {far} handle ffff: ingress\n"
            f"filter add dev {far} parent ffff: protocol all prio 1 u32 match u32 0 0 action mirred ingress redirect dev {port}\n")
        with Capture(near) as sender:
            yield sender
    finally:
        with suppress(ToolFailed):
            run(("ip", "link", "del", near))


@dataclass(frozen=True, slots=True)
class Traced:
    """A rule or policy that ended a traced packet at a hook."""

    place: str
    text: str
    verdict: str


class RuleTrace:
    """Verdicts of the packets that *match*, an expression of nft."""

    def __init__(self, match: str):
        self.found: dict[Traced, None] = {}
        self.rest = b""
        chains = {"bridge": ("prerouting", "output"), "inet": ("prerouting", "output")}
        text = "".join(f"table {family} {TABLE} {{\n" + "".join(f"chain {hook} {{ type filter hook {hook} priority {FIRST}; {match} meta nftrace set 1\n}}\n" for hook in hooks) + "}\n"
                       for family, hooks in chains.items())
        self.remove()
        run(("nft", "-f", "-"), stdin=text)
        self.child = subprocess.Popen([find("nft") or "nft", "monitor", "trace"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                      env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": SEARCH_PATH})
        assert self.child.stdout
        os.set_blocking(self.child.stdout.fileno(), False)

    def read(self) -> None:
        """Take in what was told since the last time."""
        assert self.child.stdout
        data = self.child.stdout.read() or b""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if (told := TRACED.match(line.decode(errors="replace"))) and told["table"] != TABLE:
                self.found[Traced(f"{told['family']} {told['table']} {told['chain']}", (told["rule"] or f"policy {told['policy']}").strip(), told["verdict"] or told["policy"])] = None

    def ended(self, verdicts: Collection[str]) -> bool:
        """Whether a packet has come to one of these by now."""
        self.read()
        return any(t.verdict in verdicts for t in self.found)

    def close(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            wait_until(lambda: self.child.poll() is not None, 2)
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        assert self.child.stdout
        self.child.stdout.close()
        self.remove()

    def remove(self) -> None:
        for family in ("bridge", "inet"):
            with suppress(ToolFailed):
                run(("nft", "delete", "table", family, TABLE))

    def __enter__(self) -> RuleTrace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def send_raw(target: str, packet: bytes, vrf: str = "") -> None:
    """Sends an IP packet as the host, with the header that it has; in a routing domain by its device *vrf*. Lost where there is no route."""
    six = ":" in target
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as out, suppress(OSError):
        if vrf:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, vrf.encode())
        out.sendto(packet, (target, 0))


def stir(address: str) -> None:
    """A datagram to the discard port (RFC 863): what matters is that the kernel asks who has the address."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as out, suppress(OSError):
        out.sendto(b"", (address, 9))
