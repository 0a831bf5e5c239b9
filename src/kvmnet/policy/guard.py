"""What a guest NIC may send: an allow-list in bridge prerouting. Pure.

The same judgement stands at the ports that are no bridge's (``policy/egress.py``).

The table's text knows no NIC. All that differs between NICs is in exact hash sets keyed by the tap's
name, so a frame costs the same with ten NICs and with ten thousand, and a NIC that is in no set is
dropped. The usual frame needs one look: source MAC, frame type and source address are one key of
``flow4`` or ``flow6``. Prefixes stand in a set that is asked only when the exact ones have no answer.

The order is: is this MAC the NIC's own, is the frame of a type that guests need (IPv4, IPv6, ARP, the
RARP of a migration, and the declared VLANs of a trunk), is the source address its own, is the message
one that a plain guest may send. What passes carries the mark ``GUEST``; later tables may rely on it.

Why it is a list of what is allowed: a tagged frame, an 802.2 header or an IPv6 extension header moves
the fields that a list of forbidden things looks at (CVE-2021-27853, CVE-2021-27861, RFC 7113).
Frames to 01:80:c2:00:00:0X do not pass bridge prerouting at all (net/bridge/br_input.c): they are
delivered to the port itself and teach the FDB their source; the input chain catches them.

IPv6 link-local addresses need not be declared (RFC 7217): the first NIC of a network that uses one
owns it for ``CLAIM`` since its last use. Addresses of the EUI-64 form cannot be claimed: those of the
declared MACs are bound beforehand, and the bridge's own is of this form. Nor can those that are
protected: the gateway's, what the document declares for another NIC of the network, and those of
routers that were heard on the segment that an uplink leads to.

An ICMP error is about a packet that was sent to the one who complains: the destination that it quotes must be the NIC's own,
unless it is a router's. Conntrack asks only whether the quoted flow exists, so a bystander's error would break, or slow down,
what others talk about, and would pass every rule as "related".

Two tests for "not equal" on neighbouring fields never stand in one rule: nft 1.0.6 merges them into
one comparison of both, which is true as soon as one differs (a DHCPv6 server on an odd port passed).
"""
from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from string import Template
from typing import TypeAlias
from zlib import crc32

from kvmnet.drivers.nftables.resources import NftTable, NicGuard
from kvmnet.drivers.nftables.wire import parse, text6
from kvmnet.policy.marks import GUEST

HostNumber: TypeAlias = tuple[int, int]
"""(IP version, address as a number): sorts and compares several times as fast as ``ipaddress``."""

TABLE = "bridge kvmnet"
PRIORITY = -350
"""Before every chain of others, and before conntrack."""
CLAIM = "1d"
"""How long a link-local address stays with the NIC that used it last."""
CLAIMS_PER_HOUR = 8
"""New link-local addresses that one NIC may claim; more is an attack on the set."""

REASONS = {
    1: "source MAC is not the NIC's own",
    2: "frame type: only IPv4, IPv6, ARP (and the VLANs of a trunk) may be sent",
    3: "VLAN tag that this NIC may not use",
    4: "ARP sender is not the NIC's own, or the message is malformed",
    5: "IPv4 source address is not the NIC's own",
    6: "IPv6 source address is not the NIC's own",
    7: "DHCP server message without the role dhcp-server, or a request in the name of another MAC or of a relay",
    8: "router message (advertisement, redirect) without the role router",
    9: "multicast query without the role querier",
    10: "IPv6 extension header or protocol that hides what follows",
    11: "neighbour discovery for an address that is not the NIC's own, or malformed",
    12: "link-local address that is another NIC's, the host's, or one too many",
    13: "link control frame, or a frame that the guard has not seen",
    14: "IPv4 option other than router alert, or a header that cannot be read",
    15: "ICMPv6 message that guests have no use for",
    16: "IPv6 fragment that hides its upper header",
    17: "sent: no rule of its groups allows it",
    18: "packet of no flow, or one that cannot be read",
    19: "received: no rule of its groups allows it",
    20: "received: from a guest of another tenant",
    21: "frame with a VLAN tag, or neither IP nor ARP, from or to a NIC in groups",
    22: "received: from an isolated NIC of its network, by way of the host",
    23: "ICMP error about a packet that was not sent to this NIC",
    40: "sent: more packets than its limit",
    41: "sent: more bytes than its limit",
    42: "sent: more broadcasts than its limit",
    43: "sent: more multicasts than its limit",
    44: "sent: more to unknown MACs than its limit",
    45: "sent: more ARP and ND than its limit",
    46: "sent: begins more flows than its limit",
    47: "sent: has more flows than its limit",
    48: "received: more packets than its limit",
    49: "received: more bytes than its limit",
    50: "received: more TCP connections begun than its limit",
}
"""Why the guard, a group or a limit dropped a frame from or to a NIC: key of the ``dropped`` set -> words for the operator."""

