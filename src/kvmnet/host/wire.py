"""Packets of the host's own on the wire: frames by one device, and echo by the kernel's own way out.

A frame that is heard here came in by the device, untagged; nothing that the kernel remembers of a neighbour
counts (packet(7): PACKET_OUTGOING, PACKET_AUXDATA).
"""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.errors import HostCannot
from kvmnet.host.packets import ETH_P_ALL, LARGEST, SIOCGIFHWADDR, device_mac

SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4
AUXDATA = struct.Struct("=IIIHHHH")
VLAN_VALID = 0x10
SIOCGIFFLAGS = 0x8913
ARPHRD_ETHER = 1
IFF_NOARP = 0x80
IP_MTU, IP_MTU_DISCOVER, IPV6_MTU, IPV6_MTU_DISCOVER, PROBE = 14, 10, 24, 23, 3
"""linux/in.h and linux/in6.h; PROBE sets DF and does not trust a remembered path MTU."""
TENTATIVE = 0x40 | 0x08
"""IFA_F_TENTATIVE and IFA_F_DADFAILED (linux/if_addr.h)."""
DISCARD = 9
"""A port to name in a connect that sends nothing."""


@contextmanager
def cannot(what: str, opened: socket.socket | None = None) -> Iterator[None]:
    """Have a failure of the body close *opened* and say *what* cannot be done. Raises HostCannot."""
    try:
        yield
    except OSError as error:
        if opened is not None:
            opened.close()
        raise HostCannot(f"cannot {what}: {error.strerror}", "run it as root; is the device still there?") from error


class Wire:
    """An Ethernet device of this network namespace. Raises HostCannot."""

    def __init__(self, device: str):
        self.device, self.mac = device, device_mac(device)
        self.heard = 0
        """Frames that came in."""
        self.tags: Counter[int] = Counter()
        """VLAN id -> frames of it that came in with its tag on."""
        with cannot(f"send by {device}"):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        with cannot(f"send by {device}", self.socket):
            self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self.socket.bind((device, ETH_P_ALL))
        self.fd = self.socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame. Lost when the device is down, as on a wire."""
        with suppress(OSError):
            self.socket.send(frame)

    def receive(self) -> bytes | None:
        """The next untagged frame that came in; None when there is none."""
        while True:
            try:
                frame, ancillary, _, source = self.socket.recvmsg(LARGEST, 128)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENETDOWN, errno.ENXIO):
                    return None
                raise
            if source[2] == PACKET_OUTGOING:
                continue
            self.heard += 1
            if tag := tag_of(ancillary):
                self.tags[tag] += 1
                continue
            return frame

    def close(self) -> None:
        self.socket.close()


def tag_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """VLAN id that the kernel has taken off a frame; 0 for none."""
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA) and len(data) >= AUXDATA.size:
            status, *_, tci, _ = AUXDATA.unpack_from(data)
            return tci & 0xFFF if status & VLAN_VALID else 0
    return 0


class Pinger:
    """Echo requests of the kernel's own: its routes, source addresses and neighbours. Raises HostCannot."""

    def __init__(self, target: str, device: str = ""):
        self.target, self.device = target, device
        self.version = 6 if ":" in target else 4
        six = self.version == 6
        with cannot("send an echo request"):
            self.socket = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK,
                                        socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP)
        with cannot(f"send an echo request{f' by {device}' if device else ''}", self.socket):
            if six:
                self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PROBE)
            else:
                self.socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PROBE)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            if device:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        self.fd = self.socket.fileno()

    @property
    def destination(self) -> tuple[str, int] | tuple[str, int, int, int]:
        if self.version == 4:
            return self.target, 0
        zone = 0
        if self.target.startswith("fe80:") and self.device:
            with suppress(OSError):
                zone = socket.if_nametoindex(self.device)
        return self.target, 0, 0, zone

    def send(self, message: bytes) -> str:
        """Send an ICMP message (of IPv6: the kernel fills in the checksum); '' or why it cannot go."""
        try:
            self.socket.sendto(message, self.destination)
        except OSError as error:
            return error.strerror or "cannot be sent"
        return ""

    def receive(self) -> tuple[str, bytes] | None:
        """Sender and ICMP message of the next one that came in; None when there is none."""
        try:
            data, source = self.socket.recvfrom(LARGEST)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH):
                return None
            raise
        return source[0].partition("%")[0], data[(data[0] & 15) * 4:] if self.version == 4 and data else data

    def close(self) -> None:
        self.socket.close()


def way_to(target: str, device: str = "") -> tuple[str, int]:
    """Source address and path MTU in bytes of the kernel's way to *target*; ('', 0) when it has none."""
    six = ":" in target
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            if device:
                asker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            zone = socket.if_nametoindex(device) if six and device and target.startswith("fe80:") else 0
            asker.connect((target, DISCARD, 0, zone) if six else (target, DISCARD))
            mtu = asker.getsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, IPV6_MTU if six else IP_MTU)
        except OSError:
            return "", 0
        return asker.getsockname()[0].partition("%")[0], mtu


def asks_neighbours(device: str) -> bool:
    """Whether neighbours on a device are found by ARP and ND: Ethernet that has not been told otherwise."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            kind = fcntl.ioctl(asker, SIOCGIFHWADDR, struct.pack("256s", device.encode()))
            flags = fcntl.ioctl(asker, SIOCGIFFLAGS, struct.pack("256s", device.encode()))
        except OSError:
            return False
    return struct.unpack_from("=H", kind, 16)[0] == ARPHRD_ETHER and not struct.unpack_from("=H", flags, 16)[0] & IFF_NOARP


def own_address6(device: str, *, link_local: bool) -> str:
    """An IPv6 address of a device that is checked and usable; '' for none."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/thread-self/net/if_inet6").read_text(encoding="ascii").splitlines():
            packed, _, _, scope, flags, name = line.split()
            if name == device and not int(flags, 16) & TENTATIVE:
                found.append((scope == "20", socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))))
    return next((text for local, text in sorted(found, reverse=link_local)), "")


def entropy() -> bytes:
    """Sixteen bytes that nobody can guess: they mark what is ours."""
    return os.urandom(16)
