"""mode bridge: guests on the uplink's own segment, by a bridge that takes the uplink or one that
the host already has. Pure."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.modes.hosted import addresses, allow_services, own_bridge
from kvmnet.modes.segment import Part, Segment
from kvmnet.modes.uplink import take_uplink


def wire(segment: Segment, facts: Facts, device: str = "") -> Part:
    """``device``: the uplink's NIC; '' when the bridge is the host's own."""
    part = Part()
    if device:
        nic = facts.state[Key("link", device)]
        assert isinstance(nic, Link) and nic.mac
        part.resources.append(own_bridge(segment, nic.mac))
        part.policy.routers.add((segment.bridge, nic.mac))
        resources, borrowed, notes = take_uplink(device, segment.bridge, facts)
        part.resources += resources
        part.borrowed |= borrowed
        part.notes += notes
        part.resources += addresses(segment)
    allow_services(part, segment)
    return part
