"""Which logical flow of OVN a flow of OpenFlow was made of: its cookie is the beginning of that row's UUID (ovn-architecture(7)), as ovn-detrace finds it. Only reads."""
from __future__ import annotations

import re
from typing import Any

from kvmnet.doctor.finding import Finding
from kvmnet.errors import HostCannot
from kvmnet.facts.ovsdb import Table, select
from kvmnet.host import run as host
from kvmnet.records import dataclass, replace

COOKIE = re.compile(r"cookie 0x([0-9a-f]+)")
FLOWS: tuple[Table, ...] = (("Logical_Flow", ("_uuid", "priority", "match", "external_ids")),)
STAGES = (
    ("acl", "an ACL has it dropped, or none of those that allow matches", "ovn-nbctl list acl {hint}   # that one: an allow of higher priority beside it, or take it out (acl-del)"),
    ("port_sec", "port security: it is not from, or not to, an address that OVN gave the port", "ovn-nbctl lsp-get-port-security {port}   # lsp-set-port-security {port} 'MAC ADDRESS'"),
    ("ip_routing", "the router has no route there", "ovn-nbctl lr-route-add ROUTER PREFIX NEXTHOP"),
    ("admission", "the router does not take it: its MAC is another, or its gateway is on another chassis", "ovn-nbctl lrp-get-gateway-chassis PORT"),
    ("ip_input", "the router takes it for its own, or it breaks a rule for what routers forward (TTL, source, martian)", "ovn-nbctl lr-nat-list ROUTER   # NAT on a router without a gateway is left out"),
    ("arp_resolve", "the router does not know the next hop's MAC, or the next hop is itself", "ovn-sbctl list mac_binding"),
    ("l2_unknown", "no port of the switch has that MAC", "ovn-nbctl lsp-get-addresses {target}   # or it is disabled or down"),
    ("l2_lkup", "the port with that MAC is disabled or down", "ovn-nbctl lsp-set-enabled {target} enabled"),
)
"""Word of a stage's name (ovn-northd(8)) -> what a drop there means, and the command that looks or mends."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where in OVN's pipeline a packet was dropped."""

    name: str
    priority: int
    match: str
    hint: str
    """Beginning of the UUID of the row of the northbound database that it was made of: an ACL, a route; '' where that is none."""


def stage(remote: str, last: str) -> Stage | None:
    """Of the flow that a trace ends with; None where that is not OVN's, or its database does not tell."""
    if not remote or not (cookie := COOKIE.search(last)):
        return None
    try:
        rows, = select(remote, "OVN_Southbound", FLOWS)
    except (host.ToolFailed, HostCannot, ValueError):
        return None
    return next((made(row) for row in rows if row["_uuid"].startswith(cookie[1].rjust(8, "0"))), None)


def made(row: dict[str, Any]) -> Stage:
    ids = row["external_ids"]
    return Stage(ids.get("stage-name", ""), row["priority"], row["match"], ids.get("stage-hint", ""))


def explained(finding: Finding, found: Stage, ports: tuple[str, str] = ("PORT", "PORT")) -> Finding:
    """``ports``: OVN's names of the port that the packet comes from, and of the one that it goes to."""
    why, look = next(((why, look) for word, why, look in STAGES if word in found.name), (f"stage {found.name} has no flow that lets it pass", ""))
    look = look.format(hint=found.hint or "", port=ports["ls_out" in found.name], target=ports[1])
    told = f"ovn-sbctl --uuid lflow-list: {found.name}, priority {found.priority}, match {found.match}{f', made of the row {found.hint}... of the northbound database' if found.hint else ''}"
    return replace(finding, what=f"OVN drops the packet that comes in at {finding.where}, in {found.name}", why=why, evidence=(*finding.evidence, told), fix=(look, *finding.fix) if look else finding.fix)
