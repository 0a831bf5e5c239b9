"""One direction of a path: the packet, the hops that it passed, and what stands in its way. Pure.

A blocker does not end the walk: the packet is taken further as if it had passed, so that one look finds everything.
"""
from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from kvmnet.doctor.blame import by_limit, by_rule
from kvmnet.doctor.ends import End
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.hooks import Passage, at_hook, bridge_hook
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.packet import Context, Packet, Tracked
from kvmnet.doctor.routing import fib
from kvmnet.doctor.scene import Scene
from kvmnet.records import dataclass, field


class State(StrEnum):
    OK = "ok"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"
    """It cannot be told from here whether the packet passes."""


def state_of(findings: Iterable[Finding]) -> State:
    """Blocked by what is sure or likely; unknown where something may block."""
    blocking = [f for f in findings if f.severity is Severity.BLOCKS]
    return State.BLOCKED if any(f.certainty is not Certainty.UNKNOWN for f in blocking) else State.UNKNOWN if blocking else State.OK


@dataclass(slots=True)
class Hop:
    """One place on the path."""

    where: str
    """``t1``, ``br0``, ``inet filter forward`` ..."""
    what: str
    """Kind of place: guest, port, bridge, rules, route, neighbour, uplink, outside, service."""
    words: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def state(self) -> State:
        return state_of(self.findings)


@dataclass
class Trip:
    """The walk of one packet."""

    scene: Scene
    context: Context
    hops: list[Hop] = field(default_factory=list)
    asked: bool = False
    """Whether the packet is the question who has an address: what drops it is told so."""
    reached: End | None = None
    """The end that NAT sent it to instead."""
    macs: tuple[str, str] = ("", "")
    """(destination, source) of the frame as the guest sends it."""
    out: str = ""
    """Device of the host that it left by; an answer is expected there."""
    left: str = ""
    """Device of the host's route that it was sent on by, a bridge, too."""
    translated: bool = False
    """Whether NAT has changed an address."""
    domain: str = ""
    """VRF whose device is the input device from its second prerouting on (vrf_ip_rcv() in drivers/net/vrf.c)."""
    seen: bool = False
    """Whether br_netfilter has sent it through the prerouting of IP, which is not asked twice (ip_sabotage_in())."""

    @property
    def packet(self) -> Packet:
        return self.context.packet

    @property
    def findings(self) -> list[Finding]:
        return [f for hop in self.hops for f in hop.findings]

    def hop(self, where: str, what: str, words: str = "") -> Hop:
        made = Hop(where, what, words)
        self.hops.append(made)
        return made

    def find(self, finding: Finding) -> None:
        """Something at the last hop, or at the first."""
        if not self.hops:
            self.hop(finding.where, "place")
        self.hops[-1].findings.append(finding)

    def blocks(self, code: str, where: str, what: str, why: str, *evidence: str, fix: tuple[str, ...] = (),
               certainty: Certainty = Certainty.PROVED, severity: Severity = Severity.BLOCKS) -> None:
        self.find(Finding(code=code, severity=severity, where=where, what=what, why=why, evidence=tuple(e for e in evidence if e), fix=fix, certainty=certainty))

    # -- rules -----------------------------------------------------------------------------------

    def rules(self, passages: list[Passage], where: str) -> None:
        """A hop for each chain that judged; none where there is none."""
        for passage in passages:
            changed = [f"{name} applies" for name, _, _ in passage.judgement.changed]
            self.hop(passage.chain, "rules", f"{passage.layer} {passage.hook}{' at ' + where if where else ''}: {', '.join([str(passage.verdict), *changed])}")
            if passage.verdict is not Verdict.ACCEPT:
                self.find(by_rule(self.scene, self.context, passage, self.asked))
            elif passage.limits and not self.asked:
                self.find(by_limit(passage))

    def at(self, layer: str, hook: str, *, iif: str = "", oif: str = "", where: str = "", above: int = -(1 << 40), upto: int = 1 << 40) -> list[Passage]:
        """Asks the chains of a hook."""
        moved = self.domain and iif and layer == "ip" and hook in ("input", "forward", "postrouting")
        self.context.sdif = iif if moved and hook != "postrouting" else ""
        self.context.iif, self.context.oif = self.domain if moved else iif, oif
        found = at_hook(self.scene.rules, self.context, layer, hook, where if layer == "netdev" else "", above=above, upto=upto)
        self.rules(found, where or iif or oif)
        return found

    def at_bridge(self, hook: str, bridge: str, iif: str, oif: str) -> None:
        """Asks the chains of a hook of a bridge, and those of IP where br_netfilter is on."""
        found = bridge_hook(self.scene.rules, self.context, hook, bridge, iif, oif)
        if hook == "prerouting" and any(p.layer == "ip" for p in found):
            self.seen = True
        self.rules(found, bridge)


def begin(scene: Scene, packet: Packet, flow: Tracked | None = None, asked: bool = False) -> Trip:
    groups = {name: int(g) if str(g := link.get("group", 0)).isdigit() else 0 for name, link in scene.links.items()}
    kinds = {name: 772 for name, link in scene.links.items() if link.get("link_type") == "loopback"}
    kinds |= {name: 65534 for name, link in scene.links.items() if link.get("link_type") == "none"}
    return Trip(scene, Context(packet, fib=fib(scene), flow=flow, groups=groups, kinds=kinds, alone=True), asked=asked)
