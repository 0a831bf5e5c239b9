"""Packets per second through a bridge: guard off, and on with 10 and 1,000 NICs.

    bench/guard_pps.py [--json] [--rounds N] [--packets N]

A guest's frames are written to its tap as fast as one process can; they cross the guard and the
bridge and end in another guest's tap. The variants take turns within each round, and a ratio is the
median of the rounds' ratios, so that a busy machine disturbs both sides alike. Packets are counted
per second of the sender's processor time (all of the path runs in its context), not of the clock.
The guard is as it is deployed: with the keeper's table behind it.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import repeat
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("src", "tests")]

from lib.frames import TCP, UDP, ether, ip4, ip6, tcp, udp
from lib.guardlab import ATTACKER as GUEST
from lib.guardlab import BRIDGE, VICTIM, Lab, guard_script, lab
from lib.netns import new_netns, sh

from kvmnet.policy.guard import nic_guard
from kvmnet.policy.keeper import HELD

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
        held = HELD["bridge kvmnet-keeper"].replace("}; ", "}\n")
        scripts[count].write_text(f"flush ruleset\n{guard_script([*wired.guards, *others])}"
                                  f"table bridge kvmnet-keeper {{\n{held}\n}}\n")
    return scripts


def run(fd: int, frame: bytes, packets: int) -> float:
    """Packets per second of processor time."""
    write, start = os.write, time.thread_time()
    for _ in repeat(None, packets):
        write(fd, frame)
    return packets / (time.thread_time() - start)


def measure(rounds: int, packets: int, folder: Path) -> dict[str, dict[int, list[float]]]:
    """Traffic -> NICs -> the rate of each round."""
    taken: dict[str, dict[int, list[float]]] = {n: {v: [] for v in VARIANTS} for n in FRAMES}
    with new_netns(), lab() as wired:
        scripts = prepare(wired, folder)
        for turn in range(rounds):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                sh(f"nft -f {scripts[variant]}")
                for name, frame in FRAMES.items():
                    run(wired.attacker.fd, frame, packets // 10)
                    wired.forget()
                    taken[name][variant].append(run(wired.attacker.fd, frame, packets))
                    if not wired.victim.drain():
                        raise SystemExit(f"{name} with {variant} NICs: nothing arrived")
    return taken


def ratio(of: dict[int, list[float]], first: int, second: int) -> float:
    return round(statistics.median(a / b for a, b in zip(of[first], of[second], strict=True)), 3)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="result as JSON on standard output")
    options.add_argument("--rounds", type=int, default=31)
    options.add_argument("--packets", type=int, default=40000, help="packets of one run")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(asked.rounds, asked.packets, Path(folder))
    rates = {name: {v: round(statistics.median(runs)) for v, runs in of.items()} for name, of in taken.items()}
    claims = [{"claim": claim, "traffic": name, "ratio": ratio(of, a, b), "at_least": least}
              for claim, a, b, least in CLAIMS for name, of in taken.items()]
    for name, of in rates.items():
        for variant, rate in of.items():
            print(f"{name:9}  {f'{variant:,} NICs' if variant else 'no guard':12} {rate:12,} packets/s", file=sys.stderr)
    for row in claims:
        print(f"{row['traffic']:9}  {row['claim']:30} {row['ratio']:.2f} (wanted {row['at_least']})", file=sys.stderr)
    if asked.json:
        print(json.dumps({"packets_per_second": rates, "claims": claims}, indent=2))
    return int(any(float(str(row["ratio"])) < float(str(row["at_least"])) for row in claims))


if __name__ == "__main__":
    sys.exit(main())
