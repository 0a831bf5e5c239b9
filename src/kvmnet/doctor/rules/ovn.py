"""Rules about OVN, as far as its databases and this host's flows tell. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

from kvmnet.doctor.finding import Finding, Severity
from kvmnet.doctor.rules.switches import REWRITTEN
from kvmnet.doctor.view import Json, View, kind, physical

CONNECTED = "connected"
USUAL = "br-ex"
"""What guides to OVN and OpenStack call the bridge to the network outside."""


def ovn_controller_away(view: View) -> Iterator[Finding]:
    """OVN is configured on this host, and ovn-controller does not run, does not answer, or has no connection to the southbound database. Flows that are written stay; ports of new guests, and all that changes, do not come to this host."""
    ovn = here(view)
    if ovn and ovn["chassis"] and ovn["controller"] not in (CONNECTED, None):
        state = {"": "does not run", "silent": "does not answer"}.get(ovn["controller"], "has no connection to its database")
        yield Finding(code="ovn-controller-away", severity=Severity.DEGRADES, where=ovn["bridge"], what=f"ovn-controller {state}", why=f"It writes what OVN wants into {ovn['bridge']}: what changes from now on does not come to this host.",
                      evidence=(f"ovn-appctl -t ovn-controller connection-status: {ovn['controller'] or 'no such process in this network namespace'}", *ovn["reasons"]),
                      fix=("systemctl restart ovn-controller",) if ovn["controller"] in ("", "silent") else ("ovs-vsctl get open . external-ids:ovn-remote   # is the database there, and does its port answer?",))


def ovn_mapping_missing(view: View) -> Iterator[Finding]:
    """A network of OVN with guests or a gateway on this host goes out by a physical network, and no bridge of this host is mapped to that (``ovn-bridge-mappings``), or the bridge is not there. What goes out there is dropped on this host, on others it works."""
    ovn = here(view)
    if not ovn:
        return
    used = datapaths(ovn)
    bridges = [s["name"] for s in view.rows("switches")]
    for network in sorted({p["network"] for p in ports(ovn, "localnet") if p["datapath"] in used} - {""}):
        mapped = ovn["mappings"].get(network)
        if mapped in bridges:
            continue
        names = ", ".join(p["name"] for p in ports(ovn, "localnet") if p["network"] == network and p["datapath"] in used)
        told = ",".join(f"{n}:{b}" for n, b in ovn["mappings"].items())
        yield Finding(code="ovn-mapping-missing", severity=Severity.BLOCKS, where=network, what=f"the physical network {network} is mapped to {mapped}, which is not there" if mapped else f"the physical network {network} is mapped to no bridge of this host",
                      why="ovn-controller makes the patch to the network outside by this mapping: without it, frames for it are dropped here.", evidence=(f"ovs-vsctl get open . external-ids:ovn-bridge-mappings: {told or 'none'}", f"ovn-sbctl find port_binding type=localnet: {names}, network_name {network}"),
                      fix=(f"ovs-vsctl --may-exist add-br {mapped}   # and its uplink: ovs-vsctl add-port {mapped} NIC",) if mapped else (f"ovs-vsctl set open . external-ids:ovn-bridge-mappings={told}{',' if told else ''}{network}:{outer(view, ovn)}",))


def ovn_port_without_flows(view: View) -> Iterator[Finding]:
    """A port of OVN is bound and up on this host, and its flows are not in the bridge: a fault of ovn-controller's incremental engine, or somebody has deleted them. Its guest is cut off, though both databases are right."""
    ovn = here(view)
    for switch in view.rows("switches") if ovn else ():
        for port in switch["ports"]:
            if found := unwritten(ovn, switch, port):
                yield found


def ovn_port_unknown(view: View) -> Iterator[Finding]:
    """A port of OVN's bridge says by its ``iface-id`` which logical port it is, and OVN has no such port: nothing is written for it, and its guest is cut off."""
    ovn = here(view)
    for switch in view.rows("switches") if ovn and ovn["ports"] is not None and ovn["controller"] == CONNECTED else ():
        for port in switch["ports"] if switch["name"] == ovn["bridge"] else ():
            if port.get("iface_id") and not any(p["name"] == port["iface_id"] for p in ovn["ports"]):
                yield Finding(code="ovn-port-unknown", severity=Severity.BLOCKS, where=port["name"], what=f"{port['name']} says that it is {port['iface_id']}, and OVN has no such port", why="OVN writes flows for ports that it knows.",
                              evidence=(f"ovs-vsctl get interface {port['name']} external-ids:iface-id: {port['iface_id']}", f"ovn-sbctl find port_binding logical_port={port['iface_id']}: none"),
                              fix=(f"ovs-vsctl set interface {port['name']} external-ids:iface-id=NAME   # as ovn-nbctl show names the guest's port, or make it there",))


