"""The host that is measured: a network of its own with an outside, the document applied by kvmnet, guests that run.

It stands in the namespaces of this process, so nothing of the machine's own network is touched.
"""
from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Self

from kvmnet.bench.dials import Dials
from kvmnet.bench.document_seats import Stand
from kvmnet.bench.documents import DocumentSeat
from kvmnet.bench.matrix import GROUP, HEADERS, PORT, Seat, document
from kvmnet.bench.peers import seats as peers
from kvmnet.bench.scenarios import Place
from kvmnet.bench.traffic.program import NAME, initrd_with, program
from kvmnet.bench.twoways import beyond, build_switch, far_lines, losing, near_lines, switch
from kvmnet.bench.virtio import SCRIPT, read
from kvmnet.drivers.qemu.arguments import TINY_WORDS
from kvmnet.errors import KvmnetError
from kvmnet.guests.image import Image, build
from kvmnet.guests.launch import execute, wait_for_agent
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, run
from kvmnet.records import dataclass

OUTSIDE = "outside"
LIFE = 86400
"""Seconds after which a far end ends by itself."""
PATIENCE = 120.0
"""Seconds for guests to boot, all at once on few processors."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """What is fetched and made on first use, with the machine's own network."""

    image: Image
    load: Path

    @classmethod
    def made(cls, paths: Paths, say: Say) -> Self:
        """Raises HostCannot."""
        return cls(build(paths, say), program(paths))


