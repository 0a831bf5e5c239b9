"""How frames wait: what has no queue of its own, what has two of them, and what this kernel lacks. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.tc.resources import Qdisc, is_ours
from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.disciplines import FEATURES, queued_nics
from kvmnet.spec.networks import Mode
from kvmnet.spec.rules.subject import Subject, wrong

SHARED = (Mode.BRIDGE, Mode.MACVTAP)
"""Modes whose rate waits at the uplink's own NIC, without a vlan."""


def uplinks(subject: Subject) -> Iterator[Problem]:
    for name, uplink in subject.spec.uplinks.items():
        if not uplink.qdisc:
            continue
        path = f"uplinks.{name}.qdisc"
        if not queued_nics(uplink):
            yield wrong(path, "a VLAN or a tunnel sends by what carries it, and frames wait there",
                        f"write qdisc at the uplink that carries it{f': {uplink.on}' if uplink.on else ''}")
        for other, network in subject.spec.networks.items():
            if network.uplink == name and network.rate.out and network.mode in SHARED and not network.vlan and not network.bridge:
                yield wrong(path, f"what guests of {other} share (networks.{other}.rate.out) waits in classes at {subject.device(network)}, and a NIC has one "
                            "queue; the frames of a class take turns there already", f"remove it, or networks.{other}.rate.out")


def nics(subject: Subject) -> Iterator[Problem]:
    for item in subject.nics:
        if not item.nic.qdisc:
            continue
        nic, path = item.nic, f"{item.path}.qdisc"
        network = subject.spec.networks.get(nic.network)
        if network is None or item.primary:
            continue
        if network.mode is Mode.SRIOV:
            yield wrong(path, "the frames of a VF never pass the host", "remove it, or use a network in mode bridge")
        elif nic.receives == "copies":
            yield wrong(path, "what a NIC for copies gets waits as its mirror says (limit)", "remove it")
        elif nic.qdisc == "noqueue" and nic.rate.limited:
            yield wrong(path, "a rate needs a queue: what is above it waits", "remove it, or rate; fq_codel, fq and cake go with a rate")


def there(subject: Subject) -> Iterator[Problem]:
    """Disciplines that this kernel lacks, and NICs that have a queue of somebody else's."""
    known = subject.facts.features
    asked = [(f"uplinks.{n}.qdisc", u.qdisc) for n, u in subject.spec.uplinks.items() if u.qdisc]
    asked += [(f"{i.path}.qdisc", i.nic.qdisc) for i in subject.nics if i.nic.qdisc]
    for path, chosen in asked:
        if reason := known.get(FEATURES[chosen], ""):
            yield wrong(path, f"this host has no {chosen}: {reason}", "remove it, or install the distribution's full kernel")
    wanted = {device: f"uplinks.{n}.qdisc" for n, u in subject.spec.uplinks.items() if u.qdisc for device in queued_nics(u)}
    if not wanted:
        return
    for device, other in shared_ports(subject):
        if device in wanted:
            yield wrong(wanted[device], f"what guests of {other} share (networks.{other}.rate.out) waits in classes at {device}, and a NIC has one queue",
                        f"remove it, or networks.{other}.rate.out")
    for found in subject.facts.state.values():
        if isinstance(found, Qdisc) and found.parent == "root" and found.dev in wanted and not is_ours(found.name.partition(" ")[2]):
            yield wrong(wanted[found.dev], f"{found.dev} has a queue that somebody else has set: {found.discipline} {found.name.partition(' ')[2]}",
                        f"take it away (tc qdisc del dev {found.dev} root), or remove qdisc")


def shared_ports(subject: Subject) -> Iterator[tuple[str, str]]:
    """(port, network) where a network on an existing bridge has its rate."""
    for name, network in subject.spec.networks.items():
        if network.bridge and network.rate.out and not network.vlan:
            yield from ((port, name) for port in ways.leading_outside(network.bridge, subject.facts.state))


RULES = (uplinks, nics)
HOST_RULES = (there,)
