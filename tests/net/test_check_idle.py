"""Every declared NIC whose guest does not run is proved on its own tap: its guard and its reservation."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.check.attacks import ATTACKS
from kvmnet.check.dhcp import lease6
from kvmnet.check.model import Claim, Verdict
from kvmnet.check.probe import await_forwarding
from kvmnet.check.prove import prove
from kvmnet.check.station import Station
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver, leases
from kvmnet.drivers.dnsmasq.resources import Reservation
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.qemu.taps import close, open_taps
from kvmnet.engine.plan import Create
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Tap as Port
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import nic_guard
from lib.applied import Applied, applied
from lib.frames import ether
from lib.netns import new_netns, sh
from lib.tap import Tap

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}
vms:
  web1: {nics: [{network: lan}]}
  web2: {nics: [{network: lan, mtu: 1400, queues: 2}]}
  vrrp: {nics: [{network: lan, guard: mac}]}
  free: {nics: [{network: lan, guard: "off"}]}
  dhcp: {nics: [{network: lan, extra: {roles: [dhcp-server, router]}, trunk: [100]}]}
  down: {nics: [{network: lan, link: down}]}
"""
DROPS = {f"drops {name}" for name in ATTACKS}
REACHES = {"dhcp4", "dhcp6", "gateway4", "gateway6"}


@pytest.fixture
def here(paths: Paths) -> Iterator[Applied]:
    with new_netns(), applied(DOCUMENT, paths) as found:
        yield found


def claims(here: Applied, vm: str) -> dict[str, Claim]:
    return {c.name: c for c in prove(here.subject, lambda *_: None).claims if c.subject.startswith(vm)}


def fallen(here: Applied, vm: str) -> set[str]:
    return {name for name, c in claims(here, vm).items() if c.verdict is Verdict.FAIL}


def test_each_nic_by_what_the_document_lets_it_do(here: Applied) -> None:
    report = prove(here.subject, lambda *_: None)
    assert [c for c in report.claims if c.verdict is not Verdict.PASS] == []
    names = {vm: {c.name for c in report.claims if c.subject == f"{vm}/nic0"} for vm in
             ("web1", "web2", "vrrp", "free", "dhcp", "down")}
    assert names["web1"] == names["web2"] == REACHES | DROPS
    assert names["vrrp"] == REACHES | {"drops spoofed-mac"} and names["free"] == REACHES and names["down"] == set()
    assert DROPS - names["dhcp"] == {f"drops {name}" for name in (
        "rogue-dhcp", "rogue-dhcp6", "dhcp-as-other", "rogue-ra", "hidden-ra", "vlan-tagged", "vlan-zero",
        "vlan-stacked")}
    own = next(c for c in report.claims if (c.subject, c.name) == ("web2/nic0", "dhcp4"))
    assert "10.1.0.3 from 10.1.0.1" in own.evidence and "MTU 1400" in own.evidence
    assert leases(here.engine.paths, "lan") == [] and here.left() == []


def test_the_lease_of_a_guest_that_was_stopped_is_no_failure(here: Applied) -> None:
    """The server gives the address to its holder alone: DUID-LL of the guest's MAC, and the IAID that it chose."""
    nic = here.subject.segments["lan"].nics[0]
    with Port.hold(nic.tap) as port, Station(port, nic.mac, nic.ip, nic.ip6, "guest") as guest:
        guest.iaid = 0xAC042F
        assert lease6(guest).address == nic.ip6
    before = wait_until(lambda: [x for x in leases(here.engine.paths, "lan") if x.iaid is not None], 20)  # written after the answer
    assert [x.ip for x in before] == [nic.ip6]
    assert claims(here, "web1")["dhcp6"].verdict is Verdict.PASS
    after = [x for x in leases(here.engine.paths, "lan") if x.iaid is not None]
    assert [(x.ip, x.iaid, x.client) for x in after] == [(x.ip, x.iaid, x.client) for x in before]


def test_a_second_check_at_once_finds_the_taps_free(here: Applied) -> None:
    for _ in range(2):
        assert not [c for c in prove(here.subject, lambda *_: None).claims if c.verdict is Verdict.SKIP]


def test_a_guard_opened_by_another_hand_is_noticed_for_that_nic_alone(here: Applied) -> None:
    """A drift that no probe could show."""
    driver = NftablesDriver(here.engine.paths)
    driver.observe({})
    driver.apply([Create(nic_guard("kvt-web1-0", "open", [], [], bridge="kvb-lan"))], lambda done: None)
    report = prove(here.subject, lambda *_: None)
    assert {(c.subject, c.name) for c in report.claims if c.verdict is Verdict.FAIL} == {
        ("web1/nic0", name) for name in DROPS}


def test_a_guard_that_is_gone_cuts_its_nic_off(here: Applied) -> None:
    driver = NftablesDriver(here.engine.paths)
    driver.observe({})
    driver.apply([Create(nic_guard("kvt-web1-0", "full", ["02:00:00:00:00:99"], [], bridge="kvb-lan"))], lambda done: None)
    found = claims(here, "web1")
    assert {n for n, c in found.items() if c.verdict is Verdict.FAIL} == REACHES | DROPS
    assert "cannot be proved" in found["drops rogue-ra"].evidence


def test_a_wrong_reservation_is_noticed(here: Applied) -> None:
    nic = here.compiled.segments["lan"].nics[0]
    DnsmasqDriver(here.engine.paths).apply([Create(Reservation(
        name=f"lan {nic.mac}", server="lan", hostname="web1", ip="10.1.0.77", ip6="fd00:1::77", tags=()))], lambda done: None)
    found = claims(here, "web1")
    assert {n for n, c in found.items() if c.verdict is Verdict.FAIL} == {"dhcp4", "dhcp6"}
    assert f"10.1.0.77 instead of {nic.ip}" in found["dhcp4"].evidence


@pytest.mark.parametrize(("vm", "queues"), [("web1", 1), ("web2", 2)])
def test_a_tap_in_use_is_left_alone(here: Applied, vm: str, queues: int) -> None:
    """Also one with several queues, where a second opener would be let in."""
    held = open_taps(GuestNic(name=f"{vm}/nic0", vm=vm, tap=f"kvt-{vm}-0", model="virtio", queues=queues))[:1]
    try:
        found = claims(here, vm)
    finally:
        close(held)
    assert [(n, c.verdict) for n, c in found.items()] == [("tap", Verdict.SKIP)]
    assert "another program has" in found["tap"].evidence


def test_a_tap_that_is_gone_is_a_failure(here: Applied) -> None:
    sh("ip link del kvt-web1-0")
    assert fallen(here, "web1") == {"tap"}


def test_many_idle_nics_are_tried_in_part_and_the_report_says_so(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmnet.check.idle.MOST", 2)
    with new_netns(), applied(DOCUMENT, paths) as here:
        rest = claims(here, "host")
    assert rest["idle NICs"].evidence == "3 more were not tried, 2 were"


def test_what_the_guard_had_counted_before_is_kept(here: Applied) -> None:
    """The forged frames of a check are no news; those of a guest are."""
    driver = NftablesDriver(here.engine.paths)
    with Tap("kvt-web1-0") as guest:
        await_forwarding(["kvt-web1-0"])
        for _ in range(3):
            guest.send(ether("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:99", 0x0800, bytes(60)))
    before = driver.dropped()
    assert before["kvt-web1-0"] == {1: 3}
    prove(here.subject, lambda *_: None)
    assert driver.dropped() == before
