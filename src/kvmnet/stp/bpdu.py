"""BPDUs: the messages of spanning trees, and how a region names its mapping of VLANs. Pure.

Formats: 802.1Q-2018, clause 14; the digest: 13.8. A message that is cut short or makes no sense is None: whoever
can send to the port can send anything.
"""
from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from typing import NamedTuple

from kvmnet.records import dataclass
from kvmnet.stp.vectors import ADDRESS, CIST, PORT_NUMBER, Protocol, Role, Times, Vector

DESTINATION = bytes.fromhex("0180c2000000")
LLC = b"\x42\x42\x03"
CONFIG, RST, TCN = 0x00, 0x02, 0x80
FIXED = struct.Struct(">BQIQHHHHH")
"""Flags, root, external cost, regional root, port, age, max age, hello, forward delay."""
REGION = struct.Struct(">B32sH16sIQB")
"""Format selector, name, revision, digest, internal cost, bridge, hops."""
INSTANCE = struct.Struct(">BQIBBB")
"""Flags, regional root, internal cost, priority of the bridge and of the port, hops."""
TICK = 256
"""Parts of a second that times are sent in."""
ROLES = {0: Role.MASTER, 1: Role.ALTERNATE, 2: Role.ROOT, 3: Role.DESIGNATED}
"""Bits 2 and 3 of the flags; in the common tree's, 0 is unknown."""
CODES = {Role.MASTER: 0, Role.ALTERNATE: 1, Role.BACKUP: 1, Role.ROOT: 2, Role.DESIGNATED: 3, Role.DISABLED: 0}
KEY = bytes.fromhex("13AC06A62E47FD51F95D2BA243CD0346")
INSTANCES = 64


class Flags(NamedTuple):
    """What one tree says of the port that the message comes from."""

    role: Role = Role.DESIGNATED
    tc: bool = False
    proposal: bool = False
    learning: bool = False
    forwarding: bool = False
    agreement: bool = False
    last: bool = False
    """Common tree: the topology change is acknowledged; an instance: the port is the region's way out (master)."""

    def octet(self) -> int:
        return (self.tc | self.proposal << 1 | CODES[self.role] << 2 | self.learning << 4 | self.forwarding << 5
                | self.agreement << 6 | self.last << 7)

    @classmethod
    def read(cls, octet: int) -> Flags:
        bits = [bool(octet >> n & 1) for n in range(8)]
        return cls(ROLES[octet >> 2 & 3], bits[0], bits[1], bits[4], bits[5], bits[6], bits[7])


class Region(NamedTuple):
    """What bridges of one region have in common (MST configuration identifier)."""

    name: str = ""
    revision: int = 0
    digest: bytes = bytes(16)


@dataclass(frozen=True, slots=True)
class Message:
    """What one tree says by a BPDU."""

    flags: Flags
    vector: Vector
    times: Times


@dataclass(frozen=True, slots=True)
class Bpdu:
    version: Protocol
    notification: bool = False
    """A topology change notification of STP, which says nothing else."""
    common: Message | None = None
    region: Region | None = None
    """Of MSTP alone."""
    inner: Message | None = None
    """MSTP: what the common tree says inside of the region."""
    instances: Mapping[int, Message] | None = None
    """MSTP: number -> what the tree of an instance says."""


def digest(vlans: Mapping[int, int]) -> bytes:
    """Digest of a mapping VLAN -> instance; those that are left out belong to the common tree."""
    table = b"".join(vlans.get(vid, CIST).to_bytes(2, "big") if 0 < vid < 4095 else b"\0\0" for vid in range(4096))
    return hmac.new(KEY, table, "md5").digest()


def encode(bpdu: Bpdu) -> bytes:
    """The BPDU without its link header."""
    if bpdu.notification:
        return bytes((0, 0, Protocol.STP, TCN))
    assert bpdu.common is not None
    flags, vector, times = bpdu.common.flags, bpdu.common.vector, bpdu.common.times
    kind = CONFIG if bpdu.version is Protocol.STP else RST
    octet = flags.octet() if kind == RST else flags.tc | flags.last << 7
    head = bytes((0, 0, bpdu.version, kind)) + FIXED.pack(
        octet, vector.root, vector.external, vector.regional, vector.port, *(round(t * TICK) for t in times[:4]))
    if kind == CONFIG:
        return head
    if bpdu.version is Protocol.RSTP:
        return head + b"\0"
    return head + b"\0" + extension(bpdu)


