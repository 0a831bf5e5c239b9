"""Routing domains: what a document means, what the host's table says of them, and what a host must have."""
from __future__ import annotations

from dataclasses import replace

from kvmnet.adopt.live import Host, layout_of
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.dnsmasq.resources import DnsmasqServer
from kvmnet.drivers.dnsmasq.wire import domain_of
from kvmnet.drivers.linux.resources import Address, Link, Route
from kvmnet.drivers.linux.words import lines_of
from kvmnet.engine.driver import Seen
from kvmnet.engine.plan import Create, Delete, Update, apply_to, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.facts.model import Facts
from kvmnet.modes.vrf import LAST
from kvmnet.spec import domains
from kvmnet.spec.checks import lacking
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec


def nic(name: str) -> Link:
    return Link(name=name, type="physical", mtu=1500, mac=f"02:00:00:00:00:1{name[-1]}", up=True, master="", vrf="", bonded=False)


HOST: tuple[Resource, ...] = (Link(name="lo", type="loopback"), nic("eth0"), nic("eth1"), nic("eth2"))
TEXT = """version: 1
vrfs: {red: {table: 101}, blue: {}}
uplinks:
  r: {device: eth0, vrf: red, addresses: [198.51.100.2/24], gateway: 198.51.100.1, routes: [{to: 10.9.0.0/16, via: 198.51.100.7}]}
  b: {device: eth1, vrf: blue, addresses: [198.51.100.2/24], gateway: 198.51.100.1}
  m: {device: eth2, addresses: [192.0.2.2/24]}
networks:
  red: {mode: nat, vrf: red, uplink: r, subnet: 10.1.0.0/24, subnet6: 'fd00:1::/64', forwards: [{port: 80, to: a}]}
  blue: {mode: nat, vrf: blue, uplink: b, subnet: 10.1.0.0/24}
  more: {mode: isolated, vrf: blue, subnet: 10.2.0.0/24}
  plain: {mode: nat, uplink: m, subnet: 10.3.0.0/24}
vms: {}
"""


def spec(text: str = TEXT) -> Spec:
    return loads(text).spec


def compiled(*more: Resource, text: str = TEXT) -> Compiled:
    text = text.replace(", forwards: [{port: 80, to: a}]", "")
    return compile_spec(spec(text), Facts(state={r.key: r for r in (*HOST, *more)}, resolvers=("192.0.2.53",)), {})


def test_each_domain_has_a_table_that_ends_and_its_own_routes() -> None:
    made = compiled().wanted
    red, blue = (made[Key("link", f"kvr-{n}")] for n in ("red", "blue"))
    assert isinstance(red, Link) and isinstance(blue, Link) and red.vrf_table == 101 and blue.vrf_table == domains.table("blue", spec())
    for family, dev, dst in ((4, "", "default"), (6, "lo", "::/0")):
        end = made[Key("route", f"table 101 {dst} metric {LAST}" + (f" dev {dev}" if dev else ""))]
        assert isinstance(end, Route) and (end.options, end.family) == ("unreachable", family)
    assert {k.name for k in made if k.kind == "route" and " dev eth0" in k.name} == {"table 101 default dev eth0", "table 101 10.9.0.0/16 dev eth0"}
    assert Key("route", f"table {blue.vrf_table} default dev eth1") in made
    assert {n: made[Key("link", n)].vrf for n in ("kvb-red", "kvb-blue", "kvb-more", "kvb-plain", "eth0")} == {  # type: ignore[union-attr]
        "kvb-red": "kvr-red", "kvb-blue": "kvr-blue", "kvb-more": "kvr-blue", "kvb-plain": "", "eth0": "kvr-red"}
    assert Key("link", "eth2") not in made    # nothing is said of a NIC that is in none


def test_servers_are_in_the_domain_and_ask_nobody_outside() -> None:
    made = compiled().wanted
    red, plain = (made[Key("dnsmasq", n)] for n in ("red", "plain"))
    assert isinstance(red, DnsmasqServer) and isinstance(plain, DnsmasqServer)
    assert red.vrf == domain_of(red.config or ()) == "kvr-red" and not [c for c in red.config or () if c.startswith("server=")]
    assert plain.vrf == domain_of(plain.config or ()) == "" and "server=192.0.2.53" in (plain.config or ())


def test_zones_and_sources_are_those_of_the_domain() -> None:
    text = compiled().wanted[Key("nft-table", "inet kvmnet")].text  # type: ignore[union-attr]
    assert isinstance(text, str)
    zones = domains.zones(spec())
    assert len({*zones.values(), 0}) == 3
    line = next(x for x in text.splitlines() if x.startswith("ct zone set iifname"))
    for device, domain in (("kvb-red", "red"), ("eth0", "red"), ("kvr-red", "red"), ("kvb-blue", "blue"), ("eth1", "blue")):
        assert f'"{device}" : {zones[f"kvr-{domain}"]}' in line
    assert "kvb-plain" not in line and "eth2" not in line

    def elements(name: str) -> str:
        return text.split(f"set {name} {{", 1)[1].split("}", 1)[0]

    assert "10.1.0.0/24" not in elements("inside4") and "10.3.0.0/24" in elements("inside4")
    assert '"eth1" . 10.1.0.0/24' in elements("vrf_elsewhere4") and '"kvb-more" . 10.1.0.0/24' in elements("vrf_elsewhere4")
    assert '"kvb-blue" . 10.1.0.0/24' not in elements("vrf_elsewhere4") and '"eth0" . 10.2.0.0/24' not in elements("vrf_elsewhere4")
    assert '"kvb-red" . "eth0"' in elements("reach") and "eth1" not in elements("lent")


