"""Files of ours among other services' configuration, and the reload that makes them count.

Names stand below /etc. KVMNET_ETC_DIR puts another directory in its place, and so does a run directory
of one's own: several hosts (network namespaces) on one machine must not remove each other's files.
Services are told to reload only for the machine's own /etc.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmnet.drivers.files.resources import MARK, NETWORK_MANAGER, NETWORKD, UNMANAGED, File
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Delete, Step
from kvmnet.engine.resource import Key, Wanted
from kvmnet.errors import HostCannot
from kvmnet.host.files import remove_durably, write_durably
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, find, run
from kvmnet.records import dataclass

ETC = Path("/etc")
MACHINE = Path("/run/kvmnet")
"""Run directory of the host that is the machine itself."""


@dataclass(frozen=True, slots=True)
class Service:
    """How a service is found and made to read its files again."""

    configured: Callable[[Path], bool]
    """It is in use on the host whose /etc this is."""
    runs: Path
    """There while it runs."""
    reload: tuple[str, ...]


SERVICES = {
    NETWORK_MANAGER: Service(lambda etc: (etc / "NetworkManager").is_dir(), Path("/run/NetworkManager"),
                             ("nmcli", "general", "reload", "conf")),
    NETWORKD: Service(lambda etc: any((etc / "systemd/system").glob("*.wants/systemd-networkd.*")),
                      Path("/run/systemd/netif/links"), ("networkctl", "reload")),
}


def etc_directory(paths: Paths) -> Path:
    """The directory that stands for /etc."""
    chosen = os.environ.get("KVMNET_ETC_DIR")
    if chosen:
        return Path(chosen)
    return ETC if paths.run == MACHINE else paths.state / "etc"


def services_in_use(paths: Paths) -> frozenset[str]:
    """The services of this host that would take hold of our links, for ``unmanaged``."""
    etc = etc_directory(paths)
    return frozenset(name for name, service in SERVICES.items()
                     if service.configured(etc) or (etc == ETC and service.runs.is_dir()))


class FileDriver:
    kinds = frozenset(("file",))

    def __init__(self, paths: Paths):
        self.etc = etc_directory(paths)

    def unavailable(self) -> str | None:
        return None

    def observe(self, intent: Wanted) -> Seen:
        """The files of *intent* and those that we may have left. A foreign one is whole in the state."""
        seen = Seen()
        names = {f.name for f in UNMANAGED.values()} | {key.name for key in intent if key.kind in self.kinds}
        for name in sorted(names):
            try:
                content = self.place(name).read_text(errors="replace")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HostCannot(f"cannot read {self.place(name)}: {error.strerror}", "move it away") from error
            seen.state[Key("file", name)] = File(name=name, content=content)
            if content.partition("\n")[0] == MARK:
                seen.ours.add(Key("file", name))
        return seen

    def place(self, name: str) -> Path:
        """Where the file of this name lies. Raises ValueError for one that is not below /etc."""
        return self.etc / Path(name).relative_to(ETC)

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            if isinstance(step, Delete):
                remove_durably(self.place(step.key.name))
            elif isinstance(step.after, File):
                write_durably(self.place(step.key.name), step.after.content or "", 0o644)
            progress(1)
        for key, command in self.reloads(steps).items():
            try:
                run(command)
            except ToolFailed as wrong:
                raise StepFailed(key, wrong.detail, f"{' '.join(command)} must work for the file to count") from wrong

    def reloads(self, steps: Sequence[Step]) -> dict[Key, tuple[str, ...]]:
        """The reloads that *steps* call for: of services that run on this very machine."""
        touched = {step.key.name: step.key for step in steps}
        return {touched[file.name]: SERVICES[service].reload for service, file in UNMANAGED.items()
                if file.name in touched and self.etc == ETC and SERVICES[service].runs.is_dir()
                and find(SERVICES[service].reload[0])}

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        found = []
        for step in steps:
            place = str(self.place(step.key.name))
            if isinstance(step, Delete):
                found.append(Command(("rm", place), keys=(step.key,)))
            elif isinstance(step.after, File):
                found.append(Command(("tee", place), step.after.content or "", (step.key,)))
        return found + [Command(command, keys=(key,)) for key, command in self.reloads(steps).items()]
