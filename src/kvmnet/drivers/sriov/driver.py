"""VFs: made by sysfs, told by ``ip link set PF vf N``, handed to guests by their binding to vfio-pci.

A VF bears no mark. What kvmnet made and bound is written down in the run directory, which ends with the boot as the
VFs do; a pool whose number somebody changed since is not ours any more.

A run of steps is made in this order: VFs away, VFs made, VFs taken from vfio-pci, all settings in one batch of
``ip``, VFs bound. So no guest gets a VF that is not told yet what it may.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kvmnet.drivers.linux.batch import batch_text, run_batch
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.sriov import notebook, sysfs, wire
from kvmnet.drivers.sriov.resources import VFIO, Pf, Vf, VfPool, split_name
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Wanted
from kvmnet.host import run as host
from kvmnet.host.paths import Paths
from kvmnet.records import replace

REFUSALS = ("Operation not supported", "Not supported", "Invalid argument")
"""How drivers answer what they do not do to a VF."""
OPTIONS = {"max_tx_rate": "rate", "spoofchk": "guard: mac (write guard: off)", "trust": "trust", "state": "link",
           "vlan": "vlan, qos and protocol", "mac": "mac"}
"""Word of an ``ip`` line -> what it comes from in the document."""
Look = Callable[[str], Iterable[Vf]]


class SriovDriver:
    kinds = frozenset({Pf.kind, VfPool.kind, Vf.kind})

    def __init__(self, paths: Paths):
        self.notes = paths.run / "sriov.json"

    def unavailable(self) -> str | None:
        return host.missing("ip")

    def observe(self, intent: Wanted) -> Seen:
        """PFs by sysfs; of those that are split, the VFs by one ``ip -json`` each and their bindings by sysfs."""
        seen = Seen()
        notes = notebook.read(self.notes)
        for dev, folder in sysfs.pf_devices().items():
            pf = look_at(dev, folder)
            seen.state[pf.key] = pf
            if not (count := sysfs.read_number(folder / sysfs.NUMVFS)):
                continue
            made = notes.made.get(folder.name) == count
            found = [VfPool(name=dev, dev=dev, count=count, made=made),
                     *(with_binding(vf, notes) for vf in vfs_of(dev))]
            seen.state.update((r.key, r) for r in found)
            if made:
                seen.ours |= {r.key for r in found}
        return seen

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        work = Work(steps)
        for pool in work.away:
            self.take_away(pool)
        for pool in work.made:
            self.make(pool)
        changes = work.changes(vfs_of)
        for vf in (after for before, after in changes if moves(before, after) and before.driver == VFIO):
            self.bind(vf)
        run_lines([line for change in changes for line in lines_of(*change)])
        for vf in (after for before, after in changes if moves(before, after) and before.driver != VFIO):
            self.bind(vf)
        progress(len(steps))

    def make(self, pool: VfPool) -> None:
        """VFs of ours are for guests: no driver of the host shall take them, now or when it is loaded. Those made for
        somebody else, when what was lent is given back, are not ours."""
        folder = sysfs.device_of(pool.name)
        if pool.made:
            with notebook.noting(self.notes) as notes:
                notes.made[folder.name] = pool.count or 0
                if sysfs.probes(folder):
                    notes.quiet.add(folder.name)
            sysfs.set_probing(pool.key, folder, on=False)
        try:
            sysfs.set_count(pool.key, pool.name, pool.count or 0)
        except StepFailed:
            self.forget(pool, folder, set())
            raise

    def take_away(self, pool: VfPool) -> None:
        folder = sysfs.device_of(pool.name)
        gone = {vf.name for n in range(pool.count or 0) if (vf := sysfs.vf_device(pool.name, n))}
        if (folder / sysfs.NUMVFS).exists():
            sysfs.set_count(pool.key, pool.name, 0)
        self.forget(pool, folder, gone)

    def forget(self, pool: VfPool, folder: Path, gone: set[str]) -> None:
        """The VFs are no more; the NIC is as it was before."""
        with notebook.noting(self.notes) as notes:
            if folder.name in notes.quiet:
                sysfs.set_probing(pool.key, folder, on=True)
            notes.quiet.discard(folder.name)
            notes.made.pop(folder.name, None)
            notes.bound -= gone

    def bind(self, vf: Vf) -> None:
        folder = sysfs.vf_device(*split_name(vf.name))
        if folder is None:
            raise StepFailed(vf.key, f"is no device that could be bound to {vf.driver or 'nothing'}",
                             "run plan again: its NIC may have gone")
        with notebook.noting(self.notes) as notes:
            (notes.bound.add if vf.driver == VFIO else notes.bound.discard)(folder.name)
        sysfs.bind(vf.key, folder, vf.driver or "")

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        """As ``apply`` for VFs that remember nothing: what a new one remembers all the same is told first, too."""
        return list(spell(Work(steps)))


class Work:
    """Steps sorted by what is done together."""

    def __init__(self, steps: Sequence[Step]):
        self.away: list[VfPool] = []
        self.made: list[VfPool] = []
        self.vfs: list[tuple[Vf | None, Vf]] = []
        for step in steps:
            match step:
                case Delete(VfPool() as pool):
                    self.away.append(pool)
                case Create(VfPool() as pool):
                    self.made.append(pool)
                case Create(Vf() as vf):
                    self.vfs.append((None, vf))
                case Update(Vf() as before, Vf() as after):
                    self.vfs.append((before, after))
                case _:
                    raise StepFailed(step.key, "there is no such NIC, or it cannot be split into VFs",
                                     "is the NIC plugged in, and is this its name? compare with: ip link")

    def changes(self, look: Look) -> list[tuple[Vf, Vf]]:
        """(before, after) of every VF; those that were just made are looked at."""
        found = {vf.name: vf for dev in dict.fromkeys(split_name(after.name)[0] for before, after in self.vfs
                                                      if before is None) for vf in look(dev)}
        changes = []
        for before, after in self.vfs:
            known = before or found.get(after.name)
            if known is None:
                raise StepFailed(after.key, "was made, but the NIC does not show it", "see dmesg for what its driver says")
            changes.append((known, after))
        return changes


def look_at(dev: str, folder: Path) -> Pf:
    pci = sysfs.is_pci(folder)
    return Pf(name=dev, dev=dev, total=sysfs.read_number(folder / sysfs.TOTAL), pci=folder.name if pci else "",
              numa=sysfs.read_number(folder / "numa_node", -1), iommu=bool(sysfs.group_of(folder)))


def vfs_of(dev: str) -> list[Vf]:
    """The VFs of a NIC as it shows them now, just made ones unbound."""
    listed = json.loads(host.run(("ip", "-json", "-details", "link", "show", "dev", dev)) or "[]")
    return [replace(vf, driver="") for item in listed for vf in wire.parse_vfs(item)]


def with_binding(vf: Vf, notes: notebook.Notes) -> Vf:
    """*vf* with what sysfs knows of it."""
    folder = sysfs.vf_device(*split_name(vf.name))
    if folder is None:
        return replace(vf, driver="", pci="", group=(), holder="")
    return replace(vf, driver=sysfs.driver_of(folder), pci=folder.name, group=sysfs.strangers(folder),
                   holder=sysfs.holder_of(folder, folder.name in notes.bound))


def moves(before: Vf, after: Vf) -> bool:
    return after.driver is not None and after.driver != before.driver


def lines_of(before: Vf, after: Vf) -> list[Line]:
    return [Line(words, after.key) for words in wire.lines_of(before, after)]


def run_lines(lines: Sequence[Line]) -> None:
    """Raises StepFailed, with the kernel's own words and what in the document asked for it."""
    try:
        run_batch(lines)
    except StepFailed as failed:
        option = next((said for word, said in OPTIONS.items() if f" {word} " in f"{failed.detail} "), "")
        if option and any(text in failed.detail for text in REFUSALS):
            raise StepFailed(failed.key, failed.detail, f"the NIC's driver does not do this to a VF: remove {option}") from failed
        raise


