"""A rule that loses the packet, as a finding: which one, why it matched, and what to add where. Pure."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.hooks import Passage
from kvmnet.doctor.judge import Step, Verdict
from kvmnet.doctor.packet import ARP, ICMP, ICMP6, TCP, UDP, Context, Packet
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.view import View
from kvmnet.doctor.xtables import LEGACY

OURS = ("kvmnet", "kvmnet-keeper")
PROTOCOLS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "ipv6-icmp"}


def by_rule(scene: Scene, context: Context, passage: Passage, asked: bool) -> Finding:
    """Of a chain that drops the packet, or of which nobody can tell."""
    step = next((s for s in reversed(passage.reasons) if s.verdict != "accept"), passage.reasons[-1] if passage.reasons else passage.judgement.steps[-1])
    unknown = passage.verdict is Verdict.UNKNOWN
    family, table, _ = step.place.split(" ", 2)
    kind = "the question who has the address" if asked else "the packet"
    verb = "may lose" if unknown else "takes away" if " fwd " in f" {step.text} " else "rejects" if step.verdict == "reject" else "drops"
    evidence = [f"{step.place}: {step.text}", counter(scene, step)]
    if step.comes:
        evidence.append(f"called from chain {step.comes}, hook {step.hook}, priority {step.priority}")
    return Finding(
        code="rule-unknown" if unknown else "bridge-netfilter" if bridged(context, passage) else f"{'arp' if asked else 'rule'}-drop",
        severity=Severity.BLOCKS, where=step.place, certainty=Certainty.UNKNOWN if unknown else Certainty.PROVED,
        what=f"{step.text if step.handle else step.text + ' of chain ' + step.place.split()[-1]} {verb} {kind}",
        why=reason(scene, context, passage, step, unknown), evidence=tuple(e for e in evidence if e),
        fix=() if unknown else cure(scene, context, passage, step, family, table))


def by_limit(passage: Passage) -> Finding:
    """Of a chain that lets the packet pass as long as its limits are not reached."""
    limits = passage.limits
    return Finding(
        code="limited", severity=Severity.NOTE, where=passage.chain, certainty=Certainty.PROVED,
        what=f"{len(limits)} limit{'s' if len(limits) > 1 else ''} let the packet pass as long as {'they are' if len(limits) > 1 else 'it is'} not reached",
        why="a rate is used up by other packets, which cannot be told from here; what was dropped is counted: kvmnet status --drops, nft list ruleset",
        evidence=tuple(dict.fromkeys(f"{s.place}: {s.text}" for s in limits)))


def bridged(context: Context, passage: Passage) -> bool:
    """Whether rules of IP judge what only passes a bridge."""
    return passage.layer == "ip" and context.crossing


def reason(scene: Scene, context: Context, passage: Passage, step: Step, unknown: bool) -> str:
    if unknown:
        return "it asks for something that only the live system can tell (a limit, an extension of iptables, a socket); kvmnet why without --facts tries it with a packet"
    if step.place.split()[1] in OURS:
        return "kvmnet put it there: the document does not allow this"
    if bridged(context, passage):
        owner = needed_by(scene)
        return "br_netfilter sends frames that only cross the bridge through the rules of IP, which were written for the host itself" + (
            f"; leave it on: {owner}" if owner else "")
    return "an accept in another table does not overrule it: every chain at a hook has its say"


def counter(scene: Scene, step: Step) -> str:
    """Packets that a rule has counted so far, where it counts."""
    for item in scene.part("nft"):
        rule = item.get("rule")
        if rule and rule.get("handle") == step.handle and (rule["family"], rule["table"]) == tuple(step.place.split()[:2]):
            counted: Any = next((s["counter"] for s in rule.get("expr", ()) if isinstance(s, Mapping) and isinstance(s.get("counter"), Mapping)), None)
            return f"it has counted {counted['packets']} packets" if counted else ""
    return ""


def cure(scene: Scene, context: Context, passage: Passage, step: Step, family: str, table: str) -> tuple[str, ...]:
    """Commands that let this packet pass there; of what kvmnet made, the document's words."""
    if table in OURS:
        return ()
    chain = step.place.split(" ", 2)[2]
    version = context.packet.version
    if bridged(context, passage):
        bridge = context.bridge_in or context.bridge_out
        if needed_by(scene):
            return through_a_bridge(passage, family, table, chain)
        return (f"sysctl -w net.bridge.bridge-nf-call-ip{'6' if version == 6 else ''}tables=0", f"ip link set {bridge} type bridge nf_call_ip{'6' if version == 6 else ''}tables 0")
    legacy = table.startswith(LEGACY)
    if family in ("ip", "ip6") and table.removeprefix(LEGACY) in ("filter", "mangle", "raw") and (chain.isupper() or legacy):
        tool = ("ip6tables" if family == "ip6" else "iptables") + ("-legacy" if legacy else "") + ("" if table.endswith("filter") else f" -t {table.removeprefix(LEGACY)}")
        place = "DOCKER-USER" if passage.hook == "forward" and ("DOCKER-USER" in scene.ruleset.tables[family, table].chains) else chain
        return (f"{tool} -I {place} {' '.join(w for w in (*devices_of(passage), *asked_for(context, passage, table)) if w)} -j ACCEPT",)
    return (f"nft insert rule {family} {table} {chain} {selector(context, passage)} accept",)


