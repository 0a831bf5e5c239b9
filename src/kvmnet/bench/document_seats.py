"""A document of the operator's set up on a host of its own: a network namespace with the NICs that its uplinks name, kvmnet's own state, and
guests on its networks."""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kvmnet.bench.documents import (
    DocumentSeat,
    configuration,
    digest,
    has_host,
    nics_needed,
    standing,
    subject,
    text_for,
    way_out,
    why_not,
)
from kvmnet.bench.matrix import GROUP, PORT, Configuration
from kvmnet.bench.peers.space import Space
from kvmnet.bench.scenarios import Place
from kvmnet.errors import KvmnetError
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, run
from kvmnet.spec.load import loads
from kvmnet.spec.networks import Mode

PATIENCE = 300.0
"""Seconds that one command may take."""


def read(path: str) -> str:
    """Raises KvmnetError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise KvmnetError(f"cannot read {path}: {getattr(wrong, 'strerror', None) or wrong}") from wrong


def named(path: Path, guest: str) -> Configuration:
    """The document in *path* as a configuration, with the NIC *guest* (VM or VM/NIC; '' for the first). Raises KvmnetError."""
    return configuration(str(path.absolute()), read(str(path)), guest)


def check(c: Configuration, places: tuple[Place, ...]) -> None:
    """Raise KvmnetError for what cannot be measured of a document."""
    seat = DocumentSeat(0, c)
    text = read(seat.path)
    if digest(text) != c.settings["digest"]:
        raise KvmnetError(f"{seat.path} is not what it was when the record was begun", "begin a new run: kvmnet bench run")
    spec = loads(text, seat.path).spec
    network = subject(spec, c.settings["guest"]).network
    if why := why_not(spec, network):
        raise KvmnetError(f"{c.name}: {why}")
    if Place.HOST in places and (spec.networks[network].mode is Mode.MACVTAP or not has_host(spec, network)):
        raise KvmnetError(f"{c.name}: guests of network {network} do not reach the host: it has no address there", "write --between guest-guest")
    if Place.OUTSIDE in places and not way_out(spec, network):
        raise KvmnetError(f"{c.name}: the outside is measured where network {network} is nat or routed by a plain NIC that gets its addresses elsewhere",
                          "leave --between guest-outside away")


class Stand:
    """The host of one document."""

    def __init__(self, seat: DocumentSeat, folder: Path):
        self.seat, self.text = seat, read(seat.path)
        self.space = Space(f"seat{seat.number}", folder / f"seat{seat.number}")
        self.outside = Space(f"far{seat.number}", folder / f"far{seat.number}")
        self.spec = loads(self.text, seat.path).spec
        self.subject = subject(self.spec, seat.configuration.settings["guest"])
        self.paths = Paths(self.space.folder / "state", self.space.folder / "run")

    def wire(self) -> None:
        """Its namespace, with the NICs that its uplinks name; the other ends in an outside of its own, since documents may share prefixes."""
        outside = self.outside.netns
        self.space.make()
        self.outside.make()
        exit_by = way_out(self.spec, self.subject.network)
        number = self.seat.number
        for n, nic in enumerate(dict.fromkeys(nics_needed(self.spec))):
            far = f"d{number}-{n}"
            run(["ip", "link", "add", far, "mtu", "9000", "netns", outside, "type", "veth", "peer", "name", nic, "mtu", "1500", "netns", self.space.netns])
            run(["ip", "-n", outside, "link", "set", far, "up"])
            self.space.ip([f"link set {nic} up"])
            if nic == exit_by:
                self.seat.found["outside"] = f"198.19.{number}.1"
                self.space.ip([f"addr add 198.19.{number}.2/24 dev {nic}", f"route add default via 198.19.{number}.1"])
                run(["ip", "-n", outside, "addr", "add", f"198.19.{number}.1/24", "dev", far])
                if subnet := self.spec.networks[self.subject.network].subnet:
                    run(["ip", "-n", outside, "route", "add", str(subnet), "via", f"198.19.{number}.2"])

    def build(self, guests: int, boot: Mapping[str, str], load: Path, life: int) -> None:
        """Apply it, start its guests and the far end. Raises KvmnetError when the document is refused there."""
        file, vm = self.space.folder / "document.yaml", self.spec.vms[self.subject.vm]
        cpus, memory = (vm.run.cpus, vm.run.memory >> 20) if vm.run else (1, 256)
        def how(name: str, size: int) -> dict[str, object]:
            return {"kernel": boot["kernel"], "initrd": boot["initrd"], "append": f"{boot['words']} kvmnet.name={name} kvmnet.dhcp=0",
                    "memory": f"{size}M"}

        far = how(self.seat.guest(2), 192) if guests > 1 else None
        file.write_text(text_for(self.text, self.subject, {**how(self.subject.vm, max(192, memory)), "cpus": cpus}, far))
        self.kvmnet("apply", str(file), "--yes", "--reach", "none")
        self.kvmnet("vm", "start", *(self.seat.guest(n) for n in range(1, guests + 1)))
        self.seat.found.update(standing(json.loads(self.kvmnet("status", "--json")), self.spec, self.seat, guests))
        self.outside.run([str(load), "serve", f"port={PORT}", f"life={life}"])
        if self.seat.host:
            self.space.run([str(load), "serve", f"port={PORT}", f"life={life}", f"group={GROUP}", f"on={self.seat.host}"])

    def kvmnet(self, *words: str) -> str:
        environment = [f"KVMNET_{name}_DIR={self.space.folder / name.lower()}" for name in ("STATE", "RUN", "ETC")]
        images = os.environ.get("KVMNET_IMAGE_DIR")
        argv = ["env", *environment, *([f"KVMNET_IMAGE_DIR={images}"] if images else []), sys.executable, "-m", "kvmnet.cli.main", *words]
        try:
            return self.space.run(argv)
        except ToolFailed as failed:
            raise KvmnetError(f"{self.seat.configuration.name}: kvmnet {words[0]}: {failed.detail}", "the same document must be one that such a host takes") from failed
