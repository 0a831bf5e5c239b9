"""Every rule of the doctor: a capture in which it finds its fault, and one, nearly the same, in which it does not."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.doctor.finding import Severity
from kvmnet.doctor.rules.table import RULES, examine
from kvmnet.doctor.view import View

Json = dict[str, Any]
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def link(name: str, kind: str = "", *, master: str = "", up: bool = True, carrier: bool = True, mtu: int = 1500, mac: str = "02:00:00:00:00:ff", at: tuple[str, ...] = (),
         port: Json | None = None, addresses: list[Json] | None = None, wire: str = "", tx: int = 0, **info: Any) -> Json:
    flags = ["BROADCAST", *(["UP"] if up else []), *(["LOWER_UP"] if up and carrier else [])]
    rows = [{"family": "inet6" if ":" in a else "inet", "local": a.partition("/")[0], "prefixlen": int(a.partition("/")[2]), "scope": "global"} for a in at]
    return {"ifname": name, "ifindex": abs(hash(name)) % 10**6, "link_type": "ether", "flags": flags, "mtu": mtu, "address": mac, "addr_info": rows + (addresses or []),
            "stats64": {"tx": {"dropped": tx}}, **({"master": master} if master else {}), **({"link": wire} if wire else {}),
            **({"linkinfo": {"info_kind": kind, "info_data": info, **({"info_slave_data": port} if port else {})}} if kind or port else {})}


def bridge(name: str = "br0", **more: Any) -> Json:
    return link(name, "bridge", mac="02:00:00:00:00:b0", **more)


def tap(name: str = "t1", master: str = "br0", **more: Any) -> Json:
    return link(name, "tun", master=master, type="tap", **more)


def qemu(name: str, *argv: str, pid: int = 7, **more: Any) -> Json:
    return {"pid": pid, "name": name, "argv": ["qemu-system-x86_64", "-enable-kvm", *argv], "taps": {}} | more


def card(name: str, mac: str = "", tap: str = "t1", pid: int = 7, model: str = "virtio-net-pci", smp: str = "2", netdev: str = ",vhost=on", device: str = "") -> Json:
    return qemu(name, "-smp", smp, "-netdev", f"tap,id=n0,ifname={tap}{netdev}", "-device", f"{model},netdev=n0{',mac=' + mac if mac else ''}{device}", pid=pid)


def told(mtu: int = 1500, at: str | None = "10.0.0.5/24", given: str = "10.0.0.5", routes: tuple[str, ...] = ("default via 10.0.0.1", "10.0.0.0/24"), neighbours: list[Json] | None = None,
         resolvers: tuple[str, ...] = ("10.0.0.1",), queues: int = 2, failed: bool = False, mac: str = MAC, **more: Any) -> Json:
    """A guest of ours behind t1 of br0 that told of itself through its agent."""
    own = {"name": "ens3", "mac": mac, "mtu": mtu, "up": True, "hardware": True, "queues": queues, "mac_set": mac != MAC,
           "addresses": [{"local": at.partition("/")[0], "prefixlen": int(at.partition("/")[2]), "failed": failed}] if at else []} | more
    inside = {"agent": "", "links": [own], "resolvers": list(resolvers), "neighbours": neighbours or [], "rules": 3, "routes": [
        {"version": 4, "dst": r.split()[0], "type": "unicast", "dev": "ens3", "via": r.split()[2] if " via " in r else "", "metric": 0} for r in routes]}
    nic = {"name": "a/nic0", "mac": MAC, "tap": "t1", "queues": 2, "negotiated": {"offered": ["mq", "host_tso4"], "taken": ["mq", "host_tso4"]}}
    return ROUTED | {"guests": [qemu("a", "-smp", "2", ours=True, status="running", nics=[nic], inside=inside)], "dhcp_servers": [server()],
                     "nics": [{"vm": "a", "nic": "nic0", "network": "lan", "mac": MAC, "ip": given, "ip6": "", "tap": "t1"}]}


def containers(mtu: int, forward: str = "1") -> Json:
    """The same guest with a card of 1,400 bytes, and a bridge for containers."""
    found = told(mtu=1400) | {"links": [BR, tap(mtu=1400), T2, link("eth0", at=("10.9.0.2/24",))]}
    inside = found["guests"][0]["inside"]
    inside["links"].append({"name": "docker0", "mac": OTHER, "mtu": mtu, "up": True, "hardware": False})
    inside["settings"] = {"net.ipv4.ip_forward": forward}
    return found


def nested(at: str) -> Json:
    """The same guest with a bridge that has an address."""
    found = told()
    found["guests"][0]["inside"]["links"].append({"name": "virbr0", "mac": OTHER, "mtu": 1500, "up": True, "hardware": False, "addresses": [{"local": at.partition("/")[0], "prefixlen": int(at.partition("/")[2]), "failed": False}]})
    return found


def held(*names: str) -> Json:
    return {n: {"pid": 7, "program": "qemu-system-x86_64", "queues": 1} for n in names}


def later(**parts: Any) -> Json:
    return {"seconds": 1.0} | parts


def default(dev: str, gateway: str = "10.0.0.254", **more: Any) -> Json:
    return {"dst": "default", "gateway": gateway, "dev": dev, "type": "unicast", "table": "main"} | more


def server(**more: Any) -> Json:
    return {"pid": 4, "interfaces": ["br0"], "ranges": [["10.0.0.10", "10.0.0.11"]], "hosts": [], "leases": [], "file": "/l", "most": 1000, "port": 53, "ra": False} | more


def lease(ip: str, mac: str = MAC) -> Json:
    return {"ip": ip, "mac": mac, "name": "", "client": ""}


def learned(mac: str, port: str, **more: Any) -> Json:
    return {"mac": mac, "ifname": port, "master": "br0", "state": ""} | more


def neighbour(ip: str, mac: str, state: str = "REACHABLE") -> Json:
    return {"ip": ip, "dev": "ens3", "mac": mac, "state": state}


def htb(rate: str, default: str = "10") -> Json:
    """Class 1:10 gets *rate*, class 1:20 borrows from its parent."""
    text = f"qdisc htb 1: root refcnt 2\nclass htb 1:10 root prio 0 rate {rate} ceil 1Gbit burst 100b cburst 100b \nclass htb 1:1 root rate 1Gbit ceil 1Gbit burst 9Kb cburst 9Kb \nclass htb 1:20 parent 1:1 prio 0 rate 8bit ceil 1Gbit burst 9Kb cburst 9Kb \n"
    return {"qdiscs": [{"kind": "htb", "handle": "1:", "dev": "eth0", "root": True, "options": {"default": f"0x{default}"}}], "classes": {"eth0": text}}


def tbf(burst: int, rate: int = 125000) -> Json:
    return {"kind": "tbf", "handle": "8001:", "dev": "eth0", "root": True, "options": {"rate": rate, "burst": burst, "lat": 50000}}


def netem_of(options: Json) -> Json:
    return {"kind": "netem", "handle": "8001:", "dev": "eth0", "root": True, "options": {"limit": 1000} | options}


def snmp(group: str, name: str, value: int) -> Json:
    return {"snmp": f"{group}: {name}\n{group}: {value}\n", "netstat": ""}


def netstat(value: int) -> Json:
    return {"snmp": "", "netstat": f"TcpExt: IPReversePathFilter\nTcpExt: {value}\n"}


def bond(mode: str = "802.3ad", partner: str = "02:00:00:00:00:aa", **more: Any) -> Json:
    return link("bond0", "bond", mode=mode, **({"miimon": 100, "ad_info": {"partner_mac": partner}} | more))


def chain(hook: str, policy: str = "accept", *rules: list[Json], table: str = "theirs", family: str = "ip") -> list[Json]:
    return [{"table": {"family": family, "name": table, "handle": 1}},
            {"chain": {"family": family, "table": table, "name": "c", "handle": 2, "type": "filter", "hook": hook, "prio": 0, "policy": policy}},
            *({"rule": {"family": family, "table": table, "chain": "c", "handle": 3 + n, "expr": expr}} for n, expr in enumerate(rules))]


def met(key: str, right: str, op: str = "==") -> Json:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


BR, T1, T2 = bridge(at=("10.0.0.1/24",)), tap(), tap("t2")
ROUTED = {"links": [BR, T1, T2, link("eth0", at=("10.9.0.2/24",))], "sysctls": {"net/ipv4/ip_forward": "1"}, "routes4": [default("eth0", "10.9.0.1")]}
WIRES = [link("a", "veth", master="br0", wire="b"), link("b", "veth", master="br1", wire="a"), link("c", "veth", master="br0", wire="d"), link("d", "veth", master="br1", wire="c")]
OWN = "br0: received packet on t1 with own address as source address (addr:02:00:00:00:00:b0, vlan:0)"
IFS = "net/ipv6/conf/eth0/accept_ra"
DYNAMIC = [{"family": "inet6", "local": "2001:db8::5", "prefixlen": 64, "scope": "global", "dynamic": True}]
STRICT = [{"family": "inet", "interface": "all", "rp_filter": "strict"}]

def at_eth0(*routes: Json) -> Json:
    return {"links": [link("eth0", at=("10.9.0.2/24",))], "routes4": [{"type": "local", "dst": "10.9.0.2", "dev": "eth0", "table": "local"}, *routes]}


def by_vlans(**ports: tuple[int, ...]) -> Json:
    """A bridge that goes by VLANs; of each port its MTU and its VLANs."""
    return {"links": [bridge(vlan_filtering=1), *(link(name, "" if name == "eth0" else "tun", master="br0", mtu=mtu) for name, (mtu, *_) in ports.items())],
            "vlans": [{"ifname": name, "vlans": [{"vlan": v} for v in vlans]} for name, (_, *vlans) in ports.items()]}


def several(*gateways: str) -> Json:
    return {"dst": "default", "type": "unicast", "nexthops": [{"gateway": g, "dev": "eth0", "weight": 1, "flags": []} for g in gateways]}


MAIN = ({"priority": 0, "src": "all", "table": "local"}, {"priority": 32766, "src": "all", "table": "main"})


def refused(**route: Any) -> Json:
    """The host routes for br0, and has one route more."""
    here = [{"type": "unicast", "dst": "10.0.0.0/24", "dev": "br0", "metric": 9}, {"type": "unicast", "dst": "10.9.0.0/24", "dev": "eth0"}]
    return ROUTED | {"routes4": [default("eth0", "10.9.0.1", metric=9), *here, route], "rules4": [*MAIN], "netconf": [{"family": "inet", "interface": "br0", "forwarding": True}]}


def ovs(*ports: str, flows: int = 3, mode: str = "secure", error: str = "") -> Json:
    return {"name": "br-int", "fail_mode": mode, "datapath": "netdev", "flows": flows, "ports": [{"name": "br-int", "type": "internal", "ofport": 65534, "error": ""}, *({"name": p, "type": "", "ofport": 1, "error": error} for p in ports)]}


def ovn(*ports: Json, mappings: Json | None = None, controller: str = "connected", routers: list[Json] | None = None) -> Json:
    return {"chassis": "c1", "bridge": "br-int", "mappings": mappings or {}, "controller": controller, "ports": list(ports), "routers": routers or [], "mapped": ["c1"], "reasons": []}


def bound(name: str = "lp1", kind: str = "", datapath: str = "d1", enters: int = 1, **more: Any) -> Json:
    return {"name": name, "type": kind, "datapath": datapath, "here": kind in ("", "chassisredirect"), "mac": [], "network": "physnet" if kind == "localnet" else "", "peer": "", "of": "", "enters": enters, "leaves": 1} | more


def logical(*ports: Json, at: str = "lp1", **more: Any) -> Json:
    """A host with one port of OVN at v1, and a bridge to the network outside."""
    inner = ovs("v1")
    inner["ports"][1]["iface_id"] = at
    return {"links": [link("v1"), link("eth0")], "switches": [inner, ovs("eth0", mode="") | {"name": "br-ex"}], "ovn": ovn(*ports, **more)}


WIRE, MAPPED = bound("wire", "localnet"), {"physnet": "br-ex"}
GATEWAY = (bound("cr-out", "chassisredirect", "r", of="out"), bound("out", "patch", "r", peer="up"), bound("up", "patch", "d2"), bound("wire", "localnet", "d2"))
"""A router's gateway that is on this host, and the network outside that it leads to."""


