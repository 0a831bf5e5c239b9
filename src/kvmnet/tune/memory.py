"""What a profile would have otherwise of the memory of guests that kvmnet starts: huge pages, and NUMA nodes. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmnet.spec.knobs import Profile
from kvmnet.spec.models import Spec
from kvmnet.tune.proposals import Proposal

LARGE = 1 << 30
"""Bytes from which on a guest's memory has more pages of 4 KiB than a TLB of some thousand entries can hold by far."""
PAGES = "Linux, Documentation/admin-guide/mm/hugetlbpage.rst"
POLICY = "Linux, Documentation/admin-guide/mm/numa_memory_policy.rst"


def memory(profile: Profile, spec: Spec, size: int, free: int, total: int, nodes: int, placed: Mapping[str, int]) -> Iterator[Proposal]:
    """*size*, *free*, *total*: of the host's huge pages (``guests/hugepages.py``). *nodes*: NUMA nodes of the host. *placed*: uplink -> node of its NIC, where the
    machine tells."""
    if profile in (Profile.DENSITY, Profile.ROUTER):    # pages that are set aside are shared with nobody; guests do not route
        return
    left = free
    for name, vm in spec.vms.items():
        if vm.run is None:
            continue
        if size and vm.run.memory >= LARGE and not vm.run.hugepages and vm.run.memory % size == 0:
            left -= vm.run.memory // size
            lacking = f"{free} of {total} huge pages are free: tuning: {{vm.nr_hugepages: {total - left}}}" if left < 0 else ""
            yield Proposal(f"vms.{name}.run.hugepages", "false", "true", "fewer TLB misses, in the guest and where its packets are copied", PAGES,
                           "its memory is taken whole when it starts, and nothing else can have those pages", lacking)
        on = {node for nic in vm.nics if (uplink := spec.networks[nic.network].uplink if nic.network in spec.networks else None)
              and (node := placed.get(uplink)) is not None}
        if nodes > 1 and len(on) == 1 and vm.run.nodes is None:
            yield Proposal(f"vms.{name}.run.nodes", "any", str(*on), "its packets are not copied across to another node", POLICY,
                           "it does not start when that node is full; belongs together with pin: to CPUs of the node")
