"""A document of the operator's, as what is measured: its own networks, NICs and policy, with a guest of bench's behind one NIC. Pure.

All of its NICs are made, so that tables and rules have their size; only the guest that is measured, and a second one on the same network where
that is needed, are started.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from kvmnet.bench.matrix import PORT, Configuration, Seat
from kvmnet.errors import KvmnetError
from kvmnet.records import dataclass, field
from kvmnet.spec import tree
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode

FAR = "kvmnet-far"
"""The second guest."""
LEFT_OUT = ("tuning", "reach")
"""Parts that are the machine's, or ask for somebody who is not there."""
UNMADE = {Mode.SRIOV: "a VF is a part of a NIC that the measuring host has not"}
OWN_SETTINGS = ("document", "guest", "digest")


@dataclass(frozen=True, slots=True)
class Subject:
    """The NIC that is measured."""

    vm: str
    nic: str
    position: int
    network: str


def subject(spec: Spec, name: str = "") -> Subject:
    """The NIC ``VM`` or ``VM/NIC``; the first that can be measured when none is named. Raises KvmnetError."""
    vm, _, wanted = name.partition("/")
    found = [i for i in spec.placed if not name or (i.vm == vm and wanted in ("", i.name))]
    if not found:
        raise KvmnetError(f"the document has no NIC {name}" if name else "the document has no NIC",
                          f"it has {', '.join(f'{i.vm}/{i.name}' for i in spec.placed) or 'none'}")
    can = [i for i in found if i.nic.network in spec.networks and not (why_not(spec, i.nic.network) or i.nic.failover or i.primary)]
    if not can:
        first = found[0]
        raise KvmnetError(f"{first.vm}/{first.name} cannot be measured: {why_not(spec, first.nic.network) or 'its failover needs a VF'}",
                          "choose another with --guest VM/NIC")
    return Subject(can[0].vm, can[0].name, can[0].position, can[0].nic.network)


def why_not(spec: Spec, network: str) -> str:
    told = spec.networks[network]
    if told.mode in UNMADE:
        return UNMADE[told.mode]
    return "its network is in a VRF" if told.vrf or (told.uplink and spec.uplinks[told.uplink].vrf) else ""


def configuration(path: str, text: str, name: str) -> Configuration:
    """*text*, of *path*, as what is compared. Raises SpecError, KvmnetError."""
    found = subject(loads(text, path).spec, name)
    return Configuration({"document": path, "guest": f"{found.vm}/{found.nic}", "digest": digest(text)})


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def text_for(text: str, found: Subject, run: Mapping[str, Any], far: Mapping[str, Any] | None) -> str:
    """The document for the measuring host. *run*: how the guest is run; *far*: the same of the second one, None for none."""
    data, _ = tree.read(text)
    assert isinstance(data, dict)
    made = {k: v for k, v in data.items() if k not in LEFT_OUT}
    for uplink in (made.get("uplinks") or {}).values():
        for name in ("ethtool", "steering", "vfs"):
            uplink.pop(name, None)
    if has_host(loads(text).spec, found.network):
        network = made["networks"][found.network]
        network["allow"] = [*(network.get("allow") or []), {"protocol": "tcp", "port": PORT}, {"protocol": "udp", "port": PORT}]
    for name, vm in made["vms"].items():
        for part in ("run", "driver", "owner"):
            vm.pop(part, None)
        if name == found.vm:
            vm["run"] = dict(run)
    if far is not None:
        nic = {"network": found.network}
        made["vms"][FAR] = {"run": dict(far), "nics": [nic]}
        if (vlans := made["vms"][found.vm]["nics"][found.position]).get("trunk"):
            nic |= {"trunk": vlans["trunk"]}
    return json.dumps(made, indent=1) + "\n"


def has_host(spec: Spec, network: str) -> bool:
    """Whether the host has an address on *network*, for the far end."""
    told = spec.networks[network]
    return told.address != "none" and (told.mode in (Mode.NAT, Mode.ROUTED, Mode.ISOLATED) or told.address is not None)


def nics_needed(spec: Spec) -> Iterator[str]:
    """The host's own NICs that the document's uplinks name."""
    for uplink in spec.uplinks.values():
        if uplink.wireguard or uplink.on:
            continue
        yield from uplink.members or ((uplink.device,) if uplink.device and not uplink.vlan else ())


def way_out(spec: Spec, network: str) -> str:
    """The host's NIC by which guests of *network* reach the outside, '' where a measuring host cannot have such a way."""
    told = spec.networks[network]
    uplink = spec.uplinks[told.uplink] if told.uplink else None
    plain = uplink is not None and told.mode in (Mode.NAT, Mode.ROUTED) and not (uplink.members or uplink.vlan or uplink.on or uplink.wireguard)
    return uplink.device or "" if uplink is not None and plain and not uplink.addresses else ""


@dataclass(frozen=True, slots=True)
class DocumentSeat(Seat):
    """Where a document lives: a network namespace of its own. *found* is filled when it stands: its addresses are chosen then."""

    found: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.configuration.settings["document"]

    @property
    def vm(self) -> str:
        return self.configuration.settings["guest"].partition("/")[0]

    @property
    def nic(self) -> str:
        return self.configuration.settings["guest"].partition("/")[2]

    @property
    def host(self) -> str:
        return str(self.found.get("host", ""))

    @property
    def router(self) -> str:
        return self.host

    @property
    def outside(self) -> str:
        return str(self.found.get("outside", ""))

    @property
    def length(self) -> int:
        return int(self.found["length"])

    @property
    def mtu(self) -> int:
        return int(self.found["mtu"])

    @property
    def apart(self) -> bool:
        return True

    @property
    def uplinked(self) -> bool:
        return False

    def guest(self, which: int) -> str:
        return self.vm if which == 1 else FAR

    def address(self, which: int) -> str:
        return str(self.found["addresses"][which - 1])

    def mac(self, which: int) -> str:
        return str(self.found["macs"][which - 1])


def standing(status: Mapping[str, Any], spec: Spec, seat: DocumentSeat, guests: int) -> dict[str, Any]:
    """What a seat has, of ``kvmnet status --json``. Raises KvmnetError for what has no address."""
    nics = {(n["guest"], n["nic"]): n for n in status["nics"]}
    ours = [nics[seat.vm, seat.nic], *([next(n for (vm, _), n in nics.items() if vm == FAR)] if guests > 1 else [])]
    network = next(n for n in status["networks"] if n["name"] == ours[0]["network"])
    told = spec.networks[network["name"]]
    addresses = [n["ip"] for n in ours]
    if not all(addresses):
        raise KvmnetError(f"{seat.configuration.name}: the NIC has no IPv4 address that kvmnet knows", "write ip: at the NIC, and subnet: at the network")
    host = next((a.partition("/")[0] for a in network["addresses"] if "." in a), "")
    length = int(str(told.subnet).partition("/")[2]) if told.subnet else 24
    mtu = spec.vms[seat.vm].nics[subject(spec, f"{seat.vm}/{seat.nic}").position].mtu or network["mtu"]
    return {"macs": [n["mac"] for n in ours], "addresses": addresses, "host": host, "length": length, "mtu": mtu}
