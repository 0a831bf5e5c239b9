"""A seat without kvmnet: its network is made by others, in a namespace of its own.

Its guests are started like all others; then their taps move there (a tap keeps its reader). So such a seat differs from kvmnet's
in the network of the host alone: no guard, no rules of kvmnet's, no other bridges.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvmnet.bench.matrix import GROUP, PORT, Seat
from kvmnet.bench.peers import bare, libvirt, ovs
from kvmnet.bench.peers.space import Space
from kvmnet.host.run import run
from kvmnet.spec.names import tap_name


def space(seat: Seat, folder: Path) -> Space:
    return Space(f"seat{seat.number}", folder / f"seat{seat.number}")


def build(seat: Seat, guests: int, load: Path, life: int, folder: Path) -> None:
    """Make the seat's host and its far end. Its space is there, with the uplink's device in it."""
    where = space(seat, folder)
    taps = [tap_name(seat.guest(n), "nic0") for n in range(1, guests + 1)]
    run(["ip", "-batch", "-"], stdin="".join(f"link set {tap} netns {where.netns}\n" for tap in taps))
    MAKERS[seat.by](seat, taps, where)
    where.run([str(load), "serve", f"port={PORT}", f"life={life}", f"group={GROUP}", f"on={seat.host}"])


def by_bare_tools(seat: Seat, taps: Sequence[str], where: Space) -> None:
    where.ip(bare.lines(taps, seat.mtu, f"{seat.host}/24"))
    if seat.configuration.mode == "nat":
        where.run(["nft", "-f", "-"], stdin=bare.masquerade(seat.device))


def by_libvirt(seat: Seat, taps: Sequence[str], where: Space) -> libvirt.Libvirt:
    made = libvirt.Libvirt(where)
    made.start()
    file = made.network("default", libvirt.BRIDGE, seat.prefix, seat.configuration.mode, seat.mtu)
    made.virsh(f"net-define {file}; net-start default")
    where.ip(bare.ports(taps, seat.mtu, libvirt.BRIDGE))
    return made


def by_clean_traffic(seat: Seat, taps: Sequence[str], where: Space) -> None:
    made = by_libvirt(seat, taps, where)
    made.bind([made.binding(n, tap, seat.mac(n), seat.address(n)) for n, tap in enumerate(taps, 1)])


def by_open_vswitch(seat: Seat, taps: Sequence[str], where: Space) -> None:
    made = ovs.OpenVswitch(where)
    made.start()
    made.vsctl(*ovs.add_bridge())
    where.ip([f"link set {tap} mtu {seat.mtu} up" for tap in taps])
    made.vsctl(*ovs.add_ports(taps))
    where.ip([f"link set {ovs.BRIDGE} mtu {seat.mtu} up", f"addr add {seat.host}/24 dev {ovs.BRIDGE}"])
    if seat.configuration.mode == "nat":
        where.run(["nft", "-f", "-"], stdin=bare.masquerade(seat.device))


MAKERS: Mapping[str, Callable[[Seat, Sequence[str], Space], object]] = {
    "bare": by_bare_tools, "libvirt": by_libvirt, "clean-traffic": by_clean_traffic, "ovs": by_open_vswitch,
}
LACKING: Mapping[str, Callable[[], str]] = {
    "bare": lambda: "", "libvirt": libvirt.lacking, "clean-traffic": libvirt.lacking, "ovs": ovs.lacking,
}
"""By whom -> why that cannot be had here, '' when it can."""
VERSIONS: Mapping[str, Callable[[], str]] = {"libvirt": libvirt.version, "clean-traffic": libvirt.version, "ovs": ovs.version}