def spell(work: Work) -> Iterator[Command]:
    for pool in work.away:
        yield echo(f"/sys/class/net/{pool.name}/device/{sysfs.NUMVFS}", "0", pool)
    for pool in work.made:
        folder = f"/sys/class/net/{pool.name}/device"
        if pool.made:
            yield echo(f"{folder}/{sysfs.AUTOPROBE}", "0", pool)
        yield echo(f"{folder}/{sysfs.NUMVFS}", str(pool.count), pool)
    changes = [(before or wire.fresh(after), after) for before, after in work.vfs]
    lines = [line for change in changes for line in lines_of(*change)]
    if lines:
        yield Command(("ip", "-batch", "-"), batch_text(lines), tuple(line.key for line in lines))
    for before, after in changes:
        if moves(before, after):
            yield from spell_binding(before, after)


def spell_binding(before: Vf, after: Vf) -> Iterable[Command]:
    dev, number = split_name(after.name)
    folder, address = f"/sys/class/net/{dev}/device/virtfn{number}", f"ADDRESS-OF-VF-{number}"
    address = after.pci or before.pci or address
    if before.driver:
        yield echo(f"{folder}/driver/unbind", address, after)
    yield echo(f"{folder}/driver_override", VFIO if after.driver == VFIO else "", after)
    if after.driver:
        yield echo("/sys/bus/pci/drivers_probe", address, after)


def echo(path: str, text: str, resource: Vf | VfPool) -> Command:
    return Command(("tee", path), f"{text}\n", (resource.key,))
