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

from kvmnet.check.heard import Arrivals, grown, is_told, next_hop, queues
from kvmnet.check.second_look import FRAMES, PACKETS, SECONDS, inside, is_answer, other_sender, way_back
from kvmnet.doctor.asking import HEARD, NOBODY, QUESTIONS
from kvmnet.doctor.ends import Place
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.packet import TCP, UDP, Packet, made, question
from kvmnet.doctor.reasons import confirms, meaning
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.trip import Hop
from kvmnet.doctor.why import Report
from kvmnet.host.clock import wait_until
from kvmnet.host.drops import Dropped, DropTrace
from kvmnet.host.packets import Capture
from kvmnet.host.run import ToolFailed, run
from kvmnet.host.trace import RuleTrace, Traced, entrance, inner_end, send_raw, stir
from kvmnet.records import asdict, dataclass, field, replace

SETTLING = 0.2
"""Seconds in which a second machine answers a question, and the trace of a rule arrives."""
ENDS = ("drop", "reject")
RULES = ("rule-drop", "arp-drop", "bridge-netfilter", "guest-firewall", "rule-unknown")
"""Codes of which there may be several for one packet: which of them a drop by netfilter was, only the trace of rules tells."""
SUSPECTS = ("neighbour-written", "source-unanswered")
"""What looking cannot verify: notes, until no answer comes."""
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
    """Whether the answer came to who asked: out by a guest's port, or past the host's own rules."""
    back: list[str] = field(default_factory=list)
    """Devices that an answer was seen at, which need not have come to who asked."""
    stray: list[str] = field(default_factory=list)
    """``DEVICE MAC`` where an answer came with a MAC that is not the device's: the host does not take it."""
    tellers: list[str] = field(default_factory=list)
    """MACs that were told in answer to the question."""
    refused: bool = False
    """Whether the answer was a reset (TCP)."""
    container: bool = False
    """Whether who is asked is behind a pair of veth, and so on this kernel."""
    others: list[str] = field(default_factory=list)
    """Those of them that are neither the one that is right nor the host's own: ``MAC behind PORT``."""
    known: bool | None = None
    """Whether the question who has the next hop's address was answered; None where it was not asked."""
    asked: str = ""
    """The address that was asked for."""
    queues: list[str] = field(default_factory=list)
    """Queues of the path that dropped packets, or kept some, meanwhile."""
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
        end = "an answer came back" if self.answered else f"an answer came as far as {', '.join(self.back)} and no further" if self.back else "no answer came back"
        asked = "" if self.known is None else f"the question who has {self.asked} was {'answered' if self.known else 'not answered'}"
        rules = "; ".join(f"{t.place} ended it: {t.text}" for t in self.ended)
        told = [f"{self.sent} packet(s) put in at {self.where}", f"seen at {', '.join(self.seen) or 'no device'}", end, asked, rules]
        drops = [] if self.answered else [f"the kernel dropped it{' in ' + d.where if d.where else ''}: {d.reason}{' (' + meaning(d.reason) + ')' if meaning(d.reason) else ''}" for d in self.dropped]
        queues = [] if self.answered else self.queues
        return "; ".join(t for t in (*told, *queues, *drops, "" if self.answered else self.untold) if t)


def ask(report: Report) -> bool:
    """Let the host look for guests that no port is known of: ARP or ND, at most ``SECONDS``. Whether there were any."""
    unseen = [f.where for f in report.findings if f.code == "guest-unseen"] + [e.ip for e in (report.source, report.target) if e.place is Place.NIC and e.dev and not e.mac and e.ip]
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
            if not live.answered and not report.blocking and not live.back:
                if report.leaves_by in live.seen:
                    more += way_back(scene, report)
                if b.dev in live.seen and not more:
                    more += other_sender(scene, report)
        except ToolFailed as failed:
            live.impossible = failed.detail or str(failed)
    return concluded(replace(report, live=live), b.title, more)


