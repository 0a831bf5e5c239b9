"""Probes: temporary guests of a network, on the same kind of port behind the same guard.

A probe is a tap that this process holds, so it disappears with the process, whatever ends it. What
stands elsewhere, its guard's elements and its reservation, is taken away at the end, and by ``sweep``
when the end did not come: it is known by its name.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2s

from kvmnet.check.model import Subject
from kvmnet.check.station import Station
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.drivers.linux.batch import run_batch
from kvmnet.drivers.linux.driver import LinuxDriver, ip_json
from kvmnet.drivers.linux.resources import PROTO, Link, Route
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.macvtap.driver import MacvtapDriver
from kvmnet.drivers.macvtap.resources import Gate, OpenPort
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import GuardHook, NicGuard, NicLimits
from kvmnet.engine.driver import Driver, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step
from kvmnet.engine.resource import Key, Resource
from kvmnet.errors import KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.host.interrupts import held_off
from kvmnet.host.packets import Tap
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, run
from kvmnet.modes.macvtap import port
from kvmnet.modes.segment import Segment
from kvmnet.policy.egress import TABLE as EGRESS
from kvmnet.policy.guard import TABLE, nic_guard
from kvmnet.policy.limits import known_station
from kvmnet.records import dataclass
from kvmnet.spec import pools
from kvmnet.spec.names import TAP
from kvmnet.spec.pools import Family

PORT = TAP + "~p"
"""Beginning of a probe's device name. No NIC has it: a name with a tilde has five letters before it."""
HOSTNAME = "kvmnet-probe-"
"""Beginning of a probe's DHCP name."""
PORT_MAC = "fe:6b:76:6d:"
"""MACs of the ports themselves: high, so that a bridge without a MAC of its own does not take one."""
ROUTE_METRIC = 27510
"""Metric of routes to probes, by which they are known."""
DAD_TIMEOUT = 4.0
"""Seconds: a random delay of up to 1 s, one probe, 1 s of silence, and some."""
STP_TIMEOUT = 65.0
"""Seconds: twice the longest forward delay (30 s), and some."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A temporary guest: its device, and the addresses that nobody has."""

    segment: Segment
    number: int
    mac: str
    ip: str
    """'' when the network has none to give."""
    ip6: str
    isolated: bool

    @property
    def device(self) -> str:
        return f"{PORT}{self.number}"

    @property
    def guard(self) -> NicGuard:
        s = self.segment
        protected = (s.address, s.address6, s.network.gateway, s.network.gateway6)
        return nic_guard(self.device, "full", [self.mac], [a for a in (self.ip, self.ip6) if a],
                         bridge=s.domain, protected=[a for a in protected if a], table=EGRESS if s.parent else TABLE)

    @property
    def elements(self) -> list[Resource]:
        """What stands in the guard's table for it."""
        return [self.guard, *known_station(self.device, self.mac, self.segment)]

    @property
    def port(self) -> list[Resource]:
        """Its macvtap; nothing on a bridge, where the port is this process's own tap."""
        return port(self.device, self.mac, self.segment, f"kvmnet probe {self.number}") if self.segment.parent else []

    @property
    def reservation(self) -> Reservation:
        return Reservation(name=f"{self.segment.name} {self.mac}", server=self.segment.name,
                           hostname=f"{HOSTNAME}{self.number}", ip=self.ip, ip6=self.ip6, tags=())


def design(subject: Subject, places: Sequence[Segment]) -> list[Probe]:
    """A probe for each of *places* (a network may stand there several times), with free addresses. The third
    of a network is never isolated: it stands where the host does elsewhere."""
    probes: list[Probe] = []
    for number, segment in enumerate(places, 1):
        beside = [p for p in probes if p.segment.name == segment.name]
        ip, ip6 = (free_address(subject, segment, f, [p.ip for p in beside] + [p.ip6 for p in beside])
                   for f in Family)
        probes.append(Probe(segment, number, free_mac(subject, segment.name, number), ip, ip6,
                            segment.network.isolated_ports and len(beside) < 2))
    return probes


def free_address(subject: Subject, segment: Segment, family: Family, taken: Iterable[str]) -> str:
    """An address of the network that nobody has, the highest of its pool; '' when there is none."""
    pool = pools.pool(segment.network, family,
                      [e for nic in segment.nics for e in nic.prefixes])
    if pool is None or (family is Family.IPV6 and segment.network.ra == "autoconf" and not segment.address6):
        return ""
    used = {pools.number(a) for a in taken if a and (":" in a) == (family is Family.IPV6)}
    for (_, _, network), got in subject.allocations.items():
        if network == segment.name and (address := got.ip if family is Family.IPV4 else got.ip6):
            used.add(pools.number(address))
    for nic in segment.nics:
        if address := nic.ip if family is Family.IPV4 else nic.ip6:
            used.add(pools.number(address))
    host = segment.address if family is Family.IPV4 else segment.address6
    if host:
        used.add(pools.number(host))
    for value in range(pool.last, max(pool.first, pool.last - len(used) - 1000) - 1, -1):
        if value in pool and value not in used:
            return pools.address(value, family)
    return ""


