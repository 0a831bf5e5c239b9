"""Flows as the kernel's netlink messages have them: read, and named again by their exact tuple."""
from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from kvmnet.check.allowed import Allowed, allowed
from kvmnet.compile import compile_spec
from kvmnet.drivers.nftables.conntrack import raw_attributes, read_flow
from kvmnet.facts.model import Facts
from kvmnet.policy.flows import Flow
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads


def attribute(kind: int, data: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(data), kind) + data).ljust((4 + len(data) + 3) & ~3, b"\0")


def ends(source: str, destination: str, protocol: int, *more: bytes) -> bytes:
    first = 3 if ":" in source else 1
    address = attribute(first, ip_address(source).packed) + attribute(first + 1, ip_address(destination).packed)
    return attribute(0x8001, address) + attribute(0x8002, attribute(1, bytes([protocol])) + b"".join(more))


def ports(source: int, destination: int) -> tuple[bytes, bytes]:
    return attribute(2, struct.pack(">H", source)), attribute(3, struct.pack(">H", destination))


def message(original: bytes, reply: bytes, zone: int = 0) -> bytes:
    return (b"\2\0\0\0" + attribute(0x8001, original) + attribute(0x8002, reply) + attribute(12, b"\0\0\0\7")
            + (attribute(18, struct.pack(">H", zone)) if zone else b""))


@pytest.mark.parametrize(("data", "flow"), [
    (message(ends("10.0.0.1", "10.0.0.2", 6, *ports(999, 80)), ends("10.0.0.2", "10.0.0.1", 6, *ports(80, 999)), 7),
     Flow(7, 6, "10.0.0.1", "10.0.0.2", 80, "10.0.0.2", 80)),
    (message(ends("192.0.2.1", "192.0.2.2", 17, *ports(5, 8080)), ends("10.0.0.2", "192.0.2.1", 17, *ports(80, 5))),
     Flow(0, 17, "192.0.2.1", "192.0.2.2", 8080, "10.0.0.2", 80)),
    (message(ends("fd00::1", "fd00::2", 58, attribute(8, b"\x80")), ends("fd00::2", "fd00::1", 58, attribute(8, b"\x81")), 9),
     Flow(9, 58, "fd00::1", "fd00::2", 128, "fd00::2", 128)),
    (message(ends("10.0.0.1", "10.0.0.2", 1, attribute(5, b"\x08")), ends("10.0.0.2", "10.0.0.1", 1, attribute(5, b"\0"))),
     Flow(0, 1, "10.0.0.1", "10.0.0.2", 8, "10.0.0.2", 8)),
    (message(ends("10.0.0.1", "10.0.0.2", 47), ends("10.0.0.2", "10.0.0.1", 47)), Flow(0, 47, "10.0.0.1", "10.0.0.2", 0, "10.0.0.2", 0))])
def test_a_flow_is_read_and_its_parts_can_be_sent_back(data: bytes, flow: Flow) -> None:
    assert read_flow(data) == flow
    assert data[4:] == b"".join(raw for _, raw in raw_attributes(data[4:]))


def test_what_has_no_tuple_is_no_flow() -> None:
    assert read_flow(b"\2\0\0\0" + attribute(3, b"\0\0\0\0")) is None


def test_check_asks_only_for_what_is_allowed() -> None:
    document = loads("""
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
vms:
  a: {nics: [{network: lan, groups: [ping]}]}
  b: {nics: [{network: lan, groups: [shut]}]}
groups: {ping: {ingress: [{icmp: true}]}, shut: {egress: []}}
""")
    found = allowed(compile_spec(document.spec, Facts(), allocate(document.spec, {})).wanted)
    a, b = ("kvt-a-0", "10.0.0.2"), ("kvt-b-0", "10.0.0.3")
    assert not found.echo(*a, b[1], beside=True) and not found.echo(*b, a[1], beside=True)
    assert found.echo(*a, "10.0.0.1", beside=False) and not found.echo(*b, "10.0.0.1", beside=False)
    assert found.sends_anything(a[0]) and not found.sends_anything(b[0])
    assert Allowed().echo(*b, a[1], beside=True) and Allowed().sends_anything(b[0])
