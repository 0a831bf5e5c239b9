"""Random hosts and documents, small enough that two of them overlap: what property tests draw from."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.drivers.linux.attrs import PORT
from kvmnet.drivers.linux.resources import (
    Address,
    BridgeVlan,
    Link,
    Route,
    Sysctl,
    address_name,
    route,
    vlan_name,
)
from kvmnet.drivers.macvtap.resources import Gate, OpenPort, TapNode
from kvmnet.drivers.mirror.resources import Copy, Shut
from kvmnet.drivers.nftables.resources import GuardHook, NftTable, NicGuard
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.sriov.resources import VFIO, Vf, VfPool, vf_name
from kvmnet.drivers.tc.resources import (
    EGRESS,
    SORTERS,
    TREES,
    Qdisc,
    Sorter,
    TcClass,
    class_name,
    detour,
    qdisc_name,
)
from kvmnet.engine.plan import Create, Delete, Step, Update, apply_to
from kvmnet.engine.resource import Key, Resource, diff, must_recreate

Things = dict[Key, Resource]

BRIDGES, TAPS = ("kvb-a", "kvb-b"), ("kvt-1", "kvt-2", "kvt-3")
MACS = tuple(f"02:00:00:00:00:{i:02x}" for i in range(8))


@st.composite
def documents(draw: st.DrawFn, daemons: bool = True) -> Things:
    """A wanted state that is whole: everything that it names is in it. ``daemons``: also guards,
    guests and DHCP, which a bare kernel does not have."""
    out: list[Resource] = []
    bridges = draw(st.lists(st.sampled_from(BRIDGES), unique=True))
    table = draw(st.booleans()) and daemons
    if table:
        out.append(NftTable(name="bridge kvmnet", text=draw(st.sampled_from(["one", "two"]))))
    for number, name in enumerate(bridges):
        out.append(Link(name=name, type="bridge", mtu=draw(st.sampled_from([1300, 1400, 1500])), up=draw(st.booleans()),
                        mac=draw(st.sampled_from(MACS)), master="", alias=draw(st.sampled_from(["kvmnet a", "kvmnet b"])),
                        stp=False, forward_delay=0, addrgenmode="none", mcast_snooping=draw(st.booleans())))
        out += draw(on_a_bridge(name, number, up=bool(out[-1].up)))  # type: ignore[attr-defined]
        if daemons and draw(st.booleans()):
            out.append(DnsmasqServer(name=name, dev=name, config=draw(st.sampled_from([("a",), ("b",)])), running=True))
            out.append(Reservation(name=f"{name} 02", server=name, hostname=draw(st.sampled_from(["x", "y"])), ip="",
                                   ip6="", tags=()))
    for name in draw(st.lists(st.sampled_from(TAPS), unique=True)):
        guarded = table and draw(st.booleans())
        if guarded:
            out.append(NicGuard(name=name, table="bridge kvmnet", level=draw(st.sampled_from(["full", "mac"]))))
        out.append(draw(taps(name, bridges, name if guarded else "")))
        if daemons:
            out += draw(vlans_of(name, out[-1].master or ""))  # type: ignore[attr-defined]
        if daemons and draw(st.booleans()):
            out.append(GuestNic(name=f"vm/{name}", vm="vm", tap=name, link=draw(st.booleans()),
                                model=draw(st.sampled_from(["virtio", "e1000e"]))))
    if daemons:
        out += draw(uplinks(bridges))
        out += draw(macvtaps())
        out += draw(rates([r.name for r in out if isinstance(r, Link) and r.type == "tap"]))
        out += draw(copies([r.name for r in out if isinstance(r, Link) and r.type == "tap"]))
        out += draw(virtual_functions())
    return {r.key: r for r in out}


@st.composite
def uplinks(draw: st.DrawFn, bridges: list[str]) -> list[Resource]:
    """A bond, a VLAN on it and an address on that, each of which may be there."""
    if not draw(st.booleans()):
        return []
    master = draw(st.sampled_from(["", *bridges]))
    out: list[Resource] = [Link(name="bond0", type="bond", mtu=1500, up=True, master=master, alias="kvmnet uplink wan",
                                bond_mode=draw(st.sampled_from(["active-backup", "802.3ad"])),
                                bond_miimon=draw(st.sampled_from([50, 100])))]
    out += draw(vlans_of("bond0", master))
    if draw(st.booleans()):
        out.append(Link(name="kvu-v", type="vlan", parent="bond0", vlan_id=draw(st.sampled_from([7, 8])), master="", up=True,
                        vlan_protocol="802.1Q", mtu=draw(st.sampled_from([1400, 1500])), alias="kvmnet uplink v"))
        if draw(st.booleans()):
            out.append(Address(name=address_name("kvu-v", "10.7.0.1/24"), dev="kvu-v", scope="global", label="", peer="",
                               broadcast="", flags=(), dynamic=""))
    return out


@st.composite
def macvtaps(draw: st.DrawFn) -> list[Resource]:
    """A macvtap on the host's NIC with its guard, each part of which may be there when what it needs is."""
    if not draw(st.booleans()):
        return []
    name, mode = "kvt-m", draw(st.sampled_from(["bridge", "private", "passthru"]))
    out: list[Resource] = [Link(name=name, type="macvtap", parent="eth0", macvlan_mode=mode, passthru=mode == "passthru",
                                mac=draw(st.sampled_from(MACS)), mtu=1500, master="", alias="kvmnet nic m/nic0",
                                addrgenmode="none", allmulticast=draw(st.booleans()), arp=False),
                           NftTable(name="netdev kvmnet", text=draw(st.sampled_from(["one", "two"]))),
                           NicGuard(name=name, table="netdev kvmnet", level=draw(st.sampled_from(["full", "mac"])))]
    if draw(st.booleans()):
        out += [Gate(name=name, dev=name, program=draw(st.sampled_from(["a", "b"]))),
                GuardHook(name=name, table="netdev kvmnet", dev=name, guard=name, side="egress", to="guest")]
        if draw(st.booleans()):
            out.append(OpenPort(name=name, gate=name, hook=name))
    if draw(st.booleans()):
        out.append(TapNode(name=name, dev=name, user=draw(st.sampled_from([0, 7])), fits=True))
    return out


