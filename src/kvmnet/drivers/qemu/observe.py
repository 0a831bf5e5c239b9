"""The NICs of one running QEMU, read back from it: properties by QMP, taps from the kernel."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmnet.drivers.qemu.arguments import FIRST_BUS
from kvmnet.drivers.qemu.devices import MODEL_OF_DEVICE, MODELS, OFFLOADS, PASSED, PREFIX, VF, Traits
from kvmnet.drivers.qemu.folder import GuestFolder
from kvmnet.drivers.qemu.qmp import Monitor, Refusal, Reply
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.sriov.resources import vf_name
from kvmnet.drivers.sriov.sysfs import number_of
from kvmnet.host import macvtap

PERIPHERAL = "/machine/peripheral"
COMMON = ("mac", "bootindex", "addr", "parent_bus")
HANDED = (*COMMON, "host", "failover_pair_id")
VIRTIO = ("failover", "host_mtu", "rx_queue_size", "tx_queue_size", "packed", "rss", *OFFLOADS.values())
CHILD = re.compile(r"child<(.+)>")
BACKEND = re.compile(r"(\S+): index=\d+,type=tap,fd=(\d+)")
"""A line of ``info network``: QMP has no command that lists backends (QEMU 7.2)."""


def observe_guest(home: GuestFolder, monitor: Monitor, record: Mapping[str, GuestNic]) -> list[GuestNic]:
    """Our NICs in the guest, in two exchanges whatever their number. Raises QmpError."""
    children = monitor.execute("qom-list", {"path": PERIPHERAL})
    cards = {row["name"]: found[1] for row in children
             if row["name"].startswith(PREFIX) and (found := CHILD.fullmatch(row["type"]))
             and found[1] in MODEL_OF_DEVICE}
    wanted = [(card, prop) for card, kind in cards.items() for prop in properties(kind)]
    commands: list[tuple[str, dict[str, Any]]] = [
        ("qom-get", {"path": f"{PERIPHERAL}/{card}", "property": prop}) for card, prop in wanted]
    commands += [("x-query-virtio-status", {"path": f"{PERIPHERAL}/{card}/virtio-backend"})
                 for card, kind in cards.items() if kind_of(kind).virtio]
    commands.append(("human-monitor-command", {"command-line": "info network"}))
    *answers, network = monitor.execute_all(commands)
    values: dict[str, dict[str, Any]] = {card: {} for card in cards}
    for (card, prop), answer in zip(wanted, answers, strict=False):
        values[card][prop] = value(answer)
    virtio = [card for card, kind in cards.items() if kind_of(kind).virtio]
    for card, answer in zip(virtio, answers[len(wanted):], strict=True):
        values[card]["virtio"] = value(answer) or {}
    descriptors = backends(str(value(network) or ""))
    process = home.process()
    pid = process.pid if process else 0
    nics = [read_nic(home.name, card, MODEL_OF_DEVICE[kind], values[card], descriptors.get(f"{card}.tap", []),
                      pid, record) if kind_of(kind).backend else read_vf(home.name, card, values[card], record)
             for card, kind in cards.items()]
    return [*nics, *hidden(nics, record)]


def hidden(found: Sequence[GuestNic], record: Mapping[str, GuestNic]) -> Iterator[GuestNic]:
    """VFs that QEMU keeps back until the guest's virtio driver knows of failover (hw/net/virtio-net.c,
    failover_hide_primary_device()): they are no devices yet, and known from the record only."""
    there = {nic.name: nic for nic in found}
    for name, nic in record.items():
        if name not in there and nic.pair in there and there[nic.pair].standby:
            yield nic


def read_vf(vm: str, card: str, got: Mapping[str, Any], record: Mapping[str, GuestNic]) -> GuestNic:
    """A VF that the guest has; which one by its PCI address on the host."""
    name, host = f"{vm}/{card.removeprefix(PREFIX)}", str(got.get("host") or "")
    place = number_of(host)
    known = record.get(name)
    pair = str(got.get("failover_pair_id") or "").removeprefix(PREFIX)
    return GuestNic(
        name=name, vm=vm, tap="", vf=vf_name(*place) if place else (known.vf if known and known.host == host else ""), host=host,
        model=VF, mac="", link=True, host_mtu=0, queues=1, rx_ring=0, tx_ring=0, packed=False, rss=False, offloads=(), vhost=False,
        standby=False, pair=f"{vm}/{pair}" if pair else "", bootindex=signed(got.get("bootindex")), pci=address(got))


def properties(kind: str) -> tuple[str, ...]:
    traits = kind_of(kind)
    return (*COMMON, *VIRTIO) if traits.virtio else COMMON if traits.backend else HANDED


def kind_of(device: str) -> Traits:
    return PASSED if device == PASSED.device else MODELS[MODEL_OF_DEVICE[device]]


def value(answer: Reply | Refusal) -> Any:
    return None if isinstance(answer, Refusal) else answer.value


def backends(listing: str) -> dict[str, list[int]]:
    """Id of a backend -> its descriptors in QEMU, one per queue."""
    found: dict[str, list[int]] = {}
    for name, fd in BACKEND.findall(listing):
        found.setdefault(name, []).append(int(fd))
    return found


def tap_of(pid: int, fd: int) -> str:
    """Name of the tap behind a descriptor, from the kernel (tun.c, tun_chr_show_fdinfo); a macvtap is asked."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("iff:"):
                return line.partition(":")[2].strip()
    return macvtap.device_of(pid, fd)


