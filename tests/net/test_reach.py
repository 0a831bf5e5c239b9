"""The reachability guard: a change that cuts the host off is taken back, and nothing remembered deceives it."""
from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from kvmnet.api import Host
from kvmnet.engine.transaction import Outcome
from kvmnet.errors import ApplyFailed, ConflictError
from kvmnet.host.clock import wait_until
from kvmnet.reach import guard
from kvmnet.reach.session import peer
from lib.fork import die, in_child
from lib.netns import inside, sh
from lib.world import OUTSIDE, OUTSIDE6, ROUTER, ROUTER6, UPLINK, World, snapshot, unchanged, world

pytestmark = pytest.mark.net

BRIDGED = """
version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24}}
"""
WITHIN = 1.0
"""Seconds that targets get in these tests."""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        wait_until(lambda: "fe80" in sh("ip -6 addr show dev eth0 -tentative") and "fe80" in
                   made.outside.run("ip -6 addr show dev segment -tentative"), 20)
        yield made


def silence(net: World) -> None:
    """The far end drops everything that comes in, with its carrier on."""
    net.outside.run("nft 'add table netdev t; add chain netdev t c "
                    "{ type filter hook ingress device segment priority 0; policy drop; }'")


def cut_when(net: World, point: str, cut: Callable[[], object]) -> None:
    """Have *cut* happen when a change passes *point*."""
    net.host.engine.probe = lambda p: cut() and None if p == point else None


def apply(net: World, text: str, **how: object) -> object:
    return net.host.apply(net.plan(text), within=WITHIN, **how)  # type: ignore[arg-type]


def refused(net: World, text: str, **how: object) -> str:
    """What is said when *text* is taken back; the host is as it was."""
    before = snapshot()
    with pytest.raises(ApplyFailed) as failed:
        apply(net, text, **how)
    unchanged(before)
    assert "rolled back: the host is as it was" in str(failed.value)
    return str(failed.value)


def test_a_good_change_passes_and_says_who_answered(net: World) -> None:
    result = apply(net, BRIDGED)
    assert result.outcome is Outcome.CONFIRMED
    assert result.notes == (f"answered before and after: {ROUTER} (gateway), {ROUTER6} (gateway)",)
    assert not net.paths.journal.exists()
    net.destroy()


def test_a_far_end_that_falls_silent_is_noticed_in_spite_of_a_static_neighbour(net: World) -> None:
    far = json.loads(net.outside.run("ip -j link show segment"))[0]["address"]
    for address in (ROUTER, ROUTER6):
        sh(f"ip neigh replace {address} lladdr {far} dev {UPLINK} nud permanent")
    cut_when(net, "verified", lambda: silence(net))
    told = refused(net, "version: 1\nuplinks: {wan: {device: eth0, mtu: 1400}}\n")
    assert "PERMANENT" in sh(f"ip neigh show {ROUTER}"), "the trap still lies there"
    assert f"{ROUTER} (gateway): no answer to ARP and echo and packets of 1400 bytes" in told
    assert f"{ROUTER6} (gateway): no answer to ND and echo" in told
    assert f"{ROUTER} does not answer now either" in told


def test_only_the_guard_takes_it_back(net: World) -> None:
    """The control: the same change and the same cut without the guard stay."""
    cut_when(net, "verified", lambda: silence(net))
    assert apply(net, "version: 1\nuplinks: {wan: {device: eth0, mtu: 1400}}\n", reach=("none",)).outcome is Outcome.CONFIRMED


def test_a_bridge_that_takes_the_uplink_and_leads_nowhere(net: World) -> None:
    cut_when(net, "verified", lambda: sh("ip link set eth0 nomaster"))
    told = refused(net, BRIDGED)
    assert "by kvb-lan" in told and "does not answer now either" not in told


@pytest.mark.parametrize(("uplink", "word"), [
    ("{device: eth0, gateway: 192.0.2.77}", "192.0.2.77 (gateway): no answer to ARP"),
    ("{device: eth0, gateway6: '2001:db8:1::77'}", "2001:db8:1::77 (gateway): no answer to ND"),
    ("{device: eth0, mtu: 2000}", f"{ROUTER} (gateway): no answer to packets of 2000 bytes"),
    ("{device: eth0, routes: [{to: 203.0.113.0/24, via: 192.0.2.77}]}", f"{OUTSIDE} (named by reach): no answer to echo"),
], ids=["gateway", "gateway6", "mtu", "route"])
def test_documents_that_would_cut_the_host_off(net: World, uplink: str, word: str) -> None:
    told = refused(net, f"version: 1\nuplinks: {{wan: {uplink}}}\nreach: [{OUTSIDE}]\n")
    assert word in told and "does not answer now either" not in told


