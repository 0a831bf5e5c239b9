"""What the guests of a network share: a tree of classes at its way out. Pure.

What they send waits in an htb: a class for the network, which has its rate, and in it a class for each NIC and each
declared class of traffic. A class gets its minimum in any case and borrows what is left; those of one priority borrow in
turns, an equal amount each, so that NICs share equally however many flows they have. A frame knows its class before it
gets there: bridge prerouting writes it into the packet's priority, one look in a map whatever the number of NICs, and htb
takes from there which class it is (htb_classify() in net/sched/sch_htb.c).

Where the queue is, by mode:

* nat, routed: what goes to the host comes in by the bridge device; it makes a detour there, before it is routed (the
  kernel gives a packet that it routes a priority of its own, ip_forward() in net/ipv4/ip_forward.c). What comes back is
  sent by the bridge device, in a tree of its own; inet postrouting, behind that and behind NAT, has told it by its destination
  which NIC's class it is.
* vxlan, and bridge on a VLAN: the port to the outside is ours, what goes out is sent by it, what comes in makes a detour.
* bridge without a VLAN: the port is the uplink, or that of the existing bridge. The host's own frames are in no class and do not wait.
* macvtap: their parent sends, and has no class for each NIC. The uplink's own frames are told from theirs by the guard's mark.

Classes of what comes in: in the modes nat and routed inet postrouting tells them, too. At a port of ours no hook has seen the frame; there a
program of classic BPF for each class looks at the DSCP, and a hash finds the NIC by the frame's destination; or the VLAN device has made the class out of the priority in the tag
(``trust: pcp``, vlan_do_receive() in net/8021q/vlan_core.c).
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias
from zlib import crc32

from kvmnet.bpf.code import as_text, program
from kvmnet.bpf.tree import IP, IP6, Field, Is, Node, ethertype, every, some
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.macvtap.resources import MARK
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.tc.resources import (
    LEAVES,
    SORTERS,
    TREES,
    MacTable,
    Qdisc,
    Receiver,
    Sorter,
    TcClass,
    class_name,
    detour,
    qdisc_name,
)
from kvmnet.engine.resource import Resource
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.policy.marking import mark_chain, mark_of
from kvmnet.policy.marks import GUEST
from kvmnet.policy.rates import bucket, own_leaf, queue, sizes, usual_burst, usual_leaf
from kvmnet.records import dataclass, field
from kvmnet.spec.names import pool_name
from kvmnet.spec.networks import Mode
from kvmnet.spec.rates import Rate, TrafficClass

TABLE, RECEIVED = "bridge kvmnet-marks", "inet kvmnet-marks"
PRIORITY = -330
"""After the guard, and after groups know the sender."""
LAST = 200
"""Behind NAT."""
INWARD = " in"
"""What a network's second tree is known by: no network has a name that ends so."""
WHOLE, REST = 1, 2
"""Minor numbers of the class of the network, and of what is in no other."""
TAGGED = 8
"""Minor number of no class: with 0 to 7 added, packets of NICs without a class of their own that have this priority in their tags."""
MINORS = range(0x10, 0x10000)
"""Of classes of NICs and of traffic."""
LITTLE = 64
"""kbit/s of a class that is promised nothing: htb takes no zero."""
TURN = 16384
"""Bytes that a class borrows in its turn."""
NODES = range(1, 0x1000)
"""Numbers within one bucket of a table of MACs."""
EVERY_BYTE = 0xFFFF_FFFF
"""What a program returns for frames that it means: cls_bpf then takes the filter's own class."""