def devices_of(passage: Passage) -> tuple[str, ...]:
    return (f"-i {passage.iif}" if passage.iif else "", f"-o {passage.oif}" if passage.oif else "")


def asked_for(context: Context, passage: Passage, table: str) -> tuple[str, ...]:
    """What tells an accept of iptables that nothing else is meant: answers only, and of the host itself only what was asked. What guests send
    through the host passes as a whole: who asks for one port needs the next."""
    packet: Packet = context.packet
    if context.tracked is not None and context.tracked.direction == 1 and not table.endswith("raw"):
        return ("-m conntrack --ctstate RELATED,ESTABLISHED",)
    if passage.hook != "input" or not packet.upper:
        return ()
    return (f"-s {packet.source}", f"-p {PROTOCOLS.get(packet.upper[0], packet.upper[0])}", f"--dport {packet.ports[1]}" if packet.upper[0] in (TCP, UDP) else "")


RELYING = (
    (re.compile(r"\bKUBE-[A-Z]|\bcali-|\bCNI-"), "Kubernetes sees packets between pods of one node by it only"),
    (re.compile(r"\bDOCKER\b|\bDOCKER-"), "Docker separates its networks, and publishes ports to containers of the same network, by it"),
    (re.compile(r"\b[FH][IOJP]-(?:vnet|macvtap)|\blibvirt-(?:in|out)\b"), "libvirt's filters of guests (nwfilter) are rules of IP, and see frames by it only"),
)
"""Words in rules -> who relies on net.bridge.bridge-nf-call-*, and for what."""
PROGRAMS = {"dockerd": RELYING[1][1]}


def needed_by(view: View) -> str:
    """Who needs bridge netfilter on this host; '' where nobody is known to."""
    text = "\n".join((str(view.facts.get("nft_text") or ""), *(view.facts.get("xtables") or {}).values()))
    return next((words for pattern, words in RELYING if pattern.search(text)), "") or next((PROGRAMS[s["program"]] for s in view.rows("servers") if s["program"] in PROGRAMS), "")


def through_a_bridge(passage: Passage, family: str, table: str, chain: str) -> tuple[str, ...]:
    """An accept of what only crosses a bridge, in the chain that drops it: a routed packet never has one bridge on both sides."""
    legacy = table.startswith(LEGACY)
    if family in ("ip", "ip6") and table.removeprefix(LEGACY) == "filter" and (chain.isupper() or legacy):
        return (f"{'ip6tables' if family == 'ip6' else 'iptables'}{'-legacy' if legacy else ''} -I {chain} -m physdev --physdev-is-bridged -j ACCEPT",)
    devices = " ".join(f"{key} '\"{dev}\"'" for key, dev in (("iifname", passage.iif), ("oifname", passage.oif)) if dev)
    return (f"nft insert rule {family} {table} {chain} {devices} accept",)


def selector(context: Context, passage: Passage) -> str:
    """What tells this packet from others, in nft's words, quoted for a shell."""
    packet: Packet = context.packet
    if packet.protocol == ARP:
        return "arp htype 1" if passage.layer == "arp" else "ether type arp"     # what the host itself sends has no Ethernet header there yet
    words = [f"{key} '\"{dev}\"'" for key, dev in (("iifname", passage.iif), ("oifname", passage.oif)) if dev]
    if packet.version:
        ip = "ip6" if packet.version == 6 else "ip"
        words += [f"{ip} saddr {packet.source}", f"{ip} daddr {packet.target}"]
    if packet.upper and packet.upper[0] in (TCP, UDP):
        answer = context.tracked is not None and context.tracked.direction == 1
        words.append(f"{PROTOCOLS[packet.upper[0]]} {'sport' if answer else 'dport'} {packet.ports[0 if answer else 1]}")
    elif packet.upper:
        words.append(f"meta l4proto {PROTOCOLS.get(packet.upper[0], packet.upper[0])}")
    return " ".join(words)
