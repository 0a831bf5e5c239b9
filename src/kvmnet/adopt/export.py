"""The uplink part of a document as boot configuration of the host: netplan, networkd or nmstate. Pure.

What kvmnet borrows (the MTU of a NIC, a bridge around it with the host's addresses) is gone after a reboot
until kvmnet has run. A host that shall come up with it has it in its own configuration.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from kvmnet.adopt import bonds
from kvmnet.adopt.model import (
    Address,
    Bond,
    Bridge,
    Device,
    Draft,
    Dynamic,
    Layout,
    Nic,
    Route,
    Vlan,
    carried,
)
from kvmnet.adopt.networkd import BOND_WORDS, TIMES
from kvmnet.drivers.linux import resources as linux
from kvmnet.engine.resource import Key, State
from kvmnet.modes.links import with_length
from kvmnet.records import replace
from kvmnet.spec import ways
from kvmnet.spec.models import Spec
from kvmnet.spec.names import BRIDGE as OWN_BRIDGE
from kvmnet.spec.names import bridge_name
from kvmnet.spec.networks import Mode
from kvmnet.spec.uplinks import BondMode, Ethtool, Uplink


def uplink_layout(spec: Spec, seen: State) -> tuple[Layout, list[str]]:
    """What the document has of the host's own devices, with their addresses as seen and as declared, and notes."""
    draft, notes = Draft(), list[str]()
    bridged = {n.uplink: boot_name(name) for name, n in spec.networks.items()
               if n.mode is Mode.BRIDGE and n.uplink and not n.bridge and not n.vlan}
    notes += [f"network {name}: VLAN {n.vlan} of {n.uplink} is left out; kvmnet makes it" for name, n in spec.networks.items()
              if n.vlan]
    for name in ways.by_carrier(spec):
        uplink, device = spec.uplinks[name], ways.device(name, spec)
        if uplink.wireguard:    # its secrets are not to be copied into other files
            notes.append(f"uplink {name}: a tunnel by WireGuard is left out; kvmnet makes it")
            continue
        if uplink.vfs:
            notes.append(f"uplink {name}: the {uplink.vfs} VFs of {device} are left out")
        if uplink.ethtool != Ethtool():
            notes.append(f"uplink {name}: ethtool is left out; kvmnet sets it")
        if uplink.vrf:
            notes.append(f"uplink {name}: its VRF {uplink.vrf} with the addresses and routes in it is left out; kvmnet makes it")
            place(draft, name, uplink, device, spec)
            continue
        place(draft, name, uplink, device, spec)
        holder = bridged.get(name, device)
        if name in bridged:
            link = seen.get(Key("link", device))
            mac = (link.mac or "") if isinstance(link, linux.Link) else ""
            draft.bridges[holder] = Bridge(name=holder, mtu=uplink.mtu, mac=mac, ports=(device,), stp=False)
            notes.append(f"{device} becomes a port of {holder}: once the host boots with it, write "
                         f"bridge: {holder} instead of uplink: {name} in the document")
        made = [bridge_name(n) for n, w in spec.networks.items() if w.uplink == name and w.mode is Mode.BRIDGE]
        if not any(isinstance(seen.get(Key("link", d)), linux.Link) for d in (device, *uplink.members)):
            notes.append(f"uplink {name}: {device} is not on this host; of its addresses only those of the document are known")
        declared(draft, uplink, holder)
        layer3(draft, seen, {device, *uplink.members, *made, ways.way_out(name, spec, {})}, holder, notes)
    return draft.layout(), notes


def place(draft: Draft, name: str, uplink: Uplink, device: str, spec: Spec) -> None:
    """The device of an uplink, and the NICs that it needs."""
    if uplink.members:
        bond = Bond(name=device, mtu=uplink.mtu, mac=uplink.mac or "", members=uplink.members,
                    mode=(uplink.bond or BondMode.ACTIVE_BACKUP).value, options=uplink.options.model_dump(exclude_unset=True))
        draft.bonds[device] = bond
        for member in uplink.members:
            draft.nics.setdefault(member, Nic(name=member, mtu=uplink.mtu))
    elif uplink.vlan:
        carrier = ways.carrier(name, spec)
        draft.vlans[device] = Vlan(name=device, mtu=uplink.mtu, mac=uplink.mac or "", parent=carrier, id=uplink.vlan,
                                   protocol=uplink.protocol)
        if not uplink.on:
            draft.nics.setdefault(carrier, Nic(name=carrier))
    else:
        draft.nics[device] = Nic(name=device, mtu=uplink.mtu)


