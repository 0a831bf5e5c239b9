"""Runs inside the lab, as its first process: does what the outside asks, one thing at a time.

Requests and answers are lines of JSON on a virtio-serial port. Python is 15 to 20 times slower here than
outside, so it is started once: whatever needs kvmnet or pytest runs in a fork of this process, which has
them loaded. When this process ends the kernel panics, and the lab ends with it.
"""
from __future__ import annotations

import base64
import ctypes
import fcntl
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import termios
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PORT = "lab.agent"
WORK = Path("/sys/fs/cgroup/work")
"""Every process that a request starts is in this group, so that all of them can be ended."""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
               "LANG": "C.UTF-8", "TERM": "linux", "KVMNET_LAB": "1"}
NOTES = 3
"""Descriptor on which a child says things that are neither output nor errors: a line of JSON each."""
DEVICE_MODULES = ("tun", "vhost_net")
"""Those that a Debian host loads when their device file, which systemd makes, is opened."""
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
Request = dict[str, Any]


def main() -> NoReturn:
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for folder in (WORK, Path("/run/netns")):
        folder.mkdir(parents=True, exist_ok=True)
    libc.mount(b"/run/netns", b"/run/netns", b"none", 4096, None)          # MS_BIND
    libc.mount(b"none", b"/run/netns", b"none", 1 << 20, None)             # MS_SHARED
    subprocess.run(["modprobe", "-a", *DEVICE_MODULES], check=True)
    port = Port(find_port())
    port.say(hello=os.uname().release, up=time.clock_gettime(time.CLOCK_BOOTTIME))
    while request := port.request():
        try:
            OPERATIONS[request["op"]](port, request)
        except Exception:  # noqa: BLE001 the outside shows it; this process has to live on
            port.say(failed=traceback.format_exc())
    Path("/proc/sysrq-trigger").write_text("o")
    while True:
        signal.pause()


def find_port() -> Path:
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == PORT:
            return Path("/dev") / port.name
    raise OSError(f"no port {PORT}")


class Port:
    def __init__(self, path: Path):
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.buffer = b""

    def request(self) -> Request | None:
        """The next request; None when the outside has gone."""
        while b"\n" not in self.buffer:
            data = os.read(self.fd, 1 << 16)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        found: Request = json.loads(line)
        return found

    def say(self, **what: object) -> None:
        data = json.dumps(what).encode() + b"\n"
        while data:
            data = data[os.write(self.fd, data):]


# -- operations ------------------------------------------------------------------------------------

def put(port: Port, request: Request) -> None:
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(request["data"]))
    path.chmod(request["mode"])
    port.say(code=0)


def get(port: Port, request: Request) -> None:
    port.say(out=base64.b64encode(Path(request["path"]).read_bytes()).decode())
    port.say(code=0)


def warm(port: Port, request: Request) -> None:
    """Load modules that every later fork then has."""
    sys.path[:0] = [p for p in request["path"] if p not in sys.path]
    for name in request["modules"]:
        importlib.import_module(name)
    port.say(code=0)


def clear(port: Port, request: Request) -> None:
    """End what requests have left running and delete the named namespaces that they made."""
    kill_work()
    for name in Path("/run/netns").iterdir():
        libc.umount2(str(name).encode(), 2)                                # MNT_DETACH
        with suppress(OSError):
            name.unlink()
    port.say(code=0)


def work(port: Port, request: Request) -> None:
    """Run a program or code in a child, and pass on what it says until it ends or its time is over."""
    ends = [os.pipe() for _ in ("out", "err", "note")]
    child = os.fork()
    if child == 0:
        become([write for _, write in ends], request)
    for _, write in ends:
        os.close(write)
    code, late = follow(port, child, {read: name for (read, _), name in zip(ends, ("out", "err", "note"), strict=True)},
                        time.monotonic() + request["timeout"])
    for read, _ in ends:
        os.close(read)
    port.say(code=code, late=late)


