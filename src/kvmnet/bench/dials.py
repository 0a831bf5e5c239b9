"""Kernel settings that a configuration has during its turns, and only then.

Those of a network namespace are set in the measuring host's own. Those of the whole machine exist in its first namespace alone; they are
set there when that is allowed, given back after each turn, and by a process outside when this one is killed (`outlived`).
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.host.put_back import BEGUN, Command, lit
from kvmnet.host.run import ToolFailed, run
from kvmnet.spec.knobs import KNOBS

PROC_SYS = Path("/proc/sys")
LONGEST = 7 * 86400.0
"""Seconds after which what is still changed is given back in any case."""
PROBE = 'p=/proc/sys/$0; [ -e $p ] || exit 3; [ $(( 0$(stat -c %a $p) & 0200 )) -ne 0 ] || exit 3; printf %s "$1" > $p'
"""Whether a setting can be made in a namespace: 3 where it has none that can be written."""
NO_SUCH = 3


class Whose(StrEnum):
    NAMESPACE = "namespace"
    MACHINE = "machine"


def whose(name: str, value: str) -> Whose:
    """Whether *name* can be set in a namespace of its own, tried in one that is gone afterwards. Raises HostCannot where this kernel has no
    such setting, or refuses *value* in a namespace."""
    path = KNOBS[name].path
    if not (PROC_SYS / path).exists():
        raise HostCannot(f"{name}: this kernel has no such setting", "leave it out")
    try:
        run(["unshare", "--net", "--", "sh", "-c", PROBE, path, value])
    except ToolFailed as failed:
        if failed.code == NO_SUCH:
            return Whose.MACHINE
        raise HostCannot(f"{name}={value} cannot be set in a namespace: {failed.detail.rpartition(': ')[2]}",
                         hint_of(name)) from failed
    return Whose.NAMESPACE


def hint_of(name: str) -> str:
    if name == "net.ipv4.tcp_congestion_control":
        return "namespaces may choose those of net.ipv4.tcp_allowed_congestion_control"
    return "leave it out"


def refuse_of_machine(settings: Mapping[str, set[str]], allowed: bool) -> list[str]:
    """Names of *settings* (name -> values that are wanted) that are the whole machine's. Raises KvmnetError unless *allowed*."""
    wide = [name for name, values in settings.items() if {whose(name, v) for v in values} == {Whose.MACHINE}]
    if wide and not allowed:
        raise KvmnetError(f"{', '.join(wide)}: of the whole machine, not of the host in which this measures",
                          "with --machine they are changed on this machine during their turns, and given back after each")
    return wide


def machine_values(names: Sequence[str]) -> dict[str, str]:
    return {name: " ".join((PROC_SYS / KNOBS[name].path).read_text().split()) for name in names}


@contextmanager
def outlived(values: Mapping[str, str]) -> Iterator[None]:
    """*values* of the machine are set again when the body is over and this process, and all that it forks meanwhile, have ended. To
    be entered where they can be written, before threads are started."""
    if not values:
        yield
        return
    with lit([Command(("sysctl", "-qw", f"{name}={value}")) for name, value in values.items()], LONGEST) as fuse:
        fuse.say(BEGUN)
        yield


class Dials:
    """Sets and gives back. *home*: a file descriptor of the namespace that has the machine's settings; *wide*: which those are."""

    def __init__(self, home: int = -1, wide: Mapping[str, str] | None = None):
        self.home, self.wide = home, dict(wide or {})

    @contextmanager
    def turned(self, wanted: Mapping[str, str]) -> Iterator[None]:
        """*wanted* is set for the body; what was before, afterwards. Raises ToolFailed, KvmnetError."""
        before = {name: self.wide.get(name) or self.value(name) for name in wanted}
        try:
            for name, value in wanted.items():
                self.set(name, value)
            yield
        finally:
            for name, value in before.items():
                self.set(name, value)

    def value(self, name: str) -> str:
        return " ".join((PROC_SYS / KNOBS[name].path).read_text().split())

    def set(self, name: str, value: str) -> None:
        argv = ["sysctl", "-qw", f"{name}={value}"]
        if name in self.wide:
            argv = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.home}", *argv]
        run(argv)
