"""Nothing of an input is lost, and what is exported is imported again."""
from __future__ import annotations

from typing import Any

import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmnet.adopt.bonds import link_of
from kvmnet.adopt.document import write
from kvmnet.adopt.export import WRITERS, unsaid, uplink_layout
from kvmnet.adopt.ifupdown import OPTIONS, lines
from kvmnet.adopt.keys import leaves
from kvmnet.adopt.model import Address, Bond, Bridge, Draft, Dynamic, Layout, Nic, Route, Source
from kvmnet.adopt.netplan import KINDS
from kvmnet.adopt.nmstate import COMMON
from kvmnet.adopt.sources import FORMATS
from kvmnet.errors import Problem
from kvmnet.facts.model import Facts
from kvmnet.modes.links import HAS_PRIMARY
from kvmnet.spec import ways
from kvmnet.spec.checks import check
from kvmnet.spec.load import loads
from kvmnet.spec.uplinks import BondMode

WORD = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(0, 70000), WORD, st.just("192.0.2.1/24"), st.text(max_size=6).filter(str.isprintable))
VALUE: st.SearchStrategy[Any] = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3), max_leaves=5)


def some(keys: Any) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(k.rstrip("*") for k in keys)) | WORD


DEVICE = st.dictionaries(some(KINDS["bridges"]), VALUE, max_size=4)
NETPLAN = st.dictionaries(some(["network"]), st.dictionaries(
    some([*KINDS, "wifis", "version"]), st.dictionaries(WORD | st.just("eth0.5"), DEVICE | SCALAR, max_size=2) | SCALAR, max_size=3) | SCALAR, max_size=2)
NMSTATE = st.fixed_dictionaries({"interfaces": st.lists(st.fixed_dictionaries(
    {"name": WORD, "type": st.sampled_from(["ethernet", "bond", "vlan", "linux-bridge", "ovs-bridge"])},
    optional={k: VALUE for k in [*COMMON, "bridge", "vlan", "link-aggregation", "odd"] if k not in ("name", "type")})
    | SCALAR, max_size=3)}, optional={"routes": VALUE, "odd": VALUE, "dns-resolver": VALUE})


def told(name: str, text: str) -> tuple[Layout, set[tuple[int, str]]]:
    layout = FORMATS[name].parse([Source("f", text)])
    loads(write(layout, ["x"]).text)  # whatever the input, the document is one
    return layout, {(e.place.line, e.path) for e in layout.elements}


@given(NETPLAN)
def test_every_key_of_netplan_is_told(data: dict[str, Any]) -> None:
    _, found = told("netplan", yaml.safe_dump(data))
    assert {p for p, _ in leaves(data, "")} == {p for _, p in found}


@given(NMSTATE)
def test_every_key_of_nmstate_is_told(data: dict[str, Any]) -> None:
    _, found = told("nmstate", yaml.safe_dump(data))
    told_paths = {p for _, p in found}
    for path, _ in leaves(data, ""):
        assert path in told_paths or (path == "interfaces" and not data["interfaces"]) or any(
            p == path.partition(".")[0] or path.startswith(p) or p.startswith(path) for p in told_paths), path


LINE = st.tuples(st.sampled_from(["iface", "auto", "allow-hotplug", "mapping", "source"]) | some(OPTIONS),
                 st.lists(WORD | st.sampled_from(["inet", "static", "eth0", "eth0.5", "lo", "1500"]), max_size=4))


@given(st.lists(LINE, max_size=12))
def test_every_line_of_ifupdown_is_told(rows: list[tuple[str, list[str]]]) -> None:
    text = "\n".join(" ".join((word, *rest)) for word, rest in rows)
    _, found = told("ifupdown", text)
    for word, _, place in lines(Source("f", text)):
        assert any(line == place.line and word in path.replace("-", "_") for line, path in found), (word, place)


SECTION = st.sampled_from(["Match", "Network", "Link", "NetDev", "Bridge", "Route", "Odd"])
ENTRY = st.tuples(st.sampled_from(["Name", "Kind", "MTUBytes", "Bridge", "Bond", "VLAN", "Address", "Gateway", "DHCP"]) | WORD,
                  WORD | st.sampled_from(["br0", "bridge", "eth*", "yes", "1K", "192.0.2.1/24", ""]))


