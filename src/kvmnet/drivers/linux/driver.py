"""Links, addresses, routes, proxy neighbours and kernel settings by iproute2 and /proc/sys.

Read: dumps of the kernel itself, one per kind of thing; ``ip`` and ``bridge`` are asked for what is unusual. Written: one ``ip -batch`` per run of steps.
"""
from __future__ import annotations

import contextlib
import gc
import json
import os
import pwd
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, cast

from kvmnet.drivers.linux import routes, vlans, wire
from kvmnet.drivers.linux.addresses import told
from kvmnet.drivers.linux.batch import SECONDS, batch_text, run_batch
from kvmnet.drivers.linux.links import told as links_told
from kvmnet.drivers.linux.resources import (
    PROTO,
    Address,
    BridgeVlan,
    Fdb,
    Link,
    Neighbour,
    ProxyNeighbour,
    Route,
    Sysctl,
    VlanMulticast,
)
from kvmnet.drivers.linux.words import Line, delete_together, in_ranges, lines_of, tap_line
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource, Wanted
from kvmnet.errors import HostCannot
from kvmnet.host import netlink
from kvmnet.host import run as host
from kvmnet.host.side import Begun
from kvmnet.records import dataclass, replace

PROC_SYS = "/proc/sys"
PAGE = 4096
BONDING = Path("/sys/module/bonding")
TOGETHER = 20
"""From this many links on, deleting them as a group is quicker (19 ms each, measured on 6.18), and making them ahead."""
GROUPS = range(27510, 27530)
"""Link groups that we use for deleting; the first that holds nothing is taken."""

ROUTES = {4: socket.AF_INET, 6: socket.AF_INET6}
PROXIES = ("-Numeric", "neigh", "show", "proxy")
NEIGHBOURS = ("-Numeric", "neigh", "show", "nud", "permanent")
IF_ANY: dict[tuple[str, ...], Callable[[], bool]] = {PROXIES: netlink.proxied, NEIGHBOURS: netlink.settled}
"""What there mostly is none of: the kernel is asked first, for ``ip neigh`` would read all links to name those of the neighbours."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines for one batch, and how many steps they make. They are worked out while the first of them are carried out, once."""

    lines: Iterable[Line]
    steps: int
    tool: str = "ip"
    """ip or bridge: both are iproute2's and read batches alike."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One file under /proc/sys to write."""

    path: str
    value: str
    key: Key


