"""Gates and device files of macvtaps, and that they are up.

Read: the macvtaps by one ``ip -json``, the classifiers of those that are ours by one ``tc -batch``. Written by
``tc -batch`` and ``ip -batch``, a run of steps each. The device files are made by mknod, since nobody else may do
so where there is no udev; they lie in the run directory, or below /dev when that takes no devices (nodev).
"""
from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2s
from itertools import groupby
from pathlib import Path
from typing import Any

from kvmnet.drivers.linux.attrs import OURS
from kvmnet.drivers.linux.batch import batch_text, run_batch
from kvmnet.drivers.linux.driver import ip_json
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.macvtap.resources import Gate, OpenPort, TapNode
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Delete, Step
from kvmnet.engine.resource import Wanted
from kvmnet.host.macvtap import DEV, numbers
from kvmnet.host.netlink import has_links
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run

PLACE = ("egress", "protocol", "all", "prio", "1")
"""Before every other classifier of the device."""
TOOLS = {Gate.kind: "tc", OpenPort.kind: "ip"}
MACHINE = Path("/run/kvmnet")


CLASSES = Path("/sys/class")


class MacvtapDriver:
    kinds = frozenset({Gate.kind, OpenPort.kind, TapNode.kind})

    def __init__(self, paths: Paths):
        self.paths = paths

    def unavailable(self) -> str | None:
        return missing("ip")

    def observe(self, intent: Wanted) -> Seen:
        seen = Seen()
        links = [i for i in ip_json("link", "show", "type", "macvtap") if i.get("ifalias", "").startswith(OURS)] if have_macvtaps() else []
        found: list[Gate | OpenPort | TapNode] = [
            OpenPort(name=i["ifname"], gate=i["ifname"], hook=i["ifname"]) for i in links if "UP" in i["flags"]]
        found += gates([i["ifname"] for i in links])
        found += nodes(node_folder(self.paths))
        for thing in found:
            seen.state[thing.key] = thing
            seen.ours.add(thing.key)
        return seen

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for kind, group in groupby(steps, lambda s: s.key.kind):
            run_of = list(group)
            if kind == TapNode.kind:
                known = numbers()
                for step in run_of:
                    self.place(step, known)
            else:
                run_batch([line for step in run_of for line in lines_of(step)], TOOLS[kind])
            progress(len(run_of))

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        made = []
        for kind, group in groupby(steps, lambda s: s.key.kind):
            run_of = list(group)
            if kind == TapNode.kind:
                made += [self.shell(step) for step in run_of]
            else:
                lines = [line for step in run_of for line in lines_of(step)]
                made.append(Command((TOOLS[kind], "-batch", "-"), batch_text(lines), tuple(x.key for x in lines)))
        return made

    def place(self, step: Step, known: Mapping[str, int]) -> None:
        """Make or remove one device file. ``known``: macvtaps -> their numbers."""
        folder = node_folder(self.paths)
        file = folder / step.key.name
        try:
            file.unlink(missing_ok=True)
            if isinstance(step, Delete):
                with suppress(OSError):    # others lie there still
                    folder.rmdir()
                return
            assert isinstance(step.after, TapNode)
            number = known.get(file.name)
            if number is None:
                raise StepFailed(step.key, f"there is no macvtap {file.name}", "kvmnet apply makes it")
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            os.mknod(file, stat.S_IFCHR | 0o600, number)
            os.chown(file, step.after.user or 0, -1)
        except OSError as error:
            raise StepFailed(step.key, f"{file}: {error.strerror}",
                             "in a container the macvtap devices must be allowed (devices.allow)") from error

    def shell(self, step: Step) -> Command:
        file = str(node_folder(self.paths) / step.key.name)
        if isinstance(step, Delete):
            return Command(("rm", "-f", file), keys=(step.key,))
        number = f"$(tr : ' ' < /sys/class/net/{step.key.name}/tap*/dev)"
        owner = getattr(step.after, "user", 0) or 0
        return Command(("sh", "-c", f"mknod -m 600 {file} c {number} && chown {owner} {file}"), keys=(step.key,))


def have_macvtaps() -> bool:
    """Whether there may be one. Where the kernel does not know the kind it would tell of every link, but then the class is missing, too, that
    comes with it (macvtap_init() in drivers/net/macvtap.c)."""
    return ((CLASSES / "macvtap").exists() or not (CLASSES / "net").exists()) and has_links("macvtap")


def lines_of(step: Step) -> list[Line]:
    key, dev = step.key, step.key.name
    if key.kind == OpenPort.kind:
        return [Line(("link", "set", "dev", dev, "down" if isinstance(step, Delete) else "up"), key,
                     gone=isinstance(step, Delete))]
    if isinstance(step, Delete):
        return [Line(("filter", "del", "dev", dev, *PLACE), key, gone=True)]
    program = getattr(step.after, "program", "") or ""
    return [Line(("qdisc", "replace", "dev", dev, "clsact"), key),
            Line(("filter", "replace", "dev", dev, *PLACE, "handle", "1", "bpf", "da", "bytecode",
                  f"{program.count(',') + 1},{program}"), key)]


def gates(devices: Sequence[str]) -> Iterator[Gate]:
    """The first classifiers of *devices*, where they have one. One that cannot be read is none."""
    listed = shown(devices)
    if len(listed) != len(devices):    # one went away meanwhile, and its answer is missing
        listed = [next(iter(shown([device])), []) for device in devices]
    for device, filters in zip(devices, listed, strict=True):
        for one in filters:
            if one.get("pref") == 1 and "options" in one:
                yield Gate(name=device, dev=device, program=program_of(one))
                break


def shown(devices: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    if not devices:
        return []
    with suppress(ToolFailed):
        text = run(("tc", "-json", "-force", "-batch", "-"),
                   stdin="".join(f"filter show dev {device} egress\n" for device in devices))
        found, decoder = [], json.JSONDecoder()
        while text := text.lstrip():
            value, end = decoder.raw_decode(text)
            found.append(value)
            text = text[end:]
        return found
    return []


def program_of(one: Mapping[str, Any]) -> str:
    """The classifier's instructions; '' of one that is not by classic BPF or decides nothing."""
    options = one["options"]
    if one.get("kind") != "bpf" or not options.get("direct-action"):
        return ""
    return ",".join(f"{i['code']} {i['jt']} {i['jf']} {i['k']}" for i in options.get("bytecode", {}).get("insns", ()))


def nodes(folder: Path) -> Iterator[TapNode]:
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    known = numbers() if files else {}
    for file in files:
        about = file.lstat()
        fits = (stat.S_ISCHR(about.st_mode) and stat.S_IMODE(about.st_mode) == 0o600
                and about.st_rdev == known.get(file.name))
        yield TapNode(name=file.name, dev=file.name, user=about.st_uid, fits=fits)


def node_folder(paths: Paths) -> Path:
    """Where device files lie: in the run directory, or below /dev when it takes none."""
    place = next(p for p in (paths.run, *paths.run.parents) if p.exists())
    if not os.statvfs(place).f_flag & os.ST_NODEV:
        return paths.run / "taps"
    own = "" if paths.run == MACHINE else "-" + blake2s(str(paths.run).encode(), digest_size=4).hexdigest()
    return DEV / f"kvmnet{own}"
