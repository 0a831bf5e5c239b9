"""Cutting flows: one dump of the kernel's flows, then each of the chosen ones deleted by its exact tuple and zone.

``conntrack -D`` dumps the whole table for every deletion and matches what it is given; here the kernel gets back
the very tuple that it showed, with its zone and id, so that nothing else can be meant.
"""
from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address

from kvmnet.policy.flows import Flow

NETLINK_NETFILTER = 12
GET, DELETE = 0x101, 0x102
"""NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET and _DELETE (include/uapi/linux/netfilter/nfnetlink_conntrack.h)."""
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
ERROR, DONE = 2, 3
ORIGINAL, REPLY, ID, ZONE = 1, 2, 12, 18
IP, PROTO, TUPLE_ZONE = 1, 2, 3
NUMBER, SOURCE_PORT, PORT, ICMP_TYPE, ICMP6_TYPE = 1, 2, 3, 5, 8
ENOENT = 2


def cut(forbidden: Callable[[Flow], bool]) -> int:
    """Delete every flow for which *forbidden* is true; how many there were. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        doomed = [payload for payload in dump(kernel) if (flow := read_flow(payload)) and forbidden(flow)]
        for payload in doomed:
            delete(kernel, payload)
    return len(doomed)


def flows() -> list[Flow]:
    """All flows of this network namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        return [flow for payload in dump(kernel) if (flow := read_flow(payload))]


def dump(kernel: socket.socket) -> Iterator[bytes]:
    kernel.send(struct.pack("=IHHIIBBH", 20, GET, REQUEST | DUMP, 1, 0, 0, 0, 0))
    while True:
        for kind, payload in messages(kernel.recv(1 << 18)):
            if kind == DONE:
                return
            if kind == ERROR:
                raise_error(payload)
                return
            yield payload


def delete(kernel: socket.socket, payload: bytes) -> None:
    """Delete the flow of a dumped message, if it is still there."""
    kept = b"".join(raw for kind, raw in raw_attributes(payload[4:]) if kind in (ORIGINAL, ID, ZONE))
    body = payload[:4] + kept
    kernel.send(struct.pack("=IHHII", 16 + len(body), DELETE, REQUEST | ACK, 2, 0) + body)
    for kind, answer in messages(kernel.recv(1 << 16)):
        if kind == ERROR:
            raise_error(answer, gone=ENOENT)


def raise_error(payload: bytes, gone: int = 0) -> None:
    code = -int(struct.unpack_from("=i", payload)[0])
    if code and code != gone:
        raise OSError(code, "the kernel refuses to list or delete connections")


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[length + 3 & ~3:]


def raw_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        padded = length + 3 & ~3
        yield kind & 0x3FFF, data[:length].ljust(padded, b"\0")
        data = data[padded:]


def attributes(data: bytes) -> dict[int, bytes]:
    return {kind: raw[4:struct.unpack_from("=H", raw)[0]] for kind, raw in raw_attributes(data)}


def read_flow(payload: bytes) -> Flow | None:
    """The flow of one message of a dump; None for what has no tuple that we know."""
    found = attributes(payload[4:])
    try:
        source, destination, protocol, _, port = read_tuple(found[ORIGINAL])
        target, _, _, target_port, _ = read_tuple(found[REPLY])
    except KeyError:
        return None
    zone = int(struct.unpack(">H", found[ZONE])[0]) if ZONE in found else 0
    is_icmp = protocol in (1, 58)
    return Flow(zone, protocol, source, destination, port, target, port if is_icmp else target_port)


def read_tuple(data: bytes) -> tuple[str, str, int, int, int]:
    """Source, destination, protocol, source port and destination port; of ICMP twice the type."""
    parts = attributes(data)
    addresses, proto = attributes(parts[IP]), attributes(parts[PROTO])
    source, destination = (str(ip_address(addresses[k] if k in addresses else addresses[k + 2])) for k in (1, 2))
    number = proto[NUMBER][0]
    kind = proto.get(ICMP_TYPE, proto.get(ICMP6_TYPE))
    if kind:
        return source, destination, number, kind[0], kind[0]
    low, high = (int(struct.unpack(">H", proto[k])[0]) if k in proto else 0 for k in (SOURCE_PORT, PORT))
    return source, destination, number, low, high