class LinuxDriver:
    """``ask``: sysctl paths that are read besides those of the intent."""

    kinds = frozenset({Link.kind, BridgeVlan.kind, VlanMulticast.kind, Fdb.kind, Address.kind, Route.kind, ProxyNeighbour.kind,
                       Neighbour.kind, Sysctl.kind})

    def __init__(self, ask: Iterable[str] = ()):
        self.ask = tuple(ask)
        self.last: dict[str, tuple[wire.Json, Link]] = {}
        """Name -> what ``ip`` told of a link at the last look, and what that means."""
        self.ahead: Mapping[Key, Line] = {}
        """Taps of the change under way that are made before their turn."""
        self.making: Begun[None] | None = None

    def unavailable(self) -> str | None:
        return host.missing("ip")

    def observe(self, intent: Wanted) -> Seen:
        with without_collection():
            return self.look(intent)

    def look(self, intent: Wanted) -> Seen:
        listed = listed_links()
        held, ways = netlink.addresses(), {v: netlink.routes(family) for v, family in ROUTES.items()}
        proxies, neighbours = read(PROXIES), read(NEIGHBOURS)
        names = {item["ifindex"]: item["ifname"] for item in listed if "ifname" in item}
        links, addresses = self.links_of(listed), told(held, names)
        seen = Seen()
        for link in links.values():
            seen.state[link.key] = link
        seen.ours |= {link.key for link in links.values() if wire.is_ours(link)}
        own = {key.name for key in seen.ours}
        for address in map(with_promotion, wire.parse_addresses(addresses, links)):
            seen.state[address.key] = address
            if address.dev in own and (not address.dynamic or is_wanted(address.key, intent)):
                seen.ours.add(address.key)
        for family, dumped in ways.items():
            for route in wire.parse_routes(routes_of(dumped, family, names), family):
                seen.state[route.key] = route
                live = route.proto in LIVE or route.lifetime is not None
                if route.proto == PROTO or (route.dev in own and (not live or is_wanted(route.key, intent))):
                    seen.ours.add(route.key)
        for proxy, proto in wire.parse_proxies(proxies):
            seen.state[proxy.key] = proxy
            if proto == PROTO or proxy.dev in own:
                seen.ours.add(proxy.key)
        for neighbour, proto in wire.parse_neighbours(neighbours):
            seen.state[neighbour.key] = neighbour
            if proto == PROTO:
                seen.ours.add(neighbour.key)
        for setting in self.observe_sysctls(intent, links):
            seen.state[setting.key] = setting
            if setting.dev in own:
                seen.ours.add(setting.key)
        if any(link.vlan_filtering for link in links.values()):
            self.look_at_vlans(seen, links, own, names)
        if any(link.type == "vxlan" for link in links.values()):
            for entry in wire.parse_fdb(ip_json("fdb", "show", tool="bridge"), links):
                seen.state[entry.key] = entry
                if entry.dev in own:
                    seen.ours.add(entry.key)
        return seen

    def look_at_vlans(self, seen: Seen, links: Mapping[str, Link], own: Set[str], names: Mapping[int, str]) -> None:
        """VLANs of ports, and how bridges handle multicast on each: two dumps, whatever their number."""
        for vlan in wire.parse_vlans(vlans.of_ports(netlink.port_vlans()), links):
            seen.state[vlan.key] = vlan
            if vlan.bridge in own:
                seen.ours.add(vlan.key)
        if any(link.mcast_vlan_snooping for link in links.values()):
            for multicast in wire.parse_multicast(vlans.of_bridges(netlink.bridge_vlans(), names), seen.state):
                seen.state[multicast.key] = multicast
                if multicast.bridge in own:
                    seen.ours.add(multicast.key)

    def links_of(self, listed: Iterable[wire.Json]) -> dict[str, Link]:
        """Links by name. What looks exactly as it did at the last look is not parsed again."""
        found: dict[str, Link] = {}
        for item in listed:
            item_before, link = self.last.get(item.get("ifname", ""), (None, None))
            if link is None or item_before != item:
                link = next(wire.parse_links((item,), uid_of), None)
            if link is not None:
                found[link.name] = link
                self.last[link.name] = item, link
        return wire.with_members(found)

    def look_up(self, asked: Wanted, seen: Seen) -> Seen:
        """The kernel settings among *asked*, without a look at the rest of the host."""
        links = {r.name: r for r in seen.state.values() if isinstance(r, Link)}
        found = {s.key: s for s in self.observe_sysctls(asked, links)}
        return Seen(dict(found), {k for k, s in found.items() if s.dev and Key(Link.kind, s.dev) in seen.ours})

    def observe_sysctls(self, intent: Wanted, links: Mapping[str, Link]) -> Iterator[Sysctl]:
        names = dict.fromkeys((*(k.name for k in intent if k.kind == Sysctl.kind), *self.ask))
        for name in names:
            value = read_sysctl(name)
            if value is not None:
                yield Sysctl(name=name, value=value, dev=wire.sysctl_device(name, links))

    def look_over(self, runs: Sequence[Sequence[Step]]) -> int | None:
        at, self.ahead = taps_ahead(runs)
        return at

    def begin_ahead(self) -> None:
        self.making = Begun(partial(run_batch, [*self.ahead.values()]))

    def commands_ahead(self) -> Sequence[Command]:
        return [Command(("ip", "-batch", "-"), batch_text(self.ahead.values()), tuple(self.ahead))]

    def end_ahead(self) -> None:
        making, self.making, self.ahead = self.making, None, {}
        if making:
            making.thread.join()

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        if self.making and any(step.key in self.ahead for step in steps):
            self.making.result()
        if needs_bonding(steps):
            with contextlib.suppress(host.ToolFailed, HostCannot):  # without it ip says what is missing
                host.run(LOAD_BONDING)
        for part in arrange(steps, free_group, self.ahead.keys()):
            match part:
                case Setting():
                    write_sysctl(part)
                    progress(1)
                case Batch():
                    run_batch(part.lines, part.tool)
                    progress(part.steps)
        for dev in dict.fromkeys(s.after.dev for s in steps if isinstance(s, Create) and isinstance(s.after, Route)
                                 and s.after.proto == wire.ADVERTISED):
            if dev:
                solicit(dev)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        found = [Command(LOAD_BONDING)] if needs_bonding(steps) else []
        for part in arrange(steps, lambda links: GROUPS[0], self.ahead.keys()):
            match part:
                case Setting():
                    found.append(Command(("sysctl", "-w", f"{part.path}={part.value}"), keys=(part.key,)))
                case Batch():
                    lines = [*part.lines]
                    found.append(Command((part.tool, "-batch", "-"), batch_text(lines), tuple(line.key for line in lines)))
        return found

