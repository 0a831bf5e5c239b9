"""Run benchmarks, each in a network namespace of its own: a table of claims with their verdicts.

    python -m bench [--quick] [--list] [--json FILE] [NAME...]
    python -m bench peers [OPTIONS of kvmnet bench peers...]     with libvirt and Open vSwitch, fetched and not installed

Exits with 1 when a target is missed. The numbers also go to FILE as JSON (.cache/bench.json).
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.claim import Claim, table
from bench.world import unshared

ROOT = Path(__file__).parents[1]
LONGEST = 540.0
"""Seconds that one benchmark may take."""


@dataclass(frozen=True)
class Benchmark:
    title: str
    argv: tuple[str, ...]
    quick: tuple[str, ...]
    """Words that make it short."""
    needs: tuple[str, ...] = ()
    """Features of the kernel. Where they are missing it runs in the lab, both sides slower alike."""
    fetch: tuple[str, ...] = ()
    """What fetches packages for it, where there is a network. With this it runs only when it is named."""


BENCHMARKS = {
    "start": Benchmark("Start", ("-m", "bench.start"), ("--rounds", "5")),
    "nics-1000": Benchmark("1,000 NICs", ("-m", "bench.many_nics"), ("--rounds", "1")),
    "nics-10000": Benchmark("10,000 NICs on 10 bridges",
                            ("-m", "bench.many_nics", "--nics", "10000", "--rounds", "1", "--looks", "1"),
                            ("--nics", "2000")),
    "rates-1000": Benchmark("1,000 NICs with rates", ("-m", "bench.many_nics", "--rates", "--rounds", "3"), ("--rounds", "1")),
    "rates": Benchmark("Packets between guests with rates", ("bench/rates_pps.py", "--json"), ("--rounds", "5")),
    "vlans": Benchmark("500 VLANs", ("-m", "bench.vlans"), ("--rounds", "1"), ("bridge-vlan-filtering", "vlan")),
    "guard": Benchmark("Packets through the guard", ("bench/guard_pps.py", "--json"), ("--rounds", "5")),
    "mirrors": Benchmark("Packets of a mirrored guest", ("bench/mirrors_pps.py", "--json"), ("--rounds", "5")),
    "groups": Benchmark("Packets between guests in groups", ("bench/groups_pps.py", "--json"), ("--rounds", "5")),
    "limits-1000": Benchmark("1,000 NICs with limits", ("-m", "bench.many_nics", "--limits", "--rounds", "3"), ("--rounds", "1")),
    "limits": Benchmark("Packets of NICs with abuse limits", ("bench/limits_pps.py", "--json"), ("--rounds", "5")),
    "clean-traffic": Benchmark("The guard against libvirt's", ("-m", "bench.clean_traffic"), ("--rounds", "3"), fetch=("-m", "bench.clean_traffic", "--fetch")),
    "groups-1000": Benchmark("Groups of 1,000 guests", ("-m", "bench.groups_apply"), ("--rounds", "1")),
}


def run(chosen: Benchmark, words: Sequence[str]) -> dict[str, Any]:
    """The benchmark's own JSON. Raises SystemExit when it cannot be run."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    if chosen.fetch and subprocess.run([sys.executable, *chosen.fetch], cwd=ROOT, env=env, check=False).returncode:
        raise SystemExit(f"{chosen.title}: what it needs could not be fetched")
    argv = unshared([sys.executable, *chosen.argv, *words])
    if missing := lacking(chosen.needs):
        print(f"{chosen.title}: in the lab, since {missing}", file=sys.stderr)
        argv = [sys.executable, "-m", "lib.lab_shell", *argv]
    done = subprocess.run(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=LONGEST, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{chosen.title}: ended with {done.returncode} and without a result") from None
    return found


def lacking(needs: Sequence[str]) -> str:
    """Why this kernel cannot do what a benchmark needs; '' when it can."""
    if not needs:
        return ""
    from kvmnet.facts.features import features
    known = features(ROOT / ".cache/features.json")
    return next((known[name] for name in needs if known[name]), "")


def claims_of(found: dict[str, Any]) -> list[Claim]:
    return [packets(c) if "traffic" in c else Claim(**{k: v for k, v in c.items() if k != "kept"})
            for c in found["claims"]]


def packets(row: dict[str, Any]) -> Claim:
    """A claim of guard_pps: a ratio of packet rates."""
    return Claim(f"{row['claim']}, {row['traffic']}", row["ratio"], "at least", row["at_least"], "x")


def main() -> int:
    if sys.argv[1:2] == ["peers"]:    # a command of kvmnet's, with its own options and report
        subprocess.run([sys.executable, "-m", "bench.peers", "--fetch"], cwd=ROOT, check=True)
        return subprocess.run([sys.executable, "-m", "bench.peers", *sys.argv[2:]], cwd=ROOT, check=False).returncode
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}; all when none is given, but clean-traffic, which "
                         "fetches libvirt")
    options.add_argument("--quick", action="store_true", help="few rounds: is it about right?")
    options.add_argument("--list", action="store_true", help="print the names")
    options.add_argument("--json", type=Path, default=ROOT / ".cache/bench.json", metavar="FILE")
    asked = options.parse_args()
    if asked.list:
        print("\n".join(f"{name:12} {b.title}" for name, b in BENCHMARKS.items()))
        return 0
    if unknown := [n for n in asked.names if n not in BENCHMARKS]:
        options.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    results, missed = {}, 0
    for name in asked.names or [n for n, b in BENCHMARKS.items() if not b.fetch]:
        chosen = BENCHMARKS[name]
        found = run(chosen, chosen.quick if asked.quick else ())
        claims = claims_of(found)
        print(table(chosen.title, claims), end="\n\n", flush=True)
        missed += sum(not c.kept for c in claims)
        results[name] = {**found, "claims": [c.to_json() for c in claims]}
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(results, indent=2) + "\n")
    print(f"{missed} target(s) missed" if missed else "every target kept", f"({asked.json})")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
