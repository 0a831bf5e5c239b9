"""MACs and addresses of NICs: each once, in the prefix, and enough of them. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.linux.resources import Address
from kvmnet.errors import Problem
from kvmnet.spec import pools
from kvmnet.spec.guests import Nic
from kvmnet.spec.networks import SHARED, MacvtapMode, Mode, Network
from kvmnet.spec.pools import Family, PlacedNic
from kvmnet.spec.rules.subject import Subject, wrong

_OPTION = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def duplicate_macs(subject: Subject) -> Iterator[Problem]:
    """One MAC on two NICs of a network, or on the NIC that the network's bridge takes. On two networks
    the same MAC does no harm."""
    for name, here in subject.members.items():
        seen: dict[str, str] = {}
        outer = {link.mac: link.name for device in subject.outer_devices(name)
                 if (link := subject.links.get(device)) and link.mac}
        if subject.spec.networks[name].macvtap is MacvtapMode.PASSTHRU:
            outer = {}    # the uplink has its guest's
        for item in here:
            if not item.nic.mac:
                continue
            first = seen.setdefault(item.nic.mac, item.path)
            if first != item.path:
                yield wrong(f"{item.path}.mac", f"{item.nic.mac} is the MAC of {first} too, on the same network",
                            "give one of them another, or remove mac: and a unique one is made")
            elif item.nic.mac in outer:
                yield wrong(f"{item.path}.mac", f"{item.nic.mac} is the MAC of the host's {outer[item.nic.mac]}",
                            "remove mac: and a unique one is made")


def declared_addresses(subject: Subject) -> Iterator[Problem]:
    """Declared addresses outside the prefix, reserved, or on two NICs of a network."""
    for name, here in subject.members.items():
        network = subject.spec.networks[name]
        for family in Family:
            taken = _outer_addresses(subject, name, family) | pools.reserved(network, family)
            seen: dict[str, str] = {}
            for item in here:
                value = pools.declared_address(item.nic, family)
                if value and value != "none":
                    yield from _declared(network, name, item, value, family, taken)
                    first = seen.setdefault(value, item.path)
                    if first != item.path:
                        yield wrong(f"{item.path}.{_OPTION[family]}",
                                    f"{value} is the address of {first} too, on the same network",
                                    "give one of them another, or remove it and a free one is taken")


def _declared(network: Network, name: str, item: PlacedNic, value: str, family: Family,
              taken: dict[int, str]) -> Iterator[Problem]:
    path = f"{item.path}.{_OPTION[family]}"
    subnet = pools.subnet_of(network, family)
    at = pools.number(value)
    if subnet:
        low, high = pools.span(subnet, family)
        if not low <= at <= high and not (family is Family.IPV6 and value.startswith("fe80:")):
            yield wrong(path, f"{value} is not in {subnet} of network {name}")
            return
    elif network.mode not in SHARED:
        option = "subnet6" if family is Family.IPV6 else "subnet"
        yield wrong(path, f"network {name} has no {option}", f"add networks.{name}.{option}")
        return
    if at in taken:
        yield wrong(path, f"{value} is {taken[at]}", "take another, or remove it and a free one is taken")


def _outer_addresses(subject: Subject, name: str, family: Family) -> dict[int, str]:
    """The host's addresses on the segment of a bridge-mode network."""
    devices = subject.outer_devices(name)
    out = {}
    for item in subject.facts.standing_on(*sorted(devices)):
        text = item.name.rpartition(" ")[2]
        if isinstance(item, Address) and (":" in text) == (family is Family.IPV6):
            out[pools.number(text.partition("/")[0])] = f"the host's own address on {item.dev}"
    return out


def pool_room(subject: Subject) -> Iterator[Problem]:
    """Pools that are smaller than the number of NICs that want an address."""
    for name, here in subject.members.items():
        network = subject.spec.networks[name]
        extras = [extra for item in here for extra in item.nic.extra.addresses]
        for family in Family:
            pool = pools.pool(network, family, extras)
            if pool is None:
                continue
            wanting = [item for item in here if pools.from_pool(item.nic, network, family)]
            declared = {pools.number(value) for item in here
                        if (value := pools.declared_address(item.nic, family)) and value != "none"}
            room = pool.size() - sum(1 for value in declared if value in pool)
            if len(wanting) > room:
                six = "6" if family is Family.IPV6 else ""
                option = f"pool{six}" if getattr(network, f"pool{six}") else f"subnet{six}"
                yield wrong(f"networks.{name}.{option}", f"{len(wanting)} NICs want an address of {pool}, "
                            f"which has {max(room, 0)} free", f"widen {option}, or declare addresses outside it")


def unguarded(subject: Subject) -> Iterator[Problem]:
    """NICs whose guard has no address to let pass: in mode bridge without a prefix nobody knows it, and
    with autoconfiguration the guest makes it up."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network is None or item.nic.guard != "full" or network.mode is Mode.SRIOV or item.nic.receives == "copies":
            continue
        nic = item.nic
        outer = network.mode in SHARED
        if (outer or not (network.subnet or network.subnet6)) and _without_address(nic, network):
            where = "is on an outer segment" if outer else "has no prefix"
            ways = "add ip: ADDRESS here, or subnet: and pool: to the network" if outer else "add subnet: to the network"
            yield wrong(item.path, f"the guard of this NIC would drop its packets: network {nic.network} {where} "
                        "and no address is known", f"{ways}, or guard: mac to bind only the MAC")
        if (network.subnet6 and network.ra == "autoconf" and nic.ip6 is None
                and not any(":" in extra for extra in nic.extra.addresses)):
            yield wrong(item.path, "with ra: autoconf the guest forms its own address, and its guard must know "
                        "from which prefix", "add extra: {addresses: [PREFIX]} with a prefix of its own, "
                        "or ip6: none, or ra: managed on the network")


def _without_address(nic: Nic, network: Network) -> bool:
    """Whether *nic* has no address although not both families are declined with none."""
    values = [pools.declared_address(nic, family) for family in Family]
    got = any(value not in (None, "none") for value in values)
    given = any(pools.from_pool(nic, network, family) for family in Family)
    return not (got or given or nic.extra.addresses) and values != ["none", "none"]


RULES = (duplicate_macs, declared_addresses, pool_room, unguarded)
