"""Which findings a program may mend, with what, and what takes that back. Pure.

Safe is what closes no port, opens none, routes nothing, and can be taken back exactly: a number that was too small, a delay,
an entry that is proved to be wrong. What lowers an MTU, opens a firewall, loosens a check or gives up an address is left to a person, and so is
what kvmnet made: there the document is mended, and ``kvmnet apply`` does it.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kvmnet.doctor.finding import Certainty, Finding
from kvmnet.doctor.view import View, data, owned, up
from kvmnet.records import asdict, dataclass

Argv = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One command and the one that takes it back. Either may be run twice."""

    code: str
    where: str
    """With ``code`` the finding that it mends."""
    do: Argv
    undo: Argv

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Mending:
    changes: tuple[Change, ...]
    left: tuple[Finding, ...]
    """What a person must decide."""


def mending(view: View, findings: Iterable[Finding]) -> Mending:
    """What is mended of *findings*, in their order."""
    changes: list[Change] = []
    left = []
    for finding in findings:
        how = MENDS.get(finding.code)
        made = list(how(view, finding)) if how and finding.certainty is Certainty.PROVED and not owned(finding.where) else []
        changes += (Change(finding.code, finding.where, do, undo) for do, undo in made)
        if not made:
            left.append(finding)
    return Mending(tuple(dict.fromkeys(changes)), tuple(left))


Commands = Iterator[tuple[Argv, Argv]]


def bridge_setting(name: str, value: int) -> Callable[[View, Finding], Commands]:
    """``ip link set BRIDGE type bridge NAME VALUE``, hundredths of a second."""
    def how(view: View, finding: Finding) -> Commands:
        before = data(view.links[finding.where]).get(name)
        if before is not None:
            words = ("ip", "link", "set", finding.where, "type", "bridge", name)
            yield (*words, str(value)), (*words, str(before))
    return how


def shorter_delay(view: View, finding: Finding) -> Commands:
    """Only where every port leads to a guest: beyond an uplink other bridges may need the time, or there is a loop until they agree."""
    if len(view.guest_ports(finding.where)) == len(view.ports.get(finding.where, ())):
        yield from bridge_setting("forward_delay", 200)(view, finding)


def from_sysctls(view: View, finding: Finding) -> Commands:
    """The ``sysctl -w`` of the finding, of settings whose value is known."""
    for command in finding.fix:
        told = re.fullmatch(r"sysctl -w ([\w./-]+)=(\S+)", command)
        before = view.sysctl(setting_file(told[1])) if told else ""
        if told and before:
            yield ("sysctl", "-qw", f"{told[1]}={told[2]}"), ("sysctl", "-qw", f"{told[1]}={before}")


def setting_file(name: str) -> str:
    """File of a setting below /proc/sys: a device's name may have dots."""
    found = re.fullmatch(r"(net\.ipv[46]\.(?:conf|neigh))\.(.+)\.(\w+)", name)
    return f"{found[1].replace('.', '/')}/{found[2]}/{found[3]}" if found else name.replace(".", "/")


def raised_mtus(view: View, finding: Finding) -> Commands:
    """Ports of the bridge that take less than the others, where all that must change is to take more."""
    ports = [p for p in view.ports.get(finding.where, ()) if up(p)]
    told = {found[1]: found[2] for command in finding.fix if (found := re.fullmatch(r"ip link set (\S+) mtu (\d+)", command))}
    if told and all(p["mtu"] < int(told[p["ifname"]]) for p in ports if p["ifname"] in told) and all(not owned(name) for name in told):
        for p in ports:
            if p["ifname"] in told:
                yield ("ip", "link", "set", p["ifname"], "mtu", told[p["ifname"]]), ("ip", "link", "set", p["ifname"], "mtu", str(p["mtu"]))


def no_merging(view: View, finding: Finding) -> Commands:
    yield ("ethtool", "-K", finding.where, "lro", "off"), ("ethtool", "-K", finding.where, "lro", "on")


def watched_bond(view: View, finding: Finding) -> Commands:
    words = ("ip", "link", "set", finding.where, "type", "bond", "miimon")
    yield (*words, "100"), (*words, str(data(view.links[finding.where]).get("miimon", 0)))


def wrong_place(view: View, finding: Finding) -> Commands:
    """A static entry of a bridge that leads a guest's frames astray."""
    for r in view.rows("fdb"):
        home = view.homes.get(r["mac"])
        if home and r["ifname"] == finding.where and r.get("state") == "static" and r.get("master") and r["ifname"] != home and view.links.get(home, {}).get("master") == r["master"]:
            place = (r["mac"], "dev", r["ifname"], *(("vlan", str(r["vlan"])) if "vlan" in r else ()), "master")
            yield ("bridge", "fdb", "del", *place), ("bridge", "fdb", "replace", *place, "static", *(("sticky",) if "sticky" in r.get("flags", ()) else ()))


def forgotten_neighbour(view: View, finding: Finding) -> Commands:
    told = re.fullmatch(r"ip neigh del (\S+) dev (\S+)", finding.fix[0])
    for n in view.rows("neighbours"):
        if told and (n.get("dst"), n.get("dev")) == told.groups() and n.get("lladdr"):
            yield ("ip", "neigh", "del", n["dst"], "dev", n["dev"]), ("ip", "neigh", "replace", n["dst"], "lladdr", n["lladdr"], "dev", n["dev"], "nud", "permanent")


MENDS: Mapping[str, Callable[[View, Finding], Commands]] = {
    "stp-delay": shorter_delay,
    "ageing-short": bridge_setting("ageing_time", 30000),
    "proxy-arp": from_sysctls,
    "ra-ignored": from_sysctls,
    "neighbour-table": from_sysctls,
    "conntrack-table": from_sysctls,
    "mtu-island": raised_mtus,
    "merged-frames-forwarded": no_merging,
    "bond-unwatched": watched_bond,
    "guest-learned-elsewhere": wrong_place,
    "wrong-neighbour": forgotten_neighbour,
}
"""Code -> what mends it. A finding that is only likely is never mended by a program."""
