"""Where and why the kernel drops a packet of ours: its event skb:kfree_skb, which tells a reason (kernels from 5.17 on).

The event names a buffer, not a packet, and a buffer is another packet's within a tenth of a millisecond. So what comes in by a device on which nobody else
sends is ours from its net:netif_receive_skb on, as long as the same processor works for the same process; and what this process sends itself is dropped between two
marks that it writes into the trace (sendto() takes a packet as far as the first queue). The trace is an instance of its own, with a small buffer: other users of
tracing are not touched. Where tracefs is not mounted, it is opened without being mounted anywhere (fsopen(2), kernels from 5.2 on).
"""
from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.records import dataclass

MOUNTED = Path("/sys/kernel/tracing")
INSTANCE = "kvmnet-why-"
KILOBYTES = 512
"""Of trace, for each processor."""
SOON = 0.01
"""Seconds after its arrival within which a buffer is taken for ours."""
BEGIN, END = "kvmnet sends", "kvmnet has sent"
FSOPEN, FSCONFIG, FSMOUNT, FSCONFIG_CMD_CREATE = 430, 431, 432, 6
"""Numbers of system calls, the same on all architectures since Linux 5.1."""
LINE = re.compile(r"^\s*(?P<comm>.*)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]\s+\S+\s+(?P<at>\d+\.\d+): (?P<event>\w+): (?P<rest>.*)$")
DROP = re.compile(r"skbaddr=(?P<skb>\w+)(?: rx_sk=\S+)? protocol=(?P<protocol>\d+) location=(?P<where>\S+) reason: (?P<reason>\w+)")
SEEN = re.compile(r"dev=(?P<dev>\S+) skbaddr=(?P<skb>\w+)")
FUNCTION = re.compile(r"^(?!(?:0x)?[0-9a-f]{8,}$)[A-Za-z_][\w.]*")

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Dropped:
    """The end of a packet."""

    reason: str
    """As the kernel names it, without SKB_DROP_REASON_."""
    where: str = ""
    """Function of the kernel; '' where it hides addresses."""


@contextmanager
def tracefs() -> Iterator[str]:
    """Folder of tracefs. Raises OSError where this kernel has none, or it may not be opened."""
    if (MOUNTED / "instances").is_dir():
        yield str(MOUNTED)
        return
    filesystem = called(FSOPEN, b"tracefs", 1)
    try:
        called(FSCONFIG, filesystem, FSCONFIG_CMD_CREATE, None, None, 0)
        mount = called(FSMOUNT, filesystem, 1, 0)
    finally:
        os.close(filesystem)
    try:
        yield f"/proc/self/fd/{mount}"
    finally:
        os.close(mount)


def called(*arguments: object) -> int:
    number = libc.syscall(*arguments)
    if number < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(number)


class DropTrace:
    """Drops while it is open. ``impossible`` says why there is none to be had; then it is empty."""

    def __init__(self, protocol: int):
        self.protocol = protocol
        """Ethernet type of the packets."""
        self.impossible = ""
        self.root = ""
        self.open = tracefs()

    @property
    def folder(self) -> Path:
        return Path(self.root, "instances", f"{INSTANCE}{os.getpid()}")

    def __enter__(self) -> DropTrace:
        try:
            self.root = self.open.__enter__()
        except OSError as error:
            self.impossible = f"the reasons of drops are not given by this kernel: tracefs: {error.strerror}"
            return self
        try:
            swept(Path(self.root, "instances"))
            self.folder.mkdir()
            self.begin()
        except OSError as error:
            self.__exit__()
            self.impossible = f"the reasons of drops are not given by this kernel: {error.strerror or error}"
        return self

    def begin(self) -> None:
        told = (self.folder / "events/skb/kfree_skb/format").read_text()
        if "reason" not in told:
            raise OSError(0, "skb:kfree_skb has no reason")
        self.write("buffer_size_kb", str(KILOBYTES))
        if "%pS" in told:   # Linux 6.1, which prints no function either, leaves out all words without hashes: "dev= ... reason: "
            self.write("options/hash-ptr", "0")
        self.write("events/skb/kfree_skb/filter", f"protocol == {self.protocol}")
        self.write("events/net/netif_receive_skb/filter", 'name ~ "kvp-*"')
        for event in ("skb/kfree_skb", "net/netif_receive_skb"):
            self.write(f"events/{event}/enable", "1")
        self.write("tracing_on", "1")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """What this process sends in the block is its own."""
        if self.impossible:
            yield
            return
        self.write("trace_marker", BEGIN)
        try:
            yield
        finally:
            self.write("trace_marker", END)

    def found(self, port: str = "") -> list[Dropped]:
        """Drops of our packets so far, each once. ``port``: the device of ours that they came in by; '' for what this process sends itself."""
        if self.impossible:
            return []
        return drops((self.folder / "trace").read_text(errors="replace").splitlines(), port)

    def __exit__(self, *_: object) -> None:
        if self.root:
            with suppress(OSError):
                self.folder.rmdir()
            self.root = ""
            self.open.__exit__(None, None, None)


def swept(instances: Path) -> None:
    """Removes what a process that was killed has left."""
    for folder in instances.glob(f"{INSTANCE}*"):
        if not Path("/proc", folder.name.removeprefix(INSTANCE)).exists():
            with suppress(OSError):
                folder.rmdir()


def drops(lines: Sequence[str], port: str) -> list[Dropped]:
    """Drops of the buffers that are ours, of the text of a trace."""
    found: dict[Dropped, None] = {}
    ours: dict[str, tuple[str, str, float]] = {}
    sends = ""
    for row in (row for line in lines if (row := LINE.match(line))):
        match row["event"]:
            case "tracing_mark_write":
                sends = row["pid"] if row["rest"] == BEGIN else ""
            case "netif_receive_skb":
                if (seen := SEEN.match(row["rest"])) and seen["dev"] == port:
                    ours[seen["skb"]] = row["pid"], row["cpu"], float(row["at"]) + SOON
            case "kfree_skb" if drop := DROP.match(row["rest"]):
                pid, cpu, until = ours.pop(drop["skb"], ("", "", 0.0))
                soon = float(row["at"]) <= until or row["pid"] == sends     # within our own send, however slow the machine
                if ((pid, cpu) == (row["pid"], row["cpu"]) and soon) or (not port and row["pid"] == sends):
                    found[Dropped(drop["reason"], function(drop["where"]))] = None
    return list(found)


def function(place: str) -> str:
    """``nft_do_chain+0x3e8/0x610`` without its offset; '' where the kernel gives a number (before Linux 6.3)."""
    name = FUNCTION.match(place)
    return name[0] if name else ""
