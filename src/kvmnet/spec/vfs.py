"""VFs for the NICs of networks in mode sriov: which number each one gets, the same for ever. Pure.

As with addresses: a declared number wins, what a NIC got once it keeps, and the number of a NIC that is gone is
given out again only when no other is left.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kvmnet.drivers.sriov.resources import pool_of, vfs_of
from kvmnet.engine.resource import State
from kvmnet.errors import Problem
from kvmnet.facts.model import Allocations
from kvmnet.spec import ways
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode
from kvmnet.spec.pools import PlacedNic

NicKey = tuple[str, str, str]
Rooms = Mapping[str, Sequence[int]]
"""Uplink -> numbers of VFs that NICs may get."""


def members(spec: Spec, nics: Iterable[PlacedNic]) -> dict[str, list[PlacedNic]]:
    """NICs that are VFs, by uplink."""
    found: dict[str, list[PlacedNic]] = {}
    for item in nics:
        network = spec.networks.get(item.nic.network)
        if network and network.mode is Mode.SRIOV and network.uplink in spec.uplinks:
            found.setdefault(network.uplink or "", []).append(item)
    return found


def kept(uplink: str, spec: Spec, state: State) -> int:
    """VFs of others that are enough, and stay as they are; 0 when VFs are made or ours."""
    pool = pool_of(state, ways.device(uplink, spec))
    if pool is None or pool.made or (pool.count or 0) < (spec.uplinks[uplink].vfs or 1):
        return 0
    return pool.count or 0


def count(uplink: str, spec: Spec, state: State) -> int:
    """VFs that the uplink's NIC will have; 0 when that is not known."""
    return kept(uplink, spec, state) or spec.uplinks[uplink].vfs or 0


def rooms(spec: Spec, state: State) -> dict[str, list[int]]:
    """What may be given out: VFs that nobody else uses."""
    found = {}
    for name in {n.uplink for n in spec.networks.values() if n.mode is Mode.SRIOV and n.uplink in spec.uplinks}:
        held = {number for number, vf in vfs_of(state, ways.device(name or "", spec)).items() if vf.holder}
        found[name or ""] = [n for n in range(count(name or "", spec, state)) if n not in held]
    return found


def give(spec: Spec, nics: Iterable[PlacedNic], existing: Allocations, rooms: Rooms) -> tuple[dict[NicKey, int], list[Problem]]:
    """The VF of every NIC that is one, -1 for remembered names that lost theirs, and NICs for which none is left."""
    out: dict[NicKey, int] = {}
    problems: list[Problem] = []
    present = {item.key for item in nics}
    for uplink, here in members(spec, nics).items():
        room = rooms.get(uplink)
        free = list(range(spec.uplinks[uplink].vfs or 256) if room is None else room)
        taken = {item.nic.vf for item in here if item.nic.vf is not None}
        out.update((item.key, item.nic.vf) for item in here if item.nic.vf is not None)
        waiting = []
        for item in here:
            if item.nic.vf is None:
                old = existing[item.key].vf if item.key in existing else -1
                if old in free and old not in taken:
                    taken.add(old)
                    out[item.key] = old
                else:
                    waiting.append(item)
        spare = list(remembered(uplink, spec, present, existing, taken, out))
        held = {number for _, number in spare}
        unused = iter([n for n in free if n not in taken and n not in held])
        again = iter([(key, number) for key, number in spare if number in free])
        for item in waiting:
            number = next(unused, None)
            if number is None and (oldest := next(again, None)) is not None:
                number, out[oldest[0]] = oldest[1], -1
            if number is None:
                problems.append(Problem(0, 0, item.path, f"no VF of uplink {uplink} is left: {len(free)} can be used, "
                                        f"and {len(here)} NICs want one", f"write a larger uplinks.{uplink}.vfs"))
            else:
                out[item.key] = number
    return out, problems


def remembered(uplink: str, spec: Spec, present: set[NicKey], existing: Allocations, taken: set[int],
               out: dict[NicKey, int]) -> Iterator[tuple[NicKey, int]]:
    """VFs of names that are gone, the oldest first."""
    for key, old in existing.items():
        network = spec.networks.get(key[2])
        if key not in present and old.vf >= 0 and network and network.uplink == uplink:
            if old.vf in taken:
                out[key] = -1
            else:
                yield key, old.vf