def test_a_document_without_domains_has_none_of_it() -> None:
    plain = "version: 1\nuplinks: {m: {device: eth2}}\nnetworks: {plain: {mode: nat, uplink: m, subnet: 10.3.0.0/24}}\n"
    text = compiled(text=plain).wanted[Key("nft-table", "inet kvmnet")].text  # type: ignore[union-attr]
    assert "vrf" not in str(text) and "kvr-" not in str(text)


def test_what_goes_down_by_joining_and_leaving_comes_back() -> None:
    """An uplink with a static IPv6 address: the kernel takes it away each time, and the plan gives it back."""
    own = Address(name="eth0 2001:db8::5/64", dev="eth0", scope="global", label="", broadcast="", peer="", flags=(), dynamic="")
    made = compiled(own)
    seen: dict[Key, Resource] = {r.key: r for r in (*HOST, own)}
    steps = plan(seen, made.wanted, set(), made.borrowed)
    join = next(s for s in steps if s.key == Key("link", "eth0"))
    assert isinstance(join, Update) and own.key in join.along
    assert any(isinstance(s, Create) and s.key == own.key for s in steps)
    there = dict(apply_to(seen, steps))
    red = there[Key("link", "kvr-red")]
    assert isinstance(red, Link)
    there[red.key] = replace(red, members=("eth0", "kvb-red"))
    back = plan(there, {Key("link", "eth0"): Link(name="eth0", vrf="", up=True), own.key: own}, {k for k in made.wanted if k not in made.borrowed},
                {Key("link", "eth0"), own.key})
    assert any(isinstance(s, Create) and s.key == own.key for s in back)


def test_words_for_ip() -> None:
    vrf = Link(name="kvr-a", type="vrf", vrf_table=9, up=True, alias="kvmnet vrf a")
    assert [str(x) for x in lines_of(Create(vrf))] == ["link add dev kvr-a type vrf table 9", 'link set dev kvr-a up alias "kvmnet vrf a"'] \
        or str(lines_of(Create(vrf))[0]) == "link add dev kvr-a type vrf table 9"
    free = Link(name="eth0", type="physical", master="", vrf="", up=True)
    inside = Link(name="eth0", type="physical", master="", vrf="kvr-a", up=True)
    bridged = Link(name="eth0", type="physical", master="br0", vrf="", up=True)
    for before, claim, words in ((free, Link(name="eth0", vrf="kvr-a"), "master kvr-a"), (inside, Link(name="eth0", vrf=""), "nomaster"),
                                 (inside, Link(name="eth0", vrf="", master="br0"), "master br0"),
                                 (bridged, Link(name="eth0", vrf="kvr-a", master=""), "master kvr-a")):
        assert [str(x) for x in lines_of(Update(before, claim))] == [f"link set dev eth0 {words}"]
    assert [str(x) for x in lines_of(Delete(Link(name="kvr-a", type="vrf", members=("eth0",))))] == ["link del dev kvr-a"]


def test_what_a_host_lacks() -> None:
    """Features, a table that is in use, and a NIC that the host lives by."""
    text = TEXT.replace(", forwards: [{port: 80, to: a}]", "")
    used = Route(name="table 101 10.0.0.0/8 dev eth2", dev="eth2", dst="10.0.0.0/8", family=4, table="101", proto="static")
    default = Route(name="default dev eth1", dev="eth1", dst="default", via="198.51.100.1", family=4, table="main", proto="dhcp")
    facts = Facts(state={r.key: r for r in (*HOST, used, default)}, features={"vrf": "no module", "vrf-exec": "no cgroup2"})
    found = {p.path: p.message for p in lacking(spec(text), facts)}
    assert found["vrfs.red"] == "this host has no VRFs: no module"
    assert found["vrfs.red.table"] == "table 101 is in use on this host: table 101 10.0.0.0/8 dev eth2"
    assert found["networks.red.vrf"] == "nothing can be served there: no cgroup2"
    assert found["uplinks.b.vrf"] == "eth1 has route default dev eth1 of the host, which would be lost in a VRF"
    assert "uplinks.r.vrf" not in found


def test_domains_of_the_host_are_named_by_import() -> None:
    links = (Link(name="mgmt", type="vrf", vrf_table=7, members=("eth0",)), Link(name="eth0", type="physical", mtu=1500, master="", vrf="mgmt"))
    layout = layout_of(Host(Seen({r.key: r for r in links}, set())))
    said = {e.path: (e.outcome.value, e.words) for e in layout.elements}
    assert said["link mgmt"][1].startswith("a routing domain, table 7") and said["link eth0"][1].startswith("physical in the routing domain mgmt")
    assert {outcome for outcome, _ in said.values()} == {"unsupported"} and not layout.nics
