"""Groups on Debian's kernel: bridge conntrack instead of bridge netfilter, the same frames."""
from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import count
from time import monotonic

import pytest

from kvmnet.drivers.nftables.conntrack import cut, flows
from kvmnet.drivers.nftables.standing import transaction
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from kvmnet.status import status
from lib.frames import TCP, tcp
from lib.netns import sh
from lib.nft import Nft
from lib.verdicts import segment
from net import test_groups_attacks as attacks
from net import test_groups_frames as frames
from net.test_groups_attacks import ATTACKS, GUARDED, UNJUDGED, Ends, Yard, ends, everything, past, through  # noqa: F401 - the fixture
from net.test_groups_frames import Wire, wire  # noqa: F401 - the fixture

pytestmark = pytest.mark.lab


def test_the_bridges_own_conntrack_does_it(wire: Wire) -> None:  # noqa: F811
    assert "ct state established,related" in sh("nft list chain bridge kvmnet forward")
    assert "nf_call_iptables 0" in sh("ip -d link show kvb-lan")


test_what_a_rule_allows_passes = frames.test_what_a_rule_allows_passes_and_so_does_its_reply
test_nothing_else_does = frames.test_nothing_else_does_and_without_groups_all_of_it_does
test_a_refusal_is_answered = frames.test_a_refusal_is_answered_in_the_name_of_the_receiver
test_what_a_member_may_not_send_is_answered = frames.test_what_a_member_may_not_send_is_answered_as_if_by_the_receiver
test_a_member_that_leaves = frames.test_a_member_that_leaves_loses_its_flows_and_nobody_else_does


# -- attacks, where flows are few, rules change and everything is written down ---------------------

TOLD = attacks.DOCUMENT.replace("egress: [{tcp: 21}]}", "egress: [{tcp: 21}], log: true}").replace(
    "shut: {ingress: [{tcp: 21}]}", "shut: {ingress: [{tcp: 21, log: true}]}")
CHANGED = TOLD.replace("[{tcp: 21, log: true}]", "[{tcp: 21, log: true}, {icmp: true, from: set:near}]").replace(
    "network: one, ip: 10.0.0.1}", "network: one, ip: 10.0.0.1, groups: [shut]}") + """\
  more: {ingress: [{udp: 777}], egress: []}
address_sets: {near: [10.1.0.0/24]}
"""
FLOWS, REFUSED, CHANGES = 12, 300, 100


def outside(command: str) -> str:
    """A command in the first network namespace: these settings are of the whole kernel."""
    return sh(f"nsenter --net=/proc/1/ns/net {command}")


@pytest.fixture(scope="module")
def told(wire: Wire) -> Iterator[Yard]:  # noqa: F811
    """Groups that log, in a kernel that logs what is in this namespace, and the yard."""
    most, log = (outside(f"sysctl -n net.netfilter.{name}").strip() for name in ("nf_conntrack_max", "nf_log_all_netns"))
    outside("sysctl -qw net.netfilter.nf_log_all_netns=1")
    with ExitStack() as stack:
        yield Yard.laid(wire, TOLD, stack)
    outside(f"sysctl -qw net.netfilter.nf_conntrack_max={most} net.netfilter.nf_log_all_netns={log}")


def passes(wire: Wire, source: str, target: str, ports: tuple[int, int], flags: int) -> bool:  # noqa: F811
    frame = wire.packet(source, target, TCP, lambda x, y: tcp(x, y, *ports, flags))
    return wire.arrives(source, target, frame, nonce=frame[26:])


def connected(wire: Wire, ports: Sequence[int]) -> None:  # noqa: F811
    """Connections of a to port 21 of b that nothing evicts, in one go."""
    for source, target, flags in (("a", "b", 2), ("b", "a", 18), ("a", "b", 16)):
        for port in ports:
            between = (port, 21) if source == "a" else (21, port)
            wire.taps[source].send(wire.packet(source, target, TCP, lambda x, y, p=between, f=flags: tcp(x, y, *p, f)))  # type: ignore[misc]
        wire.settle(source, target)


def test_rules_count_what_they_let_begin_and_tell_it_at_most_so_often(wire: Wire, told: Yard) -> None:  # noqa: F811
    wire.settle("b", "a")    # what is for a MAC that the bridge does not know comes by once for every port
    connected(wire, range(3000, 3000 + FLOWS))
    began = monotonic()
    for number in range(REFUSED):
        wire.taps["a"].send(wire.udp("a", "b", 6000 + number, 7))
    wire.settle("a", "b")
    most = 20 + 10 * (monotonic() - began + 1)
    seen = status(wire.made.host)
    assert seen is not None
    rules = {(r.group, r.direction, r.position): r.packets for r in seen.rules}
    assert rules["narrow", "egress", 0] == rules["shut", "ingress", 0] == FLOWS, "of each connection the first packet"
    assert next(n.refused for n in seen.nics if n.guest == "a")["sent: no rule of its groups allows it"] == REFUSED
    log = wait_until(lambda: said() if sum("refused" in line for line in said()) >= 20 else [], 20)
    assert sum("kvmnet shut ingress 0: " in line for line in log) == FLOWS
    assert sum("kvmnet refused from a guest: " in line for line in said()) <= most