@dataclass(slots=True)
class Shares:
    """What all networks add to the host."""

    resources: list[Resource] = field(default_factory=list)
    qos: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """VLAN device -> its map from the priority of a packet to that in the tag."""
    trusted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """VLAN device -> its map from the priority in the tag of a frame that comes in to that of the packet."""
    received: dict[str, str] = field(default_factory=dict)
    """Bridge -> its network, where that has classes of what the host sends there."""
    inner: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Network -> rules that tell classes of what it receives apart."""
    queues: dict[str, int] = field(default_factory=dict)
    """Tap -> class of its frames, as the kernel's number."""
    marks: dict[str, str] = field(default_factory=dict)
    """Tap -> chain that marks its packets."""
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Network -> rules that tell classes of traffic apart."""
    notes: list[str] = field(default_factory=list)
    members: dict[str, str] = field(default_factory=dict)
    """Tap -> its network, where that has classes."""
    receivers: dict[tuple[str, str], int] = field(default_factory=dict)
    """(bridge, address) -> class of what the host sends there."""

    def add(self, segment: Segment, majors: Mapping[str, int], features: Mapping[str, str]) -> None:
        """One network. ``majors``: of its classes, see ``trees``."""
        if not segment.parent:  # macvtaps are marked on their way to the guard
            self.marks |= {nic.tap: chain for nic in segment.nics if nic.tap and (chain := mark_of(nic.declared.mark))}
        if not segment.network.has_queues:
            return
        ids, major, inner = minors(segment), majors[segment.name], usual_leaf(features)
        way, port = ways(segment), segment.port
        tags = {nic.tap: nic.declared.mark.pcp for nic in segment.nics if nic.tap and nic.declared.mark.pcp is not None}
        if (segment.network.rate.out or tags) and not segment.parent:
            self.queues |= {nic.tap: major << 16 | ids.get(nic.tap, TAGGED + tags[nic.tap] if nic.tap in tags else REST)
                            for nic in segment.nics if nic.tap}
        if segment.network.rate.out:
            if on_uplink(segment):
                self.notes.append(f"network {segment.name} shares out what its guests send at {port}: a queue of ours takes the place of "
                                  "the kernel's, one for all queues of the NIC")
            self.resources += outward(segment, way, major, ids, inner)
        if segment.parent:    # no hook of a bridge sees them
            return
        if segment.network.rate.in_:
            self.receive(segment, way, port, majors[segment.name + INWARD], inner)
        if segment.network.classes:
            self.classes[segment.name] = tuple(class_rules(segment.network.classes, major, ids))
            self.members |= {nic.tap: segment.name for nic in segment.nics if nic.tap}
        tagged = {major << 16 | ids[name]: group.pcp for name, group in segment.network.classes.items()}
        tagged |= {self.queues[tap]: pcp for tap, pcp in tags.items()}
        if any(tagged.values()):
            self.qos[port] = tuple(sorted(f"{number}:{pcp}" for number, pcp in tagged.items() if pcp))

    def receive(self, segment: Segment, way: Ways, port: str, major: int, inner: str) -> None:
        """What a network receives."""
        ids, mine = receiving(segment), own_classes(segment)
        self.resources += inward(segment, way, major, ids, inner)
        if not way.in_from:    # the host itself sends it, and knows to whom
            self.receivers |= {(segment.bridge, address): major << 16 | ids[nic.tap] for nic in segment.nics if nic.tap in ids
                               for address in addresses(nic)}
            if mine:
                self.received[segment.bridge] = segment.name
                self.inner[segment.name] = tuple(class_rules(mine, major, ids))
        elif mine and segment.network.trust == "pcp":
            self.trusted[port] = tuple(sorted(f"{group.pcp}:{major << 16 | ids[name]}" for name, group in mine.items()))

    def tables(self) -> Iterator[NftTable]:
        """The chains that mark packets and tell their classes, where somebody needs them."""
        if self.receivers or self.received:
            yield NftTable(name=RECEIVED, text="\n".join((
                *self.sorted_in(),
                *(address_map(f"inward{version}", word, {k: v for k, v in self.receivers.items() if (":" in k[1]) == (version == 6)})
                  for version, word in ((4, "ip"), (6, "ip6"))),
                "chain inward {", f"type filter hook postrouting priority {LAST}; policy accept;",
                *(f"meta priority set oifname . {word} daddr map @inward{version}" for version, word in ((4, "ip"), (6, "ip6"))),
                *(("oifname vmap @classed",) if self.received else ()), "}", "")))
        if self.marks or self.queues or self.members:
            yield self.sent()

    def sorted_in(self) -> Iterator[str]:
        if self.received:
            yield named_map("classed", "verdict", ((bridge, f"jump c_{network}") for bridge, network in self.received.items()), "oifname")
            yield from (chain_of(network, rules) for network, rules in sorted(self.inner.items()))

    def sent(self) -> NftTable:
        return NftTable(name=TABLE, text="\n".join((
            named_map("marked", "verdict", ((tap, f"jump {chain}") for tap, chain in self.marks.items())),
            named_map("queues", "meta priority", ((tap, f"{number >> 16:04x}:{number & 0xFFFF:x}" if number else "none") for tap, number in self.queues.items())),
            named_map("classed", "verdict", ((tap, f"jump c_{network}") for tap, network in self.members.items())),
            *(mark_chain(name) for name in sorted(set(self.marks.values()))),
            *(chain_of(network, rules) for network, rules in sorted(self.classes.items())),
            "chain frames {", f"type filter hook prerouting priority {PRIORITY}; policy accept;", "iifname vmap @marked",
            "meta priority set iifname map @queues", "iifname vmap @classed", "}", "")))


@dataclass(frozen=True, slots=True)
class Ways:
    """Where the frames of a network wait."""

    out: str
    """Device whose root queue is that of what guests send."""
    out_from: str
    """Device whose incoming frames make a detour to it; '' when it sends them itself."""
    inward: str
    """Device whose root queue is that of what guests receive."""
    in_from: str


def ways(segment: Segment) -> Ways:
    aside, port = pool_name(segment.name), segment.port
    if segment.network.mode in (Mode.NAT, Mode.ROUTED):
        return Ways(aside, segment.bridge, segment.bridge, "")
    return Ways(port, "", aside, port)


def on_uplink(segment: Segment) -> bool:
    """Whether the queue is that of the uplink itself, where the host and others send too."""
    return segment.network.mode in (Mode.BRIDGE, Mode.MACVTAP) and not segment.network.vlan


Leaves: TypeAlias = Mapping[int, tuple[int, int, int]]
"""Minor number -> least and most in kbit/s, and priority."""


def outward(segment: Segment, way: Ways, major: int, ids: Mapping[str, int], inner: str) -> Iterator[Resource]:
    """The htb of what a network sends."""
    rate = segment.network.rate.out or 0
    leaves = {REST: (LITTLE, rate, Rate().priority)}
    for nic in segment.nics:
        if nic.tap in ids:
            own: Rate = nic.declared.rate
            leaves[ids[nic.tap]] = (own.min or LITTLE, rate, own.priority)
    for name, group in segment.network.classes.items():
        leaves[ids[name]] = (group.min or LITTLE, group.max or rate, group.priority)
    if way.out_from:
        yield aside(segment, way.out)
    yield from tree(way.out, major, rate, leaves, chosen(segment, ids), inner, default=0 if on_uplink(segment) else REST)
    if segment.parent:
        yield from of_macvtaps(segment, way.out, major, ids)
    if way.out_from:
        yield detour(way.out_from, way.out)


def of_macvtaps(segment: Segment, dev: str, major: int, ids: Mapping[str, int]) -> Iterator[Sorter]:
    """What tells the classes of macvtaps' frames where these leave by their parent; at an uplink, by the guard's mark, whose they are at all."""
    ours = (Is(Field(MARK, 4, GUEST), GUEST),) if on_uplink(segment) else ()
    yield from sorters(dev, major, segment.network.classes, ids, *ours)
    if ours:
        yield Sorter(name=f"{dev} {SORTERS[-1]}", qdisc=qdisc_name(dev, major), program=as_text(program(every(*ours), EVERY_BYTE)),
                     into=class_name(dev, major, REST))


def chosen(segment: Segment, ids: Mapping[str, int]) -> dict[int, str]:
    """Minor number -> how the frames of that NIC wait, where the document says so."""
    return {ids[nic.tap]: own_leaf(nic) for nic in segment.nics if nic.tap in ids}


def tree(dev: str, major: int, rate: int, leaves: Leaves, own: Mapping[int, str], inner: str, *, default: int) -> Iterator[Resource]:
    """An htb: a class that has *rate*, and *leaves* that borrow from it. ``default``: class of frames in no other. How they wait: ``own`` by
    minor number, else ``inner``; '' for one line."""
    root = qdisc_name(dev, major)
    yield Qdisc(name=root, dev=dev, parent="root", below="", of="", discipline="htb", default=default)
    whole = class_name(dev, major, WHOLE)
    yield TcClass(name=whole, qdisc=root, parent="", rate=rate, ceil=rate, burst=usual_burst(rate), cburst=usual_burst(rate),
                  quantum=TURN)
    handles = numbers((f"{minor:x}" for minor in leaves), LEAVES)
    for minor, (least, most, priority) in sorted(leaves.items()):
        name = class_name(dev, major, minor)
        yield TcClass(name=name, qdisc=root, parent=whole, rate=least, ceil=most, burst=usual_burst(least), cburst=usual_burst(most),
                      priority=priority, quantum=TURN)
        # Without a queue of its own a class would have one of so many packets as the device has, a second or more.
        kind = own.get(minor) or inner
        yield Qdisc(name=qdisc_name(dev, handles[f"{minor:x}"]), dev=dev, parent=name.split(" ")[1], below=root, of=name,
                    discipline=kind or "bfifo", limit=None if kind else queue(most), **sizes(kind))


def inward(segment: Segment, way: Ways, major: int, ids: Mapping[str, int], inner: str) -> Iterator[Resource]:
    """The queue of what a network receives, or a class of it for each NIC and each class of traffic in *ids*."""
    if way.in_from:
        yield aside(segment, way.inward)
    rate = segment.network.rate.in_ or 0
    if ids:
        mine = own_classes(segment)
        leaves = {REST: (LITTLE, rate, Rate().priority)}
        leaves |= {ids[nic.tap]: (nic.declared.rate.min_in or LITTLE, rate, nic.declared.rate.priority_in) for nic in segment.nics if nic.tap in ids}
        leaves |= {ids[name]: (part.min or LITTLE, part.max or rate, part.priority) for name, group in mine.items() if (part := group.in_)}
        yield from tree(way.inward, major, rate, leaves, chosen(segment, ids), inner, default=REST)
        if way.in_from and segment.network.trust == "dscp":
            yield from sorters(way.inward, major, mine, ids)
        if way.in_from:
            yield from of_receivers(way.inward, major, segment, ids)
    else:
        yield from bucket(way.inward, rate, None, inner)
    if way.in_from:
        yield detour(way.in_from, way.inward)


def sorters(dev: str, major: int, classes: Mapping[str, TrafficClass], ids: Mapping[str, int], *also: Node) -> Iterator[Sorter]:
    """What tells the classes of a tree by the packets' DSCPs: a look for each class, since they are few. ``also``: what else they are."""
    prefs = numbers(classes, SORTERS[:-1])
    for name, group in classes.items():
        yield Sorter(name=f"{dev} {prefs[name]}", qdisc=qdisc_name(dev, major), program=dscp_program(group.dscp, *also),
                     into=class_name(dev, major, ids[name]))


