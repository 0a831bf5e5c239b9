"""The host's own ping: one echo of an exact size that may not be fragmented."""
from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress
from time import monotonic

HEADERS = {4: 28, 6: 48}
"""IP version -> bytes of IP and ICMP before an echo's payload."""
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG, PROBE = 10, 23, 62, 3
"""linux/in.h, linux/in6.h: DF on every packet, and no notice of a path MTU that was learnt."""


def echoes(target: str, size: int, *, source: str = "", device: str = "", timeout: float = 1.0,
           payload: bytes = b"") -> bool:
    """Whether *target* answers an echo of *size* bytes, IP header included, sent in one packet.

    ``source``: address to ask from; ``device``: link to ask by; ``payload``: what stands in it, after 8 bytes of its own. Raises HostCannot without CAP_NET_RAW.
    """
    six = ":" in target
    nonce = os.urandom(8)
    begin = nonce + payload
    body = begin + bytes(max(0, size - HEADERS[6 if six else 4] - len(begin)))
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW,
                       socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP) as out:
        if device:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if six:
            out.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PROBE)
            out.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
        else:
            out.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PROBE)
        try:
            if source:
                out.bind((source, 0))
            out.sendto(request(six, body), (target, 0))
        except OSError:    # larger than the device takes, no route, no such address: nothing comes back
            return False
        return answered(out, nonce, timeout)


def request(six: bool, body: bytes) -> bytes:
    """An echo request; the kernel puts in the checksum of ICMPv6 (RFC 3542, 3.1), not that of ICMP."""
    head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 0x6B76, 1)
    if six:
        return head + body
    data = head + body + b"\0" * (len(body) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + struct.pack("!H", ~total & 0xFFFF) + head[4:] + body


def answered(out: socket.socket, nonce: bytes, timeout: float) -> bool:
    """Whether an echo reply with *nonce* comes within *timeout* seconds."""
    deadline = monotonic() + timeout
    while (left := deadline - monotonic()) > 0 and select.select([out], [], [], left)[0]:
        with suppress(OSError):
            data = out.recv(70000)
            message = data if out.family == socket.AF_INET6 else data[(data[0] & 15) * 4:]
            if message[:1] in (b"\x81", b"\x00") and message[8:16] == nonce:
                return True
    return False
