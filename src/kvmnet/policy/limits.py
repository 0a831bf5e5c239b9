"""Abuse limits as chains in the guard's tables; a NIC's own are set elements that bear them. Pure.

Frames that the guest sends are counted where its guard has judged them, before the bridge learns from them and before
connection tracking: forged frames use up nobody's budget, and what is over a limit costs no entry in any table of the
kernel. What comes to a guest is counted where it leaves the bridge, after groups. Flows are counted in prerouting, behind
connection tracking: a packet that is dropped there leaves no flow behind (it would be confirmed in postrouting).
Macvtaps are the mirror image: ``policy/egress.py`` turns the sides of these texts round.

Only limits that some NIC has are in the text, so the others cost nothing.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from string import Template

from kvmnet.drivers.nftables.limits import SETS, STATIONS, WATCHED, words
from kvmnet.drivers.nftables.resources import NicLimits
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.policy.groups import ALWAYS, Tracking
from kvmnet.policy.guard import TABLE, zone_of
from kvmnet.policy.marks import BEGINS, EXCESS, GUEST, NIC
from kvmnet.records import dataclass
from kvmnet.spec.limits import FLOWS, RECEIVED, SENT, effective
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Network

REASONS = {
    "packets": 40, "bytes": 41, "broadcast": 42, "multicast": 43, "unknown": 44, "neighbours": 45, "connections": 46,
    "concurrent": 47, "receive_packets": 48, "receive_bytes": 49, "syn": 50,
}
"""Limit -> number of its reason in the ``dropped`` set."""
NEIGHBOURS = ("meta protocol arp", "meta l4proto 58 @th,0,8 133-136")
"""ARP and ND, tagged or not."""


@dataclass(frozen=True, slots=True)
class Limiting:
    """What the limits of a document add to one of the guard's tables."""

    table: str
    members: tuple[NicLimits, ...]
    routers: frozenset[tuple[int, str]] = frozenset()
    """(network, MAC) of the host's ends of networks on which unknown MACs are limited."""

    def text(self, tracking: Tracking | None = None) -> str:
        """Sets and chains behind the guard's. ``tracking``: who knows the flows, on bridges."""
        used = {name for name in SETS for member in self.members if getattr(member, name)}
        lines = [*set_lines(used if tracking is Tracking.BRIDGE else used - {"concurrent"}, self.routers)]
        if used & SENT:
            lines += sending(used)
        if used & RECEIVED:
            lines += [*(RECEIPTS if self.table == TABLE else ()), *receiving(used)]
        if tracking is not None and used & FLOWS:
            lines += beginning(used, tracking)
        return "".join(f"{line}\n" for line in lines)

    def host_text(self, tracking: Tracking, numbers: Mapping[str, int]) -> str:
        """What the host's own table adds where bridges cannot see flows. ``numbers``: tap -> its number in marks."""
        if tracking is not Tracking.NETFILTER or not any(m.connections for m in self.members):
            return ""
        counted = sorted((numbers[m.name], m.concurrent, m.connections or 0, m.burst or 1) for m in self.members if m.concurrent)
        sets = ""
        if counted:
            sets = COUNTED.format(many=", ".join(f"{n:#010x}{words('concurrent', most, 1)}" for n, most, _, _ in counted),
                                  hurried=", ".join(f"{n:#010x}{words('connections', rate, burst)}" for n, _, rate, burst in counted))
        return sets + NOTED.format(begins=BEGINS, count=COUNT.format(nic=NIC, excess=EXCESS) if counted else "")


COUNTED = """\
set l_concurrent {{
typeof meta mark
ct count over 1
elements = {{ {many} }}
}}
set l_hurried {{
typeof meta mark
limit rate over 1/second burst 1 packets
elements = {{ {hurried} }}
}}
"""
COUNT = """\
meta mark & {nic:#010x} @l_hurried meta mark set meta mark | {excess:#010x} accept
meta mark & {nic:#010x} @l_concurrent meta mark set meta mark | {excess:#010x}
"""
NOTED = """\
chain beginnings {{
type filter hook prerouting priority -145; policy accept;
iifname @tracked ct state new ct status ! confirmed goto begins
}}
chain begins {{
meta mark set meta mark | {begins:#010x}
{count}}}
"""
"""Bridge netfilter: inet prerouting marks and counts what begins a flow, the bridge refuses it and tells whose it was."""


