"""Types of the options: which values each takes, how the schema describes them and what the reference calls them. Pure."""
from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from kvmnet.spec.cpus import cpus, lists, nodes
from kvmnet.spec.form import BeforeValidator, Field, PlainValidator, WithJsonSchema
from kvmnet.spec.values import (
    NAME_FORM,
    address,
    address4,
    address6,
    bit_rate,
    burst,
    bytes_per_second,
    cidr,
    count,
    domain,
    dscp,
    dscps,
    duration,
    endpoint,
    expression,
    group,
    icmp_types,
    interface,
    line,
    mac,
    mirrored,
    name,
    network4,
    network6,
    network_name,
    pci_slot,
    peer,
    peers,
    per_second,
    ports,
    prefix,
    prefixes,
    protocols,
    range4,
    range6,
    record_file,
    secret_file,
    setting,
    size,
    vlan_ranges,
    wireguard_key,
)


def _schema(kind: str, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": kind, **more})


_NUMBER_OR_TEXT = WithJsonSchema({"type": ["string", "integer"]})
_V4 = r"^([0-9]{1,3}\.){3}[0-9]{1,3}"

Name = Annotated[str, PlainValidator(name), _schema("string", pattern=f"^{NAME_FORM.pattern}$")]
NetworkName = Annotated[str, PlainValidator(network_name), _schema("string", pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Domain = Annotated[str, PlainValidator(domain), _schema("string")]
IfName = Annotated[str, PlainValidator(interface), _schema("string", pattern=r"^[^\s/:]+$", maxLength=15)]
Line = Annotated[str, PlainValidator(line), _NUMBER_OR_TEXT]
Setting = Annotated[str, PlainValidator(setting), _NUMBER_OR_TEXT]
Mac = Annotated[str, PlainValidator(mac), _schema("string", pattern=r"^([0-9A-Fa-f]{2}[:-]?){5}[0-9A-Fa-f]{2}$")]
Address = Annotated[str, PlainValidator(address), _schema("string", pattern=r"^[0-9A-Fa-f:.]+$")]
Address4 = Annotated[str, PlainValidator(address4), _schema("string", pattern=_V4 + "$")]
Address6 = Annotated[str, PlainValidator(address6), _schema("string", pattern=r"^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*$")]
Group = Annotated[str, PlainValidator(group), _schema("string", pattern=r"^[0-9A-Fa-f:.]+$")]
Network4 = Annotated[str, PlainValidator(network4), _schema("string", pattern=_V4 + "/[0-9]{1,2}$")]
Network6 = Annotated[str, PlainValidator(network6), _schema("string", pattern="^[0-9A-Fa-f:.]+/[0-9]{1,3}$")]
Prefix = Annotated[str, PlainValidator(prefix), _schema("string", pattern="^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$")]
Range4 = Annotated[str, PlainValidator(range4), _schema("string", pattern=r"^[0-9.]+ *- *[0-9.]+$")]
Range6 = Annotated[str, PlainValidator(range6), _schema("string", pattern="^[0-9A-Fa-f:.]+ *- *[0-9A-Fa-f:.]+$")]
CpuSet = Annotated[str, PlainValidator(cpus), _NUMBER_OR_TEXT]
Nodes = Annotated[str, PlainValidator(nodes), _NUMBER_OR_TEXT]
CpuSets = Annotated[tuple[str, ...], BeforeValidator(lists), WithJsonSchema({"type": ["string", "integer", "array"], "items": {"type": ["string", "integer"]}})]
Duration = Annotated[int, PlainValidator(duration), _NUMBER_OR_TEXT]
Size = Annotated[int, PlainValidator(size), _NUMBER_OR_TEXT]
BitRate = Annotated[int, PlainValidator(bit_rate), _schema("string", pattern="^[0-9]+[kKmMgG][bB][iI][tT]$")]
Burst = Annotated[int, PlainValidator(burst), _NUMBER_OR_TEXT]
PerSecond = Annotated[int, PlainValidator(per_second), _schema("string", pattern="^([0-9]+[kKmM]?/s|none)$")]
BytesPerSecond = Annotated[int, PlainValidator(bytes_per_second), _schema("string", pattern="^([0-9]+[kKmMgG]?B?/s|none)$")]
Count = Annotated[int, PlainValidator(count), _NUMBER_OR_TEXT]
Dscp = Annotated[int, PlainValidator(dscp), _NUMBER_OR_TEXT]
PciSlot = Annotated[str, PlainValidator(pci_slot), _NUMBER_OR_TEXT]
WireguardKey = Annotated[str, PlainValidator(wireguard_key), _schema("string", pattern="^[A-Za-z0-9+/]{43}=$")]
Endpoint = Annotated[str, PlainValidator(endpoint), _schema("string", pattern=r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$")]
SecretFile = Annotated[str, PlainValidator(secret_file), _schema("string", pattern=r"^/\S+$")]
RecordFile = Annotated[str, PlainValidator(record_file), _schema("string", pattern=r"^/.+\.pcapng$")]
VlanId = Annotated[int, Field(ge=1, le=4094)]
Cidr = Annotated[str, PlainValidator(cidr), _schema("string", pattern="^[0-9A-Fa-f:.]+/[0-9]{1,3}$")]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
VlanRanges = Annotated[tuple[int, ...], BeforeValidator(vlan_ranges), WithJsonSchema({
    "anyOf": [{"type": ["integer", "string"]},
              {"type": "array", "items": {"type": ["integer", "string"]}}]})]

_ITEMS = WithJsonSchema({"anyOf": [{"type": ["integer", "string", "boolean"]},
                                   {"type": "array", "items": {"type": ["integer", "string"]}}]})
Prefixes = Annotated[tuple[str, ...], PlainValidator(prefixes), _ITEMS]
Dscps = Annotated[tuple[int, ...], PlainValidator(dscps), _ITEMS]
Ports = Annotated[tuple[str, ...], PlainValidator(ports), _ITEMS]
IcmpTypes = Annotated[tuple[str, ...], PlainValidator(icmp_types), _ITEMS]
Protocols = Annotated[tuple[int, ...], PlainValidator(protocols), _ITEMS]
Peer = Annotated[str, PlainValidator(peer), _schema("string")]
Peers = Annotated[tuple[str, ...], PlainValidator(peers), _ITEMS]

Expression = Annotated[str, PlainValidator(expression), _schema("string")]
Source = Annotated[str, PlainValidator(mirrored), _schema("string")]

WORDS: dict[Callable[[object], Any], str] = {
    name: "name", network_name: "name, at most 32 characters", domain: "domain", interface: "device", line: "text", setting: "value",
    mac: "MAC address", address: "address", address4: "IPv4 address", address6: "IPv6 address",
    group: "multicast address",
    network4: "IPv4 prefix", network6: "IPv6 prefix", prefix: "address or prefix",
    cidr: "address with its prefix length", range4: "FIRST-LAST",
    range6: "FIRST-LAST", duration: "duration (12h, 30m, 90s, infinite)", size: "size (256M, 2G)",
    bit_rate: "rate (500kbit, 100mbit, 2gbit)", burst: "bytes (64k, 1m)", per_second: "rate (20000/s, 20k/s) or `none`",
    bytes_per_second: "rate (100MB/s) or `none`", count: "number or `none`", pci_slot: "SLOT or SLOT.FUNCTION", vlan_ranges: "list of VLAN ids and ranges",
    wireguard_key: "public key", endpoint: "ADDRESS:PORT", secret_file: "path of a file", record_file: "path of a file", prefixes: "list of prefixes",
    cpus: "CPUs (0-3,8) or `none`", nodes: "NUMA nodes", lists: "CPUs (0-3,8), `none`, or a list of these",
    dscp: "DSCP (10, ef)", dscps: "list of DSCPs",
    ports: "list of ports and ranges, or `any`", icmp_types: "`true` or list of types", protocols: "list of protocols",
    expression: "expression", mirrored: "GUEST, GUEST/NIC, `network:`, `group:`, `uplink:` NAME or `vlan:`NUMBER`@`UPLINK",
    peer: "`any`, prefix, `group:`, `set:` or `tenant:` NAME", peers: "list of `any`, prefixes, `group:`, `set:`, `tenant:` NAME",
}
"""What the reference calls the values that a function takes."""
