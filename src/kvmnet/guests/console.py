"""The serial console of a guest on a terminal. Ctrl-] ends the session, the guest runs on."""
from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from kvmnet.drivers.qemu.sockets import connect
from kvmnet.errors import KvmnetError
from kvmnet.guests.launch import need_running
from kvmnet.host.paths import Paths

END = b"\x1d"
"""Ctrl-], as in telnet(1) and virsh(1)."""
SHOWN = 4096
"""Bytes of what the guest said before that are shown first."""


def attach(name: str, paths: Paths, keyboard: int = 0, screen: int = 1) -> None:
    """Connect *keyboard* and *screen* (descriptors) to guest *name* until Ctrl-] or the guest's end.

    Raises KvmnetError when the guest does not run or the keyboard is no terminal.
    """
    home = need_running(name, paths)
    if not os.isatty(keyboard):
        raise KvmnetError("a console needs a terminal", hint=f"kvmnet vm exec {name} -- COMMAND")
    try:
        line = connect(home.console)
    except OSError as error:
        raise KvmnetError(f"guest {name}: cannot reach its console: {error.strerror or error}") from error
    line.settimeout(None)
    write(screen, f"console of {name}: Ctrl-] ends\r\n".encode() + home.console_log.read_bytes()[-SHOWN:])
    with line, raw(keyboard):
        relay(line.fileno(), keyboard, screen)
    write(screen, b"\r\n")


def relay(line: int, keyboard: int, screen: int) -> None:
    while True:
        ready, _, _ = select.select([line, keyboard], [], [])
        if line in ready:
            data = os.read(line, 65536)
            if not data:
                return
            write(screen, data)
        if keyboard in ready:
            data = os.read(keyboard, 4096)
            typed, end, _ = data.partition(END)
            write(line, typed)
            if end or not data:
                return


def write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]


@contextmanager
def raw(keyboard: int) -> Iterator[None]:
    """Every key goes to the guest; the terminal is given back as it was."""
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
