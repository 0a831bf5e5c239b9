"""Every kind of resource by its name: how states are read back from JSON. Pure."""
from __future__ import annotations

from typing import Any

from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.drivers.ethtool.resources import NicFeature, NicTuning
from kvmnet.drivers.files.resources import File
from kvmnet.drivers.linux.resources import (
    Address,
    BridgeVlan,
    Fdb,
    Link,
    Neighbour,
    ProxyNeighbour,
    Route,
    Sysctl,
    VlanMulticast,
)
from kvmnet.drivers.macvtap.resources import Gate, OpenPort, TapNode
from kvmnet.drivers.mirror.resources import Copy, Shut
from kvmnet.drivers.nftables.resources import (
    AddressSet,
    GuardHook,
    GuardKeeper,
    NftTable,
    NicGroups,
    NicGuard,
    NicLimits,
)
from kvmnet.drivers.qemu.resources import GuestNic, GuestThreads
from kvmnet.drivers.recorder.resources import Recorder
from kvmnet.drivers.sriov.resources import Pf, Vf, VfPool
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.drivers.tc.resources import Detour, MacTable, Qdisc, Receiver, Sorter, TcClass
from kvmnet.drivers.wireguard.resources import Tunnel, TunnelPeer
from kvmnet.engine.resource import Absent, Key, Resource, cache, setting_names

KINDS: dict[str, type[Resource]] = {
    c.kind: c for c in (Link, BridgeVlan, VlanMulticast, Fdb, Address, Route, ProxyNeighbour, Neighbour, Sysctl, NftTable,
                        NicGuard, NicGroups, NicLimits, AddressSet, GuardHook, GuardKeeper, Gate, OpenPort, TapNode, DnsmasqServer,
                        Reservation, GuestNic, GuestThreads, File, NicTuning, NicFeature, Pf, VfPool, Vf, Qdisc, TcClass,
                        Detour, Sorter, MacTable, Receiver, Tunnel, TunnelPeer, Copy, Shut, Recorder, TreeGate, SpanningTree)
}


def to_json(resource: Resource | Absent) -> dict[str, Any]:
    """A resource as plain data; settings without a claim are left out."""
    if isinstance(resource, Absent):
        return {"kind": resource.key.kind, "name": resource.key.name, "absent": True}
    data: dict[str, Any] = {"kind": resource.kind, "name": resource.name}
    for name in setting_names(type(resource)):
        if (value := getattr(resource, name)) is not None:
            data[name] = value
    return data


@cache
def known_names(cls: type[Resource]) -> frozenset[str]:
    return frozenset(("name", *setting_names(cls)))


def from_json(data: dict[str, Any]) -> Resource | Absent:
    """The inverse of ``to_json``. Raises KeyError for a kind or setting that this version lacks."""
    cls = KINDS[data["kind"]]
    if data.get("absent"):
        return Absent(Key(data["kind"], data["name"]))
    settings: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in data.items()}
    del settings["kind"]
    if not settings.keys() <= known_names(cls):
        raise KeyError(f"{data['kind']} has no {', '.join(sorted(settings.keys() - known_names(cls)))}")
    return cls(name=settings.pop("name"), **settings)
