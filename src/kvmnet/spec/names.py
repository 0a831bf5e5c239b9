"""Names of kernel objects for things of the document. Pure.

A device name has at most 15 bytes. Short names are used as they are; longer ones keep their
beginning and get a hash, so that the name is stable and two never meet by chance.
"""
from __future__ import annotations

from hashlib import blake2s

TAP = "kvt-"
"""Reserved prefix of guest taps: a frame from such a port passes only if its guard allows it."""
BRIDGE = "kvb-"
"""Reserved prefix of bridges that kvmnet makes."""
PROBE = "kvp-"
"""Reserved prefix of the far ends of probe ports, inside their namespaces."""
UPLINK = "kvu-"
"""Reserved prefix of bonds and VLANs that kvmnet makes and the document gives no name."""
OVERLAY = "kvx-"
"""Reserved prefix of the ports by which networks stretch to other hosts."""
DETOUR = "kvi-"
"""Reserved prefix of the devices in whose queues frames wait that came in by another (ifb)."""
MIRROR = "kvm-"
"""Reserved prefix of the tunnels by which copies leave."""
VRF = "kvr-"
"""Reserved prefix of routing domains."""
ROOM = 11


def tap_name(vm: str, nic: str) -> str:
    """Device of one guest NIC: ``kvt-web1-0`` for nic0 of web1."""
    index = nic[3:] if nic.startswith("nic") and nic[3:].isdigit() else nic
    return TAP + short(f"{vm}-{index}")


def detour_name(vm: str, nic: str) -> str:
    """Device in whose queue frames of one guest NIC wait."""
    return DETOUR + tap_name(vm, nic).removeprefix(TAP)


def pool_name(network: str) -> str:
    """Device in whose queue frames of a whole network wait; no NIC has a name that begins so."""
    return DETOUR + "~" + short(network, ROOM - 1)


def tenant_queue(tenant: str, direction: str) -> str:
    """Device in whose queue frames of all NICs of a tenant wait, ``in`` or ``out``; no network has a name with a tilde there."""
    return f"{DETOUR}~{direction[0]}~{short(tenant, ROOM - 3)}"


def bridge_name(network: str) -> str:
    """Bridge of one network: ``kvb-lan``."""
    return BRIDGE + short(network)


def shared_bridge_name(uplink: str) -> str:
    """VLAN-aware bridge of one uplink; no network has a name that begins so."""
    return BRIDGE + "~" + short(uplink, ROOM - 1)


def uplink_name(uplink: str) -> str:
    """Bond or VLAN of one uplink."""
    return UPLINK + short(uplink)


def carrier_name(network: str) -> str:
    """VLAN sub-interface under the bridge of one network."""
    return UPLINK + "~" + short(network, ROOM - 1)


def overlay_name(network: str) -> str:
    """VXLAN port of one network."""
    return OVERLAY + short(network)


def mirror_name(mirror: str) -> str:
    """Tunnel of one mirror."""
    return MIRROR + short(mirror)


def vrf_device(vrf: str) -> str:
    """Device of a routing domain."""
    return VRF + short(vrf)


def short(text: str, room: int = ROOM) -> str:
    """*text* in at most *room* bytes: as it is, or the beginning of it and a hash."""
    if len(text) <= room:
        return text
    return text[:room - 6] + "~" + blake2s(text.encode(), digest_size=4).hexdigest()[:5]


def standby_name(nic: str) -> str:
    """The virtio card that stands by for the VF *nic*."""
    return f"{nic}-standby"


def nic_name(position: int, declared: str | None) -> str:
    return declared or f"nic{position}"