@st.composite
def copies(draw: st.DrawFn, taps: list[str]) -> list[Resource]:
    """Copies of what one tap carries to another, and a tap that takes nothing in."""
    if len(taps) < 2 or not draw(st.booleans()):
        return []
    source, receiver, *_ = draw(st.permutations(taps))
    out: list[Resource] = [Copy(name=f"{source} {side} 20", dev=source, side=side, receiver=receiver, program=draw(st.sampled_from(["a", "b"])))
                           for side in draw(st.sets(st.sampled_from(["ingress", "egress"])))]
    return [*out, Shut(name=receiver, dev=receiver, whole=True)] if draw(st.booleans()) else out


@st.composite
def rates(draw: st.DrawFn, taps: list[str]) -> list[Resource]:
    """Queues of taps, and a tree of classes on the host's NIC, each part of which may be there when what it needs is."""
    out: list[Resource] = []
    for tap in taps:
        if draw(st.booleans()):
            out.append(Qdisc(name=qdisc_name(tap), dev=tap, parent="root", below="", of="", discipline="tbf",
                             rate=draw(st.sampled_from([100, 200])), burst=4096, limit=65536))
        if draw(st.booleans()):
            device = tap.replace("kvt", "kvi")
            out += [Link(name=device, type="ifb", mtu=1500, up=True, master="", alias="kvmnet rate", addrgenmode="none"),
                    detour(tap, device),
                    *([detour(tap, device, EGRESS)] if draw(st.booleans()) else [])]
    if draw(st.booleans()):
        root = qdisc_name("eth0", TREES[0])
        out.append(Qdisc(name=root, dev="eth0", parent="root", below="", of="", discipline="htb", default=draw(st.sampled_from([0, 2]))))
        upper = ""
        for minor in range(1, draw(st.integers(0, 3)) + 1):
            name = class_name("eth0", TREES[0], minor)
            out.append(TcClass(name=name, qdisc=root, parent=upper, rate=draw(st.sampled_from([1, 2])), ceil=3, priority=0))
            upper = draw(st.sampled_from(["", name]))
        if upper and draw(st.booleans()):
            out.append(Qdisc(name=qdisc_name("eth0", 0x7001), dev="eth0", parent=upper.split()[1], below=root, of=upper,
                             discipline="fq_codel", packets=10, flows=8))
        if upper and draw(st.booleans()):
            out.append(Sorter(name=f"eth0 {SORTERS[7]}", qdisc=root, program=draw(st.sampled_from(["6 0 0 0", "6 0 0 4294967295"])), into=upper))
    return out


