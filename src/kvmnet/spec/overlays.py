"""Networks stretched between hosts: which way their packets take, and what room is left in them. Pure."""
from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.engine.resource import Key, State
from kvmnet.spec import ways
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Network, Vxlan

FEATURE = "vxlan"
HEADERS = {4: 50, 6: 70}
"""IP version of the packets between the hosts -> bytes that a frame's own Ethernet header, VXLAN, UDP and IP take
from their MTU (RFC 7348, 5)."""


def family(vxlan: Vxlan) -> int:
    """IP version of the packets between the hosts."""
    return ip_address(vxlan.local or vxlan.group or (*vxlan.peers, "0.0.0.0")[0]).version


def local_address(network: Network, spec: Spec, state: State, features: Mapping[str, str]) -> str:
    """Address that the packets come from: as declared, else the first lasting one of the uplink; '' when it
    has none."""
    vxlan, name = network.vxlan, network.uplink
    if vxlan is None or vxlan.local or name not in spec.uplinks:
        return vxlan.local or "" if vxlan else ""
    uplink = spec.uplinks[name]
    places = (ways.way_out(name, spec, features), ways.device(name, spec), *uplink.members)
    seen = [a for place in dict.fromkeys(places) for a in state.values()
            if isinstance(a, Address) and a.dev == place and a.scope == "global" and a.dynamic != "ra"]
    found = [text.partition("/")[0] for text in (*uplink.addresses, *(a.name.rpartition(" ")[2] for a in seen))]
    return next((a for a in found if ip_address(a).version == family(vxlan)), "")


def underlay(network: Network, spec: Spec, features: Mapping[str, str]) -> str:
    """Device that the packets take; '' where the host's routes say it."""
    return ways.way_out(network.uplink, spec, features) if network.uplink in spec.uplinks else ""


def room(network: Network, spec: Spec, state: State) -> int | None:
    """Largest MTU in bytes that the network can have; None when the way is not known."""
    if network.vxlan is None:
        return None
    outer = None
    if network.uplink in spec.uplinks:
        outer = ways.mtu(network.uplink, spec, state)
    elif network.vxlan.local:
        dev = next((a.dev for a in state.values() if isinstance(a, Address)
                    and a.name.rpartition(" ")[2].partition("/")[0] == network.vxlan.local), None)
        link = state.get(Key(Link.kind, dev or ""))
        outer = link.mtu if isinstance(link, Link) else None
    return outer - HEADERS[family(network.vxlan)] if outer else None


def mtu(network: Network, spec: Spec, state: State) -> int:
    """MTU in bytes of the network: its own, else all the room there is."""
    assert network.vxlan
    return network.mtu or room(network, spec, state) or 1500 - HEADERS[family(network.vxlan)]
