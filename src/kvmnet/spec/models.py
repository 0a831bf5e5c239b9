"""What the operator writes. One field is type, default, validation and documentation of an option;
the schema, the reference and the editor's help are generated from here.

Values are canonical once parsed: MACs in lower case with colons, prefixes without host bits,
address ranges as two addresses, so that comparing is ``==``.
"""
from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.guests import Vm
from kvmnet.spec.mirrors import Mirror
from kvmnet.spec.networks import Mode, Network, Vrf
from kvmnet.spec.part import Part
from kvmnet.spec.policies import NicGroup, Tenant
from kvmnet.spec.types import Address, Line, Name, NetworkName, Prefix, Setting
from kvmnet.spec.uplinks import Uplink

if TYPE_CHECKING:
    from kvmnet.spec.pools import PlacedNic


class Spec(Part):
    """The document."""

    version: Literal[1]
    """Version of the document's language."""
    uplinks: dict[Name, Uplink] = Field(default_factory=dict)
    """Ways out of the host, by name."""
    networks: dict[NetworkName, Network] = Field(default_factory=dict)
    """Networks, by name."""
    vrfs: dict[Name, Vrf] = Field(default_factory=dict)
    """Routing domains, by name."""
    vms: dict[Name, Vm] = Field(default_factory=dict)
    """Guests, by name."""
    reach: tuple[Address, ...] = ()
    """Addresses that must still answer after a change of a way out, besides the gateways of the host: a management
    station, a router behind the first one. Those that do not answer before the change are not required to."""
    groups: dict[Name, NicGroup] = Field(default_factory=dict)
    """Groups of NICs and their rules, by name."""
    address_sets: dict[Name, tuple[Prefix, ...]] = Field(default_factory=dict)
    """Addresses and prefixes that rules name as set:NAME."""
    tenants: dict[Name, Tenant] = Field(default_factory=dict)
    """Tenants, by name."""
    tuning: dict[Line, Setting] = Field(default_factory=dict)
    """Kernel settings of the whole host, e.g. {net.netfilter.nf_conntrack_max: 1048576}; borrowed one by one, and given
    back. kvmnet tune proposes them and says what each is for."""
    mirrors: dict[Name, Mirror] = Field(default_factory=dict)
    """Mirrors, by name."""

    def complete(self) -> None:
        """Tags networks whose VLAN needs a device of its own, because a NIC has a priority in its tags."""
        for vm in self.vms.values():
            for nic in vm.nics:
                if nic.mark.pcp is not None and nic.network in self.networks:
                    self.networks[nic.network].tag()

    @cached_property
    def bridged(self) -> dict[str, dict[str, Network]]:
        """Uplink -> networks of mode bridge that make a bridge around it, or around a VLAN of it."""
        found: dict[str, dict[str, Network]] = {}
        for name, network in self.networks.items():
            if network.mode is Mode.BRIDGE and network.uplink and not network.bridge:
                found.setdefault(network.uplink, {})[name] = network
        return found

    @cached_property
    def sharing(self) -> frozenset[str]:
        """Uplinks whose networks share a VLAN-aware bridge, where the kernel can filter VLANs."""
        return frozenset(uplink for uplink, here in self.bridged.items()
                         if any(n.vlan and not n.needs_device for n in here.values())
                         and not any(n.neigh_suppress for n in here.values() if not n.vlan))

    @cached_property
    def untagged(self) -> dict[str, str]:
        """Uplink -> the network of mode bridge that is on none of its VLANs."""
        return {uplink: name for uplink, here in self.bridged.items() for name, n in reversed(here.items()) if not n.vlan}

    @cached_property
    def placed(self) -> tuple[PlacedNic, ...]:
        """Every NIC, in the order of the document."""
        from kvmnet.spec.pools import nics_of

        return tuple(placed for name, vm in self.vms.items() for placed in nics_of(name, vm))

    @cached_property
    def trunked(self) -> dict[str, set[int]]:
        """Network -> VLAN ids on the trunks of its NICs."""
        found: dict[str, set[int]] = {}
        for vm in self.vms.values():
            for nic in vm.nics:
                if nic.trunk:
                    found.setdefault(nic.network, set()).update(nic.trunk)
        return found
