"""The uplink part of a document as boot configuration of the host: netplan, networkd or nmstate. Pure.

What kvmnet borrows (the MTU of a NIC, a bridge around it with the host's addresses) is gone after a reboot
until kvmnet has run. A host that shall come up with it has it in its own configuration.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from kvmnet.adopt.model import Address, Bridge, Device, Draft, Dynamic, Layout, Nic, Route
from kvmnet.drivers.linux import resources as linux
from kvmnet.engine.resource import Key, State
from kvmnet.spec import ways
from kvmnet.spec.models import Ethtool, Mode, Spec
from kvmnet.spec.names import BRIDGE as OWN_BRIDGE
from kvmnet.spec.names import bridge_name


def uplink_layout(spec: Spec, seen: State) -> tuple[Layout, list[str]]:
    """What the document has of the host's own devices, with their addresses as seen, and notes."""
    draft, notes = Draft(), []
    bridged = {n.uplink: (n.bridge or boot_name(name)) for name, n in spec.networks.items()
               if n.mode is Mode.BRIDGE and n.uplink and not n.bridge and not n.vlan}
    notes += [f"network {name}: VLAN {n.vlan} of {n.uplink} is left out; kvmnet makes it" for name, n in spec.networks.items()
              if n.vlan]
    for name, uplink in spec.uplinks.items():
        if uplink.device is None or ways.is_made(uplink):
            notes.append(f"uplink {name}: a {'bond' if uplink.members else 'VLAN'} that kvmnet makes is left out")
            continue
        link = seen.get(Key("link", uplink.device))
        if not isinstance(link, linux.Link):
            notes.append(f"uplink {name}: {uplink.device} is not on this host; its addresses are not known")
        if uplink.vfs:
            notes.append(f"uplink {name}: the {uplink.vfs} VFs of {uplink.device} are left out")
        if uplink.ethtool != Ethtool():
            notes.append(f"uplink {name}: ethtool is left out; kvmnet sets it")
        draft.nics[uplink.device] = Nic(name=uplink.device, mtu=uplink.mtu)
        holder = uplink.device
        if name in bridged:
            holder = bridged[name]
            mac = (link.mac or "") if isinstance(link, linux.Link) else ""
            draft.bridges[holder] = Bridge(name=holder, mtu=uplink.mtu, mac=mac, ports=(uplink.device,), stp=False)
            notes.append(f"{uplink.device} becomes a port of {holder}: once the host boots with it, write "
                         f"bridge: {holder} instead of uplink: {name} in the document")
        made = [bridge_name(n) for n, w in spec.networks.items() if w.uplink == name and w.mode is Mode.BRIDGE]
        layer3(draft, seen, {uplink.device, *made}, holder, notes)
    return draft.layout(), notes


def boot_name(network: str) -> str:
    """Name of the bridge that the host makes: kvb- is kvmnet's own."""
    wanted = f"br-{bridge_name(network).removeprefix(OWN_BRIDGE)}"[:15]
    return wanted.replace("~", "-")


def layer3(draft: Draft, seen: State, devices: set[str], holder: str, notes: list[str]) -> None:
    for thing in seen.values():
        match thing:
            case linux.Address(dev=dev, dynamic="dhcp") if dev in devices:
                draft.dynamic.append(Dynamic(dev=holder, family=6 if ":" in thing.name else 4))
            case linux.Address(dev=dev, dynamic="") if dev in devices and thing.scope != "link":
                draft.addresses.append(Address(dev=holder, cidr=thing.name.split()[1]))
            case linux.Route(dev=dev, table="main", proto=proto) if dev in devices and proto not in ("ra", "dhcp", "87"):
                if thing.options:
                    notes.append(f"route {thing.name} is left out: {thing.options}")
                    continue
                dst = ("::/0" if thing.family == 6 else "0.0.0.0/0") if thing.dst == "default" else thing.dst or ""
                usual = linux.default_metric(thing.family or 4)
                draft.routes.append(Route(dev=holder, dst=dst, via=thing.via or "",
                                          metric=None if thing.metric == usual else thing.metric))
            case linux.Route(dev=dev) if dev in devices and thing.table != "main":
                notes.append(f"route {thing.name} is left out: it is not in the main table")


def devices_of(layout: Layout) -> Iterator[Device]:
    yield from (*layout.nics, *layout.bridges)


# -- netplan ---------------------------------------------------------------------------------------

def netplan(layout: Layout) -> dict[str, str]:
    """File name -> text."""
    network: dict[str, Any] = {"version": 2}
    for kind, devices in (("ethernets", layout.nics), ("bridges", layout.bridges)):
        if devices:
            network[kind] = {d.name: netplan_device(d, layout) for d in devices}
    return {"60-kvmnet.yaml": dumped({"network": network})}