def router(gateway: bool) -> Json:
    return {"name": "r", "chassis": "", "nat": [{"type": "dnat_and_snat", "external": "10.7.0.5", "inner": "10.6.0.5"}], "ports": [{"name": "in", "networks": ["10.6.0.1/24"], "gateway": False}, {"name": "out", "networks": ["10.7.0.2/24"], "gateway": gateway}]}


def xfrm(selector: str, way: str, action: str = "block", priority: int = 9) -> Json:
    return {"xfrm": f"{selector} \n\tdir {way} action {action} priority {priority} ptype main \n"}


def vxlan(sent: int, now: int, came: int = 0) -> Json:
    def told(packets: int) -> Json:
        return {"tx": {"packets": packets}, "rx": {"packets": came}}
    return {"links": [link("vx0", "vxlan", id=7, port=4789, remote="10.9.0.7") | {"stats64": told(sent)}], "later": later(links={"vx0": told(now)})}


def half_seen(packets: int) -> Json:
    def told(number: int) -> Json:
        return {"stat/nf_conntrack": f"entries  clashres found new invalid ignore\n00000000  00000000 00000000 00000000 {number:08x} 00000000\n"}
    invalid = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}
    return ROUTED | {"nft": chain("forward", "accept", [invalid, {"drop": None}]), "counters": told(3), "later": later(counters=told(3 + packets))}


