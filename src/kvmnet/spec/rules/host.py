"""What the host must have for the document: devices, users, features, room in its tables. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.nearest import nearest
from kvmnet.spec.networks import SHARED, Mode
from kvmnet.spec.pools import Family
from kvmnet.spec.rules.subject import RESERVED, VIRTIO, Subject, wrong

MOST_PORTS = 1023
"""Ports of one bridge (net/bridge/br_private.h: BR_PORT_BITS 10, port 0 is not used)."""
FLOWS_PER_NIC = 16
"""Connections that a guest needs at least to be of use: less room than that in conntrack is a mistake."""
CONNECTIONS = "net.netfilter.nf_conntrack_max"
_NEIGHBOURS = {Family.IPV4: ("gc_thresh3", "net.ipv4.neigh.default.gc_thresh3"),
               Family.IPV6: ("gc_thresh3_6", "net.ipv6.neigh.default.gc_thresh3")}


def ports(subject: Subject) -> Iterator[Problem]:
    """More NICs on a network than a bridge has ports. This is the kernel's, whatever the host."""
    for name, here in subject.members.items():
        network = subject.spec.networks[name]
        if network.mode is Mode.SRIOV:
            continue
        others = 0
        if network.bridge:
            others = sum(1 for link in subject.links.values()
                         if link.master == network.bridge and not link.name.startswith(RESERVED))
        elif network.mode is Mode.MACVTAP:
            continue    # there is no bridge
        elif network.mode in SHARED:
            others = 1
        if len(here) + others > MOST_PORTS:
            hint = ("bridge a second uplink for the others" if network.mode is Mode.BRIDGE
                    else "split the network in several, joined by peers:")
            what = f" and {others} of the host" if others else ""
            yield wrong(f"networks.{name}", f"{len(here)} NICs{what} are more than the {MOST_PORTS} ports of a bridge",
                        hint)


def uplinks(subject: Subject) -> Iterator[Problem]:
    """Uplinks and bridges that the host does not have, or that cannot be bridged."""
    if not subject.links:
        return
    for name, uplink in subject.spec.uplinks.items():
        made = bool(uplink.members or uplink.on)
        for path, device in (*([] if made else [(f"uplinks.{name}.device", uplink.device or "")]),
                             *((f"uplinks.{name}.members[{i}]", m) for i, m in enumerate(uplink.members))):
            if device not in subject.links:
                yield wrong(path, f"this host has no device {device}", _those(subject, ""))
    for name, network in subject.spec.networks.items():
        if not network.mode.on_segment:
            continue
        if network.bridge:
            yield from _existing(subject, f"networks.{name}.bridge", network.bridge)
        elif device := subject.device(network):
            yield from _bridgeable(subject, f"networks.{name}.uplink", device, macvtap=network.mode is Mode.MACVTAP)


def _existing(subject: Subject, path: str, bridge: str) -> Iterator[Problem]:
    link = subject.links.get(bridge)
    if link is None:
        yield wrong(path, f"this host has no bridge {bridge}", _those(subject, "bridge"))
    elif link.type != "bridge":
        yield wrong(path, f"{bridge} is no bridge but {link.type}", "to make a bridge around it write uplink:")


def _bridgeable(subject: Subject, path: str, device: str, *, macvtap: bool) -> Iterator[Problem]:
    link = subject.links.get(device)
    if link is None:
        return
    if macvtap and link.type == "bridge":
        return
    if link.type == "bridge":
        yield wrong(path, f"{device} is a bridge itself, which cannot be a port of another",
                    f"write bridge: {device} instead of uplink:")
    elif device.startswith("wl") or device in subject.facts.wireless:
        yield wrong(path, f"{device} is wireless: an access point takes frames only from the host's own MAC",
                    "write mode: nat, or mode: routed with proxy: true")
    elif link.type in ("wireguard", "tun", "sit", "gre", "ipip", "ppp", "none"):
        yield wrong(path, f"{device} ({link.type}) carries no Ethernet frames and cannot be bridged",
                    "write mode: nat or mode: routed")
    elif link.master and not link.master.startswith(RESERVED):
        yield wrong(path, f"{device} belongs to {link.master} already",
                    f"write bridge: {link.master} to use that, or take {device} out of it")


