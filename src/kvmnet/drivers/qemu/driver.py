"""Kind ``guest-nic``: cards of running guests, read and changed over QMP.

A backend is added before its card and removed after it. The guest has a say in unplugging: its
system must let go of the card, so every removal waits for DEVICE_DELETED with a deadline.
"""
from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.drivers.qemu import passed
from kvmnet.drivers.qemu.agent import Agent, AgentError
from kvmnet.drivers.qemu.arguments import FIRST_BUS, pinned
from kvmnet.drivers.qemu.devices import (
    BRIDGE,
    PREFIX,
    Handles,
    Place,
    Value,
    device,
    device_id,
    netdev,
    netdev_id,
    traits_of,
)
from kvmnet.drivers.qemu.folder import GuestFolder, folder, running_folders
from kvmnet.drivers.qemu.observe import PERIPHERAL, observe_guest
from kvmnet.drivers.qemu.qmp import Monitor, QmpError, Refusal
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.qemu.taps import close, open_taps, open_vhost
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource, Wanted
from kvmnet.host.paths import Paths
from kvmnet.host.run import missing
from kvmnet.records import dataclass, field, replace

OBSERVE_TIMEOUT = 2.0
"""Seconds that a QEMU gets to answer before its last known NICs are taken instead."""
APPLY_TIMEOUT = 10.0
MOST_AGENTS = 32
"""Guests whose agents are asked at the same time."""
AGENT_TIMEOUT = 5.0
"""Seconds that a guest's agent gets to answer, and then to set an MTU."""
UNPLUG_TIMEOUT = 10.0
"""Seconds that a guest gets to let go of a card (measured under emulation: 0.3-0.8 s)."""
UNPLUG_RETRY = 2.0
"""A guest that is still booting drops the request: it is repeated after so many seconds."""


@dataclass
class GuestNicDriver:
    paths: Paths
    warnings: list[str] = field(default_factory=list)
    """What the last observe could not read, one line for each guest."""
    kinds: frozenset[str] = frozenset({GuestNic.kind})
    places: dict[Key, str] = field(default_factory=dict)
    """Ports that cards were unplugged from: one that comes back goes there, so that the guest's system knows it again."""

    def unavailable(self) -> str | None:
        return missing("qemu-system-x86_64")

    def observe(self, intent: Wanted) -> Seen:
        """NICs of every guest that kvmnet runs. A QEMU that hangs shows what was last known of it."""
        self.warnings.clear()
        seen = Seen()
        for home in running_folders(self.paths):
            for nic in self.nics_of(home):
                seen.state[nic.key] = nic
                seen.ours.add(nic.key)
        return seen

    def nics_of(self, home: GuestFolder) -> list[GuestNic]:
        record = home.record()
        try:
            with Monitor.open(home.monitor, OBSERVE_TIMEOUT) as monitor:
                return observe_guest(home, monitor, record)
        except QmpError as error:
            self.warnings.append(f"guest {home.name}: {error}; its NICs are shown as they were last known")
            return list(record.values())

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        monitors: dict[str, Monitor] = {}
        tell_mtus(steps, self.paths)
        try:
            for step in steps:
                home = folder(self.paths, guest_of(step))
                with failing(step.key, home):
                    monitor = monitors.get(home.name) or monitors.setdefault(home.name, self.reach(step, home))
                    self.make(step, home, monitor)
                progress(1)
        finally:
            for monitor in monitors.values():
                monitor.stream.close()

    def reach(self, step: Step, home: GuestFolder) -> Monitor:
        process = home.process()
        if process is None or not process.alive():
            raise StepFailed(step.key, f"guest {home.name} does not run", f"kvmnet vm start {home.name}")
        return Monitor.open(home.monitor, APPLY_TIMEOUT)

    def make(self, step: Step, home: GuestFolder, monitor: Monitor) -> None:
        match step:
            case Create(after):
                nic = ready(guest_nic(after), home)
                plug(nic, monitor, self.places.pop(step.key, ""))
                remember(home, nic)
            case Update(before, after):
                nic = guest_nic(after)
                link = set_carrier(guest_nic(before), nic, monitor)
                told = guest_nic(before).mtu if nic.mtu is None else nic.mtu
                remember(home, replace(guest_nic(before), link=link, mtu=told))
            case Delete(before):
                self.places[step.key] = place_of(guest_nic(before), monitor)
                unplug(guest_nic(before), monitor)
                remember(home, gone=step.key)

    def commands(self, steps: Sequence[Step]) -> list[Command]:
        return [command for step in steps for command in spell(step, self.paths)]


def ready(nic: GuestNic, home: GuestFolder) -> GuestNic:
    """*nic* as QEMU can be told: a VF by its address, open to the guest's user."""
    if not nic.vf:
        return nic
    nic = passed.found(nic)
    process = home.process()
    if process is not None:
        passed.give(nic, Path(f"/proc/{process.pid}").stat().st_uid)
        passed.raise_limit(process.pid, passed.limit([nic], int(home.started_with().get("memory") or 0)))
    return nic