ROLES = {"dhcp-server": "dhcp_server", "router": "router", "querier": "querier"}
"""Role -> its set."""

VALUES = {"priority": PRIORITY, "guest": f"{GUEST:#x}", "claim": CLAIM, "rate": CLAIMS_PER_HOUR}

SETS = Template("""\
set flow4 { typeof iifname . @ll,48,64 . @nh,96,32; }
set flow6 { typeof iifname . @ll,48,64 . @nh,64,128; }
set mac { typeof iifname . @ll,48,48; }
set own4 { typeof iifname . @nh,96,32; }
set net4 { typeof iifname . @nh,96,32; flags interval; }
set not4 { typeof iifname . @nh,96,32; }
set own6 { typeof iifname . @nh,64,128; }
set net6 { typeof iifname . @nh,64,128; flags interval; }
set not6 { typeof iifname . @nh,64,128; }
set loose { typeof iifname; }
set open { typeof iifname; }
set vlans { typeof iifname . vlan id; }
set dhcp_server { typeof iifname; }
set router { typeof iifname; }
set querier { typeof iifname; }
map zone { typeof iifname : meta mark; }
set learned { typeof iifname . @nh,64,128; size 1048576; flags dynamic,timeout; timeout ${claim}; }
set claimed { typeof meta mark . @nh,64,128; size 1048576; flags dynamic,timeout; timeout ${claim}; }
set advertised { typeof meta mark . @nh,64,128; size 65536; flags dynamic,timeout; timeout ${claim}; }
set claims { typeof iifname; size 65536; flags dynamic,timeout; timeout 2h; }
set dropped { typeof iifname . meta mark; size 262144; flags dynamic,timeout; counter; timeout 1d; }
""").substitute(VALUES)
"""What differs between NICs, and what the kernel itself remembers."""

HOOKS = Template("""\
chain prerouting {
    type filter hook prerouting priority ${priority}; policy accept;
    iifname "kvt-*" goto guest
}
chain input {
    type filter hook input priority ${priority}; policy accept;
    iifname "kvt-*" meta mark & ${guest} == 0 goto unseen
}
chain unseen {
    iifname @open goto pass
    meta mark set 13 goto refuse
}
""").substitute(VALUES)
"""Where a bridge shows frames to the guard."""

