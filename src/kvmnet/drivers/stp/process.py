"""The process of a bridge's spanning tree (``daemon.py``)."""
from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from kvmnet.drivers.supervised import Supervised
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class Speaking(Supervised):
    """The process of one bridge, by its folder. When it is stopped, ports stay as they are; those that could close a loop shut by
    themselves."""

    program: ClassVar[str] = str(Path(__file__).with_name("daemon.py"))
