"""Rates of NICs: what can be promised by whom. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.tc.resources import Qdisc, is_ours
from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.pools import PlacedNic
from kvmnet.spec.rates import Rate
from kvmnet.spec.rules.subject import Subject, wrong
from kvmnet.spec.tenancy import owners, tenant_of

SHAPER, DETOUR, TREE = ("tc-tbf",), ("tc-tbf", "ifb", "tc-redirect"), ("tc-htb",)
"""Features of the host for frames that a device sends, and for those that come in by it."""
OF_HOST = {"priority": "the NIC's hardware knows no priorities among VFs", "min_in": "the frames of a VF never pass the host",
           "priority_in": "the frames of a VF never pass the host", "in_": "the frames of a VF never pass the host, and the NIC limits only what a VF sends",
           "burst": "the NIC's hardware has a burst of its own"}


def nics(subject: Subject) -> Iterator[Problem]:
    """What a mode cannot keep, and numbers that contradict each other."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        rate, path = item.nic.rate, f"{item.path}.rate"
        if network is None or item.primary or not rate.model_fields_set:
            continue
        if network.mode is Mode.SRIOV:
            yield from _vf(path, rate)
        else:
            yield from _shared(path, item.nic.network, network, rate)
        for option, least, most in (("min", rate.min, rate.out), ("min_in", rate.min_in, rate.in_)):
            if least and most and least > most:
                yield wrong(f"{path}.{option}", f"{words(least)} at least and {words(most)} at most", f"write a smaller {option}")
        if rate.burst and not rate.limited and network.mode is not Mode.SRIOV:
            yield wrong(f"{path}.burst", "a burst is of a rate, and there is none", "write in: or out: beside it")


def _shared(path: str, name: str, network: Network, rate: Rate) -> Iterator[Problem]:
    """What a NIC gets of its network's rate."""
    for option, usual in (("min", None), ("priority", Rate().priority)):
        if getattr(rate, option) != usual and network.mode is Mode.MACVTAP:
            yield wrong(f"{path}.{option}", "macvtaps leave by their parent, whose queue has classes by DSCP and none for each NIC",
                        f"remove {option}, or write mark: {{dscp: ...}} and a class of {name} with a min")
        elif getattr(rate, option) != usual and not network.rate.out:
            yield wrong(f"{path}.{option}", f"{option} is of what guests of {name} share, and nobody has said how much that is",
                        f"write networks.{name}.rate.out, or remove {option}")
    for option, usual in (("min_in", None), ("priority_in", Rate().priority_in)):
        if getattr(rate, option) == usual:
            continue
        if network.mode in (*NO_WAY_OUT, Mode.MACVTAP) or (network.mode is Mode.BRIDGE and not network.vlan):
            yield wrong(f"{path}.{option}", f"what comes in for guests of {name} is not shared out there", f"remove {option}, or give the network "
                        "a vlan in mode bridge")
        elif not network.rate.in_:
            yield wrong(f"{path}.{option}", f"{option} is of what guests of {name} share, and nobody has said how much that is",
                        f"write networks.{name}.rate.in, or remove {option}")