JUDGE = Template("""\
chain pass { meta mark set meta mark | ${guest} accept; }
chain refuse {
    update @dropped { iifname . meta mark }
    drop
}
chain guest {
    @nh,0,8 0x45 iifname . @ll,48,64 . @nh,96,32 @flow4 goto ip_up
    @nh,0,8 0x60 iifname . @ll,48,64 . @nh,64,128 @flow6 goto ip6_up
    iifname . @ll,48,48 @mac ether type vmap { ip : goto ip_in, ip6 : goto ip6_in, arp : goto arp_in, \
8021q : goto tagged, 0x8035 : goto rarp_in }
    iifname @open goto pass
    iifname . @ll,48,48 @mac meta mark set 2 goto refuse
    meta mark set 1 goto refuse
}
chain tagged {
    iifname . vlan id @vlans vlan type { ip, arp, ip6 } goto pass
    meta mark set 3 goto refuse
}
chain rarp_in {
    ether daddr ff:ff:ff:ff:ff:ff @nh,0,64 0x0001080006040003 iifname . @nh,64,48 @mac \
iifname . @nh,144,48 @mac @nh,112,32 0 goto pass
    meta mark set 4 goto refuse
}
chain arp_in {
    @nh,0,64 != { 0x0001080006040001, 0x0001080006040002 } meta mark set 4 goto refuse
    iifname . @nh,64,48 != @mac meta mark set 4 goto refuse
    iifname . @nh,112,32 @own4 goto pass
    iifname . @nh,112,32 @net4 goto pass
    @nh,112,32 0 goto arp_probe
    iifname @loose iifname . @nh,112,32 != @not4 goto pass
    meta mark set 4 goto refuse
}
chain arp_probe {
    arp operation request iifname . @nh,192,32 @own4 goto pass
    arp operation request iifname . @nh,192,32 @net4 goto pass
    arp operation request iifname @loose iifname . @nh,192,32 != @not4 goto pass
    meta mark set 4 goto refuse
}
chain ip_in {
    ip version != 4 meta mark set 14 goto refuse
    ip hdrlength != 5 goto ip_options
    iifname . @nh,96,32 @own4 goto ip_up
    goto ip_other
}
chain ip_options {
    ip hdrlength != 6 meta mark set 14 goto refuse
    @nh,160,32 != 0x94040000 meta mark set 14 goto refuse
    iifname . @nh,96,32 @own4 goto ip_up
    goto ip_other
}
chain ip_other {
    iifname . @nh,96,32 @net4 goto ip_up
    ip saddr 0.0.0.0 goto ip_zero
    iifname @loose iifname . @nh,96,32 != @not4 ip saddr != { 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 } goto ip_up
    meta mark set 5 goto refuse
}
chain ip_zero {
    ip daddr 255.255.255.255 udp sport 68 udp dport 67 goto udp4
    ip daddr 224.0.0.0/4 ip protocol igmp goto igmp_in
    meta mark set 5 goto refuse
}
chain ip_up {
    @nh,72,8 17 @th,16,16 != 67-68 @th,0,16 != 67 meta mark set meta mark | ${guest} accept
    @nh,72,8 6 meta mark set meta mark | ${guest} accept
    ip protocol vmap { udp : goto udp4, icmp : goto icmp_in, igmp : goto igmp_in, 103 : goto query }
    meta l4proto != 255 goto pass
    meta mark set 14 goto refuse
}
chain udp4 {
    ip frag-off & 0x1fff != 0 goto pass
    udp dport 67 udp sport 68 @th,64,8 1 @th,80,8 6 @th,256,32 0 iifname . @th,288,48 @mac goto pass
    iifname @dhcp_server udp dport 0-65535 goto pass
    meta mark set 7 goto refuse
}
chain icmp_in {
    icmp type { 3, 4, 11, 12 } goto error4
    icmp type != { redirect, router-advertisement } goto pass
    ip frag-off & 0x1fff != 0 goto pass
    iifname @router icmp type { redirect, router-advertisement } goto pass
    meta mark set 8 goto refuse
}
chain error4 {
    iifname . @th,192,32 @own4 goto pass
    iifname . @th,192,32 @net4 goto pass
    iifname @router goto pass
    iifname @loose iifname . @th,192,32 != @not4 goto pass
    meta mark set 23 goto refuse
}
chain igmp_in {
    igmp type { 0x12, 0x16, 0x17, 0x22 } ip frag-off & 0x3fff == 0 goto pass
    goto query
}
chain query {
    iifname @querier meta l4proto != 255 goto pass
    meta mark set 9 goto refuse
}
chain ip6_in {
    ip6 version != 6 meta mark set 14 goto refuse
    iifname . @nh,64,128 @own6 goto ip6_up
    iifname . @nh,64,128 @net6 goto ip6_up
    ip6 saddr fe80::/10 goto local6
    ip6 saddr :: goto zero6
    iifname @loose iifname . @nh,64,128 != @not6 ip6 saddr != { ::/64, ff00::/8 } goto ip6_up
    meta mark set 6 goto refuse
}
chain local6 {
    jump local6_own
    goto ip6_up
}
chain local6_own {
    iifname . @nh,64,128 @not6 meta mark set 12 goto refuse
    meta mark set iifname map @zone
    meta mark . @nh,64,128 @advertised meta mark set 12 goto refuse
    iifname . @nh,64,128 != @learned jump local6_new
    meta mark set iifname map @zone
    update @claimed { meta mark . @nh,64,128 } update @learned { iifname . @nh,64,128 } meta mark set 0 return
    meta mark set 12 goto refuse
}
chain local6_new {
    @nh,152,16 0xfffe meta mark set 12 goto refuse
    meta mark set iifname map @zone
    meta mark . @nh,64,128 @claimed meta mark set 12 goto refuse
    update @claims { iifname limit rate over ${rate}/hour burst ${rate} packets } meta mark set 12 goto refuse
}
chain target6 {
    iifname . @th,64,128 @own6 return
    @th,64,16 & 0xffc0 == 0xfe80 goto target6_own
    iifname @loose iifname . @th,64,128 != @not6 return
    iifname . @th,64,128 @net6 return
    meta mark set 11 goto refuse
}
chain target6_own {
    iifname . @th,64,128 @not6 meta mark set 12 goto refuse
    meta mark set iifname map @zone
    meta mark . @th,64,128 @advertised meta mark set 12 goto refuse
    iifname . @th,64,128 != @learned jump target6_new
    meta mark set iifname map @zone
    update @claimed { meta mark . @th,64,128 } update @learned { iifname . @th,64,128 } meta mark set 0 return
    meta mark set 12 goto refuse
}
chain target6_new {
    @th,152,16 0xfffe meta mark set 12 goto refuse
    meta mark set iifname map @zone
    meta mark . @th,64,128 @claimed meta mark set 12 goto refuse
    update @claims { iifname limit rate over ${rate}/hour burst ${rate} packets } meta mark set 12 goto refuse
}
chain zero6 {
    ip6 nexthdr 0 goto hop6
    ip6 nexthdr != 58 meta mark set 6 goto refuse
    icmpv6 type nd-router-solicit ip6 hoplimit 255 icmpv6 code 0 ip6 length 8 goto pass
    icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 icmpv6 code 0 ip6 daddr ff02::1:ff00:0/104 goto dad6
    meta mark set 6 goto refuse
}
chain dad6 {
    ip6 length 24 jump target6
    ip6 length 24 goto pass
    ip6 length 32 @th,192,16 0x0e01 jump target6
    ip6 length 32 @th,192,16 0x0e01 goto pass
    meta mark set 11 goto refuse
}
chain ip6_up {
    @nh,48,8 6 meta mark set meta mark | ${guest} accept
    @nh,48,8 17 goto udp6
    ip6 nexthdr vmap { 6 : goto pass, 17 : goto udp6, 58 : goto icmp6, 0 : goto hop6, 44 : goto fragment6, \
103 : goto query, 4 : goto pass, 33 : goto pass, 41 : goto pass, 46 : goto pass, 47 : goto pass, 50 : goto pass, \
51 : goto ah6, 59 : goto pass, 88 : goto pass, 89 : goto pass, 97 : goto pass, 108 : goto pass, 112 : goto pass, \
115 : goto pass, 132 : goto pass, 136 : goto pass, 137 : goto pass }
    meta mark set 10 goto refuse
}
chain ah6 {
    meta l4proto vmap { 6 : goto pass, 17 : goto udp6, 47 : goto pass, 50 : goto pass, 89 : goto pass, \
112 : goto pass, 132 : goto pass }
    meta mark set 10 goto refuse
}
chain udp6 {
    udp dport 546 goto dhcp6
    udp sport 547 goto dhcp6
    udp dport 547 goto ask6
    udp dport 0-65535 goto pass
    meta mark set 10 goto refuse
}
chain ask6 {
    @th,64,8 { 1, 3-6, 8-9, 11 } goto pass
    goto dhcp6
}
chain dhcp6 {
    iifname @dhcp_server goto pass
    meta mark set 7 goto refuse
}
chain hop6 {
    hbh hdrlength != 0 meta mark set 10 goto refuse
    hbh nexthdr != 58 meta mark set 10 goto refuse
    icmpv6 type { 131, 132, 143 } goto pass
    icmpv6 type { 130, 151, 152, 153 } goto query
    meta mark set 10 goto refuse
}
chain fragment6 {
    frag frag-off != 0 goto pass
    ip6 length < 16 meta mark set 16 goto refuse
    frag nexthdr 6 tcp dport 0-65535 goto pass
    frag nexthdr 17 goto udp6
    frag nexthdr 58 icmpv6 type { 1-4 } goto error6
    frag nexthdr 58 icmpv6 type { 128, 129 } goto pass
    frag nexthdr { 47, 50, 88, 89, 132, 136 } meta l4proto { 47, 50, 88, 89, 132, 136 } goto pass
    meta mark set 16 goto refuse
}
chain icmp6 {
    icmpv6 type vmap { 1-4 : goto error6, 128-129 : goto pass, 133 : goto solicit6, 134 : goto advertise6, \
135 : goto neighbour6, 136 : goto neighbour6, 137 : goto advertise6 }
    icmpv6 type { 130, 151, 152, 153 } goto query
    meta mark set 15 goto refuse
}
chain error6 {
    iifname . @th,256,128 @own6 goto pass
    iifname . @th,256,128 @net6 goto pass
    iifname . @th,256,128 @learned goto pass
    iifname @router goto pass
    iifname @loose iifname . @th,256,128 != @not6 goto pass
    meta mark set 23 goto refuse
}
chain advertise6 {
    iifname @router ip6 hoplimit 255 goto pass
    meta mark set 8 goto refuse
}
chain solicit6 {
    ip6 hoplimit != 255 meta mark set 11 goto refuse
    ip6 length 8 goto pass
    ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @mac goto pass
    meta mark set 11 goto refuse
}
chain neighbour6 {
    ip6 hoplimit != 255 meta mark set 11 goto refuse
    icmpv6 code != 0 meta mark set 11 goto refuse
    icmpv6 type nd-neighbor-advert jump target6
    ip6 length 24 goto pass
    ip6 length 32 icmpv6 type nd-neighbor-solicit @th,192,16 0x0101 iifname . @th,208,48 @mac goto pass
    ip6 length 32 icmpv6 type nd-neighbor-advert @th,192,16 0x0201 iifname . @th,208,48 @mac goto pass
    meta mark set 11 goto refuse
}
""").substitute(VALUES)
"""The chain ``guest`` and all that it goes to. A frame is known by the port that it came in by."""

