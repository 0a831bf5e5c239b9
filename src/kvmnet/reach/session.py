"""Where the operator's session comes from: what would be cut off with the host.

sshd says it in SSH_CONNECTION, which sudo takes away: the environments of the parents are read, too. A
connection that is not established any more (a terminal multiplexer that was left running) does not count.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

ESTABLISHED = "01"
"""TCP_ESTABLISHED (net/tcp_states.h)."""


def peer(proc: Path = Path("/proc")) -> str:
    """Address that this session's SSH connection comes from; '' when there is none."""
    for words in connections(proc):
        if len(words) == 4 and (far := plain(words[0])) and is_established(words, proc):
            return far
    return ""


def connections(proc: Path) -> Iterator[list[str]]:
    """SSH_CONNECTION of this process and its parents: address and port of the client, then of the server."""
    pid, depth = os.getpid(), 0
    if value := os.environ.get("SSH_CONNECTION"):
        yield value.split()
    while pid > 1 and depth < 32:
        with suppress(OSError):
            for item in (proc / str(pid) / "environ").read_bytes().split(b"\0"):
                if item.startswith(b"SSH_CONNECTION="):
                    yield item.partition(b"=")[2].decode(errors="replace").split()
        try:
            pid = int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
        depth += 1


def plain(text: str) -> str:
    """An address in canonical form, IPv4 also where IPv6 wraps it; '' for what is none."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_established(words: list[str], proc: Path) -> bool:
    """Whether this network namespace has the connection."""
    far, near = (plain(words[0]), words[1]), (plain(words[2]), words[3])
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "thread-self" / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == ESTABLISHED and (end(local), end(remote)) == (near, far):
                return True
    return False


def end(text: str) -> tuple[str, str]:
    """(address, port) of one end as /proc/net/tcp shows it: words of 32 bits in the host's byte order."""
    packed, _, port = text.partition(":")
    raw = b"".join(struct.pack("=I", int(packed[i:i + 8], 16)) for i in range(0, len(packed), 8))
    return plain(str(ip_address(raw))), str(int(port, 16))
