"""Names that real dnsmasqs answer."""
from __future__ import annotations

import pytest

from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from lib.dhcp import Client, client
from lib.dns import AAAA, NXDOMAIN, PTR, REFUSED, Answer, ask
from lib.dnsmasq import apply, make_bridge, nic, segment, wanted
from lib.netns import inside, sh

pytestmark = pytest.mark.daemon
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def query(guest: Client, server: str, name: str, kind: int = 1) -> Answer | None:
    with inside(guest.netns):
        return ask(server, name, kind)


def records(guest: Client, server: str, name: str, kind: int = 1) -> list[str]:
    answer = query(guest, server, name, kind)
    assert answer is not None
    return sorted(answer.records)


def test_names_of_guests_and_hosts(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1", ip6="fd00:1::10"), nic(OTHER, "10.1.0.11", "100")],
                  subnet="10.1.0.0/24", subnet6="fd00:1::/64",
                  dns={"domain": "corp.example", "hosts": {"db": ["10.1.0.20", "10.1.0.21", "fd00:1::20"],
                                                           "x.example.org": ["192.0.2.9"]}})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        guest.use("10.1.0.10/24")
        guest.use("fd00:1::10/64")
        four = "10.1.0.1"
        assert records(guest, four, "web1") == records(guest, four, "web1.corp.example") == ["10.1.0.10"]
        assert records(guest, "fd00:1::1", "web1.corp.example", AAAA) == ["fd00:1::10"]
        assert records(guest, four, "100.corp.example") == ["10.1.0.11"]
        assert records(guest, four, "db") == ["10.1.0.20", "10.1.0.21"]
        assert records(guest, four, "db.corp.example", AAAA) == ["fd00:1::20"]
        assert records(guest, four, "x.example.org") == ["192.0.2.9"]
        assert records(guest, four, "10.0.1.10.in-addr.arpa", PTR) == ["web1.corp.example"]
        assert query(guest, four, "nobody.corp.example") == Answer(NXDOMAIN)
        assert query(guest, four, "99.0.1.10.in-addr.arpa", PTR) == Answer(NXDOMAIN)


def test_a_lease_adds_no_other_answer(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1"), nic(OTHER, "10.1.0.11", "100")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest, client(lan.bridge, OTHER) as other:
        assert guest.lease4(hostname="router")["hostname"] == "web1"
        assert other.lease4()["ip"] == "10.1.0.11"
        guest.use("10.1.0.10/24")
        assert records(guest, "10.1.0.1", "web1.lan") == ["10.1.0.10"]
        assert query(guest, "10.1.0.1", "router.lan") == Answer(NXDOMAIN)


def test_upstream_is_asked_for_the_rest_only(driver: DnsmasqDriver) -> None:
    """Upstream is the network's neighbour: what reaches it, it answers."""
    outer = segment(name="outer", subnet="10.2.0.0/24", dns={"hosts": {"far.example": ["198.51.100.1"],
                                                                     "web9.lan": ["198.51.100.2"]}})
    lan = segment([nic(MAC, "10.1.0.10", "web1")], dns={"upstream": ["10.2.0.1"]})
    for one in (outer, lan):
        make_bridge(one)
    apply(driver, wanted(outer, lan))
    with client(lan.bridge, MAC) as guest:
        guest.use("10.1.0.10/24")
        assert records(guest, "10.1.0.1", "far.example") == ["198.51.100.1"]
        assert query(guest, "10.1.0.1", "web9.lan") == Answer(NXDOMAIN)
    assert ask("10.2.0.1", "web9.lan") == Answer(0, ["198.51.100.2"])


def test_without_upstream(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")], mode="isolated", uplink=None)
    make_bridge(lan)
    apply(driver, wanted(lan))
    answer = ask("10.1.0.1", "far.example")
    assert answer and answer.code == REFUSED
    assert ask("10.1.0.1", "web1.lan") == Answer(0, ["10.1.0.10"])


def test_dns_off_leaves_the_port_and_names_other_servers(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")], dns={"enabled": False, "upstream": ["192.0.2.53"]})
    make_bridge(lan)
    apply(driver, wanted(lan))
    assert ask("10.1.0.1", "web1.lan", seconds=0.3) is None
    with client(lan.bridge, MAC) as guest:
        assert guest.lease4()["dns"] == "192.0.2.53"


def test_other_resolvers_keep_their_addresses(driver: DnsmasqDriver) -> None:
    """Loopback and further links are left to others, before and after our start."""
    sh("ip link add other type bridge; ip addr add 10.9.0.1/24 dev other; ip link set other up")
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    bound = sh("ss -lunH 'sport = 53'; ss -ltnH 'sport = 53'")
    addresses = {line.split()[3].rpartition(":")[0] for line in bound.splitlines()}
    assert {a for a in addresses if not a.endswith("%kvb-lan")} == {"10.1.0.1"}, "and the bridge's link-local, once it has one"
    assert ask("10.9.0.1", "web1.lan", seconds=0.3) is None
