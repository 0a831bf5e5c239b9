"""The life of a guest that kvmnet runs itself: start, run a program in it, stop."""
from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from time import monotonic

from kvmnet.drivers.qemu import passed
from kvmnet.drivers.qemu.agent import Agent, AgentError, Result
from kvmnet.drivers.qemu.arguments import TINY_WORDS, Descriptors, arguments
from kvmnet.drivers.qemu.devices import Handles, device_id
from kvmnet.drivers.qemu.folder import GuestFolder, folder, folders, replace
from kvmnet.drivers.qemu.process import (
    KVM,
    account,
    apart,
    finish,
    identity,
    kill,
    let_go,
    reap,
    spawn,
    writers_of,
)
from kvmnet.drivers.qemu.qmp import Monitor, QmpError
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.qemu.sockets import listen
from kvmnet.drivers.qemu.taps import open_taps, open_vhost
from kvmnet.drivers.qemu.threads import place
from kvmnet.engine.driver import StepFailed
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.facts.model import Facts
from kvmnet.guests import hugepages
from kvmnet.guests.accel import Accel, blocked
from kvmnet.guests.image import build
from kvmnet.host import counter
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.host.process import Process
from kvmnet.modes.device import threads
from kvmnet.records import dataclass
from kvmnet.spec.cpus import joined
from kvmnet.spec.guests import Run, Vm

START_TIMEOUT = 20.0
"""Seconds for QEMU to open its monitor (it reads a 60 MB kernel first, perhaps from a cold disk)."""
NO_WORDS = "its system was shut down from inside, or QEMU was killed"

Progress = Callable[[str], None]


class Ending(StrEnum):
    """How a guest ended."""

    SHUT_DOWN = "shut down"
    QUIT = "switched off"
    KILLED = "killed"
    NOT_RUNNING = "not running"


@dataclass(frozen=True, slots=True)
class GuestStatus:
    name: str
    pid: int
    alive: bool
    """False: it was started, not stopped, and its QEMU is gone."""
    accel: str
    nics: tuple[str, ...]
    """Names of its NICs (``nic0``), as far as kvmnet made them."""
    reason: str = ""
    """Last words of a QEMU that is gone."""


def guests(paths: Paths) -> dict[str, GuestStatus]:
    """Every guest that was started and not stopped since, also those whose QEMU died."""
    return {f.name: status_of(f) for f in folders(paths)}


def running(paths: Paths) -> dict[str, GuestStatus]:
    """Guests whose QEMU lives now."""
    return {name: s for name, s in guests(paths).items() if s.alive}


def status_of(home: GuestFolder) -> GuestStatus:
    process = home.process() or Process(0, 0)
    alive = process.alive()
    names = tuple(n.partition("/")[2] for n in home.record())
    return GuestStatus(home.name, process.pid, alive, home.accelerator(), names,
                       "" if alive else home.last_words() or NO_WORDS)


def start(name: str, vm: Vm, nics: Sequence[GuestNic], paths: Paths, accel: Accel,
          progress: Progress) -> GuestStatus:
    """Start guest *name* with *nics* on their taps, which exist already. A running one is left alone.

    Returns when QEMU runs the guest; its system boots on. Raises HostCannot, KvmnetError.
    """
    home = folder(paths, name)
    if is_started(home):
        return status_of(home)
    if vm.run is None:
        raise KvmnetError(f"guest {name} is not run by kvmnet", hint=f"vms.{name}.run says how to run it")
    hugepages.require(name, vm.run)
    chosen = accelerator(vm.run, accel)
    boot = boot_files(vm.run, nics, paths, progress, name, chosen)
    who = apart(account(vm.run.user), home.path)
    home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.forget()
    progress(f"starting guest {name} ({chosen})")
    try:
        with ExitStack() as stack:
            nics = [passed.found(nic) for nic in nics]
            for nic in nics:
                passed.give(nic, who.uid)
            files = open_files(home, boot, nics, stack)
            argv = arguments(name, vm.run, nics, chosen, files, boot.append, boot.disk_format)
            home.command.write_text(shlex.join(argv) + "\n")
            errors = stack.enter_context(home.errors.open("wb")).fileno()
            child = spawn(argv, who, inherited(files), errors, passed.limit(nics, vm.run.memory))
    except StepFailed as failed:
        raise HostCannot(f"guest {name}: {failed}", failed.hint) from failed
    try:
        replace(home.run_file, vm.run.model_dump_json())
        home.save_process(identity(child.pid), chosen)
        release(home, nics, vm.run)
    except BaseException:    # also an interrupt: a QEMU that waits for ever must not stay
        finish(child, 0)
        home.forget()
        raise
    let_go(child)
    return status_of(home)