def ovn_nat_without_gateway(view: View) -> Iterator[Finding]:
    """A logical router has rules of NAT (floating IPs, too), and no chassis does them: it has neither a chassis of its own nor a port with a gateway chassis. OVN takes the rules and leaves them out without a word; a guest does not even reach its own floating IP."""
    ovn = here(view)
    for router in ovn["routers"] if ovn else ():
        if router["chassis"] or any(p["gateway"] for p in router["ports"]):
            continue
        rules = router["nat"]
        port = next((p["name"] for p in router["ports"] for n in rules if holds(p["networks"], n["external"])), "PORT")
        chassis = ovn["chassis"] if ovn["chassis"] in ovn["mapped"] else next(iter(ovn["mapped"]), "CHASSIS")
        yield Finding(code="ovn-nat-without-gateway", severity=Severity.BLOCKS, where=router["name"], what=f"the router {router['name']} translates addresses, and no chassis does it for it", why="NAT is done on a gateway: without one OVN writes no flow for it, and packets to these addresses are dropped by the router.",
                      evidence=(f"ovn-nbctl lr-nat-list {router['name']}: {', '.join(f'''{n['type']} {n['external']} {n['inner']}''' for n in rules[:3])}{f' and {len(rules) - 3} more' if len(rules) > 3 else ''}", f"ovn-nbctl lrp-get-gateway-chassis {port}: none"),
                      fix=(f"ovn-nbctl lrp-set-gateway-chassis {port} {chassis}",))


# -- what they ask ---------------------------------------------------------------------------------

def here(view: View) -> Json:
    """What OVN wants of this host; empty where there is none."""
    return view.facts.get("ovn") or {}


def ports(ovn: Json, kind: str) -> list[Json]:
    return [p for p in ovn["ports"] or () if p["type"] == kind]


def datapaths(ovn: Json) -> set[str]:
    """Logical switches whose frames leave by this host: those of its guests, and those that routers with a gateway here lead to."""
    peers = {p["name"]: p["peer"] for p in ovn["ports"] or ()}
    homes = {p["name"]: p["datapath"] for p in ovn["ports"] or ()}
    ways = [peers.get(p["of"], "") for p in ports(ovn, "chassisredirect") if p["here"]] + [p["peer"] for p in ports(ovn, "l3gateway") if p["here"]]
    return {p["datapath"] for p in ports(ovn, "") if p["here"]} | {homes[w] for w in ways if w in homes}


def outer(view: View, ovn: Json) -> str:
    """The bridge that leads out and is mapped to nothing yet; where several may, the usual one, and the others as a comment."""
    free = {s["name"]: [view.links.get(p["name"], {}) for p in s["ports"] if p["type"] == ""] for s in view.rows("switches") if s["name"] != ovn["bridge"] and s["name"] not in ovn["mappings"].values()}
    wired = [name for name, links in free.items() if any(physical(link) or kind(link) in ("bond", "vlan") for link in links)]
    known = wired or [name for name, links in free.items() if links]
    best = known[0] if len(known) == 1 else USUAL if USUAL in known else "BRIDGE"
    return best if len(known) == 1 else f"{best}   # the bridge that leads to it, of {', '.join(known) or 'none yet'}"


def unwritten(ovn: Json, switch: Json, port: Json) -> Finding | None:
    """A port without its flows. Where a table has none of anybody, OVN is another version or has just begun: nothing is said."""
    if switch["name"] != ovn["bridge"] or not port.get("iface_id") or port["error"]:
        return None
    bound = next((p for p in ports(ovn, "") if p["name"] == port["iface_id"] and p["here"]), None)
    lost = [(word, way) for word, way in (("enter", "enters"), ("leave", "leaves")) if bound and bound[way] == 0 and any(p[way] for p in ovn["ports"])]
    if not bound or not lost:
        return None
    return Finding(code="ovn-port-without-flows", severity=Severity.BLOCKS, where=port["name"], what=f"{port['name']} ({bound['name']}) is up in OVN, and {switch['name']} has no flow by which its frames {' or '.join(word for word, _ in lost)}",
                   why="What no flow lets pass is dropped; the databases of OVN are right, what was written of them is not.", evidence=(f"ovn-sbctl find port_binding logical_port={bound['name']}: up, on this chassis", f"ovs-ofctl dump-flows {switch['name']} table=0: {bound['enters']} of it; table=65: {bound['leaves']}"),
                   fix=tuple(c.format(bridge=switch["name"]) for c in REWRITTEN))


def holds(networks: list[str], address: str) -> bool:
    try:
        return any(ip_address(address) in ip_interface(n).network for n in networks)
    except ValueError:
        return False
