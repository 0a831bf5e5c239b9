"""/etc/network/interfaces -> Layout. Pure.

Format: interfaces(5) of ifupdown and ifupdown2, bridge-utils-interfaces(5), vlan-interfaces(5), and the
bond options of ifenslave. Dashes and underscores in option names are the same.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import PurePath
from typing import Any

from kvmnet.adopt import bonds
from kvmnet.adopt import verdicts as v
from kvmnet.adopt.model import Address, Bond, Bridge, Draft, Dynamic, Layout, Nic, Place, Route, Source, Vlan
from kvmnet.records import dataclass, field, replace

OPTIONS: dict[str, v.Verdict] = {
    "mtu": v.MTU, "bridge_ports": v.PORTS, "bridge_vlan_aware": v.VLAN_FILTER, "bridge_vids": v.VLAN_FILTER,
    "bridge_pvid": v.VLAN_FILTER, "bridge_access": v.VLAN_FILTER, "bridge_*": v.BRIDGE,
    "bond_slaves": v.MEMBERS, "slaves": v.MEMBERS, "bond_master": v.MEMBERS, "bond_*": v.MODE,
    "vlan_raw_device": v.CARRIER, "vlan_id": v.VLAN, "vlan_protocol": v.PROTOCOL,
    "address": v.HOST_ADDRESS, "netmask": v.HOST_ADDRESS, "broadcast": v.ADDRESS, "gateway": v.ROUTE, "metric": v.ROUTE,
    "hwaddress": v.MAC,
    **dict.fromkeys(("up", "down", "pre_up", "post_up", "pre_down", "post_down"), v.COMMAND),
    **dict.fromkeys(("pointopoint", "scope", "network",
                     "dns_*", "accept_ra", "autoconf", "privext", "dad_attempts", "dad_interval", "hostname",
                     "leasehours", "leasetime", "client", "vendor", "request_prefix", "ll_attempts", "ll_interval",
                     "preferred_lifetime", "address_virtual"), v.ADDRESS),
    **dict.fromkeys(("link_*", "ethernet_*", "ethtool_*", "alias", "media", "description"), v.LINK),
    "ovs_*": v.KIND, "wpa_*": v.KIND, "wireless_*": v.KIND, "vxlan_*": v.KIND, "tunnel_*": v.KIND, "mode": v.KIND,
    "endpoint": v.KIND, "local": v.KIND, "ttl": v.KIND}
"""Option of an iface stanza -> what becomes of it."""
OUTSIDE = {"auto": v.LINK, "allow_*": v.LINK, "no_auto_down": v.LINK, "no_scripts": v.LINK, "source": v.RENDERER,
           "source_directory": v.RENDERER, "rename": v.UNKNOWN, "template": v.UNKNOWN, "mapping": v.UNKNOWN}
"""Words that begin a stanza of their own."""
PROTOCOLS = {"": "802.1Q", "802.1q": "802.1Q", "802.1ad": "802.1ad"}
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

    template: Stanza | None = None
    """The stanza that it inherits from."""

    def get(self, *names: str) -> str:
        return next((value for key, value, _ in self.all() if key in names), "")

    def all(self) -> list[tuple[str, str, Place]]:
        """Its options, and those of its template that it has not itself."""
        chain, known = self.options, {key for key, _, _ in self.options}
        seen, above = {id(self)}, self.template
        while above and id(above) not in seen:
            chain = [*chain, *(o for o in above.options if o[0] not in known)]
            known |= {key for key, _, _ in above.options}
            seen.add(id(above))
            above = above.template
        return chain


def parse(sources: Sequence[Source]) -> Layout:
    """Everything of the files, in the order given (``included`` tells which files one reads)."""
    draft = Draft()
    notes = v.Notes(draft)
    stanzas: list[Stanza] = []
    started: set[str] = set()
    for source in sources:
        stanzas += read(source, notes, sources, started)
    templates = inherit(stanzas, started)
    devices = [s for s in stanzas if s.name not in templates]
    for stanza in devices:
        build(draft, stanza)
    complete(draft, devices)
    for stanza in stanzas:
        note(notes, stanza, stanza.name in templates)
    return draft.layout()


def inherit(stanzas: Sequence[Stanza], started: set[str]) -> set[str]:
    """Tie every stanza to the one that it inherits from; which names are templates and no devices."""
    by_name = {s.name: s for s in reversed(stanzas)}
    named = set()
    for stanza in stanzas:
        above = by_name.get(next((w for k, w, _ in stanza.options if k == "inherits"), ""))
        if above and above is not stanza:
            stanza.template = above
            named.add(above.name)
    return named - started


def included(source: Source) -> list[tuple[str, bool]]:
    """Patterns of further files that *source* reads, each with whether it is a directory."""
    return [(rest, word == "source_directory") for word, rest, _ in lines(source)
            if word in ("source", "source_directory")]


def source_verdict(source: Source, word: str, pattern: str, sources: Sequence[Source]) -> v.Verdict:
    """What becomes of a line that reads other files: they are read too, where there are any."""
    place = str(PurePath(source.path).parent / pattern) + ("/*" if word == "source_directory" else "")
    if any(fnmatch(s.path, place) for s in sources):
        return v.Verdict(v.RENDERER.outcome, "read as well")
    if set(place) & set("*?[") or word == "source_directory":
        return v.Verdict(v.RENDERER.outcome, "there is no such file")
    return v.Verdict(v.UNKNOWN.outcome, "this file is not there: what it says is not known")


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


def read(source: Source, notes: v.Notes, sources: Sequence[Source], started: set[str]) -> list[Stanza]:
    """The iface stanzas; every other line is noted at once. ``started``: gets the devices that are brought up."""
    found: list[Stanza] = []
    inside: Stanza | None = None
    other = ""
    for word, rest, place in lines(source):
        if word == "iface":
            name, *more = (*rest.split(), "")
            words = [w for w in more if w]
            family, method = (*([] if words[:1] == ["inherits"] else words), "", "")[:2]
            inside, other = Stanza(name, family, method, place), ""
            found.append(inside)
            left = words if words[:1] == ["inherits"] else words[2:]
            if left:
                inside.options.append(("inherits" if left[0] == "inherits" else "more", " ".join(left).removeprefix("inherits "), place))
        elif (verdict := v.judge(OUTSIDE, word)) is not v.UNKNOWN or word in OUTSIDE:
            inside, other = None, word
            if word.startswith(("auto", "allow_")):
                started |= set(rest.split())
            elif word.startswith("source"):
                verdict = source_verdict(source, word, rest, sources)
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
    members = tuple(x for x in stanza.get("bond_slaves", "slaves").split() if x != "none")
    mode, options = bonds.described(bond_words(stanza))
    vlan = re.fullmatch(r"(?:(?P<parent>.+)\.|vlan)(?P<id>\d{1,4})", name)
    if stanza.get("bridge_ports") or name in draft.bridges:
        old = draft.bridges.get(name)
        stp = {"on": True, "yes": True, "off": False, "no": False}.get(stanza.get("bridge_stp").lower())
        ports = tuple(sorted(ports_of(stanza))) or (old.ports if old else ())
        draft.bridges[name] = Bridge(**said, ports=ports, stp=stp if stp is not None or not old else old.stp)  # type: ignore[arg-type]
    elif members or (stanza.get("bond_mode") and not stanza.get("bond_master")) or name in draft.bonds:
        old_bond = draft.bonds.get(name)
        draft.bonds[name] = Bond(**said, members=members or (old_bond.members if old_bond else ()),  # type: ignore[arg-type]
                                 mode=mode if stanza.get("bond_mode") or not old_bond else old_bond.mode,
                                 options=options or (old_bond.options if old_bond else {}))
    elif stanza.get("vlan_raw_device") or vlan or name in draft.vlans:
        raw = stanza.get("vlan_raw_device") or (vlan["parent"] if vlan else "") or ""
        number = stanza.get("vlan_id") or (vlan["id"] if vlan else "")
        old_vlan = draft.vlans.get(name)
        protocol = PROTOCOLS.get(stanza.get("vlan_protocol").lower(), "802.1Q")
        draft.vlans[name] = Vlan(**said, parent=raw or (old_vlan.parent if old_vlan else ""),  # type: ignore[arg-type]
                                 id=v.whole(number) or (old_vlan.id if old_vlan else 0),
                                 protocol=old_vlan.protocol if old_vlan and not stanza.get("vlan_protocol") else protocol)
    else:
        draft.nics[name] = Nic(**said)  # type: ignore[arg-type]
    layer3(draft, name, stanza)


def bond_words(stanza: Stanza) -> dict[str, Any]:
    """The stanza's options of a bond by the kernel's words."""
    found = {bonds.canonical(key.removeprefix("bond_")): value for key, value, _ in reversed(stanza.all())
             if key.startswith("bond_") and key not in ("bond_slaves", "bond_master")}
    if "primary" in found:
        found["primary"] = next(iter(found["primary"].split()), "")
    return found


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
    if not plain(stanza):
        return
    for key, value, _ in stanza.all():
        if key == "address" and (found := v.cidr(full_address(value, stanza.get("netmask"), six))):
            draft.addresses.append(Address(dev=name, cidr=found))
        elif key == "gateway" and v.is_address(value):
            draft.routes.append(Route(dev=name, dst=v.prefix("default", 6 if ":" in value else 4) or "", via=value,
                                      metric=v.whole(stanza.get("metric"))))


def plain(stanza: Stanza) -> bool:
    """Whether its addresses are such as the document can have."""
    return stanza.method == "static" and not stanza.get("pointopoint") and stanza.get("scope") in ("", "global")


def full_address(address: str, netmask: str, six: bool) -> str:
    if "/" in address or not netmask:
        return address if "/" in address or six else f"{address}/32"
    return f"{address}/{netmask}"


def complete(draft: Draft, stanzas: Sequence[Stanza]) -> None:
    """What is told by the other side: ``bond-master`` on a member, and ports without a stanza of their own."""
    for stanza in stanzas:
        master = stanza.get("bond_master")
        if master and master != "none" and usable(stanza) and (bond := draft.bonds.get(master)):
            draft.bonds[master] = replace(bond, members=tuple(dict.fromkeys((*bond.members, device(stanza)))))
    for bond in draft.bonds.values():
        for member in bond.members:
            if member not in {d.name for d in draft.devices()}:
                draft.nics[member] = Nic(name=member, place=bond.place)


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, stanza: Stanza, template: bool) -> None:
    """The stanza and each of its options."""
    name, draft = device(stanza), notes.draft
    base = f"iface {stanza.name}"
    whole = v.Verdict(v.RENDERER.outcome, "a template for other stanzas") if template else verdict_of(stanza, draft)
    notes.add(stanza.place, f"{base} {stanza.family}".strip(), stanza.method, whole, name)
    for key, value, place in stanza.options:
        verdict = v.judge(OPTIONS, key)
        owner = name
        if (template or whole in (v.LOOPBACK, v.KIND, v.NAMELESS)) and verdict not in (v.COMMAND, v.UNKNOWN):
            verdict = whole
        elif key == "inherits":
            verdict = v.Verdict(v.RENDERER.outcome, "its options are read with the stanza's own") if stanza.template else v.UNKNOWN
        elif key == "bond_master" and value in draft.bonds:
            owner = value
        elif key == "bridge_ports" and "regex" in value.split():
            verdict = v.Verdict(v.PORTS.outcome, "the bridge is used as it is, with whatever ports match")
        else:
            verdict = checked(verdict, key, value, stanza, draft)
        notes.add(place, f"{base} {key}", value, verdict, owner)


def checked(verdict: v.Verdict, key: str, value: str, stanza: Stanza, draft: Draft) -> v.Verdict:
    """The verdict of an option where its value counts, too."""
    name = device(stanza)
    if verdict in (v.MTU, v.VLAN):
        return verdict if v.whole(value) is not None else v.BAD_VALUE
    if verdict is v.PROTOCOL:
        return verdict if value.lower() in PROTOCOLS else v.BAD_VALUE
    if verdict in (v.MODE, v.MEMBERS) and name not in draft.bonds:
        return v.Verdict(v.UNKNOWN.outcome, "in the stanza of no bond" if key != "bond_master" else f"there is no bond {value}")
    if verdict is v.MODE:
        return bonds.verdict(bonds.canonical(key.removeprefix("bond_")), value, {})
    if verdict is v.MAC:
        return verdict if name in draft.bonds or name in draft.vlans else v.LINK
    if verdict in (v.HOST_ADDRESS, v.ROUTE):
        return address_verdict(verdict, key, value, stanza)
    return verdict


def address_verdict(verdict: v.Verdict, key: str, value: str, stanza: Stanza) -> v.Verdict:
    if not plain(stanza):
        return v.ADDRESS
    good = {"address": v.cidr(full_address(value, stanza.get("netmask"), stanza.family == "inet6")),
            "gateway": v.is_address(value), "metric": v.whole(value) is not None,
            "netmask": any(k == "address" and v.cidr(full_address(w, value, False)) for k, w, _ in stanza.all())}
    return verdict if good[key] else v.BAD_VALUE


def verdict_of(stanza: Stanza, draft: Draft) -> v.Verdict:
    name = device(stanza)
    if name == "lo":
        return v.LOOPBACK
    if not name:
        return v.NAMELESS
    return v.DEVICE if usable(stanza) else v.KIND
