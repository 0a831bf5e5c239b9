"""Who must still be reached after a change, read off the states before and after it and its steps. Pure.

A change concerns a target when it touches what leads there: the device that its packets leave by, what that
lies on (the carrier of a VLAN, the members of a bond, the ports of a bridge but not the guests' taps), the
addresses and routes on these, and default routes of its family anywhere.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from itertools import pairwise

from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, Route, default_metric
from kvmnet.drivers.linux.wire import ROUTE_TYPES
from kvmnet.drivers.stp.resources import SpanningTree
from kvmnet.drivers.wireguard.resources import Tunnel, TunnelPeer, tunnel_of
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource, State
from kvmnet.records import dataclass

GATEWAY, NAMED, SESSION = "gateway", "named by reach", "this session comes from it"
"""Why a target is one."""
USUAL, LONG = 10.0, 40.0
"""Seconds that targets get to answer after a change; the long ones where a switch at the other end may take 30 s
to let frames pass: a bond that is made or gets members (LACP; the NIC goes down on its way), or spanning tree."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address that packets must reach. ``dev``: the way out of a gateway; '' where the kernel chooses."""

    address: str
    why: str
    dev: str = ""

    @property
    def family(self) -> int:
        return 6 if ":" in self.address else 4


def gateways(state: State) -> list[Target]:
    """Next hops of every default route, those of the smallest metric first."""
    routes = sorted((r for r in state.values() if isinstance(r, Route) and is_default(r)),
                    key=lambda r: (r.table != "main", rank(r), r.name))
    return list(dict.fromkeys(Target(via, GATEWAY, dev) for r in routes for via, dev in hops(r)))


def is_default(route: Route) -> bool:
    return route.dst == "default" and (route.options or " ").split(" ")[0] not in ROUTE_TYPES


def hops(route: Route) -> Iterator[tuple[str, str]]:
    """(gateway, device) of a route, of each next hop where it has several."""
    if route.via:
        yield route.via, route.dev or ""
    via = ""
    for word, value in pairwise((route.options or "").split()):
        if word == "nexthop":
            via = ""
        elif word == "via":
            via = value
        elif word == "dev" and via:
            yield via, value


def below(device: str, state: State) -> frozenset[str]:
    """*device* and everything that its frames pass on their way out."""
    ports: dict[str, list[str]] = {}
    for item in state.values():
        if isinstance(item, Link) and item.master and item.type != "tap":
            ports.setdefault(item.master, []).append(item.name)
    found: set[str] = set()
    stack = [device]
    while stack:
        name = stack.pop()
        if name in found or not name:
            continue
        found.add(name)
        link = state.get(Key(Link.kind, name))
        stack += ports.get(name, ())
        if isinstance(link, Link) and link.parent:
            stack.append(link.parent)
        if tunnel := tunnel_of(state, name):
            stack.append(tunnel.carrier or "")
    return frozenset(found)


def touched(steps: Iterable[Step]) -> frozenset[str]:
    """Devices that *steps* change, by themselves or in what hangs on them."""
    found: set[str] = set()
    for step in steps:
        for resource in sides(step):
            match resource:
                case Link(type="tap"):
                    pass
                case Link():
                    found.add(resource.name)
                case Tunnel() | TunnelPeer():
                    found.add(resource.name.partition(" ")[0])
                case Address() | BridgeVlan() | Route():
                    found.add(resource.dev or "")
                case _ if resource.kind == "nic-tuning":
                    found.add(resource.name)
    return frozenset(found - {""})


def sides(step: Step) -> tuple[Resource, ...]:
    match step:
        case Create(after):
            return (after,)
        case Update(before, after):
            return before, after
        case Delete(before):
            return (before,)
    raise AssertionError(step)


def default_families(steps: Iterable[Step]) -> frozenset[int]:
    """IP versions whose default routes *steps* change."""
    return frozenset(r.family or 4 for step in steps for r in sides(step) if isinstance(r, Route) and is_default(r))


