"""Networks that several hosts share: their numbers, their peers, the way there, and what is this host's to give. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from kvmnet.errors import Problem
from kvmnet.spec import overlays, pools, ways
from kvmnet.spec.networks import Mode, Network, Vxlan
from kvmnet.spec.pools import Family
from kvmnet.spec.rules.subject import Subject, wrong


def forms(subject: Subject) -> Iterator[Problem]:
    """What mode vxlan needs, and what only it takes."""
    numbers: dict[tuple[int, int], str] = {}
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}"
        vxlan = network.vxlan
        if network.mode is not Mode.VXLAN:
            if vxlan:
                yield wrong(f"{path}.vxlan", f"vxlan stretches a network to other hosts; it is for mode vxlan, not for {network.mode}",
                            "remove it, or write mode: vxlan")
            continue
        if vxlan is None:
            yield wrong(path, "mode vxlan needs the segment's number and the other hosts",
                        "add vxlan: {vni: NUMBER, peers: [ADDRESS]}")
            continue
        first = numbers.setdefault((vxlan.port, vxlan.vni), path)
        if first != path:
            yield wrong(f"{path}.vxlan.vni", f"{vxlan.vni} is the number of {first} too", "give one of them another")
        yield from _way(subject, path, network, vxlan)
        yield from _peers(path, vxlan)
        yield from _ports(subject, name, network)


def _way(subject: Subject, path: str, network: Network, vxlan: Vxlan) -> Iterator[Problem]:
    if not network.uplink and not vxlan.local:
        yield wrong(path, "mode vxlan needs a way to the other hosts", "add uplink: NAME, or vxlan.local: an address of this host")
    if vxlan.group and not network.uplink:
        yield wrong(f"{path}.vxlan.group", "a multicast group is joined on a device", "add uplink: NAME")
    if not vxlan.group and not vxlan.peers:
        yield wrong(f"{path}.vxlan", "nobody is named to share the segment with",
                    "add peers: [ADDRESS] or group: ADDRESS; a network of this host alone is mode isolated")


def _peers(path: str, vxlan: Vxlan) -> Iterator[Problem]:
    version = overlays.family(vxlan)
    listed = {"local": vxlan.local, "group": vxlan.group, **{f"peers[{i}]": a for i, a in enumerate(vxlan.peers)}}
    for option, address in listed.items():
        if address and ip_address(address).version != version:
            yield wrong(f"{path}.vxlan.{option}", f"{address} is IPv{ip_address(address).version}, and the packets between the "
                        f"hosts are IPv{version}", "use addresses of one family")
        elif address and ip_address(address).is_link_local:
            yield wrong(f"{path}.vxlan.{option}", f"{address} says not by which link it is reached", "use a global or unique local address")
    for position, peer in enumerate(vxlan.peers):
        if peer in vxlan.peers[:position]:
            yield wrong(f"{path}.vxlan.peers[{position}]", f"{peer} stands there twice", "remove one")
        elif peer == vxlan.local:
            yield wrong(f"{path}.vxlan.peers[{position}]", f"{peer} is this host itself", "remove it")


def _ports(subject: Subject, name: str, network: Network) -> Iterator[Problem]:
    """What can be kept on one bridge, and not over several hosts."""
    if network.isolated_ports:
        yield wrong(f"networks.{name}.isolated_ports", "ports are isolated on one host: guests of the others would still be reached",
                    "remove it; use networks of their own for guests that must not meet")
    for item in subject.members[name]:
        if item.nic.isolated:
            yield wrong(f"{item.path}.isolated", "ports are isolated on one host: guests of the others would still be reached",
                        "remove it, or use another network")


def shared_pools(subject: Subject) -> Iterator[Problem]:
    """Addresses that the other hosts would give away, too."""
    for name, network in subject.spec.networks.items():
        if network.mode is not Mode.VXLAN:
            continue
        for family in Family:
            six = "6" if family is Family.IPV6 else ""
            asking = [item for item in subject.members[name] if pools.from_pool(item.nic, network, family)]
            if asking and not getattr(network, f"pool{six}"):
                yield wrong(f"{asking[0].path}", f"its address would come from all of subnet{six}, and the other hosts of {name} give "
                            "away the same", f"add networks.{name}.pool{six}: FIRST-LAST, a part of its own on every host, or ip{six}: here")


def ways_there(subject: Subject) -> Iterator[Problem]:
    """Overlays that this host cannot make: no address of the family, or no such device in its kernel."""
    spec, facts = subject.spec, subject.facts
    for name, network in spec.networks.items():
        if network.vxlan is None or network.mode is not Mode.VXLAN:
            continue
        path, version = f"networks.{name}", overlays.family(network.vxlan)
        if reason := facts.features.get(overlays.FEATURE, ""):
            yield wrong(path, f"this host has no VXLAN: {reason}", "install the distribution's full kernel")
        if not subject.links:
            continue
        local = overlays.local_address(network, spec, facts.state, facts.features)
        if not local and network.uplink in spec.uplinks:
            device = ways.device(network.uplink, spec)
            yield wrong(f"{path}.uplink", f"{device} has no IPv{version} address that lasts, and the other hosts must know where to send",
                        f"add uplinks.{network.uplink}.addresses: [ADDRESS/LENGTH]")
        elif local in network.vxlan.peers:
            position = network.vxlan.peers.index(local)
            yield wrong(f"{path}.vxlan.peers[{position}]", f"{local} is this host itself", "remove it")
        elif network.vxlan.local and not _has(subject, local):
            yield wrong(f"{path}.vxlan.local", f"this host has no address {local}", "ip address shows those that it has")


def _has(subject: Subject, address: str) -> bool:
    declared = (text for uplink in subject.spec.uplinks.values() for text in uplink.addresses)
    seen = (a.name.rpartition(" ")[2] for a in subject.addresses)
    return any(text.partition("/")[0] == address for text in (*declared, *seen))


RULES = (forms, shared_pools)
HOST_RULES = (ways_there,)