LOAD_BONDING = ("modprobe", "bonding", "max_bonds=0")
"""The kernel loads the module by itself, but then with a bond0 that nobody asked for and that may have our name."""


def needs_bonding(steps: Sequence[Step]) -> bool:
    return (any(isinstance(s, Create) and isinstance(s.after, Link) and s.after.type == "bond" for s in steps)
            and not BONDING.exists())

VLAN_KINDS = frozenset({BridgeVlan.kind, VlanMulticast.kind})
BRIDGE_KINDS = VLAN_KINDS | {Fdb.kind}
"""What ``bridge`` changes, and not ``ip``."""

LIVE = frozenset({"ra", "dhcp"})
"""Route protocols of daemons and router advertisements: theirs, also on a link of ours."""


def is_wanted(key: Key, intent: Wanted) -> bool:
    """What lives by itself on a link of ours is ours only while we want it, and is never cleared away."""
    return isinstance(intent.get(key), Resource)

GroupOf = Callable[[Sequence[Link]], int | None]


def arrange(steps: Sequence[Step], group_of: GroupOf, ahead: Set[Key] = frozenset()) -> Iterator[Batch | Setting]:
    """Steps as the parts that run one after another: batches as long as can be, and settings. ``ahead``: taps that are made already."""
    for tool, of_tool in groupby(runs(steps), lambda run: tool_of(run[0].key.kind)):
        if tool:
            held = [*of_tool]
            yield Batch(lines_of_runs(held, group_of, ahead), sum(map(len, held)), tool)
        else:
            yield from (setting for run in of_tool for setting in settings_of(run[0]))


def tool_of(kind: str) -> str:
    """What makes things of a kind; '' for settings, which are files."""
    return "" if kind == Sysctl.kind else "bridge" if kind in BRIDGE_KINDS else "ip"


def taps_ahead(runs: Sequence[Sequence[Step]]) -> tuple[int | None, Mapping[Key, Line]]:
    """Lines that make taps before their turn, and before which run. What makes a tap needs nothing, and one that is no port yet and down is
    nobody's way. Only if there are many, and no link goes whose name or number one of them might take; and not beside settings:
    to write some of them means to try again until nobody makes a link (rtnl_trylock() in addrconf_fixup_forwarding(), net/ipv6/addrconf.c)."""
    taps = {s.key: tap_line(s.after) for run in runs for s in run if isinstance(s, Create) and isinstance(s.after, Link) and s.after.type == "tap"}
    if len(taps) <= TOGETHER or any(isinstance(s, Delete) and isinstance(s.before, Link) for run in runs for s in run):
        return None, {}
    turn = next(at for at, run in enumerate(runs) if any(s.key in taps for s in run))
    begin = next((at + 1 for at in reversed(range(turn)) if any(s.key.kind == Sysctl.kind for s in runs[at])), 0)
    return (begin, taps) if begin < turn else (None, {})


def lines_of_runs(held: Iterable[Sequence[Step]], group_of: GroupOf, ahead: Set[Key]) -> Iterator[Line]:
    for run in held:
        links = [s.before for s in run if isinstance(s, Delete) and isinstance(s.before, Link)]
        if len(links) > TOGETHER and (group := group_of(links)) is not None:
            yield from delete_together(links, group)
        elif run[0].key.kind in VLAN_KINDS:
            yield from in_ranges(run)
        else:
            for step in run:
                yield from islice(lines_of(step), 1 if step.key in ahead else 0, None)