def of_receivers(dev: str, major: int, segment: Segment, ids: Mapping[str, int]) -> Iterator[MacTable | Receiver]:
    """What tells the NICs' classes of a tree by the MAC that a frame goes to, behind what tells those of traffic. A frame to nobody of
    them, or to everybody, is in the class of the rest."""
    places = {mac: ids[nic.tap] for nic in segment.nics if nic.tap in ids for mac in (nic.mac, *nic.declared.extra.macs)}
    if not places:
        return
    yield MacTable(name=dev, qdisc=qdisc_name(dev, major))
    buckets: dict[int, list[str]] = {}
    for mac in places:
        buckets.setdefault(int(mac[-2:], 16), []).append(mac)
    for bucket_number, macs in buckets.items():
        for mac, number in numbers(macs, NODES).items():
            yield Receiver(name=f"{dev} {mac}", table=dev, node=f"{bucket_number:x}:{number:x}", into=class_name(dev, major, places[mac]))


def dscp_program(codes: Iterable[int], *also: Node) -> str:
    """IPv4 and IPv6 packets with one of these DSCPs, in frames without a tag in them."""
    codes = tuple(codes)
    told = some(every(ethertype(IP), some(*(Is(Field(15, 1, 0xFC), code << 2) for code in codes))),
                every(ethertype(IP6), some(*(Is(Field(14, 2, 0x0FC0), code << 6) for code in codes))))
    return as_text(program(every(*also, told), EVERY_BYTE))


