"""The console on a terminal, in a guest of machine type pc whose cards are plugged live as well."""
from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Iterator

import pytest

from kvmnet.drivers.qemu.driver import GuestNicDriver
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.plan import Create, Delete, plan
from kvmnet.errors import KvmnetError
from kvmnet.guests.accel import Accel
from kvmnet.guests.console import attach
from kvmnet.guests.launch import Ending, execute, start, stop, wait_for_agent
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.spec.guests import Vm
from lib.netns import sh
from lib.qemu import PATIENCE

pytestmark = pytest.mark.guest


def card(name: str, model: str, number: int, pci: str = "") -> GuestNic:
    tap = f"kvt-old-{number}"
    sh(f"ip tuntap add {tap} mode tap; ip link set {tap} master br0 up")
    return GuestNic(name=f"old/{name}", vm="old", tap=tap, model=model, mac=f"52:54:00:bb:00:0{number}", link=True,
                    host_mtu=0, queues=1, rx_ring=None, tx_ring=None, packed=False, offloads=None, vhost=False,
                    bootindex=-1, pci=pci)


@pytest.fixture(scope="module")
def old(host: Paths) -> Iterator[Paths]:
    vm = Vm.model_validate({"nics": [{"network": "lan"}], "run": {
        "memory": "256M", "machine": "pc", "append": "kvmnet.dhcp=0"}})
    try:
        start("old", vm, [card("nic0", "virtio-transitional", 0), card("nic1", "pcnet", 1, "05.0")], host,
              Accel("tcg", "tests"), lambda line: None)
        wait_for_agent("old", host, PATIENCE)
        yield host
    finally:
        stop("old", host, 0.1)


def test_cards_of_an_old_machine(old: Paths) -> None:
    driver = GuestNicDriver(old)
    assert {n.pci for n in driver.observe({}).state.values()} == {"", "05.0"}     # type: ignore[attr-defined]
    for number, pci in ((3, ""), (4, "07.0")):
        later = card(f"nic{number}", "e1000", number, pci)
        driver.apply([Create(later)], lambda n: None)
        assert execute("old", f"for i in $(seq 100); do nic {later.mac} && exit; usleep 50000; done; exit 1",
                       old).code == 0
        seen = driver.observe({})
        assert plan(seen.state, {**seen.state, later.key: later}, seen.ours) == ()
        driver.apply([Delete(later)], lambda n: None)
        assert execute("old", f"nic {later.mac}", old).code == 1


def test_keys_and_screen_are_the_guest_s_until_the_end_key(old: Paths) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    said = bytearray()

    def heard(text: bytes) -> bool:
        said.extend(os.read(ours, 65536))
        return text in said

    user = threading.Thread(target=attach, args=("old", old, theirs, theirs))
    user.start()
    try:
        wait_until(lambda: heard(b"Ctrl-] ends"), 20)
        wait_until(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON, 20)
        os.write(ours, b"echo $((6*7))-on-$(hostname)\n")
        wait_until(lambda: heard(b"42-on-old"), 20)
    finally:
        os.write(ours, b"\x1d")
        user.join(20)
    assert not user.is_alive()
    assert termios.tcgetattr(theirs) == before, "the terminal is given back as it was"
    os.close(ours)
    os.close(theirs)


def test_a_console_needs_a_terminal_and_a_guest(old: Paths) -> None:
    with open(os.devnull) as nothing, pytest.raises(KvmnetError, match="needs a terminal"):
        attach("old", old, nothing.fileno())
    with pytest.raises(KvmnetError, match="guest none does not run"):
        attach("none", old)


def test_the_console_ends_with_the_guest(old: Paths) -> None:
    ours, theirs = pty.openpty()
    user = threading.Thread(target=attach, args=("old", old, theirs, theirs))
    user.start()
    wait_until(lambda: b"Ctrl-] ends" in os.read(ours, 65536), 20)
    assert stop("old", old) == Ending.SHUT_DOWN
    user.join(20)
    assert not user.is_alive()
    os.close(ours)
    os.close(theirs)


def test_a_guest_that_still_boots_is_shut_down_as_soon_as_it_hears(host: Paths) -> None:
    vm = Vm.model_validate({"nics": [{"network": "lan"}], "run": {"image": "tiny", "memory": "256M"}})
    start("early", vm, [], host, Accel("tcg", "tests"), lambda line: None)
    assert stop("early", host, 60) == Ending.SHUT_DOWN
