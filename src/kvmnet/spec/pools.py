"""The addresses of a network: which one the host has and which ones NICs may get. Pure."""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeAlias

from kvmnet.records import dataclass
from kvmnet.spec.guests import Nic, Vm
from kvmnet.spec.names import nic_name, standby_name
from kvmnet.spec.networks import SHARED, Network
from kvmnet.spec.rates import Rate


class Family(IntEnum):
    IPV4 = 4
    IPV6 = 6


Span: TypeAlias = tuple[int, int]
"""First and last address, as numbers, both included."""

_ADDRESS: dict[Family, type[IPv4Address] | type[IPv6Address]] = {
    Family.IPV4: IPv4Address, Family.IPV6: IPv6Address}
_NETWORK: dict[Family, type[IPv4Network] | type[IPv6Network]] = {
    Family.IPV4: IPv4Network, Family.IPV6: IPv6Network}


class PlacedNic(NamedTuple):
    """One NIC of the document with its names."""

    vm: str
    position: int
    name: str
    nic: Nic
    key: tuple[str, str, str]
    """Guest, NIC, network."""
    primary: str = ""
    """Name of the VF that it stands by for; '' for a NIC of the document."""

    @property
    def path(self) -> str:
        return f"vms.{self.vm}.nics[{self.position}]" + (".failover" if self.primary else "")


def nics_of(vm: str, declared: Vm) -> Iterator[PlacedNic]:
    for position, nic in enumerate(declared.nics):
        name = nic_name(position, nic.name)
        if nic.failover is None:
            yield PlacedNic(vm, position, name, nic, (vm, name, nic.network))
        else:  # the addresses are those of the card that the guard watches
            beside, own = standby_name(name), standby(nic)
            yield PlacedNic(vm, position, beside, own, (vm, beside, own.network), primary=name)
            yield PlacedNic(vm, position, name, nic.model_copy(update={"ip": "none", "ip6": "none"}), (vm, name, nic.network))


def standby(nic: Nic) -> Nic:
    """The virtio card beside a VF: the same guest's NIC, by another way."""
    return Nic(network=nic.failover or "", mac=nic.mac, ip=nic.ip, ip6=nic.ip6, hostname=nic.hostname, extra=nic.extra,
               queues=nic.queues, vhost=nic.vhost, offloads=nic.offloads, rx_ring=nic.rx_ring, tx_ring=nic.tx_ring,
               rate=Rate(out=nic.rate.out))


@lru_cache(maxsize=50_000)
def number(text: str) -> int:
    """An address as a number."""
    return int(IPv6Address(text)) if ":" in text else int(IPv4Address(text))


def address(value: int, family: Family) -> str:
    """A number as an address, in canonical form."""
    return str(_ADDRESS[family](value))


@lru_cache(maxsize=50_000)
def span(text: str, family: Family) -> Span:
    """First and last of an address, of a prefix or of FIRST-LAST."""
    if "-" in text:
        first, _, last = text.partition("-")
        return number(first), number(last)
    if "/" not in text:
        return number(text), number(text)
    network = _NETWORK[family](text)
    return int(network.network_address), int(network.broadcast_address)


def subnet_of(network: Network, family: Family) -> str | None:
    return network.subnet if family is Family.IPV4 else network.subnet6


def host_address(network: Network, family: Family) -> str:
    """The host's address on *network*: as declared, else the first of the prefix; '' for none. On a segment
    that others share the host has none unless it is declared."""
    subnet = subnet_of(network, family)
    declared = network.address if family is Family.IPV4 else network.address6
    if not subnet or declared == "none":
        return ""
    if declared:
        return declared
    if network.mode in SHARED:
        return ""
    first, last = span(subnet, family)
    return address(min(first + 1, last), family)


def reserved(network: Network, family: Family) -> dict[int, str]:
    """Addresses that no NIC may have -> what they are."""
    subnet = subnet_of(network, family)
    out: dict[int, str] = {}
    if subnet:
        first, last = span(subnet, family)
        if family is Family.IPV6:
            out[first] = "the subnet-router anycast address (RFC 4291, 2.6.1)"
        elif last - first > 1:  # both addresses of a /31 are hosts (RFC 3021)
            out[first], out[last] = "the network address", "the broadcast address"
    gateway = network.gateway if family is Family.IPV4 else network.gateway6
    if gateway:
        out[number(gateway)] = "the gateway"
    if host := host_address(network, family):
        out[number(host)] = "the host's own address"
    if network.metadata and family is Family.IPV4:
        out[number(network.metadata.address)] = "the metadata service's address"
    return out


@dataclass(slots=True)
class Pool:
    """Addresses that NICs without one of their own get, lowest first."""

    first: int
    last: int
    barred: tuple[Span, ...]
    """Spans inside the pool that nobody gets: sorted, apart from each other."""
    family: Family
    cursor: int = -1

    def __contains__(self, value: int) -> bool:
        return self.first <= value <= self.last and self._bar(value) is None

    def size(self) -> int:
        """Addresses that can be given out."""
        return self.last - self.first + 1 - sum(last - first + 1 for first, last in self.barred)

    def take(self, taken: set[int]) -> int | None:
        """The lowest address that is not in *taken*; put there. It never looks back, so that all takes
        together are O(n): what becomes free meanwhile is not found again."""
        value = max(self.cursor, self.first)
        while value <= self.last:
            bar = self._bar(value)
            if bar is not None:
                value = bar[1] + 1
            elif value in taken:
                value += 1
            else:
                self.cursor = value + 1
                taken.add(value)
                return value
        self.cursor = value
        return None

    def _bar(self, value: int) -> Span | None:
        at = bisect_right(self.barred, (value, 1 << 130)) - 1
        return self.barred[at] if at >= 0 and self.barred[at][1] >= value else None

    def __str__(self) -> str:
        return f"{address(self.first, self.family)}-{address(self.last, self.family)}"


def pool(network: Network, family: Family, extras: Iterable[str] = ()) -> Pool | None:
    """The pool of *network*; None without a prefix. *extras*: further addresses and prefixes that guests
    hold (VRRP, nested guests), which nobody else may get."""
    subnet = subnet_of(network, family)
    if not subnet:
        return None
    declared = network.pool if family is Family.IPV4 else network.pool6
    first, last = span(declared or subnet, family)
    bars = [(value, value) for value in reserved(network, family)]
    bars += [span(extra, family) for extra in extras if (":" in extra) == (family is Family.IPV6)]
    return Pool(first, last, merged(bars, first, last), family)


def merged(spans: Iterable[Span], low: int, high: int) -> tuple[Span, ...]:
    """*spans* cut to low..high, sorted, those that touch joined."""
    out: list[Span] = []
    for first, last in sorted(spans):
        first, last = max(first, low), min(last, high)
        if first > last:
            continue
        if out and first <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(last, out[-1][1])
        else:
            out.append((first, last))
    return tuple(out)


def declared_address(nic: Nic, family: Family) -> str | None:
    return nic.ip if family is Family.IPV4 else nic.ip6


def from_pool(nic: Nic, network: Network, family: Family) -> bool:
    """Whether *nic* gets its address from the network's pool. With ``ra: autoconf`` guests form their
    IPv6 addresses themselves, from the prefix bound to the NIC."""
    if declared_address(nic, family) is not None or not subnet_of(network, family):
        return False
    return family is Family.IPV4 or network.ra != "autoconf"
