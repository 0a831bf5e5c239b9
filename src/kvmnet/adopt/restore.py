"""The document of a host that kvmnet set up, from what is seen of it, when its history is lost. Pure.

Names come from the marks on links (``kvmnet network lan``, ``kvmnet nic web1/nic0``), the rest from guards,
reservations, the configuration of dnsmasq and the host's own table. The caller plans the result: what it
would still change is what could not be read back.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from kvmnet.adopt.restore_groups import known_to_groups, memberships, policies
from kvmnet.adopt.restore_limits import restored
from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.drivers.linux.resources import Address, Link, Neighbour, ProxyNeighbour
from kvmnet.drivers.macvtap.resources import TapNode
from kvmnet.drivers.nftables.resources import NftTable, NicGuard, NicLimits
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.stp.resources import SpanningTree
from kvmnet.drivers.stp.settings import port_words
from kvmnet.engine.driver import Seen
from kvmnet.engine.resource import Key
from kvmnet.records import dataclass, field
from kvmnet.spec.guests import Offloads
from kvmnet.spec.networks import StpOptions

NETWORK, NIC = "kvmnet network ", "kvmnet nic "
DEFAULTS = {("udp", 67), ("udp", 547), ("udp", 53), ("tcp", 53)}
"""Services of the host that networks open by themselves."""
SERVICE = re.compile(r'"([^"]+)" \. (tcp|udp) \. (\d+)')
"""(bridge, protocol, port) in a set of the host's table."""
OUTER = ("bridge", "macvtap")
"""Modes of a segment with routers of its own."""
Tree = dict[str, Any]


@dataclass(slots=True)
class Ours:
    """What carries our mark, by what it is."""

    seen: Seen
    bridges: dict[str, str] = field(default_factory=dict)
    """Bridge -> network."""
    taps: dict[str, tuple[str, str, Link]] = field(default_factory=dict)
    """Tap -> (guest, NIC, link)."""
    table: str = ""

    def port(self, bridge: str) -> str:
        """The NIC of the host that a bridge of ours took, or ''."""
        return next((x.name for x in self.seen.state.values() if isinstance(x, Link) and x.master == bridge
                     and x.key not in self.seen.ours), "") if bridge in self.bridges else ""

    def of(self, kind: type[Any]) -> list[Any]:
        return [r for k, r in self.seen.state.items() if isinstance(r, kind) and k in self.seen.ours]

    def get(self, kind: type[Any], name: str) -> Any:
        return self.seen.state.get(Key(kind.kind, name))


def gathered(seen: Seen) -> Ours:
    ours = Ours(seen)
    for link in ours.of(Link):
        alias = link.alias or ""
        if alias.startswith(NETWORK) and link.type == "bridge":
            ours.bridges[link.name] = alias.removeprefix(NETWORK)
        elif alias.startswith(NIC) and "/" in alias:
            vm, _, nic = alias.removeprefix(NIC).partition("/")
            ours.taps[link.name] = (vm, nic, link)
    table = ours.get(NftTable, "inet kvmnet")
    ours.table = (table.text or "") if isinstance(table, NftTable) else ""
    return ours


def restore(seen: Seen, runs: Mapping[str, Tree], resolvers: tuple[str, ...] = (),
            users: Mapping[int, str] | None = None) -> Tree | None:
    """The document as data; None when nothing of ours is there. ``runs``: guest that kvmnet runs -> its ``run``.
    ``users``: uid -> name."""
    ours = gathered(seen)
    if not ours.bridges and not ours.taps:
        return None
    uplinks: dict[str, str] = {}
    networks = {name: network(ours, bridge, name, uplinks, resolvers) for bridge, name in sorted(ours.bridges.items())}
    adopted = {link.master: link.master for _, _, link in ours.taps.values() if link.master not in ours.bridges}
    for bridge in sorted(filter(None, adopted)):
        networks[re.sub(r"[^A-Za-z0-9_-]", "-", bridge)] = {"mode": "bridge", "bridge": bridge}
    networks |= macvtap_networks(ours, uplinks, resolvers)
    peers(ours, networks)
    vms = guests(ours, networks, runs, users or {})
    forwards(ours, networks, vms)
    out: Tree = {"version": 1}
    if uplinks:
        out["uplinks"] = {name: {"device": device} | tree_ports(ours, device) for device, name in uplinks.items()}
    return out | {"networks": networks} | ({"vms": vms} if vms else {}) | policies(seen)


