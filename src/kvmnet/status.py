"""Everything wanted and seen at a glance, as data: what ``kvmnet status`` shows."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kvmnet.compile import pooled_classes
from kvmnet.drivers.dnsmasq.driver import leases
from kvmnet.drivers.dnsmasq.resources import DnsmasqServer
from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.sriov.resources import VFIO, Vf, pf_of, pool_of, vfs_of
from kvmnet.drivers.tc.driver import TcDriver
from kvmnet.drivers.tc.wire import Counts
from kvmnet.drivers.wireguard.driver import dump
from kvmnet.engine.driver import Seen
from kvmnet.engine.resource import Key
from kvmnet.errors import HostCannot
from kvmnet.facts.counters import Traffic, traffic
from kvmnet.facts.lldp import link_neighbours
from kvmnet.facts.model import LinkNeighbour
from kvmnet.host.macvtap import held
from kvmnet.mirrored import MirrorStatus, mirror_statuses
from kvmnet.policy.guard import REASONS
from kvmnet.policy.limits import REASONS as LIMITS
from kvmnet.policy.pooled import CLASSED
from kvmnet.queues import (
    ClassStatus,
    Queues,
    RateStatus,
    TenantStatus,
    Waiting,
    chosen_queues,
    class_statuses,
    is_limited,
    rates_of,
    shared_rates,
    tenant_statuses,
)
from kvmnet.records import asdict, dataclass, field, replace
from kvmnet.spanning import TreeStatus, apart, silent, tree_statuses
from kvmnet.spec.disciplines import queued_nics
from kvmnet.spec.limits import effective

if TYPE_CHECKING:
    from kvmnet.api import Host
    from kvmnet.drivers.nftables.driver import NftablesDriver
    from kvmnet.engine.plan import Step
    from kvmnet.modes.model import NicOnNetwork
    from kvmnet.modes.segment import Segment
    from kvmnet.planned import Planned
    from kvmnet.spec.models import Spec
from kvmnet.spec import ways

HOUR = 3600
OF_LIMITS = frozenset(LIMITS.values())


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    name: str
    device: str
    state: str
    mtu: int
    addresses: tuple[str, ...]
    members: Mapping[str, str]
    """NIC -> up, down or missing; of a bond its members, else the NIC itself."""
    neighbours: Mapping[str, tuple[LinkNeighbour, ...]]
    """NIC -> who is at its other end, where lldpd runs."""
    vfs: str = ""
    """VFs that it has, of how many, and its NUMA node; '' for a NIC that is not split."""
    queues: Mapping[str, Waiting] = field(default_factory=dict)
    """NIC -> how its frames wait, where the document says it (qdisc)."""


@dataclass(frozen=True, slots=True)
class TunnelPeerStatus:
    """A host at the far end of a tunnel."""

    name: str
    endpoint: str
    """Where it is now; '' while nobody knows."""
    handshake: int | None
    """Seconds since the last handshake; None for never. One is made every two minutes while packets pass."""
    received: int
    sent: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    uplink: str
    device: str
    key: str
    """This host's public key, for the documents of the others; '' while there is none."""
    port: int
    peers: tuple[TunnelPeerStatus, ...]


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    name: str
    mode: str
    uplink: str
    bridge: str
    mtu: int
    addresses: tuple[str, ...]
    dhcp: str
    """serving, down, or none."""
    leases: int
    state: str
    vrf: str
    """Routing domain that it is in; '' for the host's own."""
    overlay: str
    """How it stretches to other hosts; '' when it does not."""
    rates: Mapping[str, RateStatus] = field(default_factory=dict)
    """in, out -> how its guests together are limited in that direction."""
    classes: tuple[ClassStatus, ...] = ()
    """Parts of rate.out."""


@dataclass(frozen=True, slots=True)
class NicStatus:
    guest: str
    nic: str
    network: str
    model: str
    tap: str
    """Its device on the host; of a VF ``ens1f0 VF 3``."""
    mac: str
    ip: str
    ip6: str
    lease: str
    """leased, or '' where nothing was asked for yet."""
    sends: float
    """Bits per second from the guest."""
    receives: float
    """Bits per second to the guest."""
    refused: Mapping[str, int]
    """Frames of the last day that the guard, a group or a limit dropped, by reason."""
    limits: Mapping[str, int]
    """What it may cause at most, with what follows from it (bytes, neighbours): packets, frames, bytes or flows a second;
    concurrent: flows."""
    limited: int
    """Frames of the last day that were over one of its limits."""
    backend: str
    """Who moves its packets, read back from QEMU: vhost (the kernel), qemu; '' for other models, and while the guest has no
    driver running or does not run."""
    state: str
    """ok, idle (nobody opened it), down, detached, missing."""
    rates: Mapping[str, RateStatus] = field(default_factory=dict)
    """in, out -> how that direction is limited; what is not is not there."""


