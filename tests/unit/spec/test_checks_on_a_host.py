"""Cross checks against a host: its prefixes, addresses, devices, users, features and tables."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.linux.resources import Address, Link, Route
from kvmnet.engine.resource import Resource
from kvmnet.errors import HostCannot
from kvmnet.facts.collect import wireless
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import check, lacking, require
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec

HOST: tuple[Resource, ...] = (
    Link(name="lo", type="loopback", mtu=65536, mac="00:00:00:00:00:00"),
    Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master=""),
    Link(name="eth1", type="physical", mtu=9000, mac="02:00:00:00:00:11", master="br0"),
    Link(name="wlp3s0", type="physical", mtu=1500, mac="02:00:00:00:00:12"),
    Link(name="wg0", type="wireguard", mtu=1420),
    Link(name="br0", type="bridge", mtu=9000, mac="02:00:00:00:00:11"),
    Address(name="lo 127.0.0.1/8", dev="lo", scope="host"),
    Address(name="eth0 198.51.100.5/24", dev="eth0", scope="global"),
    Address(name="eth0 fe80::10/64", dev="eth0", scope="link"),
    Address(name="eth0 2001:db8:5::5/64", dev="eth0", scope="global"),
    Route(name="default", dst="default", dev="eth0", via="198.51.100.1", family=4, table="main", proto="static"),
    Route(name="10.0.0.0/8", dst="10.0.0.0/8", dev="eth0", via="198.51.100.1", family=4, table="main", proto="static"),
    Route(name="172.20.0.0/24", dst="172.20.0.0/24", dev="wg0", via="", family=4, table="main", proto="static"),
    Route(name="172.21.5.0/24", dst="172.21.5.0/24", dev="eth0", via="198.51.100.9", family=4, table="main",
          proto="static"),
)


def host(*more: Resource, **facts: object) -> Facts:
    return replace(Facts(state={item.key: item for item in (*HOST, *more)}), **facts)  # type: ignore[arg-type]


def spec(networks: str, vms: str = "") -> Spec:
    return loads("version: 1\nuplinks: {wan: {device: eth0}, lan: {device: eth1}, air: {device: wlp3s0}, "
                 f"vpn: {{device: wg0}}}}\nnetworks:\n{networks}\n{vms and 'vms:'}\n{vms}").spec


def net(options: str) -> Spec:
    return spec(f"  n: {{{options}}}")


@pytest.mark.parametrize("subnet", ["198.51.100.0/24", "198.51.0.0/16", "198.51.100.128/25", "172.20.0.0/16",
                                    "172.20.0.128/26", "172.21.0.0/16"])
def test_prefixes_of_the_host(subnet: str) -> None:
    (problem,) = check(net(f"mode: isolated, subnet: {subnet}"), host())
    assert problem.path == "networks.n.subnet"
    assert "of the host's own" in problem.message
    assert check(net(f"mode: isolated, subnet: {subnet}, address: none"), host()) == [], "not in its routing"


def test_prefix6_of_the_host() -> None:
    (problem,) = check(net("mode: isolated, subnet6: 2001:db8:5::/64"), host())
    assert "2001:db8:5::5/64 of the host's own eth0" in problem.message


@pytest.mark.parametrize("subnet", ["192.168.1.0/24", "10.1.0.0/24", "172.21.5.64/26"])
def test_prefixes_that_harm_nothing(subnet: str) -> None:
    """Beside the host's own; or inside a wider route by a gateway, where the longer prefix wins."""
    assert check(net(f"mode: isolated, subnet: {subnet}"), host()) == []


def test_what_is_ours_is_not_in_its_own_way() -> None:
    """After apply the network's prefix is on the host, by us."""
    ours = host(Link(name="kvb-n", type="bridge", mtu=1500),
                Address(name="kvb-n 192.168.1.1/24", dev="kvb-n"),
                Route(name="192.168.1.0/24 dev kvb-n", dst="192.168.1.0/24", dev="kvb-n", family=4, table="main",
                      proto="kernel", via=""))
    assert check(net("mode: isolated, subnet: 192.168.1.0/24"), ours) == []