def send(scene: Scene, report: Report, live: Live) -> None:
    mark = secrets.randbits(31) | 1
    a, b, number = report.source, report.target, report.probe.number
    word = mark.to_bytes(4, "big")
    packet = made(report.macs, a.ip, b.ip, number, (32768 + mark % 28000, report.probe.port), b"" if number == TCP else word + b"kvmnet why", sequence=mark if number == TCP else 1)
    devices = list(dict.fromkeys(hop.where for hop in (*report.there, *report.back) if hop.where in scene.links))
    live.asked = asked = next_hop(scene, a, b)
    before = queues(devices)
    with ExitStack() as stack:
        own = None if a.place is Place.NIC else stack.enter_context(Arrivals(number, a.ip))
        captures = {dev: stack.enter_context(Capture(dev)) for dev in devices}
        drops = stack.enter_context(DropTrace(packet.protocol))
        trace = stack.enter_context(RuleTrace(f"meta l4proto {number} @th,{'32,32' if number == TCP else '64,32'} {mark:#x}"))
        place = stack.enter_context(entrance(a.dev)) if a.place is Place.NIC else None
        live.where = a.dev if place else "the host"
        seen: dict[str, None] = {}
        back: dict[str, str] = {}
        tellers: dict[str, None] = {}
        mine, near = {a.ip, report.leaves_as}, scene.macs_at(a.segment)
        last = 0.0

        def step() -> bool:
            nonlocal last
            if live.sent < PACKETS and monotonic() - last > SECONDS / PACKETS / 2:
                last = monotonic()
                live.sent += 1
                if place and asked and not live.known:
                    live.known = False
                    place.send(question(a.mac, a.ip, asked).frame)
                with drops.sending():
                    place.send(packet.frame) if place else send_raw(b.ip, packet.frame[14:], scene.domain_of(a.segment))
            for dev, capture in captures.items():
                for _ in range(FRAMES):
                    if (told := capture.hear()) is None:
                        break
                    frame, sent = told
                    if is_probe(frame, mark, number):
                        seen[dev] = None
                    if any(is_answer(frame, mark, number, ip) for ip in mine):
                        back[dev] = "" if sent else Packet(frame).macs[0]
                        live.refused = live.refused or (number == TCP and is_reset(frame))
                    elif dev == a.dev and asked and is_told(frame, asked):
                        teller = Packet(frame).macs[1]
                        tellers[teller] = None
                        live.known = live.known or teller == report.macs[0] or teller in near
            live.answered = a.dev in back if own is None else own.came(mark)
            trace.read()
            return live.answered and live.known is not False and (not asked or monotonic() - last > SETTLING)
        with suppress(TimeoutError):
            wait_until(step, SECONDS, 0.01)
        live.seen, live.back = ([dev for dev in devices if dev in some] for some in (seen, back))
        live.tellers = list(tellers)
        ports = {mac: str(row.get("ifname")) for (_, mac, _), (_, row) in scene.fdb.items()}
        live.others = [f"{mac} behind {ports.get(mac, 'a port that the bridge does not know')}" for mac in tellers if mac != report.macs[0] and mac not in near]
        live.stray = [f"{dev} {mac}" for dev, mac in back.items() if mac and astray(scene, dev, mac)]
        live.container = scene.kind(b.dev) == "veth"
        if number == TCP and live.answered:     # a reset may be that of a rule, which is told a moment later
            with suppress(TimeoutError):
                wait_until(lambda: trace.ended(ENDS), SETTLING, 0.01)
        live.queues = grown(before, queues(devices))
        live.ended = [t for t in trace.found if t.verdict in ENDS]
        last_hop = b.dev if b.place is Place.NIC else report.leaves_by
        if live.answered and number == TCP and (any(t.verdict == "reject" for t in live.ended) or (last_hop in devices and last_hop not in seen)):
            live.answered, live.refused, live.back = False, False, []     # the reset is the rule's, not that of who was asked
        live.dropped, live.untold = drops.found(inner_end() if place else ""), drops.impossible


def is_reset(frame: bytes) -> bool:
    flags = Packet(frame).bits("th", 104, 8)
    return isinstance(flags, int) and bool(flags & 4)


def astray(scene: Scene, dev: str, mac: str) -> bool:
    """Whether a device that is no port takes a frame with that MAC for another machine's."""
    return not scene.master(dev) and scene.kind(dev) not in ("bridge", "tun") and scene.links[dev].get("link_type") == "ether" and dev not in scene.switched and mac != scene.mac(dev)


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
    there, back = ([replace(hop, findings=[beside(f, live, hop.where in QUESTIONS) for f in hop.findings]) for hop in hops] for hops in (report.there, report.back))
    pinned(there, live)
    if any(f.code == "no-way-back" for f in more) and any(f.code == "source-unanswered" for f in report.findings):     # which says why
        there, back = ([replace(hop, findings=[suspected(f, live) for f in hop.findings]) for hop in hops] for hops in (there, back))
        more = [f for f in more if f.code != "no-way-back"]
    there[-1].findings.extend([*([contested(report, live)] if live.others else []), *more])
    done = replace(report, there=there, back=back)
    if any(f.severity is Severity.BLOCKS for f in (*more, *done.findings)) and not report.blocking:
        return done
    if live.answered and live.refused and not any(f.code == "nobody-listens" for f in report.findings):
        there[-1].findings.append(refused(report, live))
    if report.blocking:
        return done
    if live.known is False and not live.others and (live.answered or not live.ended):
        there[-1].findings.append(unanswered(report, live))
        return done
    if live.answered:
        return done
    if any(f.code in SUSPECTS for f in report.findings) and not live.ended:
        there, back = ([replace(hop, findings=[suspected(f, live) for f in hop.findings]) for hop in hops] for hops in (there, back))
        return replace(report, there=there, back=back)
    if found := by_trace(live) or (by_queue(live) if any(d.reason == "QDISC_DROP" for d in live.dropped) else None) or by_reason(report, live) or by_queue(live) or by_silence(report, live, target):
        there[-1].findings.append(found)
    return done


