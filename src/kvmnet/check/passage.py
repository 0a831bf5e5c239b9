"""A marked packet sent from A to B on the live host: where it was seen, which rule ended it, why the kernel dropped it, and whether an answer came.

It settles what looking cannot: a rule that may match, a guest that may answer. At most three packets, for at most ``SECONDS``; they
carry the sender's own addresses, so the sender may get answers that it did not ask for, and drops them.
"""
from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any

from kvmnet.check.second_look import FRAMES, PACKETS, SECONDS, inside, is_answer, other_sender, way_back
from kvmnet.doctor.asking import NOBODY
from kvmnet.doctor.ends import Place
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.packet import TCP, UDP, Packet, made
from kvmnet.doctor.reasons import confirms, meaning
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.why import Report
from kvmnet.host.clock import wait_until
from kvmnet.host.drops import Dropped, DropTrace
from kvmnet.host.packets import Capture
from kvmnet.host.run import ToolFailed, run
from kvmnet.host.trace import RuleTrace, Traced, entrance, inner_end, send_raw, stir
from kvmnet.records import asdict, dataclass, field, replace

ENDS = ("drop", "reject")
RULES = ("rule-drop", "arp-drop", "bridge-netfilter", "guest-firewall", "rule-unknown")
"""Codes of which there may be several for one packet: which of them a drop by netfilter was, only the trace of rules tells."""
WRITTEN = "neighbour-written"
VAGUE = ("NOT_SPECIFIED", "OTHERHOST")
"""Reasons that say nothing about a fault."""


