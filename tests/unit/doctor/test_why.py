"""The walk over small captures: a good one, and the same with one thing wrong, for what this machine's kernel does not have."""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kvmnet.doctor.scene import Scene, read
from kvmnet.doctor.trip import State
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


def detoured(*words: str, to: str = "i1", kept: bool = True) -> Callable[[Facts], None]:
    """What comes in by t1 takes a detour by the queue of i1, whose flags are *words*."""
    def change(f: Facts) -> None:
        action = {"kind": "mirred", "mirred_action": "redirect", "direction": "egress", "to_dev": to}
        f["filters"] = [{"dev": "t1", "direction": "ingress", "filters": [
            {"pref": 27510, "kind": "u32", "options": {"match": {"value": "0", "mask": "0"}, "actions": [action]}}]}]
        f["links"] += [{**link("i1"), "flags": list(words)}] if kept else []
    return change


BAD: dict[str, tuple[str, str, str, Callable[[Facts], Any]]] = {
    # code: (A, B, what it is about, how to break the good capture)
    "tap-not-open": ("vm1", "vm2", "t2", flags("t2", "UP", "NO-CARRIER")),
    "link-down": ("vm1", "vm2", "br0", flags("br0", "BROADCAST")),
    "vlan-mismatch": ("vm1", "vm2", "t2", vlan("t2", 6)),
    "vlan-none": ("vm1", "vm2", "t1", vlan("t1", 5, pvid=False)),
    "port-locked": ("vm1", "vm2", "t1", lambda f: (port(f, "t1", locked=True), f["fdb"].pop(0))),
    "port-state": ("vm1", "vm2", "t2", lambda f: port(f, "t2", state="learning")),
    "detour-astray": ("vm1", "vm2", "t1", detoured("BROADCAST")),
    "guest-paused": ("vm1", "vm2", "vm1", lambda f: f["guests"][0].update(status="paused")),
    "guest-link-off": ("vm1", "vm2", "vm1/nic0", lambda f: f["guests"][0]["nics"][0].update(link=False)),
    "mtu-bridge": ("vm1", "vm2", "t2", lambda f: of(f, "t2").update(mtu=1400)),
    "conntrack-full": ("vm3", "outside", "conntrack", lambda f: f["sysctls"].update({"net/netfilter/nf_conntrack_count": "100"})),
    "no-nat": ("vm3", "outside", "outside", lambda f: f["nft"].pop()),
    "bond-dead": ("vm3", "outside", "w0", bonded("down", "down")),
    "bond-no-partner": ("vm3", "outside", "w0", bonded("up", "down")),
    "neighbour-silent": ("vm3", "outside", "w0", lambda f: f["neighbours"][0].update(state=["FAILED"], lladdr="")),
    "no-carrier": ("vm3", "outside", "w0", flags("w0", "UP", "NO-CARRIER")),
    "no-uplink": ("vm1", "outside", "br0", lambda f: None),
    "nobody-listens": ("vm3", "host", "tcp 443", lambda f: None),
    "wrong-segment": ("host@10.1.0.1", "vm3", "w0", lambda f: f["routes4"].append({"dst": "10.1.0.13", "dev": "w0", "type": "unicast", "flags": []})),
    "proxy-arp": ("vm1", "vm2", "br0", lambda f: (f["sysctls"].update({"net/ipv4/conf/br0/proxy_arp": "1"}))),
    "facts-missing": ("vm1", "vm2", "nft", lambda f: f.update(missing={"nft": "Operation not permitted"})),
    "rule-unknown": ("vm3", "outside", "ip nat post", lambda f: f["nft"][2]["rule"]["expr"].insert(0, {"quota": {"val": 1, "val_unit": "mbytes", "inv": True}})),
    "limited": ("vm3", "outside", "ip nat post", lambda f: f["nft"][2]["rule"]["expr"].insert(0, {"limit": {"rate": 1, "per": "second"}})),
}


def scene(change: Callable[[Facts], Any] = lambda f: None) -> Scene:
    facts = copy.deepcopy(good())
    change(facts)
    return read(facts)


@pytest.mark.parametrize(("a", "b"), [("vm1", "vm2"), ("vm3", "outside"), ("vm3", "host"), ("host", "vm3"), ("outside", "host")])
def test_the_good_one_is_good(a: str, b: str) -> None:
    report = why(scene(), a, b, Probe())
    assert report.state is State.OK and not report.findings, report.findings


@pytest.mark.parametrize("code", BAD)
def test_one_thing_wrong(code: str) -> None:
    a, b, where, change = BAD[code]
    report = why(scene(change), a.partition("@")[0], b, Probe("tcp", 443) if code == "nobody-listens" else Probe())
    found = [f for f in report.findings if f.code == code]
    assert found and found[0].where == where, report.findings
    assert (report.state is State.OK) is (code in ("mtu-bridge", "bond-no-partner", "limited"))
    assert found[0].why and found[0].what


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
    report = why(scene(detoured("UP", "LOWER_UP")), "vm1", "vm2", Probe())
    assert report.state is State.OK and not report.findings, report.findings
    for gone in (detoured(kept=False), detoured("UP", to="*")):
        assert [f.code for f in why(scene(gone), "vm1", "vm2", Probe()).findings] == ["detour-astray"]


def test_everything_in_one_look() -> None:
    def change(f: Facts) -> None:
        for break_it in (BAD["vlan-mismatch"][3], BAD["tap-not-open"][3], BAD["guest-paused"][3]):
            break_it(f)
    assert {f.code for f in why(scene(change), "vm1", "vm2", Probe()).findings} >= {"vlan-mismatch", "tap-not-open", "guest-paused"}


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


def test_json_is_plain() -> None:
    data = why(scene(BAD["vlan-mismatch"][3]), "vm1", "vm2", Probe("udp", 53)).to_json()
    assert data["state"] == "blocked" and data["findings"][0]["code"] == "vlan-mismatch" and {"where", "what", "words", "state", "findings"} == set(data["there"][0])
