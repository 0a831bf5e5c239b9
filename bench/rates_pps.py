"""Packets per second from guest to guest with rates on 1,000 NICs, on 10, and on none.

    bench/rates_pps.py [--json] [--rounds N] [--packets N]

Three hosts, each in a namespace of its own, with the whole document applied: guard, and rates in both directions that are
far above what a process can send, so that nothing waits and what is measured is the way through the queues. Frames are
written to a guest's tap and end in another guest's. The hosts take turns within each round; a ratio is the median of the
rounds' ratios. Packets are counted per second of the clock: a part of the work is done by other threads of the kernel.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from os import write
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("src", "tests", ".")]

from lib.frames import UDP, ether, ip4, udp
from lib.netns import sh
from lib.tap import Tap
from lib.world import World, world

from kvmnet.host.clock import wait_until

NICS = {"none": 10, "10": 10, "1,000": 1000}
"""Variant -> NICs of the host; in the first no NIC has a rate."""
CLAIMS = (("1,000 NICs with rates against 10", "1,000", "10", 0.9),)
RATE = ", rate: {in: 100gbit, out: 100gbit}"


@dataclass(frozen=True)
class Pair:
    """Two guests of one host."""

    sender: Tap
    receiver: Tap
    frame: bytes


def document(nics: int, rate: str) -> str:
    guests = "\n".join(f"  g{k}: {{nics: [{{network: n{rate}, mac: '{mac(k)}', ip: {ip(k)}, ip6: none}}]}}" for k in range(nics))
    return f"version: 1\nnetworks:\n  n: {{mode: isolated, subnet: 10.0.0.0/21, dhcp: {{enabled: false}}, dns: {{enabled: false}}}}\nvms:\n{guests}\n"


def mac(number: int) -> str:
    return f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"


def ip(number: int) -> str:
    return f"10.0.{1 + (number >> 8)}.{number & 255}"


def host(made: World, variant: str) -> Pair:
    """A host with its document applied, and two guests on it that know each other."""
    made.apply(document(NICS[variant], "" if variant == "none" else RATE))
    pair = Pair(Tap("kvt-g1-0"), Tap("kvt-g2-0"), ether(mac(2), mac(1), 0x0800, ip4(ip(1), ip(2), UDP, udp(ip(1), ip(2), 9, 9, bytes(18)))))
    wait_until(lambda: sh("bridge link show dev kvt-g1-0; bridge link show dev kvt-g2-0").count("state forwarding") == 2, 20)
    pair.receiver.send(ether(mac(1), mac(2), 0x0800, ip4(ip(2), ip(1), UDP, udp(ip(2), ip(1), 9, 9, bytes(18)))))
    return pair


def run(pair: Pair, packets: int) -> float:
    """Packets per second. Raises SystemExit when none arrived."""
    pair.receiver.forget()
    fd, frame, began = pair.sender.fd, pair.frame, time.monotonic()
    for _ in repeat(None, packets):
        write(fd, frame)
    taken = time.monotonic() - began
    wait_until(lambda: pair.receiver.drain(), 20)
    return packets / taken


def measure(rounds: int, packets: int) -> dict[str, list[float]]:
    """Variant -> the rate of each round."""
    with ExitStack() as stack:
        pairs = {variant: host(stack.enter_context(world()), variant) for variant in NICS}
        for pair in pairs.values():
            stack.callback(pair.sender.close)
            stack.callback(pair.receiver.close)
            run(pair, packets // 4)
        taken: dict[str, list[float]] = {variant: [] for variant in NICS}
        for turn in range(rounds):
            for variant in NICS if turn % 2 else reversed(NICS):
                taken[variant].append(run(pairs[variant], packets))
        return taken


def ratio(taken: dict[str, list[float]], first: str, second: str) -> float:
    return round(statistics.median(a / b for a, b in zip(taken[first], taken[second], strict=True)), 3)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="result as JSON on standard output")
    options.add_argument("--rounds", type=int, default=31)
    options.add_argument("--packets", type=int, default=20000, help="packets of one run")
    asked = options.parse_args()
    taken = measure(asked.rounds, asked.packets)
    rates = {variant: round(statistics.median(of)) for variant, of in taken.items()}
    claims = [{"claim": claim, "traffic": "IPv4 UDP", "ratio": ratio(taken, a, b), "at_least": least} for claim, a, b, least in CLAIMS]
    for variant, rate in rates.items():
        print(f"rates on {variant:6} NICs {rate:12,} packets/s", file=sys.stderr)
    print(f"rates on 10 NICs against none: {ratio(taken, '10', 'none'):.2f}", file=sys.stderr)
    for row in claims:
        print(f"{row['claim']:40} {row['ratio']:.2f} (wanted {row['at_least']})", file=sys.stderr)
    if asked.json:
        print(json.dumps({"packets_per_second": rates, "claims": claims}, indent=2))
    return int(any(float(str(row["ratio"])) < float(str(row["at_least"])) for row in claims))


if __name__ == "__main__":
    sys.exit(main())
