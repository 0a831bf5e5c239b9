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
from kvmnet.drivers.stp.gate import lanes_of, read_listing, table_of, table_text, through
from kvmnet.drivers.stp.netlink import BLOCKING, Kernel, Refused
from kvmnet.drivers.stp.process import Speaking
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.drivers.stp.settings import Wish
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Wanted, merge
from kvmnet.host.files import make_directory
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run

LISTING, LANES = "gate.listing", "gate.json"
"""How nft lists the gate as it was made, and what it was made of."""


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
            lanes = json.loads((folder / LANES).read_text())
        except (OSError, ValueError):
            return None
        try:
            ports, _, rest = listing(folder.name)
        except ToolFailed:
            ports, rest = (), ""
        return TreeGate(name=folder.name, ports=ports, instances=tuple(lanes["instances"]), untagged=lanes["untagged"], whole=rest == made)

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            if step.key.kind == TreeGate.kind:
                self.apply_gate(step)
            else:
                self.apply_tree(step)
            progress(1)

    def apply_gate(self, step: Step) -> None:
        folder = self.folder / step.key.name
        try:
            if isinstance(step, Delete):
                begin_anew(step.key.name)
                run(("nft", "-f", "-"), stdin=gate_script(step))
                shutil.rmtree(folder, ignore_errors=True)
                return
            gate = whole(step)
            self.stop_others(gate)
            make_directory(folder, 0o700)
            (folder / LANES).write_text(json.dumps({"instances": gate.instances or (), "untagged": gate.untagged or 0}))
            (folder / LISTING).write_text("")    # found again by it when we are killed now
            run(("nft", "-f", "-"), stdin=gate_script(step))
            (folder / LISTING).write_text(listing(gate.name)[2])
        except ToolFailed as failed:
            raise StepFailed(step.key, failed.detail, "the spanning tree needs nftables for bridges") from failed

    def stop_others(self, gate: TreeGate) -> None:
        """End the process of a bridge that goes by another gate: it would make its own again. A step that comes starts it anew."""
        speaking = self.speaking(gate.name)
        with suppress(ValueError, KeyError):
            wish = Wish.read(json.loads(speaking.config()))
            if (tuple(sorted(wish.names)), wish.lanes) != (gate.ports, lanes_of(gate.instances or (), gate.untagged or 0)):
                speaking.stop()

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
    gate = whole(step)
    return table_text(name, gate.ports or (), lanes_of(gate.instances or (), gate.untagged or 0))


def whole(step: Create | Update) -> TreeGate:
    """The gate as a step makes it."""
    gate = merge(step.before, step.after) if isinstance(step, Update) else step.after
    assert isinstance(gate, TreeGate)
    return gate


def listing(bridge: str) -> tuple[tuple[str, ...], dict[str, set[str]], str]:
    """Of a bridge's gate: the ports, those that are open by the set of each tree, and the rest. Raises ToolFailed."""
    return read_listing(run(("nft", "-j", "list", "table", *table_of(bridge).split())))


def give_back(wish: Wish) -> None:
    """Leave the ports and their VLANs to the kernel, which opens a blocked port where it speaks no spanning tree. The gate still
    stands."""
    from kvmnet.drivers.stp.states import vlan_changes
    from kvmnet.stp.vectors import CIST, State
    kernel = Kernel()
    try:
        for name in wish.names:
            look = kernel.look(name)
            if look is not None and look.master:
                with suppress(Refused):
                    for span in vlan_changes(kernel.vlans(look.number), wish.lanes, {CIST: State.FORWARDING}):
                        kernel.set_vlans(look.number, span)
                with suppress(Refused):
                    kernel.set_state(look.number, BLOCKING)
    finally:
        kernel.close()


def begin_anew(bridge: str) -> None:
    """Before the gate goes: where the kernel speaks STP by now, ports that the gate has shut begin with it as ports do that come
    up, in LISTENING. To the kernel they are open so far, and what it hears may take it long to shut them."""
    try:
        link = json.loads(run(("ip", "-j", "-d", "link", "show", "dev", bridge)))[0]
        ports, opened, _ = listing(bridge)
    except ToolFailed:
        return    # the bridge has gone, or the gate
    if link["linkinfo"]["info_data"].get("stp_state") != 1:
        return
    kernel = Kernel()
    try:
        shut = [name for name in ports if name not in through(opened) and (seen := kernel.look(name)) and seen.master == link["ifindex"] and seen.up]
    finally:
        kernel.close()
    for name in shut:
        run(("ip", "link", "set", "dev", name, "down"))
        run(("ip", "link", "set", "dev", name, "up"))