@dataclass
class Live:
    """What the packets showed."""

    sent: int = 0
    where: str = ""
    """Where they were put in."""
    seen: list[str] = field(default_factory=list)
    """Devices that they were seen at, in the order of the path."""
    answered: bool = False
    ended: list[Traced] = field(default_factory=list)
    """Rules that ended them."""
    dropped: list[Dropped] = field(default_factory=list)
    """Where and why the kernel dropped them."""
    untold: str = ""
    """Why it tells no reasons."""
    impossible: str = ""
    """Why none could be sent."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.impossible:
            return f"no packet was sent: {self.impossible}"
        end = "an answer came back" if self.answered else "no answer came back"
        rules = "; ".join(f"{t.place} ended it: {t.text}" for t in self.ended)
        told = [f"{self.sent} packet(s) put in at {self.where}", f"seen at {', '.join(self.seen) or 'no device'}", end, rules]
        drops = [] if self.answered else [f"the kernel dropped it{' in ' + d.where if d.where else ''}: {d.reason}{' (' + meaning(d.reason) + ')' if meaning(d.reason) else ''}" for d in self.dropped]
        return "; ".join(t for t in (*told, *drops, "" if self.answered else self.untold) if t)


def ask(report: Report) -> bool:
    """Let the host look for guests that no port is known of: ARP or ND, at most ``SECONDS``. Whether there were any."""
    unseen = [f.where for f in report.findings if f.code == "guest-unseen"]
    for address in dict.fromkeys(unseen):
        stir(address)
    if unseen:
        with suppress(TimeoutError):
            wait_until(lambda: all(answers(a) for a in unseen), SECONDS, 0.05)
    return bool(unseen)


def answers(address: str) -> bool:
    return any("lladdr" in row or "FAILED" in row.get("state", ()) for row in json.loads(run(("ip", "-j", "neigh", "show", "to", address)) or "[]"))


def prove(scene: Scene, report: Report) -> Report:
    """*report* with what packets showed: findings confirmed or refuted, and where the packet was last seen."""
    live, more = Live(), []
    a, b = report.source, report.target
    if a.place is Place.OUTSIDE:
        live.impossible = "it would have to come from outside; ask the other way round"
    elif a.place is Place.NIC and (not a.dev or not scene.bridge_of(a.dev)):
        live.impossible = f"{a.title} is behind no port of a bridge here"
    elif a.place is Place.NIC and report.macs[0] == NOBODY:
        live.impossible = f"the MAC that {a.title} would send to is not known"
    else:
        try:
            send(scene, report, live)
            more = inside(scene, report)
            if not live.answered and not report.blocking:
                more += way_back(scene, report) or other_sender(scene, report)
        except ToolFailed as failed:
            live.impossible = failed.detail or str(failed)
    return concluded(replace(report, live=live), b.title, more)


def send(scene: Scene, report: Report, live: Live) -> None:
    mark = secrets.randbits(31) | 1
    a, b, number = report.source, report.target, report.probe.number
    word = mark.to_bytes(4, "big")
    packet = made(report.macs, a.ip, b.ip, number, (32768 + mark % 28000, report.probe.port), b"" if number == TCP else word + b"kvmnet why", sequence=mark if number == TCP else 1)
    devices = list(dict.fromkeys(hop.where for hop in (*report.there, *report.back) if hop.where in scene.links))
    with ExitStack() as stack:
        captures = {dev: stack.enter_context(Capture(dev)) for dev in devices}
        drops = stack.enter_context(DropTrace(packet.protocol))
        trace = stack.enter_context(RuleTrace(f"meta l4proto {number} @th,{'32,32' if number == TCP else '64,32'} {mark:#x}"))
        place = stack.enter_context(entrance(a.dev)) if a.place is Place.NIC else None
        live.where = a.dev if place else "the host"
        seen: dict[str, None] = {}
        last = 0.0

        def step() -> bool:
            nonlocal last
            if live.sent < PACKETS and monotonic() - last > SECONDS / PACKETS / 2:
                last = monotonic()
                live.sent += 1
                with drops.sending():
                    place.send(packet.frame) if place else send_raw(b.ip, packet.frame[14:], scene.domain_of(a.segment))
            for dev, capture in captures.items():
                for _ in range(FRAMES):
                    if (frame := capture.receive()) is None:
                        break
                    if is_probe(frame, mark, number):
                        seen[dev] = None
                    live.answered = live.answered or is_answer(frame, mark, number, a.ip)
            trace.read()
            return live.answered
        with suppress(TimeoutError):
            wait_until(step, SECONDS, 0.01)
        live.seen = [dev for dev in devices if dev in seen]
        live.ended = [t for t in trace.found if t.verdict in ENDS]
        live.dropped, live.untold = drops.found(inner_end() if place else ""), drops.impossible


def is_probe(frame: bytes, mark: int, number: int) -> bool:
    """Whether it is the packet, whatever NAT made of its addresses."""
    packet = Packet(frame)
    if packet.upper is None or packet.upper[0] != number:
        return False
    found = packet.bits("th", 32, 32) if number == TCP else packet.bits("th", 64, 32)
    return found == mark and not (number not in (TCP, UDP) and packet.bits("th", 0, 8) not in (8, 128))


def concluded(report: Report, target: str, more: Sequence[Finding] = ()) -> Report:
    """Every finding beside what the packets showed. ``more``: what other packets showed."""
    live: Live = report.live
    if live.impossible:
        return report
    there, back = ([replace(hop, findings=[beside(f, live) for f in hop.findings]) for hop in hops] for hops in (report.there, report.back))
    told = [d for d in live.dropped if d.reason not in VAGUE]
    there[-1].findings.extend(more)
    if more and any(f.severity is Severity.BLOCKS for f in more):
        return replace(report, there=there, back=back)
    if not live.answered and not report.blocking and live.ended:
        there[-1].findings.append(by_trace(live))
        return replace(report, there=there, back=back)
    if not live.answered and not report.blocking and told:
        first = told[0]
        there[-1].findings.append(Finding(
            code="kernel-drop", severity=Severity.BLOCKS, where=first.where or live.where, what=f"the kernel drops the packet: {meaning(first.reason) or first.reason}",
            why="nothing that was read of this host says so; the packets do", evidence=(*(f"skb:kfree_skb: {d.reason}{' in ' + d.where if d.where else ''}" for d in told), str(live))))
    elif not live.answered and not report.blocking and any(f.code == WRITTEN for f in report.findings):
        there, back = ([replace(hop, findings=[suspected(f, live) for f in hop.findings]) for hop in hops] for hops in (there, back))
    elif not live.answered and not report.blocking and report.probe.protocol != "udp":
        last = live.seen[-1] if live.seen else live.where
        there[-1].findings.append(Finding(
            code="no-answer", severity=Severity.BLOCKS, where=last, what=f"nothing on this host is in the way, but no answer comes; last seen at {last}",
            why=f"what is behind {last} loses it, or {target} does not answer: its own firewall, its route back, a program that does not listen", evidence=(str(live),), certainty=Certainty.LIKELY))
    return replace(report, there=there, back=back)


def by_trace(live: Live) -> Finding:
    """A rule that ended the packet although looking says that it may pass: a limit that was reached, a set that changed meanwhile."""
    last = live.ended[-1]
    return Finding(code="rule-drop", severity=Severity.BLOCKS, where=last.place, what=f"{last.text} {'rejects' if last.verdict == 'reject' else 'drops'} the packet", why="the rules let it pass as long as no limit is reached; the packet shows that one is",
                   evidence=("nft monitor trace: the packet ended there", str(live)))


def suspected(finding: Finding, live: Live) -> Finding:
    """What nobody verifies, where packets get no answer."""
    return replace(finding, severity=Severity.BLOCKS, certainty=Certainty.LIKELY, evidence=(*finding.evidence, str(live))) if finding.code == WRITTEN else finding


def beside(finding: Finding, live: Live) -> Finding:
    """A finding as the packets confirm or refute it."""
    if finding.severity is not Severity.BLOCKS:
        return finding
    if live.answered and finding.code == "multipath-hop":
        return replace(finding, severity=Severity.DEGRADES, certainty=Certainty.PROVED, evidence=(*finding.evidence, "the flow of this packet falls to one that works: its answer came back"))
    if live.answered:
        return replace(finding, severity=Severity.NOTE, certainty=Certainty.UNKNOWN, evidence=(*finding.evidence, "refuted: a packet went there and its answer came back"))
    shown = [f"confirmed: the kernel dropped a packet{' in ' + d.where if d.where else ''}: {d.reason}, {meaning(d.reason)}" for d in live.dropped if confirms(d.reason, finding.code)]
    if any(t.place == finding.where for t in live.ended):
        return replace(finding, certainty=Certainty.PROVED, evidence=(*finding.evidence, "confirmed: nft traced a packet that ended there", *shown))
    if shown and finding.code not in RULES:
        return replace(finding, certainty=Certainty.PROVED, evidence=(*finding.evidence, *shown))
    return finding