def marks(subject: Subject) -> Iterator[Problem]:
    """NICs whose packets nobody here can mark, or not all of them."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        mark, path = item.nic.mark, f"{item.path}.mark"
        if network is None or item.primary:
            continue
        if mark.pcp is not None and (problem := _untagged(item, network)):
            yield wrong(f"{path}.pcp", *problem)
        if mark.dscp is None:
            if mark.trust:
                yield wrong(f"{path}.trust", "packets are left as they are, since there is no dscp", "write dscp beside it, or remove mark")
            continue
        if reason := UNMARKED.get(network.mode):
            yield wrong(path, f"{reason}; the packets of this NIC cannot be marked", "remove mark, or use a network in mode bridge")
        elif item.nic.trunk or item.nic.guard == "off":
            why = "it has a trunk" if item.nic.trunk else "guard: off lets it send them"
            yield wrong(path, f"frames with a VLAN tag are not marked, and {why}", "remove mark, or " + (
                "trunk" if item.nic.trunk else "write guard: mac"))


def _untagged(item: PlacedNic, network: Network) -> tuple[str, str] | None:
    """Why the frames of a NIC have no tag whose priority could be written, and the cure."""
    if not (network.mode is Mode.BRIDGE and network.vlan and network.uplink):
        return UNWRITTEN if network.mode is Mode.MACVTAP else UNTAGGED, "remove pcp, or give the network a vlan in mode bridge"
    if item.nic.trunk:
        return "it has a trunk, and writes the priority into its tags itself; the bridge leaves it there", "remove pcp"
    return None


UNWRITTEN = "no hook that knows the class sees frames of macvtaps before their tag is written"
UNTAGGED = "frames of this network leave without a VLAN tag, and the priority is in the tag"
MOST_TAGGED = 48
"""Classes and NICs with classes of their own that can have a priority in their tags: the kernel keeps them in lists, and shows a device
only when they fit into one message (vlan_get_size() in net/8021q/vlan_netlink.c counts 8 bytes for each, and fills 12)."""
UNMARKED = {Mode.SRIOV: "the frames of a VF never pass the host"}
NO_WAY_OUT = {
    Mode.ISOLATED: "guests of an isolated network have no way out that they could share",
    Mode.SRIOV: "the frames of VFs never pass the host",
}
"""Modes in which nothing can be shared out -> why."""


def networks(subject: Subject) -> Iterator[Problem]:
    """What guests share: where it can be shared out, and that it is enough."""
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}"
        yield from _trust(path, network)
        if not (network.rate.in_ or network.rate.out or network.classes):
            continue
        option = "rate" if network.rate.in_ or network.rate.out else "classes"
        if reason := NO_WAY_OUT.get(network.mode):
            yield wrong(f"{path}.{option}", reason, "remove it; rate: of each NIC limits guests one by one" if option == "rate" else "remove it")
            continue
        if network.rate.in_ and network.mode is Mode.BRIDGE and not network.vlan:
            yield wrong(f"{path}.rate.in", "the host is on the same segment, and what comes in for it would be limited too",
                        "write rate: {in: ...} at each NIC" + ("" if network.bridge else ", or give the network a vlan"))
        if network.rate.in_ and network.mode is Mode.MACVTAP:
            yield wrong(f"{path}.rate.in", "the guard listens for routers where frames come in for macvtaps, and what has waited passes it unheard",
                        "write rate: {in: ...} at each NIC, or use a network in mode bridge with a vlan")
        yield from _classes(path, network)
        yield from _enough(subject, path, name, network)
        yield from _tags(subject, path, name, network)


def _classes(path: str, network: Network) -> Iterator[Problem]:
    seen: dict[int, str] = {}
    for name, group in network.classes.items():
        here = f"{path}.classes.{name}"
        for code in group.dscp:
            first = seen.setdefault(code, name)
            if first != name:
                yield wrong(f"{here}.dscp", f"packets with DSCP {code} are in class {first} already", "write it in one of them")
        if group.pcp is not None and not (network.mode is Mode.BRIDGE and network.vlan):
            yield wrong(f"{here}.pcp", UNWRITTEN if network.mode is Mode.MACVTAP else UNTAGGED, "remove pcp, or give the network a vlan in mode bridge")
        for option in ("min", "max"):
            value = getattr(group, option)
            if value and not network.rate.out:
                yield wrong(f"{here}.{option}", "a class gets its part of what the network may send, and that is not said",
                            f"write {path}.rate.out")
        if group.in_ and not network.rate.in_:
            yield wrong(f"{here}.in", "a class gets its part of what the network may receive, and that is not said", f"write {path}.rate.in")
        for at, part, whole in ((here, group, network.rate.out), (f"{here}.in", group.in_, network.rate.in_)):
            if part and part.min and part.max and part.min > part.max:
                yield wrong(f"{at}.min", f"{words(part.min)} at least and {words(part.max)} at most", "write a smaller min")
            if part and part.max and whole and part.max > whole:
                yield wrong(f"{at}.max", f"the whole network gets {words(whole)}", "write a smaller max, or remove it")


def _trust(path: str, network: Network) -> Iterator[Problem]:
    """Classes of what comes in that are told by the priority in the tag."""
    if network.trust != "pcp":
        return
    if not (network.mode is Mode.BRIDGE and network.vlan):
        yield wrong(f"{path}.trust", "frames of this network come in without a VLAN tag, and the priority is in the tag",
                    "remove trust, or give the network a vlan in mode bridge")
        return
    mine = {name: group for name, group in network.classes.items() if group.in_}
    if not mine:
        yield wrong(f"{path}.trust", "it tells classes of what comes in, and no class has a part of that", "write in: at a class, or remove trust")
    seen: dict[int, str] = {}
    for name, group in mine.items():
        if group.pcp is None:
            yield wrong(f"{path}.classes.{name}.in", "what comes in is told by the priority in its tag (trust: pcp), and the class has none",
                        "write pcp: beside it")
        elif (first := seen.setdefault(group.pcp, name)) != name:
            yield wrong(f"{path}.classes.{name}.pcp", f"frames that come in with priority {group.pcp} are in class {first} already", "write another one")


def _tags(subject: Subject, path: str, name: str, network: Network) -> Iterator[Problem]:
    """More priorities in tags than the kernel keeps."""
    own = [item for item in subject.members[name] if item.nic.mark.pcp and not item.primary
           and network.rate.out and (network.rate.share == "fair" or item.nic.rate.min)]
    if len(own) + sum(bool(group.pcp) for group in network.classes.values()) > MOST_TAGGED:
        yield wrong(f"{path}.rate", f"{len(own)} NICs have a class of their own and a priority in their tags (mark.pcp), and with classes there can "
                    f"be {MOST_TAGGED}", "write share: none, or a class with pcp and mark: {dscp: ...} at the NICs")


def _enough(subject: Subject, path: str, name: str, network: Network) -> Iterator[Problem]:
    received = sum(g.in_.min or 0 for g in network.classes.values() if g.in_)
    received += sum(item.nic.rate.min_in or 0 for item in subject.members[name] if not item.primary)
    if network.rate.in_ and received > network.rate.in_:
        yield wrong(f"{path}.rate.in", f"NICs and classes of the network are promised {words(received)} together, and it gets {words(network.rate.in_)}",
                    "promise less (min), or write a larger rate.in")
    if not network.rate.out:
        return
    promised = sum(g.min or 0 for g in network.classes.values())
    promised += sum(item.nic.rate.min or 0 for item in subject.members[name] if not item.primary)
    if promised > network.rate.out:
        yield wrong(f"{path}.rate.out", f"NICs and classes of the network are promised {words(promised)} together, and it gets "
                    f"{words(network.rate.out)}", "promise less (min), or write a larger rate.out")


def _vf(path: str, rate: Rate) -> Iterator[Problem]:
    for option, why in OF_HOST.items():
        if getattr(rate, option) != getattr(Rate(), option):
            shown = option.rstrip("_")
            yield wrong(f"{path}.{shown}", why, f"remove {shown}, or use a network in mode bridge")
    for option in ("out", "min"):
        value = getattr(rate, option)
        if value and value % 1000:
            yield wrong(f"{path}.{option}", f"a VF takes whole Mbit/s, not {words(value)}", f"write {max(value // 1000, 1)}mbit")


def pooled(subject: Subject) -> Iterator[Problem]:
    """NICs for whose frames there would have to be two queues, one behind the other, where one cannot have classes."""
    if (why := subject.facts.features.get("tc-skbedit", "nobody has asked this kernel")) == "":
        return
    spec, owner = subject.spec, owners(subject.spec)
    for item in subject.nics:
        tenant = tenant_of(spec.vms[item.vm], item.nic.network, owner)
        if tenant in spec.tenants and item.nic.rate.out and spec.tenants[tenant].rate.out:
            yield wrong(f"{item.path}.rate.out", f"what it sends waits in the queue of {tenant} already (tenants.{tenant}.rate.out), and frames that "
                        f"come in can wait in one queue only: {why}", f"remove it, or tenants.{tenant}.rate.out")


def words(rate: int) -> str:
    """*rate* (kbit/s) as it is written."""
    for unit, size in (("gbit", 1_000_000), ("mbit", 1000)):
        if rate % size == 0:
            return f"{rate // size}{unit}"
    return f"{rate}kbit"


def features(subject: Subject) -> Iterator[Problem]:
    """Shapers that this kernel lacks."""
    known = subject.facts.features
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network is None or network.mode is Mode.SRIOV:
            continue
        inverse = network.mode is Mode.MACVTAP
        for option, needs in (("in", DETOUR if inverse else SHAPER), ("out", SHAPER if inverse else DETOUR)):
            reasons = [reason for name in needs if (reason := known.get(name, ""))]
            if getattr(item.nic.rate, "in_" if option == "in" else option) and reasons:
                yield wrong(f"{item.path}.rate.{option}", f"this host cannot limit it: {'; '.join(reasons)}",
                            "install the distribution's full kernel")
    for name, network in subject.spec.networks.items():
        limited = bool(network.rate.in_ or network.rate.out)
        sorted_in = network.mode in (Mode.BRIDGE, Mode.VXLAN) and network.trust == "dscp" and any(group.in_ for group in network.classes.values())
        needs = (*((*TREE, *DETOUR) if limited else ()), *(("tc-bpf",) if limited and (sorted_in or network.mode is Mode.MACVTAP) else ()))
        if reasons := list(dict.fromkeys(reason for need in needs if (reason := known.get(need, "")))):
            yield wrong(f"networks.{name}.rate", f"this host cannot limit it: {'; '.join(reasons)}", "install the distribution's full kernel")
        yield from _foreign(subject, name, network)
    for name, tenant in subject.spec.tenants.items():
        needs = (*(DETOUR if tenant.rate.limited else ()), *(("tc-bpf",) if tenant.rate.in_ else ()),
                 *(TREE if tenant.rate.limited and known.get("tc-skbedit") == "" else ()))
        if reasons := list(dict.fromkeys(reason for need in needs if (reason := known.get(need, "")))):
            yield wrong(f"tenants.{name}.rate", f"this host cannot limit it: {'; '.join(reasons)}", "install the distribution's full kernel")


def _foreign(subject: Subject, name: str, network: Network) -> Iterator[Problem]:
    """A queue of somebody else's where the network's own has to be, or no place for one."""
    if not network.rate.out or network.vlan or network.mode not in (Mode.BRIDGE, Mode.MACVTAP):
        return
    device = subject.device(network)
    if network.bridge:
        if network.bridge not in subject.links:
            return
        ports = ways.leading_outside(network.bridge, subject.facts.state)
        if len(ports) != 1:
            yield wrong(f"networks.{name}.rate.out", f"{network.bridge} leads outside by " + (f"{' and '.join(ports)}, each of which has a queue of its own"
                        if ports else "no port of its own, so nothing can wait there"), "write rate: {out: ...} at each NIC")
            return
        (device,) = ports
    for item in subject.facts.state.values():
        if isinstance(item, Qdisc) and item.dev == device and item.parent == "root" and not is_ours(item.name.partition(" ")[2]):
            yield wrong(f"networks.{name}.rate.out", f"{device} has a queue that somebody else has set: {item.discipline} "
                        f"{item.name.partition(' ')[2]}", f"take it away (tc qdisc del dev {device} root), or remove rate.out")


RULES = (nics, marks, networks)
HOST_RULES = (features, pooled)