def free_mac(subject: Subject, network: str, number: int) -> str:
    """A locally administered MAC for a probe, that no NIC has."""
    used = {m for s in subject.segments.values() for nic in s.nics
            for m in (nic.mac, *nic.declared.extra.macs)}
    attempt = 0
    while True:
        digest = blake2s(f"{network} {number} {attempt}".encode(), digest_size=3, person=b"probe").digest()
        mac = ":".join(("02:6b:76", *(f"{b:02x}" for b in digest)))
        if mac not in used:
            return mac
        attempt += 1


# -- placing ---------------------------------------------------------------------------------------

@contextmanager
def placed(probes: Sequence[Probe], paths: Paths) -> Iterator[list[Station]]:
    """The probes as stations on their networks, as long as the body; the first one of a network with a
    reservation, if that has a server. Raises KvmnetError, HostCannot."""
    nft, dnsmasq = NftablesDriver(paths), DnsmasqDriver(paths)
    with ExitStack() as stack:
        guard_steps: list[Step] = [Create(r) for p in probes for r in p.elements]
        firsts = {p.segment.name: p for p in reversed(probes)}.values()
        lent = [p.reservation for p in firsts if p.ip or p.ip6]
        stack.callback(take_away, nft, dnsmasq, probes, lent)
        try:
            sweep(paths)
            nft.observe({})
            nft.apply(guard_steps, lambda done: None)
            served = servers(dnsmasq)
            dnsmasq.apply([Create(r) for r in lent if r.server in served], lambda done: None)
            make_ports([r for p in probes for r in p.port], nft, paths)
            taps = [stack.enter_context(Tap.hold_macvtap(p.device) if p.segment.parent else Tap.make(p.device))
                    for p in probes]
            lead_to(probes)
            bridged = [p for p in probes if not p.segment.parent]
            attach(bridged)
            await_forwarding([p.device for p in bridged])
            await_addresses({p.segment.bridge for p in probes if p.segment.address6})
        except (ToolFailed, StepFailed, TimeoutError) as error:
            raise KvmnetError(f"cannot place a probe: {error}", getattr(error, "hint", "")) from error
        yield [stack.enter_context(Station(tap, p.mac, p.ip, p.ip6, "probe"))
               for tap, p in zip(taps, probes, strict=True)]


def make_ports(wanted: Sequence[Resource], nft: NftablesDriver, paths: Paths) -> None:
    """Macvtaps in the order of a plan: links, gates, hooks, and then up."""
    drivers: tuple[Driver, ...] = (LinuxDriver(), MacvtapDriver(paths), nft)
    of_kind = {kind: d for d in drivers for kind in d.kinds}
    for kind in (Link.kind, Gate.kind, GuardHook.kind, OpenPort.kind):
        if steps := [Create(r) for r in wanted if r.kind == kind]:
            of_kind[kind].apply(steps, lambda done: None)


def lead_to(probes: Sequence[Probe]) -> None:
    """Routes of the host to probes beside its macvlan: as to guests, whose prefix may be on the parent too."""
    lines = [f"route replace {address} dev {p.segment.bridge} proto {PROTO} metric {ROUTE_METRIC}"
             for p in probes if p.segment.parent
             for address, own in ((p.ip, p.segment.address), (p.ip6, p.segment.address6)) if address and own]
    if lines:
        run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def servers(dnsmasq: DnsmasqDriver) -> set[str | None]:
    """Networks that have a server."""
    return {r.name for r in dnsmasq.observe({}).state.values() if isinstance(r, DnsmasqServer)}


def attach(probes: Sequence[Probe]) -> None:
    """Make the taps ports of their bridges, as the compiler makes those of NICs."""
    lines = []
    for p in probes:
        lines.append(f"link set dev {p.device} address {PORT_MAC}{p.number >> 8:02x}:{p.number & 255:02x} addrgenmode none mtu {p.segment.mtu}")
        lines.append(f"link set dev {p.device} master {p.segment.bridge} up")
        if p.isolated:
            lines.append(f"link set dev {p.device} type bridge_slave isolated on")
    run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
    if vlans := [f"vlan add dev {p.device} vid {p.segment.vlan} pvid untagged\n" for p in probes if p.segment.vlan]:
        run(["bridge", "-batch", "-"], stdin="".join(vlans))