def netplan_device(device: Device, layout: Layout) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if isinstance(device, Bridge):
        out["interfaces"] = list(device.ports)
        if device.stp is not None:
            out["parameters"] = {"stp": device.stp}
    if device.mac:
        out["macaddress"] = device.mac
    if device.mtu is not None:
        out["mtu"] = device.mtu
    for d in layout.dynamic:
        if d.dev == device.name:
            out[f"dhcp{d.family}"] = True
    if addresses := [a.cidr for a in layout.addresses if a.dev == device.name]:
        out["addresses"] = addresses
    if routes := [{"to": r.dst, **({"via": r.via} if r.via else {"scope": "link"}),
                   **({} if r.metric is None else {"metric": r.metric})} for r in layout.routes if r.dev == device.name]:
        out["routes"] = routes
    return out


# -- nmstate ---------------------------------------------------------------------------------------

def nmstate(layout: Layout) -> dict[str, str]:
    state: dict[str, Any] = {"interfaces": [nmstate_device(d, layout) for d in devices_of(layout)]}
    if layout.routes:
        state["routes"] = {"config": [
            {"destination": r.dst, "next-hop-interface": r.dev, **({"next-hop-address": r.via} if r.via else {}),
             **({} if r.metric is None else {"metric": r.metric})} for r in layout.routes]}
    return {"kvmnet.yml": dumped(state)}


def nmstate_device(device: Device, layout: Layout) -> dict[str, Any]:
    bridge = device if isinstance(device, Bridge) else None
    out: dict[str, Any] = {"name": device.name, "type": "linux-bridge" if bridge else "ethernet", "state": "up"}
    if device.mac:
        out["mac-address"] = device.mac
    if device.mtu is not None:
        out["mtu"] = device.mtu
    if bridge:
        out["bridge"] = {"port": [{"name": p} for p in bridge.ports]}
        if bridge.stp is not None:
            out["bridge"]["options"] = {"stp": {"enabled": bridge.stp}}
    for family in (4, 6):
        asks = Dynamic(dev=device.name, family=family) in layout.dynamic
        own = [a.cidr for a in layout.addresses if a.dev == device.name and (":" in a.cidr) == (family == 6)]
        if asks or own:
            pairs = (a.split("/") for a in own)
            out[f"ipv{family}"] = {"enabled": True, "dhcp": asks,
                                   "address": [{"ip": ip, "prefix-length": int(length)} for ip, length in pairs]}
    return out


# -- networkd --------------------------------------------------------------------------------------

def networkd(layout: Layout) -> dict[str, str]:
    files: dict[str, str] = {}
    inner = layout.under
    for bridge in layout.bridges:
        lines = ["[NetDev]", f"Name={bridge.name}", "Kind=bridge"]
        lines += [f"MACAddress={bridge.mac}"] if bridge.mac else []
        lines += [] if bridge.stp is None else ["", "[Bridge]", f"STP={'yes' if bridge.stp else 'no'}"]
        files[f"60-kvmnet-{bridge.name}.netdev"] = "\n".join((*lines, ""))
    for device in devices_of(layout):
        lines = ["[Match]", f"Name={device.name}"]
        link = [f"MTUBytes={device.mtu}"] if device.mtu is not None else []
        link += [f"MACAddress={device.mac}"] if device.mac and not isinstance(device, Bridge) else []
        lines += ["", "[Link]", *link] if link else []
        asks = sum(d.family for d in layout.dynamic if d.dev == device.name)
        body = [f"Bridge={inner[device.name]}"] if device.name in inner else []
        body += [f"DHCP={ {4: 'ipv4', 6: 'ipv6', 10: 'yes'}[asks] }"] if asks else []
        body += [f"Address={a.cidr}" for a in layout.addresses if a.dev == device.name]
        lines += ["", "[Network]", *body]
        for r in layout.routes:
            if r.dev == device.name:
                lines += ["", "[Route]", f"Destination={r.dst}", *([f"Gateway={r.via}"] if r.via else []),
                          *([] if r.metric is None else [f"Metric={r.metric}"])]
        files[f"60-kvmnet-{device.name}.network"] = "\n".join((*lines, ""))
    return files


WRITERS: dict[str, Callable[[Layout], dict[str, str]]] = {"netplan": netplan, "networkd": networkd, "nmstate": nmstate}
"""Format -> what gives its files by name."""


def dumped(data: dict[str, Any]) -> str:
    """YAML that every reader takes for the same: text that could be read as something else is quoted."""
    return yaml.dump(data, Dumper=Plain, sort_keys=False, default_flow_style=False, width=120)


class Plain(yaml.SafeDumper):
    """Quotes what YAML 1.1 readers would take for numbers (52:54:00:12:34:56)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
