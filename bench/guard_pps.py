"""Packets per second through a bridge: guard off, and on with 10, 1,000 and 10,000 NICs.

    bench/guard_pps.py [--json] [--rounds N] [--seconds S]

A guest's frames are written to its tap as fast as one process can; they cross the guard and the
bridge and end in another guest's tap. The variants take turns within each round, and the median of
the rounds counts. ``kernel`` is the ratio of time in the kernel alone: without Python's own share,
so the stricter one.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from itertools import repeat
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("src", "tests")]

from lib.frames import TCP, UDP, ether, ip4, ip6, tcp, udp
from lib.guardlab import ATTACKER as GUEST
from lib.guardlab import BRIDGE, VICTIM, Lab, guard_script, lab
from lib.netns import new_netns, sh

from kvmnet.policy.guard import nic_guard

VARIANTS = (0, 10, 1000)
"""Numbers of NICs in the guard; 0: no guard."""
FRAMES = {
    "IPv4 UDP": ether(VICTIM.mac, GUEST.mac, 0x0800, ip4(GUEST.ip4, VICTIM.ip4, UDP, udp(
        GUEST.ip4, VICTIM.ip4, 9, 9, bytes(18)))),
    "IPv6 TCP": ether(VICTIM.mac, GUEST.mac, 0x86DD, ip6(GUEST.ip6, VICTIM.ip6, TCP, tcp(
        GUEST.ip6, VICTIM.ip6, 9, 9, 16))),
}
CLAIMS = (("1,000 NICs against 10", 1000, 10, 0.9), ("guard on (1,000) against off", 1000, 0, 0.7))


def prepare(wired: Lab, folder: Path) -> dict[int, Path]:
    """One nft script per variant."""
    scripts = {0: folder / "off.nft"}
    scripts[0].write_text("flush ruleset\n")
    for count in VARIANTS[1:]:
        others = [nic_guard(f"kvt-n{i}", "full", [f"02:01:00:00:{i >> 8:02x}:{i & 255:02x}"],
                            [f"10.8.{i >> 8}.{i & 255}", f"fd00:8::{i:x}"], bridge=BRIDGE)
                  for i in range(count - len(wired.guards))]
        scripts[count] = folder / f"{count}.nft"
        scripts[count].write_text("flush ruleset\n" + guard_script([*wired.guards, *others]))
    return scripts


def run(fd: int, frame: bytes, seconds: float) -> tuple[float, float]:
    """Packets per second of wall time, and per second of time in the kernel."""
    write, sent, batch = os.write, 0, 2000
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
    while (now := time.perf_counter()) - start < seconds:
        for _ in repeat(None, batch):
            write(fd, frame)
        sent += batch
    kernel = resource.getrusage(resource.RUSAGE_SELF).ru_stime - used
    return sent / (now - start), sent / max(kernel, 1e-9)


def measure(rounds: int, seconds: float, folder: Path) -> dict[str, dict[int, list[tuple[float, float]]]]:
    taken: dict[str, dict[int, list[tuple[float, float]]]] = {n: {v: [] for v in VARIANTS} for n in FRAMES}
    with new_netns(), lab() as wired:
        scripts = prepare(wired, folder)
        for turn in range(rounds):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                sh(f"nft -f {scripts[variant]}")
                for name, frame in FRAMES.items():
                    run(wired.attacker.fd, frame, seconds / 10)
                    wired.forget()
                    taken[name][variant].append(run(wired.attacker.fd, frame, seconds))
                    if not wired.victim.drain():
                        raise SystemExit(f"{name} with {variant} NICs: nothing arrived")
    return taken


def main() -> int:
    import tempfile

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="result as JSON on standard output")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--seconds", type=float, default=0.15, help="length of one run")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(asked.rounds, asked.seconds, Path(folder))
    medians = {name: {v: tuple(statistics.median(run[i] for run in runs) for i in (0, 1))
                      for v, runs in of.items()} for name, of in taken.items()}
    ratios = [{"claim": claim, "traffic": name, "at_least": least,
               "ratio": round(of[a][0] / of[b][0], 3), "kernel": round(of[a][1] / of[b][1], 3)}
              for claim, a, b, least in CLAIMS for name, of in medians.items()]
    for name, of in medians.items():
        for variant, (wall, _) in of.items():
            print(f"{name:9}  {'no guard' if not variant else f'{variant:,} NICs':12} {wall:12,.0f} packets/s",
                  file=sys.stderr)
    for row in ratios:
        print(f"{row['traffic']:9}  {row['claim']:30} {row['ratio']:.2f} (kernel {row['kernel']:.2f}, "
              f"wanted {row['at_least']})", file=sys.stderr)
    if asked.json:
        print(json.dumps({"packets_per_second": {n: {str(v): round(m[0]) for v, m in of.items()}
                                                 for n, of in medians.items()}, "ratios": ratios}, indent=2))
    return int(any(float(str(row["ratio"])) < float(str(row["at_least"])) for row in ratios))


if __name__ == "__main__":
    sys.exit(main())