def said() -> list[str]:
    return re.findall(r"kvmnet (?:shut ingress|refused)[^\n]*", sh("dmesg"))


def test_a_hundred_changes_lose_nothing_and_leak_nothing(wire: Wire, told: Yard) -> None:  # noqa: F811
    """Rules, a group, a member and an address set come and go, while a sends what is refused and e, each time anew, what is allowed."""
    there, back = scripts(wire)
    refused, asked, number, nonce = os.urandom(12), os.urandom(12), count(), os.urandom(12)
    done = threading.Event()
    nft = Nft()
    with closing(nft):
        def change() -> None:
            try:
                for _ in range(CHANGES // 2):
                    for script in (*there, *back):
                        turns.append(nft.refused(script))
            finally:
                done.set()
        turns: list[str] = []
        changing = threading.Thread(target=change)
        wire.taps["b"].forget()
        changing.start()
        sent = 0
        while not done.is_set():
            sent = next(number)
            wire.taps["a"].send(wire.udp("a", "b", 1024 + sent % 60000, 777, refused))
            wire.taps["e"].send(wire.packet("e", "b", TCP, lambda x, y, n=sent: segment(x, y, 1024 + n % 60000, 21, 2, asked)))  # type: ignore[misc]
            if not sent % 50:
                wire.taps["b"].drain()
        changing.join()
    wire.settle("e", "b")
    assert len(turns) == CHANGES // 2 * len((*there, *back)) and not any(turns) and sent > CHANGES
    assert wire.taps["b"].got(asked) == sent + 1 and wire.taps["b"].got(refused) == 0
    assert wire.made.drift() == []
    sh("nft insert rule bridge kvmnet forward accept")
    assert wire.arrives("a", "b", wire.udp("a", "b", 1023, 777, nonce), nonce=nonce), "the flood would be seen"


def scripts(wire: Wire) -> tuple[list[str], list[str]]:  # noqa: F811
    """What the driver tells nft to come to the changed document, and back."""
    driver = wire.made.host.engine.dispatch.by_kind["nic-groups"]
    wanted = [of_groups(wire, text) for text in (TOLD, CHANGED)]
    first, standing = transaction(driver.standing, plan(wanted[0], wanted[1], wanted[0].keys()))  # type: ignore[attr-defined]
    second, _ = transaction(standing, plan(wanted[1], wanted[0], wanted[1].keys()))
    return list(first), list(second)


def of_groups(wire: Wire, text: str) -> dict[Key, Resource]:  # noqa: F811
    compiled = wire.made.plan(text).compiled
    assert compiled is not None
    return {k: r for k, r in compiled.wanted.items() if k.kind in ("nft-table", "nic-groups", "address-set") and isinstance(r, Resource)}


def test_nothing_gets_around_the_groups_and_a_full_table_opens_nothing(wire: Wire, told: Yard, ends: Ends) -> None:  # noqa: F811
    """Twelve connections that nothing evicts where six have room: no flow begins at all, those that are there go on, and the kernel counts
    what it dropped."""
    wire.use(TOLD)
    inside = {where: end for where, end in ends.items() if where != "outside"}
    assert through(wire, ends, ATTACKS | GUARDED) == through(told.wire, told.ends, ATTACKS | UNJUDGED) == set()
    attacks.overlaps(wire, ends["a guest"][0])
    attacks.announced(wire, ends["a guest"][0])
    cut(lambda flow: True)
    connected(wire, range(4000, 4000 + FLOWS))
    before = dropped()
    outside(f"sysctl -qw net.netfilter.nf_conntrack_max={FLOWS // 2}")
    assert not passes(wire, "a", "b", (5000, 21), 2), "it is allowed, and has no room"
    assert through(wire, inside, ATTACKS) == set()
    assert dropped() > before
    assert passes(wire, "b", "a", (21, 4001), 16) and passes(wire, "a", "b", (4001, 21), 16)
    assert sum(f.port == 21 for f in flows()) == FLOWS
    outside("sysctl -qw net.netfilter.nf_conntrack_max=65536")
    assert passes(wire, "a", "b", (5001, 21), 2)
    wire.use(attacks.UNGUARDED)
    wanted = everything(ends) | past(GUARDED)
    assert through(wire, ends, ATTACKS | GUARDED, wanted) >= wanted, "the control"
    assert through(told.wire, told.ends, ATTACKS | UNJUDGED, past(ATTACKS | UNJUDGED)) == past(ATTACKS | UNJUDGED)


def dropped() -> int:
    """Packets that found no room, of this namespace."""
    rows = sh("cat /proc/net/stat/nf_conntrack").splitlines()
    column = rows[0].split().index("drop")
    return sum(int(row.split()[column], 16) for row in rows[1:])