def extension(bpdu: Bpdu) -> bytes:
    """What MSTP adds."""
    assert bpdu.region is not None and bpdu.inner is not None
    region, inner = bpdu.region, bpdu.inner
    body = REGION.pack(0, region.name.encode(), region.revision, region.digest, inner.vector.internal, inner.vector.bridge,
                       inner.times.hops)
    for message in (bpdu.instances or {}).values():
        vector = message.vector
        body += INSTANCE.pack(message.flags.octet(), vector.regional, vector.internal, vector.bridge >> 56 & 0xF0,
                              vector.port >> 8 & 0xF0, message.times.hops)
    return struct.pack(">H", len(body)) + body


def decode(data: bytes) -> Bpdu | None:
    """What *data*, a BPDU without its link header, says; None when it is none (802.1Q-2018, 14.4)."""
    if len(data) < 4 or data[:2] != b"\0\0":
        return None
    version, kind = data[2], data[3]
    if kind == TCN:
        return Bpdu(Protocol.STP, notification=True)
    if kind not in (CONFIG, RST) or len(data) < 4 + FIXED.size:
        return None
    octet, root, external, regional, port, age, max_age, hello, delay = FIXED.unpack_from(data, 4)
    times = Times(age / TICK, max_age / TICK, hello / TICK, delay / TICK)
    vector = Vector(root, external, regional, 0, regional, port)
    if kind == CONFIG:
        if times.age >= times.max_age:
            return None
        flags = Flags(tc=bool(octet & 1), last=bool(octet >> 7))
        return Bpdu(Protocol.STP, common=Message(flags, vector, times))
    common = Message(Flags.read(octet), vector, times)
    if common.flags.role is Role.MASTER:
        return None
    if version >= Protocol.MSTP and (more := read_extension(data, common)):
        return more
    return Bpdu(Protocol.RSTP, common=common) if version >= Protocol.RSTP else None


def read_extension(data: bytes, common: Message) -> Bpdu | None:
    """The rest of a BPDU of MSTP; None where it is a plain one of RSTP to us, whatever its version says."""
    at = 4 + FIXED.size
    if len(data) < at + 3 + REGION.size or data[at] != 0:
        return None
    length, = struct.unpack_from(">H", data, at + 1)
    count, rest = divmod(length - REGION.size, INSTANCE.size)
    at += 3
    if rest or not 0 <= count <= INSTANCES or len(data) < at + length:
        return None
    selector, name, revision, checked, internal, bridge, hops = REGION.unpack_from(data, at)
    if selector != 0:
        return None
    vector = common.vector
    inner = Message(common.flags, vector._replace(internal=internal, bridge=bridge), common.times._replace(hops=hops))
    instances = {}
    for n in range(count):
        octet, regional, cost, bridge_priority, port_priority, left = INSTANCE.unpack_from(data, at + REGION.size + n * INSTANCE.size)
        tree = regional >> 48 & 0xFFF
        instances[tree] = Message(Flags.read(octet), Vector(
            0, 0, regional, cost, (bridge_priority & 0xF0) << 56 | tree << 48 | bridge & ADDRESS,
            (port_priority & 0xF0) << 8 | vector.port & PORT_NUMBER), common.times._replace(hops=left))
    return Bpdu(Protocol.MSTP, common=common, region=Region(name.rstrip(b"\0").decode("ascii", "replace"), revision, checked),
                inner=inner, instances=instances)


def frame(source: str, bpdu: Bpdu) -> bytes:
    """An Ethernet frame, padded to its least length, from the address *source*."""
    payload = LLC + encode(bpdu)
    return (DESTINATION + bytes.fromhex(source.replace(":", "")) + len(payload).to_bytes(2, "big") + payload).ljust(60, b"\0")


def payload_of(data: bytes) -> bytes | None:
    """The BPDU inside an Ethernet frame; None when it carries none."""
    if len(data) < 21 or data[:6] != DESTINATION or data[14:17] != LLC:
        return None
    length = int.from_bytes(data[12:14], "big")
    return data[17:14 + length] if 3 < length <= len(data) - 14 else None
