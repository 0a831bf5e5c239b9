"""Packets per second between guests with abuse limits: 1,000 NICs that have them, 10, and none.

    bench/limits_pps.py [--json] [--rounds N] [--packets N]

As bench/guard_pps.py: frames written to a guest's tap end in another guest's tap, the variants take turns within each
round, a ratio is the median of the rounds' ratios, rates are per second of the sender's processor time. Every NIC has limits
of packets and bytes in both directions, of storms, ARP and SYN, none of which is reached. Without limits there are as many
guarded NICs as with most.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("src", "tests", ".")]

from lib.frames import UDP, ether, ip4, udp
from lib.guardlab import ATTACKER as GUEST
from lib.guardlab import BRIDGE, VICTIM, Lab, lab
from lib.netns import new_netns, sh

from bench.guard_pps import ratio, run
from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.limits import SETS
from kvmnet.drivers.nftables.resources import NicLimits
from kvmnet.drivers.nftables.wire import change, element_lines, table_lines
from kvmnet.policy.guard import TABLE, guard_table, nic_guard
from kvmnet.policy.limits import Limiting
from kvmnet.spec.limits import FLOWS

VARIANTS = (0, 10, 1000)
"""NICs with limits; 0: no limits."""
MOST = 1000
CLAIMS = (("1,000 limited NICs against 10", 1000, 10, 0.9), ("limits (1,000) against none", 1000, 0, 0.65))
VALUES = {name: 500_000_000 if name.endswith("bytes") else 10_000_000 for name in SETS if name not in {*FLOWS, "unknown"}}
FRAME = ether(VICTIM.mac, GUEST.mac, 0x0800, ip4(GUEST.ip4, VICTIM.ip4, UDP, udp(GUEST.ip4, VICTIM.ip4, 9, 9, bytes(18))))


def script(wired: Lab, limited: int) -> str:
    """The guard with MOST NICs, of which the first *limited* have limits, those that send and receive among them."""
    others = [nic_guard(f"kvt-n{i}", "full", [f"02:01:00:00:{i >> 8:02x}:{i & 255:02x}"], [f"10.8.{i >> 8}.{i & 255}"], bridge=BRIDGE)
              for i in range((limited or MOST) - len(wired.guards))]
    guards = [*wired.guards, *others]
    limits = Limiting(TABLE, tuple(NicLimits(name=g.name, table=TABLE, burst=1, stations=(), zone=0, counted="", **{
        **dict.fromkeys(SETS, 0), **VALUES}) for g in guards[:limited]))
    _, added = change((), guards)
    lines = ["flush ruleset", *table_lines(guard_table(limits=limits.text())), *element_lines("add", added),
             *members.lines("add", (pair for item in limits.members for pair in members.elements(item)))]
    return "\n".join(lines) + "\n"


def measure(rounds: int, packets: int, folder: Path) -> dict[int, list[float]]:
    """NICs -> the rate of each round."""
    taken: dict[int, list[float]] = {v: [] for v in VARIANTS}
    with new_netns(), lab() as wired:
        scripts = {v: folder / f"{v}.nft" for v in VARIANTS}
        for variant, file in scripts.items():
            file.write_text(script(wired, variant))
        for turn in range(rounds):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                sh(f"nft -f {scripts[variant]}")
                run(wired.attacker.fd, FRAME, packets // 10)
                wired.forget()
                taken[variant].append(run(wired.attacker.fd, FRAME, packets))
                if not wired.victim.drain():
                    raise SystemExit(f"with {variant} NICs: nothing arrived")
        if "dropped" in sh("nft list set bridge kvmnet dropped").partition("elements")[2]:
            raise SystemExit("something was over a limit")
    return taken


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="result as JSON on standard output")
    options.add_argument("--rounds", type=int, default=31)
    options.add_argument("--packets", type=int, default=40000, help="packets of one run")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(asked.rounds, asked.packets, Path(folder))
    rates = {v: round(statistics.median(runs)) for v, runs in taken.items()}
    claims = [{"claim": claim, "traffic": "IPv4 UDP", "ratio": ratio(taken, a, b), "at_least": least} for claim, a, b, least in CLAIMS]
    for variant, rate in rates.items():
        print(f"{f'{variant:,} limited' if variant else 'no limits':14} {rate:12,} packets/s", file=sys.stderr)
    for row in claims:
        print(f"{row['claim']:32} {row['ratio']:.2f} (wanted {row['at_least']})", file=sys.stderr)
    if asked.json:
        print(json.dumps({"packets_per_second": rates, "claims": claims}, indent=2))
    return int(any(float(str(row["ratio"])) < float(str(row["at_least"])) for row in claims))


if __name__ == "__main__":
    sys.exit(main())