def pinned(there: Sequence[Hop], live: Live) -> None:
    """What nobody could tell becomes likely where the packet was seen right before it, and nowhere behind."""
    places = [n for n, hop in enumerate(there) if hop.where in live.seen]
    if live.answered or not places:
        return
    following = next((n for n, hop in enumerate(there) if n > places[-1] and hop.what in ("port", "bridge", "uplink")), len(there))
    doubts = [(hop, f) for hop in there[places[-1]:following + 1] for f in hop.findings if f.severity is Severity.BLOCKS and f.certainty is Certainty.UNKNOWN]
    if len(doubts) == 1:
        hop, found = doubts[0]
        hop.findings[hop.findings.index(found)] = replace(found, certainty=Certainty.LIKELY, evidence=(*found.evidence, f"the packet was seen at {there[places[-1]].where}, before this, and nowhere behind it"))


def contested(report: Report, live: Live) -> Finding:
    """Another machine has the address of the next hop, too: who asks takes whichever answers last."""
    return Finding(code="address-twice", severity=Severity.BLOCKS, where=report.source.segment or report.source.dev, what=f"{', '.join(live.others)} answers who has {live.asked}, {'beside' if live.known else 'and not'} {report.macs[0]}", certainty=Certainty.PROVED,
                   why=f"{report.source.title} sends to the one or to the other, as it heard it last: a second machine has that address, or forges it.", evidence=(f"{'neighbour discovery' if ':' in live.asked else 'ARP'} at {report.source.dev}: {live.asked} is at {' and at '.join(live.tellers)}", str(live)),
                   fix=tuple(f"# take {live.asked} away from {other}" for other in live.others))


def refused(report: Report, live: Live) -> Finding:
    """Everything passes, and nobody is at home."""
    where = f"tcp {report.probe.port}"
    return Finding(code="nobody-listens", severity=Severity.BLOCKS, where=where, what=f"{report.target.title} refuses {where}: a reset comes from it", why="The way there and back is open. No program listens on that port there (or on loopback alone), or a firewall of its own rejects the connection.", evidence=(str(live),),
                   fix=("# there: ss -ltnp",))


def unanswered(report: Report, live: Live) -> Finding:
    """Packets pass, and what goes before them does not."""
    a = report.source
    return Finding(code="question-unanswered", severity=Severity.BLOCKS, where=a.dev, what=f"nobody answers {a.title} who has {live.asked}{', though packets to its MAC are answered' if live.answered else ''}", evidence=(str(live),),
                   why=f"Before it sends anything a guest asks for the MAC of its next hop, by {'neighbour discovery' if ':' in live.asked else 'ARP'}: the question, or its answer, is lost on the way, or {live.asked} does not answer it.",
                   fix=(f"# tcpdump -ni any {'icmp6' if ':' in live.asked else 'arp'} host {live.asked}: where the question is seen last",) if ":" not in live.asked else ())


def by_reason(report: Report, live: Live) -> Finding | None:
    """What the kernel says. The buffer may have gone on into a guest that is a container on the same kernel."""
    told = [d for d in live.dropped if d.reason not in VAGUE and not (d.reason == "NO_SOCKET" and report.source.place is Place.HOST)]
    if not told:
        return None
    first, last = told[0], (live.seen or [live.where])[-1]
    behind = report.target.place is Place.NIC and last == report.target.dev and live.container
    return Finding(code="kernel-drop", severity=Severity.BLOCKS, where=last, what=f"the kernel drops the packet behind {last}: {meaning(first.reason) or first.reason}",
                   why=f"{last} is where it leaves this host: the firewall or the settings of {report.target.title}, which runs on the same kernel" if behind else "nothing that was read of this host says so; the packets do",
                   evidence=(*(f"skb:kfree_skb: {d.reason}{' in ' + d.where if d.where else ''}" for d in told), str(live)))