def prefixes(steps: Iterable[Step]) -> frozenset[str]:
    """Networks that *steps* give another way: destinations of routes, and what new addresses are connected to."""
    found = set()
    for step in steps:
        for resource in sides(step):
            if isinstance(resource, Address):
                found.add(str(ip_interface(resource.name.split()[1]).network))
            elif isinstance(resource, Route) and not is_default(resource) and resource.dst:
                found.add(resource.dst)
    return frozenset(found - {"default"})


@dataclass(frozen=True, slots=True)
class Hit:
    """What a change touches."""

    devices: frozenset[str]
    families: frozenset[int]
    """IP versions whose default routes it changes."""
    prefixes: frozenset[str]

    @classmethod
    def by(cls, steps: Sequence[Step]) -> Hit:
        return cls(touched(steps), default_families(steps), prefixes(steps))

    def __bool__(self) -> bool:
        return bool(self.devices or self.families or self.prefixes)

    def concerns(self, target: Target, device: str, state: State) -> bool:
        """Whether the change concerns a target that is reached by *device* in *state*, before it."""
        address = ip_address(target.address)
        return (target.family in self.families or not self.devices.isdisjoint(below(device, state))
                or any(address in ip_network(prefix) for prefix in self.prefixes))


@dataclass(frozen=True, slots=True)
class After:
    """What becomes of the gateways of one family."""

    required: tuple[Target, ...]
    """Must answer: those that stay, and those that the steps make the preferred one."""
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    """Gateways whose route is gone although no step took it away."""


def after(answered: Sequence[Target], before: State, state: State, steps: Sequence[Step]) -> After:
    """Which gateways must answer in *state*, when *answered* did in *before*, and *steps* lie between the two."""
    now, others = gateways(state), set(gateways(before)) - set(answered)
    removed = {via for route in taken_away(before, steps) for via, _ in hops(route)}
    made = {r.key for step in steps if not isinstance(step, Delete) for r in sides(step)[-1:] if isinstance(r, Route)}
    required: dict[Target, None] = {}
    notes, lost = [], []
    for target in answered:
        stays = [t for t in now if t.address == target.address and t not in others]
        required.update(dict.fromkeys(stays))
        if not stays and target.address in removed:
            notes.append(f"{target.address} is no gateway any more after this change, and is not required to answer")
        elif not stays:
            lost.append(target.address)
    for family in sorted({t.family for t in answered}):
        best = preferred(state, family)
        if best is not None and best.key in made:
            required.update(dict.fromkeys(Target(via, GATEWAY, dev) for via, dev in hops(best)))
    return After(tuple(required), tuple(notes), tuple(lost))


def taken_away(before: State, steps: Iterable[Step]) -> Iterator[Route]:
    """Default routes that *steps* remove or change, also with the link that they are on."""
    for step in steps:
        keys = (step.key, *(step.along if isinstance(step, Delete) else ()))
        for key in () if isinstance(step, Create) else keys:
            route = before.get(key)
            if isinstance(route, Route) and is_default(route):
                yield route


def preferred(state: State, family: int) -> Route | None:
    """The default route that the kernel takes first."""
    routes = [r for r in state.values() if isinstance(r, Route) and is_default(r) and r.family == family and r.table == "main"]
    return min(routes, key=lambda r: (rank(r), r.name), default=None)


def rank(route: Route) -> int:
    """Its metric; that of an advertised one is the kernel's usual one."""
    return default_metric(route.family or 4) if route.metric is None else route.metric


def patience(steps: Iterable[Step]) -> float:
    """Seconds that targets get to answer after *steps*."""
    for step in steps:
        match step:
            case Create(Link(type="bond")) | Create(Link(type="bridge", stp=True)) | Update(_, Link(bonded=True)):
                return LONG
            case Update(Link() as old, Link(master="") | Link(bonded=False)) if old.bonded:
                return LONG
            case Update(_, Link(stp=True)) | Create(SpanningTree()) | Update(_, SpanningTree()):
                return LONG
            case _:
                pass
    return USUAL
