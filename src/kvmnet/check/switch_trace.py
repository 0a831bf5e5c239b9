"""What Open vSwitch says of the very packet that is asked about, by ofproto/trace (ovs-vswitchd(8)): it follows the packet through its flows as they are now, sends nothing and learns nothing.

Its word settles what the walk cannot tell: dropped, with the flow that did it, or handed on, with the port. Where conntrack translates on the way, the trace goes on with
the addresses from before, and a controller is not asked: of what comes after, a drop proves nothing.
"""
from __future__ import annotations

import re
import shlex

from kvmnet.doctor.ends import End
from kvmnet.doctor.finding import Certainty, Finding, Severity
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
MACS = ("dl_src=", "dl_dst=")
BEYOND = re.compile(r"userspace\(|nat\(|tnl_push|sample\(")
"""Actions after which the trace is of another packet than the real one, or which leave this host."""


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


def followed(report: Report) -> Report:
    """The report, with the switch's word for each port of Open vSwitch that a packet came to."""
    for hops, end in ((report.there, report.target), (report.back, report.source)):
        for hop in hops:
            hop.findings[:] = [settled(f, end) for f in hop.findings]
    return report


def settled(finding: Finding, end: End) -> Finding:
    """What was not followed, followed; any other finding as it is."""
    words = shlex.split(finding.fix[0]) if finding.code == "not-followed" and finding.fix else []
    if words[:2] != TRACE or not all(m in finding.fix[0] for m in MACS) or "$(" in finding.fix[0]:
        return finding
    try:
        told = verdict(host.run((words[0], f"--timeout={SECONDS:.0f}", *words[1:]), timeout=2 * SECONDS))
    except (host.ToolFailed, HostCannot) as failed:
        return replace(finding, evidence=(*finding.evidence, f"ofproto/trace: {str(failed).splitlines()[0]}"))
    return judged(finding, told, end) if told else finding


def judged(finding: Finding, told: Verdict, end: End) -> Finding:
    there = end.dev or end.segment
    if told.dropped:
        return replace(finding, code="switch-drop", what=f"Open vSwitch drops the packet that comes in at {finding.where}", why="the flow that it met last has it dropped, or no flow matches", certainty=Certainty.PROVED if told.sure else Certainty.UNKNOWN,
                       evidence=(*finding.evidence, f"ofproto/trace: last at {told.last}", "ofproto/trace: Datapath actions: drop"))
    if told.ports and (there in told.ports or not end.dev):
        return replace(finding, severity=Severity.NOTE, certainty=Certainty.PROVED, what=f"Open vSwitch hands the packet that comes in at {finding.where} to {', '.join(told.ports)}", why="its flows were asked with this very packet", evidence=(*finding.evidence, f"ofproto/trace: Datapath actions: {', '.join(told.ports)}"))
    return replace(finding, evidence=(*finding.evidence, f"ofproto/trace: handed to {', '.join(told.ports) or 'no port that it names'}, not to {there}"))