def runs(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps one by one, but deletions of our links that follow each other in one list, what is done to VLANs
    likewise, and new routes that do with those first that need no gateway."""
    at = 0
    while at < len(steps):
        kind = sort_of(steps[at])
        end = at + 1
        while kind and end < len(steps) and sort_of(steps[end]) == kind:
            end += 1
        run = list(steps[at:end])
        if kind == "new route":
            run.sort(key=lambda s: bool(cast(Route, s.after).via) if not isinstance(s, Delete) else False)
        yield run
        at = end


def sort_of(step: Step) -> str:
    match step:
        case Delete(Link() as link) if wire.is_ours(link) and link.type != "bond":
            return "link of ours goes"
        case Create(Route()):
            return "new route"
        case Create(BridgeVlan()) | Create(VlanMulticast()) | Update(_, VlanMulticast()):
            return f"{step.key.kind} made"
    return ""


def settings_of(step: Step) -> Iterator[Setting]:
    """A setting is written; one that is not wanted any more stays (see Resource.permanent)."""
    match step:
        case Create(Sysctl() as after) | Update(_, Sysctl() as after):
            if after.value is not None:
                yield Setting(after.name, after.value, after.key)
        case _:
            pass


def free_group(links: Sequence[Link]) -> int | None:
    """A link group that holds nothing, or None. Nothing foreign may be deleted with ours."""
    for group in GROUPS:
        if not any("ifname" in item for item in ip_json("link", "show", "group", str(group))):
            return group
    return None


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection while many objects are made that all stay: a third of the time at 10,000 links."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def with_promotion(address: Address) -> Address:
    """A secondary address stays when the first one goes, where the kernel is told to promote it."""
    promoted = address.secondary and any(read_sysctl(f"net/ipv4/conf/{name}/promote_secondaries") == "1"
                                         for name in ("all", address.dev))
    return replace(address, secondary=None) if promoted else address


def listed_links() -> list[dict[str, Any]]:
    """Links in the words of ``ip``, which is asked only if one of them is unusual."""
    plain = links_told(netlink.links())
    return ip_json("-details", "link") if plain is None else plain


def read(words: tuple[str, ...]) -> list[dict[str, Any]]:
    """What ``ip`` tells, if there is any."""
    return ip_json(*words) if IF_ANY[words]() else []


def routes_of(dumped: Iterable[bytes], family: int, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Routes of one IP version in the words of ``ip``, which is asked only if one of them is unusual."""
    plain = routes.told(dumped, names)
    return ip_json("-Numeric", f"-{family}", "-details", "route", "show", "table", "all") if plain is None else plain


def ip_json(*words: str, tool: str = "ip") -> list[dict[str, Any]]:
    text = host.run((tool, "-json", *words), timeout=SECONDS)
    found: list[dict[str, Any]] = json.loads(text) if text.strip() else []
    return found


@lru_cache(maxsize=256)
def uid_of(user: str) -> int:
    """uid of a tap's owner, which ``ip`` shows as a name where there is one."""
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return -1


def solicit(dev: str) -> None:
    """Ask the routers on a link to advertise themselves now (RFC 4861, section 4.1).

    Best effort: a link without a usable link-local address is asked for by the kernel once it has one.
    """
    message = bytes((133, 0, 0, 0, 0, 0, 0, 0))
    with contextlib.suppress(OSError), \
            socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as out:
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        out.sendto(message, ("ff02::2", 0, 0, socket.if_nametoindex(dev)))


def read_sysctl(name: str) -> str | None:
    """Value of a kernel setting, or None when it does not exist or cannot be read."""
    try:
        setting = os.open(f"{PROC_SYS}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = [os.read(setting, PAGE)]
            while len(parts[-1]) == PAGE:
                parts.append(os.read(setting, PAGE))
        finally:
            os.close(setting)
    except OSError:
        return None
    return " ".join(b"".join(parts).decode(errors="replace").split())


def write_sysctl(setting: Setting) -> None:
    """Raises StepFailed."""
    try:
        place = os.open(f"{PROC_SYS}/{setting.path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(place, f"{setting.value}\n".encode())
        finally:
            os.close(place)
    except FileNotFoundError as error:
        raise StepFailed(setting.key, "the kernel has no such setting",
                         "is the link there, and is IPv6 (or the module) enabled?") from error
    except OSError as error:
        raise StepFailed(setting.key, f"{error.strerror}: {setting.value!r}",
                         "run as root; in a container /proc/sys may be read-only") from error
