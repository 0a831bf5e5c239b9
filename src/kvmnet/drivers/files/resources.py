"""Configuration files that we put beside those of other services. Pure."""
from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass
from kvmnet.spec.names import BRIDGE, DETOUR, PROBE, TAP

MARK = "# kvmnet: written by kvmnet, which replaces and removes it; do not edit"
"""First line of a file that is ours."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class File(Resource):
    """A whole file; named by its path below /etc, e.g. ``/etc/NetworkManager/conf.d/kvmnet.conf``."""

    kind: ClassVar[str] = "file"
    content: str | None = option(doc="its text; the first line says that it is ours")


NETWORK_MANAGER, NETWORKD = "NetworkManager", "systemd-networkd"
"""Services that configure any link they find unless they are told not to."""

LINKS = tuple(f"{prefix}*" for prefix in (TAP, BRIDGE, PROBE, DETOUR))

# NetworkManager: a device section of our own, since keyfile.unmanaged-devices is one list for all files,
# of which the last one read replaces the others (NetworkManager.conf(5)).
# networkd: the first file that matches a link counts, in the order of the names (systemd.network(5)).
UNMANAGED: dict[str, File] = {
    NETWORK_MANAGER: File(
        name="/etc/NetworkManager/conf.d/kvmnet.conf",
        content="\n".join((MARK, "[device-kvmnet]",
                           "match-device=" + ";".join(f"interface-name:{name}" for name in LINKS), "managed=0", ""))),
    NETWORKD: File(
        name="/etc/systemd/network/00-kvmnet.network",
        content="\n".join((MARK, "[Match]", f"Name={' '.join(LINKS)}", "", "[Link]", "Unmanaged=yes", ""))),
}
"""Service -> the file that has it leave our links alone."""


def unmanaged(services: Collection[str]) -> list[File]:
    """The files that have *services* leave our links alone."""
    return [file for service, file in UNMANAGED.items() if service in services]
