"""What groups and tenants let a guest do: a check does not ask for what they forbid, but that it is forbidden."""
from __future__ import annotations

from collections.abc import Mapping

from kvmnet.drivers.nftables.cutting import owners
from kvmnet.drivers.nftables.resources import AddressSet, NftTable, NicGroups, NicGuard
from kvmnet.engine.resource import Absent, Key, Resource
from kvmnet.policy.flows import ICMP, ICMP6, Flow, Judge, read
from kvmnet.policy.guard import TABLE
from kvmnet.records import dataclass, field

ECHO = {4: (ICMP, 8), 6: (ICMP6, 128)}


@dataclass(frozen=True, slots=True)
class Allowed:
    """The rules of the document in force; everything is allowed where it has none."""

    judge: Judge | None = None
    nics: Mapping[str, NicGroups] = field(default_factory=dict)

    def echo(self, tap: str, source: str, target: str, *, beside: bool) -> bool:
        """Whether an echo from the NIC at *tap* to *target* may pass. ``beside``: a guest of the same network."""
        if self.judge is None or tap not in self.nics:
            return True
        protocol, kind = ECHO[6 if ":" in target else 4]
        zone = (self.nics[tap].zone if beside else self.nics[tap].routed) or 0
        return self.judge.allows(Flow(zone, protocol, source, target, kind, target, kind))

    def sends_anything(self, tap: str) -> bool:
        """Whether no group limits what the NIC at *tap* sends."""
        groups = self.nics[tap].groups if tap in self.nics else ()
        return self.judge is None or not groups or any(
            self.judge.policy.groups[g].egress is None for g in groups)


def allowed(wanted: Mapping[Key, Resource | Absent]) -> Allowed:
    """What the compiled document allows."""
    table = wanted.get(Key(NftTable.kind, TABLE))
    policy = read(table.text or "") if isinstance(table, NftTable) else None
    if policy is None:
        return Allowed()
    nics = {r.name: r for r in wanted.values() if isinstance(r, NicGroups)}
    guards = {r.name: r for r in wanted.values() if isinstance(r, NicGuard)}
    sets = [r for r in wanted.values() if isinstance(r, AddressSet)]
    return Allowed(Judge(policy, nics.values(), sets, owners(nics.values(), guards, {})), nics)