def test_who_is_silent_before_is_not_required_after(net: World) -> None:
    silence(net)
    planned = net.plan(BRIDGED)
    notes = net.host.guarded(planned)
    assert any(f"{ROUTER} (gateway) does not answer before the change" in n for n in notes)
    assert any("nobody can tell" in n for n in notes)
    assert apply(net, BRIDGED).outcome is Outcome.CONFIRMED


def test_changes_that_leave_the_way_out_alone_are_not_delayed(net: World) -> None:
    silence(net)
    assert net.host.guarded(net.plan("""
version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: nat, uplink: wan, subnet: 10.0.0.0/24}}
vms: {a: {nics: [{network: lan}]}}
""")) == ()


def test_named_addresses_are_asked_through_the_routes(net: World) -> None:
    net.outside.run("sysctl -qw net.ipv4.icmp_echo_ignore_all=1")
    result = apply(net, BRIDGED + f"reach: ['{OUTSIDE6}']\n", reach=(OUTSIDE,))
    assert f"{OUTSIDE6} (named by reach)" in result.notes[0]
    assert f"{OUTSIDE} (named by reach) does not answer before the change" in result.notes[1]


def test_gateways_by_link_local_address(net: World) -> None:
    shown = json.loads(net.outside.run("ip -j -6 addr show dev segment scope link"))
    local = next(a["local"] for link in shown for a in link.get("addr_info", ()) if "local" in a)
    sh(f"ip -6 route replace default via {local} dev eth0; ip route del default")
    assert f"{local} (gateway)" in apply(net, BRIDGED).notes[0]
    net.destroy()
    cut_when(net, "verified", lambda: silence(net))
    assert f"{local} (gateway): no answer to ND" in refused(net, BRIDGED)


@pytest.mark.parametrize("confirm", [None, 60.0])
def test_killed_while_it_asks_the_host_comes_back_by_itself(net: World, confirm: float | None,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()
    asked = guard.ask_all

    def work() -> None:
        times: list[int] = []

        def ask(questions: object, seconds: float) -> None:
            if times:
                assert "master kvb-lan" in sh("ip link show eth0"), "it dies with the change made"
                die()
            times.append(1)
            asked(questions, seconds)  # type: ignore[arg-type]

        monkeypatch.setattr(guard, "ask_all", ask)
        apply(net, BRIDGED, confirm=confirm)

    assert in_child(work) == -signal.SIGKILL
    wait_until(lambda: not net.paths.journal.exists(), 20)
    unchanged(before)
    assert Host(net.paths).recover().startswith("nothing to recover")


def test_with_confirm_it_is_taken_back_at_once(net: World) -> None:
    cut_when(net, "verified", lambda: silence(net))
    assert "no answer" in refused(net, BRIDGED, confirm=60)
    assert net.host.unconfirmed() is None


@pytest.fixture
def session(net: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A TCP connection from the router to the host, as sshd would have it."""
    listener = socket.create_server(("192.0.2.2", 0))
    with inside(net.outside.netns):
        far = socket.create_connection(("192.0.2.2", listener.getsockname()[1]), 5)
    near, (address, port) = listener.accept()
    monkeypatch.setenv("SSH_CONNECTION", f"{address} {port} 192.0.2.2 {near.getsockname()[1]}")
    yield near
    for s in (far, near, listener):
        with suppress(OSError):
            s.close()


def test_the_session_over_what_is_changed_needs_somebody_who_answers(net: World, session: socket.socket) -> None:
    assert peer() == ROUTER
    sh("ip route del default; ip -6 route del default")
    assert f"{ROUTER} (this session comes from it)" in net.host.guarded(net.plan(BRIDGED))[0]
    silence(net)
    with pytest.raises(ConflictError, match=rf"this session comes from {ROUTER}") as refusal:
        apply(net, BRIDGED)
    assert "--confirm" in refusal.value.hint
    assert apply(net, BRIDGED, confirm=60).outcome is Outcome.UNCONFIRMED
    net.host.engine.revert()
    session.close()
    assert peer() == "", "a stale word of a session that is gone"


def test_the_command_line(net: World) -> None:
    file = net.write(BRIDGED)
    planned = net.cli("plan", file, "--reach", OUTSIDE)
    assert f"must answer within 10 s after the change, or everything goes back: {ROUTER} (gateway)" in planned.stdout
    assert f"{OUTSIDE} (named by reach)" in planned.stdout
    assert "write an address, or none" in net.cli("plan", file, "--reach", "x").stderr
    done = net.cli("apply", "--yes", "--json", "--reach", OUTSIDE, file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["notes"][0].startswith("answered before and after: ")
    wrong = net.write("version: 1\nuplinks: {wan: {device: eth0, gateway: 192.0.2.77}}\n", "wrong.yaml")
    failed = net.cli("apply", "--yes", "--reach-within", "1", wrong)
    assert failed.returncode == 13 and "192.0.2.77 (gateway): no answer to ARP" in failed.stderr and "Traceback" not in failed.stderr
