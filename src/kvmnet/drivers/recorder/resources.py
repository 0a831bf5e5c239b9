"""Processes that keep the copies of a mirror in files. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder(Resource):
    """The process that writes what leaves by a device into the last of some files; named by the mirror."""

    kind: ClassVar[str] = "recorder"
    device: str | None = option(doc="the device that the copies are handed to", ref="link", on_delete="delete", recreate=True)
    path: str | None = option(doc="the files without their numbers: /var/web.pcapng stands for /var/web-00001.pcapng and so on")
    size: int | None = option(doc="bytes of a file at most")
    files: int | None = option(doc="files that are kept")
    snap: int | None = option(doc="bytes of a frame that are kept at most")
    running: bool | None = option(doc="the process lives and goes by these settings")
