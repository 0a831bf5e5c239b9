"""What rules may ask of a packet: fields of headers, and the words that nft has for their values. Pure.

Offsets in bits; headers of RFC 826, 791, 8200, 9293, 768, 792, 4443, 2236 and IEEE 802.1Q.
"""
from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

from kvmnet.doctor.packet import ARP, IPV4, IPV6, STATES, Header


class Field(NamedTuple):
    header: Header
    offset: int
    length: int
    type: str = "integer"


PORTS = {"sport": Field("th", 0, 16, "inet_service"), "dport": Field("th", 16, 16, "inet_service")}
FIELDS: Mapping[str, Mapping[str, Field]] = {
    "ether": {"daddr": Field("ll", 0, 48, "ether_addr"), "saddr": Field("ll", 48, 48, "ether_addr"), "type": Field("ll", 96, 16, "ether_type")},
    "vlan": {"pcp": Field("ll", 112, 3), "dei": Field("ll", 115, 1), "cfi": Field("ll", 115, 1), "id": Field("ll", 116, 12),
             "type": Field("ll", 128, 16, "ether_type")},
    "arp": {"htype": Field("nh", 0, 16), "ptype": Field("nh", 16, 16, "ether_type"), "hlen": Field("nh", 32, 8), "plen": Field("nh", 40, 8),
            "operation": Field("nh", 48, 16, "arp_op"), "saddr ether": Field("nh", 64, 48, "ether_addr"), "saddr ip": Field("nh", 112, 32, "ipv4_addr"),
            "daddr ether": Field("nh", 144, 48, "ether_addr"), "daddr ip": Field("nh", 192, 32, "ipv4_addr")},
    "ip": {"version": Field("nh", 0, 4), "hdrlength": Field("nh", 4, 4), "dscp": Field("nh", 8, 6, "dscp"), "ecn": Field("nh", 14, 2, "ecn"),
           "length": Field("nh", 16, 16), "id": Field("nh", 32, 16), "frag-off": Field("nh", 48, 16), "ttl": Field("nh", 64, 8),
           "protocol": Field("nh", 72, 8, "inet_proto"), "checksum": Field("nh", 80, 16), "saddr": Field("nh", 96, 32, "ipv4_addr"),
           "daddr": Field("nh", 128, 32, "ipv4_addr")},
    "ip6": {"version": Field("nh", 0, 4), "dscp": Field("nh", 4, 6, "dscp"), "ecn": Field("nh", 10, 2, "ecn"), "flowlabel": Field("nh", 12, 20),
            "length": Field("nh", 32, 16), "nexthdr": Field("nh", 48, 8, "inet_proto"), "hoplimit": Field("nh", 56, 8),
            "saddr": Field("nh", 64, 128, "ipv6_addr"), "daddr": Field("nh", 192, 128, "ipv6_addr")},
    "tcp": {**PORTS, "sequence": Field("th", 32, 32), "ackseq": Field("th", 64, 32), "doff": Field("th", 96, 4), "reserved": Field("th", 100, 4),
            "flags": Field("th", 104, 8, "tcp_flag"), "window": Field("th", 112, 16), "checksum": Field("th", 128, 16), "urgptr": Field("th", 144, 16)},
    "udp": {**PORTS, "length": Field("th", 32, 16), "checksum": Field("th", 48, 16)},
    "udplite": {**PORTS, "checksum": Field("th", 48, 16)},
    "sctp": {**PORTS, "vtag": Field("th", 32, 32), "checksum": Field("th", 64, 32)},
    "dccp": dict(PORTS),
    "th": dict(PORTS),
    "icmp": {"type": Field("th", 0, 8, "icmp_type"), "code": Field("th", 8, 8, "icmp_code"), "checksum": Field("th", 16, 16), "id": Field("th", 32, 16),
             "sequence": Field("th", 48, 16), "gateway": Field("th", 32, 32), "mtu": Field("th", 48, 16)},
    "icmpv6": {"type": Field("th", 0, 8, "icmpv6_type"), "code": Field("th", 8, 8, "icmpv6_code"), "checksum": Field("th", 16, 16),
               "id": Field("th", 32, 16), "sequence": Field("th", 48, 16), "mtu": Field("th", 32, 32), "parameter-problem": Field("th", 32, 32),
               "max-delay": Field("th", 32, 16), "taddr": Field("th", 64, 128, "ipv6_addr")},
    "igmp": {"type": Field("th", 0, 8, "igmp_type"), "mrt": Field("th", 8, 8), "checksum": Field("th", 16, 16), "group": Field("th", 32, 32, "ipv4_addr")},
    "esp": {"spi": Field("th", 0, 32), "sequence": Field("th", 32, 32)},
}
PROTOCOLS = {"tcp": 6, "udp": 17, "udplite": 136, "sctp": 132, "dccp": 33, "icmp": 1, "icmpv6": 58, "igmp": 2, "esp": 50, "ah": 51, "comp": 108,
             "ipv6-icmp": 58, "gre": 47, "ipip": 4, "ipv6": 41, "ipv6-route": 43, "ipv6-frag": 44, "ipv6-nonxt": 59, "ipv6-opts": 60, "ip": 0, "hopopt": 0,
             "ospf": 89, "vrrp": 112, "pim": 103, "l2tp": 115}
