"""A router that advertises itself in short lifetimes, and an echo that measures gaps: far ends of tests."""
from __future__ import annotations

import ipaddress
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lib.netns import inside


def advertisement(prefix: str, lifetime: int, mac: bytes) -> bytes:
    """A router advertisement (RFC 4861, section 4.2) with one prefix for autoconfiguration."""
    net = ipaddress.IPv6Network(prefix)
    head = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0)
    info = struct.pack("!BBBBIII16s", 3, 4, net.prefixlen, 0xC0, lifetime, lifetime, 0, net.network_address.packed)
    return head + info + struct.pack("!BB6s", 1, 1, mac)


@contextmanager
def advertising(netns: str, dev: str, prefix: str, lifetime: int = 10, every: float = 3.0) -> Iterator[None]:
    """Router advertisements from *dev* in *netns*, each ``every`` seconds and when asked."""
    with inside(netns):
        index = socket.if_nametoindex(dev)
        out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        group = socket.inet_pton(socket.AF_INET6, "ff02::2") + struct.pack("@I", index)
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        probe = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        probe.bind((dev, 0))
        mac = probe.getsockname()[4]
        probe.close()
    stop = threading.Event()

    def serve() -> None:
        due = 0.0
        while not stop.is_set():
            asked = False
            if select.select([out], [], [], 0.05)[0]:
                asked = out.recv(2048)[:1] == b"\x85"
            if asked or time.monotonic() >= due:
                out.sendto(advertisement(prefix, lifetime, mac), ("ff02::1", 0, 0, index))
                due = time.monotonic() + every

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        out.close()


class Gap:
    """Longest time without an answer, in seconds."""

    longest = 0.0
    answers = 0


@contextmanager
def watching(netns: str, address: str, port: int = 7777) -> Iterator[Gap]:
    """Ask an echo of *address* (in the current namespace) from *netns* every millisecond."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    here = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        here.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    here.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    with inside(netns):
        there = socket.socket(family, socket.SOCK_DGRAM)
    there.setblocking(False)
    stop, gap = threading.Event(), Gap()

    def echo() -> None:
        while not stop.is_set():
            if select.select([here], [], [], 0.05)[0]:
                data, sender = here.recvfrom(64)
                try:
                    here.sendto(data, sender)
                except OSError:
                    continue

    def ask() -> None:
        last = time.monotonic()
        while not stop.is_set():
            with suppress(OSError):
                there.sendto(b"x", (address, port))
            if select.select([there], [], [], 0.001)[0]:
                there.recv(64)
                gap.answers += 1
                now = time.monotonic()
                gap.longest, last = max(gap.longest, now - last), now
        gap.longest = max(gap.longest, time.monotonic() - last)

    threads = [threading.Thread(target=t) for t in (echo, ask)]
    for thread in threads:
        thread.start()
    try:
        yield gap
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        here.close()
        there.close()