@dataclass(frozen=True, slots=True)
class RuleStatus:
    group: str
    """The group, or the tenant of a crossing."""
    direction: str
    """ingress, egress or allow."""
    position: int
    """Place in the document's list, from 0; -1 for an egress that is not limited."""
    packets: int
    """Packets that began a flow, since the rules last changed."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    revision: int
    source: str
    applied: str
    by: str
    unconfirmed: float | None
    """Seconds left to confirm, or None."""
    drift: tuple[str, ...]
    """What the host differs in from the document."""
    notes: tuple[str, ...]
    uplinks: tuple[UplinkStatus, ...]
    networks: tuple[NetworkStatus, ...]
    nics: tuple[NicStatus, ...]
    guests: Mapping[str, str]
    rules: tuple[RuleStatus, ...] = ()
    """What the rules of groups and tenants let in."""
    tunnels: tuple[TunnelStatus, ...] = ()
    mirrors: tuple[MirrorStatus, ...] = ()
    tenants: tuple[TenantStatus, ...] = ()
    trees: tuple[TreeStatus, ...] = ()
    """Spanning trees that kvmnet speaks."""
    silent: tuple[str, ...] = ()
    """Bridges whose spanning tree nobody speaks any more."""

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, **asdict(self)}


def read_queues(spec: Spec) -> Queues | None:
    """What queues did; None where nothing is limited."""
    return None if not is_limited(spec) else Queues(*TcDriver().queue_counts(), time.monotonic())


def status(host: Host) -> Status | None:
    """The state of *host*, or None when no document is applied."""
    document = host.current()
    if document is None:
        return None
    last = next(r for r in host.history() if r.number == host.revision)
    before = read_queues(document.spec)
    now = traffic()
    steps: Sequence[Step] = ()
    segments: Mapping[str, Segment] = {}
    planned: Planned | None = None
    try:
        planned = host.plan_document(document, adopt=True)
    except HostCannot as wrong:  # a NIC that is gone, a tool that was removed: what is left is shown all the same
        seen = host.engine.observe({})
        notes: tuple[str, ...] = (f"this host cannot be compared with the document: {wrong}",)
    else:
        assert planned.compiled is not None
        seen, steps, notes, segments = planned.seen, planned.steps, planned.notes, planned.compiled.segments
    dropped = refused(host)
    after = read_queues(document.spec)
    queues = after.roots if after else {}
    classes = class_statuses(segments, document.spec, seen, before, after)
    pooled = pooled_classes(document.spec, segments, {CLASSED: ""})    # whether they are there is seen
    return Status(
        revision=last.number, source=last.source, applied=last.created, by=last.who,
        unconfirmed=host.unconfirmed(),
        drift=tuple(f"{type(s).__name__.lower()} {s.key}" for s in steps), notes=notes,
        uplinks=uplink_statuses(document.spec, seen, now, link_neighbours(host.paths), queues),
        networks=tuple(network_status(host, s, seen, now, shared_rates(s, document.spec, seen, queues),
                                      classes.get(s.name, ())) for s in segments.values()),
        nics=tuple(nic for s in segments.values() for nic in nic_statuses(host, s, seen, now, dropped, after, pooled)),
        guests={row.name: row.state for row in host.guests()},
        tunnels=tunnel_statuses(document.spec),
        rules=rule_statuses(host) if document.spec.groups or document.spec.tenants else (),
        tenants=tuple(tenant_statuses(document.spec, segments, seen, now, queues)) if document.spec.tenants else (),
        trees=tree_statuses(host.paths, seen.state), silent=tuple(silent(seen.state)),
        mirrors=mirror_statuses(host.paths.run, document.spec, planned.compiled, seen, partial(link_state, seen=seen, now=now))
        if document.spec.mirrors and planned and planned.compiled else ())


def uplink_statuses(spec: Spec, seen: Seen, now: Mapping[str, Traffic],
                    heard: Mapping[str, tuple[LinkNeighbour, ...]], queues: Mapping[str, Counts]) -> tuple[UplinkStatus, ...]:
    found = []
    for name, uplink in spec.uplinks.items():
        device = ways.device(name, spec)
        nics = uplink.members or tuple(filter(None, (uplink.device if not uplink.on else None,)))
        link = seen.state.get(Key("link", device))
        found.append(UplinkStatus(
            name, device, link_state(device, seen, now), link.mtu or 0 if isinstance(link, Link) else 0,
            addresses_on(device, seen), {nic: link_state(nic, seen, now) for nic in nics},
            {nic: heard[nic] for nic in nics if nic in heard}, split(device, seen),
            chosen_queues(queued_nics(uplink), seen, queues) if uplink.qdisc else {}))
    return tuple(found)


def tunnel_statuses(spec: Spec) -> tuple[TunnelStatus, ...]:
    """Every tunnel with how its peers do; asked only where the document has one."""
    named = {name: u.wireguard for name, u in spec.uplinks.items() if u.wireguard}
    try:
        found = dump() if named else {}
    except HostCannot:
        found = {}
    out = []
    for name, wireguard in named.items():
        device = ways.device(name, spec)
        seen = found.get(device)
        peers = []
        for peer_name, peer in wireguard.peers.items():
            there = seen.peers.get(peer.key) if seen else None
            ago = max(0, int(time.time()) - there.handshake) if there and there.handshake else None
            peers.append(TunnelPeerStatus(peer_name, there.endpoint if there else "", ago, there.received if there else 0,
                                          there.sent if there else 0))
        out.append(TunnelStatus(name, device, seen.public if seen else "", wireguard.port, tuple(peers)))
    return tuple(out)


def link_state(device: str, seen: Seen, now: Mapping[str, Traffic]) -> str:
    """up, down or missing."""
    if not isinstance(seen.state.get(Key("link", device)), Link):
        return "missing"
    return "up" if device in now and now[device].carrier else "down"


def split(device: str, seen: Seen) -> str:
    """``4 VFs of 64, 2 for guests, NUMA node 1``."""
    pool, pf = pool_of(seen.state, device), pf_of(seen.state, device)
    if pool is None or pf is None:
        return ""
    given = sum(vf.driver == VFIO for vf in vfs_of(seen.state, device).values())
    words = [f"{pool.count} VFs" + (f" of {pf.total}" if pf.total else "")]
    words += [f"{given} for guests"] if pf.pci else []
    words += [f"NUMA node {pf.numa}"] if (pf.numa if pf.numa is not None else -1) >= 0 else []
    return ", ".join(words)


def addresses_on(device: str, seen: Seen) -> tuple[str, ...]:
    return tuple(r.name.partition(" ")[2] for r in seen.state.values()
                 if isinstance(r, Address) and r.dev == device)


def network_status(host: Host, segment: Segment, seen: Seen, now: Mapping[str, Traffic],
                   rates: Mapping[str, RateStatus], classes: tuple[ClassStatus, ...]) -> NetworkStatus:
    link = seen.state.get(Key("link", segment.floor or segment.way_out))
    server = seen.state.get(Key("dnsmasq", segment.name))
    dhcp = "none" if server is None else "serving" if isinstance(server, DnsmasqServer) and server.running else "down"
    state = "missing" if not isinstance(link, Link) else "up" if link.up else "down"
    return NetworkStatus(segment.name, segment.network.mode.value, segment.network.uplink or "", segment.floor,
                         segment.mtu, () if segment.vlan and segment.network.vlan else addresses_on(segment.bridge, seen), dhcp,
                         len(live_leases(host, segment)), state, segment.network.vrf or "", overlay_words(segment), rates, classes)


def overlay_words(segment: Segment) -> str:
    vxlan = segment.network.vxlan
    if vxlan is None:
        return ""
    return f"vni {vxlan.vni} with {', '.join((*([vxlan.group] if vxlan.group else []), *vxlan.peers))}"


def live_leases(host: Host, segment: Segment) -> set[str]:
    """Addresses that are lent now."""
    moment = time.time()
    return {lease.ip for lease in leases(host.paths, segment.name)
            if lease.expiry == 0 or lease.expiry > moment}


def nic_statuses(host: Host, segment: Segment, seen: Seen, now: Mapping[str, Traffic],
                 dropped: Mapping[str, Mapping[int, int]], queues: Queues | None, pooled: Mapping[str, str]) -> list[NicStatus]:
    lent = live_leases(host, segment)
    if segment.parent:    # what the guest sends leaves by its macvtap; the carrier is the parent's
        open_ = held()
        now = {d: replace(t, rx_rate=t.tx_rate, tx_rate=t.rx_rate, carrier=d in open_) for d, t in now.items()}
    return [NicStatus(
        guest=nic.vm, nic=nic.nic, network=segment.name, model="vf" if nic.vf else nic.declared.model.value,
        tap=nic.vf.replace(" ", " VF ") or nic.tap, mac=nic.mac,
        ip=nic.ip, ip6=nic.ip6, lease="leased" if {nic.ip, nic.ip6} & lent else "",
        sends=now[nic.tap].rx_rate if nic.tap in now else 0.0,
        receives=now[nic.tap].tx_rate if nic.tap in now else 0.0,
        refused={REASONS[number]: count for number, count in sorted(dropped.get(nic.tap, {}).items())},
        limits=dict(effective(nic.declared.limits, segment.network.limits, segment.mtu)[0]),
        limited=sum(count for number, count in dropped.get(nic.tap, {}).items() if number in OF_LIMITS),
        backend=backend_of(nic, seen), state=nic_state(nic, segment, seen, now),
        rates=rates_of(nic, segment, seen, queues, pooled)) for nic in segment.nics]


def backend_of(nic: NicOnNetwork, seen: Seen) -> str:
    card = seen.state.get(Key(GuestNic.kind, f"{nic.vm}/{nic.nic}"))
    return card.backend or "" if isinstance(card, GuestNic) else ""


def nic_state(nic: NicOnNetwork, segment: Segment, seen: Seen, now: Mapping[str, Traffic]) -> str:
    if nic.vf:
        return vf_state(nic, seen)
    link = seen.state.get(Key("link", nic.tap))
    if not isinstance(link, Link):
        return "missing"
    bridge = "" if nic.declared.receives == "copies" else segment.bridge
    if (link.parent != segment.parent) if segment.parent else (link.master != bridge):
        return "detached"
    if not (Key("open-port", nic.tap) in seen.state if segment.parent else link.up):
        return "down"
    return "ok" if nic.tap in now and now[nic.tap].carrier else "idle"


def vf_state(nic: NicOnNetwork, seen: Seen) -> str:
    vf = seen.state.get(Key(Vf.kind, nic.vf))
    if not isinstance(vf, Vf):
        return "missing"
    if vf.carrier == "disable" and nic.declared.link != "down":
        return "down"
    return "ok" if vf.driver == VFIO or not vf.pci else "detached"


def refused(host: Host) -> Mapping[str, Mapping[int, int]]:
    """Tap -> reason -> frames that the guard dropped in the last day."""
    driver = nftables(host)
    return driver.dropped() if driver else {}


def rule_statuses(host: Host) -> tuple[RuleStatus, ...]:
    driver = nftables(host)
    found = []
    for name, (packets, octets) in (driver.passed() if driver else {}).items():
        group, direction, position = (*name.split(), "-1")[:3]
        found.append(RuleStatus(group, direction, int(position), packets, octets))
    return tuple(found)


def nftables(host: Host) -> NftablesDriver | None:
    from kvmnet.drivers.nftables.driver import NftablesDriver
    return next((d for d in host.engine.dispatch.drivers
                 if isinstance(d, NftablesDriver) and d.unavailable() is None), None)


def problems(status: Status) -> Sequence[str]:
    """What an operator should look at first."""
    found = [f"{n.guest}/{n.nic} is {n.state}" for n in status.nics if n.state in ("missing", "detached", "down")]
    found += [f"network {n.name}: DHCP and DNS are down" for n in status.networks if n.dhcp == "down"]
    found += [f"uplink {u.name} ({u.device}) is {u.state}" for u in status.uplinks if u.state != "up"]
    found += [f"uplink {u.name}: {nic} is {state}" for u in status.uplinks for nic, state in u.members.items()
              if state != "up" and nic != u.device]
    found += [f"mirror {m.name} is {m.state}" for m in status.mirrors if m.state == "incomplete"]
    found += [f"mirror {m.name} loses its copies: {m.trouble}" for m in status.mirrors if m.trouble]
    found += [f"no neighbour of bridge {name} is of its MSTP region: name, revision or the VLANs of an instance differ from the switches'"
              for name in apart(status.trees)]
    found += [f"nobody speaks for the spanning tree of bridge {name}: its ports stay as they are" for name in status.silent]
    found += [f"guest {name} died" for name, state in status.guests.items() if state == "died"]
    return found
