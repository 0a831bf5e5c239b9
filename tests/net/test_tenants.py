"""Tenants on one shared network, and isolation that the host's own router does not undo."""
from __future__ import annotations

import json
import os
import re
import select
import socket
import time
from collections.abc import Iterator

import pytest

from kvmnet.check.model import Verdict
from lib.frames import UDP, ether, ip4, udp
from lib.netns import inside, sh
from lib.world import NEVER, OUTSIDE, SOON, World, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
networks:
  shared: {mode: isolated, subnet: 10.0.0.0/24, subnet6: "fd00::/64"}
vms:
  a1: {tenant: a, nics: [{network: shared}]}
  a2: {tenant: a, nics: [{network: shared, groups: [http]}]}
  b1: {tenant: b, nics: [{network: shared, groups: [http]}]}
  b2: {tenant: b, nics: [{network: shared}]}
groups:
  http: {ingress: [{tcp: 80}]}
tenants:
  a: {networks: [shared]}
  b: {networks: [shared], allow: [{from: tenant:a, to: group:http, tcp: [80, 443]}]}
"""
OPEN = re.sub(r"tenants:\n.*", "", re.sub(r"tenant: \w+, |, groups: \[http\]", "", DOCUMENT), flags=re.S)
OPEN = OPEN.replace("groups:\n  http: {ingress: [{tcp: 80}]}\n", "")
ALLOWED = [("a1", "a2", "tcp 80"), ("a1", "b1", "tcp 80"), ("b1", "b2", "tcp 443"), ("b2", "b1", "tcp 80"), ("host", "b2", "tcp 443"),
           ("a1", "b1", "tcp6 80")]
REFUSED = [("b1", "a1", "tcp 80"), ("b1", "a1", "tcp6 80"), ("a1", "b2", "tcp 80"), ("a1", "b1", "tcp 443"), ("a1", "a2", "tcp 443"),
           ("b2", "a2", "tcp 80"), ("a2", "b1", "udp 80")]


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.apply(DOCUMENT)
        for name in ("a1", "a2", "b1", "b2"):
            guest = made.guest(name)
            guest.use(f"{guest.ip}/24", f"{guest.ip6}/64")
            for port in (80, 443):
                made.service(guest, name, port)
        yield made


def asks(made: World, source: str, target: str, what: str, timeout: float = NEVER) -> bool:
    word, _, port = what.partition(" ")
    guest = made.guest(target)
    place = made.here if source == "host" else made.guest(source)
    ask = place.udp if word == "udp" else place.tcp
    return bool(ask(guest.ip6 if word.endswith("6") else guest.ip, int(port), timeout))


def test_tenants_are_closed_to_each_other_but_for_what_is_allowed(shared: World) -> None:
    assert [case for case in ALLOWED if not asks(shared, *case, timeout=SOON)] == []
    assert [case for case in REFUSED if asks(shared, *case)] == []
    shared.apply(OPEN)
    try:
        assert [case for case in REFUSED if not asks(shared, *case, timeout=SOON)] == []
    finally:
        shared.apply(DOCUMENT)
    assert shared.drift() == []


def through_the_router(made: World, bridge: str, timeout: float, name: str = "one", other: str = "two") -> bool:
    """Whether a datagram that ``one`` sends to the host's MAC comes to ``two``."""
    a, b, nonce = made.guest(name), made.guest(other), os.urandom(12)
    router = json.loads(sh(f"ip -j link show {bridge}"))[0]["address"]
    with inside(b.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
        seen.bind(("eth0", 0))
        a.outer.send(ether(router, a.mac, 0x0800, ip4(a.ip, b.ip, UDP, udp(a.ip, b.ip, 5, 777, nonce))))
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if select.select([seen], [], [], left)[0] and nonce in seen.recv(2000):
                return True
    return False


ISOLATED = """
version: 1
networks:
  cell: {mode: isolated, subnet: 10.1.0.0/24, isolated_ports: true}
vms:
  one: {nics: [{network: cell}]}
  two: {nics: [{network: cell}]}
"""
ADOPTED = """
version: 1
networks:
  office: {mode: bridge, bridge: br0, subnet: 10.1.0.0/24}
vms:
  one: {nics: [{network: office, ip: 10.1.0.2, isolated: true}]}
  two: {nics: [{network: office, ip: 10.1.0.3, isolated: true}]}
"""


@pytest.mark.parametrize(("document", "bridge"), [(ISOLATED, "kvb-cell"), (ADOPTED, "br0")])
def test_isolated_guests_do_not_meet_at_the_hosts_router(document: str, bridge: str) -> None:
    with world() as made:
        sh("ip link add br0 address 02:00:00:00:00:99 type bridge mcast_snooping 0; ip addr add 10.1.0.1/24 dev br0; "
           "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0; ip link set br0 up" if bridge == "br0" else
           "sysctl -qw net.ipv4.ip_forward=1")
        made.apply(document)
        for name in ("one", "two"):
            guest = made.guest(name)
            guest.use(f"{guest.ip}/24")
        assert not made.guest("one").pings(made.guest("two").ip, timeout=NEVER)
        assert made.guest("one").pings("10.1.0.1")
        assert made.guest("two").pings("10.1.0.1")
        assert not through_the_router(made, bridge, NEVER)
        if bridge == "br0":
            made.apply(document.replace(", isolated: true", ""))
            assert through_the_router(made, bridge, SOON)


CHECKED = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24}
  shared: {mode: isolated, subnet: 10.0.0.0/24}
vms:
  web: {tenant: a, nics: [{network: lan, groups: [web]}]}
  db: {nics: [{network: lan, groups: [shut]}]}
  b1: {tenant: b, nics: [{network: shared}]}
  a1: {tenant: a, nics: [{network: shared, groups: [web]}]}
groups:
  web: {ingress: [{tcp: 80}], refuse: reject}
  shut: {egress: []}
tenants: {a: {networks: [shared]}, b: {networks: [shared]}}
"""


def test_check_takes_no_rule_for_a_fault() -> None:
    with world() as made:
        made.apply(CHECKED)
        report = made.host.check([OUTSIDE])
        assert {(c.network, c.subject, c.name): c.evidence for c in report.claims if c.verdict is Verdict.FAIL} == {}
        assert {c.subject for c in report.claims if c.verdict is Verdict.PASS} >= {"web/nic0", "db/nic0", "b1/nic0", "probe"}
        assert made.drift() == []
