"""A network's words and the configuration that they become."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.modes.segment import Segment
from kvmnet.modes.services import reverse_zones, services
from lib.dnsmasq import nic, segment

A, B = "52:54:00:00:00:01", "52:54:00:00:00:02"
DUAL = {"subnet": "10.1.0.0/24", "subnet6": "fd00:1::/64"}


def config(one: Segment, resolvers: tuple[str, ...] = ("192.0.2.53",)) -> tuple[str, ...]:
    server = services(one, resolvers)[0]
    assert isinstance(server, DnsmasqServer) and server.config is not None
    return server.config


def test_whole_configuration() -> None:
    one = segment([nic(A, "10.1.0.10", "web1", "fd00:1::10", mtu=1400), nic(B, "10.1.0.11", "web2", mtu=1300)],
                  mtu=1400, **DUAL, dhcp={"ntp": ["10.1.0.3", "fd00:1::3"],
                                          "routes": [{"to": "10.9.0.0/16", "via": "10.1.0.7"}]})
    assert services(one, ("192.0.2.53",)) == [
        DnsmasqServer(name="lan", dev="kvb-lan", vrf="", running=True, config=(
            "interface=kvb-lan", "except-interface=lo", "bind-dynamic", "no-hosts", "no-resolv",
            "domain=lan", "local=/lan/", "local=/0.1.10.in-addr.arpa/",
            "local=/0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa/",
            "expand-hosts", "domain-needed", "cache-size=1000", "server=192.0.2.53",
            "dhcp-authoritative", "dhcp-ignore-names", "dhcp-lease-max=65536",
            "dhcp-range=10.1.0.0,static,255.255.255.0,43200",
            "dhcp-option=option:router,10.1.0.1", "dhcp-option=option:dns-server,10.1.0.1",
            "dhcp-option=option:domain-search,lan", "dhcp-option=option:mtu,1400",
            "dhcp-option=tag:mtu1300,option:mtu,1300", f"dhcp-mac=set:mtu1300,{B}",
            "dhcp-option=option:classless-static-route,0.0.0.0/0,10.1.0.1,10.9.0.0/16,10.1.0.7",
            "dhcp-option=option:ntp-server,10.1.0.3",
            "dhcp-range=fd00:1::,static,64,43200", "enable-ra", "ra-param=kvb-lan,mtu:1400,0",
            "dhcp-option=option6:dns-server,[fd00:1::1]", "dhcp-option=option6:domain-search,lan",
            "dhcp-option=option6:56,00:01:00:10:fd:00:00:01:00:00:00:00:00:00:00:00:00:00:00:03")),
        Reservation(name=f"lan {A}", server="lan", hostname="web1", ip="10.1.0.10", ip6="fd00:1::10", tags=()),
        Reservation(name=f"lan {B}", server="lan", hostname="web2", ip="10.1.0.11", ip6="", tags=())]


@pytest.mark.parametrize(("words", "there", "not_there"), (
    ({"dhcp": {"enabled": False}}, ["local=/lan/"], ["dhcp-", "enable-ra", "port="]),
    ({"dns": {"enabled": False}}, ["port=0", "dhcp-option=option:dns-server"], ["server=", "local="]),
    ({"mode": "isolated", "uplink": None}, ["dhcp-option=option:router"], ["server="]),
    ({"mode": "isolated", "uplink": None, "dns": {"upstream": ["192.0.2.1"]}}, ["server=192.0.2.1"], []),
    ({"mode": "isolated", "uplink": None, "gateway": "10.1.0.9"}, ["dhcp-option=option:router,10.1.0.9"], []),
    ({"dns": {"upstream": []}}, [], ["server="]),
    ({"dhcp": {"lease": "infinite"}}, ["dhcp-range=10.1.0.0,static,255.255.255.0,infinite"], []),
    ({"dhcp": {"dynamic": True}}, ["dhcp-range=10.1.0.1,10.1.0.254,255.255.255.0,43200"], []),
    ({"dhcp": {"dynamic": True}, "pool": "10.1.0.100-10.1.0.200"},
     ["dhcp-range=10.1.0.100,10.1.0.200,255.255.255.0,43200"], []),
    ({**DUAL, "dhcp": {"dynamic": True}, "pool6": "fd00:1::100-fd00:1::200"},
     ["dhcp-range=fd00:1::100,fd00:1::200,64,43200"], []),
    ({"dhcp": {"dynamic": True}, "subnet": "10.0.0.0/8"}, ["dhcp-lease-max=4194304"], []),
    ({"mode": "bridge"}, ["dhcp-ignore=tag:!known", "dhcp-option=option:router"], ["dhcp-authoritative", "enable-ra"]),
    ({**DUAL, "mode": "bridge"}, ["dhcp-range=fd00:1::,static,64,43200"], ["enable-ra", "ra-param"]),
    ({**DUAL, "ra": "off"}, ["dhcp-range=fd00:1::,static,64,43200"], ["enable-ra", "ra-param"]),
    ({**DUAL, "ra": "off", "dhcp": {"enabled": False}}, [], ["dhcp-", "enable-ra"]),
    ({**DUAL, "mode": "isolated", "uplink": None}, ["ra-param=kvb-lan,mtu:1500,0,0"], []),
    ({"dhcp": {"pxe": {"file": "pxelinux.0", "tftp_root": "/srv/tftp"}}},
     ['dhcp-boot="pxelinux.0",,10.1.0.1', "enable-tftp=kvb-lan", 'tftp-root="/srv/tftp"'], ["dhcp-vendorclass"]),
    ({"dhcp": {"pxe": {"file": "http://10.1.0.1/x.efi", "server": "10.1.0.5"}}},
     ['dhcp-boot="http://10.1.0.1/x.efi",,10.1.0.5', "dhcp-vendorclass=set:http-boot,HTTPClient"], ["enable-tftp"]),
    ({"dhcp": {"options": {"42": "192.0.2.1", "tftp-server": "x"}}},
     ["dhcp-option=42,192.0.2.1", "dhcp-option=option:tftp-server,x"], []),
))
def test_words(words: dict[str, Any], there: list[str], not_there: list[str]) -> None:
    lines = config(segment([nic(A, "10.1.0.10", "web1")], **words))
    assert [x for x in there if x not in lines] == []
    assert [x for x in lines if any(x.startswith(n) for n in not_there)] == []


def test_nothing_to_offer() -> None:
    assert services(segment(dhcp={"enabled": False}, dns={"enabled": False}), ()) == []
    assert services(segment(address=""), ("192.0.2.53",)) == []


def test_own_address_is_no_upstream() -> None:
    assert not any(x.startswith("server=") for x in config(segment(), ("10.1.0.1",)))


def test_more_guests_do_not_change_the_configuration() -> None:
    nics = [nic(f"52:54:00:00:{i // 256:02x}:{i % 256:02x}", f"10.1.{i // 250}.{2 + i % 250}") for i in range(2000)]
    assert config(segment(nics[:1], subnet="10.1.0.0/16")) == config(segment(nics, subnet="10.1.0.0/16"))


def test_hostname_that_reads_as_a_lease_time() -> None:
    found = services(segment([nic(A, "10.1.0.10", "100")], dns={"domain": "corp.example"}), ())[1]
    assert isinstance(found, Reservation) and found.hostname == "100.corp.example"


@pytest.mark.parametrize(("prefix", "zones"), (
    ("10.1.0.0/24", ["0.1.10.in-addr.arpa"]), ("10.0.0.0/8", ["10.in-addr.arpa"]),
    ("10.1.4.0/23", ["4.1.10.in-addr.arpa", "5.1.10.in-addr.arpa"]),
    ("10.1.0.4/31", ["4.0.1.10.in-addr.arpa", "5.0.1.10.in-addr.arpa"]),
    ("fd00:1::/32", ["1.0.0.0.0.0.d.f.ip6.arpa"]), ("fd00:1:2::/47", ["2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa",
                                                                     "3.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa"]),
))
def test_reverse_zones(prefix: str, zones: list[str]) -> None:
    assert reverse_zones(prefix) == zones