@given(st.lists(st.tuples(SECTION, st.lists(ENTRY, max_size=3)), max_size=5), st.sampled_from(["network", "netdev", "link"]))
def test_every_key_of_networkd_is_told(rows: list[tuple[str, list[tuple[str, str]]]], suffix: str) -> None:
    text = "\n".join("\n".join((f"[{s}]", *(f"{k}={v}" for k, v in entries))) for s, entries in rows)
    layout = FORMATS["networkd"].parse([Source(f"a.{suffix}", text)])
    loads(write(layout, ["x"]).text)
    found = {(e.place.line, e.path) for e in layout.elements}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            section = line
        elif line:
            assert (number, f"{section} {line.partition('=')[0]}") in found


# -- round trip ------------------------------------------------------------------------------------

NAMES = ("eno1", "eno2", "ens3")
MTU = st.none() | st.integers(68, 65535)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    draft = Draft()
    macs = st.sampled_from(["", "52:54:00:12:34:56", "02:00:00:00:00:01"])
    for name in NAMES:
        draft.nics[name] = Nic(name=name, mtu=draw(MTU), mac=draw(macs))
    ports = draw(st.sets(st.sampled_from(NAMES), max_size=2))
    if ports:
        draft.bridges["br0"] = Bridge(name="br0", mtu=draw(MTU), mac=draw(macs), ports=tuple(sorted(ports)),
                                      stp=draw(st.sampled_from([None, True, False])))
    tops = [*(n for n in NAMES if n not in ports), *draft.bridges]
    for dev in tops:
        draft.addresses += [Address(dev=dev, cidr=c) for c in draw(st.sets(st.sampled_from(
            ["192.0.2.2/24", "10.0.0.1/32", "2001:db8::2/64"])))]
        draft.dynamic += [Dynamic(dev=dev, family=f) for f in draw(st.sets(st.sampled_from([4, 6])))]
        draft.routes += [Route(dev=dev, dst=d, via=via, metric=draw(st.none() | st.integers(0, 9999)))
                         for d, via in draw(st.sets(st.sampled_from([
                             ("0.0.0.0/0", "192.0.2.1"), ("::/0", "fe80::1"), ("10.0.0.0/8", "")])))]
    return draft.layout()


def back(name: str, layout: Layout) -> Layout:
    return FORMATS[name].parse([Source(f, text) for f, text in WRITERS[name](layout).items()])


@given(layouts(), st.sampled_from(sorted(WRITERS)))
def test_export_then_import_is_the_same(layout: Layout, name: str) -> None:
    found = back(name, layout)
    assert found == layout
    assert not [e for e in found.elements if e.outcome == "unsupported"]


# -- documents -------------------------------------------------------------------------------------

BOND_OPTIONS = st.fixed_dictionaries({}, optional={
    "miimon": st.sampled_from([50, 100, 250]), "updelay": st.sampled_from([0, 500]), "downdelay": st.sampled_from([0, 1000]),
    "primary": st.sampled_from(["m0", "m1"]), "reselect": st.sampled_from(["always", "better", "failure"]),
    "hash": st.sampled_from(["layer2", "layer2+3", "layer3+4", "encap3+4"]), "lacp_rate": st.sampled_from(["slow", "fast"]),
    "ad_select": st.sampled_from(["stable", "bandwidth", "count"]), "min_links": st.integers(0, 2),
    "peer_notify": st.integers(1, 9), "arp": st.fixed_dictionaries(
        {"targets": st.sampled_from([["192.0.2.1"], ["192.0.2.1", "192.0.2.7"]])},
        optional={"interval": st.sampled_from([200, 1500]), "check": st.sampled_from(["none", "active", "all"])})})
