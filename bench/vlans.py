"""Many VLANs: ports of one VLAN-aware bridge, and bridges on sub-interfaces, against the bare tools.

The first document has a network and a guest for each VLAN of one uplink: a port that is filtered, with its guard.
The second has a bridge of its own for each VLAN. Our side is the whole process of ``kvmnet apply``: plan, journal,
apply, verify, commit. The bare side is exactly the batches that ``kvmnet plan --commands`` prints for it, lying
ready in files: ``ip -batch``, ``bridge -batch``, ``nft -f`` and one ``sysctl`` for all settings that follow each other.
Both take turns in one network namespace. In the lab what both load is brought into its memory first (``bench.near``).
"""
from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from bench.claim import Claim, ratio
from bench.near import bring
from bench.world import Spent, World

MORE = ("kvmnet.cli.main", "kvmnet.cli.change", "kvmnet.cli.output", "kvmnet.cli.plan_text", "kvmnet.reach.guard", "sqlite3")
"""Modules that ``kvmnet apply`` loads besides those of a plan."""
GROUP = 4711
UPLINK = "e1"
UPLINKS = f"version: 1\nuplinks: {{wan: {{device: {UPLINK}}}}}\n"


def ports(count: int) -> str:
    """A network on each VLAN from 2 on, and a guest on each."""
    networks = "".join(f"  n{i}: {{mode: bridge, uplink: wan, vlan: {i + 2}, subnet: 10.{i // 250}.{i % 250}.0/24}}\n" for i in range(count))
    vms = "".join(f"  g{i}: {{nics: [{{network: n{i}, ip: 10.{i // 250}.{i % 250}.9}}]}}\n" for i in range(count))
    return f"{UPLINKS}networks:\n{networks}vms:\n{vms}"


def bridges(count: int) -> str:
    """A bridge of its own on each VLAN: it is to answer ARP, which a VLAN of a shared one cannot."""
    return f"{UPLINKS}networks:\n" + "".join(
        f"  n{i}: {{mode: bridge, uplink: wan, vlan: {i + 2}, neigh_suppress: true}}\n" for i in range(count))


DOCUMENTS = {"VLAN-filtered ports": ports, "VLAN bridges": bridges}


def record(document: Path, folder: Path) -> None:
    """Write the batches that make the document's objects, a script that runs them in order, and one that removes
    the links again."""
    from kvmnet.api import Host
    from kvmnet.drivers.linux.resources import Link
    from kvmnet.engine.plan import Create

    host = Host()
    planned = host.plan(document)
    lines = ["set -e"]
    tools = [c for c in host.engine.dispatch.commands(planned.steps) if c.argv[0] in ("ip", "bridge", "nft", "sysctl")]
    for tool, group in groupby(tools, lambda c: c.argv[0]):
        if tool == "sysctl":
            lines.append("sysctl -q -w " + " ".join(shlex.quote(c.argv[-1]) for c in group))
            continue
        for number, command in enumerate(group, len(lines)):
            (folder / f"{number}.{tool}").write_text(command.stdin)
            lines.append(f"{shlex.join(command.argv)} < {number}.{tool}")
    (folder / "make.sh").write_text("\n".join(lines) + "\n")
    links = [s.after.name for s in planned.steps if isinstance(s, Create) and isinstance(s.after, Link)]
    (folder / "remove.ip").write_text("".join(f"link set dev {name} group {GROUP}\n" for name in links)
                                      + f"link del group {GROUP}\n")
    tables = [s.key.name for s in planned.steps if s.key.kind == "nft-table"]
    (folder / "remove.sh").write_text("set -e\nip -batch remove.ip\n" + "".join(f"nft delete table {t}\n" for t in tables))


class Bench:
    def __init__(self, world: World, kind: str, count: int):
        self.world, self.kind, self.count = world, kind, count
        self.taken: dict[str, list[Spent]] = defaultdict(list)
        self.bare = world.folder / kind.replace(" ", "-")
        self.bare.mkdir()
        self.file = self.bare / "all.yaml"
        self.file.write_text(DOCUMENTS[kind](count))
        near = ["--near"] if "KVMNET_LAB" in os.environ else []
        world.run([sys.executable, "-m", "bench.vlans", *near, "--record", str(self.file), str(self.bare)])
        world.forget()

    def script(self, text: str) -> Spent:
        return self.world.run(["sh", "-c", f"cd {self.bare} && {text}"])

    def round(self) -> None:
        """Everything once: bare, then ours."""
        self.take("bare make", self.script(". ./make.sh"))
        self.take("bare remove", self.script(". ./remove.sh"))
        self.take("make", self.world.kvmnet("apply", str(self.file), "--yes"))
        self.take("destroy", self.world.kvmnet("destroy", "--yes"))
        self.world.forget()

    def take(self, what: str, spent: Spent) -> None:
        self.taken[what].append(spent)
        print(f"{self.count} {self.kind}: {what} {spent.wall:.2f} s, of processor time {spent.processor:.2f}", file=sys.stderr)

    def claims(self) -> list[Claim]:
        what = f"{self.count} {self.kind}"
        return [ratio(f"plan, apply and verify {what}", self.taken["make"], self.taken["bare make"], 3),
                ratio(f"destroy {what}", self.taken["destroy"], self.taken["bare remove"], 3)]


def together(taken: Mapping[str, Mapping[str, Sequence[Spent]]], what: str) -> list[Spent]:
    """What all kinds took in each round."""
    return [Spent(sum(one.wall for one in spent), sum(one.processor for one in spent))
            for spent in zip(*(found[what] for found in taken.values()), strict=True)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--kind", choices=list(DOCUMENTS))
    options.add_argument("--near", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--record", nargs=2, type=Path, metavar=("FILE", "FOLDER"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.record:
        record(*asked.record)
        if asked.near:
            bring(MORE)
        return
    with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as folder:
        world = World(Path(folder))
        world.run(["ip", "link", "add", UPLINK, "up", "type", "veth", "peer", "name", "f1"])
        claims, taken = [], {}
        for kind in [asked.kind] if asked.kind else DOCUMENTS:
            bench = Bench(world, kind, asked.count)
            try:
                for _ in range(asked.rounds):
                    bench.round()
            finally:
                with suppress(SystemExit):  # a round that failed leaves the keeper behind
                    world.kvmnet("destroy", "--yes")
            claims += bench.claims()
            taken[kind] = bench.taken
        if len(taken) > 1:
            claims += [ratio(f"plan, apply and verify {asked.count} of each", together(taken, "make"), together(taken, "bare make"), 3)]
        print(json.dumps({"claims": [c.to_json() for c in claims], "seconds": taken}))


if __name__ == "__main__":
    main()
