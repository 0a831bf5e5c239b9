"""Cuts the established flows that the rules now loaded forbid: one look at all flows, where there are rules."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kvmnet.drivers.nftables.conntrack import cut
from kvmnet.drivers.nftables.members import Member
from kvmnet.drivers.nftables.resources import AddressSet, NftTable, NicGroups, NicGuard
from kvmnet.drivers.nftables.tables import GUARD
from kvmnet.drivers.nftables.wire import text6
from kvmnet.engine.driver import StepFailed
from kvmnet.policy.flows import Judge, read


def cut_forbidden(table: NftTable | None, members: Collection[Member], guards: Mapping[str, NicGuard],
                  memory: Mapping[str, Iterable[str]]) -> int:
    """Cut what *table* forbids; how many flows. ``memory``: link-local addresses that NICs have claimed.

    Raises StepFailed when the kernel shows or deletes no flows.
    """
    policy = read(table.text or "") if table else None
    if table is None or policy is None:
        return 0
    nics = [m for m in members if isinstance(m, NicGroups)]
    judge = Judge(policy, nics, (m for m in members if isinstance(m, AddressSet)), owners(nics, guards, memory))
    try:
        return cut(lambda flow: not judge.allows(flow))
    except OSError as refused:
        raise StepFailed(table.key, f"flows that the rules forbid could not be cut: {refused.strerror or refused}",
                         "the kernel needs CONFIG_NF_CT_NETLINK (modprobe nf_conntrack_netlink)") from refused


def owners(nics: Iterable[NicGroups], guards: Mapping[str, NicGuard],
           memory: Mapping[str, Iterable[str]]) -> dict[tuple[int, str], str]:
    """(zone, address) -> tap: addresses in the zone of the NIC's network, and in that of its routing domain (0: the host's
    own) those that the host routes."""
    found: dict[tuple[int, str], str] = {}
    zones = {nic.name: nic.zone or 0 for nic in nics}
    for nic in nics:
        guard = guards.get(nic.name)
        found |= {(zones[nic.name], a): nic.name for a in (guard.addresses if guard else None) or ()}
        found |= {(nic.routed or 0, a): nic.name for a in nic.addresses or ()}
    for item in memory.get(f"{GUARD} learned", ()):
        name, address = item.split(" timeout")[0].split(" . ")
        name = name.strip('"')
        if name in zones:
            found[zones[name], text6(int(address, 0))] = name
    return found
