"""The lab: a full Debian kernel under QEMU, with this machine's root in it, driven from here.

The root is shared read-only under an overlay in memory, so the checkout, its virtual environment and
every installed tool work at their own paths, and nothing that happens inside reaches the machine. There are two
network cards (e1000e and vmxnet3), which lead nowhere; their drivers are loaded by the tests that need them. An agent inside (lab_agent.py) does one thing at a time; every request has a deadline.
"""
from __future__ import annotations

import base64
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

from kvmnet.host import counter
from kvmnet.host.run import find
from lib.lab_agent import PORT
from lib.lab_image import ROOT, LabImage, image_folder, initrd
from lib.lab_parts import Qemu, qemu_with_igb

PROGRAM = "qemu-system-x86_64"
CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+svm,+npt"
"""AMD's virtualisation is what TCG emulates: with it, guests inside the lab have KVM. ``max`` costs
10 s more at boot."""
MEMORY = "2G"
"""At 3 GiB the VFs of an igb never came up (QEMU 10.0); at 2 GiB they always did."""
NICE = "10"
"""Behind the tests out here, which go on beside it and have an eye on time."""
WORDS = ("console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on tsc=reliable "
         "no_timer_check nokaslr audit=0 rdinit=/init")
"""tsc=reliable: on a busy machine every clock that it could be compared with is late."""
AGENT = Path(__file__).with_name("lab_agent.py")
BOOT_TIMEOUT = 300.0
GRACE = 30.0
"""Seconds that the agent gets on top of a request's own, to end it and to say so."""
WARM = ("kvmnet.api", "kvmnet.compile", "kvmnet.spec.load", "kvmnet.spec.checks", "kvmnet.facts.firewalls",
        "kvmnet.facts.features", "kvmnet.check.prove", "kvmnet.guests.launch", "pytest")
"""Modules that the agent loads once, for all that follows."""
ENVIRONMENT = {"KVMNET_STATE_DIR": "/run/lab/state", "KVMNET_RUN_DIR": "/run/kvmnet", "KVMNET_ETC_DIR": "/run/lab/etc"}
CALL = "/run/lab/call"
CALLED = f"""
import pickle
from pathlib import Path
function, args = pickle.loads(Path("{CALL}").read_bytes())
Path("{CALL}").write_bytes(pickle.dumps(function(*args)))
"""
T = TypeVar("T")
Stream = Generator[tuple[str, bytes], None, dict[str, Any]]
Listen = Callable[[str, bytes], None]
TAIL = 40
"""Lines of the console shown with a failure."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a lab boots on."""

    qemu: Qemu | None = None
    """The QEMU; this machine's own when not given."""
    devices: tuple[str, ...] = ()
    """Further devices and backends, as QEMU takes them."""
    words: str = ""
    """Further words of the kernel command line."""


PLAIN = Machine()
SPLIT_DEVICES = (
    "-device", "intel-iommu,intremap=on,caching-mode=on", "-device", "pcie-root-port,id=pf-port,bus=pcie.0,chassis=1,slot=5",
    "-netdev", "user,id=pf-net,restrict=on", "-device", "igb,bus=pf-port,netdev=pf-net,mac=02:11:22:33:44:00,romfile=")


def split_machine() -> Machine:
    """A lab with an IOMMU and a NIC that can be split: an emulated igb (Intel 82576), as eth0. Raises HostCannot."""
    return Machine(qemu_with_igb(image_folder(), lambda line: None), SPLIT_DEVICES, "intel_iommu=on")


class LabFailed(Exception):
    """The lab did not do what it was asked. With what the console said last."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a program in the lab did."""

    code: int
    """Exit code; 128 + N for signal N."""
    out: str
    err: str
    late: bool = False
    """It was ended because its time was over."""