def guest_of(step: Step) -> str:
    return step.key.name.partition("/")[0]


def guest_nic(resource: Resource) -> GuestNic:
    assert isinstance(resource, GuestNic)
    return resource


def remember(home: GuestFolder, nic: GuestNic | None = None, gone: Key | None = None) -> None:
    record = home.record()
    if nic is not None:
        record[nic.name] = nic
    if gone is not None:
        record.pop(gone.name, None)
    home.save_record(record.values())


@contextmanager
def failing(key: Key, home: GuestFolder) -> Iterator[None]:
    """QEMU's own words as a failed step."""
    try:
        yield
    except QmpError as error:
        raise StepFailed(key, str(error), f"see {home.errors}") from error


# One card --------------------------------------------------------------------------------------

def plug(nic: GuestNic, monitor: Monitor, before: str = "") -> None:
    """Hand over the taps, make the backend, plug the card, into the port that it had *before* if that is free.
    Leaves nothing behind when it fails."""
    place = free_place(nic, monitor, before)
    if not traits_of(nic).backend:
        monitor.execute("device_add", dict(device(nic, place)))
        return
    if not has_card(nic, monitor):    # a guest that let go of its card late has left the backend behind
        monitor.execute_all([("netdev_del", {"id": netdev_id(nic)})])
    taps, vhosts = open_taps(nic), []
    try:
        vhosts = open_vhost(nic)
        handles = Handles(give_all(nic, monitor, "tap", taps), give_all(nic, monitor, "vhost", vhosts))
    finally:
        close([*taps, *vhosts])
    try:
        monitor.execute("netdev_add", dict(netdev(nic, handles)))
    except QmpError:
        for name in (*handles.taps, *handles.vhosts):    # netdev_add takes them only when it succeeds
            monitor.execute_all([("closefd", {"fdname": name})])
        raise
    try:
        monitor.execute("device_add", dict(device(nic, place)))
        if nic.link is False:
            monitor.execute("set_link", {"name": device_id(nic), "up": False})
    except QmpError:
        monitor.execute_all([("netdev_del", {"id": netdev_id(nic)})])
        raise


def give_all(nic: GuestNic, monitor: Monitor, what: str, descriptors: Sequence[int]) -> tuple[str, ...]:
    names = given_names(nic, what, len(descriptors))
    for name, fd in zip(names, descriptors, strict=True):
        monitor.give(name, fd)
    return names


def given_names(nic: GuestNic, what: str, count: int) -> tuple[str, ...]:
    return tuple(f"{device_id(nic)}-{what}{i}" for i in range(count))


def place_of(nic: GuestNic, monitor: Monitor) -> str:
    """Id of the port that a card is plugged into; '' when it has none of its own."""
    found = monitor.execute_all([("qom-get", {"path": f"{PERIPHERAL}/{device_id(nic)}", "property": "parent_bus"})])[0]
    path = "" if isinstance(found, Refusal) else str(found.value or "")
    return next((part for part in path.split("/") if part.startswith(f"{PREFIX}port-")), "")


def free_place(nic: GuestNic, monitor: Monitor, before: str = "") -> Place:
    """A free root port for a PCIe card, else the bridge. Raises StepFailed when no port is left."""
    buses = monitor.execute("query-pci")
    bridges = {d["qdev_id"]: d for d in buses[0]["devices"] if "pci_bridge" in d}
    ports = {name: d for name, d in bridges.items() if name.startswith(f"{PREFIX}port-")}
    if nic.pci:
        if ports:
            raise StepFailed(nic.key, f"a card at PCI address {nic.pci} of a q35 guest can only be there from the start",
                             f"kvmnet vm stop {nic.vm} and start it again, or leave pci out")
        return Place(FIRST_BUS["pc"], pinned(nic))
    if not ports or not traits_of(nic).pcie:
        return Place(BRIDGE)
    free = [name for name, d in ports.items() if not d["pci_bridge"].get("devices")]
    if not free:
        raise StepFailed(nic.key, "the guest has no free PCIe port left",
                         f"stop and start {nic.vm}: it then gets more; or use model e1000")
    return Place(before if before in free else min(free, key=lambda name: int(name.rpartition("-")[2])))


def set_carrier(before: GuestNic, after: GuestNic, monitor: Monitor) -> bool | None:
    """The only property of a card that changes live. Returns the carrier that the guest sees now."""
    if after.link is None or after.link == before.link:
        return before.link
    monitor.execute("set_link", {"name": device_id(after), "up": after.link})
    return after.link


def tell_mtus(steps: Sequence[Step], paths: Paths) -> None:
    """Have the agents of guests set the MTUs of their cards, all at the same time. A guest without an agent, or whose
    agent refuses, learns it by DHCP or a router advertisement: that is no failure, and ``kvmnet check`` says
    what it has."""
    told: dict[str, list[str]] = {}
    for step in steps:
        if isinstance(step, Update) and new_mtu(step):
            told.setdefault(guest_of(step), []).append(mtu_script(guest_nic(step.after)))
    if told:
        with ThreadPoolExecutor(min(len(told), MOST_AGENTS)) as pool:
            for _ in pool.map(lambda name: tell(folder(paths, name), "\n".join(told[name])), told):
                pass


