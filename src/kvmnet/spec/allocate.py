"""Addresses for every NIC, the same ones for ever. Pure and deterministic.

What a NIC got once it keeps: the name is remembered after the NIC is gone, and gets the same again when
it comes back. Only when a pool has nothing else left are the addresses of names that are gone given
out again, oldest first. A declared address always wins over a given one.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2s

from kvmnet.errors import Problem, SpecError
from kvmnet.facts.model import Allocation, Allocations
from kvmnet.spec import pools, vfs
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Network
from kvmnet.spec.pools import Family, PlacedNic
from kvmnet.spec.vfs import Rooms

NicKey = tuple[str, str, str]
OUI = "52:54:00"
"""The prefix of QEMU's and libvirt's guests (locally administered)."""


def allocate(spec: Spec, existing: Allocations, rooms: Rooms | None = None) -> Allocations:
    """MAC, addresses and VF of every NIC of *spec*, and what is remembered of NICs that are gone. ``rooms``: VFs that
    can be given out, by uplink.

    The order is that of *existing*, oldest first, then new NICs in the document's order. For a document
    that passed ``checks`` every NIC finds an address; otherwise raises SpecError (without lines)."""
    placed = spec.placed
    macs = _macs(placed, existing)
    by_network: dict[str, list[PlacedNic]] = {}
    for item in placed:
        by_network.setdefault(item.nic.network, []).append(item)
    remembered = _remembered(existing, {item.key for item in placed})
    found: dict[Family, dict[NicKey, str]] = {Family.IPV4: {}, Family.IPV6: {}}
    problems: list[Problem] = []
    for name, members in by_network.items():
        network = spec.networks.get(name)
        for family in Family:
            giver = _Giver(name, network, family, members, existing, remembered.get(name, ()))
            found[family].update(giver.give())
            problems += giver.problems
    numbers, lacking = vfs.give(spec, placed, existing, rooms or {})
    if problems + lacking:
        raise SpecError("allocation", problems + lacking)
    return _result(placed, existing, macs, found[Family.IPV4], found[Family.IPV6], numbers)


def _remembered(existing: Allocations, present: set[NicKey]) -> dict[str, list[NicKey]]:
    """Names that are gone, by network, oldest first."""
    out: dict[str, list[NicKey]] = {}
    for key in existing:
        if key not in present:
            out.setdefault(key[2], []).append(key)
    return out


def _result(placed: Iterable[PlacedNic], existing: Allocations, macs: dict[NicKey, str],
            ip: dict[NicKey, str], ip6: dict[NicKey, str], numbers: dict[NicKey, int]) -> Allocations:
    present = {item.key: Allocation(macs[item.key], ip.get(item.key, ""), ip6.get(item.key, ""), numbers.get(item.key, -1))
               for item in placed}
    out: dict[NicKey, Allocation] = {}
    for key, old in existing.items():
        out[key] = present.get(key) or Allocation(old.mac, ip.get(key, old.ip), ip6.get(key, old.ip6),
                                                  numbers.get(key, old.vf))
    out.update(present)
    return out


class _Giver:
    """Gives the addresses of one family on one network."""

    def __init__(self, name: str, network: Network | None, family: Family, members: list[PlacedNic],
                 existing: Allocations, remembered: Iterable[NicKey]):
        self.name, self.network, self.family, self.members = name, network, family, members
        self.old = {key: old for key in (*(m.key for m in members), *remembered)
                    if (old := _address(existing, key, family))}
        self.remembered = [key for key in remembered if key in self.old]
        self.pool = pools.pool(network, family, _extras(members)) if network else None
        self.problems: list[Problem] = []

    def give(self) -> dict[NicKey, str]:
        """The address of every member ('' for none), and '' for every remembered name that lost its own."""
        out: dict[NicKey, str] = {}
        taken: set[int] = set()
        for item in self.members:
            declared = pools.declared_address(item.nic, self.family)
            if declared is not None:
                out[item.key] = "" if declared == "none" else declared
                if out[item.key]:
                    taken.add(pools.number(declared))
        waiting = []
        for item in self.members:
            if item.key in out:
                continue
            if self.network is None or not pools.from_pool(item.nic, self.network, self.family):
                out[item.key] = ""
            elif not self._keep(item.key, taken, out):
                waiting.append(item)
        spare = [key for key in self.remembered if self._hold(key, taken, out)]
        self._hand_out(waiting, taken, iter(spare), out)
        return out

    def _keep(self, key: NicKey, taken: set[int], out: dict[NicKey, str]) -> bool:
        """Whether the member of *key* can have again what it had."""
        old = self.old.get(key)
        if old is None or self.pool is None:
            return False
        value = pools.number(old)
        if value in taken or value not in self.pool:
            return False
        taken.add(value)
        out[key] = old
        return True

    def _hold(self, key: NicKey, taken: set[int], out: dict[NicKey, str]) -> bool:
        """Whether the remembered name of *key* still holds an address that the pool could give again."""
        value = pools.number(self.old[key])
        if value in taken:
            out[key] = ""
            return False
        taken.add(value)
        return self.pool is not None and value in self.pool

    def _hand_out(self, waiting: Iterable[PlacedNic], taken: set[int], spare: Iterator[NicKey],
                  out: dict[NicKey, str]) -> None:
        for item in waiting:
            assert self.pool is not None
            value = self.pool.take(taken)
            if value is None and (oldest := next(spare, None)) is not None:
                value = pools.number(self.old[oldest])
                out[oldest] = ""
            if value is None:
                self.problems.append(Problem(0, 0, item.path, f"no address of {self.pool} on {self.name} is left",
                                             f"widen networks.{self.name}.pool or the prefix"))
            else:
                out[item.key] = pools.address(value, self.family)


def _extras(members: Iterable[PlacedNic]) -> Iterator[str]:
    for item in members:
        yield from item.nic.extra.addresses


def _address(existing: Allocations, key: NicKey, family: Family) -> str:
    old = existing.get(key)
    if old is None:
        return ""
    return old.ip if family is Family.IPV4 else old.ip6


def _macs(placed: Iterable[PlacedNic], existing: Allocations) -> dict[NicKey, str]:
    """Declared, else the one it had, else one made of its names. Those made are unique on the whole host."""
    declared = {item.nic.mac for item in placed if item.nic.mac}
    declared.update(mac for item in placed for mac in item.nic.extra.macs)
    out: dict[NicKey, str] = {}
    waiting = []
    for item in placed:
        old = existing.get(item.key)
        if item.nic.mac:
            out[item.key] = item.nic.mac
        elif item.primary:
            continue
        elif old is not None and old.mac and old.mac not in declared:
            out[item.key] = old.mac
        else:
            waiting.append(item.key)
    taken = declared | set(out.values()) | {old.mac for old in existing.values()}
    for key in waiting:
        out[key] = mac = next(mac for mac in _candidates(key) if mac not in taken)
        taken.add(mac)
    by_name = {(item.vm, item.name): item.key for item in placed}
    out.update((item.key, out[by_name[item.vm, item.primary]]) for item in placed if item.primary and not item.nic.mac)
    return out


def _candidates(key: NicKey) -> Iterator[str]:
    attempt = 0
    while True:
        seed = "\0".join((*key, str(attempt)))
        tail = blake2s(seed.encode(), digest_size=3, person=b"kvmnet").digest()
        yield ":".join((OUI, *(f"{byte:02x}" for byte in tail)))
        attempt += 1
