"""The walk over small captures: a good one, and the same with one thing wrong, for what this machine's kernel does not have."""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kvmnet.doctor.packet import Context, made
from kvmnet.doctor.routing import fib
from kvmnet.doctor.scene import Scene, read
from kvmnet.doctor.segment import enter, leave
from kvmnet.doctor.trip import State, begin
from kvmnet.doctor.why import Probe, why
from kvmnet.errors import KvmnetError

Facts = dict[str, Any]


def link(name: str, kind: str = "", mac: str = "", master: str = "", **more: Any) -> Facts:
    info: Facts = {"info_kind": kind, "info_data": more.pop("data", {})} if kind else {}
    if master:
        info |= {"info_slave_kind": "bridge", "info_slave_data": {"state": "forwarding", "isolated": False, "flood": True, "bcast_flood": True, **more.pop("port", {})}}
    return {"ifname": name, "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"], "mtu": 1500, "address": mac, "linkinfo": info, "addr_info": [],
            **({"master": master} if master else {}), **more}


def inet(address: str, length: int) -> Facts:
    return {"family": "inet6" if ":" in address else "inet", "local": address, "prefixlen": length, "scope": "global"}


def good() -> Facts:
    """Two taps on br0 (VLAN-aware, both in VLAN 5), the host on br1 with one tap, an uplink w0 with NAT."""
    def route(dst: str, dev: str, **more: Any) -> Facts:
        return {"dst": dst, "dev": dev, "type": "unicast", "flags": [], **more}

    macs = {"t1": "52:54:00:00:00:01", "t2": "52:54:00:00:00:02", "t3": "52:54:00:00:00:03"}
    return {
        "format": 1, "kvmnet": "0", "missing": {},
        "links": [link("br0", "bridge", "02:00:00:00:00:b0", data={"vlan_filtering": 1}), link("br1", "bridge", "02:00:00:00:00:b1", addr_info=[inet("10.1.0.1", 24)]),
                  link("t1", "tun", "fe:54:00:00:00:01", "br0"), link("t2", "tun", "fe:54:00:00:00:02", "br0"), link("t3", "tun", "fe:54:00:00:00:03", "br1"),
                  link("w0", "", "02:00:00:00:00:0a", addr_info=[inet("192.0.2.2", 24)])],
        "vlans": [{"ifname": t, "vlans": [{"vlan": 5, "flags": ["PVID", "Egress Untagged"]}]} for t in ("t1", "t2")],
        "fdb": [{"mac": mac, "ifname": t, "master": "br1" if t == "t3" else "br0", "flags": [], "state": "", **({"vlan": 5} if t != "t3" else {})} for t, mac in macs.items()],
        "taps": {t: {"pid": 7, "program": "qemu-system-x86_64", "queues": 1} for t in macs},
        "nics": [{"vm": f"vm{t[1]}", "nic": "nic0", "network": "n", "tap": t, "mac": mac, "ip": f"10.{int(t == 't3')}.0.1{t[1]}", "ip6": ""} for t, mac in macs.items()],
        "routes4": [{"type": "local", "dst": a, "dev": d, "table": "local", "flags": []} for a, d in (("10.1.0.1", "br1"), ("192.0.2.2", "w0"))] + [
            route("10.1.0.0/24", "br1"), route("192.0.2.0/24", "w0"), route("default", "w0", gateway="192.0.2.1")],
        "rules4": [{"priority": 0, "src": "all", "table": "local"}, {"priority": 32766, "src": "all", "table": "main"}],
        "netconf": [{"family": "inet", "interface": d, "forwarding": True, "rp_filter": "strict"} for d in ("all", "br1", "w0")],
        "sysctls": {"net/ipv4/ip_forward": "1", "net/netfilter/nf_conntrack_count": "5", "net/netfilter/nf_conntrack_max": "100"},
        "nft": [{"table": {"family": "ip", "name": "nat"}},
                {"chain": {"family": "ip", "table": "nat", "name": "post", "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}},
                {"rule": {"family": "ip", "table": "nat", "chain": "post", "handle": 2,
                          "expr": [{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "w0"}}, {"masquerade": None}]}}],
        "neighbours": [{"dst": "192.0.2.1", "dev": "w0", "lladdr": "02:00:00:00:00:ff", "state": ["REACHABLE"]}],
        "listening": [], "guests": [{"pid": 7, "name": "vm1", "argv": [], "taps": {}, "status": "running", "nics": [{"tap": "t1", "name": "vm1/nic0", "link": True}]}],
    }


def of(facts: Facts, name: str) -> Facts:
    return next(x for x in facts["links"] if x["ifname"] == name)


def port(facts: Facts, name: str, **values: Any) -> None:
    of(facts, name)["linkinfo"]["info_slave_data"].update(values)


def flags(name: str, *words: str) -> Callable[[Facts], None]:
    return lambda f: of(f, name).update(flags=list(words))


def vlan(name: str, *numbers: int, pvid: bool = True) -> Callable[[Facts], None]:
    def change(f: Facts) -> None:
        row = next(r for r in f["vlans"] if r["ifname"] == name)
        row["vlans"] = [{"vlan": n, "flags": ["PVID", "Egress Untagged"] if pvid else []} for n in numbers]
    return change


def bonded(*states: str) -> Callable[[Facts], None]:
    def change(f: Facts) -> None:
        of(f, "w0")["linkinfo"] = {"info_kind": "bond", "info_data": {"mode": "802.3ad", "ad_info": {"partner_mac": "00:00:00:00:00:00"}}}
        for n, state in enumerate(states):
            f["links"].append({**link(f"e{n}"), "master": "w0", "flags": ["UP", "LOWER_UP"] if state == "up" else ["UP", "NO-CARRIER"]})
    return change


def detoured(*words: str, by: str = "t1 ingress", to: str = "i1", kept: bool = True) -> Callable[[Facts], None]:
    """What comes in by t1, or leaves *by* another, takes a detour by the queue of i1, whose flags are *words*."""
    def change(f: Facts) -> None:
        action = {"kind": "mirred", "mirred_action": "redirect", "direction": "egress", "to_dev": to}
        every = {"code": 6, "jt": 0, "jf": 0, "k": 4294967295}
        way = {"match": {"value": "0", "mask": "0"}} if by.endswith("ingress") else {"bytecode": {"length": 1, "insns": [every]}}
        f["filters"] = [{"dev": by.split()[0], "direction": by.split()[1], "filters": [
            {"pref": 27510, "kind": "bpf" if "bytecode" in way else "u32", "options": {**way, "actions": [action]}}]}]
        f["links"] += [{**link("i1"), "flags": list(words)}] if kept else []
    return change


BAD: dict[str, tuple[str, str, str, Callable[[Facts], Any]]] = {
    # code: (A, B, what it is about, how to break the good capture)
    "tap-idle": ("vm1", "vm2", "t2", lambda f: (flags("t2", "UP", "NO-CARRIER")(f), f["taps"].pop("t2"))),
    "tap-carrier-off": ("vm1", "vm2", "t2", flags("t2", "UP", "NO-CARRIER")),
    "port-down": ("vm1", "vm2", "br0", flags("br0", "BROADCAST")),
    "vlan-mismatch": ("vm1", "vm2", "t2", vlan("t2", 6)),
    "vlan-none": ("vm1", "vm2", "t1", vlan("t1", 5, pvid=False)),
    "port-locked": ("vm1", "vm2", "t1", lambda f: (port(f, "t1", locked=True), f["fdb"].pop(0))),
    "port-state": ("vm1", "vm2", "t2", lambda f: port(f, "t2", state="learning")),
    "detour-astray": ("vm1", "vm2", "t1", detoured("BROADCAST")),
    "guest-stopped": ("vm1", "vm2", "vm1", lambda f: f["guests"][0].update(status="paused")),
    "guest-link-off": ("vm1", "vm2", "vm1/nic0", lambda f: f["guests"][0]["nics"][0].update(link=False)),
    "duplicate-mac": ("vm1", "vm2", "t1", lambda f: of(f, "br0").update(address="52:54:00:00:00:01")),
    "mtu-island": ("vm1", "vm2", "t2", lambda f: of(f, "t2").update(mtu=1400)),
    "conntrack-table": ("vm3", "outside", "conntrack", lambda f: f["sysctls"].update({"net/netfilter/nf_conntrack_count": "100"})),
    "no-nat": ("vm3", "outside", "outside", lambda f: f["nft"].pop()),
    "bond-dead": ("vm3", "outside", "w0", bonded("down", "down")),
    "bond-partner": ("vm3", "outside", "w0", bonded("up", "down")),
    "gateway-silent": ("vm3", "outside", "w0", lambda f: f["neighbours"][0].update(state=["FAILED"], lladdr="")),
    "no-carrier": ("vm3", "outside", "w0", flags("w0", "UP", "NO-CARRIER")),
    "no-uplink": ("vm1", "outside", "br0", lambda f: None),
    "nobody-listens": ("vm3", "host", "tcp 443", lambda f: None),
    "wrong-segment": ("host@10.1.0.1", "vm3", "w0", lambda f: f["routes4"].append({"dst": "10.1.0.13", "dev": "w0", "type": "unicast", "flags": []})),
    "proxy-arp": ("vm1", "vm2", "br0", lambda f: (f["vlans"].append({"ifname": "br0", "vlans": [{"vlan": 5, "flags": ["PVID", "Egress Untagged"]}]}), f["sysctls"].update({"net/ipv4/conf/br0/proxy_arp": "1"}))),
    "facts-missing": ("vm1", "vm2", "nft", lambda f: f.update(missing={"nft": "Operation not permitted"})),
    "rule-unknown": ("vm3", "outside", "ip nat post", lambda f: f["nft"][2]["rule"]["expr"].insert(0, {"quota": {"val": 1, "val_unit": "mbytes", "inv": True}})),
    "tc-filter": ("vm1", "vm2", "t1", lambda f: f.update(filters=[{"dev": "t1", "direction": "ingress", "filters": [
        {"protocol": "ip", "pref": 1, "kind": "matchall", "options": {"actions": [{"kind": "gact", "control_action": {"type": "drop"}}]}}]}])),
    "netem-left": ("vm3", "outside", "w0", lambda f: f.update(qdiscs=[{"kind": "netem", "handle": "1:", "dev": "w0", "root": True, "options": {"loss-random": {"loss": 1.0}}}])),
    "xdp-program": ("vm1", "vm2", "t1", lambda f: of(f, "t1").update(xdp={"mode": 2, "prog": {"id": 7}})),
    "limited": ("vm3", "outside", "ip nat post", lambda f: f["nft"][2]["rule"]["expr"].insert(0, {"limit": {"rate": 1, "per": "second"}})),
}


def scene(change: Callable[[Facts], Any] = lambda f: None) -> Scene:
    facts = copy.deepcopy(good())
    change(facts)
    return read(facts)


def test_a_port_that_rstp_shuts_is_not_to_be_opened_by_hand() -> None:
    shut = scene(lambda f: (port(f, "t2", state="listening"), of(f, "br0").update(ifalias="kvmnet network a | gate=br0")))
    found = why(shut, "vm1", "vm2", Probe()).findings[0]
    assert (found.code, found.where, found.fix) == ("port-state", "t2", ("kvmnet status",)) and "the spanning tree keeps it shut" in found.what


def test_why_names_the_root_and_says_whether_a_shut_port_is_as_it_should_be() -> None:
    def told(role: str, state: str, shown: str) -> Callable[[Facts], None]:
        def change(f: Facts) -> None:
            port(f, "t2", state=shown)
            of(f, "br0").update(ifalias="kvmnet network a | gate=br0")
            trees = {"1": {"role": role, "state": state, "cost": 5}, "0": {"role": "root", "state": "forwarding", "cost": 5}}
            f["trees"] = [{"bridge": "br0", "instances": ["1 1-9"], "untagged": 1, "ports": {"t2": {"trees": trees, "heard": 3}},
                           "trees": {n: {"root": "0.02:00:00:00:00:0a", "root_port": "t9"} for n in "01"}}]
        return change
    found = why(scene(told("alternate", "discarding", "forwarding")), "vm1", "vm2", Probe()).findings[0]
    assert (found.code, found.where) == ("port-state", "t2") and "instance 1 of MSTP" in found.what
    assert found.why == "as it should be: the root 0.02:00:00:00:00:0a is behind t9, another port leads there, and open it would close a loop"
    found = why(scene(told("designated", "discarding", "listening")), "vm1", "vm2", Probe()).findings[0]
    assert found.why.startswith("it waits for its neighbour's agreement")
    assert not why(scene(told("root", "forwarding", "forwarding")), "vm1", "vm2", Probe()).findings


@pytest.mark.parametrize(("a", "b"), [("vm1", "vm2"), ("vm3", "outside"), ("vm3", "host"), ("host", "vm3"), ("outside", "host")])
def test_the_good_one_is_good(a: str, b: str) -> None:
    report = why(scene(), a, b, Probe())
    assert report.state is State.OK and not report.findings, report.findings


@pytest.mark.parametrize(("rule", "probe", "found"), [
    ({"ipproto": "icmp"}, Probe(), True), ({"ipproto": "tcp"}, Probe(), False), ({"ipproto": "tcp", "dport": 443}, Probe("tcp", 443), True), ({"ipproto": "tcp", "dport": 443}, Probe("tcp", 80), False),
    ({"dport_start": 50, "dport_end": 60}, Probe("udp", 53), True), ({"dport_start": 50, "dport_end": 60}, Probe("udp", 61), False), ({"ipproto": "17", "not": None}, Probe("udp", 53), False),
    ({"ipproto": "17", "not": None}, Probe("tcp", 53), True), ({"tos": "0x10"}, Probe(), False), ({"tos": "0x10", "not": None}, Probe(), True)])
def test_a_policy_rule_that_asks_for_more_than_addresses(rule: Facts, probe: Probe, found: bool) -> None:
    report = why(scene(lambda f: f["rules4"].append({"priority": 5, "src": "all", "action": "blackhole", **rule})), "vm3", "outside", probe)
    assert ("route-error" in {f.code for f in report.findings}) is found and (found or report.state is State.OK), report.findings


def test_an_address_that_another_machine_has_is_not_answered() -> None:
    def refused(f: Facts) -> None:
        of(f, "br1")["addr_info"].append({**inet("fd00::1", 64), "dadfailed": True})
        f["nics"][2]["ip6"] = "fd00::13"
        f["routes6"] = [{"type": "unicast", "dst": "fd00::/64", "dev": "br1"}]
        f["rules6"] = f["rules4"]
    found = why(scene(refused), "vm3", "fd00::1", Probe(version=6)).findings[0]
    assert (found.code, found.where) == ("duplicate-detected", "br1") and found.fix


def faced(*own: int, on: str = "br0.5", untagged: int = 0) -> Callable[[Facts], None]:
    """The host has 10.0.0.1 on a VLAN device of br0, or on br0 itself, and br0 is in the VLANs *own*."""
    def change(f: Facts) -> None:
        f["links"].append({**link("br0.5", "vlan", "02:00:00:00:00:b0", data={"id": 5, "protocol": "802.1Q"}), "link": "br0"})
        of(f, on)["addr_info"] = [inet("10.0.0.1", 24)]
        f["routes4"] += [{"type": "local", "dst": "10.0.0.1", "dev": on, "table": "local", "flags": []}, {"type": "unicast", "dst": "10.0.0.0/24", "dev": on, "flags": []}]
        f["netconf"] += [{"family": "inet", "interface": on, "forwarding": True}]
        f["vlans"].append({"ifname": "br0", "vlans": [{"vlan": n, "flags": ["PVID", "Egress Untagged"] if n == untagged else []} for n in own]})
        f["neighbours"].append({"dst": "10.0.0.11", "dev": on, "lladdr": "52:54:00:00:00:01", "state": ["REACHABLE"]})
    return change


@pytest.mark.parametrize(("change", "found"), [
    (faced(5), ""), (faced(1, 5, untagged=1), ""), (faced(1, untagged=1), "vlan-mismatch"), (faced(5, on="br0", untagged=5), ""), (faced(1, 5, on="br0", untagged=1), "vlan-mismatch"), (faced(on="br0"), "vlan-mismatch")])
@pytest.mark.parametrize(("a", "b"), [("vm1", "10.0.0.1"), ("10.0.0.1", "vm1"), ("vm1", "vm3"), ("vm1", "outside")])
def test_the_host_on_a_bridge_that_goes_by_vlans(a: str, b: str, change: Callable[[Facts], None], found: str) -> None:
    report = why(scene(change), a, b, Probe())
    if found and "10.0.0.1" not in (a, b):
        return      # its router is another machine then
    assert {f.code for f in report.findings} == ({found} if found else set()), report.findings


@pytest.mark.parametrize("code", BAD)
def test_one_thing_wrong(code: str) -> None:
    a, b, where, change = BAD[code]
    report = why(scene(change), a.partition("@")[0], b, Probe("tcp", 443) if code == "nobody-listens" else Probe())
    found = [f for f in report.findings if f.code == code]
    assert found and found[0].where == where, report.findings
    assert (report.state is State.OK) is (code in ("mtu-island", "bond-partner", "limited"))
    assert found[0].why and found[0].what


def inside(name: str = "vm3", **more: Any) -> Callable[[Facts], None]:
    """Guest *name* on br1 tells of itself: one card, an address of its prefix, a default route by the host."""
    number = name[-1]
    mac = f"52:54:00:00:00:0{number}"

    def change(f: Facts) -> None:
        own = {"name": "ens3", "mac": mac, "mtu": 1500, "up": True, "hardware": True, "addresses": [{"local": f"10.1.0.1{number}", "prefixlen": 24}]}
        routes = [{"version": 4, "dst": d, "type": "unicast", "dev": "ens3", "via": v, "metric": 0} for d, v in (("10.1.0.0/24", ""), ("default", "10.1.0.1"))]
        told = {"agent": "", "links": [own | more.get("link", {})], "routes": routes, "neighbours": [], "resolvers": ["10.1.0.1"], "listening": [{"proto": "tcp", "address": "::", "port": 22}]}
        f["guests"].append({"pid": 8, "name": name, "argv": [], "taps": {}, "status": "running", "nics": [{"tap": f"t{number}", "name": f"{name}/nic0", "mac": mac, "link": True}],
                            "inside": told | {k: v for k, v in more.items() if k != "link"}})
    return change


def guest_chain(hook: str, *rules: list[Facts], policy: str = "accept") -> list[Facts]:
    here = {"family": "inet", "table": "filter"}
    return [{"table": {"family": "inet", "name": "filter"}}, {"chain": {**here, "name": hook, "type": "filter", "hook": hook, "prio": 0, "policy": policy}},
            *({"rule": {**here, "chain": hook, "handle": n, "expr": expr}} for n, expr in enumerate(rules, 9))]


PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
NEW = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
FAILED = [{"ip": "10.1.0.1", "dev": "ens3", "mac": "", "state": "FAILED"}]
ASTRAY = [{"ip": "10.1.0.1", "dev": "ens3", "mac": "02:de:ad:00:00:01", "state": "PERMANENT"}]
WITHIN: dict[str, tuple[str, str, Probe, Callable[[Facts], None], str]] = {
    # name: (A, B, probe, what vm3 tells, code)
    "down": ("vm3", "outside", Probe(), inside(link={"up": False}), "guest-nic-down"),
    "bare": ("vm3", "outside", Probe(), inside(link={"addresses": []}), "guest-without-address"),
    "other": ("vm3", "host", Probe(), inside(link={"addresses": [{"local": "10.1.0.99", "prefixlen": 24}]}), "guest-other-address"),
    "alone": ("vm3", "outside", Probe(), inside(routes=[{"version": 4, "dst": "10.1.0.0/24", "type": "unicast", "dev": "ens3", "via": "", "metric": 0}]), "guest-without-route"),
    "dead end": ("vm3", "outside", Probe(), inside(routes=[{"version": 4, "dst": "default", "type": "blackhole", "dev": "", "via": "", "metric": 0}]), "guest-without-route"),
    "wide": ("vm3", "outside", Probe(), inside(link={"addresses": [{"local": "10.1.0.13", "prefixlen": 1}]}, routes=[{"version": 4, "dst": "0.0.0.0/0", "type": "unicast", "dev": "ens3", "via": "", "metric": 0}]), "guest-other-prefix"),
    "deaf": ("vm3", "outside", Probe(), inside(neighbours=FAILED), "guest-gateway-silent"),
    "misled": ("vm3", "host", Probe(), inside(neighbours=ASTRAY), "guest-wrong-neighbour"),
    "shut": ("host", "vm3", Probe(), inside(nft=guest_chain("input", policy="drop")), "guest-firewall"),
    "mute": ("host", "vm3", Probe("tcp", 22), inside(nft=guest_chain("output", policy="drop")), "guest-firewall"),
    "legacy": ("host", "vm3", Probe("tcp", 22), inside(xtables="*filter\n:INPUT DROP [0:0]\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n"), "guest-firewall"),
    "idle": ("host", "vm3", Probe("tcp", 443), inside(), "nobody-listens"),
}


@pytest.mark.parametrize("name", WITHIN)
def test_one_thing_wrong_inside_a_guest(name: str) -> None:
    a, b, probe, change, code = WITHIN[name]
    report = why(scene(change), a, b, probe)
    assert report.state is State.BLOCKED and code in {f.code for f in report.blocking}, report.findings
    assert next(f for f in report.findings if f.code == code).where.startswith("vm3")


def test_a_guest_that_is_well_is_on_the_path_and_blocks_nothing() -> None:
    rules = guest_chain("input", [NEW, {"accept": None}], [{"match": {"op": "==", "left": PORT, "right": 22}}, {"accept": None}], policy="drop")
    for a, b, probe in (("host", "vm3", Probe("tcp", 22)), ("vm3", "outside", Probe()), ("vm3", "host", Probe())):
        report = why(scene(inside(nft=rules)), a, b, probe)
        assert report.state is State.OK and not report.findings, report.findings
        assert next(h.words for h in (*report.there, *report.back) if h.what == "inside").startswith("up, 10.1.0.13/24, MTU 1500")


def test_a_guest_that_told_nothing_is_said_so() -> None:
    def change(f: Facts) -> None:
        f["guests"][0]["inside"] = {"agent": "no agent answers"}
    report = why(scene(change), "vm1", "vm2", Probe())
    assert report.state is State.OK and report.there[0].words == "its inside is not seen: no agent answers"


def shared(*modes: str, host: str = "") -> Callable[[Facts], None]:
    """Guests vm5, vm6 ... behind macvtaps on w0; ``host``: mode of a macvlan of the host beside them."""
    def change(f: Facts) -> None:
        for number, word in enumerate(modes, 5):
            mac = f"52:54:00:00:00:0{number}"
            f["links"].append({**link(f"m{number}", "macvtap", mac, data={"mode": word}), "link": "w0"})
            f["nics"].append({"vm": f"vm{number}", "nic": "nic0", "network": "n", "tap": f"m{number}", "mac": mac, "ip": f"192.0.2.1{number}", "ip6": ""})
        if host:
            f["links"].append({**link("h0", "macvlan", "02:00:00:00:00:0b", data={"mode": host}, addr_info=[inet("192.0.2.3", 24)]), "link": "w0"})
            f["routes4"] += [{"type": "local", "dst": "192.0.2.3", "dev": "h0", "table": "local", "flags": []}, {"type": "unicast", "dst": "192.0.2.15", "dev": "h0", "flags": []}]
            f["netconf"].append({"family": "inet", "interface": "h0", "forwarding": True, "rp_filter": "strict"})
    return change


@pytest.mark.parametrize(("a", "b", "change", "codes"), [
    ("vm5", "vm6", shared("bridge", "bridge"), []), ("vm5", "vm6", shared("bridge", "private"), ["macvtap-private"]), ("vm5", "vm6", shared("vepa", "vepa"), ["macvtap-vepa"]),
    ("vm5", "192.0.2.2", shared("bridge"), ["macvtap-host"]), ("host", "vm5", shared("bridge"), ["macvtap-host"]), ("vm5", "192.0.2.3", shared("bridge", host="bridge"), []),
    ("192.0.2.3", "vm5", shared("bridge", host="bridge"), []), ("vm5", "outside", shared("bridge"), []), ("vm5", "192.0.2.3", shared("private", host="bridge"), ["macvtap-private"])])
def test_guests_behind_macvtaps(a: str, b: str, change: Callable[[Facts], None], codes: list[str]) -> None:
    report = why(scene(change), a, b, Probe())
    assert [f.code for f in report.findings] == codes and (report.state is State.OK) is not bool(codes), report.findings
    assert "m5" in {h.where for h in report.there}


def test_what_stands_at_the_device_of_macvtaps_is_seen() -> None:
    def change(f: Facts) -> None:
        shared("bridge")(f)
        of(f, "w0")["flags"] = ["UP", "NO-CARRIER"]
        f["filters"] = [{"dev": "w0", "direction": "ingress", "filters": [{"protocol": "all", "pref": 1, "kind": "matchall", "options": {"actions": [{"kind": "gact", "control_action": {"type": "drop"}}]}}]}]
    assert {f.code for f in why(scene(change), "vm5", "198.51.100.1", Probe()).findings} == {"no-carrier", "tc-filter"}


@pytest.mark.parametrize(("flows", "codes"), [(5, ["not-followed"]), (0, ["switch-without-flows"])])
def test_a_port_of_a_switch_in_user_space_is_told_as_such(flows: int, codes: list[str]) -> None:
    """It has no master that the kernel shows."""
    def change(f: Facts) -> None:
        f["links"].append(link("v1", "veth", "02:00:00:00:00:21"))
        f["switches"] = [{"name": "br-int", "fail_mode": "secure", "datapath": "netdev", "flows": flows, "ports": [{"name": "v1", "type": "", "ofport": 1, "error": ""}]}]
    found = why(scene(change), "v1@10.7.0.1", "198.51.100.1", Probe("tcp", 443)).findings
    assert [f.code for f in found] == codes, found
    assert flows == 0 or found[0].fix == ("ovs-appctl ofproto/trace --names br-int 'in_port=v1,tcp,nw_src=10.7.0.1,nw_dst=198.51.100.1,nw_ttl=64,tp_src=40000,tp_dst=443'",)


def test_ports_of_ovn_go_by_what_ovn_gave_them() -> None:
    """Names, addresses and MACs, the router's too; IPv6 as well, though the host has an address of its own on the port; an answer is asked about as one."""
    def change(f: Facts) -> None:
        for n in (1, 2):
            f["links"].append(link(f"v{n}", "veth", f"02:00:00:00:00:2{n}", addr_info=[{"family": "inet6", "local": f"fe80::2{n}", "prefixlen": 64, "scope": "link"}]))
        ports = [{"name": f"v{n}", "type": "", "ofport": n, "error": "", "peer": "", "iface_id": f"lp{n}"} for n in (1, 2)]
        f["switches"] = [{"name": "br-int", "fail_mode": "secure", "datapath": "netdev", "controllers": [], "ovn": True, "state": "", "flows": 9, "learned": [], "ports": ports}]
        def row(name: str, kind: str, mac: str, datapath: str = "d1", peer: str = "") -> Facts:
            return {"name": name, "type": kind, "datapath": datapath, "here": not kind, "mac": [mac], "network": "", "peer": peer, "of": "", "enters": 1, "leaves": 1}
        f["ovn"] = {"chassis": "c1", "remote": "", "bridge": "br-int", "mappings": {}, "controller": "connected", "routers": [], "mapped": [], "reasons": [],
                    "ports": [row("lp1", "", "0a:00:00:00:00:01 10.8.0.1 fd08::1"), row("lp2", "", "0a:00:00:00:00:02 10.8.0.2 fd08::2"), row("up", "patch", "router", peer="down"), row("down", "patch", "0a:00:00:00:00:fe 10.8.0.254/24", "d2", "up")]}
    for version, source in ((4, "nw_src=10.8.0.1"), (6, "ipv6_src=fd08::1")):
        report = why(scene(change), "lp1", "lp2", Probe(version=version))
        found = {f.where: f.fix[0] for f in report.findings if f.code == "not-followed"}
        assert set(found) == {"v1", "v2"} and f"dl_src=0a:00:00:00:00:01,dl_dst=0a:00:00:00:00:02,{source}" in found["v1"] and "--ct-next trk,est,rpl" in found["v2"] and "--ct-next" not in found["v1"]
    assert "dl_dst=0a:00:00:00:00:fe" in why(scene(change), "10.8.0.1", "198.51.100.1", Probe()).findings[0].fix[0]
    assert [f.code for f in why(scene(change), "198.51.100.1", "lp1", Probe()).findings][:1] == ["not-followed"]


def functions(**second: Any) -> Callable[[Facts], None]:
    """vm7 and vm8 have VFs of w0."""
    def change(f: Facts) -> None:
        rows = [{"vf": n, "mac": f"52:54:00:00:00:0{n + 7}", "vlan_list": [{"vlan": 5}], "link_state": "auto", "spoofchk": True, "trust": False} for n in (0, 1)]
        rows[1] |= second
        of(f, "w0")["vfinfo_list"] = rows
        f["nics"] += [{"vm": f"vm{n}", "nic": "nic0", "network": "n", "tap": f"kvt-vm{n}-0", "mac": f"52:54:00:00:00:0{n}", "ip": f"192.0.2.2{n}", "ip6": ""} for n in (7, 8)]
    return change


@pytest.mark.parametrize(("a", "b", "second", "codes"), [
    ("vm7", "vm8", {}, ["not-followed"]), ("vm7", "vm8", {"vlan_list": [{"vlan": 6}]}, ["vlan-mismatch", "not-followed"]), ("vm7", "vm8", {"link_state": "disable"}, ["vf-link-off", "not-followed"]),
    ("vm7", "outside", {}, ["not-followed"]), ("host", "vm7", {}, ["not-followed"]), ("198.51.100.1", "vm7", {}, ["not-followed"])])
def test_what_is_known_of_vfs_is_judged_and_the_rest_is_not_guessed(a: str, b: str, second: Facts, codes: list[str]) -> None:
    report = why(scene(functions(**second)), a, b, Probe())
    assert [f.code for f in report.findings] == codes and report.state is (State.BLOCKED if len(codes) > 1 else State.UNKNOWN), report.findings


def test_a_port_of_open_vswitch_is_told_how_to_ask_it() -> None:
    def change(f: Facts) -> None:
        f["links"].append(link("ovs-system", "openvswitch", "02:00:00:00:00:0e"))
        for name in ("t1", "t2"):
            of(f, name)["master"] = "ovs-system"
    findings = why(scene(change), "vm1", "vm2", Probe("tcp", 443)).findings
    assert {f.code for f in findings} == {"not-followed"}
    found = {f.where: f for f in findings}
    assert "ofproto/trace --names $(ovs-vsctl iface-to-br t1) 'in_port=t1,tcp,dl_src=52:54:00:00:00:01" in found["t1"].fix[0] and "nw_dst=10.0.0.12,nw_ttl=64,tp_src=40000,tp_dst=443'" in found["t1"].fix[0]


def tenants(f: Facts) -> None:
    """br1 (vm3) and w0 belong to the VRF red, with table 100."""
    for dev in ("br1", "w0"):
        of(f, dev)["master"] = "red"
    f["links"].append(link("red", "vrf", "02:00:00:00:00:0d", data={"table": 100}))
    for r in f["routes4"]:
        r["table"] = "100"
    f["rules4"].insert(1, {"priority": 1000, "src": "all", "l3mdev": None})
    f["netconf"].append({"family": "inet", "interface": "red", "forwarding": True, "rp_filter": "strict"})


def by_member(key: str, dev: str, hook: str = "forward") -> list[Facts]:
    """A chain at a hook that lets pass what has *dev* as the value of *key*, and drops the rest."""
    here = {"family": "inet", "table": "wall"}
    return [{"table": {"family": "inet", "name": "wall"}}, {"chain": {**here, "name": "c", "type": "filter", "hook": hook, "prio": 0, "policy": "drop"}},
            {"rule": {**here, "chain": "c", "handle": 4, "expr": [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": dev}}, {"accept": None}]}},
            {"rule": {**here, "chain": "c", "handle": 5, "expr": [NEW, {"accept": None}]}}]


@pytest.mark.parametrize(("a", "b", "more", "codes"), [
    ("vm3", "outside", [], []), ("outside", "host@192.0.2.2", [], []), ("host", "vm3", [], []), ("vm3", "host", [], []),
    ("vm3", "outside", by_member("iifname", "br1"), ["rule-drop"]), ("vm3", "outside", by_member("iifname", "red"), []), ("vm3", "outside", by_member("sdifname", "br1"), []),
    ("vm3", "host", by_member("iifname", "br1", "input"), ["rule-drop"]), ("vm3", "host", by_member("sdifname", "br1", "input"), []),
    ("vm3", "outside", by_member("iifname", "br1", "prerouting"), ["rule-drop"])])
def test_in_a_vrf_the_input_device_becomes_the_vrf(a: str, b: str, more: list[Facts], codes: list[str]) -> None:
    def change(f: Facts) -> None:
        tenants(f)
        f["nft"] += more
    report = why(scene(change), a, b, Probe())
    assert [f.code for f in report.findings] == codes, report.findings


def test_a_vrf_knows_its_own_table_first_and_others_do_not_know_it() -> None:
    assert "no-route" in {f.code for f in why(scene(lambda f: (tenants(f), of(f, "br1").pop("master"))), "vm3", "outside", Probe()).findings}

    def without_default(f: Facts) -> None:
        tenants(f)
        f["routes4"] = [r for r in f["routes4"] if r["dst"] != "default"]
    assert "no-route" in {f.code for f in why(scene(without_default), "vm3", "outside", Probe()).findings}


def two_tenants(f: Facts) -> None:
    """vm3 on br1 is red's; blue has br2 with vm4, and everything there has the same addresses."""
    tenants(f)
    f["links"] += [link("blue", "vrf", "02:00:00:00:00:0e", data={"table": 200}), link("br2", "bridge", "02:00:00:00:00:b2", addr_info=[inet("10.1.0.1", 24)]),
                   link("t4", "tun", "fe:54:00:00:00:04", "br2")]
    of(f, "br2")["master"] = "blue"
    f["fdb"].append({"mac": "52:54:00:00:00:04", "ifname": "t4", "master": "br2", "flags": [], "state": ""})
    f["nics"].append({"vm": "vm4", "nic": "nic0", "network": "m", "tap": "t4", "mac": "52:54:00:00:00:04", "ip": "10.1.0.13", "ip6": ""})
    f["routes4"] += [{"type": "local", "dst": "10.1.0.1", "dev": "br2", "table": "200", "flags": []}, {"dst": "10.1.0.0/24", "dev": "br2", "type": "unicast", "table": "200", "flags": []}]
    f["netconf"] += [{"family": "inet", "interface": d, "forwarding": True, "rp_filter": "strict"} for d in ("br2", "blue")]


@pytest.mark.parametrize(("vm", "bridge"), [("vm3", "br1"), ("vm4", "br2")])
def test_an_address_that_two_vrfs_have_is_that_of_the_askers(vm: str, bridge: str) -> None:
    for a, b in ((vm, "10.1.0.1"), ("10.1.0.1", vm)):
        report = why(scene(two_tenants), a, b, Probe())
        assert report.state is State.OK and {report.source.segment, report.target.segment} == {bridge}, report
    for down in ("br1", "br2"):
        broken = scene(lambda f, down=down: (two_tenants(f), of(f, down).update(flags=["BROADCAST"])))
        assert (why(broken, vm, "10.1.0.1", Probe()).state is State.BLOCKED) is (down == bridge)


IPSEC = "src 10.1.0.13/32 dst 0.0.0.0/0 {}\n\tdir {} {}priority 7 ptype main \n{}"
TEMPLATE = "\ttmpl src 192.0.2.2 dst 203.0.113.5\n\t\tproto esp reqid 0 mode tunnel\n"


@pytest.mark.parametrize(("text", "state"), [
    (IPSEC.format("", "fwd", "action block ", ""), State.BLOCKED), (IPSEC.format("proto tcp dport 80 ", "fwd", "action block ", ""), State.OK),
    (IPSEC.format("proto icmp type 8 ", "fwd", "action block ", ""), State.UNKNOWN), (IPSEC.format("", "in", "action block ", ""), State.OK),
    (IPSEC.format("", "out", "", TEMPLATE), State.OK), (IPSEC.format("", "out", "", TEMPLATE).replace("10.1.0.13", "192.0.2.2"), State.UNKNOWN), (IPSEC.format("", "out", "action block ", ""), State.BLOCKED), (IPSEC.format("", "fwd", "", TEMPLATE), State.BLOCKED),
    (IPSEC.format("", "fwd", "", "").replace("7", "1") + IPSEC.format("", "fwd", "action block ", ""), State.OK)])
def test_policies_of_ipsec(text: str, state: State) -> None:
    report = why(scene(lambda f: f.update(xfrm=text)), "vm3", "outside", Probe())
    assert report.state is state and {f.code for f in report.findings} == ({"ipsec-policy"} if state is not State.OK else set()), report.findings


@pytest.mark.parametrize(("settings", "where", "blocked"), [
    ({"arp_ignore": "1"}, "br1", False), ({"arp_ignore": "1"}, "lo", True), ({}, "lo", False), ({"arp_ignore": "2"}, "br1", False), ({"arp_ignore": "8"}, "br1", True)])
def test_a_host_whose_address_is_not_on_the_bridge(settings: dict[str, str], where: str, blocked: bool) -> None:
    """The guests' gateway may stand on another device, with a route to the guests: it answers as long as arp_ignore lets it."""
    def change(f: Facts) -> None:
        of(f, "br1")["addr_info"] = [inet("10.1.0.1", 24)] if where == "br1" else []
        if where == "lo":
            f["links"].append(link("lo", addr_info=[inet("10.1.0.1", 32)]))
            f["routes4"][0]["dev"] = "lo"
        f["sysctls"] |= {f"net/ipv4/conf/br1/{k}": v for k, v in settings.items()}
    report = why(scene(change), "vm3", "outside", Probe())
    assert {f.code for f in report.findings} == ({"arp-ignored"} if blocked else set()), report.findings


def test_a_filter_at_a_port_sees_the_tag_that_the_frame_leaves_with() -> None:
    drop = [{"dev": "t2", "direction": "egress", "filters": [{"protocol": "ip", "pref": 1, "kind": "matchall", "options": {"actions": [{"kind": "gact", "control_action": {"type": "drop"}}]}}]}]
    for bare, codes in ((True, {"tc-filter"}), (False, set())):
        trip = begin(scene(lambda f, bare=bare: (f.update(filters=drop), vlan("t2", 5, pvid=bare)(f))), made(("52:54:00:00:00:02", "52:54:00:00:00:01"), "10.0.0.11", "10.0.0.12", 1))
        leave(trip, "br0", "t1", "t2")
        assert {f.code for f in trip.findings} == codes


def test_a_tag_is_taken_only_by_a_port_of_its_vlan() -> None:
    for number, codes in ((5, set()), (6, {"vlan-mismatch"})):
        trip = begin(scene(), made(("52:54:00:00:00:02", "52:54:00:00:00:01"), "10.0.0.11", "10.0.0.12", 1).tagged_with(number))
        enter(trip, "t1")
        assert {f.code for f in trip.findings} == codes


def forwarded(f: Facts, *more: Facts) -> None:
    """TCP 80 of the host's address goes to vm3; vm4 is beside it."""
    f["links"].append(link("t4", "tun", "fe:54:00:00:00:04", "br1"))
    f["fdb"].append({"mac": "52:54:00:00:00:04", "ifname": "t4", "master": "br1", "flags": [], "state": ""})
    f["nics"].append({"vm": "vm4", "nic": "nic0", "network": "n", "tap": "t4", "mac": "52:54:00:00:00:04", "ip": "10.1.0.14", "ip6": ""})
    here = {"family": "ip", "table": "nat"}
    f["nft"] += [{"chain": {**here, "name": "pre", "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
                 {"rule": {**here, "chain": "pre", "handle": 5, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "192.0.2.2"}},
                                                                         {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}},
                                                                         {"dnat": {"addr": "10.1.0.13", "port": 8080}}]}}, *more]


def test_a_forwarded_port_leads_to_the_guest_behind_it() -> None:
    report = why(scene(forwarded), "203.0.113.5", "192.0.2.2", Probe("tcp", 80))
    assert report.state is State.OK and report.there[-1].where == "10.1.0.13" and any(h.where == "t3" for h in report.there), report.findings
    assert any("back to 192.0.2.2" in h.words for h in report.back)


def test_a_forwarded_port_from_the_same_segment_needs_nat_of_the_source() -> None:
    assert [f.code for f in why(scene(forwarded), "vm4", "192.0.2.2", Probe("tcp", 80)).findings] == ["hairpin-nat"]
    mended = {"rule": {"family": "ip", "table": "nat", "chain": "post", "handle": 6, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "br1"}}, {"masquerade": None}]}}
    report = why(scene(lambda f: forwarded(f, mended)), "vm4", "192.0.2.2", Probe("tcp", 80))
    assert report.state is State.OK and "hairpin-nat" not in {f.code for f in report.findings}, report.findings


