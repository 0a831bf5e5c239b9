"""/etc/network/interfaces -> Layout. Pure.

Format: interfaces(5) of ifupdown and ifupdown2, bridge-utils-interfaces(5), vlan-interfaces(5), and the
bond options of ifenslave. Dashes and underscores in option names are the same.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvmnet.adopt import verdicts as v
from kvmnet.adopt.model import Address, Bond, Bridge, Draft, Dynamic, Layout, Nic, Place, Route, Source, Vlan

OPTIONS: dict[str, v.Verdict] = {
    "mtu": v.MTU, "bridge_ports": v.PORTS, "bridge_vlan_aware": v.VLAN_FILTER, "bridge_vids": v.VLAN_FILTER,
    "bridge_pvid": v.VLAN_FILTER, "bridge_access": v.VLAN_FILTER, "bridge_*": v.BRIDGE, "bond_*": v.BOND, "bond": v.BOND,
    "slaves": v.BOND, "vlan_*": v.VLAN,
    **dict.fromkeys(("up", "down", "pre_up", "post_up", "pre_down", "post_down"), v.COMMAND),
    **dict.fromkeys(("address", "netmask", "broadcast", "gateway", "metric", "pointopoint", "scope", "network",
                     "dns_*", "accept_ra", "autoconf", "privext", "dad_attempts", "dad_interval", "hostname",
                     "leasehours", "leasetime", "client", "vendor", "request_prefix", "ll_attempts", "ll_interval",
                     "preferred_lifetime", "address_virtual"), v.ADDRESS),
    **dict.fromkeys(("hwaddress", "link_*", "ethernet_*", "ethtool_*", "alias", "media", "description"), v.LINK),
    "ovs_*": v.KIND, "wpa_*": v.KIND, "wireless_*": v.KIND, "vxlan_*": v.KIND, "tunnel_*": v.KIND, "mode": v.KIND,
    "endpoint": v.KIND, "local": v.KIND, "ttl": v.KIND, "inherits": v.UNKNOWN}
"""Option of an iface stanza -> what becomes of it."""
OUTSIDE = {"auto": v.LINK, "allow_*": v.LINK, "no_auto_down": v.LINK, "no_scripts": v.LINK, "source": v.RENDERER,
           "source_directory": v.RENDERER, "rename": v.UNKNOWN, "template": v.UNKNOWN, "mapping": v.UNKNOWN}
"""Words that begin a stanza of their own."""
OTHER_KINDS = ("ovs_type", "vxlan_id", "tunnel_mode", "wireless_essid", "wpa_ssid")
"""Options that make a stanza a device of a kind that the document does not have."""


@dataclass(slots=True)
class Stanza:
    """One ``iface`` with its options in order: (key, value, place)."""

    name: str
    family: str
    method: str
    place: Place
    options: list[tuple[str, str, Place]] = field(default_factory=list)

    def get(self, *names: str) -> str:
        return next((value for key, value, _ in self.options if key in names), "")


def parse(sources: Sequence[Source]) -> Layout:
    """Everything of the files, in the order given (``included`` tells which files one reads)."""
    draft = Draft()
    notes = v.Notes(draft)
    stanzas: list[Stanza] = []
    for source in sources:
        stanzas += read(source, notes)
    for stanza in stanzas:
        build(draft, stanza)
    complete(draft, stanzas)
    for stanza in stanzas:
        note(notes, stanza)
    notes.settle()
    return draft.layout()


def included(source: Source) -> list[tuple[str, bool]]:
    """Patterns of further files that *source* reads, each with whether it is a directory."""
    return [(rest, word == "source_directory") for word, rest, _ in lines(source)
            if word in ("source", "source_directory")]


def lines(source: Source) -> Iterator[tuple[str, str, Place]]:
    """(first word, rest, place) of every line, joined where it ends with a backslash."""
    held, began = "", 0
    for number, raw in enumerate(source.text.splitlines(), 1):
        if not held and raw.lstrip().startswith("#"):
            continue
        began = began or number
        if raw.endswith("\\"):
            held += raw[:-1] + " "
            continue
        word, _, rest = (held + raw).strip().partition(" ")
        if "\t" in word:
            word, _, more = word.partition("\t")
            rest = f"{more} {rest}"
        if word:
            yield word.replace("-", "_"), " ".join(rest.split()), Place(source.path, began)
        held, began = "", 0
    if held.strip():
        word, _, rest = held.strip().partition(" ")
        yield word.replace("-", "_"), " ".join(rest.split()), Place(source.path, began)


def read(source: Source, notes: v.Notes) -> list[Stanza]:
    """The iface stanzas; every other line is noted at once."""
    found: list[Stanza] = []
    inside: Stanza | None = None
    other = ""
    for word, rest, place in lines(source):
        if word == "iface":
            name, family, method, *more = (*rest.split(), "", "", "")
            inside, other = Stanza(name, family, method, place), ""
            found.append(inside)
            if extra := " ".join(more).strip():
                inside.options.append(("inherits", extra.removeprefix("inherits "), place))
        elif (verdict := v.judge(OUTSIDE, word)) is not v.UNKNOWN or word in OUTSIDE:
            inside, other = None, word
            notes.add(place, word, rest, verdict)
        elif inside is not None:
            inside.options.append((word, rest, place))
        else:
            notes.add(place, f"{other} {word}".strip(), rest, v.UNKNOWN)
    return found


# -- devices ---------------------------------------------------------------------------------------

def build(draft: Draft, stanza: Stanza) -> None:
    name = device(stanza)
    if not usable(stanza):
        return
    known = {d.name: d for d in draft.devices()}.get(name)
    mtu = v.whole(stanza.get("mtu"))
    said = {"name": name, "mtu": mtu if mtu is not None or known is None else known.mtu,
            "mac": hardware(stanza) or (known.mac if known else ""), "place": known.place if known else stanza.place}
    members = tuple(sorted(x for x in stanza.get("bond_slaves", "slaves").split() if x != "none"))
    vlan = re.fullmatch(r"(?:(?P<parent>.+)\.|vlan)(?P<id>\d{1,4})", name)
    if stanza.get("bridge_ports") or name in draft.bridges:
        old = draft.bridges.get(name)
        stp = {"on": True, "yes": True, "off": False, "no": False}.get(stanza.get("bridge_stp").lower())
        ports = tuple(sorted(ports_of(stanza))) or (old.ports if old else ())
        draft.bridges[name] = Bridge(**said, ports=ports, stp=stp if stp is not None or not old else old.stp)  # type: ignore[arg-type]
    elif members or stanza.get("bond_mode") or name in draft.bonds:
        old_bond = draft.bonds.get(name)
        draft.bonds[name] = Bond(**said, members=members or (old_bond.members if old_bond else ()),  # type: ignore[arg-type]
                                 mode=stanza.get("bond_mode") or (old_bond.mode if old_bond else ""))
    elif stanza.get("vlan_raw_device") or vlan:
        raw = stanza.get("vlan_raw_device") or (vlan["parent"] if vlan else "") or ""
        number = stanza.get("vlan_id") or (vlan["id"] if vlan else "")
        draft.vlans[name] = Vlan(**said, parent=raw, id=v.whole(number) or 0)  # type: ignore[arg-type]
    else:
        draft.nics[name] = Nic(**said)  # type: ignore[arg-type]
    layer3(draft, name, stanza)


def usable(stanza: Stanza) -> bool:
    name = device(stanza)
    return (name not in ("", "lo") and not any(stanza.get(k) for k in OTHER_KINDS)
            and stanza.method not in ("ppp", "wvdial", "tunnel", "v4tunnel", "6to4"))


def device(stanza: Stanza) -> str:
    """``eth0:1`` is a further address of eth0; a name with wildcards is no device."""
    name = stanza.name.partition(":")[0]
    return "" if set(name) & set("*?[/") else name


def ports_of(stanza: Stanza) -> list[str]:
    words = stanza.get("bridge_ports").split()
    return [w for w in words if (w not in ("none", "all", "regex", "noregex") and not set(w) & set("*?[.+^$("))
            or re.fullmatch(r"[A-Za-z]\w*\.\d+", w)]


def hardware(stanza: Stanza) -> str:
    return stanza.get("hwaddress").lower().removeprefix("ether ")


def layer3(draft: Draft, name: str, stanza: Stanza) -> None:
    six = stanza.family == "inet6"
    if stanza.method in ("dhcp", "auto"):
        if stanza.method == "dhcp":
            draft.dynamic.append(Dynamic(dev=name, family=6 if six else 4))
        return
    for key, value, _ in stanza.options:
        if key == "address" and (found := v.cidr(full_address(value, stanza.get("netmask"), six))):
            draft.addresses.append(Address(dev=name, cidr=found))
        elif key == "gateway" and value:
            draft.routes.append(Route(dev=name, dst=v.prefix("default", 6 if ":" in value else 4) or "", via=value,
                                      metric=v.whole(stanza.get("metric"))))


def full_address(address: str, netmask: str, six: bool) -> str:
    if "/" in address or not netmask:
        return address if "/" in address or six else f"{address}/32"
    return f"{address}/{netmask}"


def complete(draft: Draft, stanzas: Sequence[Stanza]) -> None:
    """What is told by the other side: ``bond-master`` on a member, and ports without a stanza of their own."""
    for stanza in stanzas:
        master = stanza.get("bond_master")
        if master and master != "none" and usable(stanza) and (bond := draft.bonds.get(master)):
            members = tuple(sorted({*bond.members, device(stanza)}))
            draft.bonds[master] = Bond(name=bond.name, mtu=bond.mtu, mac=bond.mac, place=bond.place, members=members,
                                       mode=bond.mode)
    for bond in draft.bonds.values():
        for member in bond.members:
            if member not in {d.name for d in draft.devices()}:
                draft.nics[member] = Nic(name=member, place=bond.place)


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, stanza: Stanza) -> None:
    """The stanza and each of its options."""
    name, draft = device(stanza), notes.draft
    base = f"iface {stanza.name}"
    whole = verdict_of(stanza, draft)
    notes.add(stanza.place, f"{base} {stanza.family}", stanza.method, whole, name)
    for key, value, place in stanza.options:
        verdict = v.judge(OPTIONS, key)
        if key == "mtu" and v.whole(value) is None:
            verdict = v.BAD_VALUE
        elif whole in (v.LOOPBACK, v.KIND, v.NAMELESS) and verdict not in (v.COMMAND, v.UNKNOWN):
            verdict = whole
        elif key == "bridge_ports" and "regex" in value.split():
            verdict = v.Verdict(v.PORTS.outcome, "the bridge is used as it is, with whatever ports match")
        notes.add(place, f"{base} {key}", value, verdict, name)


def verdict_of(stanza: Stanza, draft: Draft) -> v.Verdict:
    name = device(stanza)
    if name == "lo":
        return v.LOOPBACK
    if not name:
        return v.NAMELESS
    if not usable(stanza):
        return v.KIND
    if name in draft.bonds:
        return v.BOND
    return v.VLAN if name in draft.vlans else v.DEVICE