TEXT = SETS + HOOKS + JUDGE


PASS = f"meta mark set meta mark | {GUEST:#x} accept"
COUNTED = f"meta mark set meta mark | {GUEST:#x} goto budget"


def with_budget(text: str, limits: str) -> str:
    """The guard's *text*, with what it lets pass counted where *limits* have something to count."""
    return (text.replace(PASS, COUNTED) if "chain budget {" in limits else text) + limits


def guard_table(outside: Iterable[tuple[str, str]] = (), groups: str = "", limits: str = "") -> NftTable:
    """The guard of this network namespace; the same text whatever NICs there are.

    ``groups``: chains of the document's groups and tenants, which stand and fall with the guard.
    ``limits``: those of abuse limits (``policy/limits.py``), likewise.

    ``outside``: (device, its bridge) of ports that lead to somebody else's segment. Routers that
    advertise themselves there keep their link-local addresses, though nobody declared them.
    """
    return NftTable(name=TABLE, text=with_budget(TEXT, limits) + advertisers(outside) + groups)


def advertisers(outside: Iterable[tuple[str, str]]) -> str:
    """The chain that remembers routers outside; '' where there is no such port."""
    rules = [f"    iifname \"{device}\" icmpv6 type nd-router-advert {words}" for device, bridge in sorted(outside)
             for words in (f"meta mark set {zone_of(bridge):#x} update @advertised {{ meta mark . @nh,64,128 }}",
                           "meta mark set 0")]
    head = f"    type filter hook prerouting priority {PRIORITY}; policy accept;"
    return "\n".join(("chain advertisers {", head, *rules, "}", "")) if rules else ""