def declared(draft: Draft, uplink: Uplink, holder: str) -> None:
    """Addresses and routes that the document claims."""
    draft.addresses += (Address(dev=holder, cidr=c) for c in uplink.addresses)
    draft.routes += (Route(dev=holder, dst=dst, via=via) for dst, via in (("0.0.0.0/0", uplink.gateway), ("::/0", uplink.gateway6)) if via)
    for r in uplink.routes:
        dst = with_length(r.to)
        usual = linux.default_metric(6 if ":" in dst else 4)
        draft.routes.append(Route(dev=holder, dst=dst, via=r.via or "", metric=None if r.metric == usual else r.metric))


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
    yield from (*layout.nics, *layout.bonds, *carried(layout.vlans), *layout.bridges)


# -- netplan ---------------------------------------------------------------------------------------

NETPLAN = {"miimon": "mii-monitor-interval", "updelay": "up-delay", "downdelay": "down-delay", "arp_interval": "arp-interval",
           "arp_ip_target": "arp-ip-targets", "arp_validate": "arp-validate", "xmit_hash_policy": "transmit-hash-policy",
           "lacp_rate": "lacp-rate", "ad_select": "ad-select", "min_links": "min-links", "num_grat_arp": "gratuitous-arp",
           "primary": "primary", "primary_reselect": "primary-reselect-policy"}
"""The kernel's word for an option of a bond -> netplan's."""


def netplan(layout: Layout) -> dict[str, str]:
    """File name -> text."""
    left = unsaid(layout)
    layout = replace(layout, vlans=tuple(vlan for vlan in layout.vlans if vlan.name not in left))
    network: dict[str, Any] = {"version": 2}
    for kind, devices in (("ethernets", layout.nics), ("bonds", layout.bonds), ("vlans", carried(layout.vlans)),
                          ("bridges", layout.bridges)):
        if devices:
            network[kind] = {d.name: netplan_device(d, layout) for d in devices}
    return {"60-kvmnet.yaml": dumped({"network": network})}


def unsaid(layout: Layout) -> dict[str, str]:
    """VLANs that netplan has no words for -> why: those with an 802.1ad tag, and what they carry."""
    found: dict[str, str] = {}
    for vlan in carried(layout.vlans):
        if vlan.protocol != "802.1Q":
            found[vlan.name] = f"{vlan.name} is left out: netplan has no words for a VLAN with an {vlan.protocol} tag"
        elif vlan.parent in found:
            found[vlan.name] = f"{vlan.name} is left out: {vlan.parent}, which carries it, is"
    return found


def netplan_device(device: Device, layout: Layout) -> dict[str, Any]:
    out: dict[str, Any] = {}
    match device:
        case Bridge():
            out["interfaces"] = list(device.ports)
            if device.stp is not None:
                out["parameters"] = {"stp": device.stp}
        case Bond():
            words = {NETPLAN[w]: x for w, x in bonds.words_of(device).items()}
            out |= {"interfaces": list(device.members), "parameters": {"mode": device.mode} | words}
        case Vlan():
            out |= {"id": device.id, "link": device.parent}
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

NMSTATE: dict[type[Device], str] = {Nic: "ethernet", Bond: "bond", Vlan: "vlan", Bridge: "linux-bridge"}


def nmstate(layout: Layout) -> dict[str, str]:
    state: dict[str, Any] = {"interfaces": [nmstate_device(d, layout) for d in devices_of(layout)]}
    if layout.routes:
        state["routes"] = {"config": [
            {"destination": r.dst, "next-hop-interface": r.dev, **({"next-hop-address": r.via} if r.via else {}),
             **({} if r.metric is None else {"metric": r.metric})} for r in layout.routes]}
    return {"kvmnet.yml": dumped(state)}


