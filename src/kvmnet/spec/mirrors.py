"""Mirrors as the operator writes them: whose frames are copied, which of them, and where the copies go."""
from __future__ import annotations

from typing import Annotated, Any, Literal

from kvmnet.spec.form import Field, PlainValidator, WithJsonSchema
from kvmnet.spec.part import Part
from kvmnet.spec.types import (
    Address,
    BitRate,
    Expression,
    IfName,
    Mac,
    PortNumber,
    Ports,
    Prefix,
    Protocols,
    RecordFile,
    Size,
    Source,
    VlanRanges,
)
from kvmnet.spec.values import line


class Frames(Part):
    """Which frames: an expression, or fields. Of the kinds (tcp to protocol) any may hold, and each of the others that is
    given as well. A text alone is an expression."""

    expression: Expression | None = None
    """As tcpdump takes it, e.g. "tcp port 80 and host 192.0.2.7"; byte offsets and names of hosts and services are not known."""
    tcp: Ports | None = None
    """TCP from or to these ports, e.g. [80, 443, 8000-8099], or any."""
    udp: Ports | None = None
    """UDP from or to these ports, or any."""
    icmp: bool = False
    """ICMP and ICMPv6."""
    arp: bool = False
    """ARP."""
    protocol: Protocols | None = None
    """Further IP protocols by name or number, e.g. [gre, 50]."""
    hosts: tuple[Prefix, ...] = ()
    """Addresses and prefixes, one of which the frame comes from or goes to."""
    macs: tuple[Mac, ...] = ()
    """MACs, one of which the frame comes from or goes to."""
    vlans: VlanRanges = ()
    """VLANs of the tag that the frame has."""

    @classmethod
    def short(cls, value: Any) -> Any:
        return {"expression": value} if isinstance(value, str) else value


class Tunnel(Part):
    """A way to another machine: each copy travels in an IP packet."""

    remote: Address
    """Address of the machine that gets the copies."""
    local: Address | None = None
    """Address of this host that they come from; as the host's routes say when not given."""
    ttl: Annotated[int, Field(ge=1, le=255)] = 64
    """Hops that they may take."""


class VxlanTunnel(Tunnel):
    """Copies in VXLAN (RFC 7348)."""

    vni: Annotated[int, Field(ge=1, le=16777215)]
    """Number of the segment."""
    port: PortNumber = 4789
    """UDP port."""


class GreTunnel(Tunnel):
    """Copies in GRE over IPv4 (RFC 2784, transparent Ethernet bridging)."""

    key: Annotated[int, Field(ge=0, le=4294967295)] | None = None
    """Key (RFC 2890); none when not given."""


class ErspanTunnel(Tunnel):
    """Copies in ERSPAN over IPv4, the GRE of mirrors (draft-foschiano-erspan)."""

    session: Annotated[int, Field(ge=0, le=1023)]
    """Number of the session."""
    version: Literal[1, 2] = 1
    """1: type II, with an index; 2: type III."""
    index: Annotated[int, Field(ge=1, le=1048575)] = 1
    """version 1: index of the mirrored port."""


class Record(Part):
    """Copies in pcapng files, the last of them; a text alone is the path. NAME.pcapng stands for NAME-00001.pcapng and so on: files that
    begin with kvmnet's comment are removed when they are too many, others never. They stay when the mirror goes."""

    path: RecordFile
    """Path of the files, e.g. /var/captures/web.pcapng. Its folder is made by somebody else; files are for root alone (0600)."""
    size: Size = 100 * 2**20
    """Bytes of a file at most, e.g. 100M."""
    files: Annotated[int, Field(ge=2, le=10000)] = 10
    """Files that are kept: size times files is the most that they take, and one file more while they change."""
    snap: Annotated[int, Field(ge=64, le=262144)] = 262144
    """Bytes of a frame that are kept at most."""

    @classmethod
    def short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Receiver(Part):
    """Where copies go: one of the following. A text alone is a NIC."""

    nic: Annotated[str, PlainValidator(line), WithJsonSchema({"type": "string"})] | None = None
    """A guest's NIC, GUEST or GUEST/NIC, e.g. sensor/eth1. The copies reach the guest and no bridge."""
    device: IfName | None = None
    """A device of the host for copies alone, e.g. a NIC with an analyser behind it."""
    vxlan: VxlanTunnel | None = None
    """Another machine, by VXLAN."""
    gre: GreTunnel | None = None
    """Another machine, by GRE."""
    erspan: ErspanTunnel | None = None
    """Another machine, by ERSPAN."""
    file: Record | None = None
    """Files on this host."""

    @classmethod
    def short(cls, value: Any) -> Any:
        return {"nic": value} if isinstance(value, str) else value

    @property
    def words(self) -> str:
        """For people: ``sensor/eth1``, ``device eth9``, ``vxlan to 192.0.2.9``."""
        if self.file:
            return f"file {self.file.path}"
        kind = next((k for k in type(self).model_fields if getattr(self, k) is not None), "")
        return self.nic or (f"device {self.device}" if self.device else f"{kind} to {self.tunnel.remote if self.tunnel else ''}")

    @property
    def tunnel(self) -> VxlanTunnel | GreTunnel | ErspanTunnel | None:
        return self.vxlan or self.gre or self.erspan


class Mirror(Part):
    """Copies of frames. A source never waits for its mirror: what the receiver has no room for is lost, and counted.
    Flows that are under way are copied from the next packet on."""

    from_: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Whose frames: a guest or GUEST/NIC; network:NAME, each frame once, where it enters the network on this host;
    group:NAME, its members' NICs; uplink:NAME, the wire; vlan:NUMBER@UPLINK, what has this tag on the wire."""
    to: Receiver
    """Where the copies go."""
    direction: Literal["sent", "received", "both"] = "both"
    """Of guests, groups and networks: what guests send, what comes to them (into the network, from outside and from the
    host). Of uplinks and VLANs: what the host sends by them, what comes in."""
    filter: Frames = Frames()
    """Which frames, e.g. "tcp port 80" or {tcp: 80}; all when not given."""
    limit: BitRate | None = None
    """Most that the copies may take, e.g. 100mbit; those beyond it are lost. To a NIC: one with receives: copies, and one
    mirror."""