OPERATIONS: dict[str, Callable[[Port, Request], None]] = {
    "put": put, "get": get, "warm": warm, "clear": clear, "program": work, "python": work, "pytest": work,
    "terminal": work,
}


# -- children --------------------------------------------------------------------------------------

def follow(port: Port, child: int, pipes: dict[int, str], deadline: float) -> tuple[int, bool]:
    """(exit code, whether it was ended because its time was over)."""
    code, late = -1, False
    with selectors.DefaultSelector() as selector:
        for read in pipes:
            os.set_blocking(read, False)
            selector.register(read, selectors.EVENT_READ)
        while code == -1:
            for key, _ in selector.select(0.05):
                if not pass_on(port, key.fd, pipes[key.fd]):
                    selector.unregister(key.fd)
            code = reap(child)
            if code == -1 and not late and time.monotonic() > deadline:
                late = True
                kill_work()
    for read, name in pipes.items():
        while pass_on(port, read, name):
            pass
    return code, late


def pass_on(port: Port, read: int, name: str) -> bool:
    try:
        data = os.read(read, 1 << 16)
    except BlockingIOError:
        return False
    if data:
        port.say(**{name: base64.b64encode(data).decode()})
    return bool(data)


def reap(child: int) -> int:
    """Collect all processes that have ended; the exit code of *child* if it is one of them, else -1."""
    code = -1
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                ended = os.waitstatus_to_exitcode(status)
                code = ended if ended >= 0 else 128 - ended
    return code


def kill_work() -> None:
    (WORK / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 5
    while "populated 1" in (WORK / "cgroup.events").read_text() and time.monotonic() < deadline:
        os.sched_yield()


def become(ends: list[int], request: Request) -> NoReturn:
    """The child's own life."""
    code = 125
    try:
        os.setsid()
        (WORK / "cgroup.procs").write_text(str(os.getpid()))
        signal.set_wakeup_fd(-1)
        nowhere = os.open("/dev/null", os.O_RDONLY)
        spare = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends]
        for fd, place in zip((nowhere, *spare), (0, 1, 2, NOTES), strict=True):
            os.dup2(fd, place)
        os.closerange(NOTES + 1, 1024)
        os.environ.update(request["env"])
        if request["netns"]:
            enter(request["netns"])
        os.chdir(request["cwd"])
        code = CHILDREN[request["op"]](request)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 shown as the child's errors
        traceback.print_exc()
        code = 1
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def enter(netns: str) -> None:
    """Move into a named network namespace, with a /sys that shows its devices."""
    fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    if libc.setns(fd, CLONE_NEWNET) or libc.unshare(CLONE_NEWNS) or libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None):
        raise OSError(ctypes.get_errno(), f"cannot enter namespace {netns}")
    os.close(fd)


def program(request: Request) -> int:
    os.set_inheritable(NOTES, False)
    argv = request["argv"]
    os.execvp(argv[0], argv)


def python(request: Request) -> int:
    code = compile(request["code"], request["name"], "exec")
    exec(code, {"__name__": "__main__"})
    return 0


def pytest(request: Request) -> int:
    tests = importlib.import_module("pytest")
    return int(tests.main(request["args"], plugins=[Teller()]))


class Teller:
    """pytest plugin: every report as a line of JSON on the descriptor for notes."""

    def __init__(self) -> None:
        self.stream = os.fdopen(NOTES, "w", buffering=1)
        self.config: Any = None

    def pytest_configure(self, config: Any) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.stream.write(json.dumps(data, default=str) + "\n")


def terminal(request: Request) -> int:
    console = os.open("/dev/ttyS0", os.O_RDWR)
    fcntl.ioctl(console, termios.TIOCSCTTY, 1)
    for fd in (0, 1, 2):
        os.dup2(console, fd)
    return program(request)


CHILDREN = {"program": program, "python": python, "pytest": pytest, "terminal": terminal}

if __name__ == "__main__":
    main()
