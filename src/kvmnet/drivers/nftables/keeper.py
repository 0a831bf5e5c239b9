"""The guard's keeper: a small process that holds tables nobody can flush, and restores ours.

Run as a program, with the standard library alone: ``python -I -S keeper.py FOLDER VERSION``.

A resident ``nft -i`` owns the tables of ``held.nft`` (flag owner), which drop guest frames that no
guard has judged. The kernel tells of every removed table on a netlink socket; when one of ours is
gone, ``ruleset.nft`` is loaded again at once, unless kvmnet itself is changing it (``changing``),
and with it the link-local addresses that NICs had claimed (``memory.nft``, saved every 5 s).
When this process ends, nft reads end of file and ends too, and the kernel removes the held tables.
"""
from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

# pathlib, re and subprocess take half of a start, for which a change waits: the last two are loaded once the tables are held.

NETLINK_NETFILTER = 12
GROUP_NFTABLES = 7
SUBSYSTEM = 10 << 8
NEWTABLE, GETTABLE, DELTABLE = (SUBSYSTEM | n for n in range(3))
ERROR, DONE = 2, 3
REQUEST, DUMP = 1, 0x300
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
TABLE_NAME = 1
GUARDS = ("bridge kvmnet", "netdev kvmnet")
MEMORY = ("claimed", "learned")
"""Sets of the guard that the kernel fills."""
PATIENCE = 25.0
"""Seconds until nft holds the tables; a machine may be very busy."""
REMEMBER_EVERY = 5.0
"""Seconds after which they are saved again."""


def start_time(pid: int) -> str | None:
    """When a process began, in ticks since boot: with the pid, its identity. None when it is gone."""
    try:
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def read(file: str) -> str:
    """Raises OSError."""
    with open(file, encoding="utf-8", errors="replace") as text:
        return text.read()