def aside(segment: Segment, name: str) -> Link:
    return Link(name=name, type="ifb", mtu=segment.mtu, up=True, master="", alias=f"kvmnet rate of network {segment.name}",
                addrgenmode="none")


def minors(segment: Segment) -> dict[str, int]:
    """Tap of a NIC with a class of its own, or name of a class of traffic -> minor number, the same for the same name
    unless two meet. No NIC has a name like a tap's."""
    network = segment.network
    own = [nic.tap for nic in segment.nics if nic.tap and network.rate.out and not segment.parent
           and (network.rate.share == "fair" or nic.declared.rate.min)]
    return numbers((*own, *network.classes), MINORS)


def receiving(segment: Segment) -> dict[str, int]:
    """Tap of a NIC and name of a class of what comes in -> minor number."""
    if not segment.network.rate.in_:
        return {}
    fair = segment.network.rate.share == "fair"
    nics = (nic.tap for nic in segment.nics if nic.tap and nic.declared.receives == "all" and (fair or nic.declared.rate.min_in))
    return numbers((*nics, *own_classes(segment)), MINORS)


def own_classes(segment: Segment) -> dict[str, TrafficClass]:
    """Classes of what a network receives."""
    return {name: group for name, group in segment.network.classes.items() if group.in_}


def addresses(nic: NicOnNetwork) -> Iterator[str]:
    """By which the host sends to a NIC, but for prefixes."""
    yield from (a for a in (nic.ip, nic.ip6, *nic.prefixes) if a and "/" not in a)


