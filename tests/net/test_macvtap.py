"""mode macvtap on a host of its own: who reaches whom, what a change does, what a gate is worth."""
from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence

import pytest

from kvmnet.drivers.linux import driver as linux
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.macvtap import driver as macvtap
from kvmnet.errors import ConflictError, HostCannot, SpecError
from kvmnet.host.clock import wait_until
from lib.fork import die, in_child
from lib.netns import sh
from lib.world import HOST, OUTSIDE, ROUTER, World, snapshot, steady, unchanged, world

pytestmark = pytest.mark.net

HEAD = """
version: 1
uplinks: {wan: {device: eth0}}
"""
NETWORK = "networks: {lan: {mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, pool: 192.0.2.100-192.0.2.150%s}}\n"
GUESTS = """
vms:
  web1: {nics: [{network: lan}]}
  web2: {nics: [{network: lan}]}
"""
PLACE = "192.0.2.250"
"""The host's address on its macvlan."""


def document(more: str = "", guests: str = GUESTS) -> str:
    return HEAD + NETWORK % more + guests


@pytest.fixture
def here() -> Iterator[World]:
    with world() as made:
        yield made


def settled(here: World, text: str) -> None:
    here.apply(text)
    assert here.drift() == []


def test_guests_reach_each_other_and_the_outside_and_not_the_host(here: World) -> None:
    before = snapshot()
    planned = here.plan(document())
    assert any("do not reach the host" in note for note in planned.notes)
    settled(here, document())
    web1, web2 = (here.guest(n).use(f"{here.guest(n).ip}/24", via=ROUTER) for n in ("web1", "web2"))
    assert web1.pings(ROUTER) and web1.pings(OUTSIDE) and web1.pings(web2.ip) and web2.pings(web1.ip)
    assert not web1.pings(HOST, timeout=0.3) and not here.here.pings(web1.ip, timeout=0.3)
    here.destroy()
    unchanged(before)


def test_with_a_macvlan_of_its_own_the_host_is_reached_and_serves(here: World) -> None:
    before = snapshot()
    settled(here, document(f", address: {PLACE}, allow: [{{port: 8080}}]"))
    here.service(here.here, "host", 8080)
    here.service(here.here, "secret", 8081)
    web1 = here.guest("web1")
    lease = web1.lease()
    assert (lease["ip"], lease["router"], lease["dns"]) == (web1.ip, ROUTER, PLACE)
    web1.use(via=ROUTER)
    assert web1.pings(PLACE) and here.here.pings(web1.ip) and web1.pings(OUTSIDE)
    assert web1.name("web2.lan", PLACE) == here.guest("web2").ip
    assert web1.tcp(PLACE, 8080) == f"host {web1.ip}"
    assert web1.tcp(PLACE, 8081, 0.3) == "", "the host answers what the document opens, and no more"
    assert here.outside.pings(HOST) and here.outside.pings(PLACE)
    here.destroy()
    unchanged(before)


def test_a_guest_sends_nothing_before_its_guard_and_after_a_flush(here: World) -> None:
    settled(here, document())
    web1 = here.guest("web1").use(f"{here.guest('web1').ip}/24", via=ROUTER)
    assert web1.pings(OUTSIDE)
    keeper = sh("pgrep -f nftables/keeper.py | head -1", check=False)
    assert keeper
    sh("nft delete table netdev kvmnet")
    web1.pings(OUTSIDE, timeout=1)
    assert web1.pings(OUTSIDE), "the keeper has loaded it again"
    assert here.drift() == []


