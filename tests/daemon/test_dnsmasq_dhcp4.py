"""Real dnsmasqs, real DHCPv4 clients (busybox udhcpc)."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmnet.drivers.dnsmasq import driver as subject
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver, leases
from kvmnet.engine.driver import StepFailed
from lib.dhcp import client
from lib.dhcp6 import Client6, duid_ll
from lib.dnsmasq import apply, make_bridge, nic, pid_of, segment, wanted
from lib.netns import inside, sh

pytestmark = pytest.mark.daemon
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def test_reserved_address_and_options(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1", mtu=1400)], mtu=1400, dhcp={"ntp": ["10.1.0.3", "10.1.0.4"]})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4()
    assert (got["ip"], got["router"], got["dns"], got["mtu"]) == ("10.1.0.10", "10.1.0.1", "10.1.0.1", "1400")
    assert (got["domain"], got["search"], got["lease"], got["mask"]) == ("lan", "lan", "43200", "24")
    assert got["ntpsrv"] == "10.1.0.3 10.1.0.4"
    assert "staticroutes" not in got
    [lease] = leases(driver.paths, "lan")
    assert (lease.mac, lease.ip, lease.hostname) == (MAC, "10.1.0.10", "web1")


def test_mtu_of_one_nic(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1", mtu=1300), nic(OTHER, "10.1.0.11", "web2")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        assert guest.lease4()["mtu"] == "1300"
    with client(lan.bridge, OTHER) as guest:
        assert guest.lease4()["mtu"] == "1500"


def test_the_server_survives_a_reload_after_lending_to_a_nic_with_its_own_mtu(driver: DnsmasqDriver) -> None:
    """Tags in the reservations themselves end in a segmentation fault here."""
    lan = segment([nic(MAC, "10.1.0.10", "web1", "fd00:1::10", mtu=1300)], subnet="10.1.0.0/24", subnet6="fd00:1::/64")
    make_bridge(lan)
    apply(driver, wanted(lan))
    server = pid_of(driver, "lan")
    with client(lan.bridge, MAC) as guest, inside(guest.netns):
        for _ in range(3):
            assert guest.lease4()["mtu"] == "1300"
            with Client6(duid_ll(MAC)) as six:
                lease = six.lease()
                assert lease and lease.addresses == ["fd00:1::10"]
    for number in (11, 12):
        more = replace(lan, nics=(*lan.nics, nic(OTHER, f"10.1.0.{number}", "web2")))
        apply(driver, wanted(more))
    assert pid_of(driver, "lan") == server


def test_classless_routes_bear_the_default_route(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")], dhcp={"routes": [{"to": "10.9.0.0/16", "via": "10.1.0.7"}]},
                  metadata={"to_port": 8080})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4()
    assert got["staticroutes"] == ("0.0.0.0/0 10.1.0.1 10.9.0.0/16 10.1.0.7 169.254.169.254/32 10.1.0.1")


def test_isolated_network_names_no_router(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")], mode="isolated", uplink=None, metadata={"to_port": 8080})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4()
    assert got["ip"] == "10.1.0.10" and "router" not in got
    assert got["staticroutes"] == "169.254.169.254/32 10.1.0.1"


@pytest.mark.parametrize("dynamic", (False, True))
def test_undeclared_guest(driver: DnsmasqDriver, dynamic: bool) -> None:
    lan = segment([nic(MAC, "10.1.0.100", "web1")], pool="10.1.0.100-10.1.0.101", dhcp={"dynamic": dynamic})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, OTHER) as guest:
        assert guest.lease4(seconds=4 if dynamic else 1, hostname="wpad").get("ip") == ("10.1.0.101" if dynamic else None)
    assert [x.hostname for x in leases(driver.paths, "lan")] == [""] * dynamic


def test_free_options_and_network_boot(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")],
                  dhcp={"options": {"time-offset": "3600", "33": "10.8.0.1,10.1.0.7"}, "pxe": {"file": "pxelinux.0"}})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4(options="-O timezone -O bootfile -O routes")
    assert (got["bootfile"], got["siaddr"]) == ("pxelinux.0", "10.1.0.1")
    assert (got["timezone"], got["routes"]) == ("3600", "10.8.0.1/10.1.0.7")


def test_reservation_changes_by_reload(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    apply(driver, wanted(segment([nic(MAC, "10.1.0.10", "web1"), nic(OTHER, "10.1.0.11", "web2")])))
    with client(lan.bridge, OTHER) as guest:
        assert guest.lease4()["ip"] == "10.1.0.11"
        apply(driver, wanted(lan))
        assert guest.lease4(seconds=2) == {}
    assert pid_of(driver, "lan") == pid


def test_address_moves_to_another_guest(driver: DnsmasqDriver) -> None:
    """The old holder's lease would keep the new one from its address."""
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as old, client(lan.bridge, OTHER) as new:
        assert old.lease4(options="-C")["ip"] == "10.1.0.10"
        pid = pid_of(driver, "lan")
        apply(driver, wanted(segment([nic(MAC, "10.1.0.11", "web1"), nic(OTHER, "10.1.0.10", "web2")])))
        assert leases(driver.paths, "lan") == []
        assert new.lease4()["ip"] == "10.1.0.10"
        assert old.lease4()["ip"] == "10.1.0.11"
    assert pid_of(driver, "lan") == pid