# -- networks --------------------------------------------------------------------------------------

def network(ours: Ours, bridge: str, name: str, uplinks: dict[str, str], resolvers: tuple[str, ...]) -> Tree:
    link = ours.get(Link, bridge)
    port = ours.port(bridge)
    out: Tree = {"mode": "isolated"}
    own = [a for a in ours.of(Address) if a.dev == bridge and a.scope == "global"]
    prefixes = {str(ip_interface(a.name.split()[1]).network) for a in own}
    nat = {m[2]: m[1] for m in re.finditer(r'oifname "([^"]+)" ip6? saddr (\S+) masquerade', ours.table)}
    outward = [b for a, b in pairs(ours.table, "reach") if a == bridge and (b not in ours.bridges or ours.port(b))]
    if port:
        out = {"mode": "bridge", "uplink": uplink(port, uplinks)}
        own = [a for a in own if ours.get(DnsmasqServer, name) is not None]
    elif found := next((nat[p] for p in sorted(prefixes) if p in nat), ""):
        out = {"mode": "nat", "uplink": uplink(ours.port(found) or found, uplinks)}
    elif outward:
        out = {"mode": "routed", "uplink": uplink(ours.port(outward[0]) or outward[0], uplinks)}
        if any(p.dev == outward[0] for p in ours.of(ProxyNeighbour)):
            out["proxy"] = True
    for address in own:
        ip = ip_interface(address.name.split()[1])
        six = "6" if ip.version == 6 else ""
        out[f"subnet{six}"], first = str(ip.network), ip.network[1]
        if port or ip.ip != first:
            out[f"address{six}"] = str(ip.ip)
    if link.mtu != 1500 or port:
        out["mtu"] = link.mtu
    out |= bridging(ours, link)
    return out | allowed(ours, bridge) | served(ours.get(DnsmasqServer, name), out, resolvers)


def macvtap_networks(ours: Ours, uplinks: dict[str, str], resolvers: tuple[str, ...]) -> Tree:
    """Networks of macvtaps, by what these lie on."""
    found: Tree = {}
    for _, _, link in ours.taps.values():
        if link.type != "macvtap" or (name := macvtap_network(ours, link)) in found:
            continue
        below = ours.get(Link, link.parent or "")
        carried = below is not None and below.type == "vlan" and (below.alias or "").startswith(NETWORK)
        out: Tree = {"mode": "macvtap", "uplink": uplink((below.parent if carried else link.parent) or "", uplinks),
                     "macvtap": link.macvlan_mode, "mtu": link.mtu} | ({"vlan": below.vlan_id} if carried else {})
        for address in ours.of(Address):
            if (ours.get(Link, address.dev or "") or link).alias == f"{NETWORK}{name}" and address.scope == "global":
                ip = ip_interface(address.name.split()[1])
                six = "6" if ip.version == 6 else ""
                out |= {f"subnet{six}": str(ip.network), f"address{six}": str(ip.ip)}
        own = next((x.name for x in ours.of(Link) if x.type == "macvlan" and x.alias == f"{NETWORK}{name}"), "")
        out |= allowed(ours, own) | (served(ours.get(DnsmasqServer, name), out, resolvers) if own else {})
        found[name] = out
    return found


def macvtap_network(ours: Ours, link: Link) -> str:
    """Name of the network of a macvtap: that of the VLAN or the host's macvlan, which bear it, else the parent's."""
    below = ours.get(Link, link.parent or "")
    beside = next((x for x in ours.of(Link) if x.type == "macvlan" and x.parent == link.parent), None)
    for marked in (below, beside):
        if marked is not None and (marked.alias or "").startswith(NETWORK):
            return str(marked.alias).removeprefix(NETWORK)
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"on-{link.parent}")


