"""What the rules look at: a document with its names resolved, and the host. Pure."""
from __future__ import annotations

from functools import cached_property

from kvmnet.drivers.linux.resources import Address, Link, Route
from kvmnet.errors import Problem
from kvmnet.facts.model import Facts
from kvmnet.records import dataclass
from kvmnet.spec import overlays, pools, ways
from kvmnet.spec.guests import Model
from kvmnet.spec.models import Spec
from kvmnet.spec.names import BRIDGE, DETOUR, MIRROR, OVERLAY, PROBE, TAP, VRF
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.pools import Family, PlacedNic

RESERVED = (TAP, BRIDGE, PROBE, OVERLAY, DETOUR, MIRROR, VRF)
"""Beginnings of the names of devices that are ours."""
VIRTIO = frozenset({Model.VIRTIO, Model.VIRTIO_TRANSITIONAL})


@dataclass(frozen=True)
class Subject:
    """One document on one host. Without links in ``facts`` the host is not known, and not judged."""

    spec: Spec
    facts: Facts

    @cached_property
    def nics(self) -> tuple[PlacedNic, ...]:
        return self.spec.placed

    @cached_property
    def members(self) -> dict[str, list[PlacedNic]]:
        """NICs of every network of the document, in its order."""
        out: dict[str, list[PlacedNic]] = {name: [] for name in self.spec.networks}
        for item in self.nics:
            if item.nic.network in out:
                out[item.nic.network].append(item)
        return out

    @cached_property
    def links(self) -> dict[str, Link]:
        return {item.name: item for item in self.facts.state.values() if isinstance(item, Link)}

    @cached_property
    def addresses(self) -> list[Address]:
        return [item for item in self.facts.state.values() if isinstance(item, Address)]

    @cached_property
    def routes(self) -> list[Route]:
        return [item for item in self.facts.state.values() if isinstance(item, Route)]

    def device(self, network: Network) -> str:
        """The host's device that *network* leaves by: its uplink's NIC or the existing bridge; '' for none."""
        if network.bridge:
            return network.bridge
        return ways.device(network.uplink, self.spec) if network.uplink in self.spec.uplinks else ""

    def outer_mtu(self, network: Network) -> int | None:
        """MTU in bytes of the device that *network* leaves by, as it will be; None when not known. What the headers
        of an overlay take is taken off."""
        if network.vxlan:
            return overlays.room(network, self.spec, self.facts.state)
        if network.uplink in self.spec.uplinks and not network.bridge:
            return ways.mtu(network.uplink, self.spec, self.facts.state)
        link = self.links.get(self.device(network))
        return link.mtu if link else None

    def mtu(self, network: Network) -> int:
        """MTU in bytes of *network*: its own, else that of the way out, else 1500."""
        return network.mtu or self.outer_mtu(network) or 1500

    def hosted(self, network: Network, family: Family) -> bool:
        """Whether the host has an address of *family* on *network*, and so routes for it."""
        return bool(pools.host_address(network, family))

    @cached_property
    def own_bridges(self) -> dict[str, str]:
        """Device -> network, of the bridges that the document makes; of one that several share, the first."""
        found: dict[str, str] = {}
        for name, network in self.spec.networks.items():
            if not network.bridge and network.mode is not Mode.SRIOV:
                found.setdefault(ways.bridge_of(name, self.spec, self.facts.features), name)
        return found

    def is_vf(self, item: PlacedNic) -> bool:
        """Whether a NIC is a VF, and so has no tap."""
        network = self.spec.networks.get(item.nic.network)
        return network is not None and network.mode is Mode.SRIOV

    def sharing(self, name: str) -> str:
        """Uplink whose VLAN-aware bridge the network is on, or ''."""
        network = self.spec.networks[name]
        on = (network.mode is Mode.BRIDGE and network.uplink in self.spec.uplinks
              and ways.shares(name, network, self.spec, self.facts.features))
        return network.uplink or "" if on else ""

    def outer_devices(self, name: str) -> set[str]:
        """Devices of the outer segment that the network *name* lies on, before and after it took them."""
        network = self.spec.networks[name]
        if not network.mode.on_segment:
            return set()
        bridge = ways.bridge_of(name, self.spec, self.facts.features)
        if network.vlan:
            return {bridge} if not self.sharing(name) else set()
        members = self.spec.uplinks[network.uplink].members if network.uplink in self.spec.uplinks else ()
        return {self.device(network), bridge, *members} - {""}


def wrong(path: str, message: str, hint: str = "") -> Problem:
    """A problem at *path*; its line is looked up later."""
    return Problem(0, 0, path, message, hint)