CLAIMS = st.fixed_dictionaries({}, optional={
    "mtu": st.integers(1280, 1500), "gateway": st.just("192.0.2.1"), "gateway6": st.just("2001:db8::1"),
    "addresses": st.lists(st.sampled_from(["192.0.2.2/24", "2001:db8::2/64", "10.1.2.3/8"]), min_size=1, max_size=2, unique=True),
    "routes": st.lists(st.fixed_dictionaries({"to": st.sampled_from(["10.9.0.0/16", "198.51.100.7/32"])}, optional={
        "via": st.just("192.0.2.9"), "metric": st.integers(1, 99)}), min_size=1, max_size=2, unique_by=lambda r: r["to"])})
MACS = st.fixed_dictionaries({}, optional={"mac": st.just("02:00:00:00:00:77")})


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Uplinks of every kind that lie on each other; whatever the rules refuse is left out."""
    mode = draw(st.sampled_from(list(BondMode)))
    uplinks: dict[str, Any] = {
        "nic": {"device": "eno9"} | draw(CLAIMS),
        "wan": {"device": "bond0", "members": ["m0", "m1"], "bond": mode.value, "options": draw(BOND_OPTIONS)} | draw(MACS)
        | {k: w for k, w in draw(CLAIMS).items() if k != "mtu"},
        "made": {"vlan": 7, "on": draw(st.sampled_from(["nic", "wan"]))} | draw(MACS),
        "outer": {"device": "outer", "vlan": 20, "on": "wan", "protocol": draw(st.sampled_from(["802.1Q", "802.1ad"]))},
        "inner": {"device": "outer.5", "vlan": 5, "on": "outer"}}
    seen: set[str] = set()
    for uplink in uplinks.values():  # two uplinks cannot have one address
        uplink["addresses"] = [a for a in uplink.get("addresses", ()) if a not in seen]
        seen |= set(uplink["addresses"])
    chosen = draw(st.sets(st.sampled_from(sorted(uplinks))))
    kept = {n: u for n, u in uplinks.items() if n in chosen or any(uplinks[c].get("on") == n for c in chosen) or n == "wan"}
    for option in [p.path.split(".")[-1] for p in problems(kept) if ".options." in p.path]:
        kept["wan"]["options"].pop(option, None)
    return kept


def problems(uplinks: dict[str, Any]) -> list[Problem]:
    return check(loads(yaml.safe_dump({"version": 1, "uplinks": uplinks})).spec, Facts())


def meaning(text: str) -> dict[str, Any]:
    """What the uplinks of a document come to, whatever they are called: each device with everything decided."""
    spec = loads(text).spec
    found = {}
    for name, u in spec.uplinks.items():
        bond = link_of(Bond(name="x", members=tuple(sorted(u.members)), mode=u.bond or "", options={
            "primary": u.options.primary or u.members[0], **u.options.model_dump(exclude_unset=True)}
            if u.bond in HAS_PRIMARY else u.options.model_dump(exclude_unset=True))) if u.members else None
        routes = {(r.to, r.via, r.metric) for r in u.routes} | {("default", g, None) for g in (u.gateway, u.gateway6) if g}
        found[ways.device(name, spec)] = (bond, sorted(u.members), u.vlan, ways.carrier(name, spec), u.protocol, u.mac, u.mtu,
                                          sorted(u.addresses), sorted(routes, key=str))
    return found


@given(documents(), st.sampled_from(sorted(WRITERS)))
def test_a_document_exported_and_imported_means_the_same(uplinks: dict[str, Any], name: str) -> None:
    assume(not problems(uplinks))
    text = yaml.safe_dump({"version": 1, "uplinks": uplinks})
    layout, _ = uplink_layout(loads(text).spec, {})
    left = unsaid(layout) if name == "netplan" else {}
    files = [Source(f, body) for f, body in WRITERS[name](layout).items()]
    written = write(FORMATS[name].parse(files), ["x"])
    assert not [str(e) for e in written.elements if e.outcome == "unsupported"]
    found, wanted = meaning(written.text), {d: w for d, w in meaning(text).items() if d not in left}
    assert {d: w for d, w in found.items() if d in wanted} == wanted
    assert found.keys() - wanted.keys() <= {"m0", "m1"}