def test_address_moves_while_the_server_is_gone(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as old, client(lan.bridge, OTHER) as new:
        assert old.lease4()["ip"] == "10.1.0.10"
        apply(driver, {})
        assert [x.ip for x in leases(driver.paths, "lan")] == ["10.1.0.10"]
        apply(driver, wanted(segment([nic(OTHER, "10.1.0.10", "web2")])))
        assert new.lease4()["ip"] == "10.1.0.10"


def test_configuration_changes_keep_leases(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        assert guest.lease4()["ip"] == "10.1.0.10"
        before = leases(driver.paths, "lan")
        apply(driver, wanted(segment([nic(MAC, "10.1.0.10", "web1")], dhcp={"ntp": ["10.1.0.3"]})))
        assert leases(driver.paths, "lan") == before
        assert guest.lease4()["ntpsrv"] == "10.1.0.3"


def test_two_networks_do_not_see_each_other(driver: DnsmasqDriver) -> None:
    """The same MAC, and equal names, on both."""
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    dmz = segment([nic(MAC, "10.2.0.10", "web1")], name="dmz", subnet="10.2.0.0/24")
    for one in (lan, dmz):
        make_bridge(one)
    apply(driver, wanted(lan, dmz))
    for one, ip in ((lan, "10.1.0.10"), (dmz, "10.2.0.10")):
        with client(one.bridge, MAC) as guest:
            got = guest.lease4()
            assert (got["ip"], got["domain"]) == (ip, one.name)
    assert [x.ip for x in leases(driver.paths, "dmz")] == ["10.2.0.10"]


def test_bridge_mode_answers_known_guests_only(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")], mode="bridge", address="10.1.0.2", gateway="10.1.0.1")
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4()
        assert (got["ip"], got["router"], got["serverid"]) == ("10.1.0.10", "10.1.0.1", "10.1.0.2")
    with client(lan.bridge, OTHER) as guest:
        assert guest.lease4(seconds=2) == {}


@pytest.mark.parametrize("tools", (True, False), ids=("many", "no-tools"))
def test_stale_leases_go_by_restart(driver: DnsmasqDriver, monkeypatch: pytest.MonkeyPatch, tools: bool) -> None:
    """More than are released one by one, or none of the tools that release one."""
    if not tools:
        monkeypatch.setattr(subject, "missing", lambda *tools: "no tools")
    count = subject.FEW + 4 if tools else 2
    macs = [f"52:54:00:00:00:{i:02x}" for i in range(count)]
    old = wanted(segment([nic(m, f"10.1.0.{10 + i}") for i, m in enumerate(macs)]))
    new = segment([nic(m, f"10.1.0.{110 + i}") for i, m in enumerate(macs)])
    make_bridge(new)
    driver.files("lan").leases.parent.mkdir(parents=True)
    driver.files("lan").leases.write_text(
        "".join(f"2000000000 {m} 10.1.0.{10 + i} * 01:{m}\n" for i, m in enumerate(macs)))
    apply(driver, old)
    pid = pid_of(driver, "lan")
    assert len(leases(driver.paths, "lan")) == count
    apply(driver, wanted(new))
    assert leases(driver.paths, "lan") == []
    assert pid_of(driver, "lan") not in (0, pid)
    with client(new.bridge, macs[0]) as guest:
        assert guest.lease4()["ip"] == "10.1.0.110"


def test_boot_file_by_tftp(driver: DnsmasqDriver) -> None:
    with TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        (root / "pxelinux.0").write_text("boot\n")
        (root / "pxelinux.0").chmod(0o644)
        lan = segment([nic(MAC, "10.1.0.10", "web1")], dhcp={"pxe": {"file": "pxelinux.0", "tftp_root": str(root)}})
        make_bridge(lan)
        apply(driver, wanted(lan))
        with client(lan.bridge, MAC) as guest:
            guest.use("10.1.0.10/24")
            fetch = f"ip netns exec {guest.netns} timeout 5 busybox tftp -g -l - -r"
            assert sh(f"{fetch} pxelinux.0 10.1.0.1") == "boot\n"
            assert sh(f"{fetch} ../../etc/hostname 10.1.0.1 2>/dev/null", check=False) == ""


def test_missing_tftp_directory_is_named(driver: DnsmasqDriver, tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    lan = segment([nic(MAC, "10.1.0.10", "web1")], dhcp={"pxe": {"file": "x", "tftp_root": str(root)}})
    make_bridge(lan)
    with pytest.raises(StepFailed, match=f"{root}"):
        apply(driver, wanted(lan))


def test_http_boot_answers_its_own_class(driver: DnsmasqDriver) -> None:
    url = "http://10.1.0.1/boot.efi"
    lan = segment([nic(MAC, "10.1.0.10", "web1")], dhcp={"pxe": {"file": url}})
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4(options="-V HTTPClient:Arch:00016 -O bootfile -O vendor")
        assert (got.get("bootfile") or got.get("boot_file"), got["vendor"]) == (url, "HTTPClient")
        assert "vendor" not in guest.lease4(options="-V PXEClient -O bootfile -O vendor")
