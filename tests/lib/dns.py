"""A tiny resolver: one question, the answers and the response code (RFC 1035)."""
from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

A, PTR, AAAA = 1, 12, 28
NXDOMAIN, REFUSED = 3, 5


@dataclass
class Answer:
    code: int
    records: list[str] = field(default_factory=list)


def name_bytes(name: str) -> bytes:
    return b"".join(bytes([len(p)]) + p.encode() for p in name.rstrip(".").split(".")) + b"\0"


def ask(server: str, name: str, kind: int = A, seconds: float = 20) -> Answer | None:
    """The server's answer, or None when it does not answer."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect((server, 53))
            sock.send(struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0) + name_bytes(name) + struct.pack("!HH", kind, 1))
            packet = sock.recv(4096)
        except OSError:
            return None
    return read(packet)


def read(packet: bytes) -> Answer:
    _, flags, _, answers, _, _ = struct.unpack("!6H", packet[:12])
    at = skip(packet, 12) + 4
    found = Answer(flags & 15)
    for _ in range(answers):
        at = skip(packet, at)
        kind, _, _, length = struct.unpack("!HHIH", packet[at:at + 10])
        data = packet[at + 10:at + 10 + length]
        found.records.append(text(packet, at + 10) if kind == PTR else str(ip_address(data)))
        at += 10 + length
    return found


def skip(packet: bytes, at: int) -> int:
    """Where the name at *at* ends."""
    while packet[at]:
        if packet[at] & 0xC0:
            return at + 2
        at += packet[at] + 1
    return at + 1


def text(packet: bytes, at: int) -> str:
    labels = []
    while packet[at]:
        if packet[at] & 0xC0:
            at = int.from_bytes(packet[at:at + 2], "big") & 0x3FFF
            continue
        labels.append(packet[at + 1:at + 1 + packet[at]].decode())
        at += packet[at] + 1
    return ".".join(labels)
