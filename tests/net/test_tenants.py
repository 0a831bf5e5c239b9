"""Tenants on one shared network, and isolation that the host's own router does not undo."""
from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from kvmnet.check.model import Verdict
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
