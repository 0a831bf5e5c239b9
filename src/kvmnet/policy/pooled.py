"""What all NICs of a tenant send and receive together: a queue for each direction, by which the frames of all of them go. Pure.

What they send waits where it comes in by their taps, what they receive where these are about to send it, before the tap's own queue.
Where the kernel can write a class into a frame on its way there (act_skbedit), each NIC has a class in the queue: they share equally,
and a NIC's own rate.out is the ceiling of its class. Elsewhere it is one line, and a rate.out of a NIC cannot stand beside it.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.tc.resources import EGRESS, INGRESS, class_name, detour
from kvmnet.engine.resource import Resource
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.policy.rates import bucket, own_leaf, usual_leaf
from kvmnet.policy.shares import LITTLE, MINORS, REST, numbers, tree
from kvmnet.spec.names import tenant_queue
from kvmnet.spec.rates import Rate, TenantRate

CLASSED = "tc-skbedit"
"""Feature: frames can be told their class on the way to the queue."""


def tree_names(tenants: Iterable[str]) -> list[str]:
    """What trees of tenants are known by, for their major numbers; no network has such a name."""
    return [tree_name(name, direction) for name in tenants for direction in ("in", "out")]


def tree_name(tenant: str, direction: str) -> str:
    return f"tenant {tenant} {direction}"


def classes_out(name: str, rate: TenantRate, members: Iterable[tuple[NicOnNetwork, Segment]], majors: Mapping[str, int],
                features: Mapping[str, str]) -> dict[str, str]:
    """Tap -> class (``DEV CLASSID``) that what its guest sends waits in; nothing where frames cannot be told one."""
    if not rate.out or features.get(CLASSED) != "":
        return {}
    ids = numbers((nic.tap for nic, _ in queued(members)), MINORS)
    return {tap: class_name(tenant_queue(name, "out"), majors[tree_name(name, "out")], minor) for tap, minor in ids.items()}


def queued(members: Iterable[tuple[NicOnNetwork, Segment]]) -> list[tuple[NicOnNetwork, int]]:
    """NICs that wait, with their MTU."""
    return [(nic, segment.mtu) for nic, segment in members if nic.tap and nic.declared.receives == "all"]


def tenant_rates(name: str, rate: TenantRate, members: Iterable[tuple[NicOnNetwork, Segment]], majors: Mapping[str, int],
                 features: Mapping[str, str]) -> Iterator[Resource]:
    """What limits all NICs of a tenant, which are taps of bridges (spec/rules/groups.py). ``majors``: of ``tree_names``."""
    inner, classed, nics = usual_leaf(features), features.get(CLASSED) == "", queued(members)
    ids = numbers((nic.tap for nic, _ in nics), MINORS)
    for direction, most, side in (("in", rate.in_, EGRESS), ("out", rate.out, INGRESS)):
        if not most or not nics:
            continue
        device, major = tenant_queue(name, direction), majors[tree_name(name, direction)]
        yield Link(name=device, type="ifb", mtu=max(mtu for _, mtu in nics), up=True, master="", alias=f"kvmnet rate of tenant {name}",
                   addrgenmode="none")
        if not classed:
            yield from bucket(device, most, None, inner)
            yield from (detour(nic.tap, device, side) for nic, _ in nics)
            continue
        own = {ids[nic.tap]: (LITTLE, min(most, nic.declared.rate.out or most) if direction == "out" else most, Rate().priority)
               for nic, _ in nics}
        yield from tree(device, major, most, {REST: (LITTLE, most, Rate().priority)} | own, {ids[nic.tap]: own_leaf(nic) for nic, _ in nics}, inner, default=REST)
        yield from (detour(nic.tap, device, side, f"{major:x}:{ids[nic.tap]:x}") for nic, _ in nics)
