"""Uplinks as devices: which are made, which are there, what lies under what, and their MTU. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.resource import Key, State
from kvmnet.spec.models import Spec
from kvmnet.spec.names import bridge_name, carrier_name, overlay_name, shared_bridge_name, uplink_name
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.uplinks import Uplink

FILTERING, SUB_INTERFACES, BONDS, MULTICAST = "bridge-vlan-filtering", "vlan", "bond", "bridge-vlan-multicast"
"""Features of the host that VLANs, bonds and multicast on VLANs need."""
VLAN_STATES = "bridge-vlan-states"
"""Feature that trees of VLANs (MSTP) need."""
TUNNEL = "wireguard"
"""Feature that tunnels need."""
TUNNEL_HEADERS = {4: 60, 6: 80}
"""IP version of the packets between the hosts -> bytes that WireGuard, UDP and IP add to a packet: 32, 8, and 20 or 40
(WireGuard's white paper, 5.4.6)."""
SEGMENTS = frozenset({"physical", "bond", "team", "vlan", "vxlan"})
"""Types of links that lead a bridge to other machines."""
OURS = "kvmnet "
"""A link whose alias begins so is one that kvmnet made."""


def is_bond(uplink: Uplink) -> bool:
    return bool(uplink.members)


def is_vlan(uplink: Uplink) -> bool:
    return uplink.vlan is not None


def is_tunnel(uplink: Uplink) -> bool:
    return uplink.wireguard is not None


def is_made(uplink: Uplink) -> bool:
    """Whether its device is made, and not the host's."""
    return is_bond(uplink) or is_vlan(uplink) or is_tunnel(uplink)


def device(name: str, spec: Spec) -> str:
    """The device of an uplink: the NIC, or the bond or VLAN that is made."""
    uplink = spec.uplinks[name]
    own = None if is_vlan(uplink) and not uplink.on else uplink.device
    return own or uplink_name(name)


def theirs(name: str, spec: Spec, state: State) -> Link | None:
    """The bond or VLAN of the host's own that bears the name of one that an uplink describes: it is borrowed as
    a NIC is, changed only where the document says so, and given back. A tunnel never is: its peers would not be."""
    if not is_made(spec.uplinks[name]) or is_tunnel(spec.uplinks[name]):
        return None
    link = state.get(Key(Link.kind, device(name, spec)))
    return link if isinstance(link, Link) and not (link.alias or "").startswith(OURS) else None


def carrier(name: str, spec: Spec) -> str:
    """The device that carries a VLAN uplink; '' for others."""
    uplink = spec.uplinks[name]
    if not is_vlan(uplink):
        return ""
    return device(uplink.on, spec) if uplink.on and uplink.on in spec.uplinks else uplink.device or ""


def by_carrier(spec: Spec) -> list[str]:
    """Uplinks, each after the one that carries it. A ring is left out."""
    done: dict[str, None] = {}
    left = dict.fromkeys(spec.uplinks)
    while ready := [n for n in left if not (on := spec.uplinks[n].on) or on in done or on not in spec.uplinks]:
        for name in ready:
            done[name] = None
            del left[name]
    return list(done)


def mtu(name: str, spec: Spec, state: State) -> int | None:
    """MTU in bytes of an uplink as it will be on a host that looks like *state*; None when not known."""
    uplink = spec.uplinks[name]
    if uplink.mtu:
        return uplink.mtu
    if (there := theirs(name, spec, state)) and there.mtu:
        return there.mtu
    if uplink.on and uplink.on != name and uplink.on in spec.uplinks:
        below = mtu(uplink.on, spec, state)
        return below - tunnel_header(uplink) if below else None
    for carried_by in uplink.members or (carrier(name, spec) or device(name, spec),):
        link = state.get(Key(Link.kind, carried_by))
        if isinstance(link, Link) and link.mtu:
            return link.mtu
    return None


def tunnel_header(uplink: Uplink) -> int:
    """Bytes that a packet grows by in the tunnel that an uplink is; 0 for others."""
    if uplink.wireguard is None:
        return 0
    six = any(peer.endpoint and peer.endpoint.startswith("[") for peer in uplink.wireguard.peers.values())
    return TUNNEL_HEADERS[6 if six else 4]


def bridged(uplink: str, spec: Spec) -> Iterator[tuple[str, Network]]:
    """Networks of mode bridge that make a bridge around *uplink*, or around a VLAN of it."""
    yield from spec.bridged.get(uplink, {}).items()


def shares(name: str, network: Network, spec: Spec, features: Mapping[str, str]) -> bool:
    """Whether a network of mode bridge is on the VLAN-aware bridge of its uplink.

    It is when the uplink has networks on VLANs and the kernel can filter them, except where its VLAN needs a
    device of its own (``Network.needs_device``).
    """
    if not network.uplink or network.bridge or features.get(FILTERING, "") != "":
        return False
    return network.uplink in spec.sharing and not (network.vlan and network.needs_device)


def why_alone(network: Network, spec: Spec, features: Mapping[str, str]) -> str:
    """Why a network on a VLAN has a bridge of its own."""
    if reason := features.get(FILTERING):
        return reason
    if network.needs_device:
        return ("the host has an address on it" if network.has_address else "it has queues of its own" if network.has_queues
                else "the bridge answers for its guests")
    return f"the bridge of the uplink {network.uplink} answers for its guests"


def bridge_of(name: str, spec: Spec, features: Mapping[str, str]) -> str:
    """Device of the bridge of a network; '' where there is none."""
    network = spec.networks[name]
    if network.mode is Mode.SRIOV:
        return ""
    if network.bridge:
        return network.bridge
    if network.uplink and name in spec.bridged.get(network.uplink, ()) and shares(name, network, spec, features):
        return shared_bridge_name(network.uplink)
    return bridge_name(name)


def parent_of(name: str, spec: Spec) -> str:
    """Device that the macvtaps of a network lie on; '' in other modes."""
    network = spec.networks[name]
    if network.mode is not Mode.MACVTAP or network.uplink not in spec.uplinks:
        return ""
    return carrier_name(name) if network.vlan else device(network.uplink, spec)


def leading_outside(bridge: str, state: State) -> list[str]:
    """The host's own ports of a bridge that was there before: by which it leads to other machines."""
    return sorted(link.name for link in state.values() if isinstance(link, Link) and link.master == bridge and link.type in SEGMENTS)


def port_of(name: str, spec: Spec, features: Mapping[str, str], state: State) -> str:
    """The device by which what guests of a network send leaves it, where that is the network's own, or the uplink itself, or the only one
    of an existing bridge; '' for none."""
    network = spec.networks[name]
    if network.vxlan:
        return overlay_name(name)
    if network.mode is Mode.MACVTAP:
        return parent_of(name, spec)
    if network.bridge:
        found = leading_outside(network.bridge, state)
        return found[0] if len(found) == 1 else ""
    if network.mode is not Mode.BRIDGE or not network.uplink:
        return ""
    return carrier_name(name) if network.vlan and not shares(name, network, spec, features) else device(network.uplink, spec)


def wire_of(name: str, spec: Spec, features: Mapping[str, str]) -> str:
    """Device that the frames of a network on a VLAN device of its own leave by with their tag; '' for others."""
    network = spec.networks[name]
    alone = network.mode is Mode.BRIDGE and network.vlan and network.uplink and not network.bridge and not shares(name, network, spec, features)
    return device(network.uplink, spec) if alone and network.uplink else ""


def way_out(uplink: str | None, spec: Spec, features: Mapping[str, str]) -> str:
    """Device that the host's packets leave by: the uplink's own, or the bridge that took it."""
    if uplink is None:
        return ""
    if untagged := spec.untagged.get(uplink):
        return bridge_of(untagged, spec, features)
    shared = uplink in spec.sharing and features.get(FILTERING, "") == ""
    return shared_bridge_name(uplink) if shared else device(uplink, spec)


def native(uplink: str, spec: Spec) -> int:
    """VLAN id inside the shared bridge for what is untagged outside: the first that no network and no
    trunk of the uplink has."""
    taken = used(uplink, spec)
    return next(vid for vid in range(1, 4095) if vid not in taken)


def used(uplink: str, spec: Spec) -> set[int]:
    """VLAN ids that the networks of an uplink and the trunks on them have."""
    here = spec.bridged.get(uplink, {})
    return {network.vlan for network in here.values() if network.vlan}.union(*(spec.trunked.get(n, ()) for n in here))


def carried(uplink: str, spec: Spec) -> set[int]:
    """VLAN ids that the shared bridge of an uplink carries tagged: not those that have a device of their own."""
    here = spec.bridged.get(uplink, {})
    return used(uplink, spec) - {network.vlan for network in here.values() if network.vlan and network.needs_device}