CASES: list[tuple[str, Json, Json]] = [
    ("duplicate-mac", {"guests": [card("a", MAC), card("b", MAC, "t2", 8)]}, {"guests": [card("a", MAC), card("b", OTHER, "t2", 8)]}),
    ("duplicate-mac", {"guests": [card("a"), card("b", "", "t2", 8)]}, {"guests": [card("a"), card("b", OTHER, "t2", 8)]}),
    ("duplicate-mac", {"neighbours": [{"dst": f"10.0.0.{n}", "dev": "br0", "lladdr": "52:54:00:12:34:56"} for n in (5, 6)]},
     {"neighbours": [{"dst": "10.0.0.5", "dev": "br0", "lladdr": "52:54:00:12:34:56"}]}),
    ("mac-moves", {"fdb": [learned(MAC, "t1")], "later": later(fdb=[learned(MAC, "t2")])}, {"fdb": [learned(MAC, "t1")], "later": later(fdb=[learned(MAC, "t1")])}),
    ("bridge-ring", {"links": [BR, bridge("br1"), *WIRES]}, {"links": [BR, bridge("br1"), *WIRES[:2]]}),
    ("bridge-ring", {"links": [BR, bridge("br1"), *WIRES]}, {"links": [bridge(stp_state=1), bridge("br1", stp_state=1), *WIRES]}),
    ("frames-come-back", {"links": [BR, T1], "machine": {"uptime": 100.0, "log": [{"text": OWN, "times": 3, "last": 99.0}]}},
     {"links": [BR, T1], "machine": {"uptime": 9999.0, "log": [{"text": OWN, "times": 3, "last": 99.0}]}}),
    ("guest-learned-elsewhere", {"links": [BR, T1, T2], "guests": [card("a", MAC)], "fdb": [learned(MAC, "t2", state="static")]},
     {"links": [BR, T1, T2], "guests": [card("a", MAC)], "fdb": [learned(MAC, "t1")]}),
    ("tap-has-guest-mac", {"links": [BR, tap(mac=MAC)], "guests": [card("a", MAC)]}, {"links": [BR, tap(mac="fe:54:00:00:00:01")], "guests": [card("a", MAC)]}),
    ("switch-silent", {"links": [link("v1")], "switches": [ovs("v1") | {"state": "silent"}]}, {"links": [link("v1")], "switches": [ovs("v1") | {"state": ""}]}),
    ("ovn-controller-away", logical(bound(), controller=""), logical(bound())),
    ("ovn-controller-away", logical(bound(), controller="not connected"), {"ovn": ovn(controller="") | {"chassis": ""}}),
    ("ovn-mapping-missing", logical(bound(), WIRE), logical(bound(), WIRE, mappings=MAPPED)),
    ("ovn-mapping-missing", logical(bound(), WIRE, mappings={"physnet": "br9"}), logical(bound(), bound("wire", "localnet", "d2"))),
    ("ovn-mapping-missing", logical(bound(), *GATEWAY), logical(bound(), GATEWAY[0] | {"here": False}, *GATEWAY[1:])),
    ("ovn-port-without-flows", logical(bound(enters=0), WIRE, mappings=MAPPED), logical(bound(), WIRE, mappings=MAPPED)),
    ("ovn-port-without-flows", logical(bound(leaves=0), WIRE, mappings=MAPPED), logical(bound(enters=0, here=False), WIRE, mappings=MAPPED)),
    ("ovn-port-without-flows", logical(bound(enters=0), WIRE, mappings=MAPPED), logical(bound(enters=None, leaves=None), mappings=MAPPED)),
    ("ovn-port-unknown", logical(bound(), at="lp7"), logical(bound())),
    ("ovn-port-unknown", logical(bound(), at="lp7"), logical(bound(), at="lp7", controller="not connected") | {"links": []}),
    ("ovn-nat-without-gateway", {"ovn": ovn(routers=[router(False)])}, {"ovn": ovn(routers=[router(True)])}),
    ("tap-detached", {"links": [BR, tap(master="")], "taps": held("t1")}, {"links": [BR, tap(master="", at=("10.8.0.1/24",))], "taps": held("t1")}),
    ("tap-idle", {"links": [BR, tap(carrier=False)], "taps": {}}, {"links": [BR, tap(carrier=False)], "taps": held("t1")}),
    ("tap-carrier-off", {"links": [BR, tap(carrier=False)], "taps": held("t1")}, {"links": [BR, tap(carrier=False)], "taps": {}}),
    ("card-missing", {"links": [BR, T1], "guests": [{"pid": 7, "name": "a", "argv": ["qemu", "-netdev", "tap,id=n0,ifname=t1", "-device", "virtio-net-pci,netdev=n1", "-netdev", "user,id=n1"], "taps": {"9": "t1"}}]},
     {"links": [BR, T1], "guests": [{"pid": 7, "name": "a", "argv": ["qemu", "-netdev", "tap,id=n0,fd=9", "-device", "virtio-net-pci,netdev=n0", "-netdev", "user,id=n1"], "taps": {"9": "t1"}}]}),
    ("guest-stopped", {"links": [BR, T1], "guests": [{"pid": 7, "name": "a", "argv": ["kvm"], "halted": True}]}, {"links": [BR, T1], "guests": [{"pid": 7, "name": "a", "argv": ["kvm"]}]}),
    ("queue-too-small", {"links": [BR, T1 | {"qdisc": "fq_codel"}]}, {"links": [BR, T1 | {"qdisc": "fq_codel", "txqlen": 1000}]}),
    ("guest-learned-elsewhere", {"links": [BR, T1], "fdb": [{"mac": MAC, "ifname": "t1", "master": "br0", "state": "permanent"}]}, {"links": [BR, tap(mac=MAC)], "fdb": [{"mac": MAC, "ifname": "t1", "master": "br0", "state": "permanent"}]}),
    ("server-dead", {"links": [BR], "own_servers": [{"network": "lan", "pid": 0}]}, {"links": [BR], "own_servers": [{"network": "lan", "pid": 7}]}),
    ("port-down", {"links": [BR, tap(up=False)], "taps": held("t1")}, {"links": [BR, T1], "taps": held("t1")}),
    ("port-down", {"links": [bridge(up=False), T1]}, {"links": [BR, T1]}),
    ("uplink-without-carrier", {"links": [BR, link("eth0", master="br0", carrier=False)]}, {"links": [BR, link("eth0", master="br0")]}),
    ("wireless-port", {"links": [BR, link("wlan0", master="br0")], "machine": {"wireless": ["wlan0"]}}, {"links": [BR, link("wlan0")], "machine": {"wireless": ["wlan0"]}}),
    ("wireless-port", {"links": [link("ath0"), link("mt0", "macvtap", wire="ath0", mode="bridge")], "machine": {"wireless": ["ath0"]}}, {"links": [link("ath0"), link("mt0", "macvtap", wire="ath0", mode="passthru")], "machine": {"wireless": ["ath0"]}}),
    ("tree-silent", {"links": [bridge(), T1], "trees": [{"bridge": "br0", "protocol": "rstp", "trees": {}, "ports": {}}]},
     {"links": [bridge(), T1], "trees": [{"bridge": "br0", "protocol": "rstp", "trees": {"0": {}}, "ports": {}}]}),
    ("stp-delay", {"links": [bridge(stp_state=1, forward_delay=1500), T1]}, {"links": [bridge(stp_state=1, forward_delay=200), T1]}),
    ("bridge-mac-floats", {"links": [bridge("br1", at=("10.0.0.1/24",)), tap("t1", "br1", mac="02:00:00:00:00:b0")]}, {"links": [bridge("kvb-a", at=("10.0.0.1/24",)), tap("t1", "kvb-a", mac="02:00:00:00:00:b0")]}),
    ("bridge-mac-floats", {"links": [BR, tap(mac="02:00:00:00:00:b0")]}, {"links": [BR, tap(mac="02:00:00:00:00:b0")], "machine": {"address_set": {"br0": True}}}),
    ("bridge-full", {"links": [BR, *(tap(f"t{n}") for n in range(1010))]}, {"links": [BR, *(tap(f"t{n}") for n in range(900))]}),
    ("ageing-short", {"links": [bridge(ageing_time=100), T1, T2, tap("t3")]}, {"links": [bridge(ageing_time=30000), T1, T2, tap("t3")]}),
    ("proxy-arp", {"links": [BR, T1], "sysctls": {"net/ipv4/conf/br0/proxy_arp": "1"}}, {"links": [BR, T1], "sysctls": {"net/ipv4/conf/br0/proxy_arp": "0"}}),
    ("address-on-port", {"links": [BR, link("eth0", master="br0", at=("10.9.0.2/24",))], "routes4": [default("eth0")]}, {"links": [link("v0", "vrf"), link("eth0", master="v0", at=("10.9.0.2/24",))]}),
    ("subnet-overlap", {"links": [BR, link("eth0", at=("10.0.0.9/16",))]}, {"links": [BR, link("eth0", at=("10.1.0.9/16",))]}),
    ("subnet-overlap", {"links": [link("eth1", at=("10.0.0.1/24",)), link("m0", "macvlan", wire="eth0", at=("10.0.0.9/24",))]}, {"links": [link("eth0", at=("10.0.0.1/24",)), link("m0", "macvlan", wire="eth0", at=("10.0.0.9/24",))]}),
    ("address-twice", {"links": [BR, link("lo", at=("10.0.0.9/32",))], "neighbours": [{"dst": "10.0.0.9", "dev": "br0", "lladdr": MAC, "state": ["STALE"]}]},
     {"links": [BR, link("lo", at=("10.0.0.9/32",)), link("x", mac=MAC)], "neighbours": [{"dst": "10.0.0.9", "dev": "br0", "lladdr": MAC, "state": ["STALE"]}]}),
    ("address-twice", {"links": [bridge("br1", at=("10.1.0.1/24",)), bridge("br2", at=("10.1.0.1/24",))]},
     {"links": [link("red", "vrf"), link("blue", "vrf"), bridge("br1", at=("10.1.0.1/24",), master="red"), bridge("br2", at=("10.1.0.1/24",), master="blue")]}),
    ("address-twice", {"links": [BR, link("eth0", at=("10.0.0.1/32",))]}, {"links": [BR, link("eth0", at=("10.0.0.3/32",))]}),
    ("duplicate-detected", {"links": [link("eth0", addresses=[DYNAMIC[0] | {"dadfailed": True}])]}, {"links": [link("eth0", addresses=DYNAMIC)]}),
    ("address-moves", {"neighbours": [{"dst": "10.0.0.5", "dev": "br0", "lladdr": MAC}], "later": later(neighbours=[{"dst": "10.0.0.5", "dev": "br0", "lladdr": OTHER}])},
     {"neighbours": [{"dst": "10.0.0.5", "dev": "br0", "lladdr": MAC}], "later": later(neighbours=[{"dst": "10.0.0.5", "dev": "br0", "lladdr": MAC}])}),
    ("wrong-neighbour", {"nics": [{"vm": "a", "nic": "nic0", "mac": MAC, "ip": "10.0.0.5", "tap": "t1"}], "neighbours": [{"dst": "10.0.0.5", "dev": "br0", "lladdr": OTHER, "state": ["PERMANENT"]}]},
     {"nics": [{"vm": "a", "nic": "nic0", "mac": MAC, "ip": "10.0.0.5", "tap": "t1"}], "neighbours": [{"dst": "10.0.0.5", "dev": "br0", "lladdr": MAC, "state": ["PERMANENT"]}]}),
    ("gateway-silent", {"routes4": [default("eth0")], "neighbours": [{"dst": "10.0.0.254", "dev": "eth0", "state": ["FAILED"]}]},
     {"routes4": [default("eth0")], "neighbours": [{"dst": "10.0.0.254", "dev": "eth0", "lladdr": MAC, "state": ["STALE"]}]}),
    ("route-without-link", {"routes4": [default("eth0", flags=["dead", "linkdown"])]}, {"routes4": [default("eth0", flags=[])]}),
    ("gateway-silent", {"routes4": [several("10.0.0.254", "10.0.0.253")], "neighbours": [{"dst": "10.0.0.253", "dev": "eth0", "state": ["FAILED"]}]}, {"routes4": [several("10.0.0.254", "10.0.0.253")]}),
    ("route-error", refused(dst="10.0.0.0/24", type="blackhole"), refused(dst="10.0.0.0/16", type="blackhole")),
    ("route-error", refused(dst="10.0.0.77", type="unreachable"), refused(dst="10.8.0.77", type="unreachable")),
    ("route-error", refused(dst="1.1.0.0/16", type="prohibit"), refused(dst="1.1.0.0/16", type="prohibit", metric=4278198272)),
    ("route-error", refused(dst="default", type="unreachable", table="9") | {"rules4": [{"priority": 1, "src": "10.0.0.0", "srclen": 24, "table": "9"}, *MAIN]}, refused(dst="default", type="unreachable", table="9")),
    ("route-error", refused(dst="10.0.0.0/24", dev="br0") | {"rules4": [{"priority": 1, "src": "10.0.0.0", "srclen": 24, "action": "prohibit"}, *MAIN]}, refused(dst="10.0.0.0/24", dev="br0") | {"rules4": [{"priority": 1, "src": "10.7.0.0", "srclen": 24, "action": "prohibit"}, *MAIN]}),
    ("ra-ignored", {"links": [link("eth0", addresses=DYNAMIC)], "sysctls": {"net/ipv6/conf/all/forwarding": "1", IFS: "1"}},
     {"links": [link("eth0", addresses=DYNAMIC)], "sysctls": {"net/ipv6/conf/all/forwarding": "1", IFS: "2"}}),
    ("router-among-guests", {"links": [BR, T1, link("eth0", master="br0")], "routes6": [default("br0", "fe80::1", protocol="ra")], "neighbours": [{"dst": "fe80::1", "dev": "br0", "lladdr": MAC}], "fdb": [learned(MAC, "t1")]},
     {"links": [BR, T1, link("eth0", master="br0")], "routes6": [default("br0", "fe80::1", protocol="ra")], "neighbours": [{"dst": "fe80::1", "dev": "br0", "lladdr": MAC}], "fdb": [learned(MAC, "eth0")]}),
    ("two-routers", {"routes6": [default("eth0", f"fe80::{n}", protocol="ra") for n in (1, 2)]}, {"routes6": [default("eth0", "fe80::1", protocol="ra"), default("eth0", "fe80::2", protocol="static")]}),
    ("reverse-path", {"routes4": [default("eth0"), default("eth1", "10.1.0.254", table="2")], "netconf": STRICT, "counters": netstat(9)},
     {"routes4": [default("eth0"), default("eth1", "10.1.0.254", table="2")], "netconf": [{"family": "inet", "interface": "all", "rp_filter": "loose"}, {"family": "inet", "interface": "eth0", "rp_filter": "strict"}], "counters": netstat(9)}),
    ("reverse-path", {"routes4": [default("eth0")], "netconf": STRICT, "counters": netstat(9), "later": later(counters=netstat(12))}, {"routes4": [default("eth0")], "netconf": STRICT, "counters": netstat(9), "later": later(counters=netstat(9))}),
    ("forwarding-off", ROUTED | {"sysctls": {"net/ipv4/ip_forward": "0"}, "nft_text": "ip saddr 10.0.0.0/24 masquerade"}, ROUTED | {"nft_text": "ip saddr 10.0.0.0/24 masquerade"}),
    ("mtu-island", {"links": [BR, tap(mtu=9000), link("eth0", master="br0")]}, {"links": [BR, T1, link("eth0", master="br0"), tap("t9", mtu=9000, up=False)]}),
    ("mtu-island", by_vlans(t1=(9000, 5), t2=(1500, 5), eth0=(9000, 5, 6)), by_vlans(t1=(9000, 6), t2=(1500, 5), eth0=(9000, 5, 6))),
    ("mtu-island", by_vlans(t1=(9000, 5), eth0=(1500, 5, 6)), by_vlans(t1=(1500, 5), eth0=(9000, 5, 6))),
    ("tunnel-mtu", {"links": [link("eth0"), link("vx0", "vxlan", link="eth0", df="set")], "fdb": [{"mac": "00:00:00:00:00:00", "ifname": "vx0"}]},
     {"links": [link("eth0"), link("vx0", "vxlan", link="eth0", df="set", mtu=1450)], "fdb": [{"mac": "00:00:00:00:00:00", "ifname": "vx0"}]}),
    ("tunnel-mtu", {"links": [link("eth0", at=("2001:db8::1/64",)), link("g0", "geneve", local6="2001:db8::1", mtu=1450)]}, {"links": [link("eth0", at=("2001:db8::1/64",)), link("g0", "geneve", local6="2001:db8::1", mtu=1430)]}),
    ("way-out-mtu", ROUTED | {"links": [BR, T1, link("eth0", mtu=1400)]}, ROUTED | {"links": [BR, T1, link("eth0")]}), ("way-out-mtu", ROUTED | {"links": [BR, T1, link("eth0", mtu=1400)]}, {"links": [BR, T1, link("eth0", mtu=1400)], "routes4": [default("eth0")]}),
    ("merged-frames-forwarded", {"links": [BR, link("eth0", master="br0")], "offloads": {"eth0": ["rx-lro"]}}, {"links": [link("eth0")], "offloads": {"eth0": ["rx-lro"]}}),
    ("checksum-errors", {"counters": snmp("Udp", "InCsumErrors", 5), "later": later(counters=snmp("Udp", "InCsumErrors", 9))}, {"counters": snmp("Udp", "InCsumErrors", 5), "later": later(counters=snmp("Udp", "InCsumErrors", 5))}),
    ("forward-dropped", ROUTED | {"nft": chain("forward", "drop")}, ROUTED | {"nft": chain("forward", "drop", [met("iifname", "br0"), {"accept": None}], [met("oifname", "br0"), {"accept": None}])}),
    ("forward-dropped", ROUTED | {"xtables": {"ip": "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\nCOMMIT\n"}},
     ROUTED | {"xtables": {"ip": "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i br0 -j ACCEPT\n-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"}}),
    ("bridge-netfilter", {"links": [BR, T1, T2], "sysctls": {"net/bridge/bridge-nf-call-iptables": "1"}, "nft": chain("forward", "drop")}, {"links": [BR, T1, T2], "sysctls": {"net/bridge/bridge-nf-call-iptables": "0"}, "nft": chain("forward", "drop")}),
    ("input-dropped", {"links": [BR, T1], "dhcp_servers": [server()], "nft": chain("input", "accept", [met("iifname", "br0"), {"drop": None}])},
     {"links": [BR, T1], "dhcp_servers": [server()], "nft": chain("input", "accept", [met("iifname", "br1"), {"drop": None}])}),
    ("tunnel-blocked", {"links": [link("eth0", at=("10.9.0.2/24",)), link("vx0", "vxlan", id=7, port=4789, local="10.9.0.2", remote="10.9.0.3", )], "nft": chain("input", "drop", [met("iifname", "lo"), {"accept": None}])},
     {"links": [link("eth0", at=("10.9.0.2/24",)), link("vx0", "vxlan", id=7, port=4789, local="10.9.0.2", remote="10.9.0.3")], "nft": chain("input", "drop", [met("iifname", "eth0"), {"accept": None}])}),
    ("log-complains", {"machine": {"uptime": 100.0, "log": [{"text": "nf_conntrack: nf_conntrack: table full, dropping packet", "times": 9, "last": 90.0}]}},
     {"machine": {"uptime": 9000.0, "log": [{"text": "nf_conntrack: nf_conntrack: table full, dropping packet", "times": 9, "last": 90.0}]}}),
    ("masquerade-everywhere", {"nft": chain("postrouting", "accept", [met("oifname", "lo", "!="), {"masquerade": None}])}, {"nft": chain("postrouting", "accept", [met("oifname", "eth0"), {"masquerade": None}])}),
    ("ipsec-policy", ROUTED | xfrm("src 10.0.0.7/32 dst 0.0.0.0/0", "fwd"), ROUTED | xfrm("src 10.7.0.7/32 dst 10.8.0.0/16", "fwd")),
    ("ipsec-policy", ROUTED | xfrm("src 10.9.9.0/24 dst 10.0.0.0/24 proto tcp", "fwd"), ROUTED | {"xfrm": xfrm("src 0.0.0.0/0 dst 0.0.0.0/0", "in", "allow", 1)["xfrm"] + xfrm("src 0.0.0.0/0 dst 0.0.0.0/0", "in")["xfrm"]}),
    ("bond-partner", {"links": [bond(partner="00:00:00:00:00:00"), link("e1", master="bond0")]}, {"links": [bond(), link("e1", master="bond0")]}),
    ("bond-member-down", {"links": [bond(), link("e1", master="bond0", port={"mii_status": "DOWN"}), link("e2", master="bond0", port={"mii_status": "UP"})]},
     {"links": [bond(), link("e1", master="bond0", port={"mii_status": "UP"}), link("e2", master="bond0", port={"mii_status": "UP"})]}),
    ("bond-members-apart", {"links": [bond(), *(link(f"e{n}", master="bond0", port={"mii_status": "UP", "ad_aggregator_id": n}) for n in (1, 2))]},
     {"links": [bond(), *(link(f"e{n}", master="bond0", port={"mii_status": "UP", "ad_aggregator_id": 1}) for n in (1, 2))]}),
    ("bond-unwatched", {"links": [bond(miimon=0)]}, {"links": [bond(miimon=0, arp_interval=100)]}),
    ("bond-spreads-blindly", {"links": [bond("balance-rr") | {"master": "br0"}, link("e1", master="bond0"), link("e2", master="bond0")]}, {"links": [bond("active-backup") | {"master": "br0"}, link("e1", master="bond0"), link("e2", master="bond0")]}),
    ("prefix-without-route", at_eth0(), at_eth0({"dst": "10.9.0.0/24", "dev": "eth0", "table": "7"})),
    ("prefix-without-route", at_eth0({"dst": "10.9.0.0/16", "dev": "eth1"}), at_eth0({"dst": "10.9.0.0/16", "dev": "eth0"})),
    ("tunnel-unanswered", vxlan(25, 26), vxlan(25, 26, came=1)), ("tunnel-unanswered", vxlan(25, 26), vxlan(25, 25)), ("tunnel-unanswered", vxlan(25, 26), vxlan(8, 9)),
    ("flows-half-seen", half_seen(9), half_seen(2)), ("flows-half-seen", half_seen(9), half_seen(9) | {"nft": []}),
    ("flows-half-seen", half_seen(9), half_seen(9) | {"nft": chain("forward", "drop")}),
    ("tunnel-without-peers", {"links": [link("vx0", "vxlan", id=7)]}, {"links": [link("vx0", "vxlan", id=7)], "fdb": [{"mac": "00:00:00:00:00:00", "ifname": "vx0", "dst": "10.0.0.2"}]}),
    ("resolver-everywhere", {"links": [BR, T1], "listening": [{"proto": "udp", "address": "0.0.0.0", "port": 53, "program": "unbound", "pid": 9}]},
     {"links": [BR, T1], "listening": [{"proto": "udp", "address": "127.0.0.53", "port": 53, "program": "systemd-resolved", "pid": 9}]}),
    ("pool-full", {"dhcp_servers": [server(leases=[lease("10.0.0.10"), lease("10.0.0.11", OTHER)])]}, {"dhcp_servers": [server(leases=[lease("10.0.0.10")])]}),
    ("lease-limit", {"dhcp_servers": [server(most=2, leases=[lease("10.9.0.1"), lease("10.9.0.2")])]}, {"dhcp_servers": [server(most=9, leases=[lease("10.9.0.1")])]}),
    ("range-off-subnet", {"links": [BR], "dhcp_servers": [server(ranges=[["10.7.0.10", "10.7.0.20"]])]}, {"links": [BR], "dhcp_servers": [server()]}),
    ("reserved-is-leased", {"dhcp_servers": [server(hosts=[{"mac": MAC, "ip": "10.0.0.10"}], leases=[lease("10.0.0.10", OTHER)])]}, {"dhcp_servers": [server(hosts=[{"mac": MAC, "ip": "10.0.0.10"}], leases=[lease("10.0.0.10")])]}),
    ("two-dhcp-servers", {"dhcp_servers": [server(), server(pid=5)]}, {"dhcp_servers": [server(), server(pid=5, interfaces=["br1"])]}),
    ("neighbour-table", {"sysctls": {"net/ipv4/neigh/default/gc_thresh3": "4"}, "neighbours": [{"dst": f"10.0.0.{n}"} for n in range(4)]}, {"sysctls": {"net/ipv4/neigh/default/gc_thresh3": "40"}, "neighbours": [{"dst": f"10.0.0.{n}"} for n in range(4)]}),
    ("conntrack-table", {"sysctls": {"net/netfilter/nf_conntrack_count": "99", "net/netfilter/nf_conntrack_max": "100"}}, {"sysctls": {"net/netfilter/nf_conntrack_count": "9", "net/netfilter/nf_conntrack_max": "100"}}),
    ("backlog-overflow", {"counters": {"softnet_stat": "00ffffff 00000005 00000000\n"}, "later": later(counters={"softnet_stat": "00ffffff 00000009 00000000\n"})},
     {"counters": {"softnet_stat": "00ffffff 00000005 00000000\n"}, "later": later(counters={"softnet_stat": "00ffffff 00000005 00000000\n"})}),
    ("backlog-overflow", {"counters": {"softnet_stat": "000000ff 00000005 00000000\n"}}, {"counters": {"softnet_stat": "000000ff 00000005 00000000\n"}, "later": later(counters={"softnet_stat": "000000ff 00000005 00000000\n"})}),
    ("forwarding-off", ROUTED | {"netconf": [{"family": "inet", "interface": "br0", "forwarding": False}], "nft_text": "ip saddr 10.0.0.0/24 masquerade"},
     ROUTED | {"netconf": [{"family": "inet", "interface": d, "forwarding": True} for d in ("br0", "eth0")], "sysctls": {"net/ipv4/ip_forward": "0"}, "nft_text": "ip saddr 10.0.0.0/24 masquerade"}),
    ("port-overflow", {"links": [BR, tap(tx=5)], "taps": held("t1"), "later": later(links={"t1": {"tx": {"dropped": 9}}})}, {"links": [BR, tap(tx=5)], "taps": held("t1"), "later": later(links={"t1": {"tx": {"dropped": 5}}})}),
    ("netem-left", {"qdiscs": [netem_of({"loss-random": {"loss": 0.1, "correlation": 0}})]}, {"qdiscs": [{"kind": "fq_codel", "dev": "eth0", "root": True, "options": {}}]}),
    ("queue-too-small", {"links": [link("eth0")], "qdiscs": [tbf(1000)]}, {"links": [link("eth0")], "qdiscs": [tbf(1600)]}),
    ("queue-too-small", {"qdiscs": [{"kind": "pfifo", "dev": "eth0", "root": True, "options": {"limit": 0}}]}, {"qdiscs": [{"kind": "pfifo", "dev": "eth0", "parent": "1:", "options": {"limit": 0}}]}),
    ("queue-too-slow", {"links": [link("eth0")], **htb("8bit")}, {"links": [link("eth0")], **htb("1Mbit")}),
    ("queue-too-slow", {"links": [link("eth0")], **htb("8bit")}, {"links": [link("eth0")], **htb("8bit", "20")}),
    ("queue-too-slow", {"links": [link("eth0")], "qdiscs": [tbf(1600, 100)]}, {"links": [link("eth0")], "qdiscs": [tbf(1600)]}),
    ("netem-left", {"qdiscs": [netem_of({"delay": {"delay": 0.05}, "duplicate": {"duplicate": 0.5}})]}, {"qdiscs": [netem_of({"gap": 0})]}),
    ("switch-port-stale", {"links": [link("v1")], "switches": [ovs("v1", "t9")]}, {"links": [link("v1"), link("t9")], "switches": [ovs("v1", "t9")]}),
    ("switch-port-stale", {"links": [link("v1")], "switches": [ovs("v1", error="could not add network device v1 to ofproto (No such device)")]}, {"links": [link("v1")], "switches": [ovs("v1", flows=0, mode="")]}),
    ("switch-without-flows", {"links": [link("v1")], "switches": [ovs("v1", flows=0)]}, {"links": [link("v1")], "switches": [ovs("v1", flows=1)]}),
    ("tap-detached", {"links": [BR, tap(master="")], "taps": held("t1")}, {"links": [BR, tap(master="")], "taps": held("t1"), "switches": [ovs("t1")]}),
    ("netlink-lost", {"machine": {"netlink_drops": 1}, "later": later(netlink_drops=4)}, {"machine": {"netlink_drops": 4}, "later": later(netlink_drops=4)}),
    ("guest-stopped", {"guests": [qemu("a", status="io-error")]}, {"guests": [qemu("a", status="running")]}),
    ("iommu-missing", {"guests": [qemu("a", "-device", "vfio-pci,host=01:00.0")], "features": {"iommu": "off", "vfio": ""}}, {"guests": [qemu("a", "-device", "vfio-pci,host=01:00.0")], "features": {"iommu": "", "vfio": ""}}),
    ("iommu-group-shared", {"machine": {"iommu_groups": {"1": [{"pci": "a", "class": "0x020000", "driver": "vfio-pci"}, {"pci": "b", "class": "0x010000", "driver": "ahci"}]}}},
     {"machine": {"iommu_groups": {"1": [{"pci": "a", "class": "0x020000", "driver": "vfio-pci"}, {"pci": "b", "class": "0x060400", "driver": "pcieport"}]}}}),
    ("cpu-stolen", {"machine": {"stat": {"cpu": [0] * 8}}, "later": later(stat={"cpu": [80, 0, 0, 0, 0, 0, 0, 20]})}, {"machine": {"stat": {"cpu": [0] * 8}}, "later": later(stat={"cpu": [99, 0, 0, 0, 0, 0, 0, 1]})}),
    ("cpu-quota", {"machine": {"throttled": {"/g": {"guest": "a", "periods": 100, "throttled": 30}}}}, {"machine": {"throttled": {"/g": {"guest": "a", "periods": 100, "throttled": 0}}}}),
    ("interrupts-on-one-cpu", {"machine": {"interrupts": {"eth0": {"1": [0, 0], "2": [0, 0]}}}, "later": later(interrupts={"eth0": {"1": [0, 5000], "2": [0, 5000]}})},
     {"machine": {"interrupts": {"eth0": {"1": [0, 0], "2": [0, 0]}}}, "later": later(interrupts={"eth0": {"1": [5000, 0], "2": [0, 5000]}})}),
    ("vhost-missing", {"guests": [card("a", MAC, netdev="")]}, {"guests": [card("a", MAC)]}),
    ("emulated-card", {"guests": [card("a", MAC, model="e1000e")]}, {"guests": [card("a", MAC)]}),
    ("queues-idle", {"guests": [card("a", MAC, netdev=",vhost=on,queues=4", device=",mq=on")]}, {"guests": [card("a", MAC, netdev=",vhost=on,queues=2", device=",mq=on")]}),
    ("queues-idle", {"guests": [card("a", MAC, netdev=",vhost=on,queues=2")]}, {"guests": [card("a", MAC)]}),
    ("user-backend", {"guests": [qemu("a", "-netdev", "user,id=n0", "-device", f"virtio-net-pci,netdev=n0,mac={MAC}")]}, {"guests": [card("a", MAC)]}),
    ("guest-nic-down", told(up=False), told()),
    ("guest-without-address", told(at=None), told(at=None, given="")),
    ("guest-without-address", told(at=None), told(at=None, master="bond0")),
    ("guest-other-address", told(at="10.0.0.77/24"), told()),
    ("guest-other-prefix", told(at="10.0.0.5/8"), told(at="10.0.0.5/32")),
    ("guest-other-prefix", told(at="10.0.0.5/28"), told()),
    ("guest-subnet-overlap", nested("10.0.0.1/24"), nested("10.8.0.1/24")),
    ("guest-subnet-overlap", nested("10.0.0.1/16"), nested("10.0.0.9/32")),
    ("guest-without-route", told(routes=("10.0.0.0/24",)), told()),
    ("guest-without-route", told(routes=("10.0.0.0/24",)), told(routes=("10.0.0.0/24",)) | {"sysctls": {"net/ipv4/ip_forward": "0"}}),
    ("guest-wrong-neighbour", told(neighbours=[neighbour("10.0.0.1", OTHER)]), told(neighbours=[neighbour("10.0.0.1", "02:00:00:00:00:b0")])),
    ("guest-gateway-silent", told(neighbours=[neighbour("10.0.0.1", "", "FAILED")]), told(neighbours=[neighbour("10.0.0.9", "", "FAILED")])),
    ("guest-duplicate-address", told(at="fd00::5/64", failed=True), told(at="fd00::5/64")),
    ("guest-other-mac", told(mac=OTHER), told(mac=OTHER, mac_set=False)),
    ("guest-mtu", told(mtu=9000), told()),
    ("guest-mtu", told(mtu=1400), told(mtu=1400) | {"links": [BR, tap(mtu=1400), T2, link("eth0", at=("10.9.0.2/24",))]}),
    ("guest-nested-mtu", containers(1500), containers(1400)),
    ("guest-nested-mtu", containers(1500), containers(1500, forward="0")),
    ("guest-without-resolver", told(resolvers=()), told(resolvers=()) | {"dhcp_servers": [server(port=0)]}),
    ("guest-queues-unused", told(queues=1), told()),
    ("guest-offloads-off", told(offloads={"tso": False}), told(offloads={"tso": False, "rx-checksum": False, "tx-checksum": False}) | {"guests": []}),
    ("guest-offloads-off", told(offloads={"tso": False}), told(offloads={"tso": True, "rx-checksum": False})),
    ("not-accelerated", {"guests": [{"pid": 7, "name": "a", "argv": ["qemu-system-x86_64", "-accel", "tcg"], "taps": {}}]}, {"guests": [card("a", MAC)]}),
]


