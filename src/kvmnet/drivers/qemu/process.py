"""The QEMU process of a guest: what it may be, that it runs, and how it ends."""
from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path
from typing import TypeAlias

from kvmnet.drivers.qemu.passed import lockable
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.host.process import Process, start_time
from kvmnet.host.run import find, missing
from kvmnet.records import dataclass, replace

KVM = Path("/dev/kvm")
SHARED = "nobody"
OWN_USERS = range(0x7000_0000, 0x8000_0000)
"""Numbers that no distribution, container or systemd gives away (systemd.io/UIDS-GIDS)."""
Child: TypeAlias = "subprocess.Popen[bytes]"


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that QEMU runs as, from its first instruction on."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """Only the group that /dev/kvm belongs to, if a group may open it."""


def account(user: str) -> Account:
    """Raises HostCannot for a user that does not exist or is root."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise HostCannot(f"there is no user {user} to run QEMU as", hint="vms.NAME.run.user names it") from None
    if entry.pw_uid == 0:
        raise HostCannot("QEMU must not run as root", hint="vms.NAME.run.user: nobody")
    groups: tuple[int, ...] = ()
    with suppress(OSError):
        device = KVM.stat()
        if device.st_mode & 0o060 == 0o060 and device.st_gid != 0:
            groups = (device.st_gid,)
    return Account(user, entry.pw_uid, entry.pw_gid, groups)


def apart(who: Account, guest: Path) -> Account:
    """*who*, or for ``nobody`` a user that only the guest of this run folder has: processes of one user
    may write each other's memory (/proc/PID/mem), so that a QEMU that was taken over by its guest
    would have those of all others, and their NICs. Where such users do not exist (in a container
    with few), it stays nobody."""
    own = OWN_USERS.start + int.from_bytes(blake2s(os.fsencode(guest), digest_size=4).digest(), "big") % len(OWN_USERS)
    if who.name != SHARED or not (mapped("uid_map", own) and mapped("gid_map", own)):
        return who
    return replace(who, name=f"{SHARED} (uid {own})", uid=own, gid=own)


def mapped(which: str, number: int) -> bool:
    """Whether a user or group of this number exists in our user namespace (user_namespaces(7))."""
    try:
        rows = [list(map(int, line.split())) for line in Path("/proc/self", which).read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return any(first <= number < first + count for first, _, count in rows)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def spawn(argv: Sequence[str], who: Account, inherit: Sequence[int], errors: int, locked: int = 0) -> Child:
    """Start QEMU in a session of its own. ``errors``: descriptor that gets what it says. ``locked``: bytes of memory
    that it may lock; 0 for as much as usual."""
    path = find(argv[0])
    if path is None:
        raise HostCannot(missing(argv[0]) or argv[0])
    with lockable(locked):
        return subprocess.Popen(
            [path, *argv[1:]], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd="/",
            user=who.uid, group=who.gid, extra_groups=list(who.groups), pass_fds=tuple(inherit),
            start_new_session=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"})


def finish(child: Child, timeout: float) -> int | None:
    """Exit code of a short-lived QEMU; None when it had to be ended after *timeout* seconds."""
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def let_go(child: Child) -> None:
    """It outlives us: from now on it is known by its process file, and Python need not mind."""
    child.returncode = 0


def identity(pid: int) -> Process:
    start = start_time(pid)
    return Process(pid, start if start is not None else -1)


def writers_of(log: Path) -> list[int]:
    """QEMUs whose standard output is *log*: started by us, before their process file was written."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "fd/1").readlink() == log and "qemu" in (entry / "comm").read_text():
                    found.append(int(entry.name))
    return found


def kill(process: Process, timeout: float = 5.0) -> None:
    """End this very process, hard, and wait until it is gone."""
    with suppress(OSError):
        fd = os.pidfd_open(process.pid)
        try:
            if process.alive():
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
    reap(process, timeout)


def reap(process: Process, timeout: float) -> None:
    """Wait until *process* has ended, whoever its parent is. Raises TimeoutError."""
    def gone() -> bool:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        return not process.alive()
    try:
        wait_until(gone, timeout)
    except TimeoutError:
        raise KvmnetError(f"QEMU (pid {process.pid}) does not end", hint=f"look at it: /proc/{process.pid}") from None
