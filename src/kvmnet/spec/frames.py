"""Which frames a mirror copies: expressions and fields as one condition. Pure."""
from __future__ import annotations

from kvmnet.bpf import language, tree
from kvmnet.bpf.tree import Node, every, some
from kvmnet.spec.mirrors import Frames

FOUND = 0xFFFF_FFFF
"""What a classifier returns for a frame that it takes (cls_bpf_classify() in net/sched/cls_bpf.c)."""


def condition(wish: Frames) -> Node:
    """Any of the kinds, and each of the rest."""
    kinds: list[Node] = []
    for number, ports in ((tree.TCP, wish.tcp), (tree.UDP, wish.udp)):
        kinds += [of_ports(number, span) for span in ports or ()]
    if wish.icmp:
        kinds += [tree.protocol4(tree.ICMP), tree.protocol6(tree.ICMP6)]
    if wish.arp:
        kinds.append(tree.ethertype(tree.ARP))
    kinds += map(tree.protocol, wish.protocol or ())
    rest = [language.parse(wish.expression)] if wish.expression else []
    rest += [some(*(tree.network("", prefix) for prefix in wish.hosts))] if wish.hosts else []
    rest += [some(*(tree.mac("", address) for address in wish.macs))] if wish.macs else []
    rest += [some(*map(tree.vlan, wish.vlans))] if wish.vlans else []
    return every(*([some(*kinds)] if kinds else []), *rest)


def of_ports(number: int, span: str) -> Node:
    first, _, last = span.partition("-")
    if (int(first), int(last or first)) in ((0, 65535), (1, 65535)):
        return tree.protocol(number)
    return tree.ports("", int(first), int(last or first), (number,))