def nic_guard(tap: str, level: str, macs: Iterable[str], addresses: Iterable[str],
              prefixes: Iterable[str] = (), vlans: Iterable[int] = (), roles: Iterable[str] = (),
              bridge: str = "", protected: Iterable[str] = (), table: str = TABLE) -> NicGuard:
    """The guard of one NIC, complete and canonical.

    ``level``: full, mac, or open (also spelled off). ``addresses`` and ``prefixes``: hosts or
    networks, IPv4 and IPv6. ``bridge``: the NIC's network. ``protected``: addresses of the host and
    of gateways there. ``table``: the guard's, by the kind of the port. The EUI-64 link-locals of *macs*
    are added. Raises ValueError for a group MAC, a VLAN outside 1-4094, or an unknown level or role.
    """
    level = {"off": "open"}.get(level, level)
    if level not in ("full", "mac", "open"):
        raise ValueError(f"guard level {level!r} is not full, mac or open")
    if level == "open":
        return NicGuard(name=tap, table=table, level=level, macs=(), addresses=(), prefixes=(), vlans=(),
                        roles=(), forbidden=(), zone=zone_of(bridge))
    own_macs = tuple(sorted({unicast(m) for m in macs}))
    hosts, nets = split_hosts((*addresses, *prefixes))
    hosts.update(map(own_link_local, own_macs))
    if unknown := set(roles) - ROLES.keys():
        raise ValueError(f"no role {', '.join(sorted(unknown))}: the roles are {', '.join(ROLES)}")
    if wrong := [v for v in vlans if not 1 <= v <= 4094]:
        raise ValueError(f"VLAN id {wrong[0]} is not within 1-4094")
    return NicGuard(
        name=tap, table=table, level=level, macs=own_macs, addresses=in_order(hosts),
        prefixes=tuple(str(n) for n in nets),
        vlans=tuple(sorted(set(vlans))), roles=tuple(sorted(set(roles))),
        forbidden=in_order(forbidden_to(level, tuple(protected)) - hosts), zone=zone_of(bridge))