def is_started(home: GuestFolder) -> bool:
    """True when the guest runs. What a start that was cut short has left is ended."""
    process = home.process()
    if process is None or not process.alive():
        for pid in writers_of(home.errors):
            kill(identity(pid))
        return False
    try:
        with Monitor.open(home.monitor) as monitor:
            if monitor.execute("query-status")["status"] != "prelaunch":
                return True
    except QmpError:
        return True    # it hangs or somebody holds its monitor: that is not for us to end
    kill(process)
    return False


def accelerator(run: Run, accel: Accel) -> str:
    """What this guest runs on; its user may have other rights than the one that was probed for."""
    if run.accel == "tcg" or (accel.name == "tcg" and run.accel != "kvm"):
        return "tcg"
    why = accel.reason if accel.name != "kvm" else blocked(KVM, run.user)
    if why is None:
        return "kvm"
    if run.accel == "kvm":
        raise HostCannot(f"KVM is wanted, but {why}", hint="accel: auto falls back to emulation")
    return "tcg"


# What it boots ---------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Boot:
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disk: Path | None = None
    disk_format: str = "raw"


def boot_files(run: Run, nics: Sequence[GuestNic], paths: Paths, progress: Progress, name: str, accel: str) -> Boot:
    """The kernel, RAM disk and disk of a guest. Where the document names none and no NIC has a place
    in the boot order, the tiny image."""
    disk = Path(run.disk) if run.disk else None
    kind = disk_format(disk) if disk else "raw"
    from_network = any((n.bootindex if n.bootindex is not None else -1) >= 0 for n in nics)
    if run.image == "tiny" or not (run.kernel or run.disk or from_network):
        image = build(paths, progress)
        clock = counter.word() if accel == "tcg" else ""
        words = f"{TINY_WORDS} {clock} kvmnet.name={name} {run.append}".strip()
        return Boot(image.kernel, image.initrd, words, disk, kind)
    kernel, initrd = (Path(p) if p else None for p in (run.kernel, run.initrd))
    return Boot(kernel, initrd, run.append, disk, kind)


def disk_format(path: Path) -> str:
    """By its name alone: a guest that writes a qcow2 header into its raw disk must not have QEMU
    open, at the next start, the file that the header names."""
    return "qcow2" if path.suffix == ".qcow2" else "raw"


def unreadable(path: Path, error: OSError) -> HostCannot:
    return HostCannot(f"cannot open {path}: {error.strerror}", hint="check vms.NAME.run in the document")


# What it opens ---------------------------------------------------------------------------------