def test_nat_between_guests_is_said() -> None:
    def change(f: Facts) -> None:
        of(f, "br0").update(addr_info=[inet("10.0.0.1", 24)])
        f["routes4"] += [{"type": "local", "dst": "10.0.0.1", "dev": "br0", "table": "local", "flags": []}, {"type": "unicast", "dst": "10.0.0.0/24", "dev": "br0", "flags": []}]
        f["netconf"].append({"family": "inet", "interface": "br0", "forwarding": True, "rp_filter": "strict"})
        of(f, "br0")["linkinfo"]["info_data"] = {}
        for row in f["fdb"]:
            row.pop("vlan", None)
        f["nft"][2]["rule"]["expr"].pop(0)
    assert [f.code for f in why(scene(change), "vm1", "vm3", Probe()).findings] == ["nat-between-guests"]


def test_a_detour_by_a_queue_is_no_obstacle_while_there_is_one() -> None:
    for by in ("t1 ingress", "t2 egress"):
        report = why(scene(detoured("UP", "LOWER_UP", by=by)), "vm1", "vm2", Probe())
        assert report.state is State.OK and not report.findings, report.findings
    for gone in (detoured(kept=False), detoured("UP", to="*"), detoured("BROADCAST", by="t2 egress")):
        assert [f.code for f in why(scene(gone), "vm1", "vm2", Probe()).findings] == ["detour-astray"]


