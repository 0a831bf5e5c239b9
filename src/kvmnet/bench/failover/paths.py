"""Where to ask, and which members the questions and answers go by."""
from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from kvmnet.bench.failover.bonds import Bond, devices_below
from kvmnet.errors import KvmnetError
from kvmnet.host.askers import Asker, Echo, Who
from kvmnet.host.clock import wait_until
from kvmnet.host.filters import marked
from kvmnet.host.run import ToolFailed, run
from kvmnet.host.watch import Watch
from kvmnet.records import dataclass

FLOWS = 32
"""Pings with different identifiers that are tried: with a fair hash and 4 members one is left out in 1 of 2,000."""
PATIENCE = 1.5
"""Seconds for all their answers."""
NAME_ANOTHER = "name one with --to: an address beyond the bond that answers pings"


@dataclass(frozen=True, slots=True)
class Way:
    """One member's turn: how to ask so that the question goes by it."""

    member: str
    ask: Callable[[], Asker]
    words: str
    """What is asked, for people."""


def default_target(bond: str, gateways: Sequence[str]) -> str:
    """An address to ask beyond the bond: a gateway of the document, else a next hop of the host that is reached by it.

    Raises KvmnetError when there is none.
    """
    for address in gateways:
        if passes(bond, address):
            return address
    hops: dict[str, None] = {}
    for family in ("-4", "-6"):
        for route in json.loads(run(("ip", family, "-j", "route", "show")) or "[]"):
            if route.get("gateway") and bond in devices_below(str(route.get("dev", ""))):
                hops[str(route["gateway"])] = None
    if not hops:
        raise KvmnetError(f"no gateway of this host is behind {bond}", NAME_ANOTHER)
    return next(iter(hops))


def passes(bond: str, address: str) -> bool:
    """Whether the host's packets for *address* leave by *bond*."""
    return bond in devices_below(device_towards(address))


def device_towards(address: str) -> str:
    """Device that the host's packets for *address* leave by; '' for none."""
    try:
        rows = json.loads(run(("ip", "-j", "route", "get", address)) or "[]")
    except ToolFailed:
        return ""
    return str(rows[0].get("dev", "")) if rows else ""


def ways(bond: Bond, target: str, wanted: Sequence[str]) -> list[Way]:
    """How to ask *target* by each of the members *wanted*, or by each that carries anything to it if none is named.

    The host asks by ping where it has a way there, else (IPv4) by ARP out of the bond itself. Raises KvmnetError when
    nothing answers, HostCannot.
    """
    if not passes(bond.name, target):
        if ":" in target or has_route(target):
            raise KvmnetError(f"{target} is not reached by {bond.name}", NAME_ANOTHER)
        found = {m.name: Way(m.name, partial(Who, bond.name, target), f"ARP for {target}") for m in bond.members
                 if m.active and m.usable}
    else:
        found = {member: Way(member, partial(Echo, target, secrets.randbits(32), identity), f"pings to {target}")
                 for member, identity in aimed(scout(bond, target)).items()}
        if not found:
            raise KvmnetError(f"{target} does not answer pings by {bond.name}", NAME_ANOTHER)
    if unused := [m for m in wanted if m not in found]:
        raise KvmnetError(f"nothing that is asked of {target} goes by {', '.join(unused)}, so its loss would not be seen",
                          f"in mode {bond.mode} {', '.join(found) or 'no member'} carries it; try another --to")
    return [way for name, way in found.items() if not wanted or name in wanted]


def has_route(address: str) -> bool:
    return device_towards(address) != ""


def scout(bond: Bond, target: str) -> Mapping[int, tuple[str, str]]:
    """Identifier of a ping -> members that it left and came back by ('' for not seen)."""
    mark, base = secrets.randbits(32), secrets.randbelow(0xFFFF - FLOWS)
    heeded = {m.name for m in bond.members if m.active}    # a backup drops what it hears
    out: dict[int, str] = {}
    back: dict[int, str] = {}

    def all_seen() -> bool:
        for watch in watches:
            while (got := watch.receive()) is not None:
                leaves, frame = got
                place = frame.index(mark.to_bytes(4, "big"))
                identity = int.from_bytes(frame[place - 4:place - 2], "big")
                if leaves:
                    out[identity] = watch.device
                elif watch.device in heeded:
                    back[identity] = watch.device
        return len(back) == FLOWS

    with ExitStack() as stack:
        watches = [stack.enter_context(Watch(m.name, marked(mark))) for m in bond.members]
        for identity in range(base, base + FLOWS):
            stack.enter_context(Echo(target, mark, identity)).ask(0)
        with suppress(TimeoutError):
            wait_until(all_seen, PATIENCE)
    return {identity: (out.get(identity, ""), member) for identity, member in back.items()}


def aimed(paths: Mapping[int, tuple[str, str]]) -> dict[str, int]:
    """Member -> identifier of a ping that uses it: best both ways, else out, else back."""
    both = {back: identity for identity, (out, back) in paths.items() if out == back}
    leaves = {out: identity for identity, (out, _) in paths.items()}
    returns = {back: identity for identity, (_, back) in paths.items()}
    found = {**returns, **leaves, **both}
    return {member: found[member] for member in sorted(found) if member}
