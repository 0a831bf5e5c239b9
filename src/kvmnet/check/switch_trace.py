"""What Open vSwitch says of the very packet that is asked about, by ofproto/trace (ovs-vswitchd(8)): it follows the packet through its flows as they are now, sends nothing and learns nothing.

Its word settles what the walk cannot tell: dropped, with the flow that did it, or handed on, with the port. Where conntrack translates on the way, the trace goes on with
the addresses from before, and a controller is not asked: of what comes after, a drop proves nothing.
"""
from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from kvmnet.check.logical_flow import explained, stage
from kvmnet.doctor.ends import End
from kvmnet.doctor.finding import Certainty, Finding
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.trip import Hop
from kvmnet.doctor.why import Report
from kvmnet.errors import HostCannot
from kvmnet.host import run as host
from kvmnet.records import dataclass, replace

SECONDS = 5.0
TRACE = ["ovs-appctl", "ofproto/trace"]
ACTIONS = re.compile(r"^Datapath actions: (.*)$", re.M)
STEP = re.compile(r"^\s*(\d+\. .+)$", re.M)
BRIDGE = re.compile(r"^\s*bridge\(\"(.+)\"\)$", re.M)
PORT = re.compile(r'"?[\w.@-]+"?')
WORDS = ("drop", "ct_clear", "pop_vlan", "pop_eth", "pop_nsh", "ct")
"""Actions that have no brackets and are no ports."""
MACS = re.compile(r"dl_src=[0-9a-f:]{17},dl_dst=[0-9a-f:]{17}")
BEYOND = re.compile(r"userspace\(|nat\((?:src|dst)=|tnl_push|tunnel\(|lb_output|hash\(")
"""Actions after which the trace is of another packet than the real one (NAT to an address; a flow's own NAT, without one, changes no first packet), or that leave this host."""


@dataclass(frozen=True, slots=True)
class Verdict:
    dropped: bool
    ports: tuple[str, ...]
    """Devices that the packet is handed to."""
    last: str
    """The last flow that it met."""
    sure: bool
    """Whether the trace is of the real packet until its end."""


def verdict(text: str) -> Verdict | None:
    """None of what is no trace."""
    told = ACTIONS.findall(text)
    if not told:
        return None
    part = text[:text.rindex("Final flow:")] if "Final flow:" in text else text
    steps, bridges = STEP.findall(part), BRIDGE.findall(part)
    last = f"{bridges[-1]}: {steps[-1]}" if steps and bridges else ""
    flat, count = told[-1], 1
    while count:
        flat, count = re.subn(r"\([^()]*\)", "~", flat)
    ports = tuple(word.strip('"') for word in flat.split(",") if PORT.fullmatch(word) and word not in WORDS)
    return Verdict(told[-1].strip() == "drop", ports, last, not BEYOND.search("".join(told)))


def followed(scene: Scene, report: Report) -> Report:
    """The report, with the switch's word for each port of Open vSwitch that a packet came to: what passes is a hop, what is dropped a finding, of OVN with the logical flow that does it."""
    return replace(report, there=through(scene, report.there, report.target), back=through(scene, report.back, report.source))


def through(scene: Scene, hops: Iterable[Hop], end: End) -> list[Hop]:
    found = []
    for hop in hops:
        told = [settled(scene, f, end) for f in hop.findings]
        found += [replace(hop, findings=[f for f in told if isinstance(f, Finding)]), *(f for f in told if isinstance(f, Hop))]
    return found


def settled(scene: Scene, finding: Finding, end: End) -> Finding | Hop:
    """What was not followed, followed; any other finding as it is."""
    words = shlex.split(finding.fix[0]) if finding.code == "not-followed" and finding.fix else []
    if words[:2] != TRACE or not MACS.search(finding.fix[0]) or "$(" in finding.fix[0]:
        return finding
    try:
        told = verdict(host.run((words[0], f"--timeout={SECONDS:.0f}", *words[1:]), timeout=2 * SECONDS))
    except (host.ToolFailed, HostCannot) as failed:
        return replace(finding, evidence=(*finding.evidence, f"ofproto/trace: {str(failed).splitlines()[0]}"))
    if not told:
        return finding
    found = judged(scene, finding, told, end)
    if told.dropped and isinstance(found, Finding) and (origin := stage((scene.facts.get("ovn") or {}).get("remote", ""), told.last)):
        names = {p["dev"]: str(p["name"]) for p in scene.logical}
        return explained(found, origin, (names.get(finding.where, "PORT"), names.get(end.dev, "PORT")))
    return found


def judged(scene: Scene, finding: Finding, told: Verdict, end: End) -> Finding | Hop:
    there = end.dev or end.segment
    if told.dropped:
        return replace(finding, code="switch-drop", what=f"Open vSwitch drops the packet that comes in at {finding.where}", why="the flow that it met last has it dropped, or no flow matches", certainty=Certainty.PROVED if told.sure else Certainty.UNKNOWN,
                       evidence=(*finding.evidence, f"ofproto/trace: last at {told.last}", "ofproto/trace: Datapath actions: drop"))
    if told.ports and (there in told.ports or not end.dev):
        return Hop(told.last.partition(":")[0] or finding.where, "bridge", f"Open vSwitch hands it to {', '.join(told.ports)}: asked with this very packet")
    told_ports = f"ofproto/trace: handed to {', '.join(told.ports) or 'no port that it names'}, not to {there}"
    if told.sure and there in scene.switched and all(p in scene.switched for p in told.ports):
        return astray(scene, replace(finding, evidence=(*finding.evidence, f"ofproto/trace: last at {told.last}", told_ports)), there)
    return replace(finding, evidence=(*finding.evidence, told_ports))


def astray(scene: Scene, finding: Finding, there: str) -> Finding:
    """A packet that the switch hands to ports of its own, and to the one that it is meant for not."""
    tags = {p["name"]: p.get("tag") for dev in (finding.where, there) for p in scene.switched[dev]["ports"]} if finding.where in scene.switched else {}
    mine, theirs = tags.get(finding.where), tags.get(there)
    fix = finding.fix if mine == theirs else (f"ovs-vsctl set port {there} tag={mine}" if mine is not None else f"ovs-vsctl clear port {there} tag", *finding.fix)
    return replace(finding, code="switch-astray", what=f"Open vSwitch does not hand to {there} what comes in at {finding.where} for it", certainty=Certainty.PROVED, fix=fix,
                   why="the two are in different VLANs" if mine != theirs else "it has learned the MAC behind another port, or its flows lead elsewhere", evidence=(*finding.evidence, f"ovs-vsctl get port {finding.where} tag: {mine}; {there}: {theirs}"))