def read_nic(vm: str, card: str, model: str, got: Mapping[str, Any], descriptors: list[int], pid: int,
             record: Mapping[str, GuestNic]) -> GuestNic:
    """One NIC. Properties that its model does not have get their neutral value, as the compiler's do."""
    virtio = MODELS[model].virtio
    name = f"{vm}/{card.removeprefix(PREFIX)}"
    known = record.get(name)
    backend = mover(got.get("virtio") or {}, known is None or known.link is not False)
    return GuestNic(
        name=name, vm=vm, tap=tap_of(pid, descriptors[0]) if descriptors else "", model=model, vf="", host="", pair="",
        standby=bool(got.get("failover")) if virtio else False,
        mac=str(got.get("mac") or "").lower(), link=known.link if known else None,
        host_mtu=int(got.get("host_mtu") or 0) if virtio else 0, mtu=known.mtu if known else None, queues=max(1, len(descriptors)),
        rx_ring=int(got.get("rx_queue_size") or 0) if virtio else 0,
        tx_ring=int(got.get("tx_queue_size") or 0) if virtio else 0,
        packed=bool(got.get("packed")) if virtio else False, rss=bool(got.get("rss")) if virtio else False,
        offloads=tuple(sorted(n for n, p in OFFLOADS.items() if got.get(p))) if virtio else (),
        vhost=backend == "vhost" if backend else bool(known and known.vhost), backend=backend, bootindex=signed(got.get("bootindex")), pci=address(got))


def mover(status: Mapping[str, Any], carrier: bool) -> str:
    """Who moves the packets of a virtio card, from x-query-virtio-status: ``vhost`` or ``qemu``; '' while nobody does, since the
    in-kernel backend starts with the guest's driver and stops with the carrier (hw/net/virtio-net.c,
    virtio_net_vhost_status)."""
    if status.get("vhost-started"):
        return "vhost"
    return "qemu" if status.get("started") and status.get("vm-running") and carrier else ""


def signed(number: Any) -> int:
    return int(number) if isinstance(number, int) and 0 <= number < 2**31 else -1


def address(got: Mapping[str, Any]) -> str:
    """SLOT.FUNCTION on the first bus; '' behind a port or the bridge, where we chose the place."""
    bus = str(got.get("parent_bus") or "").rpartition("/")[2]
    devfn = got.get("addr")
    if bus not in FIRST_BUS.values() or not isinstance(devfn, int):
        return ""
    return f"{devfn >> 3:02x}.{devfn & 7}"
