"""The command line of a whole guest."""
from __future__ import annotations

import pytest

from kvmnet.drivers.qemu.arguments import (
    PORT_SLOTS,
    SPARE_PORTS,
    Descriptors,
    arguments,
    places,
    port_count,
)
from kvmnet.drivers.qemu.devices import Handles
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.errors import HostCannot
from kvmnet.spec.guests import Run

RUN = Run(memory=256 * 2**20, cpus=2)


def nic(number: int, model: str = "virtio", pci: str = "") -> GuestNic:
    return GuestNic(name=f"web/nic{number}", vm="web", tap=f"kvt-web-{number}", model=model,
                    mac="52:54:00:00:00:01", queues=1, vhost=False, bootindex=-1, pci=pci)


def words(run: Run, *nics: GuestNic, **files: int) -> list[str]:
    descriptors = Descriptors(monitor=10, agent=11, console=12, console_log=13, **files,     # type: ignore[arg-type]
                              nics={n.name: Handles((str(20 + i),)) for i, n in enumerate(nics)})
    return arguments("web", run, nics, "tcg", descriptors, "console=ttyS0", "qcow2")


def after(line: list[str], option: str) -> list[str]:
    return [line[i + 1] for i, word in enumerate(line) if word == option]


def test_the_guest_is_started_paused_and_locked_in() -> None:
    line = words(RUN)
    assert "-S" in line and "-nodefaults" in line and "-no-user-config" in line
    assert after(line, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    assert after(line, "-m") == ["size=268435456b"] and after(line, "-smp") == ["2"]
    assert "-runas" not in line     # it is unprivileged from the start; the sandbox forbids to change the user


def test_everything_it_opens_is_a_descriptor() -> None:
    line = words(RUN, nic(0), kernel=14, initrd=15, disk=16)
    assert after(line, "-kernel") == ["/proc/self/fd/14"] and after(line, "-initrd") == ["/proc/self/fd/15"]
    assert [c.split(",")[:3] for c in after(line, "-chardev")] == [
        ["socket", "id=monitor", "fd=10"], ["socket", "id=console", "fd=12"], ["socket", "id=agent", "fd=11"]]
    assert after(line, "-blockdev") == [
        "driver=qcow2,node-name=disk,file.driver=file,file.filename=/dev/fdset/2"]
    assert after(line, "-netdev") == ["tap,id=kvmnet-nic0.tap,fd=20,vhost=off"]


def test_cards_sit_where_they_can_be_unplugged() -> None:
    cards = [nic(0), nic(1, "e1000"), nic(2, "e1000e"), nic(3, "virtio-transitional"), nic(4, pci="05.0")]
    assert [(p.bus, p.address) for p in places(RUN, cards)] == [
        ("kvmnet-port-0", ""), ("kvmnet-pci", ""), ("kvmnet-port-1", ""), ("kvmnet-pci", ""), ("pcie.0", "05.0")]
    assert port_count(RUN, cards) == 2 + SPARE_PORTS
    old = Run(machine="pc")
    assert [(p.bus, p.address) for p in places(old, cards)] == [("kvmnet-pci", "")] * 4 + [("pci.0", "05.0")]
    assert port_count(old, cards) == 0


def test_no_address_is_used_twice() -> None:
    line = words(RUN, *(nic(i) for i in range(40)))
    used = [w for d in after(line, "-device") for w in [dict(p.partition("=")[::2] for p in d.split(","))]
            if w.get("bus") == "pcie.0"]
    addresses = [w["addr"] for w in used]
    assert len(addresses) == len(set(addresses)) == 40 + SPARE_PORTS + 2
    chassis = [w["chassis"] for w in used if "chassis" in w]
    assert len(chassis) == len(set(chassis))
    assert all(("multifunction" in w) == w["addr"].endswith(".0") for w in used if "chassis" in w)


def test_more_cards_than_ports_is_an_error_that_says_so() -> None:
    most = 8 * len(PORT_SLOTS)
    assert port_count(RUN, [nic(i) for i in range(most)]) == most
    with pytest.raises(HostCannot, match="97 PCIe cards do not fit"):
        port_count(RUN, [nic(i) for i in range(most + 1)])


@pytest.mark.parametrize("address", ["10.0", "1c.0", "1f.3", "01.0"])
def test_slots_of_the_machine_are_refused(address: str) -> None:
    with pytest.raises(HostCannot, match="taken by the guest's own devices") as caught:
        places(RUN, [nic(0, pci=address)])
    assert "02 to 0f" in caught.value.hint


def test_memory_of_huge_pages_and_of_a_node() -> None:
    def told(**given: object) -> tuple[list[str], list[str]]:
        line = words(Run(memory=256 * 2**20, **given))    # type: ignore[arg-type]
        return [w for w in after(line, "-object") if "ram" in w], after(line, "-machine")
    assert told() == ([], ["q35,usb=off,graphics=off"])
    used = ["q35,usb=off,graphics=off,memory-backend=ram"]
    assert told(hugepages=True) == (["memory-backend-memfd,id=ram,size=268435456b,hugetlb=on,prealloc=on"], used)
    assert told(nodes="0,2-3") == (["memory-backend-ram,id=ram,size=268435456b,host-nodes=0,host-nodes=2-3,policy=bind"], used)
    assert told(hugepages=True, nodes="1") == (["memory-backend-memfd,id=ram,size=268435456b,hugetlb=on,prealloc=on,host-nodes=1,policy=bind"], used)