@pytest.mark.parametrize("kind", ["private", "vepa"])
def test_the_kind_changes_live(here: World, kind: str) -> None:
    settled(here, document())
    ends = [here.guest(n).use(f"{here.guest(n).ip}/24", via=ROUTER) for n in ("web1", "web2")]
    assert ends[0].pings(ends[1].ip)
    planned = here.plan(document(f", macvtap: {kind}"))
    assert [type(s).__name__ for s in planned.steps] == ["Update", "Update"], "nothing is made anew"
    settled(here, document(f", macvtap: {kind}"))
    sh(f"ip -n {ends[0].netns} neigh flush all; ip -n {ends[1].netns} neigh flush all")
    assert not ends[0].pings(ends[1].ip, timeout=0.5) and ends[0].pings(OUTSIDE)
    here.apply(document())
    assert ends[0].pings(ends[1].ip)


def test_from_macvtap_to_bridge_and_back(here: World) -> None:
    before = snapshot()
    bridged = document().replace("mode: macvtap", "mode: bridge")
    for text in (document(), bridged, document(f", address: {PLACE}"), bridged, document()):
        settled(here, text)
        assert here.here.pings(ROUTER)
    here.destroy()
    unchanged(before)


def test_passthru_is_one_guest_with_the_whole_nic(here: World) -> None:
    sh("ip link add spare type veth peer name far; ip link set spare up; ip link set far up")
    wait_until(lambda: "LOWERLAYERDOWN" not in sh("ip link show spare") + sh("ip link show far"), 20)
    steady()
    before = snapshot()
    text = """
version: 1
uplinks: {own: {device: spare}}
networks: {whole: {mode: macvtap, macvtap: passthru, uplink: own}}
vms: {fw: {nics: [{network: whole, ip: 192.0.2.77}]}}
"""
    settled(here, text)
    assert here.guest("fw").mac in sh("ip link show spare")
    here.destroy()
    unchanged(before)


def killed_after(world: World, text: str, lines: int) -> int:
    """Apply *text* in a child that dies when that many lines of ip and tc have run."""
    left, run = [lines], linux.run_batch

    def some(batch: Sequence[Line], tool: str = "ip") -> None:
        take = list(batch)[:left[0]]
        run(take, tool)
        left[0] -= len(take)
        if left[0] <= 0:
            die()

    def work() -> None:
        linux.run_batch = macvtap.run_batch = some
        world.apply(text)

    return in_child(work)


def test_killed_at_any_line_and_recovered(here: World) -> None:
    """And at no moment is a macvtap up that has not its gate and its hook."""
    before = snapshot()
    text = document(f", address: {PLACE}")
    at = 0
    while True:
        at += 1
        code = killed_after(here, text, at)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        for name in ("kvt-web1-0", "kvt-web2-0"):
            if "UP" in sh(f"ip -o link show {name}", check=False).partition(">")[0]:
                assert "bytecode" in sh(f"tc filter show dev {name} egress")
                assert "goto guest" in sh(f"nft list chain netdev kvmnet egress_{name}")
        # The gateway is asked after a change of its device, so a timer may have undone it before us.
        assert here.host.recover().startswith(("rolled back", "nothing to recover")), at
        unchanged(before)
    assert at > 15
    assert here.drift() == []


def test_what_bears_our_name_is_no_ones_to_take_but_by_adopting(here: World) -> None:
    sh("ip link add link eth0 name kvt-web1-0 type macvtap mode bridge; ip link set kvt-web1-0 up")
    with pytest.raises(ConflictError, match="kvt-web1-0"):
        here.plan(document())
    here.apply(document(), adopt=True)
    assert here.drift() == []
    web1 = here.guest("web1").use(f"{here.guest('web1').ip}/24", via=ROUTER)
    assert web1.pings(OUTSIDE)