def tell(home: GuestFolder, script: str) -> None:
    with suppress(AgentError), Agent.open(home.agent, AGENT_TIMEOUT) as agent:
        agent.run(["/bin/sh", "-c", script], AGENT_TIMEOUT)


def new_mtu(step: Update) -> int:
    """The MTU that the guest is to be told; 0 for none."""
    before, after = guest_nic(step.before), guest_nic(step.after)
    return after.mtu or 0 if after.mtu != before.mtu else 0


def mtu_script(nic: GuestNic) -> str:
    return (f'for l in /sys/class/net/*; do [ "$(cat $l/address)" = "{nic.mac}" ] && '
            f"PATH=$PATH:/sbin:/usr/sbin ip link set dev ${{l##*/}} mtu {nic.mtu}; done")


def unplug(nic: GuestNic, monitor: Monitor) -> None:
    """Ask the guest to let go of the card, then remove the backend. A card that is gone is no error."""
    if has_card(nic, monitor):
        request_removal(nic, monitor)
    if not traits_of(nic).backend:
        passed.take_back(nic)
        return
    answer = monitor.execute_all([("netdev_del", {"id": netdev_id(nic)})])[0]
    if isinstance(answer, Refusal) and "not found" not in answer.detail:
        raise QmpError(f"netdev_del: {answer.detail}")


def has_card(nic: GuestNic, monitor: Monitor) -> bool:
    return any(row["name"] == device_id(nic)
               for row in monitor.execute("qom-list", {"path": "/machine/peripheral"}))


def request_removal(nic: GuestNic, monitor: Monitor) -> None:
    for attempt in range(int(UNPLUG_TIMEOUT / UNPLUG_RETRY)):
        answer = monitor.execute_all([("device_del", {"id": device_id(nic)})])[0]
        if isinstance(answer, Refusal) and attempt == 0 and "in the process of unplug" not in answer.detail:
            raise QmpError(f"device_del: {answer.detail}")
        try:
            monitor.wait_event("DEVICE_DELETED", UNPLUG_RETRY, device=device_id(nic))
            return
        except QmpError:
            if not has_card(nic, monitor):
                return
    raise StepFailed(nic.key, f"the guest did not let go of the card within {UNPLUG_TIMEOUT:g} s",
                     f"its system may be booting, hung or without PCI hot-plug: kvmnet vm stop {nic.vm}")


# What is printed -------------------------------------------------------------------------------

def spell(step: Step, paths: Paths) -> Iterator[Command]:
    """The QMP messages of a step, as input for a connection to the guest's monitor."""
    lines = [json.dumps({"execute": name, "arguments": arguments}) for name, arguments in messages(step)]
    if lines:
        socket = folder(paths, guest_of(step)).monitor
        opening = json.dumps({"execute": "qmp_capabilities"})
        yield Command(("socat", "-", f"UNIX-CONNECT:{shlex.quote(os.fspath(socket))}"),
                      "\n".join((opening, *lines)) + "\n", tuple(step.key for _ in lines))
    if isinstance(step, Update) and new_mtu(step):
        told = {"path": "/bin/sh", "arg": ["-c", mtu_script(guest_nic(step.after))]}
        yield Command(("socat", "-", f"UNIX-CONNECT:{shlex.quote(os.fspath(folder(paths, guest_of(step)).agent))}"),
                      json.dumps({"execute": "guest-exec", "arguments": told}) + "\n", (step.key,))


def messages(step: Step) -> list[tuple[str, dict[str, Value]]]:
    match step:
        case Create(after):
            return plug_messages(guest_nic(after))
        case Update(before, after):
            nic = guest_nic(after)
            changed = nic.link is not None and nic.link != guest_nic(before).link
            return [("set_link", {"name": device_id(nic), "up": bool(nic.link)})] if changed else []
        case Delete(before):
            nic = guest_nic(before)
            last: list[tuple[str, dict[str, Value]]] = [("netdev_del", {"id": netdev_id(nic)})] if traits_of(nic).backend else []
            return [("device_del", {"id": device_id(nic)}), *last]


def plug_messages(nic: GuestNic) -> list[tuple[str, dict[str, Value]]]:
    count = nic.queues or 1
    handles = Handles(given_names(nic, "tap", count), given_names(nic, "vhost", count if nic.vhost else 0))
    place = Place(BRIDGE if not traits_of(nic).pcie else f"{PREFIX}port-N")
    if not traits_of(nic).backend:
        return [("device_add", device(nic, place))]
    rows: list[tuple[str, dict[str, Value]]] = [
        ("getfd", {"fdname": name}) for name in (*handles.taps, *handles.vhosts)]
    rows += [("netdev_add", netdev(nic, handles)), ("device_add", device(nic, place))]
    if nic.link is False:
        rows.append(("set_link", {"name": device_id(nic), "up": False}))
    return rows