def bridging(ours: Ours, link: Link) -> Tree:
    """Spanning tree, multicast and answers for guests."""
    out: Tree = {}
    spoken = ours.get(SpanningTree, link.name)
    if link.stp or spoken:
        usual = StpOptions()
        told = {name: getattr(spoken, name) for name in StpOptions.model_fields if name != "region"} if spoken else {
            "priority": link.priority, **{name: value and value // 100 for name, value in (
                ("forward_delay", link.forward_delay), ("hello", link.hello_time), ("max_age", link.max_age))}}
        own = {name: value for name, value in told.items() if value is not None and value != getattr(usual, name)}
        if spoken and spoken.protocol == "mstp":
            own["region"] = region(spoken)
        out = {"stp": spoken.protocol if spoken else True} | ({"stp_options": own} if own else {})
    if link.mcast_snooping is False:
        out["snooping"] = False
    if link.mcast_querier:
        out["querier"] = True
    if any(n.dev == link.name for n in ours.of(Neighbour)):
        out["neigh_suppress"] = True
    return out


def region(spoken: SpanningTree) -> Tree:
    """What a document says of a region of MSTP."""
    trees = {}
    for number, priority, *vlans in (text.split() for text in spoken.instances or ()):
        trees[int(number)] = {"vlans": vlans} | ({"priority": int(priority)} if priority != "32768" else {})
    return {"name": spoken.region, "instances": trees} | ({"revision": spoken.revision} if spoken.revision else {}) | (
        {"untagged": spoken.untagged} if spoken.untagged != 1 else {})


def tree_ports(ours: Ours, device: str) -> Tree:
    """What a document says of an uplink as a port of a spanning tree, and of the NICs beside it."""
    ports: dict[str, Tree] = {}
    for spoken in ours.of(SpanningTree):
        doors = [port_words(text) for text in spoken.ports or ()]
        if device in (door.name for door in doors):
            ports = {door.name: ({"cost": door.cost} if door.cost else {}) | ({"priority": door.priority} if door.priority != 128 else {})
                     | ({"costs": dict(door.costs)} if door.costs else {}) for door in doors}
    own = ports.pop(device, {})
    return ({"tree": own} if own else {}) | ({"redundant": ports} if ports else {})