def test_everything_in_one_look() -> None:
    def change(f: Facts) -> None:
        for break_it in (BAD["vlan-mismatch"][3], BAD["tap-idle"][3], BAD["guest-stopped"][3]):
            break_it(f)
    assert {f.code for f in why(scene(change), "vm1", "vm2", Probe()).findings} >= {"vlan-mismatch", "tap-idle", "guest-stopped"}


@pytest.mark.parametrize(("a", "b", "words"), [
    ("vm9", "vm1", "did you mean"), ("host", "host", "no packet between"), ("vm1@fd00::1", "vm2", "not an IPv4"), ("52:54:00:00:00:99", "vm1", "no port"), ("vm1@x", "vm2", "not an IP")])
def test_what_is_not_there_is_said(a: str, b: str, words: str) -> None:
    with pytest.raises(KvmnetError) as wrong:
        why(scene(), a, b, Probe())
    assert words in f"{wrong.value} {wrong.value.hint}"


@pytest.mark.parametrize("facts", [[], {}, {"format": 99, "links": []}, {"format": "1", "links": []}])
def test_a_capture_that_is_none(facts: Any) -> None:
    with pytest.raises(KvmnetError):
        read(facts)


@pytest.mark.parametrize(("text", "state"), [("*filter\n:FORWARD ACCEPT\n-A FORWARD -p IPv4 -j DROP\n", State.UNKNOWN), ("*filter\n:FORWARD DROP\n", State.UNKNOWN), ("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n", State.OK), ("", State.OK)])
def test_rules_of_ebtables_are_not_overlooked(text: str, state: State) -> None:
    report = why(scene(lambda f: f.update(ebtables=text)), "vm1", "vm2", Probe())
    assert report.state is state and {f.where for f in report.findings} == ({"ebtables"} if state is State.UNKNOWN else set())


