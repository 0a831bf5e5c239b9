"""What a mirror costs its source: packets per second of a guest with and without copies of what it sends.

    bench/mirrors_pps.py [--json] [--rounds N] [--packets N]

As bench/guard_pps.py: frames written to a guarded guest's tap end in another guest's tap, the variants take turns within
each round, a ratio is the median of the rounds' ratios, rates are per second of the sender's processor time. Copying happens
in that time. The receiver of the copies is another tap: read by a process of its own as fast as it can, or by nobody, so that
its queue is full. "Copied into files": by the process that writes them. "Passed over": the mirror's filter takes none of the frames.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("src", "tests", ".")]

from lib.frames import UDP, ether, ip4, udp
from lib.guardlab import ATTACKER as GUEST
from lib.guardlab import VICTIM, lab
from lib.netns import new_netns, sh
from lib.tap import Tap

from bench.guard_pps import ratio, run
from kvmnet.bpf.code import as_text, program
from kvmnet.drivers.mirror.resources import Copy, copy_name
from kvmnet.drivers.mirror.wire import lines_of
from kvmnet.drivers.recorder.daemon import passed_by
from kvmnet.drivers.recorder.process import Recording
from kvmnet.drivers.recorder.resources import Recorder
from kvmnet.engine.plan import Create
from kvmnet.spec.frames import FOUND, condition
from kvmnet.spec.mirrors import Frames

READ, STALLED, KEPT = "eye0", "eye1", "eye2"
VARIANTS: dict[str, tuple[str, Frames]] = {
    "copied": (READ, Frames()), "copied, nobody reads": (STALLED, Frames()), "copied into files": (KEPT, Frames()),
    "copied by a filter": (READ, Frames(udp=("9",), hosts=(VICTIM.ip4,))), "passed over": (READ, Frames(tcp=("80", "443"))),
}
CLAIMS = {"copied": 0.5, "copied, nobody reads": 0.5, "copied into files": 0.5, "passed over": 0.9}
"""Ratio to a source without a mirror that is wanted at least."""
FRAME = ether(VICTIM.mac, GUEST.mac, 0x0800, ip4(GUEST.ip4, VICTIM.ip4, UDP, udp(GUEST.ip4, VICTIM.ip4, 9, 9, bytes(18))))


def mirror(tap: str, variant: str) -> None:
    """The mirror of one variant in the place of the one before."""
    sh(f"tc qdisc del dev {tap} clsact 2>/dev/null; tc qdisc add dev {tap} clsact")
    if variant in VARIANTS:
        to, wish = VARIANTS[variant]
        copy = Copy(name=copy_name(tap, "ingress", 16), dev=tap, side="ingress", receiver=to, program=as_text(program(condition(wish), FOUND)))
        for line in lines_of(Create(copy)):
            sh(f"tc {line}")


@contextmanager
def reader(tap: Tap) -> Iterator[None]:
    """A process that reads the receiver's frames."""
    code = f"import os\nos.set_blocking({tap.fd}, True)\nwhile True: os.read({tap.fd}, 70000)"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=(tap.fd,)) as child:
        try:
            yield
        finally:
            child.kill()


@contextmanager
def recorder() -> Iterator[None]:
    """The process that keeps what is handed to KEPT."""
    with TemporaryDirectory() as folder:
        sh(f"ip link add {KEPT} type ifb && ip link set {KEPT} up")
        process = Recording(Path(folder) / "run")
        process.start(Recorder(name="bench", device=KEPT, path=f"{folder}/kept.pcapng", size=50 << 20, files=2, snap=262144, running=True))
        try:
            yield
        finally:
            process.stop()


def measure(rounds: int, packets: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {v: [] for v in ("none", *VARIANTS)}
    with new_netns(), lab() as wired, Tap(READ) as read, Tap(STALLED), reader(read), recorder():
        sh(f"ip link set {READ} up; ip link set {STALLED} up")
        source = wired.attacker.name
        for turn in range(rounds):
            for variant in taken if turn % 2 else reversed(taken):
                mirror(source, variant)
                before = copies()
                run(wired.attacker.fd, FRAME, packets // 10)
                wired.forget()
                taken[variant].append(run(wired.attacker.fd, FRAME, packets))
                if not wired.victim.drain():
                    raise SystemExit(f"{variant}: nothing arrived")
                came = copies() - before
                if (came > packets // 2) != variant.startswith("copied"):
                    raise SystemExit(f"{variant}: {came} copies of {packets} frames")
    return taken


def copies() -> int:
    """Frames that were sent by the receivers, or found their queue full."""
    found = [json.loads(sh(f"ip -j -s link show {tap}"))[0]["stats64"]["tx"] for tap in (READ, STALLED)]
    return sum(int(tx["packets"]) + int(tx["dropped"]) for tx in found) + passed_by(KEPT)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="result as JSON on standard output")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--packets", type=int, default=20000, help="packets of one run")
    asked = options.parse_args()
    taken = measure(asked.rounds, asked.packets)
    rates = {v: round(statistics.median(runs)) for v, runs in taken.items()}
    ratios = {v: ratio({0: taken[v], 1: taken["none"]}, 0, 1) for v in VARIANTS}
    for variant, rate in rates.items():
        print(f"{variant:22} {rate:12,} packets/s" + (f"  {ratios[variant]:.2f} of none" if variant in ratios else ""), file=sys.stderr)
    claims = [{"claim": f"{v}, against no mirror", "traffic": "IPv4 UDP", "ratio": ratios[v], "at_least": least} for v, least in CLAIMS.items()]
    if asked.json:
        print(json.dumps({"packets_per_second": rates, "claims": claims}, indent=2))
    return int(any(float(str(row["ratio"])) < float(str(row["at_least"])) for row in claims))


if __name__ == "__main__":
    sys.exit(main())
