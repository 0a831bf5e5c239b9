"""DHCPv6 and router advertisements of real dnsmasqs."""
from __future__ import annotations

from dataclasses import replace

import pytest

from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver, leases
from kvmnet.host.clock import wait_until
from lib.dhcp import client
from lib.dhcp6 import INFORMATION, NO_ADDRS, SOLICIT, Client6, Reply6, duid_ll, duid_uuid, solicit_router
from lib.dnsmasq import apply, make_bridge, nic, pid_of, segment, wanted
from lib.netns import inside

pytestmark = pytest.mark.daemon
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
NET6 = "fd00:1::/64"


def lease6(bridge: str, mac: str, duid: bytes) -> Reply6 | None:
    with client(bridge, mac) as guest, inside(guest.netns), Client6(duid) as six:
        return six.lease()


def addresses(reply: Reply6 | None) -> list[str]:
    return reply.addresses if reply else []


@pytest.mark.parametrize("duid", (duid_ll(MAC), duid_uuid(b"\x11"), b"\0\x02\0\0\xab\x11" + b"machine1"),
                         ids=("link-layer", "uuid", "enterprise"))
def test_reservation_by_mac_whatever_the_duid(driver: DnsmasqDriver, duid: bytes) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1", ip6="fd00:1::10")], subnet="10.1.0.0/24", subnet6=NET6)
    make_bridge(lan)
    apply(driver, wanted(lan))
    reply = lease6(lan.bridge, MAC, duid)
    assert reply and (reply.addresses, reply.dns) == (["fd00:1::10"], ["fd00:1::1"])
    other = lease6(lan.bridge, OTHER, duid_uuid(b"\x22"))
    assert other and (other.addresses, other.status) == ([], NO_ADDRS)


def test_ipv6_only_network(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, ip6="fd00:1::10", hostname="web1")], subnet6=NET6, dhcp={"ntp": ["fd00:1::3"]})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        assert guest.lease4(seconds=2) == {}
        with inside(guest.netns), Client6(duid_uuid(b"\x11")) as six:
            reply = six.lease()
    assert reply and reply.addresses == ["fd00:1::10"]
    assert reply.options[56][4:] == bytes.fromhex("fd000001" + "00" * 11 + "03")


@pytest.mark.parametrize(("words", "flags", "autonomous", "router"), (
    ({}, (True, True), False, True),
    ({"mode": "isolated", "uplink": None}, (True, True), False, False),
    ({"ra": "autoconf"}, (False, True), True, True),
    ({"ra": "autoconf", "dhcp": {"enabled": False}}, (False, False), True, True),
    ({"dhcp": {"enabled": False}}, (True, True), False, True),
), ids=("managed", "isolated", "autoconf", "autoconf-without-dhcp", "managed-without-dhcp"))
def test_router_advertisement(driver: DnsmasqDriver, words: dict[str, object], flags: tuple[bool, bool],
                              autonomous: bool, router: bool) -> None:
    lan = segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6, mtu=1420, **words)
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest, inside(guest.netns):
        advert = solicit_router()
    assert advert is not None
    assert (advert.managed, advert.other) == flags
    assert advert.prefixes == {NET6: autonomous}
    assert (advert.mtu, advert.lifetime > 0, advert.dns) == (1420, router, ["fd00:1::1"])


@pytest.mark.parametrize("words", ({"ra": "off"}, {"mode": "bridge"}))
def test_no_advertisement_but_dhcp(driver: DnsmasqDriver, words: dict[str, object]) -> None:
    lan = segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6, **words)
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest, inside(guest.netns):
        assert solicit_router(1) is None
        with Client6(duid_uuid(b"\x11")) as six:
            assert addresses(six.lease()) == ["fd00:1::10"]


def test_no_dhcp_answer_where_dhcp_is_off(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6, dhcp={"enabled": False})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest, inside(guest.netns), Client6(duid_uuid(b"\x11")) as six:
        assert six.ask(SOLICIT, six.identity(), 2) is None


def test_stateless_where_guests_form_their_own(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC)], subnet6=NET6, ra="autoconf")
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest, inside(guest.netns), Client6(duid_uuid(b"\x11")) as six:
        reply = six.ask(INFORMATION)
        assert reply and reply.dns == ["fd00:1::1"]
        assert addresses(six.lease()) == []


def test_address_moves_to_another_guest(driver: DnsmasqDriver) -> None:
    """Neither DUID tells a MAC, so that only the reservations before and after say whose lease is stale."""
    lan = segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6)
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    assert addresses(lease6(lan.bridge, MAC, duid_uuid(b"\x11"))) == ["fd00:1::10"]
    apply(driver, wanted(segment([nic(MAC, ip6="fd00:1::11"), nic(OTHER, ip6="fd00:1::10")], subnet6=NET6)))
    assert leases(driver.paths, "lan") == []
    assert addresses(lease6(lan.bridge, OTHER, duid_uuid(b"\x22"))) == ["fd00:1::10"]
    assert addresses(lease6(lan.bridge, MAC, duid_uuid(b"\x11"))) == ["fd00:1::11"]
    assert pid_of(driver, "lan") == pid


def test_address_moves_while_the_server_is_gone(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6)
    make_bridge(lan)
    apply(driver, wanted(lan))
    assert addresses(lease6(lan.bridge, MAC, duid_uuid(b"\x11"))) == ["fd00:1::10"]
    apply(driver, {})
    apply(driver, wanted(segment([nic(OTHER, ip6="fd00:1::10")], subnet6=NET6)))
    assert addresses(lease6(lan.bridge, OTHER, duid_uuid(b"\x22"))) == ["fd00:1::10"]


def test_configuration_changes_keep_leases(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6)
    make_bridge(lan)
    apply(driver, wanted(lan))
    assert addresses(lease6(lan.bridge, MAC, duid_uuid(b"\x11"))) == ["fd00:1::10"]
    before = wait_until(lambda: leases(driver.paths, "lan"), 20)    # written after the answer
    apply(driver, wanted(segment([nic(MAC, ip6="fd00:1::10")], subnet6=NET6, mtu=1400)))
    after = leases(driver.paths, "lan")
    assert before and [replace(lease, expiry=0) for lease in after] == [replace(lease, expiry=0) for lease in before]
    # The server that starts reckons the expiry anew, from a clock of whole seconds.
    assert all(abs(a.expiry - b.expiry) <= 2 for a, b in zip(after, before, strict=True))