def uplink(device: str, uplinks: dict[str, str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", device)
    return uplinks.setdefault(device, name)


def named(table: str, name: str) -> str:
    """Elements of a set of the table, as text."""
    found = re.search(rf"set {name} \{{(.*?)\n\s*\}}", table, re.S)
    return found[1] if found else ""


def allowed(ours: Ours, device: str) -> Tree:
    """What guests behind *device* may ask of the host, beyond what every network may."""
    services = {(p, int(n)) for b, p, n in SERVICE.findall(ours.table) if b == device}
    allow = [{"protocol": p, "port": n} for p, n in sorted(services) if (p, n) not in DEFAULTS]
    return {"allow": allow} if allow else {}


def pairs(table: str, name: str) -> list[tuple[str, str]]:
    return re.findall(r'"([^"]+)" \. "([^"]+)"', named(table, name))


def served(server: Any, network: Tree, resolvers: tuple[str, ...]) -> Tree:
    """DHCP and DNS as the configuration of dnsmasq has them."""
    lines = list(server.config or ()) if isinstance(server, DnsmasqServer) else []
    if not lines:
        return {} if network["mode"] in OUTER else {"dhcp": {"enabled": False}, "dns": {"enabled": False}, "ra": "off"}
    out: Tree = {}
    dns: Tree = {}
    values = [line.partition("=")[::2] for line in lines]
    upstream = [value for key, value in values if key == "server"]
    domain = next((value for key, value in values if key == "domain"), "")
    if domain and domain != server.name.lower():
        dns["domain"] = domain
    if ("port", "0") in values:
        dns["enabled"] = False
    elif upstream != ([] if network["mode"] == "isolated" else list(resolvers)):
        dns["upstream"] = upstream
    ranges = [value.split(",") for key, value in values if key == "dhcp-range"]
    lease = next((r[-1] for r in ranges if "ra-only" not in r and "ra-stateless" not in r), "")
    dhcp: Tree = {}
    if not lease:
        dhcp["enabled"] = False
    elif lease != "43200":
        dhcp["lease"] = lease
    for r in ranges:
        if "static" not in r and not r[1].startswith("ra-"):
            dhcp["dynamic"] = True
            out["pool6" if ":" in r[0] else "pool"] = f"{r[0]}-{r[1]}"
        elif r[1].startswith("ra-"):
            out["ra"] = "autoconf"
    if network.get("subnet6") and not any(key == "ra-param" for key, _ in values) and network["mode"] not in OUTER:
        out["ra"] = "off"
    router = next((value.partition(",")[2] for key, value in values if value.startswith("option:router")), "")
    if router and network["mode"] in (*OUTER, "isolated"):
        out["gateway"] = router
    hosts = [value.split(",") for key, value in values if key == "host-record"]
    for *names, address in hosts:
        dns.setdefault("hosts", {}).setdefault(names[-1], []).append(address)
    return out | ({"dhcp": dhcp} if dhcp else {}) | ({"dns": dns} if dns else {})


def peers(ours: Ours, networks: Tree) -> None:
    """Networks that reach each other; a bridge with the uplink in it is a way out, and taken for no peer."""
    for a, b in pairs(ours.table, "reach"):
        if a in ours.bridges and b in ours.bridges and a < b and not (ours.port(a) or ours.port(b)):
            networks[ours.bridges[a]].setdefault("peers", []).append(ours.bridges[b])


def forwards(ours: Ours, networks: Tree, vms: Tree) -> None:
    """Ports handed to guests: the map for every address, and the rules for one address."""
    owner = {str(n[k]): (vm, n["network"], n["name"]) for vm, w in vms.items() for n in w["nics"]
             for k in ("ip", "ip6") if n.get(k, "none") != "none"}
    body = re.search(r"chain dstnat \{(.*?)\n\s*\}", ours.table, re.S)
    text = body[1] if body else ""
    found = [("", *m) for m in re.findall(r"(tcp|udp) \. (\d+) : ([0-9a-f.:]+) \. (\d+)", text)]
    found += re.findall(r"daddr (\S+) (tcp|udp) dport (\d+) dnat ip6? to \[?([0-9a-f.:]+?)\]?:(\d+)", text)
    done: set[tuple[str, ...]] = set()
    for address, protocol, port, guest, to_port in found:
        if guest not in owner:
            continue
        vm, network, nic = owner[guest]
        if (address, protocol, port, vm) in done:
            continue
        done.add((address, protocol, port, vm))
        row: Tree = {"protocol": protocol, "port": int(port), "to": f"{vm}/{nic}", "to_port": int(to_port)}
        networks[network].setdefault("forwards", []).append(row | ({"address": address} if address else {}))


# -- guests ----------------------------------------------------------------------------------------

def guests(ours: Ours, networks: Tree, runs: Mapping[str, Tree], users: Mapping[int, str]) -> Tree:
    found: dict[str, dict[str, Tree]] = {}
    owners: dict[str, str] = {}
    tenants: dict[str, str] = {}
    for tap, (vm, nic, link) in sorted(ours.taps.items()):
        of = macvtap_network(ours, link) if link.type == "macvtap" else ours.bridges.get(link.master or "") or re.sub(r"[^A-Za-z0-9_-]", "-", link.master or "")
        if of in networks:
            found.setdefault(vm, {})[nic] = card(ours, tap, vm, nic, link, of, networks[of])
            if tenant := memberships(ours.seen, tap)[1]:
                tenants[vm] = tenant
            node = ours.get(TapNode, tap)
            if (user := node.user if node else link.user) is not None and user > 0:
                owners[vm] = users.get(user, str(user))
    vms: Tree = {}
    for vm, nics in sorted(found.items()):
        order = sorted(nics, key=lambda n: (not re.fullmatch(r"nic\d+", n), len(n), n))
        head: Tree = {"run": runs[vm]} if vm in runs else {"owner": owners[vm]} if vm in owners else {}
        head |= {"tenant": tenants[vm]} if vm in tenants else {}
        vms[vm] = head | {"nics": [nics[n] for n in order]}
        default = [n.get("hostname") for n in vms[vm]["nics"]]
        for i, nic in enumerate(vms[vm]["nics"]):
            if default[i] == (vm if i == 0 else f"{vm}-{nic['name']}"):
                del nic["hostname"]
    return vms


def card(ours: Ours, tap: str, vm: str, nic: str, link: Link, name: str, network: Tree) -> Tree:
    guard: NicGuard | None = ours.get(NicGuard, tap)
    device: GuestNic | None = ours.get(GuestNic, f"{vm}/{nic}")
    mine = [r for r in ours.of(Reservation) if r.server == name and (
        r.name.split()[1] in ((guard.macs or ()) if guard else ()) or r.hostname == vm)]
    held = mine[0] if mine else None
    macs = list((guard.macs or ()) if guard else ())
    known_macs, known_addresses = known_to_groups(ours.seen, tap)
    mac = held.name.split()[1] if held else device.mac if device else f"52{link.mac[2:]}" \
        if network.get("bridge") and link.mac and f"52{link.mac[2:]}" in macs else next(iter(macs or known_macs), "")
    addresses = [a for a in ((guard.addresses or ()) if guard else ()) if not ip_address(a).is_link_local] or list(known_addresses)
    out: Tree = {"network": name, "name": nic} | ({"mac": mac} if mac else {})
    for option, version in (("ip", 4), ("ip6", 6)):
        own = (getattr(held, option) or "") if held else next(
            (a for a in addresses if ip_address(a).version == version), "")
        out[option] = own or "none"
    if held and held.hostname:
        out["hostname"] = held.hostname.partition(".")[0]
    if guard:
        out |= guarded(guard, out, [m for m in macs if m != mac], addresses)
    if link.type == "tap":
        out["isolated"] = bool(link.isolated)
    if found := memberships(ours.seen, tap)[0]:
        out["groups"] = found
    if limits := restored(ours.get(NicLimits, tap)):
        out["limits"] = limits
    mtu = own_mtu(ours.get(DnsmasqServer, name), mac or "")
    if device:
        out |= hardware(device)
        mtu = device.mtu or device.host_mtu or mtu
    if mtu and mtu != network.get("mtu", 1500):
        out["mtu"] = mtu
    if not device and link.multi_queue:
        out["queues"] = 2
    return out


def own_mtu(server: Any, mac: str) -> int | None:
    """MTU that the network's server tells this NIC alone."""
    lines = (server.config or ()) if isinstance(server, DnsmasqServer) else ()
    return next((int(m[1]) for line in lines if (m := re.fullmatch(r"dhcp-mac=set:mtu(\d+),(.*)", line)) and m[2] == mac),
                None)


def guarded(guard: NicGuard, nic: Tree, macs: list[str], addresses: list[str]) -> Tree:
    out: Tree = {}
    if guard.level != "full":
        out["guard"] = {"mac": "mac", "open": "off"}.get(guard.level or "", "full")
    more = [a for a in addresses if a not in (nic["ip"], nic["ip6"])]
    extra = {"macs": macs, "addresses": [*more, *(str(ip_network(p)) for p in guard.prefixes or ())],
             "roles": list(guard.roles or ())}
    if extra := {k: w for k, w in extra.items() if w}:
        out["extra"] = extra
    if guard.vlans:
        out["trunk"] = list(guard.vlans)
    return out


def hardware(device: GuestNic) -> Tree:
    """What a running guest's QEMU has."""
    out: Tree = {"model": device.model, "queues": device.queues, "link": "up" if device.link else "down"}
    if device.pci:
        out["pci"] = device.pci
    if device.bootindex is not None and device.bootindex >= 0:
        out["boot"] = device.bootindex
    if device.model in ("virtio", "virtio-transitional"):
        out |= {"vhost": "on" if device.vhost else "off", "rx_ring": device.rx_ring, "tx_ring": device.tx_ring,
                "packed": bool(device.packed), **({"rss": True} if device.rss else {})}
        if off := {n: False for n in Offloads.model_fields if n not in (device.offloads or ())}:
            out["offloads"] = off
    return out
