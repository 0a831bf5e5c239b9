"""Questions that a far end answers by itself: ICMP echo through the host's own stack, and ARP where the host has
no address. Both keep nothing waiting: what cannot be sent is lost, as on a wire."""
from __future__ import annotations

import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from kvmnet.errors import HostCannot
from kvmnet.host.filters import arp_answers, program
from kvmnet.host.packets import device_mac
from kvmnet.host.watch import Watch, attach

REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
"""ICMP types by IP version."""
SOL_RAW, ICMP_FILTER = 255, 1
SOL_ICMPV6, ICMPV6_FILTER = 58, 1
UDP_HEADER = struct.Struct("!HHHH")


class Asker(Protocol):
    """Asks one far end and hears its answers."""

    fd: int

    def ask(self, number: int) -> None: ...
    def heard(self) -> int | None:
        """Number of a question that was answered; -1 for the newest one, None when there is no answer."""
        ...
    def close(self) -> None: ...


class Echo:
    """ICMP echo to one address. ``mark``: four bytes that begin the data of each. Other programs' answers do not count."""

    def __init__(self, target: str, mark: int, identity: int):
        """``identity``: the ICMP identifier, which a bond's layer3+4 hash looks at. Raises HostCannot."""
        self.version = 6 if ":" in target else 4
        self.mark, self.identity = mark, identity
        family, protocol = ((socket.AF_INET6, socket.IPPROTO_ICMPV6) if self.version == 6
                            else (socket.AF_INET, socket.IPPROTO_ICMP))
        try:
            self.socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            raise HostCannot(f"cannot send pings: {error.strerror}", "run it as root") from error
        try:
            self.only_replies()
            self.socket.connect((target, 0))
        except OSError as error:
            self.socket.close()
            raise HostCannot(f"cannot send pings to {target}: {error.strerror}", "ip route get shows the way there") from error
        self.fd = self.socket.fileno()

    def only_replies(self) -> None:
        """Have the kernel pass on echo replies alone (raw(7); RFC 3542, 3.2)."""
        if self.version == 4:
            self.socket.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~(1 << REPLY[4]) & 0xFFFFFFFF))
            return
        words = [0xFFFFFFFF] * 8
        words[REPLY[6] >> 5] &= ~(1 << (REPLY[6] & 31))
        self.socket.setsockopt(SOL_ICMPV6, ICMPV6_FILTER, struct.pack("=8I", *words))

    @property
    def source(self) -> str:
        """The host's address that it asks from."""
        return str(self.socket.getsockname()[0])

    def ask(self, number: int) -> None:
        body = struct.pack("!HHII", self.identity, number & 0xFFFF, self.mark, number)
        packet = struct.pack("!BBH", REQUEST[self.version], 0, 0) + body
        if self.version == 4:
            packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        with suppress(OSError):
            self.socket.send(packet)

    def heard(self) -> int | None:
        while True:
            try:
                data = self.socket.recv(512)
            except OSError:  # nothing there, or what an ICMP error has left
                return None
            message = data[(data[0] & 15) * 4:] if self.version == 4 else data
            if len(message) < 16 or message[0] != REPLY[self.version]:
                continue
            identity, _, mark, number = struct.unpack("!HHII", message[4:16])
            if (identity, mark) == (self.identity, self.mark):
                return int(number)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Who:
    """ARP probes (RFC 5227, from no address) for one IPv4 address by one device. An answer does not say which
    question it answers: it counts for the newest."""

    def __init__(self, device: str, target: str):
        """Raises HostCannot."""
        address, mac = socket.inet_aton(target), bytes.fromhex(device_mac(device).replace(":", ""))
        self.question = (b"\xff" * 6 + mac + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + mac + bytes(4) + bytes(6) + address)
        self.watch = Watch(device, arp_answers(int.from_bytes(address, "big")))
        self.fd = self.watch.fd

    def ask(self, number: int) -> None:
        self.watch.send(self.question)

    def heard(self) -> int | None:
        return None if self.watch.receive() is None else -1

    def close(self) -> None:
        self.watch.close()


class Datagrams:
    """UDP datagrams of many flows to one address: own source ports, no socket for each. Data begin with *mark*."""

    def __init__(self, target: str, port: int, mark: int):
        """Raises HostCannot."""
        self.port, self.mark = port, struct.pack("!I", mark)
        self.family = socket.AF_INET6 if ":" in target else socket.AF_INET
        try:
            self.socket = socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_UDP)
            attach(self.socket, program([]))  # copies of what the far end sends by UDP are not wanted
            self.socket.settimeout(2)
            self.socket.connect((target, 0))
        except OSError as error:
            raise HostCannot(f"cannot send datagrams to {target}: {error.strerror}", "run it as root") from error
        source, there = (socket.inet_pton(self.family, s.split("%")[0]) for s in (self.socket.getsockname()[0], target))
        self.pseudo = source + there + struct.pack("!II", 12, socket.IPPROTO_UDP)

    def send(self, source_port: int) -> bool:
        """One datagram of the flow that *source_port* names; False when it could not be sent."""
        head = UDP_HEADER.pack(source_port, self.port, 12, 0)
        total = checksum(self.pseudo + head + self.mark) or 0xFFFF
        try:
            self.socket.send(head[:6] + struct.pack("!H", total) + self.mark)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
