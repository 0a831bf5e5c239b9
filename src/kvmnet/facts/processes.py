"""Who holds which tap and listens on which port, and which guests run: one pass through /proc. Only reads.

The kernel tells the device of an open /dev/net/tun in the descriptor's fdinfo, as ``iff:`` (tun_chr_show_fdinfo() in
drivers/net/tun.c). Sockets are told apart by their inode.
"""
from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

from kvmnet.facts.secrets import scrubbed_words
from kvmnet.host.process import namespace_id
from kvmnet.records import dataclass, field

Json = dict[str, Any]
IFF = re.compile(r"^iff:\s*(\S+)", re.M)
SERVERS = ("dnsmasq", "dhcpd", "kea-dhcp4", "radvd", "named", "unbound", "systemd-resolved", "firewalld", "dockerd", "libvirtd", "ovs-vswitchd", "ovsdb-server", "ovn-controller",
           "keepalived", "bird", "zebra", "NetworkManager", "systemd-networkd")
"""Programs that take part in the network of a host."""
LISTEN = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
"""File under /proc/net -> state of a socket that waits for anybody (include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class Processes:
    taps: dict[str, Json] = field(default_factory=dict)
    """Tap -> {pid, program, queues} of who has it open; those of processes that we may not look at are not there."""
    listening: list[Json] = field(default_factory=list)
    """{proto, address, port, program, pid}; '' and 0 for who is not known."""
    guests: list[Json] = field(default_factory=list)
    """QEMU: {pid, name, argv, taps, and halted where its process was stopped by a signal}."""
    servers: list[Json] = field(default_factory=list)
    """{pid, program, argv} of ``SERVERS``, and halted."""


def processes(proc: Path = Path("/proc")) -> Processes:
    """Of this network namespace."""
    found = Processes()
    here = namespace_id()
    sockets = listening(proc)
    for process in proc.iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if (process / "ns/net").stat().st_ino == here:
                    look(process, found, sockets)
    found.listening.extend(sockets.values())
    return found


def look(process: Path, found: Processes, sockets: dict[str, Json]) -> None:
    """Everything about one process. Raises OSError when it has gone."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    pid, program = int(process.name), Path(words[0]).name if words[0] else ""
    taps: dict[int, str] = {}
    for fd in (process / "fd").iterdir():
        with suppress(OSError):
            target = str(fd.readlink())
            if target.startswith("socket:[") and (socket := sockets.get(target[8:-1])):
                socket |= {"program": program, "pid": pid}
            elif target.startswith("/dev/net/tun") and (told := IFF.search((process / "fdinfo" / fd.name).read_text(errors="replace"))):
                taps[int(fd.name)] = told[1]
    for tap in taps.values():
        entry = found.taps.setdefault(tap, {"pid": pid, "program": program, "queues": 0})
        entry["queues"] += 1
    if program.startswith(("qemu-system-", "qemu-kvm")) or program == "kvm":
        found.guests.append({"pid": pid, "name": guest_name(words), "argv": scrubbed_words(words), "taps": {str(fd): tap for fd, tap in taps.items()},
                             **halted(process)})
    elif program in SERVERS:
        found.servers.append({"pid": pid, "program": program, "argv": scrubbed_words(words), **halted(process)})


STOPPED = ("T", "t")
"""States of a process that a signal or a debugger has stopped (proc_pid_stat(5))."""


def state(process: Path) -> str:
    """State of a process by its letter. The name before it may hold anything, also parentheses."""
    return (process / "stat").read_text(errors="replace").rpartition(") ")[2][:1]


def halted(process: Path) -> Json:
    return {"halted": True} if state(process) in STOPPED else {}


def guest_name(words: list[str]) -> str:
    """Name of a guest by QEMU's option -name (qemu(1)): libvirt writes ``guest=NAME,debug-threads=on``."""
    for option, value in pairwise(words):
        if option in ("-name", "--name"):
            return value.split(",")[0].removeprefix("guest=")
    return ""


def listening(proc: Path) -> dict[str, Json]:
    """Inode -> socket that waits for anybody."""
    found: dict[str, Json] = {}
    for proto, state in LISTEN.items():
        with suppress(OSError):
            for line in (proc / "thread-self/net" / proto).read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == state:
                    address, _, port = words[1].partition(":")
                    found[words[9]] = {"proto": proto[:3], "address": readable(address), "port": int(port, 16), "program": "", "pid": 0}
    return found


def readable(address: str) -> str:
    """An address as /proc/net/tcp spells it: words of 32 bits in the machine's order."""
    raw = bytes.fromhex(address)
    return str(ip_address(b"".join(raw[i:i + 4][::-1] for i in range(0, len(raw), 4))))