def codes(facts: Json) -> list[str]:
    return [f.code for f in examine(View(facts))]


def test_every_rule_has_its_captures_and_a_page() -> None:
    assert {code for code, _, _ in CASES} == set(RULES)
    assert all(len((rule.__doc__ or "").split()) > 10 for rule in RULES.values())


@pytest.mark.parametrize(("code", "bad", "good"), CASES, ids=[f"{n}-{code}" for n, (code, _, _) in enumerate(CASES)])
def test_a_rule_finds_its_fault_and_nothing_without_it(code: str, bad: Json, good: Json) -> None:
    found = [f for f in examine(View(bad)) if f.code == code]
    assert found and code not in codes(good)
    for finding in found:
        assert finding.what and finding.why and finding.evidence and finding.fix and finding.where
        assert "\n" not in finding.what


def test_an_empty_capture_is_no_fault() -> None:
    assert codes({"links": []}) == [] and codes({"links": None, "fdb": None, "nft": None}) == []


def test_a_guest_that_is_well_says_nothing() -> None:
    assert codes(told()) == []


def test_the_worst_is_told_first() -> None:
    found = examine(View({"links": [BR, tap(mtu=9000, up=True), tap("t2", up=False)], "taps": held("t2"), "guests": [card("a", MAC, netdev="")]}))
    ranks = [list(Severity).index(f.severity) for f in found]
    assert found[0].code == "port-down" and ranks == sorted(ranks)


