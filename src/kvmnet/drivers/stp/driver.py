"""Spanning trees that kvmnet speaks itself: for each bridge a gate of nftables, and a process.

A bridge's files stand in ``RUN/trees/BRIDGE``: what its process is told, who it is, what it tells, and how nft lists the gate
as it was made. The gate stands before the bridge does, so that no port that joins is open for a moment.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvmnet.drivers.kinds import from_json
from kvmnet.drivers.stp.gate import read_listing, table_of, table_text
from kvmnet.drivers.stp.netlink import BLOCKING, Kernel, Refused
from kvmnet.drivers.stp.process import Speaking
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.drivers.stp.settings import Wish
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Delete, Step
from kvmnet.engine.resource import Wanted, merge
from kvmnet.host.files import make_directory
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run

LISTING = "gate.listing"


class StpDriver:
    kinds = frozenset({TreeGate.kind, SpanningTree.kind})
    sees_without_tool = True

    def __init__(self, paths: Paths):
        self.folder = (paths.run / "trees").absolute()

    def unavailable(self) -> str | None:
        return missing("nft")

    def speaking(self, bridge: str) -> Speaking:
        return Speaking(self.folder / bridge)

    def observe(self, intent: Wanted) -> Seen:
        seen = Seen()
        for folder in sorted(self.folder.glob("*")):
            if (gate := self.gate(folder)) is not None:
                seen.state[gate.key] = gate
            speaking = Speaking(folder)
            with suppress(ValueError, KeyError):
                tree = from_json(json.loads(speaking.config()) | {"running": speaking.runs()})
                assert isinstance(tree, SpanningTree)
                seen.state[tree.key] = tree
        seen.ours = set(seen.state)
        return seen

    def gate(self, folder: Path) -> TreeGate | None:
        """The gate of a bridge; one that somebody has taken away is not whole."""
        try:
            made = (folder / LISTING).read_text()
        except OSError:
            return None
        try:
            ports, _, rest = read_listing(run(("nft", "-j", "list", "table", *table_of(folder.name).split())))
        except ToolFailed:
            ports, rest = (), ""
        return TreeGate(name=folder.name, ports=ports, whole=rest == made)

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            if step.key.kind == TreeGate.kind:
                self.apply_gate(step)
            else:
                self.apply_tree(step)
            progress(1)

    def apply_gate(self, step: Step) -> None:
        folder = self.folder / step.key.name
        script = gate_script(step)
        try:
            run(("nft", "-f", "-"), stdin=script)
            if isinstance(step, Delete):
                shutil.rmtree(folder, ignore_errors=True)
                return
            _, _, rest = read_listing(run(("nft", "-j", "list", "table", *table_of(step.key.name).split())))
        except ToolFailed as failed:
            raise StepFailed(step.key, failed.detail, "the spanning tree needs nftables for bridges") from failed
        make_directory(folder, 0o700)
        (folder / LISTING).write_text(rest)

    def apply_tree(self, step: Step) -> None:
        speaking = self.speaking(step.key.name)
        if isinstance(step, Delete):
            speaking.stop()
            give_back(Wish.read(json.loads(speaking.config())))
            (speaking.folder / "config.json").unlink(missing_ok=True)
            return
        before = getattr(step, "before", None)
        wanted = merge(before, step.after) if before is not None else step.after
        assert isinstance(wanted, SpanningTree)
        speaking.start(wanted)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        found = []
        for step in steps:
            if step.key.kind == TreeGate.kind:
                found.append(Command(("nft", "-f", "-"), gate_script(step), (step.key,)))
            elif isinstance(step, Delete):
                pid = (self.speaking(step.key.name).read("process.json") or {}).get("pid", "PID")
                found.append(Command(("kill", str(pid)), keys=(step.key,)))
            else:
                found.append(Command(tuple(self.speaking(step.key.name).argv()), keys=(step.key,)))
        return found


def gate_script(step: Step) -> str:
    """One transaction of nft: the table anew, with every port shut, or none."""
    name = step.key.name
    if isinstance(step, Delete):
        return f"table {table_of(name)} {{ }}\ndelete table {table_of(name)}\n"
    gate = step.after
    assert isinstance(gate, TreeGate)
    return table_text(name, gate.ports or ())


def give_back(wish: Wish) -> None:
    """Leave the ports to the kernel, which opens a blocked one where it speaks no spanning tree. The gate still stands."""
    kernel = Kernel()
    try:
        for name, _, _ in wish.ports:
            look = kernel.look(name)
            if look is not None and look.master:
                with suppress(Refused):
                    kernel.set_state(look.number, BLOCKING)
    finally:
        kernel.close()