def trees(segments: Iterable[Segment], more: Iterable[str] = ()) -> dict[str, int]:
    """Network with queues, the same with INWARD behind it, and *more* trees -> the major number of its classes."""
    return numbers((*(s.name + way for s in segments if s.network.has_queues for way in ("", INWARD)), *more), TREES)


def numbers(names: Iterable[str], room: range) -> dict[str, int]:
    """A number for each name, the same for the same name unless two meet."""
    found: dict[str, int] = {}
    taken: set[int] = set()
    span = len(room)
    for name in sorted(names):
        at = crc32(name.encode()) % span
        while at in taken:
            at = (at + 1) % span
        taken.add(at)
        found[name] = room[at]
    return found


def class_rules(classes: Mapping[str, TrafficClass], major: int, ids: Mapping[str, int]) -> Iterator[str]:
    for name, group in classes.items():
        codes = ", ".join(map(str, group.dscp))
        for family in ("ip", "ip6"):
            yield f"{family} dscp {{ {codes} }} meta priority set {major << 16 | ids[name]:#x}"


def address_map(name: str, word: str, elements: Mapping[tuple[str, str], int]) -> str:
    listed = sorted(f'"{dev}" . {address} : {number >> 16:04x}:{number & 0xFFFF:x}' for (dev, address), number in elements.items())
    return "\n".join((f"map {name} {{", f"typeof oifname . {word} daddr : meta priority",
                      *([f"elements = {{ {', '.join(listed)} }}"] if listed else []), "}"))


def chain_of(network: str, rules: Iterable[str]) -> str:
    return "\n".join((f"chain c_{network} {{", *rules, "}"))


def named_map(name: str, kind: str, elements: Iterable[tuple[str, str]], word: str = "iifname") -> str:
    listed = sorted(f'"{tap}" : {value}' for tap, value in elements)
    return "\n".join((f"map {name} {{", f"typeof {word} : {kind}", *([f"elements = {{ {', '.join(listed)} }}"] if listed else []), "}"))