@st.composite
def virtual_functions(draw: st.DrawFn) -> list[Resource]:
    """A NIC of the host split into VFs, each of which a guest may have."""
    count = draw(st.integers(0, 3))
    out: list[Resource] = [VfPool(name="eth0", dev="eth0", count=count, made=True)] if count else []
    for number in range(count):
        given = draw(st.booleans())
        out.append(Vf(name=vf_name("eth0", number), pool="eth0", mac=draw(st.sampled_from(MACS)), trust=draw(st.booleans()),
                      vlan=draw(st.sampled_from([0, 5])), qos=0, protocol="802.1Q", driver=VFIO if given else ""))
        if given and draw(st.booleans()):
            out.append(GuestNic(name=f"vm/vf{number}", vm="vm", tap="", vf=vf_name("eth0", number), model="vf", link=True))
    return out


@st.composite
def vlans_of(draw: st.DrawFn, dev: str, bridge: str) -> list[Resource]:
    """VLANs of a port, or of none."""
    return [BridgeVlan(name=vlan_name(dev, vid), dev=dev, bridge=bridge, pvid=vid == 1, untagged=draw(st.booleans()))
            for vid in (draw(st.sets(st.sampled_from([1, 2, 3]))) if bridge else ())]


@st.composite
def on_a_bridge(draw: st.DrawFn, dev: str, number: int, up: bool) -> list[Resource]:
    out: list[Resource] = [  # always there with its link, as in a kernel
        Sysctl(name=f"net/ipv4/conf/{dev}/forwarding", value=draw(st.sampled_from("01")), dev=dev)]
    net = f"10.{number}.0"
    if not draw(st.booleans()):
        return out
    out.append(Address(name=address_name(dev, f"{net}.1/24"), dev=dev, scope="global", label=dev, peer="",
                       broadcast=draw(st.sampled_from(["", f"{net}.255"])), flags=(), dynamic=""))
    if up and draw(st.booleans()):  # a link that goes down loses its IPv6 addresses (addrconf_ifdown())
        out.append(Address(name=address_name(dev, f"2001:db8:{number}::1/64"), dev=dev, scope="global", label="",
                           peer="", broadcast="", flags=("nodad",), dynamic=""))
    if up:
        for third in draw(st.lists(st.integers(1, 3), unique=True, max_size=2)):
            out.append(route(f"172.16.{third + 8 * number}.0/24", dev=dev, via=f"{net}.{draw(st.integers(7, 9))}",
                             metric=draw(st.sampled_from([None, 50]))))
    return out


@st.composite
def taps(draw: st.DrawFn, name: str, bridges: list[str], guard: str) -> Link:
    master = draw(st.sampled_from(["", *bridges]))
    flags: dict[str, Any] = {"isolated": draw(st.booleans()), "learning": draw(st.booleans()), "flood": True, "mcast_flood": True,
             "hairpin": False, "bpdu_guard": draw(st.booleans()), "neigh_suppress": False} if master else {}
    return Link(name=name, type="tap", mtu=draw(st.sampled_from([1400, 1500])), up=draw(st.booleans()), master=master,
                guard=guard, keeper="", alias="kvmnet tap", multi_queue=draw(st.booleans()), user=-1,
                addrgenmode="none", **flags)


