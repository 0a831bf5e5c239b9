"""How long each of them takes to configure the same: in turns, each in a namespace of its own, before any guest runs."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic

from kvmnet.bench.model import Progress
from kvmnet.bench.peers import tasks
from kvmnet.bench.peers.libvirt import Libvirt
from kvmnet.bench.peers.ovs import OpenVswitch
from kvmnet.bench.peers.space import Space
from kvmnet.bench.peers.tasks import DEVICE, TASKS, Call, Way
from kvmnet.errors import KvmnetError
from kvmnet.host.run import ToolFailed, run

Times = dict[str, dict[str, list[float]]]
"""Task -> by whom -> seconds of each round."""


def configured(peers: Sequence[str], sizes: Mapping[str, int], rounds: int, folder: Path, progress: Progress) -> Times:
    """*peers*: who is there. Raises KvmnetError when one of them fails."""
    spaces = {by: Space(f"task-{by}", folder / f"task-{by}") for by in peers}
    for space in spaces.values():
        space.make()
        space.forward()
        space.ip([f"link add {DEVICE} type veth peer name far", f"addr add 192.0.2.2/24 dev {DEVICE}", f"link set {DEVICE} up",
                  "link set far up"])
    found = {by: ways(by, space, sizes) for by, space in spaces.items()}
    taken: Times = {task: {by: [] for by in peers if task in found[by]} for task in TASKS}
    if "kvmnet" in found:    # what is compiled on first use is compiled before
        time_of(found["kvmnet"]["ports"], spaces["kvmnet"])
    for task, by_whom in taken.items():
        for number in range(rounds):
            for by in list(by_whom)[::-1 if number % 2 else 1]:
                progress(f"round {number + 1} of {rounds}: {TASKS[task].format(**sizes)}, {by}", 0, 0)
                by_whom[by].append(time_of(found[by][task], spaces[by]))
    for space in spaces.values():    # daemons stay until the end of this process's namespaces, idle
        run(["ip", "netns", "delete", space.netns])
    return taken


def ways(by: str, space: Space, sizes: Mapping[str, int]) -> dict[str, Way]:
    networks, nics = sizes["networks"], sizes["nics"]
    match by:
        case "kvmnet":
            return tasks.kvmnet(space, networks, nics)
        case "libvirt":
            made = Libvirt(space)
            made.start()
            return tasks.with_libvirt(made, networks, nics)
        case "ovs":
            switch = OpenVswitch(space)
            switch.start()
            return tasks.with_open_vswitch(switch, nics)
        case _:
            return tasks.with_bare_tools(space, networks, nics)


def time_of(way: Way, space: Space) -> float:
    """Seconds. Raises KvmnetError when what was configured is not there, or was there before."""
    do(way.prepare, space)
    there_before = proved(way, space)
    began = monotonic()
    do(way.timed, space)
    taken = monotonic() - began
    if there_before or not proved(way, space):
        raise KvmnetError(f"{space.netns}: {', '.join(way.named)} {'there before' if there_before else 'not all there afterwards'}",
                          f"seen by: {' '.join(way.proof.argv)}")
    do(way.undo, space)
    return round(taken, 4)


def proved(way: Way, space: Space) -> bool:
    try:
        seen = space.run(way.proof.argv, way.proof.stdin)
    except ToolFailed:    # no such table yet
        return False
    return all(name in seen for name in way.named)


def do(calls: Iterable[Call], space: Space) -> None:
    for call in calls:
        try:
            space.run(call.argv, call.stdin)
        except ToolFailed as failed:
            raise KvmnetError(f"{space.netns}: {' '.join(call.argv)[:300]}: {failed.detail}") from failed
