"""Spanning trees: what goes together, where they are spoken, and NICs that lead to the same segment. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.networks import Mode, StpOptions
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


def spoken(subject: Subject) -> Iterator[Problem]:
    """RSTP where no other bridge hears it."""
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}.stp"
        if network.stp == "mstp":
            yield wrong(path, "kvmnet does not speak MSTP", "write stp: rstp: switches with MSTP take this host for a region of its own, "
                        "and one tree holds for all VLANs here; or let mstpd have a bridge of the host's own and write bridge: NAME")
        elif network.stp == "rstp" and not network.bridge:
            if network.mode is not Mode.BRIDGE:
                yield wrong(path, f"there is no other bridge on a network of mode {network.mode.value} that would hear RSTP",
                            "write stp: true, or mode: bridge with an uplink")
            elif network.vlan and network.needs_device:
                yield wrong(path, "the network has a bridge of its own inside of VLAN "
                            f"{network.vlan}, where switches do not listen for RSTP: {ways.why_alone(network, subject.spec, {})}",
                            "remove stp, or what gives the network a bridge of its own")


def heard(subject: Subject) -> Iterator[Problem]:
    """RSTP inside of a VLAN, on a host that cannot have several on one bridge."""
    for name, network in subject.spec.networks.items():
        within = network.stp == "rstp" and network.vlan and network.mode is Mode.BRIDGE and not network.bridge
        if within and not network.needs_device and not subject.sharing(name):
            yield wrong(f"networks.{name}.stp", f"the network has a bridge of its own inside of VLAN {network.vlan}, where switches do not "
                        f"listen for RSTP: {ways.why_alone(network, subject.spec, subject.facts.features)}",
                        "remove stp, or install the distribution's full kernel")


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
        bridges = spec.bridged.get(name, {})
        if not any(not n.vlan or not n.needs_device for n in bridges.values()):
            yield wrong(path, "there is no bridge that would take these NICs", f"add a network {{mode: bridge, uplink: {name}, stp: rstp}}")
        for user, what in _users(subject, name):
            yield wrong(path, f"{user} {what}, where the other NICs do not lead", "remove redundant, or use another uplink there")
        for other, network in bridges.items():
            if not network.stp:
                yield wrong(f"networks.{other}.stp", f"uplink {name} has several NICs to one segment, which close a loop", "write stp: rstp")


def _idle(subject: Subject, name: str, uplink: Uplink) -> Iterator[Problem]:
    """Settings of a port that is in no spanning tree of ours."""
    if uplink.tree != TreePort() and not any(n.stp == "rstp" for n in subject.spec.bridged.get(name, {}).values()):
        yield wrong(f"uplinks.{name}.tree", "no network of this uplink speaks RSTP", "write stp: rstp in one, or remove tree")


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


RULES = (settings, spoken, redundant)
HOST_RULES = (heard,)
