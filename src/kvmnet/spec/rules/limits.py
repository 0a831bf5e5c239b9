"""Abuse limits: that they can be enforced where they are written. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec.limits import FLOWS, RECEIVED, Limits, declared, effective, proxied
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.rules.subject import Subject, wrong

CLOSED = frozenset({Mode.NAT, Mode.ROUTED, Mode.ISOLATED})
"""Modes of networks all of whose MACs the document knows."""
BRIDGED = "frames to its guests are bridged, not routed"
UNANSWERED = {Mode.BRIDGE: BRIDGED, Mode.VXLAN: BRIDGED, Mode.MACVTAP: "frames to its guests pass no rules of the host",
              Mode.SRIOV: "a VF's frames pass no rules of the host", Mode.ISOLATED: "nobody outside reaches its guests",
              Mode.NAT: "what comes from outside (forwards) is translated, and connections must be tracked for that"}
"""Modes without synproxy -> why."""
NONE = Limits()


def enforceable(subject: Subject) -> Iterator[Problem]:
    """Limits that nothing on the way of the frames could hold."""
    for name, network in subject.spec.networks.items():
        yield from _written(f"networks.{name}.limits", network.limits, network)
    for item in subject.nics:
        if item.nic.network in subject.spec.networks:
            yield from _written(f"{item.path}.limits", item.nic.limits, subject.spec.networks[item.nic.network])


def _written(path: str, limits: Limits, network: Network) -> Iterator[Problem]:
    for limit, place, value in declared(limits):
        if why := value and _why_not(limit, network.mode):
            yield wrong(f"{path}.{place}", *why)


def _why_not(limit: str, mode: Mode) -> tuple[str, str] | None:
    """Message and what to do; None where the limit can be held."""
    if mode is Mode.SRIOV:
        return ("a VF's frames pass no rules of the host: this limit cannot be enforced",
                "remove it, or use mode: bridge; rate: {out: ...} is what the NIC itself can hold")
    if limit in FLOWS and mode is Mode.MACVTAP:
        return "in mode macvtap only single frames can be limited: no rule sees flows", "remove it, or use mode: bridge"
    if limit == "unknown" and mode not in CLOSED:
        return (f"in mode {mode} there are MACs that the document does not know, and nft cannot ask the bridge which it has "
                "learned", "remove it; packets and broadcast limit what a guest can flood")
    return None


def answered(subject: Subject) -> Iterator[Problem]:
    """Connections that the host cannot answer in a guest's place: it does not route them."""
    places = [(f"networks.{name}.limits", network.limits, network) for name, network in subject.spec.networks.items()]
    places += [(f"{item.path}.limits", item.nic.limits, subject.spec.networks[item.nic.network]) for item in subject.nics
               if item.nic.network in subject.spec.networks]
    for path, limits, network in places:
        ports, _ = proxied(limits, NONE)
        if limits.receive.window_scale is not None and not proxied(limits, network.limits)[0]:
            yield wrong(f"{path}.receive.window_scale", "it is what synproxy says to others, and there is none", "write synproxy beside it")
        if ports and (why := UNANSWERED.get(network.mode) or ("packets of a routing domain come in by it, not by the uplink" if network.vrf else "")):
            yield wrong(f"{path}.receive.synproxy", f"{why}, so the host cannot answer connections in the guest's place",
                        "remove it, or write mode: routed; limits.receive.syn limits connections in every mode with a bridge")