def test_addresses_that_a_bridge_took_are_still_the_hosts() -> None:
    taken = host(Link(name="kvb-out", type="bridge", mtu=1500), Address(name="kvb-out 203.0.113.5/24", dev="kvb-out"))
    document = spec("  out: {mode: bridge, uplink: wan}\n  n: {mode: isolated, subnet: 203.0.113.0/24}")
    (problem,) = check(document, taken)
    assert "203.0.113.5/24 of the host's own kvb-out" in problem.message
    leaving = net("mode: isolated, subnet: 203.0.113.0/24")
    assert check(leaving, taken) == [], "a bridge without a port of the host had its address from us"
    port = Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master="kvb-out")
    (problem,) = check(leaving, host(port, *(item for key, item in taken.state.items() if "kvb-out" in key.name)))
    assert "203.0.113.5/24" in problem.message, "it will be given back to eth0"


def test_the_outer_segment_may_be_described() -> None:
    """A bridge-mode network has the prefix that the host has on its uplink; guests may not take the host's."""
    outer = "  n: {mode: bridge, uplink: wan, subnet: 198.51.100.0/24, pool: 198.51.100.100-198.51.100.120}"
    assert check(spec(outer, "  v: {nics: [{network: n}]}"), host()) == []
    (problem,) = check(spec(outer, "  v: {nics: [{network: n, ip: 198.51.100.5}]}"), host())
    assert problem.message == "198.51.100.5 is the host's own address on eth0"
    (problem,) = check(spec(outer, "  v: {nics: [{network: n, mac: '02:00:00:00:00:10'}]}"), host())
    assert problem.message == "02:00:00:00:00:10 is the MAC of the host's eth0"


def test_mtu_of_the_uplink_as_it_is() -> None:
    (problem,) = check(net("mode: bridge, uplink: wan, mtu: 9000"), host())
    assert problem.message == "9000 is larger than the 1500 of its way out, eth0"
    assert check(net("mode: bridge, bridge: br0, mtu: 9000"), host()) == []
    assert check(net("mode: isolated, mtu: 9000"), host()) == []


def test_mtu_of_nics_is_judged_by_the_uplink() -> None:
    (problem,) = check(spec("  n: {mode: bridge, bridge: br0}", "  v: {nics: [{network: n, ip: 1.2.3.4, model: pcnet}]}"),
                       host())
    assert problem.message == "pcnet takes an MTU of at most 1500, not 9000"


@pytest.mark.parametrize(("options", "message", "hint"), [
    ("mode: bridge, bridge: vmbr0", "this host has no bridge vmbr0", "bridges of this host: br0"),
    ("mode: bridge, bridge: eth0", "eth0 is no bridge but physical", "uplink:"),
    ("mode: bridge, uplink: air", "wlp3s0 is wireless", "mode: nat"),
    ("mode: bridge, uplink: vpn", "wg0 (wireguard) carries no Ethernet frames", "mode: nat"),
    ("mode: bridge, uplink: lan", "eth1 belongs to br0 already", "bridge: br0"),
])
def test_what_cannot_be_bridged(options: str, message: str, hint: str) -> None:
    assert check(net(options), host()) == []
    (problem,) = lacking(net(options), host())
    assert problem.message.startswith(message)
    assert hint in problem.hint


def test_a_wireless_card_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "eth0/phy80211").mkdir(parents=True)
    (tmp_path / "eth1").mkdir()
    found = wireless({r.name: r for r in HOST if isinstance(r, Link)}, tmp_path)
    assert found == {"eth0"}
    for mode in ("bridge", "macvtap"):
        assert [p.message.partition(":")[0] for p in lacking(net(f"mode: {mode}, uplink: wan"), host(wireless=found, features={"macvtap": ""}))] == ["eth0 is wireless"]
        assert "wireless" not in str(lacking(net(f"mode: {mode}, uplink: wan"), host()))