def zone_of(bridge: str) -> int:
    """Number of a network for the set of claimed link-locals; 0 is never one."""
    return crc32(bridge.encode()) or 1


def link_local(mac: str) -> IPv6Address:
    """The EUI-64 link-local address of a MAC (RFC 4291, appendix A)."""
    return IPv6Address(own_link_local(mac)[1])


def own_link_local(mac: str) -> HostNumber:
    b = bytes.fromhex(mac.replace(":", ""))
    return 6, int.from_bytes(b"\xfe\x80" + bytes(6) + bytes((b[0] ^ 2, b[1], b[2], 0xFF, 0xFE)) + b[3:], "big")


@cache
def forbidden_to(level: str, protected: tuple[str, ...]) -> frozenset[HostNumber]:
    """Which of *protected* need an entry: a full guard refuses all but unbound link-locals by itself."""
    found = {ip_address(a) for a in protected}
    if level == "full":
        found = {a for a in found if isinstance(a, IPv6Address) and a.is_link_local and not is_eui64(a)}
    return frozenset((a.version, int(a)) for a in found)


def is_eui64(address: IPv6Address) -> bool:
    return address.packed[11:13] == b"\xff\xfe"


def unicast(mac: str) -> str:
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac} is a group address, no NIC's own")
    return mac.lower()


def split_hosts(sources: Iterable[str]) -> tuple[set[HostNumber], list[IPv4Network | IPv6Network]]:
    """Host addresses, and the fewest prefixes that cover the rest (a set refuses overlaps), in order."""
    hosts: set[HostNumber] = set()
    nets: list[IPv4Network | IPv6Network] = []
    for text in sources:
        if "/" not in text:
            hosts.add(parse(text))
            continue
        net = ip_network(text, strict=False)
        if net.prefixlen == net.max_prefixlen:
            hosts.add((net.version, int(net.network_address)))
        else:
            nets.append(net)
    if not nets:
        return hosts, nets
    return hosts, [*collapse_addresses([n for n in nets if isinstance(n, IPv4Network)]),
                   *collapse_addresses([n for n in nets if isinstance(n, IPv6Network)])]


def in_order(hosts: Iterable[HostNumber]) -> tuple[str, ...]:
    """Addresses as text, IPv4 first, by number: the order that NicGuard is compared in."""
    return tuple(text6(value) if version == 6 else ".".join(map(str, value.to_bytes(4, "big")))
                 for version, value in sorted(hosts))
