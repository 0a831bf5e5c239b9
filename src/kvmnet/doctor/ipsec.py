"""Policies of IPsec, as ``ip xfrm policy show`` prints them: what they lose, and what they want encrypted (net/xfrm/xfrm_policy.c). Pure.

A packet meets the policies of its direction in the order of their priorities: out where it leaves, in where the host takes it, fwd where it is
sent on. Associations and keys are not read: whether an encrypted packet arrives nobody can tell from here.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from itertools import pairwise

from kvmnet.doctor.finding import Certainty
from kvmnet.doctor.packet import ICMP, ICMP6, TCP, UDP, Packet
from kvmnet.doctor.trip import Trip
from kvmnet.records import dataclass

PROTOCOLS: Mapping[str, int] = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "ipv6-icmp": ICMP6}
SELECTOR = re.compile(r"^src (\S+) dst (\S+)(.*)$")


@dataclass(frozen=True, slots=True)
class Policy:
    source: str
    target: str
    more: Mapping[str, str]
    """proto, sport, dport, dev ... of the selector."""
    direction: str
    """in, out or fwd."""
    blocks: bool
    encrypts: bool
    priority: int
    text: str

    @property
    def end(self) -> str:
        """Command that takes it away."""
        return f"ip xfrm policy delete dir {self.direction} src {self.source} dst {self.target}{''.join(f' {k} {v}' for k, v in self.more.items())}"

    def wants(self, packet: Packet) -> bool | None:
        """Whether the packet is one of its; None where it asks for what is not judged here."""
        for network, address in ((self.source, packet.source), (self.target, packet.target)):
            if ip_address(address) not in ip_network(network, strict=False):
                return False
        known: bool | None = True
        for word, value in self.more.items():
            number = PROTOCOLS.get(value, int(value) if value.isdigit() else -1)
            if word == "proto" and number >= 0:
                held: bool | None = packet.upper is not None and packet.upper[0] == number
            elif word in ("sport", "dport") and value.isdigit():
                held = packet.ports[word == "dport"] == int(value)
            else:
                held = None
            if held is False:
                return False
            known = None if held is None else known
        return known


def policies(text: str) -> list[Policy]:
    """In the order in which the kernel asks them; those of single sockets left out."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if SELECTOR.match(line):
            found.append([])
        if found:
            found[-1].append(line)
    return sorted((p for block in found if (p := policy(block))), key=lambda p: p.priority)


def policy(lines: list[str]) -> Policy | None:
    head = SELECTOR.match(lines[0])
    words = lines[1].split() if len(lines) > 1 else []
    if head is None or words[:1] != ["dir"]:
        return None
    rest = head[3].split()
    after = dict(pairwise(words))
    return Policy(head[1], head[2], dict(zip(rest[::2], rest[1::2], strict=False)), after["dir"], after.get("action") == "block",
                  any(line.strip().startswith("tmpl") for line in lines), int(after.get("priority", 0)), " ".join(" ".join(lines).split()))


def forwarded(trip: Trip) -> None:
    """What policies do with a packet that is sent on, before NAT: one that blocks what leaves is asked for here (xfrm4_route_forward()), one
    that encrypts once more behind NAT, with the addresses that it has then (nf_xfrm_me_harder())."""
    judged(trip, "fwd")
    if any(p.direction == "out" and p.blocks for p in policies(str(trip.scene.facts.get("xfrm") or ""))):
        judged(trip, "out")


def judged(trip: Trip, direction: str) -> None:
    """What the policies of a direction do with the packet."""
    packet = trip.packet
    if not packet.source or not packet.target:
        return
    for found in policies(str(trip.scene.facts.get("xfrm") or "")):
        if found.direction != direction or (wanted := found.wants(packet)) is False:
            continue
        if found.blocks or found.encrypts:
            trip.hop("ipsec", "ipsec", f"policy {direction}: {found.source} to {found.target}")
            told(trip, found, sure=wanted is True)
        if wanted:
            return


def told(trip: Trip, found: Policy, *, sure: bool) -> None:
    shown = f"ip xfrm policy show: {found.text}"
    if found.blocks:
        trip.blocks("ipsec-policy", "ipsec", f"a policy of IPsec drops it (dir {found.direction}, action block)", "policies stand beside routes and firewalls, and no rule of either shows them", shown,
                    fix=(found.end,), certainty=Certainty.PROVED if sure else Certainty.UNKNOWN)
    elif found.direction == "out":
        trip.blocks("ipsec-policy", "ipsec", "a policy of IPsec wants it encrypted; whether the other end takes it is not seen from here", "without an association (ip xfrm state) it is lost", shown, certainty=Certainty.UNKNOWN)
    else:
        trip.blocks("ipsec-policy", "ipsec", f"a policy of IPsec takes it only when it came encrypted (dir {found.direction})", "what comes in clear is dropped, and counted as XfrmInNoPols or XfrmInTmplMismatch in /proc/net/xfrm_stat", shown,
                    certainty=Certainty.LIKELY if sure and trip.scene.kind(trip.context.iif) == "bridge" else Certainty.UNKNOWN)
