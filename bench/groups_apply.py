"""A policy on 1,000 guests: put in force, one member added, each a whole ``kvmnet`` command against ``nft -f``.

The guests are there already. The bare side is told, in files that lie ready, exactly what ``kvmnet plan --commands`` prints for the
same change: it plans, records, verifies and cuts nothing. Both take turns in one network namespace.

"Its steps" are the change itself, without what every command costs: start, reading the document, two looks at the host, journal.

    python -m bench.groups_apply steps FILE    apply FILE; prints the seconds that its steps took
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from bench.claim import Claim, ratio, seconds
from bench.world import Spent, World, processor

NICS, GROUPS, RULES = 1000, 100, 10
NETWORK = "  lan: {mode: isolated, subnet: 10.0.0.0/21, dhcp: {enabled: false}, dns: {enabled: false}}"


def document(groups: dict[str, list[str]], member_of: list[str]) -> str:
    """*groups*: name -> rules; *member_of*: the group of each guest, '' for none."""
    lines = ["version: 1", "networks:", NETWORK, "vms:"]
    lines += [f"  g{i}: {{nics: [{{network: lan{f', groups: [{name}]' if name else ''}}}]}}" for i, name in enumerate(member_of)]
    if groups:
        lines += ["groups:", *(f"  {name}: {{ingress: [{', '.join(rules)}]}}" for name, rules in groups.items())]
    return "\n".join(lines) + "\n"


def policy() -> str:
    """Every group lets in ten ports, each from another group."""
    groups = {f"s{i}": [f"{{tcp: {1000 + n}, from: group:s{(i + n) % GROUPS}}}" for n in range(RULES)] for i in range(GROUPS)}
    return document(groups, [f"s{i % GROUPS}" for i in range(NICS)])


def crowd(members: int) -> str:
    """One group of *members*, of a thousand guests and one."""
    return document({"all": ["{tcp: 80, from: group:all}"]}, ["all" if i < members else "" for i in range(NICS + 1)])


class Bench:
    def __init__(self, world: World):
        self.world, self.taken = world, defaultdict[str, list[Spent]](list)
        self.files = {}
        for name, text in {"bare": document({}, [""] * NICS), "policy": policy(), "crowd": crowd(NICS), "more": crowd(NICS + 1)}.items():
            self.files[name] = world.folder / f"{name}.yaml"
            self.files[name].write_text(text)
            (world.folder / name).mkdir()

    def apply(self, name: str) -> Spent:
        return self.world.kvmnet("apply", str(self.files[name]), "--yes")

    def steps(self, name: str) -> Spent:
        """The same change, of which only the steps count."""
        done = subprocess.run([sys.executable, "-m", "bench.groups_apply", "steps", str(self.files[name])], env=self.world.env,
                              capture_output=True, text=True, check=True)
        wall, cpu = map(float, done.stdout.split())
        return Spent(wall, cpu)

    def record(self, name: str) -> None:
        """What ``plan --commands`` prints, as files."""
        self.world.run([sys.executable, "-m", "bench.bare", "record", str(self.files[name]), str(self.world.folder / name)])

    def bare(self, name: str) -> Spent:
        return self.world.run(["sh", "-c", f"cd {self.world.folder / name} && nft -f make.nft && ip -batch make.ip"])

    def round(self) -> None:
        taken = self.taken
        self.apply("bare")
        self.record("policy")
        taken["policy"].append(self.apply("policy"))
        self.apply("bare")
        taken["policy's steps"].append(self.steps("policy"))
        self.apply("bare")
        taken["bare policy"].append(self.bare("policy"))
        self.apply("crowd")
        self.record("more")
        taken["member"].append(self.apply("more"))
        self.apply("crowd")
        taken["member's steps"].append(self.steps("more"))
        self.apply("crowd")
        taken["bare member"].append(self.bare("more"))
        self.world.kvmnet("destroy", "--yes")

    def claims(self) -> list[Claim]:
        taken = self.taken
        what, member = f"{GROUPS} groups of {RULES} rules for {NICS:,} guests", f"one member more in a group of {NICS:,}"
        return [ratio(f"{what}, whole command", taken["policy"], taken["bare policy"], 3),
                ratio(f"{what}, its steps", taken["policy's steps"], taken["bare policy"], 3),
                seconds(f"{member}, whole command", taken["member"], 0.3),
                seconds(f"{member}, its steps", taken["member's steps"], 0.3)]


def steps(document: Path) -> None:
    """Apply *document*, which differs from what stands in its policy only; the seconds of its steps, wall and processor."""
    from kvmnet.api import Host

    host = Host()
    planned = host.plan(document)
    before, began = processor() + time.process_time(), time.perf_counter()
    host.engine.dispatch.apply(planned.steps, lambda done: None)
    print(time.perf_counter() - began, processor() + time.process_time() - before)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as folder:
        world = World(Path(folder))
        bench = Bench(world)
        try:
            for done in range(asked.rounds):
                bench.round()
                print(f"groups of {NICS:,} guests: round {done + 1} of {asked.rounds}", file=sys.stderr)
        finally:
            with suppress(SystemExit):  # a round that failed leaves daemons behind
                world.kvmnet("destroy", "--yes")
        print(json.dumps({"claims": [c.to_json() for c in bench.claims()], "seconds": bench.taken}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["steps"]:
        steps(Path(sys.argv[2]))
    else:
        main()