def test_what_is_ours_is_mended_by_its_document() -> None:
    found = [f for f in examine(View({"links": [bridge("kvb-lan"), tap("kvt-a-0", "kvb-lan", up=False)], "taps": held("kvt-a-0")})) if f.code == "port-down"]
    assert found[0].fix == ("kvmnet apply",)


def test_docker_is_told_in_its_own_chain() -> None:
    text = "table ip filter { # handle 1\n\tchain DOCKER-USER { # handle 5\n\t}\n\n\tchain FORWARD { # handle 2\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n"
    rules = chain("forward", "drop", table="filter")
    rules[1]["chain"]["name"] = "FORWARD"
    found = [f for f in examine(View(ROUTED | {"nft": rules, "nft_text": text})) if f.code == "forward-dropped"]
    assert found[0].fix == ("iptables -I DOCKER-USER -i br0 -j ACCEPT", "iptables -I DOCKER-USER -o br0 -j ACCEPT")


def test_libvirts_devices_as_json_are_read() -> None:
    text = '{"driver":"virtio-net-pci","netdev":"h0","mac":"52:54:00:00:00:01","mq":true}'
    view = View({"guests": [qemu("a", "-netdev", '{"type":"tap","fds":"33:34","vhost":true,"id":"h0"}', "-device", text, taps={"33": "vnet0", "34": "vnet0"})]})
    card, = view.cards
    assert (card.mac, card.tap, card.queues, card.vhost, card.options["mq"]) == (MAC, "vnet0", 2, True, "on")


