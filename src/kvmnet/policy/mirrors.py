"""Mirrors of a document: spec -> copies on devices, and the tunnels that take them away. Pure.

A copy is taken by a classifier of the device itself: of what a guest on a bridge sends, before its guard judges it; of what it
receives, behind all rules. It is handed to the receiving device directly and never enters a bridge.

Nothing is copied twice in a circle. A device that receives copies is watched by no mirror, which the rules of the document hold
(spec/rules/mirrors.py). Copies that leave by a tunnel pass the host's uplink once more, as packets of the tunnel: no mirror
copies the tunnel packets of any mirror, whatever way they take.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from zlib import crc32

from kvmnet.bpf import tree
from kvmnet.bpf.code import as_text, program
from kvmnet.bpf.tree import EVERYTHING, Field, Is, Node, Not, every, some
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.mirror.resources import FIRST, LAST, Copy, Shut, copy_name
from kvmnet.drivers.recorder.resources import Recorder
from kvmnet.engine.resource import Resource
from kvmnet.modes.hosted import stable_mac
from kvmnet.policy.places import Direction, Layout, Place, places
from kvmnet.policy.rates import bucket
from kvmnet.records import dataclass, replace
from kvmnet.spec.frames import FOUND, condition
from kvmnet.spec.mirrors import ErspanTunnel, GreTunnel, Mirror, Record, VxlanTunnel
from kvmnet.spec.models import Spec
from kvmnet.spec.names import mirror_name, nic_name, tap_name

GRE = 47
TUNNEL_MTU = 1500
"""Bytes. The device only carries copies, whose size nothing checks: a larger one travels in fragments as well."""


LARGEST = 65535
"""Bytes of a packet that a guest leaves to be cut later."""


@dataclass(frozen=True, slots=True)
class Wired:
    """A mirror on this host."""

    name: str
    number: int
    to: str
    """Device that sends the copies."""
    places: tuple[Place, ...]


def wire_mirrors(layout: Layout) -> tuple[list[Resource], dict[str, Wired]]:
    """Everything that the mirrors need. Raises NoSuchPlace for sources that the rules have not refused."""
    spec = layout.spec
    found: list[Resource] = []
    wired: dict[str, Wired] = {}
    ours = tuple(own_packets(spec))
    receivers = taps_of_receivers(spec)
    for name, number in numbers(spec.mirrors).items():
        mirror = spec.mirrors[name]
        here = [p for p in chosen(mirror, layout) if p.device not in receivers]
        wired[name] = Wired(name, number, receiver(name, mirror, spec), tuple(here))
        if mirror.to.tunnel:
            found += tunnel(name, mirror.to.tunnel)
        if mirror.to.file:
            found += recorded(name, mirror.to.file)
        if mirror.limit:
            found += bucket(wired[name].to, mirror.limit, None)
        found += copies(wired[name], condition(mirror.filter), ours)
    found += (Shut(name=tap, dev=tap, whole=True) for tap in taps_of_copies(spec))
    return found, wired


def numbers(names: Iterable[str]) -> dict[str, int]:
    """A number for each mirror: the same for the same name, unless two meet."""
    found: dict[str, int] = {}
    taken: set[int] = set()
    room = LAST - FIRST + 1
    for name in sorted(names):
        number = crc32(name.encode()) % room
        while number in taken:
            number = (number + 1) % room
        taken.add(number)
        found[name] = FIRST + number
    return found


def chosen(mirror: Mirror, layout: Layout) -> list[Place]:
    """Places of all sources, each once, in a fixed order."""
    direction = Direction(mirror.direction)
    return sorted({place for source in mirror.from_ for place in places(source, direction, layout)})


def receiver(name: str, mirror: Mirror, spec: Spec) -> str:
    """Device that a mirror's copies leave by."""
    if mirror.to.nic:
        return tap_of(mirror.to.nic, spec)
    return mirror.to.device or mirror_name(name)


def tap_of(nic: str, spec: Spec) -> str:
    vm, _, name = nic.partition("/")
    return tap_name(vm, name or nic_name(0, spec.vms[vm].nics[0].name))


def taps_of_receivers(spec: Spec) -> set[str]:
    return {tap_of(m.to.nic, spec) for m in spec.mirrors.values() if m.to.nic}


def taps_of_copies(spec: Spec) -> list[str]:
    """Taps of NICs that get nothing but copies."""
    return [tap_name(vm, nic_name(i, nic.name)) for vm, declared in spec.vms.items()
            for i, nic in enumerate(declared.nics) if nic.receives == "copies"]


