"""Groups, tenants and address sets of a host that kvmnet set up, read back from the guard's table. Pure.

Quotas and the networks of tenants are not on the host: guests say their tenant themselves.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvmnet.drivers.nftables.resources import AddressSet, NftTable, NicGroups
from kvmnet.engine.driver import Seen
from kvmnet.engine.resource import Key
from kvmnet.policy.flows import Rule, read
from kvmnet.policy.guard import TABLE
from kvmnet.spec.values import ALL_PORTS

Tree = dict[str, Any]


def policies(seen: Seen) -> Tree:
    """The parts ``groups``, ``address_sets`` and ``tenants`` of the document, where there are any."""
    table = seen.state.get(Key(NftTable.kind, TABLE))
    policy = read(table.text or "") if isinstance(table, NftTable) else None
    if policy is None:
        return {}
    groups = {name: {"ingress": trees(g.ingress, "from")} | ({} if g.egress is None else {"egress": trees(g.egress, "to")})
              | ({"refuse": g.refuse} if g.refuse != "drop" else {}) | ({"log": True} if g.log else {})
              for name, g in policy.groups.items()}
    sets = {r.name: list(r.prefixes or ()) for r in seen.state.values() if isinstance(r, AddressSet)}
    tenants = {name: {"allow": [crossing(rule) for rule in rules]} if rules else {} for name, rules in policy.tenants.items()}
    return {name: part for name, part in (("groups", groups), ("address_sets", sets), ("tenants", tenants)) if part}


def trees(rules: Iterable[Rule], end: str) -> list[Tree]:
    return [tree(rule, end) for rule in rules]


def tree(rule: Rule, end: str) -> Tree:
    out: Tree = {name: "any" if ports == (ALL_PORTS,) else [int(p) if p.isdigit() else p for p in ports]
                 for name, ports in (("tcp", rule.tcp), ("udp", rule.udp)) if ports}
    if rule.icmp is not None:
        out["icmp"] = list(rule.icmp) or True
    if rule.protocol:
        out["protocol"] = list(rule.protocol)
    if rule.peers:
        out[end] = list(rule.peers)
    return out | ({"log": True} if rule.log else {})


def crossing(rule: Rule) -> Tree:
    return {"from": "any"} | tree(rule, "from") | ({"to": rule.to} if rule.to else {})


def memberships(seen: Seen, tap: str) -> tuple[list[str], str]:
    """Groups of the NIC at *tap*, and its tenant or ''."""
    found = seen.state.get(Key(NicGroups.kind, tap))
    return (list(found.groups or ()), found.tenant or "") if isinstance(found, NicGroups) else ([], "")


def known_to_groups(seen: Seen, tap: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """MACs and addresses of the NIC at *tap* as groups know them: a guard that is off knows none."""
    found = seen.state.get(Key(NicGroups.kind, tap))
    return (found.macs or (), found.addresses or ()) if isinstance(found, NicGroups) else ((), ())