def _those(subject: Subject, kind: str) -> str:
    """The devices of the host that could be meant."""
    names = sorted(link.name for link in subject.links.values()
                   if link.name != "lo" and not link.name.startswith(RESERVED)
                   and (link.type == kind if kind else link.type not in ("tap", "tun")))
    what = "bridges" if kind else "devices"
    return f"{what} of this host: {', '.join(names[:20])}" if names else f"this host has no {what}"


def users(subject: Subject) -> Iterator[Problem]:
    """Owners of taps that are no users of the host."""
    if not subject.links:
        return
    for name, vm in subject.spec.vms.items():
        if vm.owner and vm.owner not in subject.facts.users:
            near = nearest(vm.owner, tuple(subject.facts.users))
            yield wrong(f"vms.{name}.owner", f"this host has no user {vm.owner}",
                        f"did you mean {near}?" if near else "getent passwd lists them")


def features(subject: Subject) -> Iterator[Problem]:
    """Features that are asked for by name and that the host lacks."""
    known, spec = subject.facts.features, subject.spec
    for name, uplink in spec.uplinks.items():
        for there, feature, what in ((uplink.members, ways.BONDS, "bonds"), (uplink.vlan, ways.SUB_INTERFACES, "VLANs")):
            if there and known.get(feature, ""):
                yield wrong(f"uplinks.{name}", f"this host has no {what}: {known[feature]}",
                            "install the distribution's full kernel")
    for name, network in spec.networks.items():
        if network.mode is not Mode.BRIDGE or not network.vlan or network.uplink not in spec.uplinks:
            continue
        alone = not ways.shares(name, network, spec, known)
        if alone and known.get(ways.SUB_INTERFACES, ""):
            yield wrong(f"networks.{name}.vlan", f"this host has no VLANs: {known[ways.SUB_INTERFACES]}; "
                        f"{ways.why_alone(network, spec, known)}",
                        "install the distribution's full kernel")
        elif alone:
            for item in subject.members[name]:
                if item.nic.trunk:
                    yield wrong(f"{item.path}.trunk", "the network has a bridge of its own inside its VLAN, where a "
                                f"tagged frame would be tagged twice: {ways.why_alone(network, spec, known)}",
                                "remove trunk")
    reason = known.get("vhost-net", "")
    if not reason:
        return
    for item in subject.nics:
        if item.nic.vhost == "on" and item.nic.model in VIRTIO:
            yield wrong(f"{item.path}.vhost", f"this host has no vhost-net: {reason}", "write vhost: auto")


def tables(subject: Subject) -> Iterator[Problem]:
    """Kernel tables that are too small for the guests that the host routes for."""
    limits, tuning = subject.facts.limits, subject.spec.tuning
    routed: set[str] = set()
    for family, (limit, sysctl) in _NEIGHBOURS.items():
        here = {name for name, network in subject.spec.networks.items() if subject.hosted(network, family)}
        routed |= here
        count = sum(len(subject.members[name]) for name in here)
        if (most := tuned(tuning, sysctl, limits.get(limit))) is not None and count > most:
            yield wrong("networks", f"the host would talk to {count} guests, and its neighbour table takes {most}",
                        f"write tuning: {{{sysctl}: {_power(2 * count)}}}, which is given back")
    count = sum(len(subject.members[name]) for name in routed)
    most = tuned(tuning, CONNECTIONS, limits.get("nf_conntrack_max"))
    if most and count * FLOWS_PER_NIC > most:
        yield wrong("networks", f"the host tracks at most {most} connections, too few for {count} guests",
                    f"write tuning: {{{CONNECTIONS}: {_power(count * 256)}}}, which is given back")


def tuned(tuning: Mapping[str, str], name: str, seen: int | None) -> int | None:
    """What the document sets, where it does, else what the host has."""
    return int(tuning[name]) if tuning.get(name, "").isdigit() else seen


def _power(value: int) -> int:
    """The next power of two."""
    return 1 << max(value - 1, 0).bit_length()


RULES = (uplinks, users, features, tables)
"""Rules whose problems are the host's; ``ports`` is the document's."""
