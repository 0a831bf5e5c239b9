"""Work in a process of its own, which may be killed."""
from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> int:
    """Run *work* in a forked child and wait for it: 0, 1 (it raised), or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  a child must never run on into the test
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
