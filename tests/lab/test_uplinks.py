"""Bonds, VLANs and VLAN-aware bridges on a kernel that has them: made, changed, used, attacked, given back."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from kvmnet.drivers.linux import driver as linux
from kvmnet.drivers.linux.words import Line
from kvmnet.errors import ApplyFailed
from kvmnet.host.clock import wait_until
from kvmnet.reach import guard
from lib.fork import die, in_child
from lib.frames import BROADCAST, arp, ether, tag
from lib.netns import batch, inside, named_netns, sh
from lib.settled import lines, settled
from lib.tap import Tap
from lib.world import World, unchanged, world

pytestmark = pytest.mark.lab

PARTNER = "10.5.0.1"


@pytest.fixture
def host() -> Iterator[World]:
    """A host with two more NICs, e0 and e1, to a switch of its own; the host is 10.5.0.2 on e0."""
    with world() as made, named_netns(f"kvt-sw-{os.getpid()}") as switch:
        batch(*(f"link add e{i} type veth peer name f{i} netns {switch}" for i in (0, 1)), *(f"link set e{i} up" for i in (0, 1)),
              "addr add 10.5.0.2/24 dev e0", "route add 10.77.0.0/16 via 10.5.0.1 dev e0")
        batch("link add sw0 type bridge vlan_filtering 1", "link set sw0 up", f"addr add {PARTNER}/24 dev sw0",
              *(f"link set f{i} master sw0 up" for i in (0, 1)),
              *(line for vid in (100, 200) for line in (f"link add link sw0 name v{vid} type vlan id {vid}",
                                                        f"addr add 10.{vid}.0.1/24 dev v{vid}", f"link set v{vid} up")), netns=switch)
        batch(*(f"vlan add dev {port} vid {vid}" + (" self" if port == "sw0" else "") for vid in (100, 200) for port in ("f0", "f1", "sw0")), netns=switch, tool="bridge")
        made.switch = switch  # type: ignore[attr-defined]
        yield made


def document(uplinks: str, networks: str = "{}", vms: str = "{}") -> str:
    return f"version: 1\nuplinks: {uplinks}\nnetworks: {networks}\nvms: {vms}\n"


def test_a_bond_is_made_changed_and_given_back(host: World) -> None:
    before = settled()
    lines(host, document("{wan: {members: [e0, e1], device: bond0, options: {miimon: 50, peer_notify: 2}}}"))
    assert "10.5.0.2/24" in sh("ip addr show dev bond0") and "10.5.0.2" not in sh("ip addr show dev e0")
    assert "via 10.5.0.1 dev bond0" in sh("ip route")
    assert host.here.pings(PARTNER)
    sh(f"ip -n {host.switch} link set f0 down")
    wait_until(lambda: "active_slave e1" in sh("ip -d link show bond0"), 20)
    assert host.here.pings(PARTNER)
    sh(f"ip -n {host.switch} link set f0 up")
    lines(host, document("{wan: {members: [e0, e1], device: bond0, mtu: 1400, options: {primary: e1, miimon: 100}}}"))
    shown = sh("ip -d link show bond0")
    assert "primary e1" in shown and "miimon 100" in shown and "mtu 1400" in shown and "mtu 1400" in sh("ip link show e0")
    lines(host, document(
        "{wan: {members: [e0, e1], device: bond0, options: {arp: {targets: [10.5.0.1], interval: 200}}}}"))
    assert "arp_interval 200" in sh("ip -d link show bond0")
    lines(host, document("{wan: {members: [e1], device: bond0, bond: 802.3ad, options: {lacp_rate: fast}}}"))
    shown = sh("ip -d link show bond0")
    assert "mode 802.3ad" in shown and "lacp_rate fast" in shown and "master" not in sh("ip link show e0")
    host.destroy()
    unchanged(before, settled)


def test_every_other_mode_is_made(host: World) -> None:
    """Each by changing the one before. active-backup and 802.3ad are made above, and used in test_failover.py."""
    for mode in ("balance-rr", "balance-xor", "broadcast", "balance-tlb", "balance-alb"):
        host.apply(document(f"{{wan: {{members: [e0, e1], bond: {mode}, device: bond0}}}}"))
        assert f"mode {mode}" in sh("ip -d link show bond0")
    assert host.drift() == []


def test_a_bridge_on_a_vlan_on_a_bond(host: World) -> None:
    before = settled()
    lines(host, document(
        "{wan: {members: [e0, e1], device: bond0}, hundred: {vlan: 100, on: wan, addresses: [10.100.0.2/24], routes: "
        "[{to: 10.99.0.0/16, via: 10.100.0.1}]}, q: {vlan: 7, on: two}, two: {vlan: 200, on: wan, protocol: 802.1ad}}",
        "{lan: {mode: bridge, uplink: hundred, subnet: 10.100.0.0/24}}", "{a: {nics: [{network: lan, ip: 10.100.0.9}]}}"))
    assert "10.100.0.2/24" in sh("ip addr show dev kvb-lan") and "via 10.100.0.1 dev kvb-lan" in sh("ip route")
    assert "vlan protocol 802.1Q id 7" in sh("ip -d link show kvu-q")
    assert host.here.pings("10.100.0.1") and host.here.pings(PARTNER)
    guest = host.guest("a").use("10.100.0.9/24")
    wait_until(lambda: guest.pings("10.100.0.1"), 20)
    host.destroy()
    unchanged(before, settled)


SHARED = document(
    "{wan: {members: [e0, e1], device: bond0}}",
    "{plain: {mode: bridge, uplink: wan, subnet: 10.5.0.0/24}, one: {mode: bridge, uplink: wan, vlan: 100, subnet: "
    "10.100.0.0/24}, two: {mode: bridge, uplink: wan, vlan: 200, subnet: 10.200.0.0/24}}",
    "{p: {nics: [{network: plain, ip: 10.5.0.9, mac: '52:54:00:00:05:09'}]}, "
    "a: {nics: [{network: one, ip: 10.100.0.9, mac: '52:54:00:00:01:09'}]}, "
    "b: {nics: [{network: two, ip: 10.200.0.9, mac: '52:54:00:00:02:09'}]}, "
    "t: {nics: [{network: one, ip: 10.100.0.8, mac: '52:54:00:00:01:08', trunk: [200]}]}}")
MAC = {"p": "52:54:00:00:05:09", "a": "52:54:00:00:01:09", "b": "52:54:00:00:02:09", "t": "52:54:00:00:01:08"}


def test_networks_of_one_bridge_do_not_reach_each_other(host: World) -> None:
    before = settled()
    lines(host, SHARED)
    assert "100 PVID Egress Untagged" in sh("bridge vlan show dev kvt-a-0")
    assert host.here.pings(PARTNER), "the host's own untagged traffic goes on"
    taps = {vm: Tap(f"kvt-{vm}-0") for vm in MAC}
    with inside(host.switch):
        outside = Tap("tap-out")
    sh(f"ip -n {host.switch} link set tap-out up master sw0; bridge -n {host.switch} vlan add dev tap-out vid 100-200")
    wait_until(lambda: sh("bridge link").count("state forwarding") >= 5, 20)

    def arrives(sender: str, frame: bytes, nonce: bytes) -> set[str]:
        """Who gets a broadcast."""
        for tap in (*taps.values(), outside):
            tap.forget()
        taps[sender].send(frame)
        with suppress(TimeoutError):
            wait_until(lambda: any(t.got(nonce) for n, t in taps.items() if n != sender) or outside.got(nonce), 0.5)
        host.here.pings("127.0.0.1")
        return {n for n, t in (*taps.items(), ("outside", outside)) if n != sender and t.got(nonce)}

    def ask(vm: str, ip: str, nonce: bytes) -> bytes:
        return ether(BROADCAST, MAC[vm], 0x0806, arp(1, (MAC[vm], ip), ("00:00:00:00:00:00", ip)) + nonce)

    own = {"p": "10.5.0.9", "a": "10.100.0.9", "b": "10.200.0.9", "t": "10.100.0.8"}
    assert arrives("a", ask("a", own["a"], b"control-a-here"), b"control-a-here") == {"t", "outside"}, "the control passes"
    assert arrives("b", ask("b", own["b"], b"control-b-here"), b"control-b-here") == {"t", "outside"}, "t is on its trunk"
    assert arrives("p", ask("p", own["p"], b"control-p-here"), b"control-p-here") == {"outside"}
    tagged = tag(200, ask("t", own["t"], b"trunk-t-tagged"))
    assert arrives("t", tagged, b"trunk-t-tagged") == {"b", "outside"}, "a declared tag passes"
    leaks = 0
    for sender, outer in (("a", 200), ("a", 1), ("b", 100), ("p", 100), ("p", 200), ("t", 1), ("a", 100)):
        for number, wrap in enumerate((lambda f, o=outer: tag(o, f), lambda f, o=outer: tag(1, tag(o, f)),
                                       lambda f, o=outer: tag(o, f, 0x88A8), lambda f, o=outer: tag(0, tag(o, f)),
                                       lambda f, o=outer: tag(100, tag(o, f)))):
            nonce = f"hop-{sender}-{outer}-{number}".encode()
            leaks += len(arrives(sender, wrap(ask(sender, own[sender], nonce)), nonce))
    assert leaks == 0
    for tap in (*taps.values(), outside):
        tap.close()
    host.destroy()
    unchanged(before, settled)


def test_the_bridge_itself_keeps_them_apart_without_the_guard(host: World) -> None:
    """The same frames with the guard open: a tag that the port is not a member of is dropped by the bridge."""
    lines(host, SHARED.replace("ip: 10.100.0.9,", "ip: none, ip6: none, guard: off,"))
    with Tap("kvt-a-0") as a, Tap("kvt-b-0") as b, Tap("kvt-t-0") as t:
        wait_until(lambda: sh("bridge link").count("state forwarding") >= 4, 20)
        frame = ether(BROADCAST, MAC["a"], 0x0806, b"\0" * 28 + b"plain-frame")
        a.send(frame)
        t.wait(b"plain-frame")
        for nonce, hop in ((b"hop-single", tag(200, frame)), (b"hop-double", tag(100, tag(200, frame))),
                           (b"hop-native", tag(1, tag(200, frame)))):
            a.send(hop.replace(b"plain-frame", nonce))
        a.send(frame.replace(b"plain-frame", b"last-frames"))
        t.wait(b"last-frames")
        assert b.got(b"hop-") == 0 and b.got(b"plain-frame") == 0
        assert t.got(b"hop-single") == 0


def killed_after(world: World, text: str, lines: int) -> int:
    """Apply *text* in a child that dies when that many lines of ip and bridge have run."""
    left = [lines]

    def some(batch: Sequence[Line], tool: str = "ip") -> None:
        take = list(batch)[:left[0]]
        linux_run(take, tool)
        left[0] -= len(take)
        if left[0] <= 0:
            die()

    linux_run = linux.run_batch

    def work() -> None:
        linux.run_batch = some
        world.apply(text)

    return in_child(work)


def test_killed_at_any_line_and_recovered(host: World) -> None:
    before = settled()
    for at in (6, 14, 22):  # by the sixth line the keeper, which starts beside, is there
        assert killed_after(host, SHARED, at) == -signal.SIGKILL, at
        assert host.host.recover().startswith("rolled back"), at
        unchanged(before, settled)


def gone(host: World, text: str) -> str:
    """What is said when *text* is taken back by the guard; everything is as it was."""
    before = settled()
    with pytest.raises(ApplyFailed) as failed:
        host.host.apply(host.plan(text), within=3)
    unchanged(before, settled)
    return str(failed.value)


def test_a_bond_or_vlan_that_leads_nowhere_is_taken_back(host: World) -> None:
    """Two ports of the switch that are no bond there, a VLAN that it does not carry, and then one that it does."""
    reach = f"reach: [{PARTNER}]\n"
    sh(f"ip neigh replace {PARTNER} lladdr {sh(f'ip netns exec {host.switch} cat /sys/class/net/sw0/address').strip()} "
       "dev e0 nud permanent")
    told = gone(host, document("{wan: {members: [e0, e1], device: bond0, bond: 802.3ad, options: {min_links: 2}}}") + reach)
    assert f"{PARTNER} (named by reach): no answer to ARP" in told and "bond0 has no carrier" in told
    good = document("{wan: {members: [e0, e1], device: bond0}}")
    assert f"{PARTNER} (named by reach)" in host.host.apply(host.plan(good + reach)).notes[0]
    vlan = ("{wan: {members: [e0, e1], device: bond0}, v: {vlan: VID, on: wan, addresses: [10.VID.0.2/24], "
            "routes: [{to: 10.5.0.1/32, via: 10.VID.0.1}]}}")
    sh(f"ip netns exec {host.switch} sysctl -qw net.ipv4.ip_forward=1")
    assert "no answer to" in gone(host, document(vlan.replace("VID", "150")) + reach), "150 is not on the trunk"
    lines(host, document(vlan.replace("VID", "100")) + reach)


def test_killed_while_the_bond_is_asked_for_and_back_by_itself(host: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the next command nor an operator is needed: the undo process sees that its writer is dead."""
    before = settled()
    asked = guard.ask_all

    def work() -> None:
        times: list[int] = []

        def ask(questions: object, seconds: float) -> None:
            if times:
                assert "master bond0" in sh("ip link show e0"), "it dies with the change made"
                die()
            times.append(1)
            asked(questions, seconds)  # type: ignore[arg-type]

        monkeypatch.setattr(guard, "ask_all", ask)
        host.host.apply(host.plan(SHARED + f"reach: [{PARTNER}]\n"))

    assert in_child(work) == -signal.SIGKILL
    wait_until(lambda: not host.paths.journal.exists(), 20)
    unchanged(before, settled)
