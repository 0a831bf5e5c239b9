"""Guests that run here: what QEMU says of their cards, and what they see themselves. Only reads; all guests at the same time."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kvmnet.facts import inside
from kvmnet.facts.processes import Processes
from kvmnet.host.paths import Paths
from kvmnet.records import asdict

if TYPE_CHECKING:
    from kvmnet.drivers.qemu.folder import GuestFolder
    from kvmnet.drivers.qemu.qmp import Answer
    from kvmnet.drivers.qemu.resources import GuestNic

Json = dict[str, Any]
MOST = 32
"""Guests that are asked at the same time."""
CLOSED = "no agent runs in the guest: its port is not open"


def guests(paths: Paths, running: Processes) -> list[Json]:
    """Processes of QEMU in this network namespace; of ours also what their monitors and agents say."""
    from kvmnet.drivers.qemu.folder import running_folders
    ours = {process.pid: folder for folder in running_folders(paths) if (process := folder.process())} if running.guests else {}
    folders = [ours.get(guest["pid"]) for guest in running.guests]
    if not any(folders):
        return running.guests
    with ThreadPoolExecutor(min(MOST, len(folders))) as pool:
        told = pool.map(lambda f: {"name": f.name, "ours": True} | asked(f) if f else {}, folders)
        return [guest | more for guest, more in zip(running.guests, told, strict=True)]


def asked(folder: GuestFolder) -> Json:
    """State and cards of one of our guests from its monitor, and its inside from its agent."""
    from kvmnet.drivers.qemu.observe import observe_guest
    from kvmnet.drivers.qemu.qmp import Monitor, QmpError
    found: Json = {"status": "no answer from its monitor", "nics": []}
    with suppress(QmpError, OSError), Monitor.open(folder.monitor) as monitor:
        status = str(monitor.execute("query-status").get("status", ""))
        nics = observe_guest(folder, monitor, folder.record())
        chardevs, *virtio = monitor.execute_all([("query-chardev", {}), *(("x-query-virtio-status", {"path": place(nic)}) for nic in nics)])
        found = {"status": status, "nics": [asdict(nic) | {"negotiated": negotiated(answer)} for nic, answer in zip(nics, virtio, strict=True)]}
        found["inside"] = {"agent": ""} if status == "running" and opened(chardevs) else {"agent": CLOSED if status == "running" else f"the guest is {status}"}
    if found.get("inside") == {"agent": ""}:
        found["inside"] = inside.ask(folder.agent)
    return found


def place(nic: GuestNic) -> str:
    from kvmnet.drivers.qemu.devices import device_id
    return f"/machine/peripheral/{device_id(nic)}/virtio-backend"


def opened(chardevs: Answer) -> bool:
    """Whether somebody in the guest has the agent's port open (query-chardev)."""
    rows = getattr(chardevs, "value", ())
    return any(row.get("label") == "agent" and row.get("frontend-open") for row in rows)


def negotiated(answer: Answer) -> Json:
    """Features that a virtio card offers, and those that the guest's driver took; {} of other cards and while no driver runs."""
    status: Mapping[str, Any] = getattr(answer, "value", {})
    if not status.get("started"):
        return {}
    return {word: sorted(features(status.get(key) or {})) for word, key in (("offered", "host-features"), ("taken", "guest-features"))}


def features(told: Mapping[str, Any]) -> Iterable[str]:
    """``VIRTIO_NET_F_MQ: Multiqueue ...`` as ``mq``, the name that inside the guest stands for the same bit."""
    for line in (*told.get("dev-features", ()), *told.get("transports", ())):
        name = str(line).partition(":")[0].lower()
        yield name.removeprefix("virtio_net_f_").removeprefix("virtio_f_").removeprefix("virtio_")
