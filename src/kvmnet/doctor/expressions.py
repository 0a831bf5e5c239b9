"""The value that an expression of nftables has for a packet. Pure.

nft leaves out of its listing what it can add again by itself: ``tcp dport 22`` asks for the protocol too, and
``ip saddr`` for the frame's type, in families that see more than IPv4 (payload_gen_dependency()). So a field of a
header that the packet does not have is ABSENT, as is everything that lies beyond its end.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmnet.doctor.fields import CT_TYPES, EXTENSION_HEADERS, FIELDS, META_TYPES, PROTOCOLS, scalar
from kvmnet.doctor.packet import ABSENT, ARP, STATES, UNKNOWN, VLAN, Context, Special, Value
from kvmnet.doctor.ruleset import Elements, Kind, Table, index

Json = Any
ETHERNET = 1
"""ARPHRD_ETHER."""
INSIDE = frozenset({"ip", "ip6", "icmp", "icmpv6", "igmp", "arp", "exthdr"})
"""Headers of which nft makes sure that the frame has them by asking for its type."""


def kind_of(expression: Json) -> Kind:
    """Type of the values of an expression."""
    match expression:
        case {"payload": {"protocol": protocol, "field": field}}:
            known = FIELDS.get(protocol, {}).get(field)
            return known.type if known else "integer"
        case {"meta": {"key": key}}:
            return META_TYPES.get(key, "integer")
        case {"ct": {"key": key, **more}}:
            if key in ("saddr", "daddr"):
                return "ipv6_addr" if more.get("family") == "ip6" else "ipv4_addr"
            return CT_TYPES.get(key, "integer")
        case {"concat": parts}:
            return tuple(str(kind_of(p)) for p in parts)
        case {"fib": {"result": result}}:
            return {"type": "fib_addrtype", "oifname": "ifname"}.get(result, "boolean")
        case {"exthdr": _} | {"tcp option": _}:
            return "boolean"
        case {"&": parts} | {"|": parts} | {"^": parts} | {"<<": parts} | {">>": parts}:
            return kind_of(parts[0])
    return "integer"


def value(expression: Json, context: Context, table: Table, kind: Kind = "integer") -> Value:
    """Of *expression*. ``kind``: type of a constant, from the other side."""
    match expression:
        case bool() | int() | str():
            found = scalar(expression, kind if isinstance(kind, str) else "integer")
            return UNKNOWN if found is None else found
        case list():
            return together(expression, kind)
        case {"payload": body}:
            return payload(body, context)
        case {"meta": {"key": key}}:
            return meta(key, context)
        case {"ct": body}:
            return ct(body, context)
        case {"concat": parts}:
            return combined(tuple(value(p, context, table) for p in parts))
        case {"fib": {"result": result, "flags": flags}}:
            return context.fib(context, result, frozenset([flags] if isinstance(flags, str) else flags)) if context.fib else UNKNOWN
        case {"exthdr": {"name": name, **more}}:
            if context.packet.version != 6:
                return ABSENT
            known = EXTENSION_HEADERS.get(name)
            there = known in context.packet.headers()
            return UNKNOWN if known is None or hidden("exthdr", context) or (there and "field" in more) else int(there) if "field" not in more else ABSENT
        case {"map": {"key": key, "data": data}}:
            return mapped(key, data, context, table, kind)
        case {"prefix": _} | {"range": _} | {"set": _}:
            return UNKNOWN
        case Mapping() if len(expression) == 1:
            operator, parts = next(iter(expression.items()))
            return calculated(operator, parts, context, table, kind)
    return UNKNOWN


def together(words: list[Json], kind: Kind) -> Value:
    """Flags: all the bits of *words*."""
    bits = [scalar(w, kind) if isinstance(kind, str) else None for w in words]
    total = 0
    for bit in bits:
        if not isinstance(bit, int):
            return UNKNOWN
        total |= bit
    return total


def combined(parts: tuple[Value, ...]) -> Value:
    """A concatenation: not there when one of its parts is not."""
    return ABSENT if ABSENT in parts else parts


def calculated(operator: str, parts: Json, context: Context, table: Table, kind: Kind) -> Value:
    if operator not in ("&", "|", "^", "<<", ">>") or len(parts) < 2:
        return UNKNOWN
    own = kind_of(parts[0])
    own = kind if own == "integer" else own
    result = value(parts[0], context, table, own)
    for part in parts[1:]:
        other = value(part, context, table, own)
        if ABSENT in (result, other):
            return ABSENT
        if operator == "&" and 0 in (result, other):
            result = 0
            continue
        if not isinstance(result, int) or not isinstance(other, int):
            return UNKNOWN
        result = {"&": result & other, "|": result | other, "^": result ^ other}[operator] if operator in "&|^" else \
            (result << other) & 0xFFFFFFFF if operator == "<<" else result >> other
    return result


def mapped(key: Json, data: Json, context: Context, table: Table, kind: Kind) -> Value:
    """Value of a map; ABSENT where it has none."""
    asked = value(key, context, table)
    if asked is ABSENT:
        return ABSENT
    found = holding(data, kind_of(key), table).find(asked)
    if found is None:
        return ABSENT
    if isinstance(found, Special) or found[0] is UNKNOWN:
        return UNKNOWN
    wanted = str(table.sets.get(data[1:], {}).get("map", kind)) if isinstance(data, str) else kind
    return value(found[0], context, table, wanted)


def holding(data: Json, kind: Kind, table: Table) -> Elements:
    """Elements of ``@name`` or ``{"set": [...]}``."""
    if isinstance(data, str):
        return table.elements(data.removeprefix("@"), kind)
    return index(data["set"], kind)


# -- what is asked ---------------------------------------------------------------------------------

def payload(body: Json, context: Context) -> Value:
    """A field of a header, or bits of it."""
    if "base" in body:
        if body["base"] == "ll" and not context.linked:
            return ABSENT
        return context.packet.bits(body["base"], body["offset"], body["len"]) if body["base"] in ("ll", "nh", "th") else UNKNOWN
    protocol = body["protocol"]
    field = FIELDS.get(protocol, {}).get(body["field"])
    if field is None:
        return UNKNOWN
    there, unsure = has(protocol, context), hidden(protocol, context)
    context.asked.add("vlan" if body["field"] == "type" and context.packet.tagged else protocol)
    if there and unsure:
        return UNKNOWN
    return context.packet.bits(field.header, field.offset, field.length) if there else ABSENT


def hidden(protocol: str, context: Context) -> bool:
    """Behind a VLAN tag the frame itself names another type. nft asks for that one, before a rule's first field of IP or
    ARP, in family bridge for all but the IP header, in others where the rule has asked for the Ethernet header; unless
    the rule asks ``meta protocol`` itself, which the listing leaves out. So nobody can tell from a listing."""
    if not context.packet.tagged or protocol not in INSIDE or context.asked & {"ip", "ip6", "arp", "vlan"}:
        return False
    return protocol not in ("ip", "ip6") if context.family == "bridge" else "ether" in context.asked


def has(protocol: str, context: Context) -> bool:
    """Whether the packet has a header of that protocol, where nft looks for it."""
    packet = context.packet
    match protocol:
        case "ether":
            return context.linked
        case "vlan":
            return context.linked and packet.outer == VLAN
        case "arp":
            return packet.protocol == ARP
        case "ip":
            return packet.version == 4
        case "ip6":
            return packet.version == 6
        case "th":
            return packet.upper is not None
    if packet.upper is None or packet.upper[0] != PROTOCOLS.get(protocol):
        return False
    return not (protocol in ("icmp", "igmp") and packet.version != 4) and not (protocol == "icmpv6" and packet.version != 6)


def meta(key: str, context: Context) -> Value:
    packet = context.packet
    match key:
        case "iifname" | "iif":
            return context.iif      # '' where there is none, which is no absence (nft_meta_store_ifname())
        case "sdifname" | "sdif":
            return context.sdif     # in input and forward only (nft_meta_get_eval_sdifname())
        case "oifname" | "oif":
            return context.oif
        case "ibrname" | "ibridgename":
            return context.bridge_in or ABSENT
        case "obrname" | "obridgename":
            return context.bridge_out or ABSENT
        case "mark":
            return context.mark
        case "priority":
            return context.priority
        case "pkttype":
            return context.pkttype
        case "protocol":
            return packet.protocol
        case "nfproto":
            return {"bridge": 7, "netdev": 5, "arp": 3}.get(context.family, {4: 2, 6: 10}.get(packet.version, UNKNOWN))
        case "l4proto":
            return packet.upper[0] if packet.upper else ABSENT
        case "length":
            return len(packet.frame) - packet.network + (14 if context.hook == "egress" else 0)
        case "iiftype":
            return context.kinds.get(context.iif, ETHERNET) if context.linked else ABSENT
        case "oiftype":
            return context.kinds.get(context.oif, ETHERNET) if context.oif else ABSENT
        case "iifgroup":
            return context.groups.get(context.iif, 0) if context.iif else ABSENT
        case "oifgroup":
            return context.groups.get(context.oif, 0) if context.oif else ABSENT
        case "skuid":
            return ABSENT if context.iif else context.owner
        case "secpath" | "ipsec":
            return 0
    return UNKNOWN


def ct(body: Json, context: Context) -> Value:
    """What connection tracking says; before it has seen the packet, and where it tracks nothing, the state is
    ``invalid`` and the rest is not there (nft_ct_get_eval())."""
    key, tracked = body["key"], context.tracked
    if tracked is None or tracked.state in (STATES["untracked"], STATES["invalid"]):
        return (STATES["invalid"] if tracked is None else tracked.state) if key == "state" else ABSENT
    first = tracked.first or context.packet
    way = {"original": 0, "reply": 1}.get(body.get("dir", ""))
    match key:
        case "state":
            return tracked.state
        case "mark":
            return tracked.mark
        case "status":
            return tracked.status
        case "direction":
            return tracked.direction
        case "zone":
            return tracked.zone
        case "l3proto":
            return {4: 2, 6: 10}.get(context.packet.version, ABSENT)
        case "protocol":
            return first.upper[0] if first.upper else ABSENT
        case "saddr" | "daddr" | "ip saddr" | "ip daddr" | "ip6 saddr" | "ip6 daddr" | "proto-src" | "proto-dst":
            if way != 0:
                return UNKNOWN  # the answer's addresses are other ones where NAT is at work
            if key.startswith("proto"):
                return first.ports[key == "proto-dst"] if first.upper and first.upper[0] in (6, 17) else UNKNOWN
            wanted = {"ip ": 4, "ip6": 6}.get(key[:3], first.version)
            return int.from_bytes(address_bytes(first, int(key.endswith("daddr"))), "big") if first.version == wanted else ABSENT
        case "helper":
            return ABSENT
    return UNKNOWN


def address_bytes(packet: Any, place: int) -> bytes:
    size, at = (4, 12) if packet.version == 4 else (16, 8)
    begin = packet.network + at + place * size
    return bytes(packet.frame[begin:begin + size])

