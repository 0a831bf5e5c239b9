"""What a plan says of a running guest that no step says."""
from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kvmnet.guests.image import Image
from lib.world import World, world

pytestmark = pytest.mark.guest

DOCUMENT = """
version: 1
networks: {lan: {mode: isolated, subnet: 10.0.0.0/24}}
vms:
  a: {run: {image: tiny, accel: tcg}, nics: [{network: lan}]}
"""


@pytest.fixture(scope="module")
def net(tiny: Image) -> Iterator[World]:
    with world() as made:
        made.apply(DOCUMENT)
        assert made.cli("vm", "start", "a").returncode == 0
        yield made


@pytest.mark.parametrize(("old", "new", "words"), [
    ("accel: tcg", "accel: tcg, memory: 512M, cpus: 2", "memory 256M instead of 512M, cpus 1 instead of 2; that counts from its next start"),
    ("tiny, accel: tcg}", "tiny, append: x=y}", "append none instead of x=y, accel tcg instead of auto"),
    ("  a: {", "  b: {", "guest a runs, but the document does not have it run"),
    ("lan}]", "lan, ip: 10.0.0.9}]", "guest a/nic0 is refused with 10.0.0.2 at once"),
    ("lan}]", "lan, ip: none}]", "guest a/nic0 is refused with 10.0.0.2 at once"),
    ("lan}]", "lan, pci: 1e.0}]", "a card at PCI address 1e.0 of a q35 guest can only be there from the start, so apply will fail")])
def test_what_is_not_done_to_a_running_guest_is_said(net: World, old: str, new: str, words: str) -> None:
    file = net.write(DOCUMENT.replace(old, new))
    said = net.cli("plan", file)
    assert words in said.stdout, said.stdout
    assert words in " ".join(json.loads(net.cli("plan", "--json", file).stdout)["notes"])


def test_nothing_is_said_of_what_is_as_written(net: World) -> None:
    for text in (DOCUMENT, DOCUMENT.replace("accel: tcg", "accel: tcg, memory: 256M"),
                 DOCUMENT.replace("lan}]", "lan, extra: {addresses: [10.0.0.77]}}]"),
                 DOCUMENT.replace("lan}]", "lan, model: e1000, ip: 10.0.0.9}]")):   # plugged in anew: it asks again
        assert net.plan(text).notes == ()


def test_apply_says_it_too_every_time(net: World) -> None:
    file = net.write(DOCUMENT.replace("accel: tcg", "accel: tcg, memory: 512M"))
    for _ in range(3):
        done = net.cli("apply", "--yes", file)
        assert done.returncode == 0 and "Nothing to do" in done.stderr and "memory 256M instead of 512M" in done.stderr
    assert "memory 256M instead of 512M" in net.cli("status").stdout
    assert net.cli("vm", "stop", "a").returncode == net.cli("vm", "start", "a").returncode == 0
    assert "instead of" not in net.cli("apply", "--yes", file).stderr + net.cli("status").stdout