def test_a_machine_without_address_passes_the_reverse_path_of_nft() -> None:
    """Else the model would have firewalls drop every DHCP question that the kernel lets pass."""
    answer = fib(scene())
    for source, target, passes in (("0.0.0.0", "255.255.255.255", True), ("0.0.0.0", "10.1.0.1", False), ("198.51.100.1", "255.255.255.255", False), ("10.1.0.13", "10.1.0.1", True)):
        asked = Context(made(("ff:ff:ff:ff:ff:ff", "52:54:00:00:00:03"), source, target, 17, (68, 67)), iif="br1")
        assert bool(answer(asked, "oif", frozenset({"saddr", "iif"}))) is passes, (source, target)


def test_what_is_known_is_listed_once() -> None:
    with pytest.raises(KvmnetError) as wrong:
        why(scene(), "zzz", "vm1", Probe())
    words = str(wrong.value.hint).partition("; or")[0].removeprefix("known are: ").split(", ")
    assert "n" in words and len(words) == len(set(words))


def test_an_address_of_the_host_is_not_taken_for_the_guests_own() -> None:
    """A port is forwarded: who names the guest with the host's address asks for that address."""
    report = why(scene(forwarded), "203.0.113.5", "vm3@192.0.2.2", Probe("tcp", 80))
    assert report.state is State.OK and report.target.title == "192.0.2.2" and "NAT" in report.target.how
    assert not any("vm3 (192.0.2.2)" in hop.where for hop in (*report.there, *report.back))