class Ground:
    """Seats that stand and can be loaded."""

    def __init__(self, seats: Sequence[Seat], guests: int, tools: Tools, paths: Paths, folder: Path, dials: Dials):
        self.seats, self.guests, self.paths, self.folder, self.dials = seats, guests, paths, folder, dials
        self.stands = {s.number: Stand(s, folder) for s in seats if isinstance(s, DocumentSeat)}
        self.server = 0
        self.tools, self.load = tools, tools.load
        self.pids: dict[int, list[int]] = {}

    def document(self) -> Path:
        """The document as a file, with the RAM disk that its guests boot."""
        initrd = self.folder / "initrd"
        initrd.write_bytes(initrd_with(self.tools.image.initrd, self.load))
        initrd.chmod(0o644)
        path = self.folder / "bench.yaml"
        path.write_text(document(self.own, self.guests, str(self.tools.image.kernel), str(initrd), TINY_WORDS))
        return path

    @property
    def own(self) -> list[Seat]:
        """Seats that stand in the document of this ground."""
        return [s for s in self.seats if s.number not in self.stands]

    def paths_of(self, seat: Seat) -> Paths:
        return self.stands[seat.number].paths if seat.number in self.stands else self.paths

    def wire(self) -> None:
        """The outside, and an uplink to it for every seat that has one."""
        run(["ip", "netns", "add", OUTSIDE])
        run(["ip", "-n", OUTSIDE, "link", "set", "lo", "up"])
        wired = [s for s in self.own if s.configuration.mode != "isolated"]
        here, there = [], []
        elsewhere: dict[str, list[str]] = {}
        for stand in self.stands.values():
            stand.wire()
        for seat in (s for s in self.own if s.apart):
            peers.space(seat, self.folder).make()
            peers.space(seat, self.folder).forward()
        for seat in wired:
            netns = beyond(seat, self.folder, OUTSIDE)
            if seat.ways == "rstp":
                switch(seat, self.folder).make()
            here += near_lines(seat, netns)
            own = [f"link set {member} up" for member in seat.members]
            near, far = seat.tunnel
            if far:
                there += [f"addr add {far}/24 dev out{seat.number}", f"link set out{seat.number} mtu {seat.mtu + HEADERS} up",
                          f"link add vx{seat.number} mtu {seat.mtu} type vxlan id {seat.vni} local {far} remote {near} dev out{seat.number} dstport 4789",
                          f"addr add {seat.outside}/24 dev vx{seat.number}", f"link set vx{seat.number} up"]
                own = [f"addr add {near}/24 dev {seat.device}", *own]
            elif not seat.ways:
                there += [f"addr add {seat.outside}/24 dev out{seat.number}", f"link set out{seat.number} up"]
                own = [*([f"addr add 198.19.{seat.number}.2/24 dev {seat.device}"] if not seat.on_segment else []), *own]
            elif seat.ways != "rstp":
                there += far_lines(seat)
            if seat.apart:
                netns = peers.space(seat, self.folder).netns
                here.append(f"link set {seat.device} netns {netns}")
                elsewhere[netns] = own
            else:
                here += own
            if not seat.on_segment:
                there.append(f"route add {seat.prefix}.0/24 via 198.19.{seat.number}.2")
        for words, lines in ((("ip",), here), (("ip", "-n", OUTSIDE), there), *((("ip", "-n", n), own) for n, own in elsewhere.items())):
            if lines:
                run([*words, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def populate(self, running: Callable[[Paths], dict[str, int]]) -> None:
        """Far ends that listen, and guests that have their addresses. *running*: guests of a host and their processes."""
        boot = {"kernel": str(self.tools.image.kernel), "initrd": str(self.folder / "initrd"), "words": TINY_WORDS}
        for stand in self.stands.values():
            stand.build(self.guests, boot, self.load, LIFE)
        for seat in (s for s in self.own if s.apart):
            peers.build(seat, self.guests, self.load, LIFE, self.folder)
        self.serve()
        run(["ip", "netns", "exec", OUTSIDE, str(self.load), "serve", f"port={PORT}", f"life={LIFE}"])
        for seat in (s for s in self.own if s.ways == "rstp"):
            build_switch(seat, self.folder, self.load, LIFE)
        for seat in self.seats:
            for which in range(1, self.guests + 1):
                self.settle(seat, which)
        for seat in self.seats:
            found = running(self.paths_of(seat))
            self.pids[seat.number] = [found[seat.guest(n)] for n in range(1, self.guests + 1)]

    def serve(self) -> None:
        """The far end on kvmnet's host; one that there is already ends before."""
        if self.server:
            os.kill(self.server, signal.SIGKILL)
            wait_until(lambda: gone(self.server), 20.0)
        if hosts := [s.host for s in self.seats if not s.apart]:
            told = run([str(self.load), "serve", f"port={PORT}", f"life={LIFE}", f"group={GROUP}", f"on={','.join(hosts)}"])
            self.server = int(json.loads(told)["pid"])

    @contextmanager
    def turn_of(self, seat: Seat) -> Iterator[None]:
        """Its kernel settings are in force. Sockets take some when they are made, so where any seat has such settings the far end
        is made again for each turn, of all alike."""
        if not any(s.kernel for s in self.seats):
            yield
            return
        with self.dials.turned(seat.kernel):
            self.serve()
            yield

    def losing(self, seat: Seat) -> AbstractContextManager[None]:
        """For a load: the way that carries it is lost meanwhile."""
        return losing(seat, self.paths, self.folder, OUTSIDE)

    def settle(self, seat: Seat, which: int) -> None:
        name, paths = seat.guest(which), self.paths_of(seat)
        wait_for_agent(name, paths, PATIENCE)
        self.script(seat, which, f"l=$(nic {seat.mac(which)}) && ip link set $l mtu {seat.mtu} up && "
                          f"ip addr add {seat.address(which)}/{seat.length} dev $l && "
                                 f"{f'ip route add default via {seat.router} && ' if seat.router else ''}"
                                 "ip route add 239.0.0.0/8 dev $l")
        if which > 1:
            self.script(seat, which, f"{NAME} serve port={PORT} life={LIFE} group={GROUP} on={seat.address(which)}")
        with suppress(TimeoutError):    # a way that is not there is told by the load that needs it
            wait_until(lambda: execute(name, ["ping", "-c", "1", "-W", "1", seat.host or seat.address(1)], paths).code == 0, 20.0)

    def script(self, seat: Seat, which: int, text: str) -> str:
        name = seat.guest(which)
        code, out, err = execute(name, text, self.paths_of(seat), PATIENCE)
        if code:
            raise KvmnetError(f"guest {name}: {err.strip() or out.strip() or f'exit {code}'}", f"in it: {text}")
        return out

    def negotiated(self, seat: Seat) -> dict[str, object]:
        """What the first guest has got."""
        return read(self.script(seat, 1, SCRIPT.format(mac=seat.mac(1))))

    def far_end(self, seat: Seat, place: Place) -> str:
        match place:
            case Place.HOST:
                return seat.host
            case Place.GUEST:
                return seat.address(2)
            case Place.OUTSIDE:
                return seat.outside

    def loaded(self, seat: Seat, words: Sequence[str], seconds: float) -> str:
        """What kvmnet-load in the first guest of *seat* printed. Raises KvmnetError."""
        code, out, err = execute(seat.guest(1), [f"/bin/{NAME}", *words], self.paths_of(seat), seconds + 60)
        if code:
            raise KvmnetError(f"{seat.configuration.name}: {NAME} {' '.join(words)}: {err.strip() or f'exit {code}'}")
        return out

    def processor_time(self, seat: Seat) -> float:
        """Seconds that the QEMUs of *seat* have had, with the threads that they have (proc(5), utime and stime)."""
        total = 0
        for pid in self.pids[seat.number]:
            words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            total += int(words[11]) + int(words[12])
        return total / os.sysconf("SC_CLK_TCK")


def gone(pid: int) -> bool:
    """Whether a process has ended, also when nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def versions(accel: str, image: str, seats: Sequence[Seat]) -> dict[str, str]:
    """What besides the machine the figures depend on."""
    from kvmnet import __version__
    try:
        qemu = run(["qemu-system-x86_64", "--version"]).splitlines()[0].removeprefix("QEMU emulator version ")
    except (ToolFailed, IndexError):
        qemu = ""
    others = {"libvirt" if by == "clean-traffic" else by: told() for by, told in peers.VERSIONS.items() if any(s.by == by for s in seats)}
    return {"kvmnet": __version__, "qemu": qemu, "guest": image, "accelerator": accel, **others}
