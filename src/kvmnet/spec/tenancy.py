"""Whose guests are whose. Pure."""
from __future__ import annotations

from collections.abc import Mapping

from kvmnet.spec.guests import Vm
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode

BLIND = frozenset({Mode.MACVTAP, Mode.SRIOV})
"""Modes whose frames pass no bridge, and so none of the rules of groups and tenants."""


def owners(spec: Spec) -> dict[str, list[str]]:
    """Network -> the tenants that have it."""
    found: dict[str, list[str]] = {}
    for name, tenant in spec.tenants.items():
        for network in dict.fromkeys(tenant.networks):
            found.setdefault(network, []).append(name)
    return found


def tenant_of(vm: Vm, network: str, owner: Mapping[str, list[str]]) -> str | None:
    """The tenant of a NIC of *vm* on *network*; None when it has none."""
    here = owner.get(network, [])
    return vm.tenant or (here[0] if len(here) == 1 else None)