"""Names of upper protocols: nft's own, and those of /etc/protocols that its listings show."""
EXTENSION_HEADERS = {"hbh": 0, "rt": 43, "frag": 44, "ah": 51, "dst": 60, "mh": 135}
CLASSES = {"cs0": 0, "cs1": 8, "cs2": 16, "cs3": 24, "cs4": 32, "cs5": 40, "cs6": 48, "cs7": 56, "df": 0, "be": 0, "lephb": 1, "af11": 10, "af12": 12, "af13": 14,
           "af21": 18, "af22": 20, "af23": 22, "af31": 26, "af32": 28, "af33": 30, "af41": 34, "af42": 36, "af43": 38, "va": 44, "ef": 46}
WORDS: Mapping[str, Mapping[str, int]] = {
    "inet_proto": PROTOCOLS,
    "ether_type": {"ip": IPV4, "arp": ARP, "ip6": IPV6, "8021q": 0x8100, "vlan": 0x8100, "8021ad": 0x88A8},
    "arp_op": {"request": 1, "reply": 2, "rrequest": 3, "rreply": 4, "inrequest": 8, "inreply": 9, "nak": 10},
    "icmp_type": {"echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8, "router-advertisement": 9,
                  "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14,
                  "info-request": 15, "info-reply": 16, "address-mask-request": 17, "address-mask-reply": 18},
    "icmp_code": {"net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3, "frag-needed": 4, "net-prohibited": 9,
                  "host-prohibited": 10, "admin-prohibited": 13},
    "icmpv6_type": {"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo-request": 128, "echo-reply": 129,
                    "mld-listener-query": 130, "mld-listener-report": 131, "mld-listener-done": 132, "mld-listener-reduction": 132,
                    "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137,
                    "router-renumbering": 138, "ind-neighbor-solicit": 141, "ind-neighbor-advert": 142, "mld2-listener-report": 143},
    "icmpv6_code": {"no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4, "policy-fail": 5, "reject-route": 6},
    "igmp_type": {"membership-query": 0x11, "membership-report-v1": 0x12, "membership-report-v2": 0x16, "membership-report-v3": 0x22, "leave-group": 0x17},
    "tcp_flag": {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128},
    "dscp": CLASSES, "ecn": {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3},
    "ct_state": STATES, "ct_dir": {"original": 0, "reply": 1},
    "ct_status": {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "seq-adjust": 64, "snat-done": 128,
                  "dnat-done": 256, "dying": 512, "fixed-timeout": 1024},
    "pkt_type": {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3},
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "iface_type": {"ether": 1, "ppp": 512, "ipip": 768, "ipip6": 769, "loopback": 772, "sit": 776, "ipgre": 778},
    "fib_addrtype": {"unspec": 0, "unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5, "blackhole": 6, "unreachable": 7, "prohibit": 8},
    "boolean": {"exists": 1, "missing": 0},
    "devgroup": {"default": 0},
}
"""Type -> the words that nft prints for its values (nft describe TYPE)."""
BITMASKS = frozenset({"ct_state", "ct_status", "tcp_flag", "ct_label"})
NAMES = frozenset({"ifname", "string", "iface_index"})
"""Types whose values are text; interface indexes are printed as names."""
META_TYPES = {
    "iifname": "ifname", "oifname": "ifname", "iif": "ifname", "oif": "ifname", "sdifname": "ifname", "sdif": "ifname", "ibrname": "ifname", "obrname": "ifname", "ibridgename": "ifname",
    "obridgename": "ifname", "mark": "mark", "protocol": "ether_type", "nfproto": "nf_proto", "l4proto": "inet_proto", "length": "integer",
    "pkttype": "pkt_type", "iiftype": "iface_type", "oiftype": "iface_type", "priority": "classid", "skuid": "uid", "iifgroup": "devgroup",
    "oifgroup": "devgroup", "iifkind": "string", "oifkind": "string",
}
CT_TYPES = {"state": "ct_state", "status": "ct_status", "mark": "mark", "zone": "integer", "direction": "ct_dir", "l3proto": "nf_proto",
            "protocol": "inet_proto", "proto-src": "inet_service", "proto-dst": "inet_service", "ip saddr": "ipv4_addr", "ip daddr": "ipv4_addr",
            "ip6 saddr": "ipv6_addr", "ip6 daddr": "ipv6_addr"}
WIDTHS = {"ipv4_addr": 32, "ipv6_addr": 128, "ether_addr": 48, "inet_service": 16, "mark": 32, "ether_type": 16, "inet_proto": 8}


def scalar(text: object, kind: str) -> int | str | None:
    """A value as nft's JSON spells it; None for a word that is not known here."""
    if isinstance(text, bool):
        return int(text)
    if isinstance(text, int):
        return text
    if not isinstance(text, str):
        return None
    if kind in NAMES:
        return text
    if (word := WORDS.get(kind, {}).get(text)) is not None:
        return word
    try:
        if kind in ("ipv4_addr", "ipv6_addr"):
            return int(ip_address(text))
        return int(text.replace(":", ""), 16) if kind == "ether_addr" and ":" in text else int(text, 0)
    except ValueError:
        return None