@dataclass
class Lab:
    """A running lab. Made by ``boot``."""

    process: subprocess.Popen[bytes]
    port: socket.socket
    console: Path
    env: dict[str, str]
    buffer: bytes = b""
    owed: int = 0
    """Answers of requests that nobody waited for yet."""
    greeted: bool = False
    """The agent has said that it is there."""
    broken: str = ""

    # -- what tests use ----------------------------------------------------------------------

    def run(self, script: str, timeout: float = 30.0, *, netns: str = "", env: Mapping[str, str] | None = None) -> Result:
        """Run a shell script as root, in the named network namespace if one is given."""
        return self.program(["bash", "-c", script], timeout, netns=netns, env=env)

    def sh(self, script: str, timeout: float = 30.0, *, netns: str = "") -> str:
        """Output of a shell script that must succeed."""
        return self.must(script, self.run(f"set -e\n{script}", timeout, netns=netns))

    def python(self, code: str, timeout: float = 60.0, *, netns: str = "", env: Mapping[str, str] | None = None) -> Result:
        """Run Python code in a fork of the agent: kvmnet is loaded, ``from lib...`` works."""
        return self.work("python", {"code": code, "name": "<lab>"}, timeout, netns=netns, env=env)

    def call(self, function: Callable[..., T], *args: object, timeout: float = 60.0, netns: str = "") -> T:
        """What *function*, of a module in tests/lib, returns for *args* in the lab; all of it goes by pickle."""
        self.put(pickle.dumps((function, args)), CALL)
        self.must(function.__name__, self.python(CALLED, timeout, netns=netns))
        answer: T = pickle.loads(self.get(CALL))
        return answer

    def program(self, argv: Sequence[str], timeout: float = 30.0, *, netns: str = "",
                env: Mapping[str, str] | None = None, listen: Listen | None = None) -> Result:
        """Run a program. ``listen`` is given its output as it comes, as (out or err, bytes)."""
        return self.work("program", {"argv": list(argv)}, timeout, netns=netns, env=env, listen=listen)

    def put(self, content: bytes | Path, path: str, mode: int = 0o644) -> None:
        """A file of the lab's own, with *content* or that of a file out here."""
        data = content.read_bytes() if isinstance(content, Path) else content
        finish(self.ask({"op": "put", "path": path, "data": base64.b64encode(data).decode(), "mode": mode}, 60))

    def get(self, path: str) -> bytes:
        """Content of a file in the lab."""
        return b"".join(data for _, data in self.ask({"op": "get", "path": path}, 60))

    @contextmanager
    def netns(self, *names: str) -> Iterator[None]:
        """Named network namespaces, with loopback up; what is left running in the lab ends with them."""
        self.sh("".join(f"ip netns add {n}; ip -n {n} link set lo up\n" for n in names))
        try:
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        """End what requests have left running and delete named namespaces."""
        finish(self.ask({"op": "clear"}, 30))

    def must(self, what: str, result: Result) -> str:
        """Output of something that has to have succeeded."""
        if result.code:
            raise AssertionError(f"in the lab: {what}\n{'its time was over' if result.late else f'exit {result.code}'}: "
                                 f"{result.err}{result.out}\n{self.said()}")
        return result.out

    def warm(self) -> None:
        """Have the agent load kvmnet and pytest; the next request waits for it."""
        self.send({"op": "warm", "modules": WARM, "path": [str(ROOT / "tests"), str(ROOT / "src")]})
        self.owed += 1

    def said(self) -> str:
        """The end of the console's log."""
        lines = self.console.read_text(errors="replace").splitlines()
        return "\n".join(["-- the lab's console --", *lines[-TAIL:]])

    # -- the wire ----------------------------------------------------------------------------

    def work(self, operation: str, request: dict[str, Any], timeout: float, *, netns: str = "",
             env: Mapping[str, str] | None = None, listen: Listen | None = None) -> Result:
        stream = self.stream(operation, request, timeout, netns=netns, env=env)
        parts = {"out": b"", "err": b"", "note": b""}
        while True:
            try:
                name, data = next(stream)
            except StopIteration as end:
                return Result(end.value["code"], parts["out"].decode(errors="replace"),
                              parts["err"].decode(errors="replace"), end.value["late"])
            parts[name] += data
            if listen:
                listen(name, data)

    def stream(self, operation: str, request: dict[str, Any], timeout: float, *, netns: str = "",
               env: Mapping[str, str] | None = None) -> Stream:
        """Have a child of the agent do something: what it says, as (out, err or note; bytes), as it comes."""
        return self.ask({"op": operation, **request, "timeout": timeout, "netns": netns, "cwd": str(ROOT),
                         "env": {**self.env, **(env or {})}}, timeout)

    def ask(self, request: dict[str, Any], timeout: float) -> Stream:
        """Send a request; the parts of its answer, and then its end. Raises LabFailed when nothing comes in time."""
        owed, self.owed = self.owed, 0
        self.send(request)
        return self.answer(owed, timeout)

    def answer(self, owed: int, timeout: float) -> Stream:
        self.greet()
        for _ in range(owed):
            finish(self.parts(monotonic() + BOOT_TIMEOUT))
        return (yield from self.parts(monotonic() + timeout + GRACE))

    def greet(self) -> None:
        """Wait until the agent is there. Raises LabFailed."""
        if not self.greeted:
            self.line(monotonic() + BOOT_TIMEOUT)
            self.greeted = True

    @property
    def has_news(self) -> bool:
        """Whether something of an answer has come: to read on waits for nothing, or not for long."""
        return b"\n" in self.buffer or bool(select.select([self.port], [], [], 0)[0])

    def parts(self, deadline: float) -> Stream:
        while True:
            line = self.line(deadline)
            if "failed" in line:
                raise LabFailed(line["failed"])
            if "code" in line:
                return line
            for name, value in line.items():
                yield name, base64.b64decode(value)

    def send(self, request: dict[str, Any]) -> None:
        if self.broken:
            raise LabFailed(self.broken)
        try:
            self.port.settimeout(GRACE)
            self.port.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self.failed(f"the lab takes no request: {error}") from error

    def line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            left = deadline - monotonic()
            try:
                self.port.settimeout(max(left, 0.01))
                data = self.port.recv(1 << 18)
            except TimeoutError:
                raise self.failed("the lab does not answer") from None
            except OSError as error:
                raise self.failed(f"the lab cannot be heard: {error}") from error
            if not data:
                raise self.failed("the lab has ended")
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(text)
        return found

    def failed(self, why: str) -> LabFailed:
        """This lab is of no more use."""
        self.broken = why
        self.end()
        return LabFailed(f"{why}\n{self.said()}")

    def end(self) -> None:
        """End QEMU, by its own process."""
        self.port.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.end()


