"""Mode macvtap: what it cannot do is refused, and not left out. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec import pools, ways
from kvmnet.spec.networks import MacvtapMode, Mode, Network
from kvmnet.spec.pools import Family
from kvmnet.spec.rules.subject import Subject, wrong

NOT_HERE = {
    "isolated_ports": ("there is no bridge that could keep its ports apart", "write macvtap: private"),
    "stp": ("there is no bridge", "remove stp"),
    "querier": ("nobody listens to multicast for its guests: they are sent all of it", "remove querier"),
    "neigh_suppress": ("there is no bridge that could answer", "remove neigh_suppress"),
    "peers": ("guests reach other networks by the router of their segment, not by the host", "remove peers"),
}
"""Options of a network that need a bridge or a router."""
OF_THE_HOST = ("dhcp", "dns")
"""Options that need the host on the network."""
HOSTED = (MacvtapMode.BRIDGE, None)
"""Where the host can have a place: in private it would be cut off, in vepa frames come back from the switch without
the mark of their guard, in passthru there is one place only."""
NEEDED = {"macvtap": "macvtaps", "nft-netdev-egress": "rules where a macvtap's guest sends",
          "tc-bpf": "classifiers that keep a macvtap closed"}
"""Feature -> what it is for."""


def macvtaps(subject: Subject) -> Iterator[Problem]:
    """What networks of macvtaps do not take."""
    for name, network in subject.spec.networks.items():
        if network.mode is not Mode.MACVTAP:
            continue
        path = f"networks.{name}"
        for option, (why, hint) in NOT_HERE.items():
            if getattr(network, option):
                yield wrong(f"{path}.{option}", f"{option} is not for mode macvtap: {why}", hint)
        yield from _host(path, name, network)
        yield from _nics(subject, name, network)
        if network.macvtap is MacvtapMode.PASSTHRU:
            yield from _alone(subject, path, name, network)


def _host(path: str, name: str, network: Network) -> Iterator[Problem]:
    addresses = [o for o, family in (("address", Family.IPV4), ("address6", Family.IPV6))
                 if pools.host_address(network, family)]
    if not addresses:
        for option in OF_THE_HOST:
            if option in network.model_fields_set and getattr(network, option).enabled:
                yield wrong(f"{path}.{option}", f"the host has no place on {name}: a macvtap's guest reaches it only by a "
                            "macvlan of the host's own", f"add address: to {path}, which makes one, or remove {option}")
    elif network.macvtap not in HOSTED:
        yield wrong(f"{path}.{addresses[0]}", f"the host cannot have a place among macvtaps of kind {network.macvtap}",
                    f"remove {addresses[0]}, or write macvtap: bridge")


def _nics(subject: Subject, name: str, network: Network) -> Iterator[Problem]:
    alone = network.macvtap is MacvtapMode.PASSTHRU
    for item in subject.members[name]:
        nic = item.nic
        if nic.isolated:
            yield wrong(f"{item.path}.isolated", "there is no bridge that could keep this NIC apart from others",
                        f"write networks.{name}.macvtap: private")
        if nic.trunk and not alone:
            yield wrong(f"{item.path}.trunk", "tagged frames do not come in by a macvtap: the NIC below takes only VLANs "
                        "that the host knows", "make a network with vlan: for each, or write macvtap: passthru")
        if nic.extra.macs and not alone:
            yield wrong(f"{item.path}.extra.macs", "a macvtap receives frames for its own MAC only",
                        "use mode: bridge, or macvtap: passthru")


def _alone(subject: Subject, path: str, name: str, network: Network) -> Iterator[Problem]:
    here = subject.members[name]
    if len(here) > 1:
        yield wrong(f"{here[1].path}.network", f"passthru gives the whole uplink to one NIC, and {name} has "
                    f"{here[0].path} already", "use another uplink, or write macvtap: bridge")
    if network.vlan:
        return
    for other, their in subject.spec.networks.items():
        if other != name and their.uplink == network.uplink and not their.vlan and not their.mode.on_segment:
            yield wrong(f"networks.{other}.uplink", f"{network.uplink} belongs to the guest of network {name} alone "
                        "(passthru)", "use another uplink, or write macvtap: bridge")
    uplink = subject.spec.uplinks.get(network.uplink or "")
    for option in ("addresses", "gateway", "gateway6", "routes"):
        if uplink and getattr(uplink, option):
            yield wrong(f"uplinks.{network.uplink}.{option}", f"{network.uplink} belongs to the guest of network {name} "
                        "alone (passthru), and not to the host", f"remove {option}")


def shared_floor(subject: Subject) -> Iterator[Problem]:
    """Macvtaps on an uplink that a VLAN-aware bridge takes as a whole."""
    for name, network in subject.spec.networks.items():
        if network.mode is not Mode.MACVTAP or network.vlan or network.uplink not in subject.spec.uplinks:
            continue
        for other, their in ways.bridged(network.uplink, subject.spec):
            if their.vlan and ways.shares(other, their, subject.spec, subject.facts.features):
                yield wrong(f"networks.{name}.uplink", f"{network.uplink} is a port of the bridge of network {other}, and "
                            "a port carries no macvtap", "give this network a vlan: too, or write mode: bridge")
                break


def features(subject: Subject) -> Iterator[Problem]:
    """What the host's kernel lacks for macvtaps."""
    known = subject.facts.features
    for name, network in subject.spec.networks.items():
        if network.mode is Mode.MACVTAP:
            for feature, what in NEEDED.items():
                if known.get(feature, ""):
                    yield wrong(f"networks.{name}.mode", f"this host has no {what}: {known[feature]}",
                                "install the distribution's full kernel, or write mode: bridge")
            if network.vlan and known.get(ways.SUB_INTERFACES, ""):
                yield wrong(f"networks.{name}.vlan", f"this host has no VLANs: {known[ways.SUB_INTERFACES]}",
                            "install the distribution's full kernel")


RULES = (macvtaps, shared_floor)
HOST_RULES = (features,)
