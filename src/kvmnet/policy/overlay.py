"""Who may put frames into a network that several hosts share: rules of the host's own table. Pure.

The kernel's VXLAN takes a frame from whoever sends the right number to the right port (vxlan_rcv() in
drivers/net/vxlan/vxlan_core.c); RFC 7348, 7 leaves it to the underlay to keep others out. So for the numbers of the
document, and for no others on the same port:

* in: packets are taken from the peers alone, and by the uplink alone;
* through: nobody whom the host routes sends such a packet to a peer. A guest behind NAT would leave with the
  host's own address, which the peers trust. Guests may not send to a peer's port at all.

Guests cannot send to the host's own port: from them it answers DHCP, DNS, ND and echo only. Fragments are
put together before these rules (conntrack needs it), so that the number is always there to be looked at.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvmnet.modes.segment import Listening

BEFORE_FORWARD = -11
"""Before the chains that judge guests: a packet of an established flow is judged here, too."""


def overlay_chains(listening: Iterable[Listening]) -> list[str]:
    """The chains for all overlays of the host; none when it has none."""
    ordered = sorted(listening)
    if not ordered:
        return []
    through = [rule for one in ordered if one.peers for rule in going_through(one)]
    return [base("overlay_in", "input", [rule for one in ordered for rule in coming_in(one)]),
            *([base("overlay_through", "forward", list(dict.fromkeys(through)))] if through else [])]


def tunnel_chain(tunnels: Iterable[tuple[int, str]]) -> list[str]:
    """The chain for the ports of encrypted tunnels. Who may speak there is decided by keys; a stranger on another device
    does not even learn that somebody listens, nor costs the host a decryption."""
    rules = [f'udp dport {port} iifname != "{device}" counter drop' for port, device in sorted(tunnels)]
    return [base("tunnel_in", "input", rules)] if rules else []


def coming_in(one: Listening) -> Iterator[str]:
    who = " ".join(w for w in (f'iifname "{one.device}"' if one.device else "", sources(one)) if w)
    yield f"meta nfproto ipv{one.version} {number(one)} {who} accept"
    yield f"{number(one)} counter drop"


def going_through(one: Listening) -> Iterator[str]:
    to = f"{ip(one)} daddr {{ {', '.join(one.peers)} }}"
    yield f'iifname "kvb-*" iifname . oifname != @bridged udp dport {one.port} {to} counter drop'
    yield f"iifname . oifname != @bridged {number(one)} {to} counter drop"


def number(one: Listening) -> str:
    """Packets of one overlay: the number stands behind the flags (RFC 7348, 5)."""
    return f"udp dport {one.port} @th,96,24 {one.vni:#x}"


def sources(one: Listening) -> str:
    return f"{ip(one)} saddr {{ {', '.join(one.peers)} }}" if one.peers else ""


def ip(one: Listening) -> str:
    return "ip" if one.version == 4 else "ip6"


def base(name: str, hook: str, rules: Iterable[str]) -> str:
    return "\n".join((f"chain {name} {{", f"type filter hook {hook} priority {BEFORE_FORWARD}; policy accept;", *rules, "}"))
