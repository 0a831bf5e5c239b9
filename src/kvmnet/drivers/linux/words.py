"""Steps -> lines of ``ip -batch``. Pure: what is printed for the operator is what runs.

One guest NIC costs two lines: ``tuntap add`` and one ``link set`` with everything else, and a third
only for port settings that a fresh port has not. Traps that decide the order, all of Linux 6.1-6.18:

* an MTU given when a bridge is made does not stay (adding a port changes it), and neither does one that
  is set to what it is already (dev_set_mtu() returns early): it is made with another one and then set;
* ifalias is ignored when a link is made;
* port settings need the port, so they follow ``master`` in a line of their own, and such a NIC goes up
  only there (rtnl_changelink() sets them before the flags): it never runs with the wrong ones;
* a default route from a router advertisement that we make again ranks behind the kernel's own: the kernel
  cannot renew one that it did not make, and would stop there before it reads the prefixes of the
  advertisement (ndisc_router_discovery() in net/ipv6/ndisc.c). So its own appears beside ours, which runs out;
* a NIC must be down to join a bond, which takes it up by itself (in the same line "up" would come first, up to
  Linux 6.1), and is down with the MTU and the MAC that it
  had before when it has left (bond_enslave(), __bond_release_one() in drivers/net/bonding/bond_main.c);
* a passthru macvtap takes its parent's MAC when it is made, whatever it is told (macvlan_common_newlink());
* br_changelink() takes the forward delay before the STP state, and refuses a small one while STP is
  on: STP goes off in a line of its own.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

from kvmnet.drivers.linux.attrs import (
    BOND,
    BRIDGE,
    ERSPAN_3,
    GRE,
    GRE_TYPES,
    LINK,
    MACVLAN,
    MACVLANS,
    PORT,
    VLAN,
    VRF,
    VXLAN,
    Attr,
    join_alias,
)
from kvmnet.drivers.linux.resources import (
    PROTO,
    Address,
    BridgeVlan,
    Fdb,
    Link,
    Neighbour,
    ProxyNeighbour,
    Route,
    VlanMulticast,
    default_metric,
)
from kvmnet.drivers.linux.wire import ADVERTISED, PROTO_NUMBERS, ROUTE_TYPES, TABLE_NUMBERS, UNTOLD
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource, merge, setting_names


class Line(NamedTuple):
    """One line of a batch. ``gone``: an error that says the thing is gone already is no error."""

    words: tuple[str, ...]
    key: Key
    gone: bool = False

    def __str__(self) -> str:
        return " ".join(map(quote, self.words))


PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/@%+,=|")


@lru_cache(maxsize=4096)
def quote(word: str) -> str:
    """*word* as ``ip -batch`` splits it (makeargs() in iproute2/lib/utils.c): quotes, no escapes."""
    if word and PLAIN.issuperset(word):
        return word
    mark = "'" if '"' in word else '"'
    return f"{mark}{word.replace(mark, '').replace(chr(10), ' ')}{mark}"


def lines_of(step: Step) -> list[Line]:
    """The lines that make *step*. Raises StepFailed for what ``ip`` cannot make."""
    match step:
        case Create(Link() as link):
            return create_link(link)
        case Update(Link() as before, Link() as after):
            return update_link(before, after)
        case Delete(Link(type="bond") as link) if link.members:
            return [*release(link), Line(("link", "del", "dev", link.name), link.key, gone=True)]
        case Delete(Link() as link):
            return [Line(("link", "del", "dev", link.name), link.key, gone=True)]
        case Create(BridgeVlan() as vlan):
            return [vlan_line("add", vlan, vlan)]
        case Update(BridgeVlan() as vlan, BridgeVlan() as claim):
            return [vlan_line("add", claim, joined(vlan, claim))]
        case Delete(BridgeVlan() as vlan):
            return [vlan_line("del", vlan, vlan)._replace(gone=True)]
        case Create(Fdb() as entry):
            return [fdb_line("append", entry)]
        case Delete(Fdb() as entry):
            return [fdb_line("del", entry)._replace(gone=True)]
        case Create(VlanMulticast() as claim) | Update(_, VlanMulticast() as claim):
            return [multicast_line(claim)]
        case Delete(VlanMulticast()):
            return []
        case Create(Neighbour() as neighbour) | Update(_, Neighbour() as neighbour):
            dev, address = neighbour.name.split()
            return [Line(("neigh", "replace", address, "lladdr", neighbour.mac or "", "dev", dev, "nud", "permanent",
                          "protocol", PROTO), neighbour.key)]
        case Delete(Neighbour() as neighbour):
            dev, address = neighbour.name.split()
            return [Line(("neigh", "del", address, "dev", dev), neighbour.key, gone=True)]
        case Create(Address() as address):
            # An advertisement may have been quicker, or the kernel was told to keep it (keep_addr_on_down).
            verb = "add" if address.lifetime is None and ":" not in cidr(address) else "replace"
            return [Line(("address", verb, *address_words(address)), address.key)]
        case Update(Address() as before, Address() as after):
            return [Line(("address", "replace", *address_words(joined(before, after))), after.key)]
        case Delete(Address() as address):
            return [Line(("address", "del", cidr(address), "dev", dev_of(address)), address.key, gone=True)]
        case Create(Route() as route):
            verb = "replace" if route.proto == "kernel" else "add"  # an address may have brought it along
            return [Line(("route", verb, *route_words(route)), route.key)]
        case Update(Route() as before, Route() as after):
            return [Line(("route", "replace", *route_words(joined(before, after))), after.key)]
        case Delete(Route() as route):
            line = Line(("route", "del", *route_identity(route)), route.key, gone=True)
            return [line, line] if route.proto == ADVERTISED else [line]
        case Create(ProxyNeighbour() as proxy) | Update(_, ProxyNeighbour() as proxy):
            return [Line(("neigh", "replace", *proxy_words(proxy), "protocol", PROTO), proxy.key)]
        case Delete(ProxyNeighbour() as proxy):
            return [Line(("neigh", "del", *proxy_words(proxy)), proxy.key, gone=True)]
    raise TypeError(f"not of this driver: {step}")


def create_link(link: Link) -> list[Line]:
    if link.type == "bridge":
        pinned = (*(("address", link.mac) if link.mac else ()),
                  *(("mtu", str(another_mtu(link.mtu))) if link.mtu else ()))
        make = ("link", "add", "dev", link.name, *pinned, "type", "bridge", *told(BRIDGE, link, BRIDGE, unusual=True))
    elif link.type == "tap":
        make = tap_line(link).words
    elif link.type == "bond":
        make = ("link", "add", "dev", link.name, *(("address", link.mac) if link.mac else ()),
                "type", "bond", *told(BOND, link, told_in(link.bond_mode or ""), unusual=True))
    elif link.type == "vlan":
        make = ("link", "add", "link", link.parent or "", "name", link.name, "type", "vlan", *told(VLAN, link, VLAN))
    elif link.type == "vrf":
        make = ("link", "add", "dev", link.name, "type", "vrf", *told(VRF, link, VRF))
    elif link.type == "vxlan":
        make = ("link", "add", "dev", link.name, *(("address", link.mac) if link.mac else ()), "type", "vxlan",
                *told(VXLAN, link, VXLAN), *(("dev", link.parent) if link.parent else ()))
    elif link.type in GRE_TYPES:
        make = ("link", "add", "dev", link.name, *(("address", link.mac) if link.mac else ()), "type", link.type,
                *told(GRE, link, GRE), *GRE_TYPES[link.type], *(ERSPAN_3 if link.erspan_version == 2 else ()))
    elif link.type in MACVLANS:
        make = ("link", "add", "link", link.parent or "", "name", link.name,
                *(("address", link.mac) if link.mac else ()), "type", link.type, "mode", link.macvlan_mode or "bridge")
    elif link.type in MADE_PLAIN:
        make = ("link", "add", "dev", link.name, "type", link.type)
    else:
        raise StepFailed(link.key, f"there is no such device, and kvmnet does not make devices of type {link.type}",
                         "is the NIC plugged in, and is this its name? compare with: ip link")
    rest = set_link(link, link, set(setting_names(Link)) - {"bonded"}
                    - ({"mac"} if link.type in ("bridge", "bond", "vxlan", *GRE_TYPES, *MACVLANS) and not link.passthru else set()))
    # With a carrier, "up" of the same line comes before addrgenmode (do_setlink() in net/core/rtnetlink.c), and
    # the kernel has given it a link-local address by then.
    first = told(LINK, link, {"addrgenmode"}) if link.type in CARRIED else ()
    return [Line(make, link.key), *([Line(("link", "set", "dev", link.name, *first), link.key)] if first else []), *rest]


def tap_line(link: Link) -> Line:
    return Line(("tuntap", "add", "dev", link.name, "mode", "tap", *(["multi_queue"] if link.multi_queue else []),
                 *(["user", str(link.user)] if link.user is not None and link.user >= 0 else [])), link.key)


CARRIED = frozenset({*GRE_TYPES, "vxlan", "ifb"})
"""Types that have a carrier as soon as they are up."""

BOND_MODES = {
    "802.3ad": {"bond_lacp_rate", "bond_ad_select"},
    "active-backup": {"bond_arp_interval", "bond_arp_targets", "bond_arp_validate", "bond_primary", "bond_primary_reselect"},
    "balance-rr": {"bond_arp_interval", "bond_arp_targets", "bond_arp_validate"},
    "balance-xor": {"bond_arp_interval", "bond_arp_targets", "bond_arp_validate"},
    "broadcast": {"bond_arp_interval", "bond_arp_targets", "bond_arp_validate"},
    "balance-tlb": {"bond_primary", "bond_primary_reselect"},
    "balance-alb": {"bond_primary", "bond_primary_reselect"},
}
"""Options that not every mode takes: those that it does (bond_opts in drivers/net/bonding/bond_options.c)."""


def told_in(mode: str) -> set[str]:
    """Settings that a bond of *mode* is told; the kernel shows all of them in every mode."""
    return BOND.keys() - set().union(*BOND_MODES.values()) | BOND_MODES.get(mode, set())


def release(bond: Link) -> list[Line]:
    """Everything out of a bond that goes, with the MTU and the state that it has as a member."""
    return [Line(("link", "set", "dev", member, *words), bond.key, gone=True) for member in bond.members or ()
            for words in (("nomaster",), (*told(LINK, bond, {"mtu"}), "up"))]


def vlan_line(verb: str, claim: BridgeVlan, whole: BridgeVlan) -> Line:
    """One line of ``bridge -batch``. Flags that are not told are taken away."""
    dev, vid = claim.name.rsplit(" ", 1)
    flags = [word for word, on in (("pvid", whole.pvid), ("untagged", whole.untagged)) if on and verb == "add"]
    own = ["self"] if dev == whole.bridge else []
    return Line(("vlan", verb, "dev", dev, "vid", vid, *flags, *own), claim.key)


def fdb_line(verb: str, entry: Fdb) -> Line:
    return Line(("fdb", verb, entry.mac or "", "dev", entry.dev or "", "dst", entry.dst or ""), entry.key)


def in_ranges(steps: Iterable[Step]) -> list[Line]:
    """The lines of *steps* on VLANs, by device and id. Neighbouring ids that are told the same are one line: a
    range with pvid is refused, and a deletion stops at the first that is gone (br_process_vlan_info() in
    net/bridge/br_netlink.c), so those stay apart."""
    lines: list[Line] = []
    last = 0
    for step in sorted(steps, key=lambda s: place_of(s.key)):
        (line,) = lines_of(step) or (None,)
        if line is None:
            continue
        at, (_, vid) = line.words.index("vid") + 1, place_of(step.key)
        joins = lines and vid == last + 1 and "pvid" not in line.words and not line.gone
        if joins and without(lines[-1].words, at) == without(line.words, at):
            first = lines[-1].words[at].partition("-")[0]
            lines[-1] = lines[-1]._replace(words=(*line.words[:at], f"{first}-{vid}", *line.words[at + 1:]))
        else:
            lines.append(line)
        last = vid
    return lines


def without(words: Sequence[str], at: int) -> tuple[str, ...]:
    return (*words[:at], *words[at + 1:])


def place_of(key: Key) -> tuple[str, int]:
    """Device and id of a VLAN."""
    dev, vid = key.name.rsplit(" ", 1)
    return dev, int(vid)


def multicast_line(claim: VlanMulticast) -> Line:
    bridge, vid = claim.name.rsplit(" ", 1)
    words = [word for name, on in (("mcast_snooping", claim.snooping), ("mcast_querier", claim.querier))
             if on is not None for word in (name, "1" if on else "0")]
    return Line(("vlan", "global", "set", "dev", bridge, "vid", vid, *words), claim.key)


def another_mtu(mtu: int) -> int:
    """An MTU that differs from *mtu*, on the same side of what IPv6 needs (1280)."""
    return mtu - 1 if mtu > 1280 else mtu + 1


MADE_PLAIN = frozenset({"dummy", "ifb", "wireguard"})
"""Further types that need no words of their own."""


def update_link(before: Link, after: Link) -> list[Line]:
    whole = joined(before, after)
    changed = {n for n in setting_names(Link)
               if (v := getattr(after, n)) is not None and v != getattr(before, n)}
    stp_off = changed & {"stp"} if after.stp is False else set()
    # The kernel keeps delays as so many looks at the carrier: another interval would make others of them
    # (bond_option_miimon_set() in drivers/net/bonding/bond_options.c).
    delays = {"bond_updelay", "bond_downdelay"} if "bond_miimon" in changed and whole.bond_miimon else set()
    bond = told(BOND, whole, changed | delays)
    lines = [Line(("link", "set", "dev", after.name, "type", "bond", *bond), after.key)] if bond else []
    if "macvlan_mode" in changed:
        lines.append(Line(("link", "set", "dev", after.name, "type", whole.type or "", "mode", after.macvlan_mode or ""),
                          after.key))
    lines += [Line(("link", "set", "dev", after.name, "type", "bridge", *words), after.key)
             for names in (stp_off, changed - stp_off) if (words := told(BRIDGE, after, names))]
    lines += [Line(("link", "set", "dev", after.name, "type", "vlan", word, *qos_words(getattr(before, name), getattr(after, name))), after.key)
              for name, word in QOS_MAPS.items() if name in changed]
    lines += set_link(after, whole, changed)
    if after.addrgenmode == "none" and "addrgenmode" in changed:    # what the kernel made before stays otherwise
        lines.append(Line(("address", "flush", "dev", after.name, "scope", "link"), after.key))
    return lines


QOS_MAPS = {"vlan_qos": "egress-qos-map", "vlan_qos_in": "ingress-qos-map"}


def qos_words(before: Iterable[str] | None, after: Iterable[str] | None) -> list[str]:
    """A map of priorities in the place of another. What is in it stays unless it becomes 0 (vlan_dev_set_egress_priority()
    in net/8021q/vlan_dev.c)."""
    wanted = dict(word.split(":") for word in after or ())
    gone = {word.partition(":")[0] for word in before or ()} - wanted.keys()
    return [f"{number}:{priority}" for number, priority in sorted({**wanted, **dict.fromkeys(gone, "0")}.items())]


def set_link(claim: Link, whole: Link, changed: Iterable[str]) -> list[Line]:
    """``link set`` for the settings in *changed* that *claim* makes; *whole* is what results.

    A link that becomes a port gets all port settings again, because leaving a bridge loses them.
    """
    changed = set(changed)
    if claim.vrf:                 # one and the same attribute of the kernel
        changed -= {"master"}
    elif "master" in changed:
        changed -= {"vrf"}
    joins = "master" in changed and bool(claim.master)
    port = told(PORT, whole, PORT, unusual=True) if joins else told(PORT, claim, changed)
    words = told(LINK, claim, changed - {"up"}) + told(MACVLAN, claim, changed)
    if changed & {"alias", "guard", "keeper", "gate"} and (whole.alias or whole.guard or whole.keeper or whole.gate
                                                           or claim.alias is not None):
        words += ("alias", join_alias(whole.alias or "", whole.guard or "", whole.keeper or "", whole.gate or ""))
    state = told(LINK, claim, changed & {"up"})
    lines = []
    enters = "master" in changed and bool(claim.master and whole.bonded)
    leaves = "master" in changed and "bonded" in changed and not whole.bonded
    if enters or leaves:
        lines.append(Line(("link", "set", "dev", claim.name, "down" if enters else "nomaster"), claim.key))
        words = told(LINK, whole, {"mtu"}) + told(LINK, claim, changed - {"up", "mtu"})
        state = () if enters else ("up",) if whole.up else ("down",)
    if joins and port and whole.up:
        words, state = (*words, "down"), ("up",)
    elif not port:
        words, state = (*words, *state), ()
    lines += [Line(("link", "set", "dev", claim.name, *words), claim.key)] if words else []
    if port:
        lines.append(Line(("link", "set", "dev", claim.name, *state, "type", "bridge_slave", *port), claim.key))
    return lines


def told(table: dict[str, Attr], link: Link, names: Iterable[str], *, unusual: bool = False) -> tuple[str, ...]:
    """The words for those settings in *names* that *link* claims. ``unusual``: leave out what a
    fresh port or bridge has anyway."""
    keep = names if isinstance(names, (set, dict)) else set(names)
    words: list[str] = []
    for name, attr in table.items():
        if name in keep and (value := getattr(link, name)) is not None and not (unusual and value == attr.usual):
            words += attr.write(value)
    return tuple(words)


R = TypeVar("R", bound=Resource)


def joined(before: R, after: R) -> R:
    """What an update leaves behind."""
    return cast(R, merge(before, after))


def delete_together(links: Sequence[Link], group: int) -> list[Line]:
    """Delete many links of ours at once: one RCU wait (19 ms) instead of one for each."""
    return [*(Line(("link", "set", "dev", link.name, "group", str(group)), link.key, gone=True) for link in links),
            Line(("link", "del", "group", str(group)), links[-1].key)]


def cidr(address: Address) -> str:
    return address.name.rpartition(" ")[2]


def dev_of(resource: Address | Route | ProxyNeighbour) -> str:
    return resource.dev or resource.name.partition(" ")[0]


def address_words(address: Address) -> tuple[str, ...]:
    """Words for ``address add``. A peer takes the prefix length; label and lifetimes only where given."""
    own, _, length = cidr(address).partition("/")
    dev = dev_of(address)
    words = [own, "peer", f"{address.peer}/{length}"] if address.peer else [f"{own}/{length}"]
    words += ["dev", dev]
    version4 = ":" not in own
    if address.broadcast and version4:
        words += ["broadcast", address.broadcast]
    if address.scope and version4:
        words += ["scope", address.scope]
    if address.label and address.label != dev and version4:
        words += ["label", address.label]
    if address.lifetime is not None:
        preferred = address.lifetime if address.preferred is None else address.preferred
        words += ["valid_lft", str(address.lifetime), "preferred_lft", str(preferred)]
    return (*words, *(address.flags or ()))


def route_identity(route: Route) -> list[str]:
    """Words that name exactly one route of the kernel."""
    dst = route.dst or "default"
    if dst == "default" and route.family == 6:
        dst = "::/0"
    options = (route.options or "").split()
    words = [options[0], dst] if options and options[0] in ROUTE_TYPES else [dst]
    words += ["via", route.via] if route.via else []
    words += ["dev", route.dev] if route.dev else []
    words += ["table", TABLE_NUMBERS.get(route.table, route.table)] if route.table and route.table != "main" else []
    words += ["metric", str(route.metric)] if route.metric else []
    if "tos" in options:
        words += ["tos", options[options.index("tos") + 1]]
    return words


def route_words(route: Route) -> list[str]:
    if unknown := [w[1:] for w in (route.options or "").split() if w.startswith(UNTOLD)]:
        raise StepFailed(route.key, f"kvmnet cannot make a route with {', '.join(unknown)}",
                         "leave this route to the tool that made it")
    words = route_identity(route)
    if route.proto == ADVERTISED and route.metric is None:
        words += ["metric", str(default_metric(6) + 1)]
    words += ["proto", PROTO_NUMBERS.get(route.proto, route.proto)] if route.proto else []
    words += ["scope", route.scope] if route.scope and route.family == 4 else []
    words += ["src", route.src] if route.src else []
    words += ["expires", str(route.lifetime)] if route.lifetime is not None else []
    words += [f for f in route.flags or () if f == "onlink"]
    rest = (route.options or "").split()
    if rest and rest[0] in ROUTE_TYPES:
        rest = rest[1:]
    if "tos" in rest:
        at = rest.index("tos")
        rest = rest[:at] + rest[at + 2:]
    return words + rest


def proxy_words(proxy: ProxyNeighbour) -> tuple[str, ...]:
    return ("proxy", proxy.address or proxy.name.rpartition(" ")[2], "dev", dev_of(proxy))
