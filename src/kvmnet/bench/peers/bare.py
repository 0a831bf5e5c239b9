"""A seat without kvmnet: what ``ip``, ``sysctl`` and three lines of nft make, in a namespace of its own.

Its guests are started like all others; then their taps move there (a tap keeps its reader). So a bare seat differs from kvmnet's
in the network of the host alone: no guard, no rules of kvmnet's, no other bridges.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kvmnet.bench.matrix import GROUP, PORT, Seat
from kvmnet.host.run import ToolFailed, run
from kvmnet.spec.names import tap_name

BRIDGE = "br0"
QUIET = ("iptables", "ip6tables", "arptables")


def netns(seat: Seat) -> str:
    return f"bare{seat.number}"


def build(seat: Seat, guests: int, load: Path, life: int) -> None:
    """Make the seat's host and its far end there. The uplink's device is in its namespace already."""
    inside = ["ip", "netns", "exec", netns(seat)]
    taps = [tap_name(seat.guest(n), "nic0") for n in range(1, guests + 1)]
    run(["ip", "-batch", "-"], stdin="".join(f"link set {tap} netns {netns(seat)}\n" for tap in taps))
    run(["ip", "-n", netns(seat), "-batch", "-"], stdin="".join(f"{line}\n" for line in lines(seat, taps)))
    for name in QUIET:
        try:
            run([*inside, "sysctl", "-qw", f"net.bridge.bridge-nf-call-{name}=0"])
        except ToolFailed:    # br_netfilter is not loaded: nothing to switch off
            break
    run([*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
    if seat.configuration.mode == "nat":
        run([*inside, "nft", "-f", "-"], stdin=rules(seat))
    run([*inside, str(load), "serve", f"port={PORT}", f"life={life}", f"group={GROUP}", f"on={seat.host}"])


def lines(seat: Seat, taps: Sequence[str]) -> Iterator[str]:
    yield f"link add {BRIDGE} type bridge"
    for tap in taps:
        yield f"link set {tap} mtu {seat.mtu} master {BRIDGE}"
        yield f"link set {tap} up"
    yield f"link set {BRIDGE} mtu {seat.mtu} up"
    yield f"addr add {seat.host}/24 dev {BRIDGE}"


def rules(seat: Seat) -> str:
    return ("add table ip bare\nadd chain ip bare out { type nat hook postrouting priority 100; }\n"
            f"add rule ip bare out oifname {seat.device} masquerade\n")