FOREIGN: tuple[Resource, ...] = (
    Link(name="eth0", type="physical", mtu=1500, mac="52:54:00:00:00:01", master="", up=True, alias=""),
    Link(name="eth1", type="physical", mtu=9000, mac="52:54:00:00:00:02", master="br9", up=True, alias="", bonded=False),
    Link(name="br9", type="bridge", mtu=1500, mac="52:54:00:00:00:02", master="", up=True, alias="", stp=True),
    Address(name="eth0 192.0.2.5/24", dev="eth0", scope="global", label="eth0", broadcast="", peer="", flags=(),
            dynamic=""),
    Route(name="default dev eth0", dev="eth0", dst="default", family=4, table="main", metric=0, via="192.0.2.1",
          src="", scope="global", proto="static", flags=(), options=""),
    Sysctl(name="net/ipv4/ip_forward", value="0", dev=""),
    NftTable(name="inet firewalld", text="theirs"),
)


class Refused(Exception):
    """The host does not make a step: the kernel's EEXIST, ENODEV, EBUSY or EINVAL."""


def as_port(resource: Resource) -> Resource:
    """A link that is no port of a bridge has no settings of a port, as in a kernel."""
    if isinstance(resource, Link) and resource.type == "tap" and not resource.master:
        return replace(resource, **dict.fromkeys(PORT))  # type: ignore[arg-type]
    return resource


def on_its_bridge(resource: Resource, state: Things) -> bool:
    """Whether a VLAN of a port stands: it is lost when the port leaves the bridge, as in a kernel."""
    if not isinstance(resource, BridgeVlan):
        return True
    port = state.get(Key(Link.kind, resource.dev or ""))
    return isinstance(port, Link) and port.master == resource.bridge


@dataclass
class Machine:
    """A host that executes steps one by one and refuses what a kernel would."""

    state: Things
    ours: set[Key] = field(default_factory=set)
    fail_at: int = 0
    """Number of the step that fails; 0 for none."""
    done: int = 0

    def run(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            self.done += 1
            if self.done == self.fail_at:
                raise Refused(f"injected at step {self.done}")
            self.check(step)
            self.state = {k: as_port(r) for k, r in apply_to(self.state, [step]).items()}
            self.state = {k: r for k, r in self.state.items() if on_its_bridge(r, self.state)}
            if isinstance(step, Create):
                self.ours.add(step.key)
            self.ours &= self.state.keys()

    def check(self, step: Step) -> None:
        key = step.key
        match step:
            case Create(after):
                self.refuse(key in self.state, f"{key} exists")
                self.refuse(not on_its_bridge(after, self.state), f"{key}: no port of that bridge")
                self.need(after)
            case Update(_, after):
                self.refuse(key not in self.state, f"{key} does not exist")
                self.refuse(must_recreate(self.state[key], after), f"{key} cannot change {diff(self.state[key], after)}")
                self.need(after)
            case Delete():
                self.refuse(key not in self.state, f"{key} is gone")
                self.refuse(self.state[key].permanent, f"{key} cannot be deleted")
                users = [r.key for r in self.state.values() for ref in r.refs()
                         if ref.target == key and ref.on_delete == "delete"]
                self.refuse(bool(users), f"{key} is used by {users}")

    def need(self, resource: Resource) -> None:
        for ref in resource.refs():
            soft = ref.field == "after"  # an order, not a thing that must be there
            self.refuse(not soft and ref.target not in self.state, f"{resource.key} needs {ref.target}")

    def refuse(self, wrong: bool, why: str) -> None:
        if wrong:
            raise Refused(why)
