"""A guest that no port of this host is known to have behind it: what says why. Pure."""
from __future__ import annotations

from kvmnet.doctor.ends import End
from kvmnet.doctor.finding import Certainty, Severity
from kvmnet.doctor.rules.bridges import port_down, tap_carrier_off
from kvmnet.doctor.rules.capacity import queue_too_slow, queue_too_small
from kvmnet.doctor.rules.guests import card_missing, guest_stopped
from kvmnet.doctor.trip import Trip
from kvmnet.records import replace

WRITTEN = frozenset({"PERMANENT", "NOARP"})
"""States of neighbours that nobody asks for."""
SUSPECTED = (queue_too_small, queue_too_slow, guest_stopped, tap_carrier_off, port_down, card_missing)
"""Rules about one port or its guest, which may be the one that is looked for."""


def unseen(trip: Trip, end: End) -> None:
    trip.hop(end.segment or end.title, "guest", "not seen on any port")
    suspects(trip, end.segment)
    asked = trip.scene.neighbours.get((end.segment, end.ip), {}).get("state", ())
    trip.blocks("guest-unseen", end.ip, f"no port of {end.segment or 'this host'} has {end.ip} behind it, as far as the bridge knows",
                "it has sent nothing for a while, is off, has another address, or its frames do not get in", f"ip neigh show {end.ip}: {'/'.join(asked)}" if asked else "",
                certainty=Certainty.LIKELY if {"FAILED", "INCOMPLETE"} & set(asked) else Certainty.UNKNOWN)
    deaf(trip, end.segment)


def suspects(trip: Trip, bridge: str) -> None:
    """What is wrong with ports of the segment of a guest that is not seen: one of them may be its own."""
    scene = trip.scene
    ports = set(scene.members.get(bridge, ()))
    names = {str(g.get("name") or f"pid {g['pid']}") for g in scene.part("guests") if ports & set((g.get("taps") or {}).values())}
    for finding in (f for rule in SUSPECTED for f in rule(scene)):
        if finding.where in ports | names and (finding.severity is Severity.BLOCKS or finding.code == "card-missing"):
            trip.find(replace(finding, severity=Severity.BLOCKS, certainty=Certainty.LIKELY, why=f"{finding.why} Whether {finding.where} is the one that is looked for is not known."))


def written(trip: Trip, end: End) -> None:
    """Of a guest that is seen nowhere and that the host sends to: a MAC that somebody wrote for it."""
    entry = trip.scene.neighbours.get((end.segment, end.ip), {})
    if WRITTEN & set(entry.get("state", ())) and entry.get("lladdr"):
        trip.blocks("wrong-neighbour", end.segment, f"the host takes {entry['lladdr']} for the MAC of {end.ip}, because somebody wrote it so, and no port of {end.segment} has that MAC behind it",
                    "a permanent entry is never asked again: it outlives a move of the address, or a new card", f"ip neigh show {end.ip} dev {end.segment}: {entry['lladdr']} {'/'.join(entry['state'])}",
                    fix=(f"ip neigh del {end.ip} dev {end.segment}",), certainty=Certainty.LIKELY)


def deaf(trip: Trip, bridge: str) -> None:
    """A bridge that learns nothing has to flood everything, and some of its ports get no such frames."""
    scene = trip.scene
    learns = scene.data(bridge).get("ageing_time") != 0
    quiet = [p for p in scene.members.get(bridge, ()) if scene.port(p).get("flood") is False and not scene.learned(p) and not (learns and scene.port(p).get("learning", True))]
    if quiet:
        trip.blocks("port-no-flood", quiet[0], f"{bridge} learns no MAC behind {', '.join(quiet)}{'' if learns else ' (ageing time 0)'}, and sends no unknown MACs there (flood off)", "frames for a guest behind such a port are dropped, unless its MAC is written into the table by hand",
                    f"bridge -d link show dev {quiet[0]}: flood off", fix=(f"bridge link set dev {quiet[0]} learning on flood on",) if learns else (f"ip link set {bridge} type bridge ageing_time 30000",), certainty=Certainty.LIKELY)
