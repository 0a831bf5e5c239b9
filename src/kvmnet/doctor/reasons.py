"""Reasons for which the kernel drops packets (include/net/dropreason-core.h), in words, and the findings that each confirms. Pure."""
from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "NETFILTER_DROP": (("rule-drop", "arp-drop", "bridge-netfilter", "guest-firewall", "rule-unknown"), "a rule of a firewall (or conntrack, whose table may be full) dropped it"),
    "IP_RPFILTER": (("reverse-path",), "the way back to its source does not lead to the device that it came by (rp_filter)"),
    "IP_LOCAL_SOURCE": (("reverse-path",), "its source is an address of this host itself, and it came from outside"),
    "IP_INVALID_SOURCE": (("reverse-path",), "its source is no address that may send (0.0.0.0, a group, loopback)"),
    "IP_LOCALNET": (("loopback-target",), "it is for 127.0.0.0/8 and came by a device without route_localnet"),
    "IP_INNOROUTES": (("no-route", "forwarding-off"), "the host has no route for it, or does not forward what comes by this device"),
    "IP_INADDRERRORS": (("no-route", "route-error", "forwarding-off"), "it is for another host, and this one does not forward, or a route says so"),
    "IP_OUTNOROUTES": (("no-route", "route-error"), "the host has no route to send it by"),
    "IP_NOPROTO": ((), "no protocol of the host takes it"),
    "NEIGH_FAILED": (("neighbour-silent", "gateway-silent"), "nobody answered for its next hop (ARP, neighbour discovery)"),
    "NEIGH_QUEUEFULL": (("neighbour-silent", "gateway-silent"), "too many packets wait for an answer of its next hop"),
    "NEIGH_CREATEFAIL": (("neighbour-table",), "the table of neighbours is full"),
    "NEIGH_DEAD": ((), "the entry of its next hop was being removed"),
    "TC_INGRESS": (("tc-filter",), "a filter of tc at the ingress of a device dropped it"),
    "TC_EGRESS": (("tc-filter",), "a filter of tc at the egress of a device dropped it"),
    "QDISC_DROP": (("tc-filter",), "a queue of a device dropped it"),
    "XDP": (("xdp-program",), "an XDP program at a device dropped it"),
    "NO_SOCKET": (("nobody-listens",), "no program listens there"),
    "OTHERHOST": ((), "its destination MAC is not that of the device that it came by"),
    "UNHANDLED_PROTO": ((), "no part of the kernel took it: the device that it came by is in no bridge, and has no IP"),
    "PKT_TOO_BIG": (("mtu-island", "way-out-mtu"), "it is larger than the way takes"),
    "DEV_READY": (("link-down", "port-down"), "the device is down"),
    "FULL_RING": (("tap-idle", "queue-too-small", "guest-stopped"), "the queue of the device is full: nobody takes packets out of it"),
    "CPU_BACKLOG": (("backlog-overflow",), "the backlog of the processor is full"),
    "SOCKET_RCVBUFF": ((), "the buffer of the socket is full: the program does not read"),
    "IP_CSUM": ((), "the checksum of its IP header is wrong"),
    "TCP_CSUM": ((), "its TCP checksum is wrong"),
    "UDP_CSUM": ((), "its UDP checksum is wrong"),
    "XFRM_POLICY": ((), "a policy of IPsec does not let it pass in clear"),
    "BRIDGE_INGRESS_STP_STATE": (("port-state",), "the port that it came by is not forwarding"),
    "MAC_INVALID_SOURCE": ((), "its source MAC is none that may send"),
    "SOCKET_FILTER": ((), "a filter of the socket that takes it said no"),
    "IPV6DISABLED": ((), "IPv6 is disabled on the device that it came by"),
    "NOMEM": ((), "there was no memory for it"),
    "NOT_SPECIFIED": ((), "the kernel gives no reason"),
}
"""Reason -> (codes of findings that it confirms, what it means)."""


def meaning(reason: str) -> str:
    return REASONS.get(reason, ((), ""))[1]


def confirms(reason: str, code: str) -> bool:
    return code in REASONS.get(reason, ((), ""))[0]
