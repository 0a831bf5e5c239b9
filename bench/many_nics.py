"""Many NICs: made, looked at, one added, removed, rolled back, each against the bare tools.

A NIC is a tap, a bridge port, a guard and a DHCP reservation. Our side is the whole process of a
``kvmnet`` command, from its start to its end: it plans, records, applies, verifies and commits, and
starts the daemons. The bare side is described in bare.py. Both take turns in one network namespace.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from bench.claim import Claim, ratio, seconds
from bench.document import EMPTY, LIMITS, RATES, document
from bench.world import Spent, World

Times = dict[str, list[Spent]]


class Bench:
    def __init__(self, world: World, nics: int, kind: str = ""):
        self.world, self.nics = world, nics
        self.what = f"{nics:,} NICs" + (f" with {kind}" if kind else "")
        options = {"limits": LIMITS, "rates": RATES}.get(kind, "")
        self.taken: Times = defaultdict(list)
        self.bare = world.folder / "bare"
        self.bare.mkdir()
        self.files = {}
        for name, text in {"empty": EMPTY, "all": document(nics, options), "more": document(nics + 1, options)}.items():
            self.files[name] = world.folder / f"{name}.yaml"
            self.files[name].write_text(text)
        world.run([sys.executable, "-m", "bench.bare", "record", str(self.files["all"]), str(self.bare)])
        world.forget()

    def apply(self, name: str) -> Spent:
        return self.world.kvmnet("apply", str(self.files[name]), "--yes")

    def reads(self) -> Spent:
        return self.world.run([sys.executable, "-I", str(Path(__file__).with_name("bare.py")), "read",
                               str(self.world.folder / "run/dnsmasq")])

    def script(self, name: str) -> Spent:
        return self.world.run(["sh", "-c", f"cd {self.bare} && . ./{name}.sh"])

    def round(self, looks: int) -> None:
        """Everything once: ours, then bare."""
        world, taken = self.world, self.taken
        self.apply("empty")
        taken["make"].append(self.apply("all"))
        for _ in range(looks):
            taken["look"].append(self.apply("all"))
            taken["bare look"].append(self.reads())
        if self.nics <= 1000:
            taken["add"].append(self.apply("more"))
            self.apply("all")
        taken["destroy"].append(world.kvmnet("destroy", "--yes"))
        taken["bare make"].append(self.script("make"))
        taken["bare remove"].append(self.script("remove"))
        self.apply("all")
        taken["roll back"].append(world.kvmnet("rollback", "--yes"))
        world.kvmnet("destroy", "--yes")
        taken["bare make"].append(self.script("make"))
        taken["bare remove"].append(self.script("remove"))
        world.forget()

    def claims(self) -> list[Claim]:
        taken, n = self.taken, self.what
        found = [ratio(f"plan, apply and verify {n}", taken["make"], taken["bare make"], 3),
                 ratio(f"apply again, nothing to do, {n}", taken["look"], taken["bare look"], 3),
                 ratio(f"destroy {n}", taken["destroy"], taken["bare remove"], 3),
                 ratio(f"roll back {n}", taken["roll back"], taken["bare remove"], 3)]
        if self.nics <= 1000:
            found += [seconds(f"apply again, nothing to do, {n}", taken["look"], 2),
                      seconds(f"one NIC more than {n}", taken["add"], 0.5)]
        return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nics", type=int, default=1000)
    options.add_argument("--limits", action="store_true", help="with abuse limits")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rates", action="store_true", help="each NIC limited in both directions")
    options.add_argument("--looks", type=int, default=3, help="repeated applies in one round")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as folder:
        world = World(Path(folder))
        bench = Bench(world, asked.nics, "limits" if asked.limits else "rates" if asked.rates else "")
        try:
            for done in range(asked.rounds):
                bench.round(asked.looks)
                print(f"{asked.nics:,} NICs: round {done + 1} of {asked.rounds}", file=sys.stderr)
        finally:
            with suppress(SystemExit):  # a round that failed leaves daemons behind
                world.kvmnet("destroy", "--yes")
        print(json.dumps({"claims": [c.to_json() for c in bench.claims()], "seconds": bench.taken}))


if __name__ == "__main__":
    main()