def set_lines(used: AbstractSet[str], routers: Iterable[tuple[int, str]]) -> Iterator[str]:
    for name, found in SETS.items():
        if name in used:
            bears = "ct count over 1" if name == "concurrent" else (
                "limit rate over 1 bytes/second burst 1 bytes" if name.endswith("bytes") else "limit rate over 1/second burst 1 packets")
            yield f"set {found} {{ typeof {'oifname' if name in RECEIVED else 'iifname'}; {bears}; }}"
    if "unknown" in used:
        yield f"set {WATCHED} {{ typeof iifname; }}"
        yield f"set {STATIONS} {{ typeof meta mark . ether daddr; }}"
        listed = ", ".join(f"{zone:#010x} . {mac}" for zone, mac in sorted(routers))
        yield "set l_routers { typeof meta mark . ether daddr; " + (f"elements = {{ {listed} }}; " if listed else "") + "}"


def sending(used: AbstractSet[str]) -> Iterator[str]:
    """The chain to which the guard goes with what it lets pass."""
    yield "chain budget {"
    if "neighbours" in used:
        yield from (f"    {kind} goto budget_neighbours" for kind in NEIGHBOURS)
    for name in ("packets", "bytes"):
        if name in used:
            yield over(name)
    if used & {"broadcast", "multicast", "unknown"}:
        yield "    @ll,7,1 0 goto budget_unicast" if "unknown" in used else "    @ll,7,1 0 accept"
        for name, which in (("broadcast", "ether daddr ff:ff:ff:ff:ff:ff"), ("multicast", "ether daddr != ff:ff:ff:ff:ff:ff")):
            if name in used:
                yield over(name, which)
    yield from ("    accept", "}")
    if "unknown" in used:
        yield UNICAST.substitute(over=over("unknown").strip(), guest=f"{GUEST:#010x}", watched=WATCHED, stations=STATIONS)
    if "neighbours" in used:
        yield from ("chain budget_neighbours {", over("neighbours"), "    accept", "}")


UNICAST = Template("""\
chain budget_unicast {
    iifname != @${watched} accept
    meta mark set iifname map @zone
    meta mark . ether daddr @${stations} meta mark set ${guest} accept
    meta mark . ether daddr @l_routers meta mark set ${guest} accept
    meta mark set ${guest}
    ${over}
    accept
}""")
"""nft cannot ask a bridge's FDB, so a MAC is known when the document has it."""


RECEIPT = "receipt"
RECEIPTS = ("chain receipts {", "    type filter hook postrouting priority -10; policy accept;", f'    oifname "kvt-*" goto {RECEIPT}', "}")
"""What leaves a bridge by a guest's port, whoever sent it. Macvtaps have a hook of their own each."""


def receiving(used: AbstractSet[str]) -> Iterator[str]:
    """What comes to a guest."""
    yield f"chain {RECEIPT} {{"
    yield from (f"    {kind} accept" for kind in NEIGHBOURS)
    if "syn" in used:
        yield over("syn", "tcp flags & (syn | ack) == syn")
    for name in ("receive_packets", "receive_bytes"):
        if name in used:
            yield over(name)
    yield from ("    accept", "}", "chain withheld {", "    update @dropped { oifname . meta mark }", "    drop", "}")


OLD = {Tracking.BRIDGE: ("ct status confirmed accept", "ct state established,related accept"),
       Tracking.NETFILTER: (f"meta mark & {BEGINS:#010x} == 0 accept",)}
"""What begins no flow. A flow without a reply is "new" for each of its packets; it is in the table from its first on."""
EXCEEDED = f"    meta mark & {EXCESS:#010x} == {EXCESS:#010x} meta mark set {REASONS['concurrent']} goto refuse"


