"""The driver of guest-nic as the table of drivers has it: its code is loaded when there is a guest.

Most commands meet none, and the QMP side is a tenth of what they would load.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from kvmnet.drivers.qemu.folder import running_folders
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.driver import Command, Progress, Seen
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Wanted
from kvmnet.host.paths import Paths
from kvmnet.host.run import missing

if TYPE_CHECKING:
    from kvmnet.drivers.qemu.driver import GuestNicDriver


class Guests:
    """As ``GuestNicDriver``."""

    kinds = frozenset({GuestNic.kind})
    sees_without_tool = True

    def __init__(self, paths: Paths):
        self.paths = paths

    @cached_property
    def driver(self) -> GuestNicDriver:
        from kvmnet.drivers.qemu.driver import GuestNicDriver
        return GuestNicDriver(self.paths)

    def unavailable(self) -> str | None:
        return missing("qemu-system-x86_64")

    def observe(self, intent: Wanted) -> Seen:
        return self.driver.observe(intent) if running_folders(self.paths) else Seen()

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        self.driver.apply(steps, progress)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        return self.driver.commands(steps)
