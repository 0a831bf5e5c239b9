"""Spanning trees: what goes together, where they are spoken, and NICs that lead to the same segment. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.networks import Mode, Network, StpOptions
from kvmnet.spec.rules.subject import Subject, wrong
from kvmnet.spec.uplinks import TreePort, Uplink


def settings(subject: Subject) -> Iterator[Problem]:
    """Timers that do not go together, and two wishes for one bridge."""
    first: dict[str, str] = {}
    for name, network in subject.spec.networks.items():
        path, options = f"networks.{name}.stp_options", network.stp_options
        if not network.stp and options != StpOptions():
            yield wrong(path, "settings of a spanning tree that is off", "add stp: true, or remove stp_options")
        if not 2 * (options.forward_delay - 1) >= options.max_age >= 2 * (options.hello + 1):
            yield wrong(path, f"max_age {options.max_age} must be at least 2 * (hello + 1) = {2 * (options.hello + 1)} and at "
                        f"most 2 * (forward_delay - 1) = {2 * (options.forward_delay - 1)} (802.1D-1998, 8.10.2)",
                        "change one of the three")
        uplink = subject.sharing(name)
        if uplink and network.stp:
            other = subject.spec.networks[first.setdefault(uplink, name)]
            if (other.stp, other.stp_options) != (network.stp, options):
                yield wrong(path if other.stp == network.stp else f"networks.{name}.stp",
                            f"the networks of uplink {uplink} share a bridge, and {first[uplink]} wants another spanning tree",
                            "write the same stp and stp_options in both")


def regions(subject: Subject) -> Iterator[Problem]:
    """Which VLANs go by which tree (MSTP)."""
    for name, network in subject.spec.networks.items():
        path, region = f"networks.{name}.stp_options", network.stp_options.region
        if network.stp == "mstp" and region is None:
            yield wrong(f"networks.{name}.stp", "MSTP needs a region: which VLANs go by which tree",
                        "add stp_options: {region: {name: ..., instances: {1: {vlans: [...]}}}}, as the switches have it, or write stp: rstp")
        if region is None:
            continue
        if network.stp and network.stp != "mstp":
            yield wrong(f"{path}.region", "there are no regions but with MSTP", "write stp: mstp, or remove region")
        taken: dict[int, int] = {}
        for number, instance in region.instances.items():
            if both := sorted(vid for vid in instance.vlans if taken.setdefault(vid, number) != number):
                yield wrong(f"{path}.region.instances.{number}", f"VLAN {both[0]} goes by instance {taken[both[0]]} already",
                            "leave it in one of them")


def costs(subject: Subject) -> Iterator[Problem]:
    """Costs in trees that there are not."""
    for name, uplink in subject.spec.uplinks.items():
        trees = {number for n in subject.spec.bridged.get(name, {}).values() if n.stp == "mstp" and n.stp_options.region
                 for number in n.stp_options.region.instances}
        for path, port in ((f"uplinks.{name}.tree", uplink.tree), *((f"uplinks.{name}.redundant.{nic}", p) for nic, p in uplink.redundant.items())):
            for number in sorted(port.costs.keys() - trees):
                yield wrong(f"{path}.costs.{number}", f"no network of this uplink has an instance {number}",
                            f"there are {', '.join(map(str, sorted(trees)))}" if trees else "write stp: mstp with a region in one, or remove costs")


def spoken(subject: Subject) -> Iterator[Problem]:
    """RSTP and MSTP where no other bridge hears it."""
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}.stp"
        if network.tree_is_ours and not network.bridge:
            if network.mode is not Mode.BRIDGE:
                yield wrong(path, f"there is no other bridge on a network of mode {network.mode.value} that would hear {says(network)}",
                            "write stp: true, or mode: bridge with an uplink")
            elif network.vlan and network.needs_device:
                yield wrong(path, "the network has a bridge of its own inside of VLAN "
                            f"{network.vlan}, where switches do not listen for {says(network)}: {ways.why_alone(network, subject.spec, {})}",
                            "remove stp, or what gives the network a bridge of its own")
            elif network.stp == "mstp" and network.uplink and network.uplink not in subject.spec.sharing:
                yield wrong(path, f"the bridge of uplink {network.uplink} does not go by VLANs, and trees of VLANs are what MSTP has more than RSTP",
                            f"write stp: rstp, or give networks of {network.uplink} a vlan")


def says(network: Network) -> str:
    return str(network.stp).upper()


def heard(subject: Subject) -> Iterator[Problem]:
    """RSTP inside of a VLAN, on a host that cannot have several on one bridge, and trees of VLANs on one that has none."""
    reason = subject.facts.features.get(ways.VLAN_STATES, "")
    for name, network in subject.spec.networks.items():
        if network.stp == "mstp" and network.mode is Mode.BRIDGE and not network.bridge and reason:
            yield wrong(f"networks.{name}.stp", f"VLANs of a port cannot have states of their own: {reason}",
                        "write stp: rstp, or install the distribution's full kernel")
            continue
        within = network.tree_is_ours and network.vlan and network.mode is Mode.BRIDGE and not network.bridge
        if within and not network.needs_device and not subject.sharing(name):
            yield wrong(f"networks.{name}.stp", f"the network has a bridge of its own inside of VLAN {network.vlan}, where switches do not "
                        f"listen for {says(network)}: {ways.why_alone(network, subject.spec, subject.facts.features)}",
                        "remove stp, or install the distribution's full kernel")
        elif network.vlan and network.mode is Mode.BRIDGE and not subject.sharing(name) and _has_redundant(subject, network):
            yield wrong(f"networks.{name}.vlan", f"the network has a bridge of its own inside of VLAN {network.vlan} of the uplink's first NIC "
                        f"alone: {ways.why_alone(network, subject.spec, subject.facts.features)}",
                        "remove redundant, or install the distribution's full kernel")


def _has_redundant(subject: Subject, network: Network) -> bool:
    uplink = subject.spec.uplinks.get(network.uplink or "")
    return bool(uplink and uplink.redundant and not network.bridge and not network.needs_device)


def redundant(subject: Subject) -> Iterator[Problem]:
    """NICs beside an uplink: what may be built on it then, and that nothing else uses them."""
    spec = subject.spec
    for name, uplink in spec.uplinks.items():
        if not uplink.redundant:
            yield from _idle(subject, name, uplink)
            continue
        path = f"uplinks.{name}.redundant"
        yield from _twice(subject, name, uplink)
        if ways.is_vlan(uplink) or ways.is_tunnel(uplink):
            yield wrong(path, "a VLAN or a tunnel has no NICs beside it", "give the NIC or bond that carries it redundant")
            continue
        bridges = {other: n for other, n in spec.bridged.get(name, {}).items() if not n.vlan or not n.needs_device}
        if not bridges:
            yield wrong(path, "there is no bridge that would take these NICs", f"add a network {{mode: bridge, uplink: {name}, stp: rstp}}")
        for user, what in _users(subject, name):
            yield wrong(path, f"{user} {what}, where the other NICs do not lead", "remove redundant, or use another uplink there")
        if bridges and not any(network.stp for network in bridges.values()):
            yield wrong(f"networks.{next(iter(bridges))}.stp", f"uplink {name} has several NICs to one segment, which close a loop",
                        "write stp: rstp")


def _idle(subject: Subject, name: str, uplink: Uplink) -> Iterator[Problem]:
    """Settings of a port that is in no spanning tree of ours."""
    if uplink.tree != TreePort() and not any(n.tree_is_ours for n in subject.spec.bridged.get(name, {}).values()):
        yield wrong(f"uplinks.{name}.tree", "no network of this uplink speaks RSTP or MSTP", "write stp: rstp in one, or remove tree")


def _twice(subject: Subject, name: str, uplink: Uplink) -> Iterator[Problem]:
    """NICs that are something else as well."""
    uses: dict[str, str] = {}
    for other, there in subject.spec.uplinks.items():
        own = () if ways.is_made(there) and not (there.vlan and not there.on) else (there.device or "",)
        for nic in (*own, *there.members, *(there.redundant if other != name else ())):
            uses.setdefault(nic, f"uplinks.{other}")
    for nic in uplink.redundant:
        if nic in uses:
            yield wrong(f"uplinks.{name}.redundant.{nic}", f"{nic} is used by {uses[nic]} already", "name another NIC")
        elif subject.links and nic not in subject.links:
            yield wrong(f"uplinks.{name}.redundant.{nic}", f"this host has no device {nic}", "ip link lists them")


def _users(subject: Subject, name: str) -> Iterator[tuple[str, str]]:
    """Who uses the uplink's device past the bridge."""
    spec, device = subject.spec, ways.device(name, subject.spec)
    for other, uplink in spec.uplinks.items():
        if other != name and (uplink.on == name or (uplink.vlan and not uplink.on and uplink.device == device)):
            yield f"uplink {other}", "lies on its first NIC alone"
    for other, network in spec.networks.items():
        if network.uplink == name and not network.bridge:
            if network.mode in (Mode.MACVTAP, Mode.SRIOV):
                yield f"network {other}", "lies on its first NIC alone"
            elif network.mode is Mode.BRIDGE and network.vlan and network.needs_device:
                yield f"network {other}", "has a VLAN of its first NIC alone"
            elif network.mode is Mode.BRIDGE and network.has_queues:
                yield f"network {other}", "has queues at its first NIC alone"


RULES = (settings, regions, costs, spoken, redundant)
HOST_RULES = (heard,)
