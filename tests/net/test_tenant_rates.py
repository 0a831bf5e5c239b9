"""What all NICs of a tenant send and receive together, on two networks of one host, on a real kernel.

A machine that is busy lets less through, never more: the upper bound is exact, the lower one is loose.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from kvmnet.check.model import Claim, Verdict
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture, device_mac
from kvmnet.status import status as look
from lib.flood import Heard, ear, flood
from lib.frames import UDP, ether, ip4, udp
from lib.netns import sh
from lib.world import World, snapshot, unchanged, world

pytestmark = pytest.mark.net

RATE, BURST = 2000, 16 * 1024
"""kbit/s and bytes of the tenant."""
SECONDS, FRAME = 0.6, 1014
WHOLE = 0.7
"""Part of a flood that arrives when nothing holds it up, on a machine that is busy. Four times the rate loses more."""
PATIENCE = 20
"""Seconds in which a machine that is busy has a moment for a flood: the upper bounds hold at each attempt, the lower ones at one."""
TEXT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
  dmz: {mode: isolated, subnet: 10.1.0.0/24}
vms:
  a: {tenant: acme, nics: [{network: lan%s}]}
  b: {tenant: acme, nics: [{network: dmz}]}
  x: {tenant: other, nics: [{network: lan}]}
  y: {nics: [{network: lan}]}
  z: {nics: [{network: dmz}]}
tenants:
  acme: {%s}
  other: {}
"""
SENSOR = "  s: {nics: [{network: lan, ip: none, receives: copies}]}\ntenants:\n"
MIRROR = "mirrors: {ids: {from: [a], to: s}}\n"


def document(rate: str = "", nic: str = "") -> str:
    return TEXT % (f", rate: {{{nic}}}" if nic else "", f"rate: {{{rate}}}" if rate else "")


@pytest.fixture(scope="module")
def ground() -> Iterator[World]:
    with world() as made:
        made.apply(document())
        for name in "abxyz":
            made.guest(name)
        yield made


def together(made: World, *flows: tuple[str, str]) -> list[tuple[int, Heard]]:
    """Floods of four times the rate side by side, (sender, receiver): bytes sent, and what came. Sender '': the host."""
    with ExitStack() as stack, ThreadPoolExecutor(len(flows)) as pool:
        nonces = [os.urandom(8) for _ in flows]
        ears = [stack.enter_context(ear(made.guest(to).netns, "eth0", nonce)) for (_, to), nonce in zip(flows, nonces, strict=True)]
        work = [pool.submit(flood, *shot(made, by, to, nonce, stack), 4 * RATE, SECONDS) for (by, to), nonce in zip(flows, nonces, strict=True)]
        sent = [w.result() for w in work]
        return [(n, e.rest()) for n, e in zip(sent, ears, strict=True)]


def shot(made: World, by: str, to: str, nonce: bytes, stack: ExitStack) -> tuple[Callable[[bytes], object], bytes]:
    """How *by* sends, and a frame of its for *to*."""
    target = made.guest(to)
    bridge = "kvb-dmz" if to in "bz" else "kvb-lan"
    if by:
        source = made.guest(by)
        return partial(os.write, source.outer.fd), frame_of(source.mac, source.ip, target.mac, target.ip, nonce)
    device = stack.enter_context(Capture(bridge))
    device.sends_ahead()
    return device.send, frame_of(device_mac(bridge), f"{target.ip.rpartition('.')[0]}.1", target.mac, target.ip, nonce)


def frame_of(mac: str, ip: str, to_mac: str, to_ip: str, nonce: bytes) -> bytes:
    return ether(to_mac, mac, 0x0800, ip4(ip, to_ip, UDP, udp(ip, to_ip, 1234, 5678, nonce + bytes(FRAME - 42 - len(nonce)))))


@pytest.mark.parametrize(("direction", "flows", "free"), [
    ("out", (("a", "y"), ("b", "z")), ("x", "y")),
    ("in", (("", "a"), ("", "b")), ("", "x"))])
def test_all_nics_together_get_what_the_tenant_has(ground: World, direction: str, flows: tuple[tuple[str, str], ...],
                                                   free: tuple[str, str]) -> None:
    """On both networks together, and no other tenant's; without the rate all of it arrives."""
    ground.apply(document(f"{direction}: 2mbit"))
    assert ground.drift() == []

    def limited() -> bool:
        *floods, (offered, other) = together(ground, *flows, free)
        found = [heard for _, heard in floods]
        spent = max(h.last for h in found) - min(h.began for h in found)
        octets = sum(h.octets for h in found)
        assert octets <= RATE * 125 * spent + BURST + 2 * FRAME
        return octets >= 0.6 * RATE * 125 * SECONDS and other.octets >= WHOLE * offered    # another tenant's
    wait_until(limited, PATIENCE)
    (acme,) = [t for t in (look(ground.host) or pytest.fail("no status")).tenants if t.name == "acme"]
    assert set(acme.rates) == {direction} and acme.rates[direction].rate == RATE * 1000 and acme.rates[direction].dropped > 0
    assert (acme.nics, acme.addresses) == (2, 2)
    ground.apply(document())
    wait_until(lambda: all(heard.octets >= WHOLE * sent for sent, heard in together(ground, *flows)), PATIENCE)


