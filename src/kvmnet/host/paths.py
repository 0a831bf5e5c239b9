"""Where kvmnet keeps its state. Two variables move everything, so that several hosts
(network namespaces) can live on one machine."""
from __future__ import annotations

import os
from pathlib import Path

from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class Paths:
    state: Path
    """Survives a reboot: database, guest images, leases."""
    run: Path
    """Gone after a reboot: journal, locks, sockets, daemon configuration."""

    @classmethod
    def from_environment(cls) -> Paths:
        return cls(Path(os.environ.get("KVMNET_STATE_DIR") or "/var/lib/kvmnet"),
                   Path(os.environ.get("KVMNET_RUN_DIR") or "/run/kvmnet"))

    @property
    def database(self) -> Path:
        return self.state / "kvmnet.db"

    @property
    def journal(self) -> Path:
        return self.run / "journal.json"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def originals(self) -> Path:
        """What borrowed objects looked like before we touched them, for as long as this boot."""
        return self.run / "originals.json"

    def dnsmasq(self, network: str) -> Path:
        return self.run / "dnsmasq" / network

    def leases(self, network: str) -> Path:
        return self.state / "leases" / network

    def vm(self, name: str) -> Path:
        return self.run / "vm" / name

    @property
    def guard(self) -> Path:
        """The keeper's files: its pid, the ruleset to load again, what nft printed for each text."""
        return self.run / "guard"

    @property
    def images(self) -> Path:
        """Guest images. KVMNET_IMAGE_DIR lets several state directories share them."""
        return Path(os.environ.get("KVMNET_IMAGE_DIR") or self.state / "images")