def replace(file: str, text: str) -> None:
    """Put *text* in the place of a file, so that a reader sees the old text or the new one."""
    with open(f"{file}.new", "w", encoding="utf-8") as fresh:
        fresh.write(text)
    os.replace(f"{file}.new", file)  # noqa: PTH105


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of each netlink message in *data*."""
    found = []
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 16:
            break
        found.append((kind, data[16:length]))
        data = data[length + 3 & ~3:]
    return found


def table_name(payload: bytes) -> str:
    """``FAMILY NAME`` of a message about a table."""
    family, rest = payload[0], payload[4:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        if kind & 0x3FFF == TABLE_NAME:
            return f"{FAMILIES.get(family, family)} {rest[4:length - 1].decode()}"
        rest = rest[max(4, length + 3 & ~3):]
    return ""


def on_a_device(line: str) -> bool:
    """False of a chain on a device that is gone: up to Linux 6.15 nft would refuse the whole file for it."""
    _, device, rest = line.partition(' device "')
    name, quoted, _ = rest.partition('" ')
    if not device or not quoted:
        return True
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


class Owner:
    """The nft that owns the tables to hold, and reads what it is told until that ends."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        try:
            self.pid = os.posix_spawnp("nft", ["nft", "-i"], os.environ, file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
        finally:
            os.close(reading)
        self.runs = True

    def ended(self, how: int = os.WNOHANG) -> bool:
        self.runs = self.runs and not os.waitpid(self.pid, how)[0]
        return not self.runs

    def end(self) -> None:
        os.close(self.writing)
        self.ended(0)


class Keeper:
    def __init__(self, folder: str, version: str):
        self.folder, self.version = folder, version
        self.held = read(f"{folder}/held.nft")
        self.names = [line[6:].partition(" {")[0] for line in self.held.splitlines() if line.startswith("table ")]

    def run(self) -> int:
        lock = open(f"{self.folder}/keeper.lock", "w")  # noqa: SIM115 - held for life
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("another keeper runs here", flush=True)
            return 3
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        events.bind((0, 1 << GROUP_NFTABLES - 1))
        while not (status := self.hold(events)):
            pass
        return status

    def stop(self, *_: object) -> None:
        sys.exit(0)

    def hold(self, events: socket.socket) -> int:
        """Own the tables with one nft until it ends or we are told to.

        Tables of a keeper that was killed stand until its nft has ended, too. Ours could not be made beside
        them, and what is seen of them would soon be gone: they are waited for first.
        """
        if not self.until(lambda: not set(self.names) & self.tables()):
            print("another process owns the tables to hold", flush=True)
            return 4
        owner = Owner()
        try:
            if not self.take(owner):
                print("nft did not take the tables to hold", flush=True)
                return 4
            self.tell()
            self.watch(events, owner)
            return 0
        finally:
            owner.end()

    def take(self, owner: Owner) -> bool:
        """Have *owner* make the tables, while kvmnet changes nothing: it counts transactions."""
        with open(f"{self.folder}/changing", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(owner.writing, self.held.encode())
            return self.until(lambda: set(self.names) <= self.tables() or owner.ended()) and not owner.ended()

    @staticmethod
    def until(condition: Callable[[], bool]) -> bool:
        """Whether *condition* comes true within PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                return False
            select.select([], [], [], 0.002)
        return True

    def tell(self) -> None:
        """Write the pid file: from here on we hold."""
        start, namespace = start_time(os.getpid()), os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        replace(f"{self.folder}/keeper.json",
                f'{{"pid": {os.getpid()}, "start": "{start}", "version": "{self.version}", "netns": {namespace}}}')

    def watch(self, events: socket.socket, owner: Owner) -> None:
        handle = os.pidfd_open(owner.pid)
        try:
            self.restore()
            import re  # noqa: F401
            import subprocess  # noqa: F401
            due = time.monotonic() + REMEMBER_EVERY
            while True:
                ready, _, _ = select.select([events.fileno(), handle], [], [], max(0, due - time.monotonic()))
                if time.monotonic() >= due:
                    self.remember()
                    due = time.monotonic() + REMEMBER_EVERY
                if handle in ready:
                    return
                if events.fileno() in ready and self.something_went(events):
                    self.restore()
        finally:
            os.close(handle)

    def something_went(self, events: socket.socket) -> bool:
        """Whether a table was removed since the last look, or we may have missed it."""
        went = False
        while True:
            try:
                data = events.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return went
            except OSError:
                return True
            went = went or any(kind == DELTABLE for kind, _ in messages(data))

    def restore(self) -> None:
        """Load our tables again if one of them is missing."""
        if not self.lacking():
            return
        with open(f"{self.folder}/changing", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if lacking := self.lacking():
                code = self.load("ruleset.nft", "memory.nft") and self.load("ruleset.nft")
                print(f"{time.strftime('%FT%T')} restored {', '.join(sorted(lacking))}: nft exit {code}", flush=True)

    def load(self, *names: str) -> int:
        """Load files as one transaction."""
        import subprocess
        files = [file for name in names if os.path.exists(file := f"{self.folder}/{name}")]  # noqa: PTH110
        script = "".join(line for file in files for line in read(file).splitlines(keepends=True) if on_a_device(line))
        return subprocess.run(["nft", "-f", "-"], input=script.encode(), check=False).returncode

    def remember(self) -> None:
        """Save which NIC uses which link-local: the kernel alone knows, and a flush makes it forget."""
        import re
        import subprocess
        with open(f"{self.folder}/changing", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            lines = []
            here = self.tables()
            if self.lacking():
                return
            for table, name in ((table, name) for table in GUARDS if table in here for name in MEMORY):
                done = subprocess.run(["nft", "list", "set", *table.split(), name], capture_output=True, text=True,
                                      check=False)
                if done.returncode:
                    return
                if found := re.search(r"elements = \{(.*?)\}", done.stdout, re.S):
                    lines.append(f"add element {table} {name} {{{' '.join(found[1].split())}}}\n")
            replace(f"{self.folder}/memory.nft", "".join(lines))

    def lacking(self) -> set[str]:
        try:
            with open(f"{self.folder}/ruleset.nft") as file:
                wanted = {line[6:-2].strip() for line in file if line.startswith("table ") and line.endswith("{\n")}
        except OSError:
            return set()
        return wanted - self.tables() if wanted else wanted

    def tables(self) -> set[str]:
        """``FAMILY NAME`` of every table there is."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as ask:
            ask.send(struct.pack("=IHHIIBBH", 20, GETTABLE, REQUEST | DUMP, 1, 0, 0, 0, 0))
            found: set[str] = set()
            while True:
                for kind, payload in messages(ask.recv(1 << 18)):
                    if kind in (ERROR, DONE):
                        return found
                    found.add(table_name(payload))


if __name__ == "__main__":
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    sys.exit(Keeper(sys.argv[1], sys.argv[2]).run())