@pytest.mark.parametrize("uplink", ["air", "vpn", "wan", "lan"])
def test_what_can_be_routed_over(uplink: str) -> None:
    assert lacking(net(f"mode: nat, uplink: {uplink}, subnet: 192.168.1.0/24"), host()) == []


def test_a_bridge_as_uplink_of_a_bridge() -> None:
    document = loads("version: 1\nuplinks: {wan: {device: br0}}\nnetworks: {n: {mode: bridge, uplink: wan}}").spec
    (problem,) = lacking(document, host())
    assert problem.hint == "write bridge: br0 instead of uplink:"


def test_a_bridge_may_be_an_uplink_and_carry_guests() -> None:
    """One network of guests on the host's bridge, another behind the address that the host has there."""
    document = loads("version: 1\nuplinks: {wan: {device: br0}}\nnetworks:\n  n: {mode: bridge, bridge: br0}\n"
                     "  m: {mode: nat, uplink: wan, subnet: 192.168.1.0/24}").spec
    assert check(document, host()) == lacking(document, host()) == []


def test_an_uplink_of_ours_after_apply() -> None:
    """An uplink that our own bridge took is where it belongs."""
    eth0 = Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master="kvb-n")
    assert lacking(net("mode: bridge, uplink: wan"), host(eth0)) == []


def test_a_device_that_is_not_there_is_the_hosts_fault() -> None:
    document = loads("version: 1\nuplinks:\n  wan: {device: ens99}\n", "net.yaml")
    with pytest.raises(HostCannot) as caught:
        require(document, host())
    assert caught.value.exit_code == 11
    assert str(caught.value) == "net.yaml:3:17: uplinks.wan.device: this host has no device ens99"
    assert caught.value.hint == "devices of this host: br0, eth0, eth1, wg0, wlp3s0"
    require(document, Facts())  # an unknown host is not judged


def test_users() -> None:
    document = spec("  n: {mode: isolated, subnet: 192.168.1.0/24}", "  v: {owner: libvirt-qemu, nics: [{network: n}]}")
    assert [p.message for p in lacking(document, host())] == ["this host has no user libvirt-qemu"]
    assert lacking(document, host(users={"libvirt-qemu": 64055})) == []


def test_vhost() -> None:
    document = spec("  n: {mode: isolated, subnet: 192.168.1.0/24}",
                    "  v: {nics: [{network: n, vhost: on}, {network: n, name: b, vhost: auto}]}")
    (problem,) = lacking(document, host(features={"vhost-net": "no /dev/vhost-net"}))
    assert (problem.path, problem.hint) == ("vms.v.nics[0].vhost", "write vhost: auto")
    assert lacking(document, host(features={"vhost-net": ""})) == []


def test_kernel_tables() -> None:
    vms = "\n".join(f"  v{i}: {{nics: [{{network: n}}, {{network: quiet}}]}}" for i in range(10))
    document = spec("  n: {mode: isolated, subnet: 192.168.1.0/24}\n"
                    "  quiet: {mode: isolated, subnet: 192.168.2.0/24, address: none}", vms)
    assert lacking(document, host(limits={"gc_thresh3": 10, "gc_thresh3_6": 0, "nf_conntrack_max": 160})) == []
    few, flows = lacking(document, host(limits={"gc_thresh3": 9, "nf_conntrack_max": 159}))
    assert few.hint == "write tuning: {net.ipv4.neigh.default.gc_thresh3: 32}, which is given back"
    assert "159 connections, too few for 10 guests" in flows.message


def test_ports_that_others_have_count() -> None:
    nics = ", ".join(f"{{network: n, name: a{i}, guard: mac}}" for i in range(1023))
    document = spec("  n: {mode: bridge, bridge: br0}", f"  v: {{nics: [{nics}]}}")
    (problem,) = check(document, host())
    assert "1023 NICs and 1 of the host are more than the 1023 ports" in problem.message
    eth1 = Link(name="eth1", type="physical", mtu=9000, master="")
    assert check(document, host(eth1)) == []