def by_queue(live: Live) -> Finding | None:
    """A queue that dropped packets meanwhile, or keeps them."""
    if not live.queues:
        return None
    dev = next((text.split()[3] for text in live.queues if text.split()[3] not in live.seen), live.queues[0].split()[3])
    return Finding(code="queue-keeps", severity=Severity.BLOCKS, where=dev, what=f"the packet does not come out of a queue of {dev}", why="a queue with a rate, a limit or an order of its own drops or keeps it; what is counted there may be other packets, too", certainty=Certainty.LIKELY,
                   evidence=(*live.queues, str(live)), fix=(f"tc -s qdisc show dev {dev}; tc -s class show dev {dev}; tc filter show dev {dev}   # which of them; to be rid of all: tc qdisc del dev {dev} root",))


def by_silence(report: Report, live: Live, target: str) -> Finding | None:
    """Nothing says where it is lost."""
    if report.probe.protocol == "udp":
        return None
    if live.stray and live.stray[0].split()[0] == (report.leaves_by or live.stray[0].split()[0]):
        dev, mac = live.stray[0].split()
        return Finding(code="answer-astray", severity=Severity.BLOCKS, where=dev, what=f"{target} answers to the MAC {mac}, which is not that of {dev}", why="what is behind it has a wrong entry for this host in its neighbour table, written by hand or of another card; frames for other MACs are not taken", evidence=(str(live),),
                       fix=(f"# there: ip neigh del {report.leaves_as} dev DEV; until it asks again by itself: arping -U -c 1 -I {dev} {report.leaves_as}",))
    if live.back:
        last = next((hop.where for hop in reversed(report.back) if hop.where in live.back), live.back[-1])
        return Finding(code="no-answer", severity=Severity.BLOCKS, where=last, what=f"{target} answers, and the answer is lost behind {last}, where it was seen last", why=f"what stands behind {last} on the way back loses it", evidence=(str(live),), certainty=Certainty.LIKELY)
    last = live.seen[-1] if live.seen else live.where
    return Finding(code="no-answer", severity=Severity.BLOCKS, where=last, what=f"nothing on this host is in the way, but no answer comes; last seen at {last}",
                   why=f"what is behind {last} loses it, or {target} does not answer: its own firewall, its route back, a program that does not listen", evidence=(str(live),), certainty=Certainty.LIKELY)


def by_trace(live: Live) -> Finding | None:
    """A rule that ended the packet although looking says that it may pass: a limit that was reached, a set that changed meanwhile."""
    if not live.ended:
        return None
    last = live.ended[-1]
    return Finding(code="rule-drop", severity=Severity.BLOCKS, where=last.place, what=f"{last.text} {'rejects' if last.verdict == 'reject' else 'drops'} the packet", why="the rules let it pass as long as no limit is reached; the packet shows that one is",
                   evidence=("nft monitor trace: the packet ended there", str(live)))


def suspected(finding: Finding, live: Live) -> Finding:
    """What nobody verifies, where packets get no answer."""
    return replace(finding, severity=Severity.BLOCKS, certainty=Certainty.LIKELY, evidence=(*finding.evidence, str(live))) if finding.code in SUSPECTS else finding


def beside(finding: Finding, live: Live, question: bool = False) -> Finding:
    """A finding as the packets confirm or refute it. ``question``: of the question who has an address, which the packet does without."""
    if finding.severity is not Severity.BLOCKS:
        return finding
    if question and finding.code in (*HEARD, "duplicate-detected") and not live.known:
        return replace(finding, evidence=(*finding.evidence, f"confirmed: the question who has {live.asked} was sent, and not answered")) if live.known is False else finding
    if finding.code == "nobody-listens" and live.refused:
        return replace(finding, evidence=(*finding.evidence, "confirmed: a packet was answered by a reset"))
    if live.answered and finding.code == "multipath-hop":
        return replace(finding, severity=Severity.DEGRADES, certainty=Certainty.PROVED, evidence=(*finding.evidence, "the flow of this packet falls to one that works: its answer came back"))
    if live.answered:
        return replace(finding, severity=Severity.NOTE, certainty=Certainty.UNKNOWN, evidence=(*finding.evidence, "refuted: a packet went there and its answer came back"))
    shown = [f"confirmed: the kernel dropped a packet{' in ' + d.where if d.where else ''}: {d.reason}, {meaning(d.reason)}" for d in live.dropped if confirms(d.reason, finding.code)]
    if any(t.place == finding.where for t in live.ended):
        if finding.code == "rule-unknown":
            finding = replace(finding, code="rule-drop", what=finding.what.replace(" may lose ", " drops "), why="looking cannot tell whether it matches; the packet shows that it does", fix=(f"nft -a list chain {finding.where}   # and take that rule out, or put an accept before it",))
        return replace(finding, certainty=Certainty.PROVED, evidence=(*finding.evidence, "confirmed: nft traced a packet that ended there", *shown))
    if shown and finding.code not in RULES:
        return replace(finding, certainty=Certainty.PROVED, evidence=(*finding.evidence, *shown))
    return finding

