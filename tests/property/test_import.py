"""Nothing of an input is lost, and what is exported is imported again."""
from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.adopt.document import write
from kvmnet.adopt.export import WRITERS
from kvmnet.adopt.ifupdown import OPTIONS, lines
from kvmnet.adopt.keys import leaves
from kvmnet.adopt.model import Address, Bridge, Draft, Dynamic, Layout, Nic, Route, Source
from kvmnet.adopt.netplan import KINDS
from kvmnet.adopt.nmstate import COMMON
from kvmnet.adopt.sources import FORMATS
from kvmnet.spec.load import loads

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
