"""Filters in the kernel: what they take, and what they leave, on real devices; questions and datagrams too."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kvmnet.bench.failover.probe import announcement
from kvmnet.check import frames
from kvmnet.host.askers import Asker, Datagrams, Echo, Who
from kvmnet.host.clock import wait_until
from kvmnet.host.filters import announcements, marked, marked_sent
from kvmnet.host.packets import driver_of
from kvmnet.host.watch import Watch
from lib.netns import named_netns, new_netns, sh

pytestmark = pytest.mark.net
MAC, MARK = "02:00:00:00:00:01", 0x0BADCAFE
ARP = frames.ether(frames.BROADCAST, MAC, 0x0806, frames.arp(1, (MAC, "192.0.2.2"), (frames.NOBODY, "192.0.2.2")))
NA = frames.ether("33:33:00:00:00:01", MAC, 0x86DD,
                  frames.advertisement("fe80::1", "ff02::1", "2001:db8::2", MAC).replace(b"\x60\0\0\0\x20\x01", b"\x20\0\0\0\x20\x01"))
QUESTION = frames.ether(frames.BROADCAST, MAC, 0x0806, frames.arp(1, (MAC, "192.0.2.2"), (frames.NOBODY, "192.0.2.1")))
OTHER = frames.ether(frames.BROADCAST, MAC, 0x0800, frames.ip4("192.0.2.2", "192.0.2.1", 17, bytes(40)))


@pytest.fixture(autouse=True)
def pair() -> Iterator[None]:
    with new_netns(), named_netns(f"kvt-watch-{os.getpid()}") as far:
        sh(f"ip link add v0 type veth peer name v1 netns {far}; ip -n {far} link set v1 up; ip link set v0 up; "
           f"ip addr add 192.0.2.2/24 dev v0; ip addr add 2001:db8::2/64 dev v0 nodad; "
           f"ip -n {far} addr add 192.0.2.1/24 dev v1; ip -n {far} addr add 2001:db8::1/64 dev v1 nodad")
        yield


def seen(program: bytes, sent: list[bytes]) -> list[bytes]:
    """Which of *sent* the filter takes as they leave."""
    with Watch("v0", program) as watch, Watch("v0", marked(0)) as out:
        for frame in sent:
            out.send(frame)
        got = []
        while (taken := watch.receive()) is not None:
            if taken[0]:
                got.append(taken[1])
    return [frame for frame in got if frame in sent]


def test_announcements_are_taken_with_and_without_a_tag() -> None:
    told = [ARP, NA, frames.tagged(100, ARP), frames.tagged(100, NA), frames.tagged(100, ARP, 0x88A8)]
    assert seen(announcements(), [OTHER, *told, frames.tagged(100, OTHER)]) == told
    found = [announcement(frame, "v0", 1.0) for frame in told]
    assert [(a.kind, a.address) for a in found if a] == [
        ("ARP", "192.0.2.2"), ("NA", "2001:db8::2"), ("ARP", "192.0.2.2"), ("NA", "2001:db8::2"), ("ARP", "192.0.2.2")]


def test_a_question_is_no_announcement() -> None:
    assert seen(announcements(), [QUESTION]) == [QUESTION]
    assert announcement(QUESTION, "v0", 1.0) is None
    answer = frames.advertisement("fe80::1", "2001:db8::1", "2001:db8::2", MAC)
    assert announcement(frames.ether(MAC, MAC, 0x86DD, answer), "v0", 1.0) is None


@pytest.mark.parametrize(("make", "number"), [
    (lambda: Echo("192.0.2.1", MARK, 7), 5), (lambda: Echo("2001:db8::1", MARK, 7), 5), (lambda: Who("v0", "192.0.2.1"), -1)],
    ids=["echo", "echo6", "arp"])
def test_a_question_is_answered(make: object, number: int) -> None:
    asker: Asker = make()  # type: ignore[operator]
    wait_until(lambda: (asker.ask(5), asker.heard())[1] == number, 20, 0.05)
    asker.close()


def test_answers_to_others_are_not_heard() -> None:
    with Echo("192.0.2.1", MARK, 7) as one, Echo("192.0.2.1", MARK, 8) as two, Echo("192.0.2.1", MARK + 1, 7) as three:
        one.ask(1)
        wait_until(lambda: one.heard() == 1, 20)
        assert two.heard() is None and three.heard() is None


@pytest.mark.parametrize("target", ["192.0.2.1", "2001:db8::1"])
def test_datagrams_are_counted_by_their_mark(target: str) -> None:
    sh(f"ping -c 1 -w 20 {target}")
    with Watch("v0", marked_sent(MARK)) as watch, Watch("v0", marked_sent(MARK + 1)) as other, Datagrams(target, 9, MARK) as out:
        assert all(out.send(port) for port in range(2000, 2100))
        counted = watch.passed()
        frame = watch.receive()
        assert counted == 100 and watch.passed() == 0 and other.passed() == 0
    assert frame is not None
    packet = frames.read(frame[1])
    assert packet is not None and packet.ports == (2000, 9) and packet.dst == target
    body = packet.body[:6] + b"\0\0" + packet.body[8:]
    assert frames.udp(packet.src, target, 2000, 9, body[8:]) == packet.body


def test_a_driver_is_named() -> None:
    assert driver_of("v0") == "veth" and driver_of("nothing") == ""
