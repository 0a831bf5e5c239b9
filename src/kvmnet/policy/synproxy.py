"""TCP connections from outside that the host answers in a guest's place until their beginner has answered (synproxy). Pure.

A SYN leaves nothing behind: it is not tracked, and its answer carries in the sequence number, and in the time stamp, all that must be
known later (a SYN cookie, net/netfilter/nf_synproxy_core.c). When the right number comes back the host sends the guest the SYN itself,
under the beginner's address, and from then on only moves sequence numbers.

What is not tracked is new to connection tracking, or invalid to one that takes up no flow in its midst (nf_conntrack_tcp_loose=0):
both go the same way, so that this setting, on which other flows of the host hang, stays as it is. The chain stands behind priority
filter: the host's own rules and the firewall of the host see what comes before it is answered.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass, field
from kvmnet.spec.limits import proxied

RAW, BEHIND = -300, 10
"""Priorities: before connection tracking; behind ``filter``."""
BEGINS, GOES_ON = "tcp flags & (fin | syn | rst | ack) == syn", "tcp flags & (fin | syn | rst | ack) == ack"
HEADERS = {4: 40, 6: 60}
"""Bytes of an IP header and one of TCP without options: what the MTU has more than the MSS."""


@dataclass(slots=True)
class Proxied:
    """(IP version, MSS, window scale) -> elements ``device . address . port``."""

    elements: Mapping[tuple[int, int, int], set[str]] = field(default_factory=dict)

    def sets(self) -> Iterator[str]:
        for (version, mss, scale), found in sorted(self.elements.items()):
            kind = "ipv4_addr" if version == 4 else "ipv6_addr"
            yield "\n".join((f"set {name_of(version, mss, scale)} {{", f"type ifname . {kind} . inet_service", "flags interval",
                             f"elements = {{ {', '.join(sorted(found))} }}", "}"))

    def chains(self) -> Iterator[str]:
        keys = sorted(self.elements)
        yield "\n".join(("chain beginning {", f"type filter hook prerouting priority {RAW}; policy accept;",
                         *(f"{BEGINS} {lookup(*key)} notrack" for key in keys), "}"))
        yield "\n".join(("chain handshakes {", f"type filter hook forward priority {BEHIND}; policy accept;",
                         *(f"{lookup(*key)} goto answer_{name_of(*key)}" for key in keys), "}"))
        for key in keys:
            _, mss, scale = key
            words = f"counter synproxy mss {mss} wscale {scale} timestamp sack-perm"
            yield "\n".join((f"chain answer_{name_of(*key)} {{", "ct state { established, related } accept", f"ct state untracked {BEGINS} {words}",
                             f"ct state {{ invalid, new }} {GOES_ON} {words}", "counter drop", "}"))

    def text(self) -> str:
        return "\n".join((*self.sets(), *self.chains(), "")) if self.elements else ""

    def judged(self) -> list[str]:
        """What the host's judgement of forwarded packets lets pass to the chain that answers, before it drops what is invalid."""
        return [f"ct state invalid {GOES_ON} {lookup(*key)} goto pass" for key in sorted(self.elements)]


def lookup(version: int, mss: int, scale: int) -> str:
    return f"iifname . {'ip' if version == 4 else 'ip6'} daddr . tcp dport @{name_of(version, mss, scale)}"


def name_of(version: int, mss: int, scale: int) -> str:
    return f"proxied{version}_{mss}_{scale}"


def synproxied(segments: Iterable[Segment]) -> Proxied:
    """What of all networks the host answers first. The rules of the document have refused it where it cannot."""
    found: dict[tuple[int, int, int], set[str]] = {}
    for segment in segments:
        for nic in segment.nics:
            ports, scale = proxied(nic.declared.limits, segment.network.limits)
            if not ports:
                continue
            for address in (nic.ip, nic.ip6, *(p for p in nic.prefixes if "/" not in p)):
                if address:
                    version = 6 if ":" in address else 4
                    key = version, min(nic.mtu, segment.mtu) - HEADERS[version], scale
                    found.setdefault(key, set()).update(f'"{segment.way_out}" . {address} . {port}' for port in ports)
    return Proxied(found)