def test_a_nic_has_its_own_rate_beside_it(ground: World) -> None:
    """What it receives passes both queues, and a mirror copies it once: nothing goes round."""
    ground.apply(document("in: 4mbit", "in: 1mbit").replace("tenants:\n", SENSOR) + MIRROR)
    assert ground.drift() == []

    def limited() -> bool:
        (_, a), (_, b) = together(ground, ("", "a"), ("", "b"))
        assert a.octets <= a.allowed(RATE // 2, 2 * BURST)
        return a.octets >= 0.6 * RATE // 2 * 125 * SECONDS and b.octets > b.allowed(RATE // 2, BURST)    # which has none of its own
    wait_until(limited, PATIENCE)
    nonce = os.urandom(8)
    with ExitStack() as stack, ear(ground.guest("a").netns, "eth0", nonce) as hears, ear(ground.guest("s").netns, "eth0", nonce) as copies:
        send, frame = shot(ground, "", "a", nonce, stack)
        send(frame)
        wait_until(lambda: hears.drain() and copies.drain(), 20)
        assert (len(hears.rest().frames), len(copies.rest().frames)) == (1, 1)


def test_what_is_taken_away_is_seen_and_put_back(ground: World) -> None:
    text = document("in: 4mbit, out: 6mbit")
    ground.apply(text)
    assert ground.apply(text).steps == ()
    kind = "tc-class kvi-~o~acme" if is_tree("kvi-~o~acme") else "qdisc kvi-~o~acme"
    for damage, drift in ((partial(sh, "tc filter del dev kvt-a-0 egress pref 27510"), ["create detour kvt-a-0 egress"]),
                          (partial(sh, "tc filter del dev kvt-b-0 ingress pref 27510"), ["create detour kvt-b-0"]),
                          (partial(narrow, "kvi-~o~acme", "5mbit"), [f"update {kind}"]),
                          (partial(sh, "ip link del kvi-~i~acme"), ["create link kvi-~i~acme", "create qdisc kvi-~i~acme",
                                                                    "update detour kvt-a-0 egress", "update detour kvt-b-0 egress"])):
        damage()
        found = ground.drift()
        assert all(any(line.startswith(wanted) for line in found) for wanted in drift), found
        ground.apply(text)
        assert ground.drift() == []


def is_tree(device: str) -> bool:
    """Whether NICs have classes there (the kernel has act_skbedit)."""
    return "htb" in sh(f"tc qdisc show dev {device} root")


def narrow(device: str, rate: str) -> None:
    """Another rate than that of the document."""
    if not is_tree(device):
        sh(f"tc qdisc change dev {device} root handle 6b76: tbf rate {rate} burst 16k limit 64k")
        return
    major = sh(f"tc qdisc show dev {device} root").split()[2]
    sh(f"tc class change dev {device} parent {major} classid {major}1 htb rate {rate} ceil {rate} burst 16k cburst 16k")


def test_destroy_leaves_nothing_and_check_measures_it() -> None:
    """Within 5 percent, from NICs whose guest does not run; a rate that is not kept is seen."""
    with world() as made:
        before, queues = snapshot(), sh("tc qdisc show")
        made.apply(document("in: 12mbit, out: 8mbit").replace("other: {}", "other: {rate: {out: 8mbit}}").replace(
            "x: {tenant: other, nics: [{network: lan}]}", "x: {tenant: other, nics: [{network: lan, rate: {in: 8mbit}}]}"))
        narrow("kvi-~o~other", "6mbit")
        found = {(c.subject, c.name): c for c in made.host.check(rates=True).claims if c.name.startswith("rate ")}
        wanted = {("tenant acme", "rate in"): Verdict.PASS, ("tenant acme", "rate out"): Verdict.PASS, ("tenant other", "rate out"): Verdict.FAIL,
                  ("x/nic0", "rate in"): Verdict.PASS}
        assert found.keys() == wanted.keys()
        assert all(claim.verdict is wanted[of] or is_disturbed(claim) for of, claim in found.items()), found
        made.destroy()
        unchanged(before)
        assert sh("tc qdisc show") == queues


def is_disturbed(claim: Claim) -> bool:
    """Whether the machine had no time for a measurement that counts."""
    return claim.verdict is Verdict.SKIP and ("held this process up" in claim.evidence or "too little to try" in claim.evidence)
