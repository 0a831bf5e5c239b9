"""Random rules and random packets: the kernel's verdict is the model's (``flows.Judge``), whichever back end it has.

The model itself is held against the words of the design in tests/unit/policy/test_flows.py.
"""
from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import permutations

import pytest

from kvmnet.check.allowed import allowed
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.facts.model import Allocation
from kvmnet.host.clock import wait_until
from kvmnet.modes.model import NicOnNetwork
from kvmnet.policy.flows import Flow
from kvmnet.spec.names import tap_name
from lib.frames import ICMP, ICMP6, TCP, UDP, arp, ether, icmp, icmp6, ip4, ip6, tcp, udp
from lib.netns import sh
from lib.tap import Tap
from lib.world import World, world

pytestmark = pytest.mark.net

POLICIES = 40
VMS = ("a", "b", "c", "d", "e")
PEERS = ("group:x", "group:y", "set:s", "tenant:t", "10.0.0.2", "10.0.0.0/30", "fd00::/126", "any")
TRAFFIC = ("tcp: [80]", "tcp: any", "udp: [53, 60-70]", "icmp: true", "icmp: [echo-request]", "protocol: [17]", "tcp: 443, udp: 53", "")
KINDS = ((TCP, 80), (TCP, 443), (UDP, 53), (UDP, 65), (ICMP, 8), (ICMP, 13))


def document(dice: random.Random) -> str:
    def rules(way: str, least: int = 0) -> str:
        found = []
        for _ in range(dice.randint(least, 2)):
            peers = dice.sample([p for p in PEERS if way == "from" or not p.startswith("tenant")], dice.randint(0, 2))
            words = [w for w in (dice.choice(TRAFFIC), f"{way}: [{', '.join(map(quoted, peers))}]" if peers else "") if w]
            found.append("{" + ", ".join(words) + "}")
        return "[" + ", ".join(found) + "]"

    groups = [f"  {g}: {{ingress: {rules('from')}" + (f", egress: {rules('to')}" if dice.random() < 0.5 else "") + "}" for g in "xyz"]
    vms = [f"  {vm}: {{" + (f"tenant: {t}, " if (t := dice.choice(["", "t", "t", "u"])) else "")
           + f"nics: [{{network: lan, groups: [{', '.join(dice.sample('xyz', dice.randint(0, 2)))}]}}]}}" for vm in VMS]
    crossing = dice.choice(["", "{from: any, tcp: 80}", "{from: tenant:t, to: group:x}", "{from: group:y, udp: any}"])
    return "\n".join((
        "version: 1", "networks:", '  lan: {mode: isolated, subnet: 10.0.0.0/24, subnet6: "fd00::/64"}', "vms:", *vms, "groups:", *groups,
        'address_sets: {s: [10.0.0.4, 10.0.0.5, "fd00::4"]}', "tenants:", "  t: {}", f"  u: {{allow: [{crossing}]}}"))


def quoted(peer: str) -> str:
    return f'"{peer}"' if "::" in peer else peer


def packet(dice: random.Random, source: Allocation, target: Allocation, number: int) -> tuple[bytes, Flow]:
    """A frame that begins a flow of its own, and the flow."""
    six = dice.random() < 0.4
    protocol, port = (ICMP6, 128) if six and dice.random() < 0.3 else dice.choice(KINDS[:4] if six else KINDS)
    a, b = (source.ip6, target.ip6) if six else (source.ip, target.ip)
    if protocol == ICMP6:
        body = icmp6(a, b, port, number.to_bytes(4, "big"))
    elif protocol == ICMP:
        body = icmp(port, 0, number.to_bytes(4, "big") + bytes(12))
    else:
        body = (tcp if protocol == TCP else udp)(a, b, 1024 + number % 60000, port)
    whole = ether(target.mac, source.mac, 0x86DD if six else 0x0800, (ip6 if six else ip4)(a, b, protocol, body))
    return whole, Flow(0, protocol, a, b, port, b, port)


def differences(made: World, policies: int) -> tuple[int, int, list[object]]:
    """Packets that passed, that did not, and those of which kernel and model say different things."""
    dice, passed, refused, wrong, number = random.Random(7), 0, 0, [], 0
    with ExitStack() as stack:
        taps: dict[str, Tap] = {}
        for _ in range(policies):
            text = document(dice)
            planned = made.plan(text)
            if taps:
                made.host.engine.dispatch.apply(planned.steps, lambda done: None)
            else:
                made.host.apply(planned)
                taps = {vm: stack.enter_context(Tap(tap_name(vm, "nic0"))) for vm in VMS}
                forwarding(taps)
            assert planned.compiled is not None
            judge = allowed(planned.compiled.wanted).judge
            got = {nic.vm: nic for s in planned.compiled.segments.values() for nic in s.nics}
            zone = next(r.zone for r in planned.compiled.wanted.values() if isinstance(r, NicGroups)) or 0
            sent: list[tuple[str, bytes, Flow]] = []
            for source, target in permutations(VMS, 2):
                for _ in range(3):
                    frame, flow = packet(dice, Allocation(got[source].mac, got[source].ip, got[source].ip6),
                                         Allocation(got[target].mac, got[target].ip, got[target].ip6), number)
                    number += 1
                    sent.append((target, frame, replace(flow, zone=zone)))
                    taps[source].send(frame)
            settle(taps, got)
            arrived = {vm: set(tap.drain()) for vm, tap in taps.items()}
            for target, frame, flow in sent:
                there = frame in arrived[target]
                passed, refused = passed + there, refused + (not there)
                if judge is None or judge.allows(flow) != there:
                    wrong.append((there, flow, text))
            for tap in taps.values():
                tap.forget()
    return passed, refused, wrong


def forwarding(taps: dict[str, Tap]) -> None:
    wait_until(lambda: sh("bridge link").count("state forwarding") >= len(taps), 5)


def settle(taps: dict[str, Tap], got: Mapping[str, NicOnNetwork]) -> None:
    """ARP passes always: when everybody heard everybody's question, nothing is under way."""
    for vm, tap in taps.items():
        tap.send(ether("ff:ff:ff:ff:ff:ff", got[vm].mac, 0x0806, arp(1, (got[vm].mac, got[vm].ip), ("00:00:00:00:00:00", "10.0.0.77"))))
    asked = {vm: bytes.fromhex(got[vm].mac.replace(":", "")) for vm in taps}
    wait_until(lambda: all(any(frame[6:12] == asked[other] and frame[12:14] == b"\x08\x06" for frame in tap.drain())
                           for vm, tap in taps.items() for other in taps if other != vm), 10)


def test_kernel_and_model_agree() -> None:
    with world() as made:
        passed, refused, wrong = differences(made, POLICIES)
    assert wrong == []
    assert passed > POLICIES * 5 and refused > POLICIES * 5