REFUSED = {
    "the MAC of somebody's macvlan": (
        lambda: sh("ip link add link eth0 name theirs address 02:00:00:00:00:88 type macvlan mode bridge"),
        'mac: "02:00:00:00:00:88"', "the MAC of theirs"),
    "a port of somebody's bridge": (
        lambda: sh("ip link add br9 type bridge; ip link set eth0 master br9"), "", "eth0 (is a port of|belongs to) br9"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_kernel_would_refuse_is_refused_before(here: World, why: str) -> None:
    make, nic, words = REFUSED[why]
    make()
    text = document(guests=GUESTS.replace("lan}]", f"lan, {nic}}}]", 1) if nic else GUESTS)
    before = snapshot()
    with pytest.raises((ConflictError, HostCannot), match=words):
        here.plan(text)
    unchanged(before)


def test_the_macs_of_the_uplink_and_of_a_guest_that_got_it_by_chance_are_refused(here: World) -> None:
    mac = json.loads(sh("ip -j link show eth0"))[0]["address"]
    declared = document(guests=f"\nvms: {{web1: {{nics: [{{network: lan, mac: \"{mac}\"}}]}}}}\n")
    with pytest.raises(SpecError) as wrong:
        here.plan(declared)
    assert wrong.value.problems[0].message == f"{mac} is the MAC of the host's eth0"
    planned = here.plan(document())
    given = next(a.mac for (vm, _, _), a in planned.allocations.items() if vm == "web1")
    sh(f"ip link set eth0 address {given}")
    with pytest.raises(ConflictError, match="web1/nic0 would have the MAC of eth0"):
        here.plan(document())


def test_passthru_does_not_take_a_nic_that_the_host_uses(here: World) -> None:
    with pytest.raises(ConflictError, match="takes eth0 away from the host"):
        here.plan(document(", macvtap: passthru", "\nvms: {web1: {nics: [{network: lan}]}}\n"))


DAMAGE = {
    "a macvtap deleted": "ip link del kvt-web1-0",
    "all macvtaps deleted": "ip link del kvt-web1-0; ip link del kvt-web2-0",
    "made anew by another hand": "ip link del kvt-web1-0; ip link add link eth0 name kvt-web1-0 type macvtap mode bridge; "
                                 "ip link set kvt-web1-0 addrgenmode none alias 'kvmnet nic web1/nic0' up",
    "the gate taken away": "tc qdisc del dev kvt-web1-0 clsact",
    "the gate opened": "tc filter replace dev kvt-web1-0 egress protocol all prio 1 handle 1 bpf da bytecode '1,6 0 0 4294967295'",
    "the hook taken away": "nft delete chain netdev kvmnet egress_kvt-web1-0",
    "the hook emptied": "nft flush chain netdev kvmnet egress_kvt-web1-0",
    "a rule of the guard gone": "nft flush chain netdev kvmnet arp_in",
    "an element of the guard gone": "nft flush set netdev kvmnet mac",
    "the table gone": "nft delete table netdev kvmnet",
    "down": "ip link set kvt-web1-0 down",
    "ARP on": "ip link set kvt-web1-0 arp on",
    "multicast filtered": "ip link set kvt-web1-0 allmulticast off",
    "another kind": "ip link set kvt-web1-0 type macvtap mode vepa",
    "another MAC": "ip link set kvt-web1-0 address 02:00:00:00:00:99",
    "the device file gone": "rm \"$KVMNET_RUN_DIR\"/taps/kvt-web1-0",
    "the device file for all": "chmod 666 \"$KVMNET_RUN_DIR\"/taps/kvt-web1-0",
    "the host's macvlan gone": "ip link del kvb-lan",
    "the host's macvlan down": "ip link set kvb-lan down",
    "everything flushed": "nft flush ruleset",
}


BY_THE_KEEPER = {"the table gone", "everything flushed"}
"""Damage that is repaired without us."""


def test_damage_is_seen_and_repaired(here: World) -> None:
    text = document(f", address: {PLACE}")
    settled(here, text)
    for what, command in DAMAGE.items():
        sh(command)
        if what in BY_THE_KEEPER:
            wait_until(lambda: here.drift() == [], 20)
        else:
            assert here.drift(), what
        settled(here, text)
    guest = here.guest("web1").use(f"{here.guest('web1').ip}/24", via=ROUTER)
    assert guest.pings(OUTSIDE) and guest.pings(PLACE)