FORWARD = [{"table": {"family": "ip", "name": "filter"}}, {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}]


@pytest.mark.parametrize(("who", "words"), [({"nft_text": "chain KUBE-FORWARD {"}, "Kubernetes"), ({"servers": [{"program": "dockerd", "pid": 1}]}, "Docker"), ({"xtables": {"nft-ip": "-A FORWARD -j FI-vnet0"}}, "libvirt"), ({}, "")])
def test_bridge_netfilter_is_left_on_where_somebody_needs_it(who: Facts, words: str) -> None:
    def change(f: Facts) -> None:
        f["sysctls"]["net/bridge/bridge-nf-call-iptables"] = "1"
        f["nft"] += FORWARD
        f.update(who)
    found = next(f for f in why(scene(change), "vm1", "vm2", Probe()).findings if f.code == "bridge-netfilter")
    off = any("bridge-nf-call" in command for command in found.fix)
    assert found.fix and off is not bool(words) and (words in found.why) and ("leave it on" in found.why) is bool(words)


def test_json_is_plain() -> None:
    data = why(scene(BAD["vlan-mismatch"][3]), "vm1", "vm2", Probe("udp", 53)).to_json()
    assert data["state"] == "blocked" and data["findings"][0]["code"] == "vlan-mismatch" and {"where", "what", "words", "state", "findings"} == set(data["there"][0])