def test_a_network_that_was_closed_by_name_is_no_fault() -> None:
    """libvirt's isolated networks have such a rule; where another rule lets the bridge pass, it is one all the same."""
    nft = chain("forward", "accept", [met("iifname", "br0"), {"reject": None}])
    text = 'table ip theirs { # handle 1\n\tchain c { # handle 2\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tiifname "br0" reject # handle 3\n\t}\n}\n'
    inner = 'table ip own {\n\tchain c {\n\t\tiifname "br0" oifname "br0" accept\n\t}\n}\n'
    outer = inner.replace(' oifname "br0"', "")
    assert "forward-dropped" not in codes(ROUTED | {"nft": nft, "nft_text": text})
    assert "forward-dropped" not in codes(ROUTED | {"nft": nft, "nft_text": text + inner})
    assert "forward-dropped" in codes(ROUTED | {"nft": nft, "nft_text": text + outer})


def test_a_cure_of_the_input_opens_no_more_than_was_dropped() -> None:
    legacy = {"xtables": {"ip": "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"}, "links": [BR, T1], "dhcp_servers": [server()]}
    assert [f.fix for f in examine(View(legacy)) if f.code == "input-dropped"] == [("iptables-legacy -I INPUT -i br0 -p udp --dport 67 -j ACCEPT",)]


def test_a_masquerade_gets_its_uplink_and_keeps_what_it_says() -> None:
    text = 'table ip theirs { # handle 1\n\tchain c { # handle 2\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tip saddr 10.0.0.0/24 oifname != "lo" counter masquerade # handle 3\n\t}\n}\n'
    rules = chain("postrouting", "accept", [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.0.0.0", "len": 24}}}}, met("oifname", "lo", "!="), {"counter": None}, {"masquerade": None}])
    cures = [f.fix for f in examine(View(ROUTED | {"nft": rules, "nft_text": text})) if f.code == "masquerade-everywhere"]
    assert cures == [("nft 'replace rule ip theirs c handle 3 oifname { eth0 } ip saddr 10.0.0.0/24 counter masquerade'",)]
    old = ROUTED | {"xtables": {"ip": "*nat\n:POSTROUTING ACCEPT [0:0]\n[0:0] -A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE\nCOMMIT\n"}}
    assert [f.fix for f in examine(View(old)) if f.code == "masquerade-everywhere"] == [
        ("iptables-legacy -t nat -A POSTROUTING -o eth0 -s 10.0.0.0/24 -j MASQUERADE", "iptables-legacy -t nat -D POSTROUTING -s 10.0.0.0/24 -j MASQUERADE")]
