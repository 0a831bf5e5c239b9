"""Texts that dnsmasq reads and writes."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.dnsmasq import wire
from kvmnet.drivers.dnsmasq.resources import Reservation
from kvmnet.drivers.dnsmasq.wire import Lease, Socket

A, B, C = (f"52:54:00:00:00:0{i}" for i in (1, 2, 3))
LEASES = """\
1764000000 52:54:00:00:00:01 10.1.0.10 web1 01:52:54:00:00:00:01
0 06-52:54:00:00:00:02 10.1.0.11 * *
duid 00:01:00:01:2e:11:22:33:02:00:00:00:00:01
1764000000 7 fd00:1::10 web1 00:03:00:01:52:54:00:00:00:01
1764000000 T9 fd00:1::11 * 00:04:11:11
"""


def reservation(mac: str, ip: str = "", ip6: str = "", hostname: str = "", tags: tuple[str, ...] = ()) -> Reservation:
    return Reservation(name=f"lan {mac}", server="lan", ip=ip, ip6=ip6, hostname=hostname, tags=tags)


names = st.text("aZ09-_", min_size=1, max_size=8).map("n".__add__) | st.sampled_from(("100.lan", "web-1", "1a", "9.b.lan"))
reservations = st.dictionaries(
    st.integers(0, 255).map(lambda i: f"52:54:00:00:00:{i:02x}"),
    st.tuples(st.just("") | st.ip_addresses(v=4).map(str), st.just("") | st.ip_addresses(v=6).map(str), st.just("") | names,
              st.lists(st.sampled_from(("mtu1400", "mtu9000")), unique=True).map(sorted).map(tuple)))


@given(reservations)
def test_reservations_there_and_back(drawn: dict[str, tuple[str, str, str, tuple[str, ...]]]) -> None:
    wanted = {mac: reservation(mac, *rest) for mac, rest in drawn.items()}
    text = wire.hosts_text(wanted.values())
    assert wire.parse_hosts("lan", text) == wanted
    assert wire.hosts_text(reversed(wanted.values())) == text


@pytest.mark.parametrize("name", ("100", "12h", "3D", "infinite", "ignore"))
def test_names_that_read_as_lease_times(name: str) -> None:
    assert wire.reads_as_lease_time(name)
    assert not wire.reads_as_lease_time(f"{name}.lan")
    assert not wire.reads_as_lease_time(f"web{name}")


def test_config_there_and_back() -> None:
    lines = ("interface=kvb-lan", "dhcp-range=10.1.0.0,static,255.255.255.0,43200")
    text = wire.config_text(lines, ("pid-file=/x",))
    assert wire.parse_config(text) == lines
    assert (wire.parse_config(text[:60]), wire.parse_config(""), wire.parse_config("port=0\n")) == (None, None, None)
    assert wire.served_link(lines) == "kvb-lan"


@pytest.mark.parametrize(("line", "families"), (
    ("dhcp-range=10.1.0.0,static,255.255.255.0,43200", set()),
    ("dhcp-range=10.1.0.5,10.1.0.9,255.255.255.0,43200", {4}),
    ("dhcp-range=fd00:1::,static,64,43200", set()),
    ("dhcp-range=fd00:1::,ra-stateless,64,43200", set()),
    ("dhcp-range=fd00:1::5,fd00:1::9,64,43200", {6}),
))
def test_families_lent_without_reservation(line: str, families: set[int]) -> None:
    assert wire.lent_freely([line]) == families


def test_leases_there_and_back() -> None:
    leases, duid = wire.parse_leases(LEASES)
    assert leases[0] == Lease(1764000000, A, "10.1.0.10", "web1", "01:52:54:00:00:00:01")
    assert leases[2] == Lease(1764000000, A, "fd00:1::10", "web1", "00:03:00:01:52:54:00:00:00:01", 7)
    assert (leases[1].mac, leases[3].mac, leases[3].iaid, leases[3].temporary) == (B, "", 9, True)
    assert wire.leases_text(leases, duid) == LEASES.replace("06-", "")


def test_torn_lease_file() -> None:
    whole, duid = wire.parse_leases(LEASES)
    for cut in range(len(LEASES)):
        leases, _ = wire.parse_leases(LEASES[:cut])
        assert leases[:-1] == whole[:len(leases)][:-1]
    assert wire.parse_leases("x y z a b\n1 x fd00::1 * 00\n" + LEASES) == (whole, duid)


def test_stale_leases() -> None:
    leases, _ = wire.parse_leases(LEASES)

    def stale(*wanted: Reservation, old: tuple[Reservation, ...] = (), free: tuple[int, ...] = ()) -> list[str]:
        macs = [{r.name.partition(" ")[2]: r for r in rs} for rs in (wanted, old)]
        return [lease.ip for lease in wire.stale(leases, macs[0], macs[1], free)]

    fits = (reservation(A, "10.1.0.10", "fd00:1::10"), reservation(B, "10.1.0.11", "fd00:1::11"))
    assert stale(*fits, old=fits) == []
    assert stale(*fits) == ["fd00:1::11"], "whose it is, is not known"
    assert stale() == ["10.1.0.10", "10.1.0.11", "fd00:1::10", "fd00:1::11"]
    assert stale(free=(4, 6)) == []
    assert stale(reservation(A, "10.1.0.99"), free=(4, 6)) == ["10.1.0.10"]
    assert stale(reservation(C, "10.1.0.10"), free=(4, 6)) == ["10.1.0.10"]
    assert stale(fits[0], reservation(C, ip6="fd00:1::11"), old=fits) == ["10.1.0.11", "fd00:1::11"]
    assert stale(reservation(C, ip6="fd00:1::10"), free=(4, 6)) == ["fd00:1::10"]


@pytest.mark.parametrize(("duid", "mac"), (
    ("00:01:00:01:2e:11:22:33:52:54:00:00:00:01", A), ("00:03:00:01:52:54:00:00:00:01", A),
    ("00:04:" + ":".join(["11"] * 16), ""), ("00:01:00:06:2e:11:22:33:52:54:00:00:00:01", ""), ("*", "")))
def test_mac_of_a_duid(duid: str, mac: str) -> None:
    assert wire.duid_mac(duid) == mac


def test_syntax_error_quotes_its_line() -> None:
    said = "dnsmasq: bad option at line 2 of /run/kvmnet/dnsmasq/lan/conf"
    assert wire.explain_syntax(said, "interface=kvb-lan\nnonsense=1\n") == "bad option in 'nonsense=1'"
    assert wire.explain_syntax(said, "") == "bad option at line 2 of /run/kvmnet/dnsmasq/lan/conf"


UDP = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0
  101: 0100000A:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0
  102: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 4713 2 0000000000000000 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 000000FD000000000000000001000000:0035 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1
   1: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 4715 1
"""


def test_who_is_in_the_way() -> None:
    sockets = wire.parse_sockets("udp", UDP) + wire.parse_sockets("tcp6", TCP6)
    assert Socket("tcp", "fd00::1", 53, 4714) in sockets and all(s.inode != 4715 for s in sockets)
    busy = "failed to create listening socket for {}: Address already in use"
    assert [s.inode for s in wire.in_the_way(busy.format("10.0.0.1"), sockets)] == [4711]
    assert [s.inode for s in wire.in_the_way(busy.format("fd00::1"), sockets)] == [4714]
    assert wire.in_the_way("failed to bind DHCP server socket: Address already in use", sockets) == []