def beginning(used: AbstractSet[str], tracking: Tracking) -> Iterator[str]:
    """Where it is known that a packet begins a flow, once for each: in forward a packet that is flooded comes by for every port.
    Bridge netfilter has asked inet prerouting by then (NF_BR_PRI_BRNF is 0). Rate first: see ``HURRY``."""
    yield from ("chain beginnings {", "    type filter hook prerouting priority 10; policy accept;",
                '    iifname "kvt-*" goto begins', "}", "chain begins {")
    yield from (f"    {found}" for found in OLD[tracking])
    yield from (ALWAYS, over("connections"))
    if "concurrent" in used:
        yield over("concurrent") if tracking is Tracking.BRIDGE else EXCEEDED
    yield from ("    accept", "}")


def over(name: str, which: str = "") -> str:
    """The rule that drops what is over a limit. The lookup spends a token, so it stands last."""
    side, verdict = ("oifname", "withheld") if name in RECEIVED else ("iifname", "refuse")
    return f"    {which + ' ' if which else ''}{side} @{SETS[name]} meta mark set {REASONS[name]} goto {verdict}"


def limiting(spec: Spec, table: str, segments: Iterable[Segment], tracking: Tracking | None = None,
             routers: Iterable[tuple[str, str]] = ()) -> Limiting:
    """The limits of all NICs of *segments*, whose guards stand in *table*. ``routers``: (bridge, the host's MAC there)."""
    members: list[NicLimits] = []
    counted = "bridge" if tracking is Tracking.BRIDGE else "host"
    closed: dict[str, int] = {}
    for segment in segments:
        network = spec.networks[segment.name]
        found = [(nic, *effective(nic.declared.limits, network.limits, segment.mtu)) for nic in segment.nics if nic.tap]
        zone = watched_zone(segment)
        if zone:
            closed[segment.bridge] = zone
        members += [nic_limits(nic, table, values, burst, zone, counted) for nic, values, burst in found if zone or values]
    return Limiting(table, tuple(members), frozenset((closed[bridge], mac) for bridge, mac in routers if bridge in closed))


def watched_zone(segment: Segment) -> int:
    """Number of a network on which some NIC's frames to unknown MACs are limited, else 0."""
    watched = any("unknown" in effective(nic.declared.limits, segment.network.limits, segment.mtu)[0] for nic in segment.nics if nic.tap)
    return zone_of(segment.domain) if watched else 0


def known_station(device: str, mac: str, segment: Segment) -> list[NicLimits]:
    """What makes the MAC of a further port known to its network; nothing where none need be."""
    zone = watched_zone(segment)
    return [NicLimits(name=device, table=TABLE, burst=0, stations=(mac,), zone=zone, counted="",
                      **dict.fromkeys(SETS, 0))] if zone else []


def nic_limits(nic: NicOnNetwork, table: str, values: Mapping[str, int], burst: int, zone: int,
               counted: str) -> NicLimits:
    """Complete and canonical. ``zone``: number of its network where frames to unknown MACs are limited, else 0.
    ``counted``: who counts flows, if they are to be."""
    stations = tuple(sorted({nic.mac, *nic.declared.extra.macs})) if zone else ()
    return NicLimits(name=nic.tap, table=table, burst=burst if values else 0, stations=stations, zone=zone,
                     counted=counted if values.get("concurrent") else "",
                     **{name: values.get(name, 0) for name in SETS})


def limits_receipts(nic: NicOnNetwork, segment: Segment) -> bool:
    """Whether something of what comes to a NIC is limited."""
    return bool(effective(nic.declared.limits, segment.network.limits, segment.mtu)[0].keys() & RECEIVED)


def has_flow_limits(networks: Mapping[str, Network], nics: Iterable[NicOnNetwork]) -> bool:
    """Whether flows of guests must be tracked for a limit's sake."""
    return any(effective(n.declared.limits, networks[n.declared.network].limits, 0)[0].keys() & FLOWS for n in nics)
