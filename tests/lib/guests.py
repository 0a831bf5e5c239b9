"""Guests of tests, without KVM."""
from __future__ import annotations

import sys
from collections.abc import Callable

from kvmnet.drivers.qemu.folder import folder
from kvmnet.errors import KvmnetError
from kvmnet.guests.launch import stop, wait_for_agent
from kvmnet.host.paths import Paths
from lib.qemu import PATIENCE


def booted(name: str, start: Callable[[], object], paths: Paths) -> None:
    """*start* the guest and wait until its agent answers. One of some hundred emulated guests did not within a minute, on a busy machine, and was not
    seen to do so again: it is started once more then, and the end of what its console said is shown. Raises KvmnetError the second time."""
    start()
    try:
        wait_for_agent(name, paths)
    except KvmnetError as late:
        said = folder(paths, name).console_log.read_text(errors="replace")
        print(f"{late}; its console ended with:\n{said[-3000:]}", file=sys.stderr)
        stop(name, paths, timeout=0.1)
        start()
        wait_for_agent(name, paths, PATIENCE)