@contextmanager
def boot(image: LabImage, *, terminal: bool = False, machine: Machine = PLAIN) -> Iterator[Lab]:
    """A lab that answers. ``terminal``: its console is this process's terminal. Raises LabFailed."""
    with begun(image, terminal=terminal, machine=machine) as lab:
        lab.greet()
        yield lab


@contextmanager
def begun(image: LabImage, *, terminal: bool = False, machine: Machine = PLAIN) -> Iterator[Lab]:
    """A lab that boots; the first answer is waited for until it has."""
    with TemporaryDirectory(prefix="kvmnet-lab-") as scratch, start(image, Path(scratch), terminal, machine) as lab:
        yield lab


def start(image: LabImage, folder: Path, terminal: bool, machine: Machine) -> Lab:
    console, disk = folder / "console.log", folder / "initrd"
    console.touch()
    disk.write_bytes(initrd(image, (sys.executable, str(AGENT))))
    ours, theirs = socket.socketpair()
    serial = "stdio" if terminal else "null"
    qemu = machine.qemu or Qemu(Path(find(PROGRAM) or PROGRAM))
    argv = [
        "setpriv", "--pdeathsig", "KILL", "nice", "-n", NICE, str(qemu.program), *qemu.arguments, "-nodefaults", "-no-user-config",
        "-display", "none",
        "-machine", "q35", "-accel", "tcg", "-cpu", CPU, "-smp", str(min(2, os.cpu_count() or 1)), "-m", MEMORY,
        "-no-reboot", "-kernel", str(image.kernel), "-initrd", str(disk), "-append", f"{WORDS} {counter.word()} {machine.words}",
        "-chardev", f"{serial},id=tty,signal=off,logfile={console}" if terminal else f"null,id=tty,logfile={console}",
        "-serial", "chardev:tty", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,fd={theirs.fileno()}", "-device", f"virtserialport,chardev=agent,name={PORT}",
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-netdev", "user,id=nic,restrict=on", "-device", "e1000e,netdev=nic,mac=52:54:00:e1:00:0e",
        "-netdev", "user,id=merges,restrict=on", "-device", "vmxnet3,netdev=merges,mac=52:54:00:e1:00:33", *machine.devices]
    with theirs, console.open("ab") as words:
        process = subprocess.Popen(argv, stdin=None if terminal else subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                                   stderr=None if terminal else words, env={"PATH": os.environ.get("PATH", ""), **dict(qemu.environment)})
    return Lab(process, ours, console, {**ENVIRONMENT, "KVMNET_IMAGE_DIR": str(image_folder())})


def finish(stream: Stream) -> None:
    for _ in stream:
        pass