def copies(wired: Wired, wish: Node, ours: tuple[Node, ...]) -> Iterator[Copy]:
    by_side: dict[tuple[str, bool], list[Place]] = {}
    for place in wired.places:
        by_side.setdefault((place.device, place.outgoing), []).append(place)
    made: dict[Node, str] = {}
    for (device, outgoing), here in by_side.items():
        # What a guest sends is no tunnel packet of the host's, whatever it looks like.
        other = EVERYTHING if all(is_sent_by_guest(p) for p in here) or not ours else Not(some(*ours))
        node = every(some(*dict.fromkeys(map(tagged, here))), other, wish)
        if node not in made:
            made[node] = as_text(program(node, FOUND))
        side = "egress" if outgoing else "ingress"
        yield Copy(name=copy_name(device, side, wired.number), dev=device, side=side, receiver=wired.to,
                   program=made[node], mirror=wired.name)


def is_sent_by_guest(place: Place) -> bool:
    return bool(place.owner) and place.about.startswith("sent ")


def tagged(place: Place) -> Node:
    return EVERYTHING if place.vlan is None else tree.vlan(place.vlan) if place.vlan else tree.untagged()


def own_packets(spec: Spec) -> Iterator[Node]:
    """Packets by which copies travel to other machines, of every mirror of the document."""
    found = {(t.remote, t.port if isinstance(t, VxlanTunnel) else 0) for m in spec.mirrors.values() if (t := m.to.tunnel)}
    return (tunnel_packets(remote, port) for remote, port in sorted(found))


def tunnel_packets(remote: str, port: int) -> Node:
    """UDP to the receiver's port, or GRE (port 0). Fragments tell no port: those to the receiver count."""
    if not port:
        return every(tree.network("dst", remote, (tree.IP,)), Is(Field(23, 1), GRE))
    if ip_address(remote).version == 4:
        later, first = Not(Is(Field(20, 2, 0x1FFF), 0)), Is(Field(tree.HEADER + 2, 2, transport=True), port)
        return every(tree.network("dst", remote, (tree.IP,)), Is(Field(23, 1), tree.UDP), some(later, first))
    whole = every(Is(Field(20, 1), tree.UDP), Is(Field(56, 2), port))
    return every(tree.network("dst", remote, (tree.IP6,)), some(Is(Field(20, 1), tree.FRAGMENT), whole))


def tunnel(name: str, wish: VxlanTunnel | GreTunnel | ErspanTunnel) -> list[Resource]:
    """The device by which copies travel. It goes up when it takes nothing in, and not before."""
    device = mirror_name(name)
    mac = stable_mac(f"mirror {name}")
    bare = Link(name=device, mtu=TUNNEL_MTU, mac=mac, master="", alias=f"kvmnet mirror {name}", addrgenmode="none")
    if isinstance(wish, VxlanTunnel):
        link = replace(bare, type="vxlan", parent="", vxlan_vni=wish.vni, vxlan_local=wish.local or "", vxlan_group=wish.remote,
                       vxlan_port=wish.port, vxlan_ttl=wish.ttl, vxlan_learning=False, vxlan_df="unset")
    else:
        link = replace(bare, gre_remote=wish.remote, gre_local=wish.local or "", gre_ttl=wish.ttl)
        if isinstance(wish, GreTunnel):
            link = replace(link, type="gretap", gre_key=-1 if wish.key is None else wish.key)
        else:
            link = replace(link, type="erspan", gre_key=wish.session, erspan_version=wish.version,
                           erspan_index=wish.index if wish.version == 1 else None)
    return [link, Shut(name=device, dev=device, whole=True, up=True)]


def recorded(name: str, wish: Record) -> list[Resource]:
    """The device that copies are handed to, and the process that keeps them. An ifb drops what was only copied to it, behind those who listen
    there (ifb_xmit() in drivers/net/ifb.c)."""
    device = mirror_name(name)
    return [Link(name=device, type="ifb", mtu=LARGEST, up=True, master="", alias=f"kvmnet mirror {name}", addrgenmode="none"),
            Recorder(name=name, device=device, path=wish.path, size=wish.size, files=wish.files, snap=wish.snap, running=True)]


def counted(wired: Mapping[str, Wired]) -> dict[str, str]:
    """Name of each copy -> its mirror."""
    return {copy_name(p.device, "egress" if p.outgoing else "ingress", w.number): w.name
            for w in wired.values() for p in w.places}