def open_files(home: GuestFolder, boot: Boot, nics: Sequence[GuestNic], stack: ExitStack) -> Descriptors:
    """Everything that QEMU will use, opened by us; closed here when *stack* is left."""
    def sock(path: Path) -> int:
        return stack.enter_context(listen(path)).fileno()

    def file(path: Path | None, flags: int = os.O_RDONLY) -> int | None:
        if path is None:
            return None
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unreadable(path, error) from error
        stack.callback(os.close, fd)
        return fd

    def readable(path: Path | None) -> int | None:
        """QEMU opens these again as its user: what only root may read is copied to memory."""
        fd = file(path)
        if fd is None or path is None or os.fstat(fd).st_mode & 0o004:
            return fd
        copy = os.memfd_create(path.name, os.MFD_CLOEXEC)
        stack.callback(os.close, copy)
        with open(fd, "rb", closefd=False) as source, open(copy, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 2**20)
        os.fchmod(copy, 0o444)
        return copy

    log = file(home.console_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    assert log is not None
    handles: dict[str, Handles] = {}
    for nic in nics:
        if nic.vf:
            continue
        taps = keep(open_taps(nic), stack)
        handles[nic.name] = Handles(taps, keep(open_vhost(nic), stack))
    return Descriptors(
        monitor=sock(home.monitor), agent=sock(home.agent), console=sock(home.console), console_log=log,
        kernel=readable(boot.kernel), initrd=readable(boot.initrd), disk=file(boot.disk, os.O_RDWR), nics=handles)


def keep(descriptors: list[int], stack: ExitStack) -> tuple[str, ...]:
    for fd in descriptors:
        stack.callback(os.close, fd)
    return tuple(map(str, descriptors))


def inherited(files: Descriptors) -> list[int]:
    single = (files.monitor, files.agent, files.console, files.console_log, files.kernel, files.initrd, files.disk)
    return [*(n for n in single if n is not None),
            *(int(n) for h in files.nics.values() for n in (*h.taps, *h.vhosts))]


def release(home: GuestFolder, nics: Sequence[GuestNic], run: Run) -> None:
    """Take the carrier from NICs that shall have none, place its threads, then let the guest run."""
    try:
        with Monitor.open(home.monitor, START_TIMEOUT) as monitor:
            for nic in nics:
                if nic.link is False:
                    monitor.execute("set_link", {"name": device_id(nic), "up": False})
            home.save_record(nics)
            for wanted in threads(home.name, run, Facts(cpu_set=joined(os.sched_getaffinity(0)))):
                place(home, wanted)
            monitor.execute("cont")
    except OSError as error:
        raise HostCannot(f"guest {home.name}: its threads cannot be placed: {error.strerror}", f"see lscpu, and vms.{home.name}.run.pin") from error
    except QmpError as error:
        said = home.last_words() or str(error)
        hint = "apt-get install ipxe-qemu" if "romfile" in said else f"the whole command is in {home.command}"
        raise HostCannot(f"guest {home.name}: QEMU did not start: {said}", hint) from error


# Programs in it, and its end -------------------------------------------------------------------

def execute(name: str, program: Sequence[str] | str, paths: Paths, timeout: float = 60.0) -> Result:
    """Run an argument list, or a shell script, in a guest by its agent: (code, out, err).

    Waits as long as *timeout* seconds for the agent, and again for the program. Raises KvmnetError.
    """
    home = need_running(name, paths)
    argv = ["/bin/sh", "-c", program] if isinstance(program, str) else list(program)
    try:
        with Agent.open(home.agent, timeout) as agent:
            return agent.run(argv, timeout)
    except AgentError as error:
        raise KvmnetError(f"guest {name}: {error}{standstill(home)}", hint=f"see {home.console_log}") from error


def standstill(home: GuestFolder) -> str:
    """Why a guest that is silent cannot speak: what QEMU says when its processors do not run, else nothing."""
    with suppress(QmpError), Monitor.open(home.monitor, 2.0) as monitor:
        status = monitor.execute("query-status")["status"]
        return "" if status == "running" else f" (its processors stand still: {status})"
    return ""


def need_running(name: str, paths: Paths) -> GuestFolder:
    home = folder(paths, name)
    process = home.process()
    if process is None or not process.alive():
        gone = "" if process is None else f": its QEMU is gone: {home.last_words() or NO_WORDS}"
        raise KvmnetError(f"guest {name} does not run{gone}", hint=f"kvmnet vm start {name}")
    return home


def stop(name: str, paths: Paths, timeout: float = 30.0) -> Ending:
    """End a guest: by its agent or its power button, after *timeout* seconds by QEMU, then by force."""
    home = folder(paths, name)
    process = home.process()
    if process is None or not process.alive():
        home.forget()
        return Ending.NOT_RUNNING
    how = Ending.SHUT_DOWN
    if not shut_down(home, process, timeout):
        how = Ending.QUIT
        with suppress(QmpError), Monitor.open(home.monitor) as monitor:
            monitor.execute("quit")
        if not ended(process, 3.0):
            how = Ending.KILLED
            kill(process)
    home.forget()
    return how


def shut_down(home: GuestFolder, process: Process, timeout: float) -> bool:
    """Ask the guest until it has ended or *timeout* seconds are over: one that still boots hears
    its power button never, its agent later."""
    deadline = monotonic() + timeout
    with suppress(QmpError), Monitor.open(home.monitor, min(2.0, timeout)) as monitor:
        monitor.execute("system_powerdown")
    while (left := deadline - monotonic()) > 0:
        if ended(process, 0):
            return True
        with suppress(AgentError), Agent.open(home.agent, min(1.0, left)) as agent:
            agent.tell("guest-shutdown", {"mode": "powerdown"})
            return ended(process, max(0.0, deadline - monotonic()))
    return ended(process, 0)


def ended(process: Process, timeout: float) -> bool:
    try:
        reap(process, timeout)
        return True
    except KvmnetError:
        return False


def wait_for_agent(name: str, paths: Paths, timeout: float = 60.0) -> None:
    """Until the guest's agent answers. Raises KvmnetError, at once when its QEMU dies."""
    home = need_running(name, paths)

    def answers() -> bool:
        need_running(name, paths)
        with suppress(AgentError), Agent.open(home.agent, 2.0):
            return True
        return False

    try:
        wait_until(answers, timeout, 0.1)
    except TimeoutError:
        raise KvmnetError(f"guest {name}: no agent answers within {timeout:g} s",
                          hint=f"see {home.console_log}") from None
