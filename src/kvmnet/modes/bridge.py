"""mode bridge: guests on the uplink's own segment, by a bridge that takes the uplink or one that
the host already has. Pure."""
from __future__ import annotations

from dataclasses import replace

from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.modes.hosted import addresses, allow_services, own_bridge
from kvmnet.modes.segment import Part, Segment
from kvmnet.modes.uplink import take_uplink

SECRET = "stable_secret"
"""A mode that needs a secret of its own on the bridge, which is not ours to copy."""


def link_local_mode(nic: Link) -> str | None:
    """How the bridge makes its link-local address: as the NIC did, so that the host keeps it."""
    return None if nic.addrgenmode == SECRET else nic.addrgenmode


def wire(segment: Segment, facts: Facts, device: str = "") -> Part:
    """``device``: the uplink's NIC; '' when the bridge is the host's own."""
    part = Part()
    if device:
        nic = facts.state[Key("link", device)]
        assert isinstance(nic, Link) and nic.mac
        part.resources.append(replace(own_bridge(segment, nic.mac), addrgenmode=link_local_mode(nic)))
        part.policy.routers.add((segment.bridge, nic.mac))
        part.policy.outer.add(segment.bridge)
        resources, borrowed, notes = take_uplink(device, segment.bridge, facts)
        part.resources += resources
        part.borrowed |= borrowed
        part.notes += notes
        part.resources += addresses(segment)
    allow_services(part, segment)
    return part