def await_forwarding(devices: Sequence[str]) -> None:
    """Until frames pass these ports: a bridge hears of a carrier by a work queue, and with STP a port
    listens and learns before. What is sent sooner is lost, and not by the guard. Raises TimeoutError."""
    wait_until(lambda: all_forward(devices), STP_TIMEOUT, 0.02)


def all_forward(devices: Sequence[str]) -> bool:
    listed = json.loads(run(["ip", "-j", "-d", "link", "show", "type", "tun"]))
    states = {link["ifname"]: link["linkinfo"].get("info_slave_data", {}).get("state") for link in listed if link}
    return all(states.get(d) == "forwarding" for d in devices)


def await_addresses(bridges: set[str]) -> None:
    """Until the host can speak IPv6 on *bridges*: one that had no carrier begins only now to make sure
    that its link-local address is its own (RFC 4862, 5.4), and finds no neighbours before."""
    def ready() -> bool:
        listed = json.loads(run(["ip", "-j", "-6", "addr", "show", "scope", "link", "-tentative"]))
        return bridges <= {link["ifname"] for link in listed if link.get("addr_info")}

    with suppress(TimeoutError):    # the claims about IPv6 will say it
        wait_until(ready, DAD_TIMEOUT, 0.03)


def take_away(nft: NftablesDriver, dnsmasq: DnsmasqDriver, probes: Sequence[Probe],
              lent: Sequence[Reservation]) -> None:
    """Take away guards and reservations of probes that were placed, or half placed."""
    try:
        with held_off():
            gone = {r.key for p in probes for r in (*p.elements, *p.port)}
            remove(nft, dnsmasq, gone, {r.key for r in lent})
    except (ToolFailed, StepFailed) as error:
        raise KvmnetError(f"a probe could not be taken away: {error}", "kvmnet apply takes away what is left") from error


def sweep(paths: Paths) -> int:
    """Take away what a check left that was killed; how many things that were."""
    nft, dnsmasq = NftablesDriver(paths), DnsmasqDriver(paths)
    guards = {k for k in nft.observe({}).state if is_probes(k, {})}
    state = dnsmasq.observe({}).state
    return remove(nft, dnsmasq, guards, {k for k in state if is_probes(k, state)})


def is_probes(key: Key, state: Mapping[Key, object]) -> bool:
    """Whether a resource belongs to a probe, by its name alone."""
    if key.kind in (NicGuard.kind, NicLimits.kind, GuardHook.kind):
        return key.name.startswith(PORT)
    found = state.get(key)
    return isinstance(found, Reservation) and (found.hostname or "").startswith(HOSTNAME)


def remove(nft: NftablesDriver, dnsmasq: DnsmasqDriver, guards: set[Key], lent: set[Key]) -> int:
    left = leftover_ports()
    if left:
        run_batch([*(Line(("link", "del", "dev", device), Key(Link.kind, device), gone=True) for device in left),
                   *(Line(("route", "del", r["dst"], "dev", r["dev"], "metric", str(ROUTE_METRIC)),
                          Key(Route.kind, r["dst"]), gone=True) for r in leftover_routes())])
    seen: Seen = nft.observe({})
    steps: list[Step] = [Delete(r) for k, r in seen.state.items() if k in guards]
    if steps:
        nft.apply(steps, lambda done: None)
    gone: list[Step] = [Delete(r) for k, r in dnsmasq.observe({}).state.items() if k in lent]
    if gone:
        dnsmasq.apply(gone, lambda done: None)
    return len(steps) + len(gone) + len(left)


def leftover_ports() -> list[str]:
    """Macvtaps of probes: unlike taps they outlive the process."""
    return [i["ifname"] for i in ip_json("link", "show", "type", "macvtap") if i["ifname"].startswith(PORT)]


def leftover_routes() -> list[Mapping[str, str]]:
    return [r for family in ("-4", "-6") for r in ip_json(family, "route", "show") if r.get("metric") == ROUTE_METRIC]


@contextmanager
def drops_kept(paths: Paths, taps: Iterable[str]) -> Iterator[None]:
    """What the guard counted as dropped of *taps* is afterwards as before, and nothing of probes: frames
    that were meant to be dropped are no news for the operator."""
    nft, ours = NftablesDriver(paths), set(taps)
    before = nft.drops()
    try:
        yield
    finally:
        lines = []
        for table, now in nft.drops().items():
            was = before.get(table, {})
            wrong = [t for t in now if t.startswith(PORT) or (t in ours and now[t] != was.get(t, {}))]
            lines += [line for t in wrong for line in nft.drop_lines("delete", table, t, now[t])]
            lines += [line for t in wrong if t in ours for line in nft.drop_lines("add", table, t, was.get(t, {}))]
        with suppress(ToolFailed):    # an element ran out meanwhile; all of them do within a day
            run(["nft", "-f", "-"], stdin="\n".join((*lines, "")))