@pytest.mark.parametrize(("chains", "a", "b", "probe", "cures"), [
    (":INPUT DROP [0:0]", "vm3", "host", Probe("tcp", 22), ["iptables-legacy -I INPUT -i br1 -s 10.1.0.13 -p tcp --dport 22 -j ACCEPT"]),
    (":INPUT DROP [0:0]", "vm3", "host", Probe(), ["iptables-legacy -I INPUT -i br1 -s 10.1.0.13 -p icmp -j ACCEPT"]),
    (":INPUT DROP [0:0]", "host", "vm3", Probe("tcp", 22), ["iptables-legacy -I INPUT -i br1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]),
    (":FORWARD DROP [0:0]", "vm3", "198.51.100.9", Probe("tcp", 443), [
        "iptables-legacy -I FORWARD -i br1 -o w0 -j ACCEPT", "iptables-legacy -I FORWARD -i w0 -o br1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]),
], ids=["asked", "pinged", "answers to the host", "through the host"])
def test_a_cure_lets_in_what_was_dropped_and_answers(chains: str, a: str, b: str, probe: Probe, cures: list[str]) -> None:
    """And nothing new from outside."""
    facts = good() | {"xtables": {"ip": f"*filter\n{chains}\nCOMMIT\n"}}
    assert [c for f in why(read(facts), a, b, probe).findings if f.code == "rule-drop" for c in f.fix] == cures
