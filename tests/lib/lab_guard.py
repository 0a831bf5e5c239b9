"""The guard on the lab's kernel, many cases in one go. The frames are made outside, where Python is fast."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvmnet.drivers.nftables.resources import NicGuard
from lib.guardlab import lab
from lib.netns import new_netns

Frames = Mapping[str, Sequence[bytes]]
Arrived = dict[str, dict[str, int]]
"""Name of the case -> how many of its frames came out where (guest, host, outside)."""


def without_and_with(cases: Frames, port: str) -> tuple[Arrived, Arrived]:
    """What arrives of each case without any guard, and under the usual one."""
    with new_netns(), lab(port) as wired:
        wired.open()
        open_ = {name: wired.leaked(frames) for name, frames in cases.items()}
        wired.guard()
        return open_, {name: wired.leaked(frames) for name, frames in cases.items()}


def under(guard: NicGuard, cases: Frames) -> Arrived:
    """What arrives of each case under *guard*."""
    with new_netns(), lab() as wired:
        wired.guard(guard)
        return {name: wired.leaked(frames) for name, frames in cases.items()}


def refused_and_declared(roles: Mapping[str, tuple[NicGuard, Sequence[bytes]]]) -> dict[str, tuple[int, int]]:
    """How many frames of each role reach the other guest under the usual guard, and under the role's."""
    with new_netns(), lab() as wired:
        wired.guard()
        refused = {name: wired.leaked(frames)["guest"] for name, (_, frames) in roles.items()}
        passed = {}
        for name, (guard, frames) in roles.items():
            wired.guard(guard)
            passed[name] = wired.leaked(frames)["guest"]
        return {name: (refused[name], passed[name]) for name in roles}