def nmstate_device(device: Device, layout: Layout) -> dict[str, Any]:
    out: dict[str, Any] = {"name": device.name, "type": NMSTATE[type(device)], "state": "up"}
    if device.mac:
        out["mac-address"] = device.mac
    if device.mtu is not None:
        out["mtu"] = device.mtu
    match device:
        case Bridge():
            out["bridge"] = {"port": [{"name": p} for p in device.ports]}
            if device.stp is not None:
                out["bridge"]["options"] = {"stp": {"enabled": device.stp}}
        case Bond():
            words = {w: ",".join(x) if isinstance(x, list) else x for w, x in bonds.words_of(device).items()}
            out["link-aggregation"] = {"mode": device.mode, "port": list(device.members)} | ({"options": words} if words else {})
        case Vlan():
            outer = {"protocol": device.protocol} if device.protocol != "802.1Q" else {}
            out["vlan"] = {"base-iface": device.parent, "id": device.id} | outer
    for family in (4, 6):
        asks = Dynamic(dev=device.name, family=family) in layout.dynamic
        own = [a.cidr for a in layout.addresses if a.dev == device.name and (":" in a.cidr) == (family == 6)]
        if asks or own:
            pairs = (a.split("/") for a in own)
            out[f"ipv{family}"] = {"enabled": True, "dhcp": asks,
                                   "address": [{"ip": ip, "prefix-length": int(length)} for ip, length in pairs]}
    return out


# -- networkd --------------------------------------------------------------------------------------

NETWORKD = {word: key for key, word in BOND_WORDS.items()}


def networkd(layout: Layout) -> dict[str, str]:
    files: dict[str, str] = {}
    inner = layout.under
    for device in devices_of(layout):
        if not isinstance(device, Nic):
            files[f"60-kvmnet-{device.name}.netdev"] = "\n".join((*netdev_lines(device), ""))
        lines = ["[Match]", f"Name={device.name}"]
        link = [f"MTUBytes={device.mtu}"] if device.mtu is not None else []
        link += [f"MACAddress={device.mac}"] if device.mac and isinstance(device, Nic) else []
        lines += ["", "[Link]", *link] if link else []
        lines += ["", "[Network]", *network_lines(device, layout, inner)]
        for r in layout.routes:
            if r.dev == device.name:
                lines += ["", "[Route]", f"Destination={r.dst}", *([f"Gateway={r.via}"] if r.via else []),
                          *([] if r.metric is None else [f"Metric={r.metric}"])]
        files[f"60-kvmnet-{device.name}.network"] = "\n".join((*lines, ""))
    return files


def netdev_lines(device: Device) -> list[str]:
    kind = {Bridge: "bridge", Bond: "bond", Vlan: "vlan"}[type(device)]
    lines = ["[NetDev]", f"Name={device.name}", f"Kind={kind}", *([f"MACAddress={device.mac}"] if device.mac else [])]
    match device:
        case Bridge(stp=bool(stp)):
            lines += ["", "[Bridge]", f"STP={'yes' if stp else 'no'}"]
        case Bond():
            words = {w: x for w, x in bonds.words_of(device).items() if w != "primary"}
            lines += ["", "[Bond]", f"Mode={device.mode}"]
            lines += [f"{NETWORKD[w]}={' '.join(x) if isinstance(x, list) else f'{x}ms' if w in TIMES else x}" for w, x in words.items()]
        case Vlan():
            lines += ["", "[VLAN]", f"Id={device.id}"]
            lines += [f"Protocol={device.protocol.lower()}"] if device.protocol != "802.1Q" else []
    return lines


def network_lines(device: Device, layout: Layout, inner: Mapping[str, str]) -> list[str]:
    """What the [Network] of a device says."""
    bonded = {b.name: b for b in layout.bonds}
    master = inner.get(device.name)
    body = [f"{'Bond' if master in bonded else 'Bridge'}={master}"] if master else []
    if master in bonded and bonds.words_of(bonded[master]).get("primary") == device.name:
        body.append("PrimarySlave=yes")
    body += [f"VLAN={vlan.name}" for vlan in layout.vlans if vlan.parent == device.name]
    asks = sum(d.family for d in layout.dynamic if d.dev == device.name)
    body += [f"DHCP={ {4: 'ipv4', 6: 'ipv6', 10: 'yes'}[asks] }"] if asks else []
    return [*body, *(f"Address={a.cidr}" for a in layout.addresses if a.dev == device.name)]


WRITERS: dict[str, Callable[[Layout], dict[str, str]]] = {"netplan": netplan, "networkd": networkd, "nmstate": nmstate}
"""Format -> what gives its files by name."""


def dumped(data: dict[str, Any]) -> str:
    """YAML that every reader takes for the same: text that could be read as something else is quoted."""
    return yaml.dump(data, Dumper=Plain, sort_keys=False, default_flow_style=False, width=120)


class Plain(yaml.SafeDumper):
    """Quotes what YAML 1.1 readers would take for numbers (52:54:00:12:34:56)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