def tagged(subject: Subject) -> Iterator[Problem]:
    """Limits of flows on trunks."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network and item.nic.trunk and effective(item.nic.limits, network.limits, 0)[0].keys() & FLOWS:
            yield wrong(f"{item.path}.trunk", "flows inside VLANs of a trunk are not tracked, so their limits cannot be held",
                        "write send: {connections: none, concurrent: none}, or give the VLANs a NIC of their own")


def tracked(subject: Subject) -> Iterator[Problem]:
    """What this host lacks to track flows of bridged guests."""
    if not subject.links or subject.facts.features.get("bridge-conntrack") == "":
        return
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network is None or not effective(item.nic.limits, network.limits, 0)[0].keys() & FLOWS:
            continue
        own = any(limit in FLOWS for limit, *_ in declared(item.nic.limits))
        path = f"{item.path}.limits" if own else f"networks.{item.nic.network}.limits"
        if why := subject.facts.features.get("bridge-netfilter"):
            yield wrong(path, f"flows of bridged guests cannot be counted: {why}",
                        "modprobe br_netfilter, or a kernel with CONFIG_NF_CONNTRACK_BRIDGE (Linux 5.3)")
        elif network.bridge or subject.sharing(item.nic.network):
            yield wrong(path, "flows on a VLAN-aware bridge, or on one that is not kvmnet's, need CONFIG_NF_CONNTRACK_BRIDGE",
                        "use a kernel with it (Linux 5.3), or remove connections and concurrent")


def detoured(subject: Subject) -> Iterator[Problem]:
    """What has waited for a macvtap's rate comes in again behind the hook that counts (skb_skip_tc_classify() in net/core/dev.c)."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network and network.mode is Mode.MACVTAP and item.nic.rate.in_ and effective(item.nic.limits, network.limits, 0)[0].keys() & RECEIVED:
            yield wrong(f"{item.path}.rate.in", "what has waited for it passes the limits of what comes to a macvtap uncounted",
                        "remove it, or write limits: {receive: {packets: none, bytes: none, syn: none}}")


def proxying(subject: Subject) -> Iterator[Problem]:
    """A kernel that cannot answer connections, or would spoil them: where bridges track flows too, a packet that is routed to a guest is
    moved by nf_confirm() in inet postrouting and once more in that of the bridge (nf_ct_bridge_confirm())."""
    why = subject.facts.features.get("nft-synproxy")
    if not why and subject.facts.features.get("bridge-conntrack") == "" and tracks_bridges(subject):
        why = ("with groups, tenants or limits of flows this kernel tracks flows in bridges as well, and would move the sequence numbers of "
               "these connections twice")
    if not subject.links or not why:
        return
    places = [(f"networks.{name}.limits", network.limits) for name, network in subject.spec.networks.items()]
    for path, limits in (*places, *((f"{item.path}.limits", item.nic.limits) for item in subject.nics)):
        if proxied(limits, NONE)[0]:
            yield wrong(f"{path}.receive.synproxy", f"this host cannot answer connections: {why}",
                        "remove it; limits.receive.syn limits them" if "twice" in why else
                        "install the distribution's full kernel, or remove it; limits.receive.syn limits them")


def tracks_bridges(subject: Subject) -> bool:
    """Whether something in the document needs flows of bridged guests (is_needed() in policy/grouping.py)."""
    networks = subject.spec.networks
    return bool(subject.spec.tenants) or any(
        item.nic.groups or effective(item.nic.limits, networks[item.nic.network].limits, 0)[0].keys() & FLOWS
        or (networks[item.nic.network].bridge and (networks[item.nic.network].isolated_ports if item.nic.isolated is None else item.nic.isolated))
        for item in subject.nics if item.nic.network in networks)


def limited(subject: Subject) -> Iterator[Problem]:
    """A kernel that cannot hold any limit."""
    why = subject.facts.features.get("nft-element-limits")
    if not subject.links or not why:
        return
    places = [(f"networks.{name}.limits", network.limits) for name, network in subject.spec.networks.items()]
    places += [(f"{item.path}.limits", item.nic.limits) for item in subject.nics]
    for path, limits in places:
        if any(value for *_, value in declared(limits)):
            yield wrong(path, f"limits cannot be held: {why}", "use a newer kernel and nft, or remove the limits")


RULES = (enforceable, answered, tagged, detoured)
HOST_RULES = (limited, tracked, proxying)
